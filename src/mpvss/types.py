"""What travels through the program: frames in, segmentations out, and the geometry between them.

Only numpy here, so that reading and writing video does not import a network library. The tensors that travel between
networks are in ``state.py``.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

IMAGE_RATE = Fraction(25)
"""Pictures without times of their own count as so many a second."""


def shown_size(size: tuple[int, ...]) -> str:
    """A (height, width) as people write it, width first, for messages."""
    return f"{size[1]}x{size[0]} (width x height)"


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: Position in the source, counted from 0 over all of its frames, whatever start and stride selected.
        pts: Presentation time in seconds, exact.
        rgb: Picture, RGB, uint8.
    """

    index: int
    pts: Fraction
    rgb: UInt8[np.ndarray, "H W 3"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


@dataclass(frozen=True)
class Geometry:
    """How a frame became a network's input, and so how its masks go back.

    The frame is resized from ``source`` to ``resized``, then padded with zeros at right and bottom to ``padded``. All
    sizes are (height, width) in pixels.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel of one frame.

    Attributes:
        index: Index of the frame in its source.
        pts: Presentation time in seconds, exact.
        labels: Class ids at the frame's size; uint16 only above 255 classes.
        is_key: Whether the segmentor ran on this frame.
        confidence: Share of the winning class in the sum of all class scores, 0 to 1, where it was asked for.
    """

    index: int
    pts: Fraction
    labels: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
    is_key: bool
    confidence: Float32[np.ndarray, "H W"] | None = None
