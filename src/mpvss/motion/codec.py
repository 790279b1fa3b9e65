"""Flow from the motion vectors that a video stream carries itself, where they point to the frame before.

An encoder looks for the blocks of a frame in frames before it: that is motion on a grid of 8x8 pixels, for the price of
reading it. A stream does not say how many frames back a vector points, so vectors are checked against the images, and
blocks without a vector take the nearest one.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from mpvss.motion.arrays import Flow, resize, sampling_maps, spread
from mpvss.motion.dis import Dis
from mpvss.motion.propagator import FLOW_GRID
from mpvss.types import BLOCK, MotionVectors

# Least share of the blocks of an image that have a vector which the images agree with, and the most grey levels that
# such a block may differ by from what the vector points to, on average.
_LEAST_COVERED, _MOST_ERROR = 1 / 3, 16.0
# By what half a vector has to fit better than the whole, to be taken for one that goes two frames back: a factor and
# grey levels. Three frames back changed nothing (docs/LOG.md).
_PENALTY, _MARGIN = 1.25, 1.0
# Pixels a side per block of the images that vectors are checked on, at most. With fewer, blocks are judged with those
# around them.
_CELL = 4


@dataclass
class Codec:
    """One flow for all masks from the stream's own motion vectors; DIS where there are none, or too few that fit.

    Attributes:
        fallback: Estimates the other flows.
    """

    fallback: Dis = field(default_factory=Dis)
    name: str = field(default="codec", init=False)
    per_query: bool = field(default=False, init=False)
    thread_safe: ClassVar[bool] = True

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],
        queries: Float32[np.ndarray, "1 Q D"] | None,
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,
    ) -> Float32[np.ndarray, "B 1 2 h w"]:
        """Return the flow of the fallback, from images alone; see ``Propagator.estimate_flow``."""
        return self.fallback.estimate_flow(current, other, queries, padded, grid, active)

    def flow_along(
        self,
        vectors: MotionVectors,
        current: UInt8[np.ndarray, "H W 3"],
        other: UInt8[np.ndarray, "H W 3"],
        padded: tuple[int, int],
        grid: tuple[int, int],
    ) -> Flow | None:
        """Return the flow, or ``None`` where too few vectors fit the images; see ``FollowsVectors.flow_along``."""
        known = ~np.isnan(vectors.blocks[0])
        if known.mean() < _LEAST_COVERED:
            return None
        blocks, error = _checked(_filled(vectors.blocks, known), vectors.size, current, other)
        if (known & (error <= _MOST_ERROR)).mean() < _LEAST_COVERED:
            return None
        return _to_grid(blocks, vectors.size, current.shape[:2], padded, grid)


def _to_grid(
    blocks: Float32[np.ndarray, "2 rows columns"],
    size: tuple[int, int],
    shown: tuple[int, ...],
    padded: tuple[int, int],
    grid: tuple[int, int],
) -> Flow:
    """Resample the vectors of an image, which is ``shown`` at another size, to a grid that covers ``padded``."""
    counts = blocks.shape[1:]
    target = [side * own / other for side, own, other in zip(padded, size, shown, strict=True)]
    beyond = [max(0, math.ceil(side / BLOCK) - count) for side, count in zip(target, counts, strict=True)]
    if any(beyond):  # the padding: the last blocks repeat
        blocks = np.pad(blocks, ((0, 0), (0, beyond[0]), (0, beyond[1])), mode="edge")
    rows, columns = (
        round(cells * count * BLOCK / side, 6)
        for cells, count, side in zip(grid, blocks.shape[1:], target, strict=True)
    )
    scale = np.array([grid[1] / target[1], grid[0] / target[0]], np.float32)
    return (spread(blocks, (rows, columns), grid) * scale[:, None, None])[None]


def _filled(blocks: Float32[np.ndarray, "2 h w"], known: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "2 h w"]:
    """Give every block without a vector that of the nearest block with one."""
    if known.all():
        return blocks
    missing = np.where(known, 0, 1).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(missing, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    of_label = np.zeros((2, int(nearest.max()) + 1), np.float32)
    of_label[:, nearest[known]] = blocks[:, known]
    return of_label[:, nearest]


def _checked(
    blocks: Float32[np.ndarray, "2 h w"],
    size: tuple[int, int],
    current: UInt8[np.ndarray, "H W 3"],
    other: UInt8[np.ndarray, "H W 3"],
) -> tuple[Float32[np.ndarray, "2 h w"], Float32[np.ndarray, "h w"]]:
    """Halve each vector that seems to go two frames back.

    Returns:
        The motion since the frame before, and by how many grey levels a block differs from what its vector points to.
    """
    cell = min(_CELL, max(1, int(FLOW_GRID * current.shape[0]) // blocks.shape[1]))
    now, then = (_grey(image, size, blocks.shape[1:], cell) for image in (current, other))
    flow = resize(blocks, now.shape) * np.float32(cell / BLOCK)
    whole, half = (_difference(now, then, flow * np.float32(share), cell) for share in (1, 0.5))
    halved = half * _PENALTY + _MARGIN < whole
    return np.where(halved, blocks * np.float32(0.5), blocks), np.where(halved, half, whole)


def _difference(
    now: UInt8[np.ndarray, "H W"], then: UInt8[np.ndarray, "H W"], flow: Float32[np.ndarray, "2 H W"], cell: int
) -> Float32[np.ndarray, "h w"]:
    """Return the mean absolute difference of each block of an image from what a flow points to."""
    x, y = sampling_maps(flow)
    seen = cv2.remap(then, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = cv2.absdiff(now, seen).astype(np.float32)
    error = cv2.resize(pixels, (now.shape[1] // cell, now.shape[0] // cell), interpolation=cv2.INTER_AREA)
    return np.asarray(error if cell == _CELL else cv2.blur(error, (3, 3)))


def _grey(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], blocks: tuple[int, int], cell: int
) -> UInt8[np.ndarray, "h w"]:
    """Return the brightness of an image at so many pixels a side per block; beyond the image its border repeats."""
    height, width = (max(1, round(side * cell / BLOCK)) for side in size)
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (width, height), interpolation=cv2.INTER_AREA)
    bottom, right = blocks[0] * cell - height, blocks[1] * cell - width
    return np.asarray(cv2.copyMakeBorder(grey, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
