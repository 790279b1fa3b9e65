"""The floor of a whole run: decoding and encoding alone, by the decoder and the encoder that a run has.

Also how large an overlay is and how far it is from what was drawn, since a run that writes less is no faster.
"""

import math
import time
from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from mpvss.outputs import LabelReader, Mp4Writer, draw
from mpvss.types import IMAGE_RATE
from mpvss.video import read

Images = Iterable[UInt8[np.ndarray, "H W 3"]]


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
        ``bytes`` of the file, and ``psnr`` in decibels over all pixels and channels.
    """
    labels = LabelReader(overlay.with_name(overlay.name.replace(".overlay.mp4", ".labels.mkv")))
    with read(source) as reader, read(overlay) as written:
        drawn = (draw.overlay(frame.rgb, each[2], palette, alpha) for frame, each in zip(reader, labels, strict=False))
        quality = psnr((frame.rgb for frame in written), drawn)
    return {"bytes": float(overlay.stat().st_size), "psnr": quality}


def psnr(images: Images, expected: Images) -> float:
    """Return the peak signal-to-noise ratio of images of 8 bits, in decibels, over all of them together."""
    error, count = 0.0, 0
    for image, true in zip(images, expected, strict=False):
        difference = image.astype(np.int16) - true
        error += float(np.square(difference, dtype=np.int32).sum())
        count += image.size
    return math.inf if error == 0 else 10 * math.log10(255**2 * count / error)
