"""Tiny random models of the families that answer with classes of pixels, saved as the library saves them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

NAMES = ("road, route", "sky", "road", "a tree", "car")
QUERIES = 7
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
_NAMES = {"id2label": dict(enumerate(NAMES))}

# Class of model and of image processor; the size is the network's.
_CLASSES = {
    "segformer": ("SegformerForSemanticSegmentation", "Segformer", (64, 64)),
    "upernet": ("UperNetForSemanticSegmentation", "Segformer", (64, 64)),
    "beit": ("BeitForSemanticSegmentation", "Beit", (64, 64)),
    "data2vec-vision": ("Data2VecVisionForSemanticSegmentation", "Beit", (64, 64)),
    "dpt": ("DPTForSemanticSegmentation", "DPT", (64, 64)),
    "mobilevit": ("MobileViTForSemanticSegmentation", "MobileViT", (64, 64)),
    "mobilevitv2": ("MobileViTV2ForSemanticSegmentation", "MobileViT", (64, 64)),
    "mobilenet_v2": ("MobileNetV2ForSemanticSegmentation", "MobileNetV2", (64, 64)),
    "sapiens2": ("Sapiens2ForSemanticSegmentation", None, (64, 48)),
    "tipsv2_dpt": ("Tipsv2DptForSemanticSegmentation", None, (64, 64)),
    "detr": ("DetrForSegmentation", "Detr", (64, 96)),
    "eomt_dinov3": ("EomtDinov3ForUniversalSegmentation", "Eomt", (64, 64)),
    "videomt": ("VideomtForUniversalSegmentation", None, (64, 64)),
    "rf_detr": ("RfDetrForInstanceSegmentation", None, (64, 64)),
    "sam3": ("Sam3Model", None, (56, 56)),
}
PIXEL = tuple(kind for kind, (model, *_) in _CLASSES.items() if model.endswith("SemanticSegmentation"))
KINDS = tuple(_CLASSES)


def size_of(kind: str) -> tuple[int, int]:
    """Height and width of the images of a tiny model."""
    return _CLASSES[kind][2]


def processor_class(kind: str) -> Any:
    """The library's image processor that needs no torchvision; ``None`` where there is none."""
    name = _CLASSES[kind][1]
    return None if name is None else get_image_processor_class_from_name(f"{name}ImageProcessorPil")


def _settings(kind: str) -> dict[str, Any]:
    """What its image processor is made with: the fixed size of the network, or its shorter side."""
    height, width = size_of(kind)
    if kind == "detr":
        return {"size": {"shortest_edge": height, "longest_edge": 2 * height}}
    if kind == "eomt_dinov3":
        return {"size": {"shortest_edge": height, "longest_edge": height}, "do_pad": True}
    return {
        "size": {"height": height, "width": width},
        **({"do_center_crop": False} if kind.startswith("mobile") else {}),
    }


def _config(kind: str) -> Any:
    lib = transformers
    square, patch = {"image_size": size_of(kind)[0]}, {"patch_size": 16}
    tower = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
    eomt = {"num_blocks": 1, "num_queries": QUERIES, "num_register_tokens": 1, **square, **patch, **_NAMES}
    aspp = {"aspp_out_channels": 16, "atrous_rates": [1, 2, 3], **square, **_NAMES}
    if kind == "segformer":
        stages = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
        return lib.SegformerConfig(**stages, decoder_hidden_size=16, **_NAMES)
    if kind == "upernet":
        swin = lib.SwinConfig(
            **square, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        auxiliary = {"auxiliary_in_channels": 32, "auxiliary_channels": 8}
        return lib.UperNetConfig(backbone_config=swin, hidden_size=16, pool_scales=[1, 2], **auxiliary, **_NAMES)
    if kind in ("beit", "data2vec-vision"):
        make = lib.BeitConfig if kind == "beit" else lib.Data2VecVisionConfig
        return make(**square, **patch, **_VIT, **tower, use_relative_position_bias=True, **_NAMES)
    if kind == "dpt":
        neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
        return lib.DPTConfig(**square, **patch, **_VIT, **neck, is_hybrid=False, **_NAMES)
    if kind == "mobilevit":
        widths = {"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]}
        return lib.MobileViTConfig(**widths, num_attention_heads=2, **aspp)
    if kind == "mobilevitv2":
        units = {"n_attn_blocks": [1] * 3, "base_attn_unit_dims": [16] * 3}
        return lib.MobileViTV2Config(width_multiplier=0.25, **units, **aspp)
    if kind == "mobilenet_v2":
        return lib.MobileNetV2Config(depth_multiplier=0.25, depth_divisible_by=4, min_depth=4, **square, **_NAMES)
    if kind == "sapiens2":
        head = {"upsample_out_channels": [16, 8], "conv_out_channels": [8]}
        vit = {**_VIT, "num_hidden_layers": 2}
        return lib.Sapiens2Config(image_size=list(size_of(kind)), **patch, **vit, head_config=head, **_NAMES)
    if kind == "tipsv2_dpt":
        vit = lib.Tipsv2VisionConfig(
            **square, **patch, **_VIT, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False
        )
        neck = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
        return lib.Tipsv2DptConfig(backbone_config=vit, **neck, **_NAMES)
    if kind == "detr":
        resnet = lib.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        return lib.DetrConfig(
            backbone_config=resnet, use_timm_backbone=False, d_model=64, encoder_layers=1, decoder_layers=1,
            encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=QUERIES, **_NAMES,
        )  # fmt: skip
    if kind == "eomt_dinov3":
        return lib.EomtDinov3Config(**{**_VIT, "num_hidden_layers": 3}, **eomt)
    if kind == "videomt":
        return lib.VideomtConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, **eomt)
    if kind == "rf_detr":
        vit = {**_VIT}
        del vit["intermediate_size"]
        dino = lib.RfDetrDinov2Config(**square, **patch, **vit, num_windows=2, out_features=["stage2", "stage4"])
        heads = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "decoder_ffn_dim": 32}
        sizes = {"d_model": 32, "decoder_layers": 2, "num_queries": QUERIES, "group_detr": 2, "c2f_num_blocks": 1}
        return lib.RfDetrConfig(backbone_config=dino, **heads, **sizes, **_NAMES)
    return _sam3()


