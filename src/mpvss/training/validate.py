"""How good the model of a run is on clips, with the code that inference uses."""

import copy
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from mpvss.datasets import Clip, Dataset
from mpvss.engine.decode import Labels
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.true_labels import true_label_carrier
from mpvss.metrics import MiouByDistance
from mpvss.motion.learned import LearnedFlow
from mpvss.segmenter import VideoSegmenter
from mpvss.training.config import DataConfig
from mpvss.training.tasks import MotionTask, Task
from mpvss.types import Frame


@dataclass(frozen=True)
class Validation:
    """Scores of a model on clips.

    Attributes:
        miou: Mean intersection over union; ``None`` where the data has other classes than the model.
        miou_by_distance: The same by frames since the key frame; ``None`` where no frame is at a distance. Empty
            for a segmentor.
        oracle_miou: The same with true labels on the key frames; ``None`` where they have none.
        oracle_miou_by_distance: Likewise.
    """

    miou: float | None = None
    miou_by_distance: tuple[float | None, ...] = ()
    oracle_miou: float | None = None
    oracle_miou_by_distance: tuple[float | None, ...] = ()

    @property
    def score(self) -> float:
        """What the best weights are chosen by."""
        return self.miou if self.miou is not None else self.oracle_miou or 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what was scored as plain values for JSON."""
        values = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value not in (None, ())
        }


def validate(task: Task, dataset: Dataset, config: DataConfig) -> Validation:
    """Score the first clips of a data set.

    Args:
        task: What is trained; its model is set to evaluation mode.
        dataset: Its classes are the segmentor's, or only true masks are propagated.
        config: How many clips and frames, and how they are propagated.
    """
    task.eval()
    segmentor = task.segmentor
    interval = config.interval if isinstance(task, MotionTask) else 1
    propagator = LearnedFlow(copy.deepcopy(task.motion)) if isinstance(task, MotionTask) else None
    same_classes = dataset.num_classes == len(segmentor.class_names)
    predicted, oracle = (MiouByDistance(dataset.num_classes, interval, dataset.ignore) for _ in range(2))
    ids = np.array([*range(dataset.num_classes), dataset.ignore], np.int64)
    for clip in dataset.clips[: config.validation_clips]:
        if same_classes:
            segmenter = VideoSegmenter(segmentor, propagator, motion=config.motion, interval=interval, cuts=False)
            _score(segmenter.session(direction="forward"), clip, config, predicted)
        if propagator is not None and _has_keys(clip, interval, config) and dataset.protocol != "cityscapes":
            carrier = true_label_carrier(
                partial(_true_labels, clip), ids, propagator, motion=config.motion, segmentor=segmentor
            )
            _score(Session(carrier, FixedInterval(interval)), clip, config, oracle)
    return Validation(*_scores(predicted), *_scores(oracle))


def _scores(metric: MiouByDistance) -> tuple[float | None, tuple[float | None, ...]]:
    """Mean, and means by distance where there is more than one."""
    if math.isnan(metric.mean):
        return None, ()
    return metric.mean, tuple(None if math.isnan(x) else x for x in metric.miou) if metric.interval > 1 else ()


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
