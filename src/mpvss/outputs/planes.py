"""Images as H.264 holds them: luma at full size, chroma at half of it, BT.709 in limited range; and classes over them.

An overlay that is drawn here needs no conversion of an image in full colour but the one of the frame, and half as many
numbers are blended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from mpvss.labels import LabelMap, ignore_id
from mpvss.outputs.text import Image

# RGB 0..255 to Y 16..235, U and V 16..240: ITU-R BT.709.
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722


def _matrix() -> Float32[np.ndarray, "3 4"]:
    luma = np.array([_RED, _GREEN, _BLUE])
    blue, red = (np.array([0, 0, 1]) - luma) / (2 - 2 * _BLUE), (np.array([1, 0, 0]) - luma) / (2 - 2 * _RED)
    rows = np.stack([luma * 219, blue * 224, red * 224]) / 255
    return np.column_stack([rows, [16, 128, 128]]).astype(np.float32)


_TO_YUV = _matrix()


@dataclass(frozen=True, eq=False)
class Planes:
    """An image as luma and chroma, 4:2:0. Chroma of an odd size covers one row or column more.

    Attributes:
        y: Luma.
        u: Blue chroma.
        v: Red chroma.
    """

    y: UInt8[np.ndarray, "H W"]
    u: UInt8[np.ndarray, "h w"]
    v: UInt8[np.ndarray, "h w"]

    def copy(self) -> "Planes":
        """Return an image of its own."""
        return Planes(self.y.copy(), self.u.copy(), self.v.copy())

    def paste(self, part: "Planes", top: int, left: int) -> None:
        """Replace a region by an image, at an even row and column."""
        for whole, region, row, column in (
            (self.y, part.y, top, left),
            (self.u, part.u, top // 2, left // 2),
            (self.v, part.v, top // 2, left // 2),
        ):
            whole[row : row + region.shape[0], column : column + region.shape[1]] = region


def to_planes(rgb: Image) -> Planes:
    """Convert an RGB image; chroma is the mean of two by two pixels."""
    yuv = cv2.transform(rgb, _TO_YUV)
    half = _halved(yuv)
    return Planes(cv2.extractChannel(yuv, 0), cv2.extractChannel(half, 1), cv2.extractChannel(half, 2))


class Painter:
    """Tints images with the colours of their classes, as ``draw.overlay`` does, in place."""

    def __init__(self, palette: UInt8[np.ndarray, "K 3"], alpha: float, classes: Sequence[int] | None) -> None:
        """Prepare.

        Args:
            palette: Colours in id order, RGB.
            alpha: Strength of the tint, 0 to 1.
            classes: Ids to draw; ``None`` for all.
        """
        self._alpha = alpha
        self._drawn = drawn(len(palette), classes)
        colours = cv2.transform(palette[None], _TO_YUV)[0]
        self._colours = np.zeros((3, len(self._drawn)), np.uint8)
        self._colours[:, : len(palette)] = colours.T

    def paint(self, planes: Planes, labels: LabelMap) -> None:
        """Tint an image, with the outlines of classes in full colour.

        Args:
            planes: The image.
            labels: Class ids of the image's size; pixels with the ignore id stay as they are.
        """
        tint, border = look_up(self._colours[0], labels), edges(labels)
        if self._all_drawn(labels):
            cv2.addWeighted(planes.y, 1 - self._alpha, tint, self._alpha, 0, dst=planes.y)
            over = _halved(border) * np.float32((1 - self._alpha) / 255) + np.float32(self._alpha)
        else:
            mask = look_up(self._drawn, labels)
            cv2.bitwise_and(border, mask, dst=border)
            cv2.copyTo(cv2.addWeighted(planes.y, 1 - self._alpha, tint, self._alpha, 0), mask, planes.y)
            weights = self._alpha / 255, (1 - self._alpha) / 255
            over = cv2.addWeighted(_halved(mask), weights[0], _halved(border), weights[1], 0, dtype=cv2.CV_32F)
        cv2.copyTo(tint, border, planes.y)
        # Opacity of the colours at each pixel of chroma: the strength of the tint, and at borders all of it.
        through = 1 - over
        for plane, colours in ((planes.u, self._colours[1]), (planes.v, self._colours[2])):
            plane[:] = cv2.blendLinear(plane, _halved(look_up(colours, labels)), through, over)

    def _all_drawn(self, labels: LabelMap) -> bool:
        """Whether every pixel has a class that is drawn, as the first ids all are where no classes are chosen."""
        return bool(self._drawn[: int(labels.max()) + 1].all())


def _halved(plane: Shaped[np.ndarray, "H W *C"]) -> Shaped[np.ndarray, "h w *C"]:
    """The mean of each two by two pixels; the last row and column of an odd size count twice."""
    height, width = plane.shape[:2]
    if height % 2 or width % 2:
        plane = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = (-(-width // 2), -(-height // 2))
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA))


def drawn(count: int, classes: Sequence[int] | None) -> UInt8[np.ndarray, " N"]:
    """Return for each id of so many classes, and for the ignore id, 255 if it is drawn, and 0 if not."""
    table = np.zeros(ignore_id(count) + 1, dtype=np.uint8)
    table[: count if classes is None else 0] = 255
    table[list(classes or ())] = 255
    return table


def look_up(table: UInt8[np.ndarray, " N"], labels: LabelMap) -> UInt8[np.ndarray, "H W"]:
    """``table[labels]``; for bytes in a fraction of numpy's time."""
    return np.asarray(cv2.LUT(labels, table) if labels.dtype == np.uint8 else table[labels])


