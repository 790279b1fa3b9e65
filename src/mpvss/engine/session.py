"""One video on its way through the program: the only place that holds state between frames."""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.cli.doctor import cores
from mpvss.engine.decode import ClassScores, averaged, label_map, score, score_size
from mpvss.engine.fusion import thumbnail, trust, visible_flow
from mpvss.engine.packed import Packed, fetch, mix, pack, strongest, together, unpack
from mpvss.engine.schedule import KeyFrames
from mpvss.engine.spill import Spill
from mpvss.engine.state import KeyState, View
from mpvss.motion.propagator import FLOW_GRID, Propagator, serves_both_ways
from mpvss.motion.warp import compose, invert, resize, resize_flow, warp
from mpvss.segmentors.protocol import InputRule, resize_frame
from mpvss.types import IMAGE_RATE, Frame, Geometry, Segmentation

MOTIONS = ("chain", "direct")
DIRECTIONS = ("both", "forward")
# Pixels of the class scores per cell, a side, of the grid that trust is judged on.
_TRUST_CELL = 4
# Class scores are carried as bytes if in no more than this share of the pixels the best one is below one in 32 of the
# largest: few bytes, of which ties are made.
_WEAK, _MOST_WEAK = 32, 0.005
# More than this many frames at a time would wait for memory, not for a core.
_MOST_WORKERS = 4
_Out = TypeVar("_Out")
if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that OpenMP began before, and would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
KeySource = Callable[[Frame, UInt8[Tensor, "3 H W"], Geometry], KeyState]


@dataclass
class Seconds:
    """Time spent in each stage, in seconds."""

    key: float = 0.0
    propagate: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.key + self.propagate + self.decode


def check_motion(motion: str) -> None:
    """Refuse a way to chain flows that there is not.

    Raises:
        ValueError: It is so.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, found {motion!r}")


def check_direction(direction: str) -> None:
    """Refuse a direction that there is not.

    Raises:
        ValueError: It is so.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, found {direction!r}")


def check_min_score(min_score: float) -> None:
    """Refuse a least class score that is none.

    Raises:
        ValueError: It is below 0 or not finite.
    """
    if not 0 <= min_score < math.inf:
        raise ValueError(f"min_score must be a class score, 0 or more and finite, found {min_score}")


def check_picture(rgb: object) -> None:
    """Refuse what is no RGB picture.

    Raises:
        ValueError: It is not a uint8 array of shape (H, W, 3) with at least one pixel.
    """
    if isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size:
        return
    found = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
    raise ValueError(f"expected an RGB picture as a uint8 array of shape (H, W, 3), found {found}")


