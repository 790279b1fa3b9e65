"""Pictures for people: masks over the frame, a class legend, two results side by side. Pictures in, pictures out."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageDraw, ImageFont

from mpvss.labels import ignore_id

Picture = UInt8[np.ndarray, "_ _ 3"]
Labels = UInt8[np.ndarray, "_ _"] | UInt16[np.ndarray, "_ _"]
Colour = tuple[int, int, int]

_WHITE: Colour = (255, 255, 255)
_BAR: Colour = (24, 26, 30)
_KEY: Colour = (255, 190, 40)
_WIDEST_PAIR = 1920
_GAP = 4
_BACKING = 0.72
_LEAST_SHARE = 0.001
_LEGEND_FRAMES = 12
_FONT_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("msyh.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
)


def overlay(
    rgb: Picture,
    labels: Labels,
    palette: UInt8[np.ndarray, "K 3"],
    alpha: float = 0.5,
    classes: Sequence[int] | None = None,
    *,
    outlines: bool = True,
) -> Picture:
    """Tint every pixel with its class's colour, with the class's outline in full colour.

    Args:
        rgb: The frame.
        labels: Class ids; pixels with the ignore id stay as they are.
        palette: Colours in id order, RGB.
        alpha: Strength of the tint, 0 to 1.
        classes: Ids to draw; ``None`` for all.
        outlines: Whether to draw the outlines.

    Raises:
        ValueError: The sizes differ, alpha is out of range, or a class has no colour.
    """
    if rgb.shape[:2] != labels.shape:
        raise ValueError(f"expected labels of the frame's size {rgb.shape[:2]}, found {labels.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected an alpha of 0 to 1, found {alpha}")
    if classes is not None and any(not 0 <= id_ < len(palette) for id_ in classes):
        raise ValueError(f"expected class ids below {len(palette)}, found {list(classes)}")
    shown = np.zeros(ignore_id(len(palette)) + 1, dtype=np.uint8)
    shown[: len(palette) if classes is None else 0] = 255
    shown[list(classes or ())] = 255
    colours = np.zeros((len(shown), 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    if labels.dtype == np.uint8:
        mask = cv2.LUT(labels, shown)
        tint = cv2.LUT(cv2.merge((labels, labels, labels)), colours[None])
    else:
        mask = shown[labels]
        tint = colours[labels]
    mixed = cv2.addWeighted(rgb, 1 - alpha, tint, alpha, 0)
    picture = rgb.copy()
    cv2.copyTo(mixed, mask, picture)
    if outlines:
        cv2.copyTo(tint, cv2.bitwise_and(mask, _edges(labels)), picture)
    return picture


def legend(picture: Picture, entries: Sequence[tuple[str, Colour]]) -> Picture:
    """Draw class names beside their colours at the lower left, on a dark backing.

    Args:
        picture: Picture to draw on.
        entries: Names and colours, top to bottom; those that do not fit into the height are counted in a last line.
    """
    size = _text_size(picture.shape[0])
    line = round(size * 1.45)
    pad = size // 2
    room = max(1, (picture.shape[0] - 4 * pad) // line)
    names = [name for name, _ in entries]
    if len(entries) > room:
        names = [*names[: room - 1], f"+ {len(entries) - room + 1} more"]
    if not names:
        return picture.copy()
    masks = [_fitting(name, size, picture.shape[1] // 2) for name in names]
    height = len(names) * line + 2 * pad
    width = max(mask.shape[1] for mask in masks) + size + 3 * pad
    top = picture.shape[0] - height - pad
    picture = _darken(picture, top, pad, height, width)
    for row, mask in enumerate(masks):
        y = top + pad + row * line
        x = 2 * pad
        if row < len(entries) and names[row] == entries[row][0]:
            swatch = (x, y + (line - size) // 2, size, size)
            cv2.rectangle(picture, swatch, entries[row][1], cv2.FILLED)
            cv2.rectangle(picture, swatch, _WHITE, 1)
        _put(picture, mask, y + (line - mask.shape[0]) // 2, x + size + pad, _WHITE)
    return picture


class LegendOrder:
    """Which classes a legend lists, largest first, without jumping from frame to frame.

    A class is listed once it covers a thousandth of a frame, until it has not for 12 frames. Two neighbours change
    places when the lower one's share, averaged over about 12 frames, is a quarter larger.
    """

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}
        self._absent: dict[int, int] = {}
        self._order: list[int] = []

    def update(self, labels: Labels, classes: int) -> list[int]:
        """The ids to list for the next frame, of so many classes."""
        counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
        now = counts / labels.size
        for id_ in np.flatnonzero(now >= _LEAST_SHARE).tolist():
            self._absent[id_] = 0
            if id_ not in self._shares:
                self._shares[id_] = float(now[id_])
                larger = sum(self._shares[other] >= now[id_] for other in self._order)
                self._order.insert(larger, id_)
        for id_ in list(self._order):
            self._shares[id_] += (float(now[id_]) - self._shares[id_]) / _LEGEND_FRAMES
            self._absent[id_] += now[id_] < _LEAST_SHARE
            if self._absent[id_] >= _LEGEND_FRAMES:
                self._order.remove(id_)
                del self._shares[id_], self._absent[id_]
        for row in range(len(self._order) - 1):
            upper, lower = self._order[row : row + 2]
            if self._shares[lower] > 1.25 * self._shares[upper]:
                self._order[row : row + 2] = lower, upper
        return list(self._order)


def missing_letters(names: Sequence[str]) -> str:
    """The letters that no font of this system has, of those that are looked for."""
    letters = sorted({letter for name in names for letter in name if not letter.isspace()})
    return "".join(letter for letter in letters if not any(_has(font, letter) for font in _fonts(16)))


def caption(picture: Picture, text: str, key: bool = False) -> Picture:
    """Write a line at the upper left, on a dark backing, with a mark on key frames.

    Args:
        picture: Picture to draw on.
        text: One line.
        key: Whether to show the key-frame mark.
    """
    size = _text_size(picture.shape[0])
    pad = size // 2
    mark = _mark_width(size) if key else 0
    mask = _fitting(text, size, picture.shape[1] - 4 * pad - mark)
    picture = _darken(picture, pad, pad, round(size * 1.9), mask.shape[1] + 2 * pad + mark)
    middle = pad + round(size * 0.95)
    _put(picture, mask, middle - mask.shape[0] // 2, 2 * pad, _WHITE)
    if key:
        _key_mark(picture, middle, 3 * pad + mask.shape[1], size)
    return picture


def side_by_side(
    left: Picture,
    right: Picture,
    captions: tuple[str, str],
    keys: tuple[bool, bool] = (False, False),
) -> Picture:
    """Two pictures of one size next to each other, each under a bar with its caption and key-frame mark.

    Args:
        left: Left picture.
        right: Right picture.
        captions: One line for each; written smaller where it is too long.
        keys: Whether to show the key-frame mark, for each.

    Returns:
        Both pictures, scaled down where they would be wider than 1920 pixels together, at ``side_by_side_size``.

    Raises:
        ValueError: The sizes differ.
    """
    if left.shape != right.shape:
        raise ValueError(f"expected two pictures of one size, found {left.shape[:2]} and {right.shape[:2]}")
    height, width = _half(left.shape[:2])
    size = _text_size(height)
    bar = _bar(height)
    picture = np.full((*side_by_side_size(left.shape[:2]), 3), _BAR, dtype=np.uint8)
    for x, half, text, key in zip((0, width + _GAP), (left, right), captions, keys, strict=True):
        fitted = half if half.shape[1] == width else cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA)
        picture[bar : bar + height, x : x + width] = fitted
        mark = _mark_width(size)
        mask = _fitting(text, size, width - mark - 2 * size)
        _put(picture, mask, (bar - mask.shape[0]) // 2, x + size // 2, _WHITE)
        if key:
            _key_mark(picture, bar // 2, x + width - mark, size)
    return picture


def side_by_side_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width, both even, of what ``side_by_side`` makes of two pictures of this size."""
    height, width = _half(size)
    total = _bar(height) + height
    return total + total % 2, 2 * width + _GAP


