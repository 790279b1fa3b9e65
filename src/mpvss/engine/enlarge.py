"""The class that wins at each pixel of a frame that is larger than its class scores.

The plain definition: each class's scores are interpolated bilinearly at every pixel of the frame, and the largest wins,
the first of equal ones. Most of that work changes nothing. Between four neighbouring scores that share their winner,
no other class is larger at any of them, and one that comes before it is smaller at all of them. All classes are
averaged with the same weights, none of which is negative, so the winner stays. Only the cells between scores
with different winners are interpolated, and only the classes whose largest score there reaches the smallest of each
other one.

Scores quantised to 8 bits are interpolated in whole numbers, with weights of 11 bits: exactly, where ``cv2.resize``
rounds each class to 8 bits once more and makes ties of its own.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8, UInt16

Planes = UInt8[np.ndarray, "P h w"] | Float32[np.ndarray, "P h w"]
Winner = UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]

# What the weights of whole numbers sum up to: with 8 bits of score and 11 of weight along either side it takes 30 bits.
_ONE = 2048
# Cells that are interpolated at a time, so that what is in between stays in the cache.
_AT_ONCE = 1 << 14


def enlarged_winner(planes: Planes, size: tuple[int, int], winner: Winner | None = None) -> Winner:
    """Return which plane is the largest at each pixel of an image, after bilinear interpolation.

    Args:
        planes: At least one and at most 65536 planes of finite scores, or of scores quantised to 8 bits, on a grid that
            covers the image.
        size: Height and width of the image in pixels; that of the grid, or any other.
        winner: Which plane is the largest at each score, where that is known; then only the scores around its changes
            are looked at.

    Returns:
        Numbers of planes (H, W), the smallest of equal ones; uint16 only above 256 planes. Whole numbers are compared
        exactly; floats are rounded on the way, so classes that are closer than that may come in either order.
    """
    if planes.shape[1:] == size:
        return plane_winner(planes) if winner is None else winner
    bottom, right = (int(side == 1) for side in planes.shape[1:])
    if bottom or right:  # a cell has four corners
        planes = np.pad(planes, ((0, 0), (0, bottom), (0, right)), mode="edge")
        winner = None if winner is None else np.pad(winner, ((0, bottom), (0, right)), mode="edge")
    winner = plane_winner(planes) if winner is None else winner
    rows, columns = (_Axis(n, pixels, planes.dtype) for n, pixels in zip(planes.shape[1:], size, strict=True))
    image: Winner = np.take(winner, columns.cell, axis=1)[rows.cell]  # any corner does where all four are equal
    left, right_hand = winner[:, :-1], winner[:, 1:]
    mixed = (left[:-1] != right_hand[:-1]) | (left[1:] != right_hand[1:]) | (left[:-1] != left[1:])
    y, x = np.divmod(np.flatnonzero(mixed), mixed.shape[1])
    for first in range(0, len(y), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        _interpolate(planes, (y[some], x[some]), (rows, columns), image)
    return image


class _Axis:
    """The pixels along one side of an image, between the scores along it.

    Attributes:
        cell: Of each pixel, the score before it, 0 to n - 2.
        weight: Of each pixel, the weight of the score after it.
        whole: The sum of the weights of both.
        first: Of each cell, its first pixel.
        count: Of each cell, how many pixels lie in it.
    """

    def __init__(self, scores: int, pixels: int, dtype: Any) -> None:
        position = np.clip((np.arange(pixels) + 0.5) * (scores / pixels) - 0.5, 0, scores - 1)
        self.cell = np.minimum(position.astype(np.intp), scores - 2)
        share = position - self.cell
        self.whole = _ONE if dtype == np.uint8 else 1
        self.weight = np.rint(share * _ONE).astype(np.int32) if dtype == np.uint8 else share.astype(np.float32)
        self.count = np.bincount(self.cell, minlength=scores - 1)
        self.first = np.cumsum(self.count) - self.count

    def pixel(
        self, cells: Int[np.ndarray, " n"], number: int
    ) -> tuple[Bool[np.ndarray, " n"], Int[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
        """Return whether each cell has a pixel of this number, which of the image it is, and its weight."""
        inside = self.count[cells] > number
        position = np.where(inside, self.first[cells] + number, 0)
        return inside, position, self.weight[position]

    def between(self, one: Any, other: Any, weight: Any) -> Any:
        """Return the sum of the scores before and after pixels by their weights."""
        return one * (self.whole - weight) + other * weight


def plane_winner(planes: Planes) -> Winner:
    """Return which plane is the largest at each score, the first of equal ones."""
    best = planes[0].copy()
    winner = np.zeros(best.shape, np.uint8 if len(planes) <= 256 else np.uint16)
    for number, plane in enumerate(planes[1:], 1):
        np.copyto(winner, winner.dtype.type(number), where=np.asarray(cv2.compare(plane, best, cv2.CMP_GT)).view(bool))
        cv2.max(best, plane, dst=best)
    return winner


def _interpolate(
    planes: Planes,
    cells: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
    axes: tuple[_Axis, _Axis],
    image: Winner,
) -> None:
    """Set the pixels of the image that lie in some cells, given by the row and the column of their first corner."""
    (y, x), (rows, columns), width = cells, axes, planes.shape[2]
    steps = np.array([[0], [1], [width], [width + 1]])
    corners = np.take(planes.reshape(len(planes), -1), y * width + x + steps, axis=1)
    order, candidates = _candidates(corners)
    y, x = y[order], x[order]
    # All cells with a first candidate, with a second one, and so on: every list is a beginning of the one before.
    number = np.int32 if planes.dtype == np.uint8 else np.float32
    values = [corners[plane, :, order[: len(plane)]].T.astype(number) for plane in candidates]
    for right in range(int(columns.count[x].max())):
        in_columns, column, weight = columns.pixel(x, right)
        sides = [columns.between(four[::2], four[1::2], weight[: four.shape[1]]) for four in values]
        for down in range(int(rows.count[y].max())):
            inside, row, weight = rows.pixel(y, down)
            inside &= in_columns
            scores = [rows.between(two[0], two[1], weight[: two.shape[1]]) for two in sides]
            image[row[inside], column[inside]] = _largest(scores, candidates)[inside]


def _candidates(corners: Shaped[np.ndarray, "P 4 n"]) -> tuple[Int[np.ndarray, " n"], list[Winner]]:
    """Return an order of cells, those with most candidates first, and their first candidates, their second ones, ...

    Each list is as long as there are cells with so many. A cell's candidates are in the order of their numbers.
    """
    possible = (corners.max(1) >= corners.min(1).max(0)).T
    counts = possible.sum(1)
    order = np.argsort(-counts, kind="stable")
    counts = counts[order]
    planes = np.flatnonzero(possible[order]) % possible.shape[1]
    planes = planes.astype(np.uint8 if possible.shape[1] <= 256 else np.uint16)
    begins = np.cumsum(counts) - counts
    return order, [planes[begins[counts > level] + level] for level in range(int(counts[0]))]


def _largest(scores: Sequence[Shaped[np.ndarray, "..."]], candidates: Sequence[Winner]) -> Winner:
    """Return which candidate of each cell is the largest, the first of equal ones."""
    best, winner = scores[0], candidates[0].copy()
    for score, plane in zip(scores[1:], candidates[1:], strict=True):
        some = slice(len(plane))
        np.copyto(winner[some], plane, where=score > best[some])
        np.maximum(best[some], score, out=best[some])
    return winner
