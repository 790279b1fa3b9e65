"""Mask and class logits to a label map.

The plain definition, which every shortcut has to equal, but for quantisation ties of frames between key
frames: mask logits are interpolated at every pixel of the smaller of two images, the frame and what the network saw of
it; the class scores are ``sum over queries of p(class) sigmoid(mask)`` (Mask2Former, section 3.1; "no object" has no
score); predictions are added with their weights; the sum is resized to the frame where that is the larger one; and the
largest score wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8, UInt16
from torch import Tensor

from mpvss.engine.state import WarpedPrediction
from mpvss.labels import ignore_id, label_dtype
from mpvss.motion.warp import resize, sample
from mpvss.types import Geometry

# Queries that are upsampled at once on a CPU: all of them would fill tens of megabytes a frame, and no cache.
_QUERIES = 8
# With fewer classes than this, leaving some out costs more than it saves.
_FEW_CLASSES = 16
# Scores no further apart than this count as a tie.
_TIE = 1e-6

Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of some classes at every pixel; those of the others are too small to win anywhere.

    Attributes:
        ids: Classes, ascending.
        planes: Their scores, 0 or more; or quantised to 8 bits.
        num_classes: Number of all classes.
    """

    ids: Int64[Tensor, " P"]
    planes: Float[Tensor, "P H W"] | UInt8[Tensor, "P H W"]
    num_classes: int


def score_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width at which class scores are made: the smaller of the frame and of the network's image."""
    return min(geometry.source, geometry.resized)


def _at_scores(maps: Float[Tensor, "C h w"], geometry: Geometry) -> Float[Tensor, "C H W"]:
    """Interpolate maps that cover the padded image at the pixels where scores are made."""
    height, width = score_size(geometry)
    # The padded image in pixels of the scores: whole numbers, where one image is the other or nothing was padded.
    covered = [
        padded * side / resized
        for padded, side, resized in zip(geometry.padded, (height, width), geometry.resized, strict=True)
    ]
    if all(side.is_integer() for side in covered):
        return resize(maps, (int(covered[0]), int(covered[1])))[:, :height, :width]
    ys, xs = (
        2 * (torch.arange(side, device=maps.device) + 0.5) / whole - 1
        for side, whole in zip((height, width), covered, strict=True)
    )
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).to(maps.dtype)
    return sample(maps[None], grid[None], align_corners=False)[0]


def possible_classes(predictions: Sequence[WarpedPrediction]) -> Int64[Tensor, " P"]:
    """Return the classes that may win at some pixel, ascending; none of the others does, ties aside.

    Between the centres of neighbouring cells of the mask grid no interpolated logit is larger than the largest of the
    cells around, nor smaller than the smallest. So each class has bounds of its score in each such square, and one
    whose upper bound lies below another's lower bound in all of them cannot win.
    """
    probabilities = [prediction.class_logits.softmax(1)[:, :-1] for prediction in predictions]
    num_classes = probabilities[0].shape[1]
    if num_classes <= _FEW_CLASSES:
        return torch.arange(num_classes, device=probabilities[0].device)
    most_of = torch.stack([probability.sum(0) for probability in probabilities]).amax(0)
    some = (most_of > _TIE).nonzero()[:, 0]
    if len(some) == 0:  # all queries say "no object": every class is a tie with every other
        return most_of.argmax()[None]
    upper: Tensor | float = 0.0
    lower: Tensor | float = 0.0
    for prediction, probability in zip(predictions, probabilities, strict=True):
        highest, lowest = _around(prediction.mask_logits)
        most, least = (
            probability[:, some].T @ highest.sigmoid().flatten(1),
            probability[:, some].T @ lowest.sigmoid().flatten(1),
        )
        if prediction.weight is not None:
            heaviest, lightest = _around(prediction.weight[None])
            most, least = most * heaviest.flatten(), least * lightest.flatten()
        upper, lower = upper + most, lower + least
    assert isinstance(upper, Tensor) and isinstance(lower, Tensor)
    kept = (upper >= lower.amax(0) - _TIE).any(1)
    return some[kept]


def _around(maps: Float[Tensor, "C h w"]) -> tuple[Float[Tensor, "C h1 w1"], Float[Tensor, "C h1 w1"]]:
    """The largest and the smallest of each four neighbouring cells; of what there is on a grid of one row or column."""
    kernel = (min(2, maps.shape[1]), min(2, maps.shape[2]))
    return F.max_pool2d(maps, kernel, 1), -F.max_pool2d(-maps, kernel, 1)


def class_scores(
    predictions: Sequence[WarpedPrediction], geometry: Geometry, classes: Int64[Tensor, " P"] | None = None
) -> Float[Tensor, "P H W"]:
    """Return the blended class scores at ``score_size``.

    Args:
        predictions: One prediction, or several with weights; weights are relative, only their ratio at a pixel counts.
        geometry: How the frame became the network's input.
        classes: Classes to score; ``None`` for all.

    Raises:
        ValueError: No prediction.
    """
    if not predictions:
        raise ValueError("decoding needs at least one prediction")
    scores: Tensor | None = None
    for prediction in predictions:
        part = _scores_of(prediction, geometry, classes)
        if prediction.weight is not None:
            part *= _at_scores(prediction.weight[None], geometry)
        scores = part if scores is None else scores.add_(part)
    assert scores is not None
    return scores


