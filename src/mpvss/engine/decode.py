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
from jaxtyping import Float32, Int64, UInt8, UInt16

from mpvss.engine.activations import sigmoid, softmax
from mpvss.engine.enlarge import enlarged_winner
from mpvss.engine.state import PixelState, WarpedPrediction
from mpvss.labels import ignore_id, label_dtype
from mpvss.motion.arrays import resize, spread
from mpvss.types import Geometry

# Queries that are upsampled at once, and rows of them that are summed at once: those lie in the cache.
_QUERIES, _ROWS = 32, 24
# With fewer classes than this, leaving some out costs more than it saves.
FEW_CLASSES = 16
# Scores no further apart than this count as a tie.
TIE = 1e-6

Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
Classes = Int64[np.ndarray, " P"]
Planes = Float32[np.ndarray, "P H W"]
_Extremes = Float32[np.ndarray, "P H1 W1"]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of some classes at every pixel; those of the others are too small to win anywhere.

    Attributes:
        ids: Classes, ascending.
        planes: Their scores, 0 or more; or quantised to 8 bits.
        num_classes: Number of all classes.
    """

    ids: Classes
    planes: Planes | UInt8[np.ndarray, "P H W"]
    num_classes: int


def score_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width at which class scores are made: the smaller of the frame and of the network's image."""
    return min(geometry.source, geometry.resized)


def _at(size: tuple[int, int], maps: Planes, geometry: Geometry) -> Float32[np.ndarray, "P H1 W1"]:
    """Interpolate maps that cover the padded image at the pixels of an image of this size without padding."""
    # The padded image in those pixels: whole numbers, where one image is the other or nothing was padded.
    height, width = (
        padded * side / resized for padded, side, resized in zip(geometry.padded, size, geometry.resized, strict=True)
    )
    return np.asarray(spread(maps, (height, width), size))


def possible_classes(predictions: Sequence[WarpedPrediction]) -> Classes:
    """Return the classes that may win at some pixel, ascending; none of the others does, ties aside.

    Between the centres of neighbouring cells of the mask grid no interpolated logit is larger than the largest of the
    cells around, nor smaller than the smallest. So each class has bounds of its score in each such square, and one
    whose upper bound lies below another's lower bound in all of them cannot win.
    """
    probabilities = [softmax(prediction.class_logits, 1)[:, :-1] for prediction in predictions]
    num_classes = probabilities[0].shape[1]
    if num_classes <= FEW_CLASSES:
        return np.arange(num_classes)
    most_of = np.max([probability.sum(0) for probability in probabilities], axis=0)
    some = np.flatnonzero(most_of > TIE)
    if len(some) == 0:  # all queries say "no object": every class is a tie with every other
        return np.asarray(most_of.argmax(keepdims=True))
    upper, lower = np.zeros((2, len(some), 1), np.float32)
    for prediction, probability in zip(predictions, probabilities, strict=True):
        of_queries = np.ascontiguousarray(probability[:, some].T)
        highest, lowest = _around(prediction.mask_logits)
        most, least = (of_queries @ sigmoid(extreme).reshape(len(extreme), -1) for extreme in (highest, lowest))
        if prediction.weight is not None:
            heaviest, lightest = _around(prediction.weight[None])
            most, least = most * heaviest.ravel(), least * lightest.ravel()
        upper, lower = upper + most, lower + least
    return np.asarray(some[(upper >= lower.max(0) - TIE).any(1)])


def _around(maps: Planes) -> tuple[_Extremes, _Extremes]:
    """The largest and the smallest of each four neighbouring cells; of what there is on a grid of one row or column."""
    highest = lowest = maps
    if maps.shape[1] > 1:
        highest = np.maximum(highest[:, 1:], highest[:, :-1])
        lowest = np.minimum(lowest[:, 1:], lowest[:, :-1])
    if maps.shape[2] > 1:
        highest = np.maximum(highest[..., 1:], highest[..., :-1])
        lowest = np.minimum(lowest[..., 1:], lowest[..., :-1])
    return highest, lowest


def class_scores(predictions: Sequence[WarpedPrediction], geometry: Geometry, classes: Classes | None = None) -> Planes:
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
    scores: Planes | None = None
    for prediction in predictions:
        part = _scores_of(prediction, geometry, classes)
        if prediction.weight is not None:
            part *= _at(score_size(geometry), prediction.weight[None], geometry)
        scores = part if scores is None else scores + part
    assert scores is not None
    return scores


def _scores_of(prediction: WarpedPrediction, geometry: Geometry, classes: Classes | None) -> Planes:
    probability = softmax(prediction.class_logits, 1)[:, :-1]
    of_queries = np.ascontiguousarray((probability if classes is None else probability[:, classes]).T)
    size = score_size(geometry)
    scores = np.zeros((len(of_queries), *size), np.float32)
    for first in range(0, len(probability), _QUERIES):
        some = slice(first, first + _QUERIES)
        masks, weights = _at(size, prediction.mask_logits[some], geometry), np.ascontiguousarray(of_queries[:, some])
        for top in range(0, size[0], _ROWS):
            shown = sigmoid(masks[:, top : top + _ROWS])
            scores[:, top : top + _ROWS] += (weights @ shown.reshape(len(shown), -1)).reshape(-1, *shown.shape[1:])
    return scores


