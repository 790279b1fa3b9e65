"""What is kept of a key frame, and one prediction of a frame's masks."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss.engine.activations import softmax
from mpvss.types import Frame, Geometry


@dataclass(frozen=True, eq=False)
class KeyState:
    """What the segmentor said about a key frame.

    Attributes:
        frame: The key frame.
        image: The frame at the network's size, before padding and normalisation, RGB 0..255.
        class_logits: Logits of K classes and, last, "no object", for each active query.
        mask_logits: One mask per active query on the mask grid of the padded image.
        queries: Embeddings of all queries, active or not, that class and mask logits were made from, after the
            decoder's last layer norm.
        geometry: How the frame became the network's input.
        active: The query that each class and mask belongs to; ``None`` for all, in order.
    """

    frame: Frame
    image: UInt8[np.ndarray, "H W 3"]
    class_logits: Float32[np.ndarray, "A K1"]
    mask_logits: Float32[np.ndarray, "A h w"]
    queries: Float32[np.ndarray, "Q D"]
    geometry: Geometry
    active: Int64[np.ndarray, " A"] | None = None

    def only_active(self, tolerance: float) -> "KeyState":
        """Return the state without the queries that cannot change any class score by more than ``tolerance``."""
        kept = active_queries(softmax(self.class_logits, 1)[:, :-1].max(1), tolerance)
        if kept is None or self.active is not None:
            return self
        return replace(self, class_logits=self.class_logits[kept], mask_logits=self.mask_logits[kept], active=kept)


def active_queries(bounds: Float32[np.ndarray, " Q"], tolerance: float) -> Int64[np.ndarray, " A"] | None:
    """Return the queries that may change a class score by more than ``tolerance``, ascending; ``None`` for all.

    A query adds at most its probability of a class to the class's score, wherever its mask goes. So the queries
    with the smallest such bounds are left out as long as the sum of the bounds stays within the tolerance.

    Args:
        bounds: The largest probability of a class, of each query.
        tolerance: By how much a class score may change, 0 to 1.
    """
    order = np.argsort(bounds, kind="stable")
    dropped = int((bounds[order].astype(np.float64).cumsum() <= tolerance).sum())
    return np.sort(order[min(dropped, len(order) - 1) :]) if dropped else None


@dataclass(frozen=True, eq=False)
class PixelState:
    """What a segmentor of pixels said about a key frame.

    Attributes:
        frame: The key frame.
        image: The frame at the network's size, before padding and normalisation, RGB 0..255.
        maps: One map a class, on a grid of the padded image.
        kind: ``logits``, or ``scores`` of 0 or more; the largest wins.
        ids: The class of each map, ascending; the number of classes itself stands for no class.
        num_classes: Number of all classes.
        geometry: How the frame became the network's input.
    """

    frame: Frame
    image: UInt8[np.ndarray, "H W 3"]
    maps: Float32[np.ndarray, "P h w"]
    kind: Literal["logits", "scores"]
    ids: Int64[np.ndarray, " P"]
    num_classes: int
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class WarpedPrediction:
    """A prediction propagated from a key frame: its classes, its masks warped to a frame, and their weight.

    Attributes:
        class_logits: Logits of K classes and "no object" for each query.
        mask_logits: Masks on the mask grid, already warped.
        weight: Weight per pixel of the mask grid, 0 or more; ``None`` where it is the only prediction.
    """

    class_logits: Float32[np.ndarray, "Q K1"]
    mask_logits: Float32[np.ndarray, "Q h w"]
    weight: Float32[np.ndarray, "h w"] | None = None
