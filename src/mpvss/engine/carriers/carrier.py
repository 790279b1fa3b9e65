"""What the session asks of a carrier, and what the two that follow flows share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss._threads import cores, threads
from mpvss.engine.decode import ClassScores, averaged, label_map, pixel_labels, pixel_scores, score
from mpvss.engine.flows import Flows, Key, check_motion
from mpvss.engine.spill import Spill
from mpvss.engine.stage_clock import StageClock
from mpvss.engine.state import KeyState, PixelState, WarpedPrediction
from mpvss.engine.view import FlowTally, View
from mpvss.labels import ignore_id
from mpvss.motion.arrays import Flow
from mpvss.motion.propagator import FollowsVectors, Propagator
from mpvss.segmentors.protocol import InputRule, resize_frame
from mpvss.types import Frame, Geometry, Segmentation

Image = UInt8[np.ndarray, "H W 3"]
State = KeyState | PixelState
Predict = Callable[[Sequence[Frame], Sequence[Image], Geometry], Sequence[State]]
K = TypeVar("K")
_F = TypeVar("_F", bound=Key)
_Out = TypeVar("_Out")
Job = tuple[Frame, Image, Flow, Flow]
"""A frame between two key frames: itself, the image its flows were estimated on, and its flows to either."""


NO_QUERIES = (
    "this segmentor gives a class to each pixel and has no queries: use a propagator that moves all classes alike, "
    "such as dis, instead of query"
)

# More than this many frames at a time would wait for memory, not for a core.
_MOST_WORKERS = 4


def check_min_score(min_score: float) -> None:
    """Refuse a least class score that is none.

    Raises:
        ValueError: It is below 0 or not finite.
    """
    if not 0 <= min_score < math.inf:
        raise ValueError(f"min_score must be a class score, 0 or more and finite, got {min_score}")


@runtime_checkable
class Carrier(Protocol[K]):
    """Labels key frames, and propagates their state. Belongs to one video; holds its chain of flows."""

    clock: StageClock

    def predict(self, frames: Sequence[Frame]) -> Sequence[Any]:
        """Run the segmentor on key frames of one size; return what it says about each."""
        ...

    def keep(self, frame: Frame, predicted: Any) -> tuple[K, Segmentation]:
        """Return what the frames around a key frame need, and the frame's own result."""
        ...

    def next(self, kept: K, frame: Frame) -> Segmentation:
        """Label the frame after the last one from the key frame before it."""
        ...

    def between(self, before: K, frames: Sequence[Frame], after: K | None) -> list[Segmentation]:
        """Label the frames between two key frames, or after the last one, in order."""
        ...

    def geometry(self, frame: Frame) -> Geometry:
        """Return how a frame becomes the networks' input; nothing is propagated to a frame where it differs."""
        ...

    def close(self) -> None:
        """Release threads."""
        ...


@dataclass(frozen=True, eq=False)
class Inference:
    """The networks of one video and the options that change their results.

    Attributes:
        predict: The segmentor on resized images of one geometry, or anything that makes key states.
        rule: Size of the images that ``predict`` and ``propagator`` see.
        propagator: Estimates flows.
        motion: ``chain`` or ``direct``.
        classes: Only these class ids are kept, other pixels get the ignore id; ``None`` for all.
        confidence: Whether results carry the winner's share of the scores.
        tolerance: By how much leaving queries out of propagation may change a class score, 0 to 1.
        min_score: Pixels whose best class score is lower get the ignore id; 0 for none. The score of a class is the sum
            over queries of p(class) sigmoid(mask): near 1 where one query is sure, near 0 where none has anything.
        network: What answers with tensors on a device other than the CPU, whose ``predict`` replaces the one above.
        class_names: What results call the class ids; empty where nobody says.
        clock: Seconds by stage.
        tally: What flows were made from.
    """

    predict: Predict
    rule: InputRule
    propagator: Propagator
    motion: str = "chain"
    classes: Sequence[int] | None = None
    confidence: bool = False
    tolerance: float = 0.0
    min_score: float = 0.0
    network: Any = None
    class_names: tuple[str, ...] = ()
    clock: StageClock = field(default_factory=StageClock)
    tally: FlowTally = field(default_factory=FlowTally)

    def __post_init__(self) -> None:
        check_motion(self.motion)
        check_min_score(self.min_score)

    def flow(
        self,
        current: View,
        other: View,
        padded: tuple[int, int],
        grid: tuple[int, int],
        queries: Float32[np.ndarray, "1 Q D"] | None = None,
        active: Int64[np.ndarray, " A"] | None = None,
    ) -> Flow:
        """Return the flow from a frame to another one; see ``Propagator.estimate_flow``."""
        propagator = self.propagator
        if isinstance(propagator, FollowsVectors):
            flow = None
            if current.vectors is not None and other.index == current.index - 1:
                flow = propagator.flow_along(current.vectors, current.image, other.image, padded, grid)
            self.tally.add((propagator if flow is not None else propagator.fallback).name)
            if flow is not None:
                return flow
        flows = propagator.estimate_flow(current.image[None], other.image[None], queries, padded, grid, active)
        return np.asarray(flows[0], np.float32)

    def score_key(self, state: State) -> ClassScores:
        """Return the class scores of a key frame, for the frames around it."""
        if isinstance(state, PixelState):
            return pixel_scores(state, every_class=self.confidence or self.min_score > 0)
        return self.score([WarpedPrediction(state.class_logits, state.mask_logits)], state.geometry)

    def label_key(self, state: State, scores: ClassScores) -> Segmentation:
        """Return the labels of a key frame: from the logits themselves where a segmentor of pixels gave them."""
        if isinstance(state, KeyState):
            return self.label(state.frame, scores, is_key=True)
        labels, confidence = pixel_labels(state, classes=self.classes), None
        if self.confidence or self.min_score:
            scored, confidence = label_map(scores, state.geometry, confidence=self.confidence, min_score=self.min_score)
            if self.min_score:
                labels[scored == ignore_id(state.num_classes)] = ignore_id(state.num_classes)
        return Segmentation(state.frame, labels, True, confidence, self.class_names)

    def score(self, predictions: Sequence[WarpedPrediction], geometry: Geometry) -> ClassScores:
        """Return class scores; of all classes where shares of their sum are asked for."""
        scores = score(predictions, geometry, every_class=self.confidence)
        return averaged(scores, predictions, geometry) if self.min_score else scores

    def label(self, frame: Frame, scores: ClassScores, *, is_key: bool) -> Segmentation:
        """Return a frame's labels from class scores."""
        labels, confidence = label_map(
            scores,
            self.rule.fit(frame.size),
            classes=self.classes,
            confidence=self.confidence,
            min_score=self.min_score,
        )
        return Segmentation(frame, labels, is_key, confidence, self.class_names)