def score(predictions: Sequence[WarpedPrediction], geometry: Geometry, *, every_class: bool = False) -> ClassScores:
    """Return the scores of the classes that may win somewhere, or of all, at ``score_size``.

    Raises:
        ValueError: No prediction, or masks or classes that hold NaN.
    """
    if not predictions:
        raise ValueError("decoding needs at least one prediction")
    for prediction in predictions:
        if any(
            np.isnan(x).any()
            for x in (prediction.mask_logits, prediction.class_logits, prediction.weight)
            if x is not None
        ):
            raise ValueError("decoding expects finite logits, got NaN in the masks, the classes or the weights")
    num_classes = predictions[0].class_logits.shape[1] - 1
    classes = np.arange(num_classes) if every_class else possible_classes(predictions)
    return ClassScores(classes, class_scores(predictions, geometry, classes), num_classes)


def averaged(scores: ClassScores, predictions: Sequence[WarpedPrediction], geometry: Geometry) -> ClassScores:
    """Return the scores of several predictions divided by the sum of their weights: on the scale of one."""
    weights = [
        _at(score_size(geometry), prediction.weight[None], geometry)
        for prediction in predictions
        if prediction.weight is not None
    ]
    if not weights:
        return scores
    total = np.maximum(np.sum(weights, axis=0), np.finfo(np.float32).tiny)
    return replace(scores, planes=scores.planes / total)


def possible_maps(maps: Planes) -> Int64[np.ndarray, " C"]:
    """Return which maps may be the largest at some place between the centres of neighbouring cells; as above."""
    if len(maps) <= FEW_CLASSES:
        return np.arange(len(maps))
    highest, lowest = _around(maps)
    return np.flatnonzero((highest >= lowest.max(0)).any((1, 2)))


def pixel_scores(state: PixelState, *, every_class: bool = False) -> ClassScores:
    """Return the class scores of a segmentor of pixels at ``score_size``: its own, or the softmax of its logits.

    Without ``every_class`` maps that are the largest nowhere are left out, of the softmax, too.

    Raises:
        ValueError: They are not finite.
    """
    if not np.isfinite(state.maps).all():
        raise ValueError("decoding expects finite scores, got NaN or infinity in the maps of the classes")
    maps, ids = state.maps, state.ids
    if not every_class:
        kept = possible_maps(maps)
        maps, ids = maps[kept], ids[kept]
    planes = _at(score_size(state.geometry), maps, state.geometry)
    return ClassScores(ids, softmax(planes, 0) if state.kind == "logits" else planes, state.num_classes)


def pixel_labels(state: PixelState, *, classes: Sequence[int] | None = None) -> Labels:
    """Return the label map of a key frame: its maps resized to the frame, as libraries do, and the largest.

    Args:
        state: Of the key frame.
        classes: Only these are kept; pixels of other classes get the ignore id. ``None`` keeps all.
    """
    kept = possible_maps(state.maps)
    size = state.geometry.source
    grid = state.maps.shape[1:]
    # Where a cell has many more pixels than there are classes, one class after the other is faster (measured at 1080p).
    few = size[0] * size[1] <= 8 * len(kept) * grid[0] * grid[1]
    if state.geometry.padded == state.geometry.resized and grid != size and few:
        winner = enlarged_winner(state.maps[kept], size)
        return numbered(winner, kept_ids(state.ids[kept], state.num_classes, classes))
    winner, best = np.zeros(size, np.intp), _at(size, state.maps[kept[:1]], state.geometry)[0]
    for position, number in enumerate(kept[1:], 1):
        plane = _at(size, state.maps[number : number + 1], state.geometry)[0]
        winner[plane > best] = position
        np.maximum(best, plane, out=best)
    return numbered(winner, kept_ids(state.ids[kept], state.num_classes, classes))


def kept_ids(ids: Classes, num_classes: int, classes: Sequence[int] | None) -> Any:
    """Return the ids that labels get for classes: their own, or the ignore id of those that are not kept.

    Args:
        ids: Classes; the number of classes itself stands for no class.
        num_classes: Number of all classes.
        classes: Only these are kept; ``None`` for all.
    """
    numbers = ids.astype(label_dtype(num_classes))
    if classes is not None:
        numbers[~np.isin(ids, list(classes))] = ignore_id(num_classes)
    numbers[ids >= num_classes] = ignore_id(num_classes)
    return numbers


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
    planes, size = scores.planes, geometry.source
    labels = numbered(enlarged_winner(planes, size), kept_ids(scores.ids, scores.num_classes, classes))
    if not (confidence or min_score > 0):
        return labels, None
    # One class after the other: two maps of the frame's size instead of one for every class.
    best = resize(planes[:1], size)[0]
    for number in range(1, len(planes)):
        cv2.max(best, resize(planes[number : number + 1], size)[0], dst=best)
    if min_score > 0:
        labels[best < min_score] = ignore_id(scores.num_classes)
    if not confidence:
        return labels, None
    total = planes.sum(0, keepdims=True, dtype=np.float32)
    return labels, best / np.maximum(resize(total, size)[0], 1e-12)


def numbered(winner: Any, ids: Any) -> Labels:
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
