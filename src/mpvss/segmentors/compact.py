"""The shape of the embedded default, ``compact``: the library's MaskFormer, narrow, on EfficientNet-Lite0."""

from collections.abc import Sequence

from transformers import DetrConfig, MaskFormerConfig

from mpvss.segmentors.efficientnet import EfficientNetLiteConfig, register


def compact_config(class_names: Sequence[str]) -> MaskFormerConfig:
    """Return the configuration of ``compact`` for these classes, in the order of their ids.

    32 queries of width 128, three decoder layers over stride 32, a feature pyramid of width 96 (no deformable
    attention, which is slow on a CPU), masks at stride 4.
    """
    register()
    return MaskFormerConfig(
        backbone_config=EfficientNetLiteConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
        decoder_config=DetrConfig(
            num_queries=32,
            d_model=128,
            encoder_layers=0,
            decoder_layers=3,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            decoder_ffn_dim=256,
            dropout=0.0,
        ),
        fpn_feature_size=96,
        mask_feature_size=64,
        use_auxiliary_loss=False,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
