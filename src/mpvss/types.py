"""The values passed through the program: frames in, segmentations out, and the geometry between them.

Only numpy here, so that reading and writing video does not import a network library. The tensors passed between
networks are in ``state.py``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

IMAGE_RATE = Fraction(25)
"""Images without times of their own count as so many a second."""


def shown_size(size: tuple[int, ...]) -> str:
    """A (height, width) as people write it, width first, for messages."""
    return f"{size[1]}x{size[0]} (width x height)"


BLOCK = 8
"""Pixels a side of the blocks that have motion vectors."""


@dataclass(frozen=True, eq=False)
class MotionVectors:
    """What a video stream says itself of a frame's motion: where blocks of 8x8 pixels were in the frame before.

    Attributes:
        blocks: Backward motion of each block in pixels of the image, order (x, y); NaN where the stream says nothing,
            as it does of what the frame before does not show. The last row and column may reach beyond the image.
        size: Height and width in pixels of the image.
    """

    blocks: Float32[np.ndarray, "2 h w"]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video.

    Attributes:
        index: Position in the source, counted from 0 over all of its frames, whatever start and stride selected.
        pts: Presentation time in seconds, exact.
        rgb: Image, RGB, uint8.
        vectors: The stream's motion vectors from this frame to the one with the index before; ``None`` where there are
            none, or where they were not asked for.
    """

    index: int
    pts: Fraction
    rgb: UInt8[np.ndarray, "H W 3"]
    vectors: MotionVectors | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


def check_image(rgb: object) -> None:
    """Refuse what is no RGB image.

    Raises:
        ValueError: It is not a uint8 array of shape (H, W, 3) with at least one pixel.
    """
    if isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size:
        return
    got = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
    raise ValueError(f"expected an RGB image as a uint8 array of shape (H, W, 3), got {got}")


@dataclass(frozen=True)
class Geometry:
    """How a frame became a network's input, and so how its masks go back.

    The frame is resized from ``source`` to ``resized``, then padded with zeros at right and bottom to ``padded``. All
    sizes are (height, width) in pixels.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The class of every pixel of one frame.

    Attributes:
        frame: The frame.
        labels: Class ids at the frame's size; uint16 only above 255 classes.
        is_key: Whether the segmentor ran on this frame.
        confidence: Share of the winning class in the sum of all class scores, 0 to 1, where it was asked for.
        class_names: What the ids mean; empty where nobody said.
    """

    frame: Frame
    labels: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
    is_key: bool
    confidence: Float32[np.ndarray, "H W"] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def index(self) -> int:
        """Index of the frame in its source."""
        return self.frame.index

    @property
    def pts(self) -> Fraction:
        """Presentation time in seconds, exact."""
        return self.frame.pts

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The colour of each class, RGB; of each id that is there where nobody said what the ids mean."""
        from mpvss.labels import palette_for

        if self.class_names:
            return palette_for(self.class_names)
        ids = self.labels[self.labels != np.iinfo(self.labels.dtype).max]
        return palette_for([str(number) for number in range(int(ids.max(initial=0)) + 1)])

    def plot(self, *, alpha: float = 0.5, legend: bool = False) -> UInt8[np.ndarray, "H W 3"]:
        """Draw the classes over the frame.

        Args:
            alpha: Opacity of the classes, 0 to 1.
            legend: Whether the names of the classes that are in the image are drawn as well.

        Returns:
            An RGB image of the frame's size.
        """
        from mpvss.outputs import draw

        palette, names = self.palette, self.class_names
        image = draw.overlay(self.frame.rgb, self.labels, palette, alpha)
        if not (legend and names):
            return image
        shown = draw.LegendOrder().update(self.labels, len(names))
        colours = [(int(red), int(green), int(blue)) for red, green, blue in palette]
        return draw.legend(image, [(names[number], colours[number]) for number in shown])

    def __repr__(self) -> str:
        height, width = self.frame.size
        key = ", key frame" if self.is_key else ""
        return f"Segmentation(frame {self.index} at {float(self.pts):g} s, {height}x{width}{key})"

    def _repr_png_(self) -> bytes:
        """Show the overlay in a notebook."""
        import cv2

        return bytes(cv2.imencode(".png", self.plot()[..., ::-1])[1])


@dataclass(frozen=True)
class Comparison:
    """Per frame beside propagated; both mappings have the keys ``per_frame`` and ``propagated``.

    Attributes:
        seconds_per_frame: Seconds of segmentation a frame.
        flicker: Share of pixels, 0 to 1, whose class changes without motion; ``None`` before the second frame.
    """

    seconds_per_frame: Mapping[str, float]
    flicker: Mapping[str, float | None]


@dataclass(frozen=True)
class RunSummary:
    """What became of one source.

    Attributes:
        source: Its address, without secrets.
        frames: Frames written.
        key_frames: How many of them are key frames.
        propagator: What the other frames were propagated by.
        damaged: Frames or packets lost.
        outputs: Paths of what was written, by kind.
        seconds: By stage. Reading, segmenting and writing overlap, so they add up to more than ``total``.
        compare: Per frame beside propagated, where that was asked for; nothing overlaps then.
        flows: Where a propagator falls back on another: how many flows each of them made.
        stopped: Whether the caller ended it before its end.
    """

    source: str
    frames: int
    key_frames: int
    propagator: str
    damaged: int
    outputs: Mapping[str, Path]
    seconds: Mapping[str, float]
    compare: Comparison | None = None
    stopped: bool = False
    flows: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``compare``, ``flows`` and ``stopped`` only where there is something to say."""
        values: dict[str, Any] = {
            "source": self.source,
            "frames": self.frames,
            "key_frames": self.key_frames,
            "propagator": self.propagator,
            "damaged": self.damaged,
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
            "seconds": dict(self.seconds),
        }
        if self.compare is not None:
            values["compare"] = {
                "seconds_per_frame": dict(self.compare.seconds_per_frame), "flicker": dict(self.compare.flicker)
            }  # fmt: skip
        values |= {"flows": dict(self.flows)} if self.flows else {}
        return values | ({"stopped": True} if self.stopped else {})


@runtime_checkable
class Stop(Protocol):
    """What ends a run cleanly between two frames, such as a ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether the run should end."""
        ...


def until(frames: Iterable[Frame], stop: Stop | None) -> Iterator[Frame]:
    """Yield frames until ``stop`` is set."""
    for frame in frames:
        if stop is not None and stop.is_set():
            return
        yield frame