@dataclass(frozen=True, eq=False)
class _Key:
    """A key frame as the frames beside it see it.

    Attributes:
        state: What the segmentor said, without the queries that take no part.
        picture: What flows are estimated on.
        scores: Its class scores, where one flow moves all of them.
    """

    state: KeyState
    picture: UInt8[Tensor, "3 H W"]
    scores: ClassScores | None


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A frame between two key frames, until the second one is there."""

    index: int
    pts: Fraction
    size: tuple[int, int]
    picture: UInt8[Tensor, "3 H W"]


@dataclass(eq=False)
class Session:
    """Segments one video, frame by frame: ``push`` every frame in order, then ``finish``.

    Going forward, each push answers with that frame. With both directions a frame is answered when the key frame after
    it is there: the queue holds at most ``interval - 1`` frames. No key frame's masks cross a cut, and after the last
    key frame only the forward side is left.

    Attributes:
        segment: The segmentor, or anything that makes key states.
        rule: Size of the pictures that ``segment`` and ``propagator`` see.
        propagator: How masks reach the frames between.
        schedule: Which frames are key frames; belongs to this session.
        motion: ``chain`` composes flows between neighbouring frames; ``direct`` estimates one flow from each frame to
            its key frame, as in the paper.
        direction: ``forward`` uses the key frame before; ``both`` also the one after, blended.
        classes: Only these class ids are kept, other pixels get the ignore id; ``None`` for all.
        confidence: Whether results carry the winner's share of the scores.
        tolerance: By how much leaving queries out of propagation may change a class score, 0 to 1; 0 leaves out only
            queries that change nothing.
        min_score: Pixels whose best class score is lower get the ignore id; 0 for none. The score of a class is the sum
            over queries of p(class) sigmoid(mask): near 1 where one query is sure, near 0 where none has anything.
        seconds: Time spent so far, by stage.

    Pictures, flows and labels that wait for a key frame lie in a temporary file beyond ``spill.MOST_HELD`` bytes.
    """

    segment: KeySource
    rule: InputRule
    propagator: Propagator
    schedule: KeyFrames
    motion: str = "chain"
    direction: str = "forward"
    classes: Sequence[int] | None = None
    confidence: bool = False
    tolerance: float = 0.0
    min_score: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)
    _pushed: int = field(default=0, init=False)
    _key: _Key | None = field(default=None, init=False)
    _waiting: list[_Waiting] = field(default_factory=list, init=False)
    _last_picture: UInt8[Tensor, "3 H W"] | None = field(default=None, init=False)
    _accumulated: Float[Tensor, "G 2 h w"] | None = field(default=None, init=False)
    _workers: ThreadPoolExecutor | None = field(default=None, init=False)
    _order: tuple[_Key, Packed] | None = field(default=None, init=False)
    _finished: bool = field(default=False, init=False)
    _last_pts: Fraction | None = field(default=None, init=False)
    _spill: Spill = field(default_factory=lambda: Spill("frames that wait for a key frame"), init=False)

    def __post_init__(self) -> None:
        check_motion(self.motion)
        check_direction(self.direction)
        check_min_score(self.min_score)

    def push(self, frame: Frame | UInt8[np.ndarray, "H W 3"]) -> list[Segmentation]:
        """Take the next frame; return the frames that are finished by it, in order: none, one or more.

        Args:
            frame: A frame, or a bare RGB picture: those are counted from 0, at 25 a second as image files are. Its
                memory may be written over when this returns.

        Raises:
            ValueError: The picture is not (H, W, 3) of uint8; its time is before that of the frame before; the session
                is finished; a frame between key frames came before any key frame; or the networks answered NaN.
        """
        frame = self._checked(frame)
        geometry = self.rule.fit(frame.size)
        changed = self._key is not None and self._key.state.geometry != geometry
        is_key, new_scene = self.schedule.next(frame.rgb, restart=changed)
        if is_key:
            return self._push_key(frame, geometry, new_scene)
        began = time.perf_counter()
        key = self._key_before(frame)
        picture = resize_frame(frame, self._picture_size(geometry))
        if self.direction == "both":
            self.seconds.propagate += time.perf_counter() - began
            picture = self._spill.keep_tensor(picture)
            self._waiting.append(_Waiting(frame.index, frame.pts, frame.size, picture))
            return []
        if self.motion == "chain":
            assert self._last_picture is not None
            flow = compose(self._flow(picture, self._last_picture, key.state), self._accumulated)
        else:
            flow = self._flow(picture, key.picture, key.state)
        self._accumulated, self._last_picture = flow, picture
        self.seconds.propagate += time.perf_counter() - began
        return [self._forward_only(frame, flow)]

    def finish(self) -> list[Segmentation]:
        """Return the frames that still waited for a key frame after them; the video has ended."""
        self._finished = True
        done = self._flush(None)
        if self._workers is not None:
            self._workers.shutdown()
            self._workers = None
        return done

    def _checked(self, frame: Frame | UInt8[np.ndarray, "H W 3"]) -> Frame:
        if self._finished:
            raise ValueError("this session is finished; begin another one for more frames")
        check_picture(frame.rgb if isinstance(frame, Frame) else frame)
        if not isinstance(frame, Frame):
            frame = Frame(self._pushed, self._pushed / IMAGE_RATE, frame)
        if self._last_pts is not None and not frame.pts >= self._last_pts:
            raise ValueError(
                f"frames must come in the order of their times, found frame {frame.index} at {float(frame.pts):g} s "
                f"after one at {float(self._last_pts):g} s; begin another session for another video"
            )
        self._pushed += 1
        self._last_pts = frame.pts
        return frame

    def _push_key(self, frame: Frame, geometry: Geometry, new_scene: bool) -> list[Segmentation]:
        began = time.perf_counter()
        image = resize_frame(frame, geometry.resized)
        with torch.no_grad():
            state = self.segment(frame, image, geometry).plain()
        self.seconds.key += time.perf_counter() - began
        began = time.perf_counter()
        scores = self._score([View(state.class_logits, state.mask_logits)], geometry)
        own = self._labels(frame, scores, is_key=True)
        self.seconds.decode += time.perf_counter() - began
        began = time.perf_counter()
        size = self._picture_size(geometry)
        picture = image if size == geometry.resized else resize_frame(frame, size)
        kept = None
        if not self.propagator.per_query:
            kept = scores if self.confidence else strongest(scores)
        key = _Key(state.only_active(self.tolerance), picture, kept)
        self.seconds.propagate += time.perf_counter() - began
        done = self._flush(None if new_scene else key)
        self._key, self._accumulated, self._last_picture = key, None, picture
        return [*done, own]

    def _key_before(self, frame: Frame | _Waiting) -> _Key:
        if self._key is None:
            raise ValueError(f"frame {frame.index} is not a key frame and no key frame came before it")
        return self._key

    def _picture_size(self, geometry: Geometry) -> tuple[int, int]:
        return geometry.resized if self.propagator.per_query else score_size(geometry)

    def _flow(self, current: Tensor, other: Tensor, key: KeyState) -> Float[Tensor, "G 2 h w"]:
        """Flow on the grid of the masks where each query has its own, otherwise on a grid for the class scores."""
        padded = key.geometry.padded
        grid = (key.mask_logits.shape[-2], key.mask_logits.shape[-1])
        if not self.propagator.per_query:
            padded = score_size(key.geometry)
            grid = (max(1, round(padded[0] * FLOW_GRID)), max(1, round(padded[1] * FLOW_GRID)))
        with torch.no_grad():
            flow = self.propagator.estimate_flow(
                current[None], other[None], key.queries[None], padded, grid, key.active
            )
        return flow[0].detach().to(key.mask_logits.device, torch.float32)

    def _warped(self, key: KeyState, flow: Float[Tensor, "G 2 h w"]) -> Float[Tensor, "Q h w"]:
        if len(flow) == 1:
            return warp(key.mask_logits[None], flow)[0]
        return warp(key.mask_logits[:, None], flow)[:, 0]

    def _forward_only(self, frame: Frame | _Waiting, flow: Float[Tensor, "G 2 h w"]) -> Segmentation:
        began = time.perf_counter()
        key = self._key_before(frame)
        if key.scores is not None:
            fetched = fetch(self._packed(key), flow[0])
            self.seconds.propagate += time.perf_counter() - began
            began = time.perf_counter()
            result = self._labels(frame, unpack(fetched), is_key=False)
        else:
            view = View(key.state.class_logits, self._warped(key.state, flow))
            self.seconds.propagate += time.perf_counter() - began
            began = time.perf_counter()
            result = self._labels(frame, self._score([view], key.state.geometry), is_key=False)
        self.seconds.decode += time.perf_counter() - began
        return result

    def _packed(self, key: _Key) -> Packed:
        """The key frame's scores in order, made once for all frames that hear it alone."""
        if self._order is None or self._order[0] is not key:
            assert key.scores is not None
            self._order = (key, pack(key.scores, top=self._top(key.scores)))
        return self._order[1]

    def _top(self, *scores: ClassScores) -> float | None:
        """What the largest byte stands for where bytes will do.

        They will not where a share of all scores or a least score is asked for, nor where the best score of many pixels
        is a few bytes.
        """
        if self.confidence or self.min_score:
            return None
        best = [item.planes.amax(0) for item in scores]
        top = max(float(plane.max()) for plane in best)
        weak = max(float((plane * _WEAK < top).float().mean()) for plane in best)
        return top if top > 0 and weak <= _MOST_WEAK else None

    def _flush(self, after: _Key | None) -> list[Segmentation]:
        """Finish the waiting frames with the key frame after them, or without one."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        began = time.perf_counter()
        before = self._key_before(waiting[0])
        pictures = [item.picture for item in waiting]
        if after is None:
            forward = self._flows(pictures, before)
            self.seconds.propagate += time.perf_counter() - began
            done = [self._kept(self._forward_only(item, flow)) for item, flow in zip(waiting, forward, strict=True)]
        else:
            forward, backward = self._flows_both_ways(pictures, before, after)
            finish = self._mixed_masks if before.scores is None else self._mixed_scores
            self.seconds.propagate += time.perf_counter() - began
            done = finish(waiting, list(zip(forward, backward, strict=True)), before, after)
        self._spill.clear()
        return done

    def _kept(self, result: Segmentation) -> Segmentation:
        """The same result, its arrays in the file where too many wait already."""
        confidence = None if result.confidence is None else self._spill.keep(result.confidence)
        return replace(result, labels=self._spill.keep(result.labels), confidence=confidence)

    def _flows(self, pictures: Sequence[Tensor], key: _Key) -> list[Float[Tensor, "G 2 h w"]]:
        """Flows from consecutive pictures, the nearest first, to a key frame beside them."""
        if self.motion == "chain":
            return self._chain(self._steps(pictures, key))

        def direct(picture: Tensor) -> Tensor:
            return self._spill.keep_tensor(self._flow(picture, key.picture, key.state))

        return self._beside(direct, pictures)

    def _chain(self, steps: Sequence[Float[Tensor, "G 2 h w"]]) -> list[Float[Tensor, "G 2 h w"]]:
        """Flows to the key frame, from the flow of each frame to its neighbour, the key frame's neighbour first."""
        flows: list[Tensor] = []
        for step in steps:
            flows.append(self._spill.keep_tensor(compose(step, flows[-1])) if flows else step)
        return flows

    def _steps(self, pictures: Sequence[Tensor], key: _Key) -> list[Float[Tensor, "G 2 h w"]]:
        """Flows from consecutive pictures, the nearest to a key frame first, each to the one before."""

        def step(pair: tuple[Tensor, Tensor]) -> Tensor:
            return self._spill.keep_tensor(self._flow(*pair, key.state))

        return self._beside(step, zip(pictures, [key.picture, *pictures[:-1]], strict=True))

    def _flows_both_ways(
        self, pictures: Sequence[Tensor], before: _Key, after: _Key
    ) -> tuple[list[Float[Tensor, "G 2 h w"]], list[Float[Tensor, "G 2 h w"]]]:
        """Flows from the pictures between two key frames to either, in the order of the pictures."""
        if not serves_both_ways(self.propagator, self.motion):
            return self._flows(pictures, before), self._flows(pictures[::-1], after)[::-1]
        steps = self._steps([*pictures, after.picture], before)
        back = self._beside(lambda step: self._spill.keep_tensor(invert(step)), steps[:0:-1])
        forward, backward = self._beside(self._chain, [steps[:-1], back])
        return forward, backward[::-1]

    def _beside(self, work: Callable[[Any], _Out], items: Iterable[Any]) -> list[_Out]:
        """Do the same to every item, on all cores that torch may use where the propagator allows it.

        The functions of OpenCV are too short to share one call between cores. Networks use the cores by themselves.
        """
        threads = min(_MOST_WORKERS, cores(), torch.get_num_threads())
        if threads == 1 or not getattr(self.propagator, "thread_safe", False):
            return [work(item) for item in items]
        if self._workers is None:
            self._workers = ThreadPoolExecutor(threads, "mpvss-frame")
        return list(self._workers.map(work, items))

    def _mixed_scores(
        self, waiting: Sequence[_Waiting], flows: Sequence[tuple[Tensor, Tensor]], before: _Key, after: _Key
    ) -> list[Segmentation]:
        """Blend the class scores of both key frames, each fetched by its flow."""
        began = time.perf_counter()
        assert before.scores is not None and after.scores is not None
        geometry = before.state.geometry
        size = score_size(geometry)
        grid = (-(-size[0] // _TRUST_CELL), -(-size[1] // _TRUST_CELL))
        device = before.scores.planes.device
        ids, top = together(before.scores, after.scores), self._top(before.scores, after.scores)
        sides = [
            (pack(key.scores, ids, top), thumbnail(key.picture, size, grid))
            for key in (before, after)
            if key.scores is not None
        ]
        gap = len(waiting) + 1

        def finish(place: tuple[int, _Waiting, tuple[Tensor, Tensor]]) -> tuple[Segmentation, float, float]:
            distance, item, both = place
            started = time.perf_counter()
            current = thumbnail(item.picture, size, grid)
            weights, fetched = [], []
            for (packed, small), flow, frames in zip(sides, both, (distance, gap - distance), strict=True):
                fetched.append(fetch(packed, flow[0]))
                weight = trust(current, small, resize_flow(flow, grid)[0].cpu(), frames, gap, size)
                weights.append(resize(weight[None].to(device), size)[0])
            mixed = mix((fetched[0], fetched[1]), (weights[0], weights[1]))
            halfway = time.perf_counter()
            result = self._kept(self._labels(item, unpack(mixed), is_key=False))
            return result, halfway - started, time.perf_counter() - halfway

        places = zip(range(1, gap), waiting, flows, strict=True)
        done = self._beside(finish, places)
        # Several cores were at it: each stage gets its share of the time that went by.
        moved, decoded = sum(seconds for _, seconds, _ in done), sum(seconds for *_, seconds in done)
        spent = time.perf_counter() - began
        self.seconds.decode += spent * decoded / (moved + decoded)
        self.seconds.propagate += spent * moved / (moved + decoded)
        return [result for result, *_ in done]

    def _mixed_masks(
        self, waiting: Sequence[_Waiting], flows: Sequence[tuple[Tensor, Tensor]], before: _Key, after: _Key
    ) -> list[Segmentation]:
        """Blend two views of each frame: each key frame's masks, every one moved by its own flow."""
        began = time.perf_counter()
        states = (before.state, after.state)
        geometry = before.state.geometry
        padded = geometry.padded
        grid = (before.state.mask_logits.shape[-2], before.state.mask_logits.shape[-1])
        device = before.state.mask_logits.device
        small = [thumbnail(key.picture, padded, grid) for key in (before, after)]
        gap = len(waiting) + 1
        self.seconds.propagate += time.perf_counter() - began
        done = []
        for distance, (item, both) in enumerate(zip(waiting, flows, strict=True), 1):
            began = time.perf_counter()
            current = thumbnail(item.picture, padded, grid)
            views = []
            for key, picture, flow, frames in zip(states, small, both, (distance, gap - distance), strict=True):
                masks = self._warped(key, flow)
                shown = visible_flow(flow, key.class_logits, masks)
                weight = trust(current, picture, shown.cpu(), frames, gap, padded).to(device)
                views.append(View(key.class_logits, masks, weight))
            self.seconds.propagate += time.perf_counter() - began
            began = time.perf_counter()
            done.append(self._kept(self._labels(item, self._score(views, geometry), is_key=False)))
            self.seconds.decode += time.perf_counter() - began
        return done

    def _score(self, views: Sequence[View], geometry: Geometry) -> ClassScores:
        # A share is one of all classes.
        scores = score(views, geometry, every_class=self.confidence)
        return averaged(scores, views, geometry) if self.min_score else scores

    def _labels(self, frame: Frame | _Waiting, scores: ClassScores, *, is_key: bool) -> Segmentation:
        labels, confidence = label_map(
            scores,
            self.rule.fit(frame.size),
            classes=self.classes,
            confidence=self.confidence,
            min_score=self.min_score,
        )
        return Segmentation(frame.index, frame.pts, labels, is_key, confidence)
