"""Image files in order, or one file of several images, as a source."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mpvss.errors import ConfigError, SourceError
from mpvss.types import IMAGE_RATE, shown_size
from mpvss.video.images import (
    BROKEN_IMAGE,
    common_full_scale,
    evenly,
    image_size,
    open_image,
    pages,
    read_page,
    read_rgb,
)
from mpvss.video.info import OWN_TIMES, Image, Trouble, VideoInfo, output_name

_SIZES_LOOKED_AT = 32


class ImageMedia:
    """Image files in order, as one source.

    Its size is the one that most images have, of up to 32 that are looked at; images of another size are scaled to it,
    and images that cannot be read are left out. Both are counted.

    Attributes:
        info: What it is.
        trouble: What went wrong so far.
        names: What the outputs of each image are called: its stem, or a longer name where two would be the same.
    """

    clock = None

    def __init__(self, files: list[Path], source: str, name: str, fps: Fraction | None = None) -> None:
        self.trouble = Trouble()
        self._rate = rate = fps or IMAGE_RATE
        self.names = unique_names(files)
        self._files = files
        self._begin = 0
        first, size = _most_common_size(files)
        codec, mode = _format(first)
        self._full_scale = lru_cache(1)(partial(common_full_scale, files))
        self.info = VideoInfo(
            source=source,
            name=name,
            kind="images",
            height=size[0],
            width=size[1],
            time_base=1 / rate,
            frame_rate=rate,
            frames=len(files),
            duration=len(files) / rate,
            codec=codec,
            pixel_format=mode,
            rotation=0,
            has_audio=False,
            live=False,
            assumed_rate=fps is None,
        )

    @property
    def end(self) -> Fraction | None:
        """When the last image ends, in seconds."""
        return self.info.duration

    def images(self) -> Iterator[tuple[Fraction, Callable[[], Image | None], None]]:
        """All images, once: time in seconds, a function that reads the image (``None`` if damaged), no vectors."""
        for index, file in enumerate(self._files[self._begin :], self._begin):
            yield index / self._rate, partial(self._image, file), None

    def seek(self, pts: Fraction) -> None:
        """Have ``images`` begin at this time, in seconds."""
        self._begin = int(pts * self._rate)

    def _image(self, file: Path) -> Image | None:
        try:
            return self._of_size(read_rgb(file, self._full_scale, self._note), file)
        except BROKEN_IMAGE as error:
            self.trouble.count("cannot be read and are left out", f"{file.name}: {error}", damaged=1)
            return None

    def _of_size(self, image: UInt8[np.ndarray, "_ _ 3"], file: Path) -> Image:
        size = (image.shape[0], image.shape[1])
        if size == self.info.size:
            return image
        import cv2

        self.trouble.count(
            f"are scaled to {shown_size(self.info.size)}, the size of the others", f"{file.name}: {shown_size(size)}"
        )
        return np.asarray(cv2.resize(image, self.info.size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _note(self, what: str, file: Path) -> None:
        self.trouble.count(what, file.name)

    def interrupt(self) -> None:
        """An image does not keep anybody waiting."""

    def close(self) -> None:
        """Nothing stays open between images."""


class AnimationMedia(ImageMedia):
    """One file of several images (animated WebP, APNG, multi-page TIFF) as a video with the file's own times.

    Times are exact to a millisecond in a WebP and to 1/90,000 s in an APNG; a TIFF has 25 pages a second.
    """

    def __init__(self, files: list[Path], source: str, name: str, fps: Fraction | None = None) -> None:
        super().__init__(files, source, name, fps)
        (file,) = files
        with open_image(file) as image:
            self._pages = pages(image)
            base = {"TIFF": 1 / self._rate, "WEBP": Fraction(1, 1000)}.get(image.format or "", Fraction(1, 90000))
            try:
                _, delay = read_page(image, self._pages[0], file, self._full_scale, self._note)
            except BROKEN_IMAGE as error:
                raise SourceError(f"expected an image in {file}, got data that is none ({error})") from error
            tiff = image.format == "TIFF"
        if fps is not None and not tiff:
            raise ConfigError(OWN_TIMES.format(source))
        self._tiff = tiff
        self._last_end: Fraction | None = None
        self.names = ()
        self.info = replace(
            self.info,
            time_base=base,
            frame_rate=self._rate if tiff else 1 / delay,
            frames=len(self._pages),
            duration=len(self._pages) / self._rate if tiff else None,
            assumed_rate=tiff and fps is None,
        )

    def images(self) -> Iterator[tuple[Fraction, Callable[[], Image | None], None]]:
        """All images, once, in order: time in seconds, a function that gives the image, no vectors."""
        (file,) = self._files
        time, base = Fraction(0), self.info.time_base
        with open_image(file) as image:
            for done, page in enumerate(self._pages):
                try:
                    rgb, delay = read_page(image, page, file, self._full_scale, self._note)
                except BROKEN_IMAGE as error:
                    lost = len(self._pages) - done
                    self.trouble.note(f"the last {lost} images of {file.name} cannot be read ({error})", damaged=lost)
                    return
                yield round(time / base) * base, partial(self._of_size, rgb, file), None
                time += base if self._tiff else delay
        self._last_end = round(time / base) * base

    @property
    def end(self) -> Fraction | None:
        """When the last image ends, in seconds."""
        return self._last_end

    def seek(self, pts: Fraction) -> None:
        """Begin at the first image, whatever the time: each is made from those before."""


def _most_common_size(files: Sequence[Path]) -> tuple[Path, tuple[int, int]]:
    """The size that most images of up to 32 have, the first of those as common, and the first file that has it."""
    sizes: dict[tuple[int, int], list[Path]] = {}
    reason: Exception | None = None
    looked_at = evenly(files, _SIZES_LOOKED_AT)
    for number, file in enumerate(chain(looked_at, files)):
        if sizes and number >= len(looked_at):  # more are tried only where none of these could be read
            break
        try:
            sizes.setdefault(image_size(file), []).append(file)
        except BROKEN_IMAGE as error:
            reason = reason or error
    if not sizes:
        raise SourceError(f"expected an image in {files[0]}, got data that is none ({reason})") from reason
    size, members = max(sizes.items(), key=lambda sized: len(sized[1]))
    return members[0], size


def _format(file: Path) -> tuple[str, str]:
    try:
        with open_image(file) as image:
            return (image.format or "image").lower(), image.mode
    except BROKEN_IMAGE:  # which FFmpeg knows
        return file.suffix[1:].lower(), "float"


def unique_names(files: Sequence[Path]) -> tuple[str, ...]:
    """A name for each file, other than all the others on every file system.

    Its stem; where two have the same, the name with its suffix (``a.jpg``, ``a.png``); where that is not enough, as
    with images of several folders, the position before the stem (``000012_a``).
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    stems = [output_name(file.stem) for file in files]
    count = Counter(map(key, stems))
    names = [stem if count[key(stem)] == 1 else output_name(file.name) for stem, file in zip(stems, files, strict=True)]
    if len(set(map(key, names))) < len(names):
        names = [f"{index:06d}_{stem}" for index, stem in enumerate(stems)]
    return tuple(names)
