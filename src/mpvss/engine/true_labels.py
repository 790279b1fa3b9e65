"""True labels at the key frames instead of the segmentor's, so that propagation stands alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from mpvss.engine.carriers import Carrier, Inference, make_carrier
from mpvss.engine.carriers.carrier import Image
from mpvss.engine.decode import Labels
from mpvss.engine.state import KeyState
from mpvss.errors import ModelError
from mpvss.motion.propagator import Propagator
from mpvss.segmentors.protocol import InputRule, Prediction, Segmentor
from mpvss.types import Frame, Geometry

# True masks are one-hot: a finite logit, so that its average at a border is a number, and a small one, so that the
# sigmoid keeps every such average apart in 32 bits.
_MASK_LOGIT = 6.0
_CLASS_LOGIT = 30.0


def true_label_carrier(
    label: Callable[[Frame], Labels],
    ids: Int64[np.ndarray, " K"],
    propagator: Propagator,
    *,
    motion: str = "chain",
    segmentor: Segmentor | None = None,
) -> Carrier[Any]:
    """Return a carrier whose key frames have true labels. Its results have the positions of ``ids`` as class ids.

    Args:
        label: Gives the labels of a key frame, at the frame's size.
        ids: All ids that may come up, sorted.
        propagator: Estimates flows.
        motion: ``chain`` or ``direct``.
        segmentor: For the learned propagators: the segmentor they were trained with, whose padding is taken and, for
            ``query``, whose queries.
    """
    queries_from = segmentor if propagator.name == "query" else None

    def predict(frames: Sequence[Frame], images: Sequence[Image], geometry: Geometry) -> Sequence[KeyState]:
        return [
            true_state(label(frame), ids, frame, image, geometry, segmentor=queries_from)
            for frame, image in zip(frames, images, strict=True)
        ]

    return make_carrier(Inference(predict, oracle_rule(segmentor), propagator, motion))


def true_state(
    labels: Labels,
    ids: Int64[np.ndarray, " K"],
    frame: Frame,
    image: UInt8[np.ndarray, "h w 3"],
    geometry: Geometry,
    *,
    segmentor: Segmentor | None = None,
) -> KeyState:
    """Make a key state of a true label map: a query for each id in it, at full resolution.

    Mask logits are 6 inside a segment and -6 outside, not infinite: with one prediction, classes are then ordered as if
    one-hot labels were warped bilinearly, but for quantisation ties where class scores are quantised to 8 bits.

    Args:
        labels: Any ids, at the size of the frame.
        ids: All ids that may come up, sorted; the position of an id is its class.
        frame: The key frame.
        image: The frame as the network sees it, of the frame's own size.
        geometry: How the frame became the network's input; only padding is allowed.
        segmentor: For propagators that need queries: the segmentor that makes them. The propagator sees all of them,
            as it was trained; each segment is warped by the flow of the query whose mask overlaps it best.

    Raises:
        ValueError: The frame was resized, or a label is not among the ids.
    """
    if geometry.resized != geometry.source or labels.shape != geometry.source:
        raise ValueError(f"true masks need the frame's own size {geometry.source}, got {geometry.resized}")
    present = np.unique(labels)
    if not np.isin(present, ids).all():
        raise ValueError(f"labels hold {np.setdiff1d(present, ids)[0]}, which is not one of the ids")
    bottom, right = (padded - side for padded, side in zip(geometry.padded, labels.shape, strict=True))
    masks = np.pad(labels, ((0, bottom), (0, right)), mode="edge") == present[:, None, None]
    class_logits = np.zeros((len(present), len(ids) + 1), np.float32)
    class_logits[np.arange(len(present)), np.searchsorted(ids, present)] = _CLASS_LOGIT
    mask_logits = np.where(masks, np.float32(_MASK_LOGIT), np.float32(-_MASK_LOGIT))
    queries, active = np.zeros((len(present), 1), np.float32), None
    if segmentor is not None:
        prediction = segmentor(image[None])
        if not isinstance(prediction, Prediction):
            raise ModelError(f"{segmentor.name}: expected a segmentor with queries for the query propagator")
        queries = np.asarray(prediction.queries[0], np.float32)
        active = _best_overlap(masks, prediction.mask_logits[0])
    return KeyState(frame, image, class_logits, mask_logits, queries, geometry, active=active)


def _best_overlap(
    segments: Bool[np.ndarray, "S H W"], mask_logits: Float[np.ndarray, "Q h w"]
) -> Int64[np.ndarray, " S"]:
    """For each segment the query whose mask has the largest intersection over union with it, on the mask grid.

    Several segments may have the same one.
    """
    height, width = mask_logits.shape[-2:]
    true = np.stack(
        [cv2.resize(each.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for each in segments]
    ).reshape(len(segments), -1)
    masks = (mask_logits > 0).astype(np.float32).reshape(len(mask_logits), -1)
    overlap = true @ masks.T
    union = true.sum(1)[:, None] + masks.sum(1)[None] - overlap
    return np.asarray((overlap / np.maximum(union, 1e-6)).argmax(1))


def oracle_rule(segmentor: Segmentor | None) -> InputRule:
    """The rule by which true masks keep the frame's own size: the segmentor's padding, or none."""
    return InputRule(multiple=1) if segmentor is None else replace(segmentor.rule, short_side=None, long_side=None)