def edges(labels: LabelMap) -> UInt8[np.ndarray, "H W"]:
    """255 on both sides of every border between classes; wider on large images."""
    reach = 3 if labels.shape[0] < 900 else 5
    kernel = np.ones((reach, reach), dtype=np.uint8)
    return np.asarray(cv2.compare(cv2.dilate(labels, kernel), cv2.erode(labels, kernel), cv2.CMP_NE))


class Patch:
    """What was drawn over a part of an image, to be drawn over others of its size."""

    def __init__(self, on_black: Image, on_white: Image) -> None:
        """Find out what was drawn, and how much of an image shows through.

        Args:
            on_black: A black image on which it was drawn.
            on_white: A white one.
        """
        black, white = to_planes(on_black), to_planes(on_white)
        rows, columns = (((black.y != 16) | (white.y != 235)).any(axis) for axis in (1, 0))
        self._region = _even(rows), _even(columns)
        through = (white.y.astype(np.float32) - black.y) / 219
        size = (black.u.shape[1] * 2, black.u.shape[0] * 2)
        even = cv2.copyMakeBorder(
            through, 0, size[1] - len(through), 0, size[0] - through.shape[1], cv2.BORDER_REPLICATE
        )
        half = cv2.resize(even, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
        # Of each plane: how much shows through, and what is added. Black and white have the same chroma.
        self._layers = [
            (share[region], (drawn_[region] - level * share[region]))
            for share, drawn_, level, region in (
                (through, black.y, 16, self._region),
                (half, black.u, 128, self._quarter),
                (half, black.v, 128, self._quarter),
            )
        ]

    @property
    def _quarter(self) -> tuple[slice, slice]:
        rows, columns = (slice(side.start // 2, side.stop // 2) for side in self._region)
        return rows, columns

    def draw(self, planes: Planes) -> None:
        """Draw it over another image, in place."""
        for plane, region, (share, added) in zip(
            (planes.y, planes.u, planes.v), (self._region, self._quarter, self._quarter), self._layers, strict=True
        ):
            plane[region] = plane[region] * share + added + 0.5


def _even(changed: Bool[np.ndarray, " n"]) -> slice:
    """From the first change to the last one, from an even number to an even one."""
    positions = np.flatnonzero(changed)
    return slice(int(positions[0]) // 2 * 2, int(positions[-1]) // 2 * 2 + 2) if len(positions) else slice(0, 0)
