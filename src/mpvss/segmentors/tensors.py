"""What networks of torch take and answer with; ``protocol`` has the same as arrays."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mpvss.segmentors.protocol import InputRule


@dataclass(frozen=True, eq=False)
class TensorPrediction:
    """What a mask classifier predicts for a batch of images, on its device; see ``Prediction``."""

    class_logits: Float[Tensor, "B Q K1"]
    mask_logits: Float[Tensor, "B Q h w"]
    queries: Float[Tensor, "B Q D"]

    def finite(self) -> bool:
        """Whether classes and masks hold only finite numbers."""
        return bool(self.class_logits.isfinite().all() and self.mask_logits.isfinite().all())

    def float(self) -> "TensorPrediction":
        """Return the same in float32."""
        return TensorPrediction(self.class_logits.float(), self.mask_logits.float(), self.queries.float())


@dataclass(frozen=True, eq=False)
class PixelScores:
    """What a network says of each class on a grid that covers its padded input; see ``PixelPrediction``.

    An id that is the number of classes stands for no class.
    """

    scores: Float[Tensor, "B P h w"]
    kind: Literal["logits", "scores"]
    ids: Int64[Tensor, " P"] | None = None

    def finite(self) -> bool:
        """Whether there are only finite numbers."""
        return bool(self.scores.isfinite().all())

    def float(self) -> "PixelScores":
        """Return the same in float32."""
        return PixelScores(self.scores.float(), self.kind, self.ids)


def normalised(rule: InputRule, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 Hp Wp"]:
    """Scale the numbers of images, then pad them with zeros; as ``InputRule.normalise``."""
    mean = torch.tensor(rule.mean, device=images.device)[:, None, None]
    std = torch.tensor(rule.std, device=images.device)[:, None, None]
    height, width = images.shape[-2:]
    padding = (0, -width % rule.multiple, 0, -height % rule.multiple)
    pixels = torch.nn.functional.pad((images.float() - mean) / std, padding)
    return pixels.flip(1) if rule.bgr else pixels
