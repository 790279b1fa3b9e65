"""Everything that is counted of one video, as a line of a run."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mpvss._files import output_errors
from mpvss._validate import convert, shown
from mpvss.datasets import Dataset, read_label
from mpvss.engine.decode import Labels
from mpvss.errors import DataError
from mpvss.evaluation.results import WINDOW
from mpvss.metrics import (
    SMALLEST_FLOW,
    ConfusionMatrix,
    Flicker,
    MiouByDistance,
    RegionSimilarity,
    VideoConsistency,
    region_similarity,
)

_WORST_PER_VIDEO = 4
_LARGEST_STATE = 2**27
CONSISTENCIES = {"vc8": (8, False), "vc16": (16, False), "correct_vc8": (8, True), "correct_vc16": (16, True)}
METRICS: dict[str, Any] = {
    "confusion": ConfusionMatrix,
    "by_distance": MiouByDistance,
    **dict.fromkeys(CONSISTENCIES, VideoConsistency),
    "flicker": Flicker,
    "j": RegionSimilarity,
}


class TimeLine(TypedDict):
    """Of every frame its score, and whether it is a key frame; ``None`` where it is unknown."""

    score: list[float | None]
    key: list[bool | None]


class Worst(TypedDict):
    """A frame whose prediction is kept."""

    index: int
    score: float


class Part(TypedDict):
    """A window of a video: the state of its confusion matrix, and sum and number of what the others are means of."""

    confusion: dict[str, Any]
    j: tuple[float, float]
    vc8: NotRequired[tuple[float, float]]
    vc16: NotRequired[tuple[float, float]]
    correct_vc8: NotRequired[tuple[float, float]]
    correct_vc16: NotRequired[tuple[float, float]]


class Line(TypedDict):
    """A finished video. ``metrics`` are states by name; lines of the version before have no ``classical_flows``."""

    clip: str
    frames: int
    key_frames: int | None
    metrics: dict[str, Any]
    gmac: float | None
    classical_flows: NotRequired[int | None]
    seconds: dict[str, float]
    timeline: TimeLine
    worst: list[Worst]
    parts: list[Part]


class _Classes(TypedDict):
    num_classes: int
    interval: NotRequired[int]


def check_line(line: Any, classes: int) -> Line:
    """Check that everything the figures and the report are made of is in a line, so that neither has to.

    Raises:
        ValueError: Something is missing or malformed, or too large for the memory.
    """
    convert(line, Line, what="the line")
    for name, state in line["metrics"].items():
        if name not in METRICS:
            raise ValueError(f"no metric {shown(name)}")
        _check_state(name, state, classes)
    for part in line["parts"]:
        _check_state("confusion", part["confusion"], classes)
    checked: Line = line
    return checked


def _check_state(name: str, state: Any, classes: int) -> None:
    if "num_classes" in convert(state, dict, what=name):
        convert(state, _Classes, what=name)
        if state["num_classes"] != classes:
            raise ValueError(f"{name}: expected {classes} classes, got {shown(state['num_classes'])}")
        if classes**2 * state.get("interval", 1) > _LARGEST_STATE:
            raise ValueError(f"{name}: {classes} classes and an interval of {state.get('interval', 1)} are too many")
    METRICS[name].from_state(state)


def score_of(line: Line) -> float | None:
    """The score of one video: J where it has one, otherwise its mIoU."""
    if "j" in line["metrics"]:
        return known(RegionSimilarity.from_state(line["metrics"]["j"]).value)
    return known(ConfusionMatrix.from_state(line["metrics"]["confusion"]).miou)


def known(value: float) -> float | None:
    """A number, or ``None`` for NaN."""
    return None if math.isnan(value) else float(value)


def read_worst(run: Path, clip: str, index: int) -> Labels:
    """The prediction that a run kept for one of its worst frames.

    Raises:
        DataError: It is not there.
    """
    return read_label(run / "worst" / clip / f"{index}.png")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to a stage."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


@dataclass(frozen=True, eq=False)
class PredictedFrame:
    """A frame and its predicted labels; ``is_key`` is ``None`` where it is unknown."""

    index: int
    rgb: UInt8[np.ndarray, "H W 3"]
    labels: Labels
    is_key: bool | None


class ClipScores:
    """Everything that is counted of one video.

    Args:
        dataset: Its classes and protocol say what is counted.
        distances: Frames from one key frame to the next; ``None`` where it is unknown.
        worst: Folder for the predictions of the worst frames.
        consecutive: Whether frames follow one another, so that their labels can be compared.
    """

    def __init__(self, dataset: Dataset, distances: int | None, worst: Path, *, consecutive: bool = True) -> None:
        classes, ignore = dataset.num_classes, dataset.ignore
        self.seconds: dict[str, float] = {"read": 0.0, "key": 0.0, "propagate": 0.0, "decode": 0.0, "score": 0.0}
        self._dataset, self._worst_folder = dataset, worst
        self._metrics: dict[str, Any] = {"confusion": ConfusionMatrix(classes, ignore)}
        if distances is not None:
            self._metrics["by_distance"] = MiouByDistance(classes, distances, ignore)
        self._consistencies: dict[str, VideoConsistency] = {}
        if consecutive:
            for name, (n, correct) in CONSISTENCIES.items():
                self._consistencies[name] = VideoConsistency(n, correct=correct, ignore=ignore)
            self._metrics |= {**self._consistencies, "flicker": Flicker()}
        if dataset.protocol == "davis":
            self._metrics["j"] = RegionSimilarity()
        self._parts: list[Part] = []
        self._timeline: TimeLine = {"score": [], "key": []}
        self._since_key: int | None = None
        self._worst: list[tuple[float, int, Labels]] = []
        self._worst_of_part: tuple[float, int, Labels] | None = None
        self._part_j = (0.0, 0)
        self._begin_part()

    def update(self, frame: PredictedFrame, truth: Labels | None, clip_name: str, distance: int | None = None) -> None:
        """Take the next frame; the distance to its key frame is counted unless it is given.

        Raises:
            DataError: The key frames are farther apart than the interval.
        """
        with timed(self.seconds, "score"):
            if distance is None and "by_distance" in self._metrics:
                distance = self._since_key = 0 if frame.is_key else (self._since_key or 0) + 1
                if distance >= self._metrics["by_distance"].interval:
                    raise DataError(
                        f"{clip_name}: frame {frame.index} is {distance} frames after its key frame; give the interval "
                        "that the predictions were made with"
                    )
            score = self._count(frame, truth, distance)
            self._timeline["score"].append(known(score))
            self._timeline["key"].append(frame.is_key)
            if score < 1 and (self._worst_of_part is None or score < self._worst_of_part[0]):
                self._worst_of_part = (score, frame.index, frame.labels)
            if len(self._timeline["score"]) % WINDOW == 0:
                self._end_part()

    def _count(self, frame: PredictedFrame, truth: Labels | None, distance: int | None) -> float:
        """Update every metric; return the frame's own score, NaN without true labels."""
        metrics = self._metrics
        if "flicker" in metrics and min(frame.labels.shape) >= SMALLEST_FLOW:
            metrics["flicker"].update(frame.rgb, frame.labels)
        if truth is None:
            for consistency in self._consistencies.values():
                consistency.end_video()
            return math.nan
        confusion = ConfusionMatrix(self._dataset.num_classes, self._dataset.ignore)
        confusion.update(prediction=frame.labels, target=truth)
        metrics["confusion"].merge(confusion)
        self._part_confusion.merge(confusion)
        if distance is not None:
            metrics["by_distance"].update(prediction=frame.labels, target=truth, distance=distance)
        for consistency in self._consistencies.values():
            consistency.update(target=truth, prediction=frame.labels)
        if "j" not in metrics:
            return confusion.miou
        # Where the key frames are unknown, the first frame is taken to have been given.
        is_key = frame.index == 0 if frame.is_key is None else frame.is_key
        score = metrics["j"].update(prediction=frame.labels, target=truth, is_key=is_key)
        if score is not None:
            self._part_j = (self._part_j[0] + score, self._part_j[1] + 1)
        return region_similarity(frame.labels, truth)

    def _windows(self) -> dict[str, tuple[float, int]]:
        """Sum and number of the windows of video consistency so far."""
        return {
            name: (metric.value * metric.windows if metric.windows else 0.0, metric.windows)
            for name, metric in self._consistencies.items()
        }

    def _begin_part(self) -> None:
        self._part_confusion = ConfusionMatrix(self._dataset.num_classes, self._dataset.ignore)
        self._part_j = (0.0, 0)
        self._before = self._windows()
        self._worst_of_part = None

    def _end_part(self) -> None:
        windows = {
            name: (total - self._before[name][0], number - self._before[name][1])
            for name, (total, number) in self._windows().items()
        }
        self._parts.append({"confusion": self._part_confusion.state(), "j": self._part_j, **windows})  # type: ignore[typeddict-item]
        if self._worst_of_part is not None:
            worst = sorted([*self._worst, self._worst_of_part], key=lambda frame: frame[0])
            self._worst = worst[:_WORST_PER_VIDEO]
        self._begin_part()

    def line(self, name: str) -> Line:
        """Close the video, and write the predictions of its worst frames.

        Raises:
            OutputError: They cannot be written.
        """
        with timed(self.seconds, "score"):
            if len(self._timeline["score"]) % WINDOW:
                self._end_part()
            for metric in self._metrics.values():
                if isinstance(metric, VideoConsistency | RegionSimilarity):
                    metric.end_video()
            with output_errors(self._worst_folder):
                for _, index, labels in self._worst:
                    self._worst_folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(labels).save(self._worst_folder / f"{index}.png")
        keys = [is_key for is_key in self._timeline["key"] if is_key is not None]
        return {
            "clip": name,
            "frames": len(self._timeline["key"]),
            "key_frames": sum(keys) if len(keys) == len(self._timeline["key"]) else None,
            "metrics": {kind: metric.state() for kind, metric in self._metrics.items()},
            "gmac": None,
            "classical_flows": None,
            "seconds": self.seconds,
            "timeline": self._timeline,
            "worst": [{"index": index, "score": score} for score, index, _ in self._worst],
            "parts": self._parts,
        }
