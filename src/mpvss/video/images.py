"""Image files that others made: the one reader of the package and a bound on their size.

Every image becomes RGB of 8 bits a channel, upright:

- The orientation that a camera wrote (EXIF, TIFF) is applied.
- Transparency is composed over white.
- More than 8 bits a channel are scaled by full scale: 1 for floats below 16; otherwise the least of 8, 10, 12, 14, 16,
  24 and 32 bits that holds the largest value, or the bits that a TIFF of 9 to 15 bits declares. Images of one folder or
  clip share the full scale that 16 of them, evenly spread, need; what exceeds it is clipped, and said.
- Of a file that holds several images the first counts, unless the file itself is the source.
"""

import contextlib
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from mpvss._validate import max_pixels

log = logging.getLogger(__name__)

_Any = TypeVar("_Any")

RGB = UInt8[np.ndarray, "H W 3"]

BROKEN_IMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError),
    *(struct.error, zlib.error, MemoryError, RecursionError, Image.DecompressionBombError),
)
"""What Pillow raises on a file that is not the image its name promises: its own errors, and uncaught ones."""

SEVERAL = "hold several images, of which only the first is taken"
CLIPPED = "exceed the full scale of the images around them and are clipped"

_FULL_SCALES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32))
_LARGEST_UNIT = 16.0  # floats of 0..1 with highlights; of 0..255 they would be black
_SAMPLED = 16
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 0b101
_DEFAULT_DELAY = Fraction(1, 10)
_RATE = Fraction(25)