def _half(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, (_WIDEST_PAIR - _GAP) / 2 / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _bar(height: int) -> int:
    return round(_text_size(height) * 2.1)


def _edges(labels: Labels) -> UInt8[np.ndarray, "H W"]:
    """255 on both sides of every border between classes; wider on large pictures."""
    reach = 3 if labels.shape[0] < 900 else 5
    kernel = np.ones((reach, reach), dtype=np.uint8)
    border = cv2.compare(cv2.dilate(labels, kernel), cv2.erode(labels, kernel), cv2.CMP_NE)
    return np.asarray(border, dtype=np.uint8)


def _text_size(height: int) -> int:
    """Height of letters in pixels that reads well on a picture of this height."""
    return min(max(round(height / 30), 11), 40)


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
def _text(text: str, size: int) -> UInt8[np.ndarray, "h w"]:
    """The text as coverage, 0 to 255; the height does not depend on the letters."""
    fonts = _fonts(size)
    font = max(fonts, key=lambda one: sum(_has(one, letter) for letter in text))
    width = max(1, round(font.getlength(text)))
    canvas = Image.new("L", (width, round(size * 1.3)), 0)
    ImageDraw.Draw(canvas).text((0, size), text, fill=255, font=font, anchor="ls")
    return np.asarray(canvas)


def _fitting(text: str, size: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """The text at the size or, where it is too wide, as much smaller as it needs, and cut in the end."""
    while (mask := _text(text, size)).shape[1] > width and size > 8:
        size -= 1
    return mask[:, : max(1, width)]


def _put(picture: Picture, mask: UInt8[np.ndarray, "h w"], top: int, left: int, colour: Colour) -> None:
    """Blend a colour into the picture by coverage; what lies outside is cut."""
    region = picture[max(0, top) : max(0, top + mask.shape[0]), max(0, left) : max(0, left + mask.shape[1])]
    if region.size == 0:
        return
    cover = mask[max(0, -top) :, max(0, -left) :][: region.shape[0], : region.shape[1], None].astype(np.float32) / 255
    region[:] = (region * (1 - cover) + np.array(colour, dtype=np.float32) * cover + 0.5).astype(np.uint8)


def _darken(picture: Picture, top: int, left: int, height: int, width: int) -> Picture:
    """A copy of the picture with a dark box."""
    picture = picture.copy()
    region = picture[max(0, top) : max(0, top + height), left : left + width]
    region[:] = (region * (1 - _BACKING) + np.array(_BAR) * _BACKING).astype(np.uint8)
    return picture


def _mark_width(size: int) -> int:
    return int(_text("KEY", size).shape[1]) + round(size * 1.9)


def _key_mark(picture: Picture, middle: int, left: int, size: int) -> None:
    """A filled dot and the word KEY."""
    radius = max(3, round(size * 0.38))
    cv2.circle(picture, (left + radius, middle), radius, _KEY, cv2.FILLED, cv2.LINE_AA)
    mask = _text("KEY", size)
    _put(picture, mask, middle - mask.shape[0] // 2, left + 2 * radius + size // 3, _KEY)
