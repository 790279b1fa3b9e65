"""One video on its way through the program: the only place that holds state between frames."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.decode import decode
from mpvss.motion.blend import thumbnail, trust, visible_flow
from mpvss.motion.propagator import Propagator
from mpvss.motion.warp import compose, warp
from mpvss.schedule import KeyFrames
from mpvss.segmentors.protocol import InputRule, prepare
from mpvss.state import KeyState, View
from mpvss.types import IMAGE_RATE, Frame, Geometry, Segmentation

MOTIONS = ("chain", "direct")
DIRECTIONS = ("both", "forward")
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


def check_picture(rgb: object) -> None:
    """Refuse what is no RGB picture.

    Raises:
        ValueError: It is not a uint8 array of shape (H, W, 3) with at least one pixel.
    """
    if isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size:
        return
    found = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
    raise ValueError(f"expected an RGB picture as a uint8 array of shape (H, W, 3), found {found}")


@dataclass(eq=False)
class _Waiting:
    """A frame between two key frames, until the second one is there."""

    frame: Frame
    image: UInt8[Tensor, "3 H W"]
    forward: Float[Tensor, "G 2 h w"]


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
        seconds: Time spent so far, by stage.
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
    seconds: Seconds = field(default_factory=Seconds)
    _pushed: int = field(default=0, init=False)
    _key: KeyState | None = field(default=None, init=False)
    _waiting: list[_Waiting] = field(default_factory=list, init=False)
    _last_image: UInt8[Tensor, "3 H W"] | None = field(default=None, init=False)
    _accumulated: Float[Tensor, "G 2 h w"] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.motion not in MOTIONS:
            raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, found {self.motion!r}")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, found {self.direction!r}")

    def push(self, frame: Frame | UInt8[np.ndarray, "H W 3"]) -> list[Segmentation]:
        """Take the next frame; return the frames that are finished by it, in order: none, one or more.

        Args:
            frame: A frame, or a bare RGB picture: those are counted from 0, at 25 a second as image files are.

        Raises:
            ValueError: The picture is not (H, W, 3) of uint8; a frame between key frames came before any key frame;
                or the networks answered NaN.
        """
        if not isinstance(frame, Frame):
            check_picture(frame)
            frame = Frame(self._pushed, self._pushed / IMAGE_RATE, frame)
        self._pushed += 1
        image, geometry = prepare(frame, self.rule)
        changed = self._key is not None and self._key.geometry != geometry
        is_key, new_scene = self.schedule.next(frame.rgb, restart=changed)
        if is_key:
            began = time.perf_counter()
            key = self.segment(frame, image, geometry)
            self.seconds.key += time.perf_counter() - began
            kept = key.only_active(self.tolerance)
            done = self._flush(None if new_scene else kept)
            done.append(self._decode(frame, [View(key.class_logits, key.mask_logits)], is_key=True))
            self._key, self._accumulated, self._last_image = kept, None, image
            return done
        began = time.perf_counter()
        key = self._key_before(frame)
        if self.motion == "chain":
            assert self._last_image is not None
            step = self._flow(image, self._last_image, key)
            flow = compose(step, self._accumulated)
        else:
            flow = self._flow(image, key.image, key)
        self._accumulated, self._last_image = flow, image
        self.seconds.propagate += time.perf_counter() - began
        if self.direction == "both":
            self._waiting.append(_Waiting(frame, image, flow))
            return []
        return [self._forward_only(_Waiting(frame, image, flow))]

    def finish(self) -> list[Segmentation]:
        """Return the frames that still waited for a key frame after them; the video has ended."""
        return self._flush(None)

    def _key_before(self, frame: Frame) -> KeyState:
        if self._key is None:
            raise ValueError(f"frame {frame.index} is not a key frame and no key frame came before it")
        return self._key

    def _flow(self, current: Tensor, other: Tensor, key: KeyState) -> Float[Tensor, "G 2 h w"]:
        grid = (key.mask_logits.shape[-2], key.mask_logits.shape[-1])
        flow = self.propagator.estimate_flow(
            current[None], other[None], key.queries[None], key.geometry.padded, grid, key.active
        )
        return flow[0].to(key.mask_logits.device)

    def _warped(self, key: KeyState, flow: Float[Tensor, "G 2 h w"]) -> Float[Tensor, "Q h w"]:
        if len(flow) == 1:
            return warp(key.mask_logits[None], flow)[0]
        return warp(key.mask_logits[:, None], flow)[:, 0]

    def _forward_only(self, waiting: _Waiting) -> Segmentation:
        began = time.perf_counter()
        key = self._key_before(waiting.frame)
        view = View(key.class_logits, self._warped(key, waiting.forward))
        self.seconds.propagate += time.perf_counter() - began
        return self._decode(waiting.frame, [view], is_key=False)

    def _flush(self, after: KeyState | None) -> list[Segmentation]:
        """Finish the waiting frames with the key frame after them, or without one."""
        waiting, self._waiting = self._waiting, []
        if after is None:
            return [self._forward_only(frame) for frame in waiting]
        if not waiting:
            return []
        began = time.perf_counter()
        before = self._key_before(waiting[0].frame)
        backward: list[Tensor] = []
        neighbour, accumulated = after.image, None
        for item in reversed(waiting):
            if self.motion == "chain":
                accumulated = compose(self._flow(item.image, neighbour, after), accumulated)
                neighbour = item.image
                backward.append(accumulated)
            else:
                backward.append(self._flow(item.image, after.image, after))
        backward.reverse()
        padded = before.geometry.padded
        grid = (before.mask_logits.shape[-2], before.mask_logits.shape[-1])
        device = before.mask_logits.device
        small = [thumbnail(key.image, padded, grid, device) for key in (before, after)]
        gap = len(waiting) + 1
        self.seconds.propagate += time.perf_counter() - began
        done = []
        for distance, (item, back) in enumerate(zip(waiting, backward, strict=True), 1):
            began = time.perf_counter()
            current = thumbnail(item.image, padded, grid, device)
            views = []
            for key, picture, flow, frames in (
                (before, small[0], item.forward, distance),
                (after, small[1], back, gap - distance),
            ):
                masks = self._warped(key, flow)
                shown = visible_flow(flow, key.class_logits, masks)
                weight = trust(current, picture, shown, frames, gap, padded)
                views.append(View(key.class_logits, masks, weight))
            self.seconds.propagate += time.perf_counter() - began
            done.append(self._decode(item.frame, views, is_key=False))
        return done

    def _decode(self, frame: Frame, views: Sequence[View], *, is_key: bool) -> Segmentation:
        began = time.perf_counter()
        geometry = self.rule.fit(frame.size)
        labels, confidence = decode(views, geometry, classes=self.classes, confidence=self.confidence)
        self.seconds.decode += time.perf_counter() - began
        return Segmentation(frame.index, frame.pts, labels, is_key, confidence)
