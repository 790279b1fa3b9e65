"""Images for people: masks over the frame, a class legend, two results side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mpvss.labels import Colour, LabelMap
from mpvss.outputs.planes import Painter, Patch, Planes, drawn, edges, look_up, to_planes
from mpvss.outputs.text import BAR, Image, coverage, darken, fitting, put, text_size

if TYPE_CHECKING:
    from mpvss.outputs.sink import RunInfo


_WHITE: Colour = (255, 255, 255)
_KEY: Colour = (255, 190, 40)
_WIDEST_PAIR = 1920
_GAP = 4
_LEAST_SHARE = 0.001
_LEGEND_FRAMES = 12


def overlay(
    rgb: Image,
    labels: LabelMap,
    palette: UInt8[np.ndarray, "K 3"],
    alpha: float = 0.5,
    classes: Sequence[int] | None = None,
    *,
    outlines: bool = True,
) -> Image:
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
        raise ValueError(f"expected labels of the frame's size {rgb.shape[:2]}, got {labels.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected an alpha of 0 to 1, got {alpha}")
    if classes is not None and any(not 0 <= id_ < len(palette) for id_ in classes):
        raise ValueError(f"expected class ids below {len(palette)}, got {list(classes)}")
    shown = drawn(len(palette), classes)
    colours = np.zeros((len(shown), 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    mask = look_up(shown, labels)
    tint = cv2.applyColorMap(labels, colours[:, None]) if labels.dtype == np.uint8 else colours[labels]
    blended = cv2.addWeighted(rgb, 1 - alpha, tint, alpha, 0)
    image = rgb.copy()
    cv2.copyTo(blended, mask, image)
    if outlines:
        cv2.copyTo(tint, cv2.bitwise_and(mask, edges(labels)), image)
    return image


def legend(image: Image, entries: Sequence[tuple[str, Colour]]) -> Image:
    """Draw class names beside their colours at the lower left, on a dark backing.

    Args:
        image: Image to draw on.
        entries: Names and colours, top to bottom; those that do not fit into the height are counted in a last line.
    """
    size = text_size(image.shape[0])
    line = round(size * 1.45)
    pad = size // 2
    room = max(1, (image.shape[0] - 4 * pad) // line)
    names = [name for name, _ in entries]
    if len(entries) > room:
        names = [*names[: room - 1], f"+ {len(entries) - room + 1} more"]
    if not names:
        return image.copy()
    masks = [fitting(name, size, image.shape[1] // 2) for name in names]
    height = len(names) * line + 2 * pad
    width = max(mask.shape[1] for mask in masks) + size + 3 * pad
    top = image.shape[0] - height - pad
    image = darken(image, top, pad, height, width)
    for row, mask in enumerate(masks):
        y = top + pad + row * line
        x = 2 * pad
        if row < len(entries) and names[row] == entries[row][0]:
            swatch = (x, y + (line - size) // 2, size, size)
            cv2.rectangle(image, swatch, entries[row][1], cv2.FILLED)
            cv2.rectangle(image, swatch, _WHITE, 1)
        put(image, mask, y + (line - mask.shape[0]) // 2, x + size + pad, _WHITE)
    return image


class LegendOrder:
    """Which classes a legend lists, largest first, without jumping from frame to frame.

    A class is listed once it covers a thousandth of a frame, until it has not for 12 frames. Two neighbours are
    exchanged when the lower one's share, averaged over about 12 frames, is a quarter larger.
    """

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}
        self._absent: dict[int, int] = {}
        self._order: list[int] = []

    def update(self, labels: LabelMap, classes: int) -> list[int]:
        """The ids to list for the next frame, of so many classes."""
        if labels.dtype == np.uint8:  # in a third of numpy's time
            counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[:classes]
        else:
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


class ResultDrawer:
    """Draws the results of one run, in order."""

    def __init__(self, info: "RunInfo") -> None:
        self._info = info
        self._order = LegendOrder()
        self._painter = Painter(info.palette, info.alpha, info.drawn)
        self._legend: tuple[Any, Patch] | None = None

    def draw(self, planes: Planes, labels: LabelMap) -> None:
        """Draw the classes of a frame over it, in place, and their names if the run has a legend.

        Args:
            planes: The frame, or a smaller one.
            labels: Class ids of that size.
        """
        self._painter.paint(planes, labels)
        info = self._info
        if not info.legend:
            return
        listed = self._order.update(labels, len(info.class_names))
        if self._legend is None or self._legend[0] != (labels.shape, listed):
            entries = [(info.class_names[id_], colour_of(info.palette, id_)) for id_ in listed]
            black, white = (np.full((*labels.shape, 3), level, np.uint8) for level in (0, 255))
            self._legend = (labels.shape, listed), Patch(legend(black, entries), legend(white, entries))
        self._legend[1].draw(planes)


def colour_of(palette: UInt8[np.ndarray, "K 3"], id_: int) -> Colour:
    """The colour of a class as plain numbers."""
    red, green, blue = palette[id_].tolist()
    return red, green, blue


def side_by_side(
    left: Planes,
    right: Planes,
    captions: tuple[str, str],
    keys: tuple[bool, bool] = (False, False),
) -> Planes:
    """Two images of one size next to each other, each under a bar with its caption and key-frame mark.

    Args:
        left: Left image, of ``half_size``.
        right: Right image, of that size.
        captions: One line for each; written smaller where it is too long.
        keys: Whether to show the key-frame mark, for each.

    Returns:
        Both images, at ``side_by_side_size``.

    Raises:
        ValueError: The sizes differ.
    """
    if left.y.shape != right.y.shape:
        raise ValueError(f"expected two images of one size, got {left.y.shape} and {right.y.shape}")
    height, width = left.y.shape
    size, bar, total = text_size(height), _bar(height), _pair(left.y.shape)
    top = np.full((bar, total[1], 3), BAR, dtype=np.uint8)
    for x, text, key in zip((0, _right(width)), captions, keys, strict=True):
        mark = _mark_width(size)
        mask = fitting(text, size, width - mark - 2 * size)
        put(top, mask, (bar - mask.shape[0]) // 2, x + size // 2, _WHITE)
        if key:
            _key_mark(top, bar // 2, x + width - mark, size)
    image = to_planes(np.full((*total, 3), BAR, dtype=np.uint8))
    for part, row, column in ((to_planes(top), 0, 0), (left, bar, 0), (right, bar, _right(width))):
        image.paste(part, row, column)
    return image


def side_by_side_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width, both even, of two images of this size side by side."""
    return _pair(half_size(size))


def half_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of either of two images of this size: smaller where both would be wider than 1920 pixels."""
    scale = min(1.0, (_WIDEST_PAIR - _GAP) / 2 / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _pair(half: tuple[int, ...]) -> tuple[int, int]:
    height, width = half
    total = _bar(height) + height
    return total + total % 2, _right(width) + width + width % 2


def _right(width: int) -> int:
    """The even column at which the right one of two images begins."""
    return width + width % 2 + _GAP


def _bar(height: int) -> int:
    return 2 * round(text_size(height) * 1.05)


def _mark_width(size: int) -> int:
    return int(coverage("KEY", size).shape[1]) + round(size * 1.9)


def _key_mark(image: Image, middle: int, left: int, size: int) -> None:
    """A filled dot and the word KEY."""
    radius = max(3, round(size * 0.38))
    cv2.circle(image, (left + radius, middle), radius, _KEY, cv2.FILLED, cv2.LINE_AA)
    mask = coverage("KEY", size)
    put(image, mask, middle - mask.shape[0] // 2, left + 2 * radius + size // 3, _KEY)
