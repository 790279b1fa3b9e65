"""Decoding and fusion on a device other than the CPU: what ``decode.py`` and ``fusion.py`` do, with tensors.

Nothing here brings a value to the host, but where it says so; batches of frames come first in every shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mpvss.engine.decode import FEW_CLASSES, TIE, kept_ids, score_size
from mpvss.engine.fusion import BLUR, DISTANCE_POWER, ERROR_SCALE
from mpvss.labels import ignore_id
from mpvss.motion.warp import sample, warp
from mpvss.types import Geometry


@dataclass(frozen=True, eq=False)
class TensorScores:
    """Scores of some classes at every pixel; see ``ClassScores``.

    Attributes:
        ids: Classes, ascending, on the host, where there is every operation that choosing takes.
        planes: Their scores, on the device.
    """

    ids: Int64[np.ndarray, " P"]
    planes: Float[Tensor, "P H W"]


def at(size: tuple[int, int], maps: Float[Tensor, "B C h w"], geometry: Geometry) -> Float[Tensor, "B C H W"]:
    """Interpolate maps that cover the padded image at the pixels of an image of this size without padding."""
    covered = [
        padded * side / resized for padded, side, resized in zip(geometry.padded, size, geometry.resized, strict=True)
    ]
    if all(side.is_integer() for side in covered):
        whole = F.interpolate(maps, size=[int(side) for side in covered], mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]
    ys, xs = (
        2 * (torch.arange(side, device=maps.device, dtype=torch.float32) + 0.5) / whole - 1
        for side, whole in zip(size, covered, strict=True)
    )
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).to(maps.dtype)
    return sample(maps, grid.expand(len(maps), -1, -1, -1), align_corners=False)


def query_scores(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "B Q h w"],
    geometry: Geometry,
    classes: Int64[np.ndarray, " P"] | None = None,
) -> Float[Tensor, "B P H W"]:
    """Return the class scores of queries at ``score_size``: ``sum over queries of p(class) sigmoid(mask)``."""
    probability = class_logits.softmax(1)[:, :-1]
    if classes is not None:
        probability = probability[:, index(classes, probability)]
    scores = [  # one image after the other: the masks of all queries at full size are large
        torch.einsum("qk,qhw->khw", probability, at(score_size(geometry), masks[None], geometry)[0].sigmoid())
        for masks in mask_logits
    ]
    return torch.stack(scores)


def index(ids: Int64[np.ndarray, " n"], beside: Tensor) -> Int64[Tensor, " n"]:
    """Bring numbers to where a tensor is."""
    return torch.from_numpy(ids).to(beside.device)


def chosen(which: Bool[Tensor, " n"]) -> Int64[np.ndarray, " m"]:
    """Return the positions of what is true, on the host. Waits for the device."""
    return np.flatnonzero(which.cpu().numpy())


def possible_classes(
    class_logits: Float[Tensor, "Q K1"], mask_logits: Float[Tensor, "Q h w"]
) -> Int64[np.ndarray, " P"]:
    """Return the classes that may win somewhere, ascending; see ``decode.possible_classes``. Waits for the device."""
    probability = class_logits.softmax(1)[:, :-1]
    if probability.shape[1] <= FEW_CLASSES:
        return np.arange(probability.shape[1])
    highest, lowest = _around(mask_logits)
    upper = probability.T @ highest.sigmoid().flatten(1)
    lower = probability.T @ lowest.sigmoid().flatten(1)
    return chosen((upper >= lower.amax(0) - TIE).any(1))


def possible_maps(maps: Float[Tensor, "P h w"]) -> Int64[np.ndarray, " K"]:
    """Return which maps may be the largest somewhere; see ``decode.possible_maps``. Waits for the device."""
    highest, lowest = _around(maps)
    return chosen((highest >= lowest.amax(0)).flatten(1).any(1))


def _around(maps: Float[Tensor, "C h w"]) -> tuple[Float[Tensor, "C h1 w1"], Float[Tensor, "C h1 w1"]]:
    kernel = (min(2, maps.shape[1]), min(2, maps.shape[2]))
    return F.max_pool2d(maps, kernel, 1), -F.max_pool2d(-maps, kernel, 1)


def union(one: TensorScores, other: TensorScores) -> tuple[TensorScores, TensorScores]:
    """Return the scores of both over the classes of either; those that a side lacks are zero."""
    ids = np.union1d(one.ids, other.ids)
    wide = []
    for side in (one, other):
        planes = side.planes.new_zeros(len(ids), *side.planes.shape[1:])
        planes[index(np.searchsorted(ids, side.ids), planes)] = side.planes
        wide.append(TensorScores(ids, planes))
    return wide[0], wide[1]


def winners(
    planes: Float[Tensor, "B P H W"],
    ids: Int64[np.ndarray, " P"],
    size: tuple[int, int],
    *,
    num_classes: int,
    classes: Sequence[int] | None = None,
    confidence: bool = False,
    min_score: float = 0.0,
) -> tuple[Int64[Tensor, "B H1 W1"] | UInt8[Tensor, "B H1 W1"], Float[Tensor, "B H1 W1"] | None]:
    """Return the label maps of frames of this size, still on the device; see ``decode.label_map``."""
    void = ignore_id(num_classes)
    numbers = kept_ids(ids, num_classes, classes)
    table = torch.from_numpy(numbers if void <= 255 else numbers.astype(np.int64)).to(planes.device)
    labels, shares = [], []
    for scores in planes:  # at the frame's size the scores of one are enough
        full = scores
        if tuple(scores.shape[1:]) != size:
            full = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        best, winner = full.max(0)
        label = table[winner]
        labels.append(torch.where(best < min_score, torch.full_like(label, void), label) if min_score > 0 else label)
        if confidence:
            shares.append(best / full.sum(0).clamp(min=1e-12))
    return torch.stack(labels), torch.stack(shares) if confidence else None


def blend_weights(
    current: Float[Tensor, "B 3 h w"],
    key: Float[Tensor, "1 3 h w"],
    flow: Float[Tensor, "B 2 h w"],
    near: Float[Tensor, " B"],
    padded: tuple[int, int],
) -> Float[Tensor, "B h w"]:
    """Weight of a key frame at each pixel of other frames; see ``fusion.blend_weight``.

    Args:
        current: Thumbnails of the frames.
        key: That of the key frame.
        flow: Backward flows from the frames to it, in pixels of that grid.
        near: 1 at the key frame, 0 at the other one.
        padded: Size that the grid covers, which gives the blur its unit.
    """
    error = (current - warp(key.expand(len(current), -1, -1, -1), flow)).abs().mean(1, keepdim=True)
    sigma = BLUR * current.shape[-1] / padded[1]
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=error.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    error = F.conv2d(F.pad(error, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    error = F.conv2d(F.pad(error, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])[:, 0]
    return near[:, None, None] ** DISTANCE_POWER * torch.exp(error * (-1 / ERROR_SCALE))


def visible_flows(
    flow: Float[Tensor, "B G 2 h w"], class_logits: Float[Tensor, "Q K1"], warped: Float[Tensor, "B Q h w"]
) -> Float[Tensor, "B 2 h w"]:
    """Return the flow of the query that shows at each pixel; see ``fusion.visible_flow``."""
    if flow.shape[1] == 1:
        return flow[:, 0]
    present = 1 - class_logits.softmax(1)[:, -1]
    winner = (present[:, None, None] * warped.sigmoid()).argmax(1)
    return flow.gather(1, winner[:, None, None].expand(-1, 1, 2, -1, -1))[:, 0]
