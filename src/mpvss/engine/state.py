"""The tensors passed between networks: what is kept of a key frame, and one prediction of a frame's masks."""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

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
    image: UInt8[Tensor, "3 H W"]
    class_logits: Float[Tensor, "A K1"]
    mask_logits: Float[Tensor, "A h w"]
    queries: Float[Tensor, "Q D"]
    geometry: Geometry
    active: Int64[Tensor, " A"] | None = None

    def plain(self) -> "KeyState":
        """Return the state as the program computes with it: float32, without gradients."""
        return replace(
            self,
            class_logits=self.class_logits.detach().float(),
            mask_logits=self.mask_logits.detach().float(),
            queries=self.queries.detach().float(),
        )

    def only_active(self, tolerance: float) -> "KeyState":
        """Return the state without the queries that cannot change any class score by more than ``tolerance``.

        A query adds at most its probability of a class to the class's score, wherever its mask goes. So the queries
        with the smallest such bounds are left out as long as the sum of the bounds stays within the tolerance.
        """
        bounds = self.class_logits.softmax(1)[:, :-1].amax(1)
        ascending, order = bounds.sort()
        # In doubles, which some devices lack.
        dropped = int((ascending.cpu().double().cumsum(0) <= tolerance).sum())
        if dropped == 0 or self.active is not None:
            return self
        kept = order[min(dropped, len(order) - 1) :].sort().values
        return replace(self, class_logits=self.class_logits[kept], mask_logits=self.mask_logits[kept], active=kept)


@dataclass(frozen=True, eq=False)
class WarpedPrediction:
    """A prediction propagated from a key frame: its classes, its masks warped to a frame, and their weight.

    Attributes:
        class_logits: Logits of K classes and "no object" for each query.
        mask_logits: Masks on the mask grid, already warped.
        weight: Weight per pixel of the mask grid, 0 or more; ``None`` where it is the only prediction.
    """

    class_logits: Float[Tensor, "Q K1"]
    mask_logits: Float[Tensor, "Q h w"]
    weight: Float[Tensor, "h w"] | None = None
