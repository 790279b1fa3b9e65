"""Who takes part in the benchmark: the library's model, ours, which is the same one, and plain functions of a frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mpvss._extras import has, require
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.stage_clock import StageClock
from mpvss.errors import ModelError
from mpvss.options import BenchOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import is_export
from mpvss.segmentors.protocol import Segmentor
from mpvss.segmentors.wrap import is_address
from mpvss.types import Frame, Geometry, Segmentation

_OF_OURS = ("propagator", "motion", "interval", "backend", "fast", "classes_file", "output_kind", "prompt")

Labeller = Callable[[Frame], np.ndarray]


@runtime_checkable
class PerFrame(Protocol):
    """A model that labels each frame by itself, and says what it took."""

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the labels of a frame."""
        ...

    def timed(self, frame: Frame) -> dict[str, float]:
        """Return the seconds of a frame, by part."""
        ...


@dataclass(frozen=True, eq=False)
class Contest:
    """The library's model and ours, which are the same one.

    Attributes:
        library: Labels frames as users of the library do; ``None`` without torch, and of what is not the library's.
        ours: Our segmenter, with the activity of a trained model.
        all_active: Ours with the classes of the random weights, which is every query and every class; ``None`` where
            the weights are trained.
    """

    library: PerFrame | None
    ours: VideoSegmenter
    all_active: VideoSegmenter | None


def has_torch() -> bool:
    """Whether the library's models can run here."""
    return has("torch") and has("transformers")


def make_contest(options: BenchOptions) -> Contest:
    """Load or build what is compared. Options are resolved.

    Raises:
        ModelError: The model cannot be loaded, or random weights are asked for without torch.
    """
    if options.arch is not None:
        require("torch", f"the random weights of {options.arch} need", ModelError)
        from mpvss.evaluation.library import with_random_weights

        return with_random_weights(options)
    model, ours = str(options.model), make_ours(options)
    if not has_torch() or is_export(model) or is_address(model):
        return Contest(None, ours, None)
    from mpvss.evaluation.library import with_library

    return with_library(ours, model)


def make_ours(options: BenchOptions) -> VideoSegmenter:
    """Load or build ours alone. Options are resolved."""
    if options.arch is not None:
        return make_contest(options).ours
    values = {name: getattr(options, name) for name in _OF_OURS}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return VideoSegmenter.from_pretrained(str(options.model), device="cpu", **given)


class _PlainCarrier:
    """Asks a function for the labels of every frame, each a key frame."""

    def __init__(self, label: Labeller) -> None:
        self._label, self.clock = label, StageClock()

    def predict(self, frames: Sequence[Frame]) -> list[np.ndarray]:
        with self.clock("key"):
            return [self._label(frame) for frame in frames]

    def keep(self, frame: Frame, predicted: np.ndarray) -> tuple[None, Segmentation]:
        return None, Segmentation(frame, predicted, is_key=True)

    def geometry(self, frame: Frame) -> Geometry:
        return Geometry(frame.size, frame.size, frame.size)

    def next(self, kept: None, frame: Frame) -> Segmentation:  # noqa: ARG002 - a carrier's signature
        raise AssertionError("every frame is a key frame")

    def between(self, before: None, frames: Sequence[Frame], after: None) -> list[Segmentation]:  # noqa: ARG002
        raise AssertionError("every frame is a key frame")

    def close(self) -> None:
        """There is nothing to release."""


class PlainRun(VideoSegmenter):
    """A function from frame to labels, with the same reading and writing as ours."""

    def __init__(self, segmentor: Segmentor, label: Labeller) -> None:
        super().__init__(segmentor, None)
        self._label = label

    def session(self, *_: Any, **__: Any) -> Session:
        """Begin a video."""
        return Session(_PlainCarrier(self._label), FixedInterval(1))
