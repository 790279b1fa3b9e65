"""Class scores of key frames, propagated to other frames by one flow for all of them.

Masks that share a flow need not be warped one by one and scored again: the key frame's class scores are made once, and
sampled where the flow points. They lie four classes to a pixel, which OpenCV samples in the time of one; and
quantised to 8 bits where only the largest is asked for, a quarter of the memory and somewhat quicker.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss.engine.decode import ClassScores
from mpvss.motion.arrays import resize_flow, sampling_maps

# Classes that peak below this in both key frames, and win nowhere, are not kept.
LEAST_PEAK = 0.05
_Weight = Float32[np.ndarray, "H W"]
_Block = Float32[np.ndarray, "H W 4"] | UInt8[np.ndarray, "H W 4"]


@dataclass(frozen=True, eq=False)
class Packed:
    """Class scores in the order in which they are sampled quickly.

    Attributes:
        ids: Classes, ascending.
        num_classes: Number of all classes.
        blocks: Four classes in each, the last one filled up with zeros; scores, or scores quantised to 8 bits.
    """

    ids: Int64[np.ndarray, " P"]
    num_classes: int
    blocks: tuple[_Block, ...]


def keep_classes(scores: ClassScores) -> ClassScores:
    """Keep the classes that win somewhere, or peak above a twentieth."""
    if len(scores.ids) == 1:
        return scores
    best = scores.planes.max(0)
    wins = ((scores.planes >= best) & (best > 0)).any((1, 2))
    kept = wins | (scores.planes.max((1, 2)) >= LEAST_PEAK)
    if kept.all() or not kept.any():
        return scores
    return replace(scores, ids=scores.ids[kept], planes=scores.planes[kept])


def pack(scores: ClassScores, ids: Int64[np.ndarray, " P"] | None = None, top: float | None = None) -> Packed:
    """Pack scores for warping.

    Args:
        scores: Of a key frame.
        ids: Classes to pack, ascending; those that the key frame lacks score zero. ``None`` for its own.
        top: Quantise to 8 bits, of which 255 stands for this score and any above.
    """
    planes = scores.planes
    if ids is not None and not np.array_equal(ids, scores.ids):
        planes = np.zeros((len(ids), *planes.shape[1:]), planes.dtype)
        planes[np.searchsorted(ids, scores.ids)] = scores.planes
    ids = scores.ids if ids is None else ids
    blocks = []
    for first in range(0, len(planes), 4):
        four = list(np.ascontiguousarray(planes[first : first + 4]))
        if top is not None:
            four = [cv2.convertScaleAbs(plane, alpha=255 / top) for plane in four]
        four += [np.zeros_like(four[0])] * (4 - len(four))
        blocks.append(cv2.merge(four))
    return Packed(ids, scores.num_classes, tuple(blocks))


def union_of_classes(one: ClassScores, other: ClassScores) -> Int64[np.ndarray, " P"]:
    """The classes of either, ascending."""
    return np.union1d(one.ids, other.ids)


def warp_packed(packed: Packed, flow: Float32[np.ndarray, "2 h w"]) -> Packed:
    """Return the scores where the flow, of any grid, points: ``warp`` of each class."""
    height, width = packed.blocks[0].shape[:2]
    x, y = sampling_maps(resize_flow(flow[None], (height, width))[0])
    sampled = (cv2.remap(block, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for block in packed.blocks)
    return replace(packed, blocks=tuple(sampled))


def blend(sides: tuple[Packed, Packed], weights: tuple[_Weight, _Weight]) -> Packed:
    """Return the weighted mean of the scores of two key frames with the same classes; only the weights' ratio counts.

    Where no side has any weight, scores are zero.
    """
    (one, other), (left, right) = sides, weights
    # OpenCV adds a little to the sum of the weights: beside a larger weight of one it is nothing.
    larger = np.maximum(np.maximum(left, right), np.finfo(np.float32).tiny)
    left, right = left / larger, right / larger
    blocks = [cv2.blendLinear(x, y, left, right) for x, y in zip(one.blocks, other.blocks, strict=True)]
    return replace(one, blocks=tuple(blocks))


def unpack(packed: Packed) -> ClassScores:
    """Return one plane a class again: scores, or scores quantised as they were packed."""
    planes = np.empty((len(packed.ids), *packed.blocks[0].shape[:2]), packed.blocks[0].dtype)
    for number, block in enumerate(packed.blocks):
        four = list(planes[4 * number : 4 * number + 4])
        cv2.mixChannels([block], four, [index for channel in range(len(four)) for index in (channel, channel)])
    return ClassScores(packed.ids, planes, packed.num_classes)
