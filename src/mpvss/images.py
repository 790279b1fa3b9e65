"""Picture files that others made: opened within a bound on their size."""

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image
from PIL.ImageFile import ImageFile

from mpvss.untrusted import max_pixels

BROKEN_PICTURE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError),
    *(struct.error, zlib.error, MemoryError, RecursionError, Image.DecompressionBombError),
)
"""What Pillow raises on a file that is not the picture its name promises: its own errors, and its slips."""


def open_image(path: Path) -> ImageFile:
    """Open a picture file, not decoded yet, for a ``with`` block.

    Raises:
        ValueError: It has more pixels than ``max_pixels()``; otherwise one of ``BROKEN_PICTURE``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is ours
        image = Image.open(path)
    if image.width * image.height > max_pixels():
        image.close()
        raise ValueError(
            f"{image.height}x{image.width} are more than {max_pixels()} pixels; MPVSS_MAX_PIXELS in the environment "
            "raises the limit"
        )
    return image