def open_image(path: Path) -> ImageFile:
    """Open an image file, not decoded yet, for a ``with`` block.

    Raises:
        ValueError: It has more pixels than ``max_pixels()``; otherwise one of ``BROKEN_IMAGE``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is ours
        image = Image.open(path)
    if image.format == "TIFF":
        image.filename = ""  # Pillow would map the file into memory, and mixes up rows and columns where it is turned
    if image.width * image.height > max_pixels():
        image.close()
        raise ValueError(
            f"{image.width}x{image.height} (width x height) are more than {max_pixels()} pixels; MPVSS_MAX_PIXELS in "
            "the environment raises the limit"
        )
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as ``read_rgb`` gives it; nothing is decoded but what only FFmpeg reads.

    Raises:
        ValueError: Or another of ``BROKEN_IMAGE``: it cannot be read.
    """
    try:
        image = open_image(path)
    except UnidentifiedImageError:
        height, width = _ffmpeg_samples(path, as_stored=False).shape[:2]
        return height, width
    with image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the orientation that a camera wrote into the file."""
    stored = getattr(image, "tag_v2", {})  # of a TIFF, of which newer Pillow turns the size on opening
    width, height = stored.get(256, image.width), stored.get(257, image.height)
    return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)


@lru_cache(maxsize=1000)
def _warn_once(what: str, path: Path) -> None:
    log.warning("%s: images of this kind %s", path, what)


def read_rgb(
    path: Path,
    full_scale: Callable[[], float] | None = None,
    note: Callable[[str, Path], None] = _warn_once,
) -> RGB:
    """Read the first image of a file as the head of this module says.

    Args:
        path: The file.
        full_scale: Gives the full scale of the images around it, asked for where there are more than 8 bits a channel;
            ``None`` for the image's own.
        note: Called with what was left out or changed (``SEVERAL``, ``CLIPPED``), and the path.

    Raises:
        ValueError: Or another of ``BROKEN_IMAGE``: it cannot be read.
    """
    try:
        image = open_image(path)
    except UnidentifiedImageError:
        samples = _ffmpeg_samples(path)
        return _to_8_bits(samples, _own_full_scale(samples), full_scale, path, note)
    with image:
        if len(pages(image)) > 1:
            note(SEVERAL, path)
        return _page_rgb(image, path, full_scale, note)


def _page_rgb(
    image: ImageFile, path: Path, full_scale: Callable[[], float] | None, note: Callable[[str, Path], None]
) -> RGB:
    """The page of an open file that was sought."""
    samples = _deep_samples(image, path)
    if samples is None:
        return _compose(ImageOps.exif_transpose(image))
    return _to_8_bits(samples, _declared_full_scale(image) or _own_full_scale(samples), full_scale, path, note)


def _compose(image: Image.Image) -> RGB:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return np.array(Image.alpha_composite(white, layer).convert("RGB"))


# More than 8 bits a channel


def _is_deep(image: Image.Image) -> bool:
    """Whether an open image has more than 8 bits a channel; colours of 16 bits Pillow would cut to 8."""
    if image.mode.startswith(("I", "F")):
        return True
    tiles: Any = getattr(image, "tile", ())
    return image.mode in ("RGB", "RGBA", "LA") and bool(tiles) and ";16" in str(tiles[0][3])


def _deep_samples(image: ImageFile, path: Path) -> np.ndarray | None:
    """Upright samples of an open image that has more than 8 bits a channel, ``None`` where it has not."""
    if not _is_deep(image):
        return None
    if image.mode.startswith(("I", "F")):
        return np.asarray(ImageOps.exif_transpose(image))
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.tell() == 0:
        return _turned(_ffmpeg_samples(path, as_stored=True), orientation)
    import cv2  # FFmpeg reads the first page only

    _, images = cv2.imreadmulti(str(path), image.tell(), 1, flags=cv2.IMREAD_UNCHANGED)
    if not images:
        raise ValueError(f"cannot decode page {image.tell()}")
    return np.asarray(images[0])[..., [2, 1, 0, 3][: images[0].shape[2]]]


def _ffmpeg_samples(path: Path, *, as_stored: bool = False) -> np.ndarray:
    """Samples of a PNG or TIFF of 16 bits or floats, which Pillow cuts to 8 bits or does not know.

    Raises:
        ValueError: It is none.
    """
    import av
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from mpvss.video.file import bound, open_file

    try:
        with open_file(path, formats="png_pipe,tiff_pipe") as container:
            stream = container.streams.video[0]
            bound(stream)
            frame = next(container.decode(stream))
            try:
                samples = frame.to_ndarray()
            except ValueError:  # grey with alpha
                samples = frame.reformat(format="rgba64le").to_ndarray()
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise ValueError(f"cannot identify the image: {getattr(error, 'strerror', None) or error}") from error
    if as_stored:
        return samples
    with path.open("rb") as file:  # a TIFF that Pillow does not know
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
    return _turned(samples, directory.get(_ORIENTATION, 1))


def _turned(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Samples turned and mirrored as an orientation of EXIF, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if rows else 1, :: -1 if columns else 1]


def _declared_full_scale(image: Image.Image) -> float | None:
    declared = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (0,))
    bits = declared[0] if isinstance(declared, tuple) else declared
    return 2.0**bits - 1 if 9 <= bits <= 15 else None


def _own_full_scale(samples: np.ndarray) -> float:
    colours = samples[..., : 3 if samples.ndim == 3 and samples.shape[2] == 4 else None]
    finite = colours[np.isfinite(colours)] if colours.dtype.kind == "f" else colours
    largest = float(finite.max(initial=0))
    if colours.dtype.kind == "f" and largest < _LARGEST_UNIT:
        return 1.0
    return float(next((full for full in _FULL_SCALES if largest <= full), largest))


def common_full_scale(paths: Sequence[Path]) -> float:
    """The full scale that images of one folder or clip share: the largest of up to 16 of them, evenly spread.

    Of a single file, the largest of up to 16 of its pages.
    """
    every_page = len(paths) == 1
    return max([1.0, *(scale for path in evenly(paths, _SAMPLED) for scale in _full_scales(path, every_page))])


def _full_scales(path: Path, every_page: bool) -> Iterator[float]:
    """The full scale of each deep page of a file, or of its first one; none where it cannot be read."""
    try:
        with open_image(path) as image:
            for page in evenly(pages(image), _SAMPLED) if every_page else (0,):
                image.seek(page)
                samples = _deep_samples(image, path)
                if samples is not None:
                    yield _declared_full_scale(image) or _own_full_scale(samples)
    except UnidentifiedImageError:
        with contextlib.suppress(*BROKEN_IMAGE):
            yield _own_full_scale(_ffmpeg_samples(path))
    except BROKEN_IMAGE:  # counted when its turn comes
        return


def evenly(items: Sequence[_Any], most: int) -> list[_Any]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _to_8_bits(
    samples: np.ndarray,
    own: float,
    full_scale: Callable[[], float] | None,
    path: Path,
    note: Callable[[str, Path], None],
) -> RGB:
    full = own if full_scale is None else full_scale()
    if own > full:
        note(CLIPPED, path)
    if samples.ndim == 2:
        samples = np.repeat(samples[:, :, None], 3, axis=2)
    values = np.nan_to_num(samples.astype(np.float32), nan=0.0)
    colours = np.clip(values[..., :3] / full, 0, 1)
    if values.shape[2] == 4:
        alpha = np.clip(values[..., 3:] / _own_full_scale(samples[..., 3]), 0, 1)
        colours = colours * alpha + (1 - alpha)
    rgb: np.ndarray = np.round(colours * 255).astype(np.uint8)
    return rgb


# Files that hold several images


def pages(image: ImageFile) -> Sequence[int]:
    """Positions of the images in an open file, in the order in which they are shown.

    Only animated WebP, APNG and GIF and multi-page TIFF count: the second image of a phone's JPEG is a depth map. Left
    out are the thumbnails and masks of a TIFF, and the image that an APNG shows where it cannot move.
    """
    if image.format not in ("WEBP", "PNG", "GIF", "TIFF"):
        return (0,)
    count = getattr(image, "n_frames", 1)
    if image.format == "PNG" and image.info.get("default_image") and count > 1:
        return range(1, count)
    if image.format != "TIFF" or count == 1:
        return range(count)
    shown = []
    for page in range(count):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK:  # type: ignore[attr-defined]
            shown.append(page)
    image.seek(0)
    return shown or (0,)


def read_page(
    image: ImageFile, page: int, path: Path, full_scale: Callable[[], float] | None, note: Callable[[str, Path], None]
) -> tuple[RGB, Fraction]:
    """One image of an open file, and how long it is shown, in seconds: 1/25 where there is no time, 1/10 where it is 0.

    Quick where pages are read in their order.

    Raises:
        ValueError: Or another of ``BROKEN_IMAGE``: it cannot be read.
    """
    image.seek(page)
    rgb = _page_rgb(image, path, full_scale, note)
    if image.format == "TIFF":
        return rgb, 1 / _RATE
    delay = Fraction(image.info.get("duration") or 0).limit_denominator(65535) / 1000
    return rgb, delay or _DEFAULT_DELAY
