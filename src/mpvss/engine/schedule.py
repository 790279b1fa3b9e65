"""Which frames are key frames: every ``interval`` frames, and wherever the video cuts to another scene."""

import math
from array import array
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mpvss.types import Frame

# A cut is judged on small images, wide enough to tell scenes apart. A cell of the other image counts as the same
# content up to two cells away: 6 % of the width from one frame to the next is motion.
_THUMBNAIL = (32, 24)
_REACH = np.ones((5, 5), np.uint8)
_COLOUR_BINS = 16
# Grey levels added to an image's contrast, so that the noise of a black one stays small.
_CONTRAST_FLOOR = 4.0
# Mean difference in grey levels, brightness apart, below which nothing is a cut: above a step of a fade to black, below
# any cut measured (docs/LOG.md).
_LEAST_DIFFERENCE = 10.0


@dataclass(frozen=True, eq=False)
class _Thumbnail:
    """A small image, free of brightness and contrast, with its extremes within reach, and its colours."""

    cells: Float32[np.ndarray, "h w 3"]
    contrast: float
    lowest: Float32[np.ndarray, "h w 3"]
    highest: Float32[np.ndarray, "h w 3"]
    colours: Float32[np.ndarray, "3 n"]

    @classmethod
    def of(cls, rgb: UInt8[np.ndarray, "H W 3"]) -> "_Thumbnail":
        # Four pixels across and down a cell are average enough; resizing the whole frame would be most of the time.
        stride = max(1, min(rgb.shape[0] // (4 * _THUMBNAIL[1]), rgb.shape[1] // (4 * _THUMBNAIL[0])))
        few = np.ascontiguousarray(rgb[::stride, ::stride])
        small = cv2.resize(few, _THUMBNAIL, interpolation=cv2.INTER_AREA)
        bins = small // (256 // _COLOUR_BINS)
        counts = np.stack([np.bincount(bins[..., c].ravel(), minlength=_COLOUR_BINS) for c in range(3)])
        colours = (counts / bins[..., 0].size).astype(np.float32)
        cells = small.astype(np.float32) - np.float32(small.mean())
        contrast = float(np.abs(cells).mean()) + _CONTRAST_FLOOR
        cells /= contrast
        return cls(cells, contrast, cv2.erode(cells, _REACH), cv2.dilate(cells, _REACH), colours)

    def not_in(self, other: "_Thumbnail") -> float:
        """How far the cells are from everything within reach in the other image, on average, in contrasts."""
        return float(np.maximum(np.maximum(self.cells - other.highest, other.lowest - self.cells), 0).mean())

    def recoloured(self, other: "_Thumbnail") -> float:
        """Share of cells, 0 to 1, whose colour would have to change; the mean of the three channels."""
        return float(np.abs(self.colours - other.colours).sum(1).mean() / 2)

    def correlation(self, other: "_Thumbnail") -> float:
        """How much they are one image in another light, 0 to 1."""
        length = math.sqrt(float((self.cells**2).sum()) * float((other.cells**2).sum()))
        return min(1.0, max(0.0, float((self.cells * other.cells).sum()) / max(length, 1e-6)))  # rounding may pass 1

    def difference(self, other: "_Thumbnail") -> float:
        """Mean absolute difference in grey levels, brightness apart."""
        return float(np.abs(self.cells * self.contrast - other.cells * other.contrast).mean())


@dataclass
class CutDetector:
    """Finds hard scene cuts from the images alone, one frame after the other.

    At a cut the content is new (it is nowhere near in the frame before), more of it than in the two frames before; the
    colours are others; and the image is not the same one in another light. The score is the square root of the three
    multiplied: fast motion keeps its colours and does not rise for long, a flash or a fade keeps the image.

    On the videos measured the threshold separates all cuts from all other frames (docs/LOG.md). An image that moves by
    an eighth of its width within one frame from rest, or a flash that burns out most of it, may count as a cut: that
    costs one key frame.

    Attributes:
        threshold: Score above which a frame begins another scene.
    """

    threshold: float = 0.08
    _last: _Thumbnail | None = field(default=None, init=False, repr=False)
    _recent: tuple[float, float] = field(default=(0.0, 0.0), init=False, repr=False)

    def is_cut(self, rgb: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Whether this frame begins another scene than the frame before; never at the first frame."""
        small, last = _Thumbnail.of(rgb), self._last
        self._last = small
        if last is None:
            return False
        new = (small.not_in(last) + last.not_in(small)) / 2
        rise = max(0.0, new - max(self._recent))
        score = math.sqrt(rise * small.recoloured(last) * (1 - small.correlation(last)))
        cut = score > self.threshold and small.difference(last) > _LEAST_DIFFERENCE
        # A cut says nothing about how much this scene moves.
        self._recent = (0.0, 0.0) if cut else (self._recent[1], new)
        return cut


@runtime_checkable
class Cuts(Protocol):
    """Tells, frame by frame and in order, where a video cuts to another scene."""

    def is_cut(self, rgb: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Whether this frame begins another scene than the frame before; never at the first frame."""
        ...


DIRECTIONS = ("both", "forward")


def check_direction(direction: str) -> None:
    """Refuse a direction that there is not.

    Raises:
        ValueError: It is so.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")


@dataclass(frozen=True)
class WindowFrame:
    """A frame after the last key frame, as a schedule sees it.

    Attributes:
        index: Position in the source.
        pts: Presentation time in seconds, exact.
        new_scene: Whether nothing can be propagated to it from the frame before: a cut, or another size.
        confidence: Mean confidence, 0 to 1, of what was propagated to it. ``None`` where nothing was yet: for the last
            frame of a window, with both directions, and where key frames are listed before any network runs (chunks of
            a long video); and where the session was not asked for confidence.
    """

    index: int
    pts: Fraction
    new_scene: bool
    confidence: float | None = None


@runtime_checkable
class Schedule(Protocol):
    """Decides which frames are key frames. The first frame of a video always is one."""

    def decide(self, window: Sequence[WindowFrame]) -> int | None:
        """Return the position in the window of the next key frame, or ``None`` as long as that is open.

        Args:
            window: All frames since the last key frame, at least one. Called again after each frame; with direction
                ``forward`` the frames but the last are answered already, so only the last can be chosen.
        """
        ...


@dataclass(frozen=True)
class FixedInterval:
    """A key frame every ``interval`` frames, and where another scene begins.

    Attributes:
        interval: A key frame follows the last one after this many frames; 1 makes every frame a key frame.
    """

    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 frame, got {self.interval}")

    def decide(self, window: Sequence[WindowFrame]) -> int | None:
        """Return the last frame if it is due; see ``Schedule``."""
        return len(window) - 1 if window[-1].new_scene or len(window) >= self.interval else None


SCHEDULES: dict[str, Callable[[int], Schedule]] = {"interval": FixedInterval}
"""What makes a schedule of one video from the interval, by its name."""


@dataclass(frozen=True)
class ListedKeyFrames:
    """Key frames that are known beforehand.

    Attributes:
        indices: Their positions in the source.
    """

    indices: Container[int]

    def decide(self, window: Sequence[WindowFrame]) -> int | None:
        """Return the last frame if it is listed; see ``Schedule``."""
        return len(window) - 1 if window[-1].new_scene or window[-1].index in self.indices else None


@dataclass
class KeyFrameFinder:
    """Runs a schedule over the frames of a video of one size, without any network.

    Attributes:
        schedule: Decides which frames are key frames.
        cuts: Tells the frames that begin another scene.
        keys: Positions in the source of the key frames that are decided on.
    """

    schedule: Schedule
    cuts: Cuts | None = None
    keys: "array[int]" = field(default_factory=lambda: array("q"))
    _window: list[WindowFrame] = field(default_factory=list, init=False, repr=False)

    def add(self, frame: Frame) -> bool:
        """Take the next frame; return whether it begins another scene."""
        cut = self.cuts is not None and self.cuts.is_cut(frame.rgb)
        if not self.keys:
            self.keys.append(frame.index)
            return False
        self._window.append(WindowFrame(frame.index, frame.pts, cut))
        while self._window and (position := self.schedule.decide(self._window)) is not None:
            self.keys.append(self._window[position].index)
            del self._window[: position + 1]
        return cut


@dataclass
class ListedCuts:
    """Cuts from an earlier reading of the video; one entry for each frame that will come."""

    cuts: Sequence[bool]
    _next: int = field(default=0, init=False, repr=False)

    def is_cut(self, rgb: UInt8[np.ndarray, "H W 3"]) -> bool:  # noqa: ARG002
        """Whether this frame begins another scene; see ``Cuts``."""
        row, self._next = self._next, self._next + 1
        return bool(self.cuts[row])