def _scores_of(
    prediction: WarpedPrediction, geometry: Geometry, classes: Int64[Tensor, " P"] | None
) -> Float[Tensor, "P H W"]:
    probability = prediction.class_logits.softmax(1)[:, :-1]
    if classes is not None:
        probability = probability[:, classes]
    size = score_size(geometry)
    scores = probability.new_zeros(probability.shape[1], size[0] * size[1])
    at_once = _QUERIES if scores.device.type == "cpu" else len(probability)
    for first in range(0, len(probability), at_once):
        some = slice(first, first + at_once)
        shown = _at_scores(prediction.mask_logits[some], geometry).sigmoid()
        scores.addmm_(probability[some].T, shown.flatten(1))
    return scores.reshape(-1, *size)


def score(predictions: Sequence[WarpedPrediction], geometry: Geometry, *, every_class: bool = False) -> ClassScores:
    """Return the scores of the classes that may win somewhere, or of all, at ``score_size``.

    Raises:
        ValueError: No prediction, or masks or classes that hold NaN.
    """
    if not predictions:
        raise ValueError("decoding needs at least one prediction")
    for prediction in predictions:
        if any(
            torch.isnan(x).any()
            for x in (prediction.mask_logits, prediction.class_logits, prediction.weight)
            if x is not None
        ):
            raise ValueError("decoding expects finite logits, got NaN in the masks, the classes or the weights")
    logits = predictions[0].class_logits
    num_classes = logits.shape[1] - 1
    classes = torch.arange(num_classes, device=logits.device) if every_class else possible_classes(predictions)
    return ClassScores(classes, class_scores(predictions, geometry, classes), num_classes)


def averaged(scores: ClassScores, predictions: Sequence[WarpedPrediction], geometry: Geometry) -> ClassScores:
    """Return the scores of several predictions divided by the sum of their weights: on the scale of one."""
    total = sum(
        _at_scores(prediction.weight[None], geometry) for prediction in predictions if prediction.weight is not None
    )
    if not isinstance(total, Tensor):
        return scores
    return replace(scores, planes=scores.planes / total.clamp(min=torch.finfo(total.dtype).tiny))


def label_map(
    scores: ClassScores,
    geometry: Geometry,
    *,
    classes: Sequence[int] | None = None,
    confidence: bool = False,
    min_score: float = 0.0,
) -> tuple[Labels, Float32[np.ndarray, "H W"] | None]:
    """Return the winning class of every pixel of the frame, and its share of all scores if asked for.

    Args:
        scores: At ``score_size``.
        geometry: How the frame became the network's input.
        classes: Only these are kept; pixels of other classes get the ignore id. ``None`` keeps all.
        confidence: Whether to compute the winner's share (0 to 1).
        min_score: Pixels whose best score is lower get the ignore id; scores must not be quantised then.
    """
    planes = scores.planes
    enlarged = tuple(planes.shape[1:]) != geometry.source
    # One class after the other: three maps of the source's size instead of one for every class.
    best = resize(planes[:1], geometry.source)[0] if enlarged else planes[0].clone()
    winner = torch.zeros_like(best, dtype=torch.uint8 if len(planes) <= 256 else torch.int32)
    # OpenCV takes a third of torch's time, and no threads of its own.
    quick = best.device.type == "cpu" and best.dtype in (torch.float32, torch.uint8) and winner.dtype == torch.uint8
    for number in range(1, len(planes)):
        plane = resize(planes[number : number + 1], geometry.source)[0] if enlarged else planes[number]
        # Numbers rise, so the last one that won is the largest of those that did.
        if quick:
            won = cv2.compare(plane.numpy(), best.numpy(), cv2.CMP_GT)
            # An array of one: OpenCV takes a bare number for an image where the images are as small.
            cv2.max(winner.numpy(), cv2.min(won, np.full(1, number, np.uint8)), dst=winner.numpy())
            cv2.max(best.numpy(), plane.numpy(), dst=best.numpy())
        else:
            torch.maximum(winner, (plane > best).to(winner.dtype).mul_(number), out=winner)
            torch.maximum(best, plane, out=best)
    ids = scores.ids.to("cpu").numpy().astype(label_dtype(scores.num_classes))
    if classes is not None:
        ids[~np.isin(ids, list(classes))] = ignore_id(scores.num_classes)
    labels: Labels = _numbered(winner.to("cpu").numpy(), ids)
    if min_score > 0:
        labels[(best < min_score).to("cpu").numpy()] = ignore_id(scores.num_classes)
    if not confidence:
        return labels, None
    total = planes.sum(0, keepdim=True, dtype=torch.float32)
    share = best / (resize(total, geometry.source) if enlarged else total)[0].clamp(min=1e-12)
    return labels, share.to("cpu", torch.float32).numpy()


def _numbered(winner: Any, ids: UInt8[np.ndarray, " P"] | UInt16[np.ndarray, " P"]) -> Labels:
    """``ids[winner]``; for bytes in a tenth of numpy's time."""
    if winner.dtype != np.uint8 or ids.dtype != np.uint8:
        return np.asarray(ids[winner])
    table = np.zeros(256, np.uint8)
    table[: len(ids)] = ids
    return np.asarray(cv2.LUT(winner, table))


def decode(
    predictions: Sequence[WarpedPrediction],
    geometry: Geometry,
    *,
    classes: Sequence[int] | None = None,
    confidence: bool = False,
) -> tuple[Labels, Float32[np.ndarray, "H W"] | None]:
    """Return the label map of a frame at its own size, and the winning class's share of all scores if asked for.

    Args:
        predictions: One prediction, or several with weights.
        geometry: How the frame became the network's input.
        classes: Only these are kept; pixels of other classes get the ignore id. ``None`` keeps all.
        confidence: Whether to compute the winner's share (0 to 1).

    Raises:
        ValueError: No prediction, or masks or classes that hold NaN.
    """
    scores = score(predictions, geometry, every_class=confidence)
    return label_map(scores, geometry, classes=classes, confidence=confidence)
