"""The floor of a whole run: decoding and encoding alone, by the decoder and the encoder that a run has.

Also how large an overlay is and how far it is from what was drawn, since a run that writes less is no faster.
"""

import math
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from mpvss.outputs import LabelReader, Mp4Writer, draw
from mpvss.types import IMAGE_RATE
from mpvss.video import read

Image8 = UInt8[np.ndarray, "H W *C"]


class _Copy(Mp4Writer):
    """The writer of overlays, given frames as they were decoded: no conversion to RGB and back."""

    def append_decoded(self, frame: av.VideoFrame, pts: Fraction) -> None:
        """Append a frame."""
        copied = frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p")
        copied.pts, copied.time_base = round(pts * self._ticks), Fraction(1, self._ticks)
        copied.pict_type = av.video.frame.PictureType.NONE  # the encoder chooses, not the source
        self._last = copied.pts
        self._mux(self._stream.encode(copied))


def run_floor(source: str, path: Path, frames: int) -> float:
    """Decode frames of a file and encode them as an overlay is; return the seconds, all together.

    Args:
        source: A file with a constant frame size.
        path: File to write.
        frames: How many, from the first.

    Raises:
        OutputError: The file cannot be written.
    """
    began = time.perf_counter()
    with av.open(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        with _Copy(path, (stream.height, stream.width), stream.time_base or 1 / IMAGE_RATE) as writer:
            for number, frame in enumerate(islice(container.decode(stream), frames)):
                writer.append_decoded(frame, number / IMAGE_RATE)
    return time.perf_counter() - began


def overlay_quality(
    source: str, overlay: Path, palette: UInt8[np.ndarray, "K 3"], alpha: float = 0.5
) -> dict[str, float]:
    """Compare the overlay of a whole run with what was drawn, which the label file beside it says.

    Args:
        source: What was segmented, from its first frame.
        overlay: ``NAME.overlay.mp4``.
        palette: Colours of the classes.
        alpha: Opacity of the classes.

    Returns:
        ``bytes`` of the file; ``psnr`` in decibels over all pixels and channels, of which halved chroma is most; and
        ``psnr_luma``.
    """
    labels = LabelReader(overlay.with_name(overlay.name.replace(".overlay.mp4", ".labels.mkv")))
    colour, luma = SquaredError(), SquaredError()
    with read(source) as reader, read(overlay) as written:
        for image, frame, each in zip(written, reader, labels, strict=False):
            drawn = draw.overlay(frame.rgb, each[2], palette, alpha)
            colour.add(image.rgb, drawn)
            luma.add(cv2.cvtColor(image.rgb, cv2.COLOR_RGB2GRAY), cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY))
    return {"bytes": float(overlay.stat().st_size), "psnr": colour.psnr, "psnr_luma": luma.psnr}


class SquaredError:
    """The squared error of images of 8 bits, over all of them together."""

    def __init__(self) -> None:
        self._error, self._count = 0.0, 0

    def add(self, image: Image8, expected: Image8) -> None:
        """Add an image."""
        difference = image.astype(np.int16) - expected
        self._error += float(np.square(difference, dtype=np.int32).sum())
        self._count += image.size

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio in decibels."""
        return math.inf if self._error == 0 else 10 * math.log10(255**2 * self._count / self._error)