def _sam3() -> Any:
    lib = transformers
    small = {"hidden_size": 32, "num_attention_heads": 4}
    one = {**small, "num_layers": 1, "intermediate_size": 32}
    side = size_of("sam3")[0]
    vit = lib.Sam3ViTConfig(
        **small, intermediate_size=32, num_hidden_layers=2, image_size=side, patch_size=14, window_size=2,
        global_attn_indexes=[1], pretrain_image_size=side,
    )  # fmt: skip
    sizes = [[16, 16], [8, 8], [4, 4]]
    ends = {"bos_token_id": 55, "eos_token_id": 56, "pad_token_id": 56}
    text = lib.CLIPTextConfig(
        **small, vocab_size=64, intermediate_size=32, projection_dim=32, num_hidden_layers=1,
        max_position_embeddings=32, **ends,
    )  # fmt: skip
    return lib.Sam3Config(
        vision_config=lib.Sam3VisionConfig(backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=sizes),
        text_config=text,
        geometry_encoder_config=lib.Sam3GeometryEncoderConfig(**one),
        detr_encoder_config=lib.Sam3DETREncoderConfig(**one),
        detr_decoder_config=lib.Sam3DETRDecoderConfig(**one, num_queries=QUERIES),
        mask_decoder_config=lib.Sam3MaskDecoderConfig(**small),
    )


def write_tokenizer(folder: Path) -> None:
    """CLIP's format with the letters and three merges: it can spell every word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = [("t", "h"), ("th", "e</w>"), ("i", "s</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _even_out(model: Any, size: tuple[int, int]) -> None:
    """Shift and scale the classes of a per-pixel network so that each wins somewhere."""
    *_, head = (
        each
        for name, each in model.named_modules()
        if len(NAMES) in (getattr(each, "out_channels", 0), getattr(each, "out_features", 0))
        and "auxiliary" not in name
    )
    logits = model(pixel_values=torch.randn(4, 3, *size).repeat_interleave(4, 0)).logits
    spread, mean = logits.std((0, 2, 3)).clamp(min=1e-2), logits.mean((0, 2, 3))
    head.weight.div_(spread.reshape(-1, *[1] * (head.weight.ndim - 1)))
    head.bias.sub_(mean).div_(spread)


def write_model(kind: str, folder: Path) -> None:
    """Save a random model and its preprocessor."""
    torch.manual_seed(1)
    model = getattr(transformers, _CLASSES[kind][0])(_config(kind)).eval()
    with torch.no_grad():
        # Far from the initial values, where most classes would be a tie.
        for name, parameter in model.named_parameters():
            parameter.add_((2.0 if "class" in name else 0.1) * torch.randn_like(parameter))
        if kind in PIXEL:
            _even_out(model, size_of(kind))
    model.save_pretrained(folder)
    processor = processor_class(kind)
    if processor is not None:
        processor(**_settings(kind)).save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(_settings(kind)))
    if kind == "sam3":
        write_tokenizer(folder)
