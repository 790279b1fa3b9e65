"""Multiply-adds and parameters of the paper's models, counted as the paper counts them.

The rule. A multiply-add is one; convolutions and matrix products, those inside attention included, are counted at the
size that they run at, which is the image padded to multiples of 32. A bilinearly sampled or resized value costs 4:
that covers the sampling of deformable attention, the resizing of masks and flows, and the warp. Normalisation,
activations, additions and softmax are free. Semantic decoding is that of all queries and classes at the size of the
image before padding, and is part of every frame.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpvss.convert.architectures import NUM_QUERIES, segmentor_config
from mpvss.motion.network.config import PAD_MULTIPLE, QueryFlowConfig
from mpvss.motion.network.query_flow import QueryFlow
from mpvss.motion.warp import resize_flow, warp

_BILINEAR = 4
_MASK_STRIDE = 4


@dataclass(frozen=True)
class ModelCost:
    """What one of the paper's models costs.

    Attributes:
        params_m: Millions of parameters of ``segmentor``, ``motion`` and their sum (``total``).
        gmac: Billions of multiply-adds of a ``key`` frame, of a ``non_key`` frame, and on average (``per_frame``).
    """

    params_m: Mapping[str, float]
    gmac: Mapping[str, float]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain values for JSON."""
        return {"params_m": dict(self.params_m), "gmac": dict(self.gmac)}


def cost(arch: str, size: tuple[int, int] = (480, 853), interval: int = 5, num_classes: int = 124) -> ModelCost:
    """Count what one of the paper's models costs.

    Nothing is computed and no weights are made: the networks run on the meta device.

    Args:
        arch: ``r50``, ``r101``, ``swin-t``, ``swin-s``, ``swin-b`` or ``swin-l``.
        size: Height and width of the image in pixels.
        interval: Frames from one key frame to the next; 1 is the segmentor on every frame.
        num_classes: Classes without "no object".

    Raises:
        ValueError: The architecture is unknown, or a size or number is below 1.

    Paper: section 4, the table of VSPW results, whose "GFLOPs" are multiply-adds.
    """
    if min(size) < 1 or interval < 1:
        raise ValueError(f"expected size and interval of at least 1, got {size} and {interval}")
    from transformers import Mask2FormerForUniversalSegmentation

    config = segmentor_config(arch, num_classes)
    with torch.device("meta"):
        segmentor = Mask2FormerForUniversalSegmentation(config).to("meta").eval()
        motion = QueryFlow(QueryFlowConfig(num_queries=NUM_QUERIES, query_width=config.hidden_dim)).eval()
        padded = [length + -length % PAD_MULTIPLE for length in size]
        image = torch.empty(1, 3, *size)
        queries = torch.empty(1, NUM_QUERIES, config.hidden_dim)
        masks = torch.empty(1, NUM_QUERIES, *(length // _MASK_STRIDE for length in padded))

        def decode() -> Tensor:
            full = F.interpolate(masks, size=padded, mode="bilinear")[..., : size[0], : size[1]]
            return torch.einsum("bqk,bqhw->bkhw", torch.empty(1, NUM_QUERIES, num_classes), full)

        def propagate() -> Tensor:
            flow = resize_flow(motion(image, image, queries)[0], (masks.shape[-2], masks.shape[-1]))
            return warp(masks.transpose(0, 1), flow)

        decoding = count_gmac(decode)
        key = count_gmac(lambda: segmentor(torch.empty(1, 3, *padded))) + decoding
        non_key = count_gmac(propagate) + decoding
    params = {"segmentor": _millions(segmentor), "motion": _millions(motion)}
    return ModelCost(
        params | {"total": sum(params.values())},
        {"key": key, "non_key": non_key, "per_frame": (key + (interval - 1) * non_key) / interval},
    )


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def count_gmac(run: Callable[[], object]) -> float:
    """Return the billions of multiply-adds (GMAC) of a call, by the rule above."""
    from torch.utils.flop_counter import FlopCounterMode

    def bilinear(*_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * _BILINEAR * int(math.prod(out_shape))

    def bags(table_shape: Any, index_shape: Any, *_: Any, **__: Any) -> int:
        return 2 * int(math.prod(index_shape)) * int(table_shape[1])

    def attention(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return 2 * int(math.prod(queries[:-1])) * int(keys[-2]) * int(keys[-1] + values[-1])

    aten = torch.ops.aten
    # In inference mode the counter would take the overload with a list of sizes apart, into nothing that it counts.
    resizing = (aten.upsample_bilinear2d, aten.upsample_bilinear2d.vec)
    rules: dict[Any, Callable[..., int]] = dict.fromkeys((aten.grid_sampler_2d, *resizing), bilinear)
    # A bilinear sample is four entries of a bag.
    rules |= dict.fromkeys((aten._embedding_bag, aten._embedding_bag_forward_only), bags)
    # The counter knows attention on a GPU and in plain products, but not this one.
    rules[aten._scaled_dot_product_flash_attention_for_cpu] = attention
    with FlopCounterMode(display=False, custom_mapping=rules) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops()) / 2 / 1e9  # the counter says 2 for a multiply-add
