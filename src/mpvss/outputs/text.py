"""Text on images: one line in a font that has its letters, smaller or cut where it is too wide."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import ImageDraw, ImageFont

from mpvss.labels import Colour

Image = UInt8[np.ndarray, "_ _ 3"]

BAR: Colour = (24, 26, 30)
_BACKING = 0.72
_FONT_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("msyh.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
)


def text_size(height: int) -> int:
    """Height of letters in pixels that reads well on an image of this height."""
    return min(max(round(height / 30), 11), 40)


def missing_letters(names: Sequence[str]) -> str:
    """The letters that no font of this system has, of those that are looked for."""
    letters = sorted({letter for name in names for letter in name if not letter.isspace()})
    return "".join(letter for letter in letters if not any(_has(font, letter) for font in _fonts(16)))


@lru_cache(maxsize=64)
def _fonts(size: int) -> list[Any]:
    """Pillow's own font, and those of the system that have more letters."""
    fonts: list[Any] = [ImageFont.load_default(size)]
    for name in _FONT_FILES:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    return fonts


def _has(font: Any, letter: str) -> bool:
    """Whether a font draws a letter as itself and not as the box for letters that it lacks."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


@lru_cache(maxsize=512)
def coverage(text: str, size: int) -> UInt8[np.ndarray, "h w"]:
    """The text as coverage, 0 to 255; the height does not depend on the letters."""
    fonts = _fonts(size)
    font = max(fonts, key=lambda each: sum(_has(each, letter) for letter in text))
    width = max(1, round(font.getlength(text)))
    canvas = PIL.Image.new("L", (width, round(size * 1.3)), 0)
    ImageDraw.Draw(canvas).text((0, size), text, fill=255, font=font, anchor="ls")
    return np.asarray(canvas)


def fitting(text: str, size: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """The text at the size or, where it is too wide, as much smaller as it needs, and cut in the end."""
    while (mask := coverage(text, size)).shape[1] > width and size > 8:
        size -= 1
    return mask[:, : max(1, width)]


def put(image: Image, mask: UInt8[np.ndarray, "h w"], top: int, left: int, colour: Colour) -> None:
    """Blend a colour into the image by coverage; what lies outside is cut."""
    region = image[max(0, top) : max(0, top + mask.shape[0]), max(0, left) : max(0, left + mask.shape[1])]
    if region.size == 0:
        return
    cover = mask[max(0, -top) :, max(0, -left) :][: region.shape[0], : region.shape[1], None].astype(np.float32) / 255
    region[:] = (region * (1 - cover) + np.array(colour, dtype=np.float32) * cover + 0.5).astype(np.uint8)


def darken(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """A copy of the image with a dark box."""
    image = image.copy()
    region = image[max(0, top) : max(0, top + height), left : left + width]
    region[:] = (region * (1 - _BACKING) + np.array(BAR) * _BACKING).astype(np.uint8)
    return image
