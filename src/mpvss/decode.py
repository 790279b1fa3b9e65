"""Mask and class logits to a label map.

The plain definition, which every shortcut has to equal: mask logits are upsampled to the network's input, the class
scores are ``sum over queries of p(class) sigmoid(mask)`` (Mask2Former, section 3.1; "no object" has no score), views
are added with their weights, the sum is cropped to the picture, resized to the source's size, and the largest score
wins.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8, UInt16
from torch import Tensor

from mpvss.labels import ignore_id, label_dtype
from mpvss.state import View
from mpvss.types import Geometry

# Queries that are upsampled at once on a CPU: all of them would fill tens of megabytes a frame, and no cache.
_QUERIES = 8

Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]


def _resize(maps: Float[Tensor, "C h w"], size: tuple[int, int]) -> Float[Tensor, "C H W"]:
    """Bilinear, pixel centres at halves, the border repeated; on a CPU six times faster by OpenCV than by torch."""
    if maps.device.type != "cpu" or maps.dtype != torch.float32:
        return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    resized = torch.empty(len(maps), *size)
    for source, target in zip(maps.contiguous().numpy(), resized.numpy(), strict=True):
        cv2.resize(source, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def class_scores(views: Sequence[View], geometry: Geometry) -> Float[Tensor, "K H W"]:
    """Return the blended class scores at the size of the network's picture (``geometry.resized``).

    Args:
        views: One view, or several with weights; weights are relative, only their ratio at a pixel counts.
        geometry: How the frame became the network's input.

    Raises:
        ValueError: No view.
    """
    if not views:
        raise ValueError("decoding needs at least one view")
    height, width = geometry.resized
    scores: Tensor | None = None
    for view in views:
        part = _scores_of(view, geometry.padded)
        if view.weight is not None:
            part *= _resize(view.weight[None], geometry.padded)
        scores = part if scores is None else scores.add_(part)
    assert scores is not None
    return scores[:, :height, :width]


def _scores_of(view: View, size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    chance = view.class_logits.softmax(1)[:, :-1]
    scores = chance.new_zeros(chance.shape[1], size[0] * size[1])
    at_once = _QUERIES if scores.device.type == "cpu" else len(chance)
    for first in range(0, len(chance), at_once):
        some = slice(first, first + at_once)
        scores.addmm_(chance[some].T, _resize(view.mask_logits[some], size).sigmoid_().flatten(1))
    return scores.reshape(-1, *size)


def decode(
    views: Sequence[View],
    geometry: Geometry,
    *,
    classes: Sequence[int] | None = None,
    confidence: bool = False,
) -> tuple[Labels, Float32[np.ndarray, "H W"] | None]:
    """Return the label map of a frame at its source size, and the winning class's share of all scores if asked for.

    Args:
        views: One view, or several with weights.
        geometry: How the frame became the network's input.
        classes: Only these are kept; pixels of other classes get the ignore id. ``None`` keeps all.
        confidence: Whether to compute the winner's share (0 to 1).

    Raises:
        ValueError: No view, or masks or classes that hold NaN.
    """
    scores = class_scores(views, geometry)
    # The resize below takes weighted means, so NaN cannot come from anywhere else.
    if torch.isnan(scores).any():
        raise ValueError("decoding expects finite logits, found NaN in the masks or the classes")
    resize = geometry.source != geometry.resized
    # One class after the other: three maps of the source's size instead of one for every class.
    best = _resize(scores[:1], geometry.source)[0] if resize else scores[0].clone()
    labels = torch.zeros_like(best, dtype=torch.int32)
    for number in range(1, len(scores)):
        score = _resize(scores[number : number + 1], geometry.source)[0] if resize else scores[number]
        labels.masked_fill_(score > best, number)
        torch.maximum(best, score, out=best)
    found = labels.to("cpu").numpy().astype(label_dtype(len(scores)))
    if classes is not None:
        found[~np.isin(found, list(classes))] = ignore_id(len(scores))
    if not confidence:
        return found, None
    total = scores.sum(0, keepdim=True)
    share = best / (_resize(total, geometry.source) if resize else total)[0].clamp(min=1e-12)
    return found, share.to("cpu", torch.float32).numpy()
