"""What networks of torch take and answer with; ``protocol`` has the same as arrays."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
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


def normalised(rule: InputRule, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 Hp Wp"]:
    """Scale the numbers of images, then pad them with zeros; as ``InputRule.normalise``."""
    mean = torch.tensor(rule.mean, device=images.device)[:, None, None]
    std = torch.tensor(rule.std, device=images.device)[:, None, None]
    height, width = images.shape[-2:]
    padding = (0, -width % rule.multiple, 0, -height % rule.multiple)
    return torch.nn.functional.pad((images.float() - mean) / std, padding)