class FlowCarrier(ABC, Generic[_F]):
    """A carrier that follows flows: what is left to a subclass is what it keeps, warps and blends."""

    def __init__(self, inference: Inference, *, invertible: bool = False) -> None:
        """Begin a video.

        Args:
            inference: The networks and their options.
            invertible: Whether one flow between neighbours serves both directions.
        """
        self.inference = inference
        self.clock = inference.clock
        self._spill = Spill("frames that wait for a key frame")
        self._flows = Flows[_F](self.estimate, inference.motion, invertible, self.map, self._spill.keep)
        self._pool: ThreadPoolExecutor | None = None

    def predict(self, frames: Sequence[Frame]) -> Sequence[State]:
        """Run the segmentor on key frames; see ``Carrier.predict``."""
        geometry = self.inference.rule.fit(frames[0].size)
        with self.clock("key"):
            images = [resize_frame(frame, geometry.resized) for frame in frames]
            return self.inference.predict(frames, images, geometry)

    def keep(self, frame: Frame, predicted: State) -> tuple[_F, Segmentation]:
        """Label a key frame; see ``Carrier.keep``."""
        state, geometry = predicted, predicted.geometry
        with self.clock("decode"):
            scores = self.inference.score_key(state)
            result = self.inference.label_key(state, scores)
        with self.clock("propagate"):
            size = self.image_size(geometry)
            image = state.image if size == geometry.resized else resize_frame(frame, size)
            kept = self.kept(state, scores, View(image, frame.index, frame.vectors))
            self._flows.restart(kept)
        return kept, result

    def next(self, kept: _F, frame: Frame) -> Segmentation:
        """Label a frame from the key frame before it; see ``Carrier.next``."""
        with self.clock("propagate"):
            flow = self._flows.next(self._view(frame), kept)
        return self.from_one(frame, kept, flow)

    def between(self, before: _F, frames: Sequence[Frame], after: _F | None) -> list[Segmentation]:
        """Label the frames between two key frames; see ``Carrier.between``."""
        with self.clock("propagate"):
            views = [self._view(frame, self._spill.keep) for frame in frames]
            if after is not None:
                forward, backward = self._flows.to_both(views, before, after)
            else:
                forward = self._flows.to_key(views, before)
        if after is None:
            done = [self.spilled(self.from_one(*item)) for item in zip(frames, repeat(before), forward)]
        else:
            images = [view.image for view in views]
            done = self.fuse(list(zip(frames, images, forward, backward, strict=True)), before, after)
        self._spill.clear()
        return done

    def geometry(self, frame: Frame) -> Geometry:
        """Return what must be the same for a frame as for its key frame."""
        return self.inference.rule.fit(frame.size)

    def spilled(self, result: Segmentation) -> Segmentation:
        """Return the same result, its arrays in a file where too many wait already."""
        confidence = None if result.confidence is None else self._spill.keep(result.confidence)
        return replace(result, labels=self._spill.keep(result.labels), confidence=confidence)

    def close(self) -> None:
        """End the threads."""
        self.inference.tally.report(self.inference.propagator.name)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def map(self, work: Callable[[Any], _Out], items: Iterable[Any]) -> list[_Out]:
        """Apply a function to every value, on all threads there may be where the propagator allows it.

        The functions of OpenCV are too short to share one call between cores. Networks use the cores by themselves.
        """
        workers = min(_MOST_WORKERS, cores(), threads())
        if workers == 1 or not getattr(self.inference.propagator, "thread_safe", False):
            return [work(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(workers, "mpvss-frame")
        return list(self._pool.map(work, items))

    def _view(self, frame: Frame, keep: Callable[[Image], Image] | None = None) -> View:
        image = resize_frame(frame, self.image_size(self.geometry(frame)))
        return View(image if keep is None else keep(image), frame.index, frame.vectors)

    @abstractmethod
    def image_size(self, geometry: Geometry) -> tuple[int, int]:
        """Return height and width in pixels of the images that flows are estimated on."""

    @abstractmethod
    def kept(self, state: State, scores: ClassScores, view: View) -> _F:
        """Return what the frames around a key frame need of it."""

    @abstractmethod
    def estimate(self, current: View, other: View, key: _F) -> Flow:
        """Return the backward flow from an image to another, in pixels of the grid that is warped."""

    @abstractmethod
    def from_one(self, frame: Frame, key: _F, flow: Flow) -> Segmentation:
        """Label a frame from one key frame."""

    @abstractmethod
    def fuse(self, jobs: Sequence[Job], before: _F, after: _F) -> list[Segmentation]:
        """Label the frames between two key frames from both."""
