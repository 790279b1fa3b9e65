"""The paper's six models: Mask2Former on a ResNet or a Swin Transformer, with its motion module."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.query_flow import QueryFlow

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig

# The published cost of a frame between key frames is the same for all six models, which only 100 queries give.
NUM_QUERIES = 100

STAGES = ["stage1", "stage2", "stage3", "stage4"]
_BACKBONES: dict[str, dict[str, Any]] = {
    "r50": {"depths": [3, 4, 6, 3]},
    "r101": {"depths": [3, 4, 23, 3]},
    "swin-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin-s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin-b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin-l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
ARCHS = tuple(_BACKBONES)


@dataclass(frozen=True, eq=False)
class Model:
    """A segmentor and the motion module that propagates its masks.

    Attributes:
        segmentor: ``transformers.Mask2FormerForUniversalSegmentation``.
        motion: The motion module, for as many queries of the same width.
    """

    segmentor: Any
    motion: QueryFlow


def segmentor_config(arch: str, num_classes: int, num_queries: int = NUM_QUERIES) -> "Mask2FormerConfig":
    """Return the configuration of one of the paper's segmentors.

    The ResNets stride in their 3x3 convolutions. Swin-B and Swin-L have windows of 12, from images of 384x384.

    Args:
        arch: Name of the backbone.
        num_classes: Classes without "no object": 124 for VSPW, 19 for Cityscapes.
        num_queries: Segment queries.

    Raises:
        ValueError: The name is unknown or a number is below 1.

    Paper: section 4, the models and their settings.
    """
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    backbone: ResNetConfig | SwinConfig
    if arch not in _BACKBONES:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(ARCHS)}")
    if num_classes < 1 or num_queries < 1:
        raise ValueError(f"expected at least 1 class and 1 query, got {num_classes} and {num_queries}")
    settings = _BACKBONES[arch]
    if arch.startswith("swin"):
        side = 384 if settings["window_size"] == 12 else 224
        backbone = SwinConfig(**settings, image_size=side, drop_path_rate=0.3, out_features=STAGES)
    else:
        backbone = ResNetConfig(**settings, out_features=STAGES)
    return Mask2FormerConfig(backbone_config=backbone, num_queries=num_queries, num_labels=num_classes)


def build(arch: str, num_classes: int, *, num_queries: int = NUM_QUERIES) -> Model:
    """Build one of the paper's models with random weights, in evaluation mode.

    Args:
        arch: ``r50``, ``r101``, ``swin-t``, ``swin-s``, ``swin-b`` or ``swin-l``.
        num_classes: Classes without "no object": 124 for VSPW, 19 for Cityscapes.
        num_queries: Segment queries.

    Raises:
        ValueError: The name is unknown or a number is below 1.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    config = segmentor_config(arch, num_classes, num_queries)
    motion = QueryFlow(QueryFlowConfig(num_queries=num_queries, query_width=config.hidden_dim))
    return Model(Mask2FormerForUniversalSegmentation(config).eval(), motion.eval())
