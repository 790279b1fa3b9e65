"""How good the model of a run is on clips, with the code that inference uses."""

import copy
import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from mpvss.datasets import Clip, Dataset
from mpvss.engine.carriers.true_labels import true_label_carrier
from mpvss.engine.decode import Labels
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.metrics import MiouByDistance
from mpvss.motion.learned import LearnedFlow
from mpvss.segmenter import VideoSegmenter
from mpvss.training.config import DataConfig
from mpvss.training.tasks import MotionTask, Task
from mpvss.types import Frame


def validate(task: Task, dataset: Dataset, config: DataConfig) -> dict[str, Any]:
    """Score the first clips of a data set.

    Args:
        task: What is trained; its model is set to evaluation mode.
        dataset: Its classes are the segmentor's, or only true masks are propagated.
        config: How many clips and frames, and how they are propagated.

    Returns:
        miou, and for a motion module miou_by_distance; with true masks at the key frames oracle_miou and
        oracle_miou_by_distance. Distances without a frame are ``None``.
    """
    task.eval()
    segmentor = task.segmentor
    interval = config.interval if isinstance(task, MotionTask) else 1
    propagator = LearnedFlow(copy.deepcopy(task.motion)) if isinstance(task, MotionTask) else None
    real = dataset.num_classes == len(segmentor.class_names)
    found = MiouByDistance(dataset.num_classes, interval, dataset.ignore)
    oracle = MiouByDistance(dataset.num_classes, interval, dataset.ignore)
    ids = np.array([*range(dataset.num_classes), dataset.ignore], np.int64)
    for clip in dataset.clips[: config.validation_clips]:
        if real:
            segmenter = VideoSegmenter(segmentor, propagator, motion=config.motion, interval=interval, cuts=False)
            _score(segmenter.session("forward"), clip, config, found)
        if propagator is not None and _has_keys(clip, interval, config) and dataset.protocol != "cityscapes":
            carrier = true_label_carrier(
                partial(_true_labels, clip), ids, propagator, motion=config.motion, segmentor=segmentor
            )
            _score(Session(carrier, FixedInterval(interval)), clip, config, oracle)
    result: dict[str, Any] = {}
    for prefix, metric in (("", found), ("oracle_", oracle)):
        if not math.isnan(metric.mean):
            result[f"{prefix}miou"] = metric.mean
            if interval > 1:
                by_distance = metric.miou
                result[f"{prefix}miou_by_distance"] = [None if math.isnan(x) else x for x in by_distance]
    return result


def _true_labels(clip: Clip, frame: Frame) -> Labels:
    truth = clip.load_label(frame.index)
    assert truth is not None  # see _has_keys
    return truth


def _has_keys(clip: Clip, interval: int, config: DataConfig) -> bool:
    """Whether every key frame has its true label."""
    keys = range(0, min(len(clip), config.validation_frames), interval)
    return all(clip.frames[index].label_path is not None for index in keys)


def _score(session: Session, clip: Clip, config: DataConfig, metric: MiouByDistance) -> None:
    for index in range(min(len(clip), config.validation_frames)):
        frame = Frame(index, Fraction(index) / clip.fps, clip.load_image(index))
        for result in session.push(frame):
            truth = clip.load_label(result.index)
            if truth is not None:
                metric.update(result.labels, truth, result.index % metric.interval)
