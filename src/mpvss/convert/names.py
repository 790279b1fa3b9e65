"""Names of parameters: the published ones, of a Mask2Former in its original naming and the motion module, and ours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mpvss.convert.architectures import STAGES
from mpvss.errors import ModelError
from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.query_flow import QueryFlow

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

MOTION_PREFIX = "motion."

# What a published checkpoint may hold that is no parameter: derived indices, counters and constants.
_DERIVED = ("relative_position_index", "num_batches_tracked", "empty_weight", "pixel_mean", "pixel_std")
_HEAD = "sem_seg_head.predictor"
_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_OUR_DECODER = "model.transformer_module.decoder"
_OUR_PIXEL_DECODER = "model.pixel_level_module.decoder"
_OUR_BACKBONE = "model.pixel_level_module.encoder"


class _Origin(NamedTuple):
    """Where one of our parameters comes from: a published name, and which third of it where three are stacked."""

    name: str
    third: int | None = None


def _leaves(ours: str, published: str, leaves: Iterable[str] = ("weight", "bias")) -> dict[str, _Origin]:
    return {f"{ours}.{leaf}": _Origin(f"{published}.{leaf}") for leaf in leaves}


def _thirds(ours: Sequence[str], published: str) -> dict[str, _Origin]:
    """Spread a stacked projection, whose names end in ``weight`` and ``bias``, over three layers."""
    return {
        f"{name}.{leaf}": _Origin(f"{published}{leaf}", third)
        for third, name in enumerate(ours)
        for leaf in ("weight", "bias")
    }


def _motion_origins(config: QueryFlowConfig) -> dict[str, _Origin]:
    origins: dict[str, _Origin] = {}
    for stage, depth in enumerate(config.encoder_depths):
        for number in range(depth):
            origins |= _leaves(f"encoder.stages.{stage}.{2 * number}", f"encoder.conv{stage + 1}.{number}.conv")
    # The published names count the pixel flow's stages down: the flow of stage 6 is predicted first.
    last = len(config.encoder_channels)
    for step, stage in enumerate(range(last, config.flow_stage, -1)):
        weight = ("weight",)
        origins |= _leaves(f"pixel_flow.predict.{step}", f"decoder.predict_flow{stage}.conv", weight)
        origins |= _leaves(f"pixel_flow.upsample_flow.{step}", f"decoder.upsample_flow{stage - 1}.conv", weight)
        origins |= _leaves(f"pixel_flow.upsample_features.{step}", f"decoder.deconv{stage - 1}.conv", weight)
    origins |= _leaves(f"pixel_flow.predict.{last - config.flow_stage}", "decoder.predict_flow.conv", ("weight",))
    for level in range(config.levels):
        origins |= _leaves(f"projections.{level}", f"decoder.input_proj.{level}")
    for index in range(config.layers):
        attention = f"decoder.transformer_self_attention_layers.{index}"
        origins |= {
            f"layers.{index}.attention_in.{leaf}": _Origin(f"{attention}.self_attn.in_proj_{leaf}")
            for leaf in ("weight", "bias")
        }
        origins |= _leaves(f"layers.{index}.attention_out", f"{attention}.self_attn.out_proj")
        origins |= _leaves(f"layers.{index}.attention_norm", f"{attention}.norm")
        ffn = f"decoder.transformer_ffn_layers.{index}"
        origins |= _leaves(f"layers.{index}.ffn.layers.0", f"{ffn}.linear1")
        origins |= _leaves(f"layers.{index}.ffn.layers.1", f"{ffn}.linear2")
        origins |= _leaves(f"layers.{index}.ffn_norm", f"{ffn}.norm")
    for index in range(3):
        origins |= _leaves(f"query_filter.layers.{index}", f"decoder.output_head.layers.{index}")
        origins |= _leaves(f"motion_map.layers.{index}", f"decoder.scale_layer.layers.{index}")
    origins |= _leaves("norm", "decoder.decoder_norm")
    origins |= _leaves("fusion", "decoder.fuse_layer.conv")
    origins["query_embedding"] = _Origin("decoder.query_embed.weight")
    origins["level_embedding"] = _Origin("decoder.level_embed.weight")
    return origins


def _gather(
    published: Mapping[str, Tensor], origins: Mapping[str, _Origin], shapes: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Rename, and list every published parameter that is missing, unexpected or misshapen."""
    used = {origin.name for origin in origins.values()}
    problems = [f"  missing: {name}" for name in sorted(used - set(published))]
    problems += [
        f"  unexpected: {name}" for name in sorted(set(published) - used) if name.rpartition(".")[2] not in _DERIVED
    ]
    state: dict[str, Tensor] = {}
    for ours, (name, third) in origins.items():
        if name not in published:
            continue
        value, expected = published[name], list(shapes[ours].shape)
        if third is not None:
            expected[0] *= 3
        if list(value.shape) != expected:
            line = f"  misshapen: {name}, expected {tuple(expected)}, got {tuple(value.shape)}"
            if line not in problems:
                problems.append(line)
            continue
        state[ours] = value if third is None else value.chunk(3)[third].clone()
    if problems:
        raise ModelError(
            f"the parameters of the {what} are not as published; nothing was converted:\n" + "\n".join(problems)
        )
    return state


def convert_motion_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published parameters of the motion module to those of ``QueryFlow``.

    The number of queries is taken from the parameters; values and dtype stay.

    Args:
        published: Names as published, with or without the prefix ``motion.``.

    Returns:
        A state dict that ``QueryFlow(num_queries=...)`` loads with ``strict=True``.

    Raises:
        ModelError: Parameters are missing, unexpected or misshapen; the message lists all of them.
    """
    names = {name.removeprefix(MOTION_PREFIX): value for name, value in published.items()}
    embedding = names.get("decoder.query_embed.weight")
    queries = embedding.shape[0] if embedding is not None and embedding.dim() == 2 and embedding.numel() else None
    config = QueryFlowConfig() if queries is None else QueryFlowConfig(num_queries=queries)
    with torch.device("meta"):
        shapes = QueryFlow(config).state_dict()
    return _gather(names, _motion_origins(config), shapes, "motion module")


def _count(published: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbers, from 0 on without a gap, make a prefix of some name; ``{}`` stands for the number."""
    number = 0
    while any(name.startswith(pattern.format(number)) for name in published):
        number += 1
    return number


def infer_segmentor_config(published: Mapping[str, Tensor]) -> "Mask2FormerConfig":
    """Read a Mask2Former's configuration off the shapes of its parameters in the original naming.

    Args:
        published: ``backbone.*`` (a ResNet or a Swin Transformer) and ``sem_seg_head.*``.

    Raises:
        ModelError: A parameter that is needed for it is missing.
    """
    from transformers import Mask2FormerConfig

    try:
        is_swin = "backbone.patch_embed.proj.weight" in published
        backbone = _infer_swin(published) if is_swin else _infer_resnet(published)
        encoder = f"{_PIXEL_DECODER}.transformer.encoder.layers"
        offsets = published[f"{encoder}.0.self_attn.sampling_offsets.weight"]
        num_queries, hidden = published[f"{_HEAD}.query_feat.weight"].shape
        return Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=offsets.shape[1],
            mask_feature_size=published[f"{_PIXEL_DECODER}.mask_features.weight"].shape[0],
            hidden_dim=hidden,
            encoder_layers=_count(published, f"{encoder}.{{}}."),
            encoder_feedforward_dim=published[f"{encoder}.0.linear1.weight"].shape[0],
            # One more than the layers: the queries before the first layer give masks, too.
            decoder_layers=_count(published, f"{_HEAD}.transformer_ffn_layers.{{}}.") + 1,
            dim_feedforward=published[f"{_HEAD}.transformer_ffn_layers.0.linear1.weight"].shape[0],
            num_attention_heads=offsets.shape[0] // 24,  # 3 levels, 4 points, 2 coordinates
            num_queries=num_queries,
            num_labels=published[f"{_HEAD}.class_embed.weight"].shape[0] - 1,
        )
    except KeyError as error:
        raise ModelError(f"the segmentor is no Mask2Former in its original naming: {error} is missing") from error


def _infer_swin(published: Mapping[str, Tensor]) -> "SwinConfig":
    from transformers import SwinConfig

    stages = range(len(STAGES))
    tables = [published[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]
    window = (int(tables[0].shape[0] ** 0.5) + 1) // 2
    patches = published["backbone.patch_embed.proj.weight"]
    return SwinConfig(
        embed_dim=patches.shape[0],
        patch_size=patches.shape[2],
        depths=[_count(published, f"backbone.layers.{i}.blocks.{{}}.") for i in stages],
        num_heads=[table.shape[1] for table in tables],
        mlp_ratio=published["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patches.shape[0],
        window_size=window,
        image_size=32 * window,
        drop_path_rate=0.3,
        out_features=STAGES,
    )


def _infer_resnet(published: Mapping[str, Tensor]) -> "ResNetConfig":
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=published["backbone.stem.conv1.weight"].shape[0],
        hidden_sizes=[published[f"backbone.res{i}.0.conv3.weight"].shape[0] for i in range(2, 6)],
        depths=[_count(published, f"backbone.res{i}.{{}}.") for i in range(2, 6)],
        out_features=STAGES,
    )


def _resnet_origins(depths: Sequence[int]) -> dict[str, _Origin]:
    def convolution(ours: str, published: str) -> dict[str, _Origin]:
        norm = ("weight", "bias", "running_mean", "running_var")
        return _leaves(f"{ours}.convolution", published, ("weight",)) | _leaves(
            f"{ours}.normalization", f"{published}.norm", norm
        )

    origins = convolution(f"{_OUR_BACKBONE}.embedder.embedder", "backbone.stem.conv1")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours = f"{_OUR_BACKBONE}.encoder.stages.{stage}.layers.{block}"
            published = f"backbone.res{stage + 2}.{block}"
            for number in range(3):
                origins |= convolution(f"{ours}.layer.{number}", f"{published}.conv{number + 1}")
            if block == 0:
                origins |= convolution(f"{ours}.shortcut", f"{published}.shortcut")
    return origins


def _swin_origins(depths: Sequence[int]) -> dict[str, _Origin]:
    swin = f"{_OUR_BACKBONE}.swin"
    origins = _leaves(f"{swin}.embeddings.patch_embeddings.projection", "backbone.patch_embed.proj")
    origins |= _leaves(f"{swin}.embeddings.norm", "backbone.patch_embed.norm")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours = f"{swin}.encoder.layers.{stage}.blocks.{block}"
            published = f"backbone.layers.{stage}.blocks.{block}"
            origins |= _thirds([f"{ours}.attention.{part}_proj" for part in "qkv"], f"{published}.attn.qkv.")
            table = "relative_position_bias_table"
            origins[f"{ours}.attention.relative_position_bias.{table}"] = _Origin(f"{published}.attn.{table}")
            origins |= _leaves(f"{ours}.attention.o_proj", f"{published}.attn.proj")
            origins |= _leaves(f"{ours}.layernorm_before", f"{published}.norm1")
            origins |= _leaves(f"{ours}.layernorm_after", f"{published}.norm2")
            origins |= _leaves(f"{ours}.mlp.fc1", f"{published}.mlp.fc1")
            origins |= _leaves(f"{ours}.mlp.fc2", f"{published}.mlp.fc2")
        if stage + 1 < len(depths):
            ours, published = f"{swin}.encoder.layers.{stage}.downsample", f"backbone.layers.{stage}.downsample"
            origins |= _leaves(f"{ours}.reduction", f"{published}.reduction", ("weight",))
            origins |= _leaves(f"{ours}.norm", f"{published}.norm")
        origins |= _leaves(f"{_OUR_BACKBONE}.hidden_states_norms.stage{stage + 1}", f"backbone.norm{stage}")
    return origins


def _segmentor_origins(config: "Mask2FormerConfig") -> dict[str, _Origin]:
    depths = config.backbone_config.depths
    origins = _swin_origins(depths) if config.backbone_config.model_type == "swin" else _resnet_origins(depths)

    ours, published = _OUR_PIXEL_DECODER, _PIXEL_DECODER
    for level in range(3):
        for number in range(2):
            position = f"{level}.{number}"
            origins |= _leaves(f"{ours}.input_projections.{position}", f"{published}.input_proj.{position}")
    origins[f"{ours}.level_embed"] = _Origin(f"{published}.transformer.level_embed")
    for index in range(config.encoder_layers):
        layer, original = f"{ours}.encoder.layers.{index}", f"{published}.transformer.encoder.layers.{index}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            origins |= _leaves(f"{layer}.self_attn.{part}", f"{original}.self_attn.{part}")
        origins |= _leaves(f"{layer}.self_attn_layer_norm", f"{original}.norm1")
        origins |= _leaves(f"{layer}.fc1", f"{original}.linear1")
        origins |= _leaves(f"{layer}.fc2", f"{original}.linear2")
        origins |= _leaves(f"{layer}.final_layer_norm", f"{original}.norm2")
    origins |= _leaves(f"{ours}.mask_projection", f"{published}.mask_features")
    for part in ("adapter_1", "layer_1"):
        origins |= _leaves(f"{ours}.{part}.0", f"{published}.{part}", ("weight",))
        origins |= _leaves(f"{ours}.{part}.1", f"{published}.{part}.norm")

    ours, published = _OUR_DECODER, _HEAD
    for index in range(config.decoder_layers - 1):
        layer, original = f"{ours}.layers.{index}", f"{published}.transformer_self_attention_layers.{index}"
        projections = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
        origins |= _thirds(projections, f"{original}.self_attn.in_proj_")
        origins |= _leaves(f"{layer}.self_attn.out_proj", f"{original}.self_attn.out_proj")
        origins |= _leaves(f"{layer}.self_attn_layer_norm", f"{original}.norm")
        original = f"{published}.transformer_cross_attention_layers.{index}"
        stacked = ("in_proj_weight", "in_proj_bias")
        origins |= _leaves(f"{layer}.cross_attn", f"{original}.multihead_attn", stacked)
        origins |= _leaves(f"{layer}.cross_attn.out_proj", f"{original}.multihead_attn.out_proj")
        origins |= _leaves(f"{layer}.cross_attn_layer_norm", f"{original}.norm")
        original = f"{published}.transformer_ffn_layers.{index}"
        origins |= _leaves(f"{layer}.fc1", f"{original}.linear1")
        origins |= _leaves(f"{layer}.fc2", f"{original}.linear2")
        origins |= _leaves(f"{layer}.final_layer_norm", f"{original}.norm")
    origins |= _leaves(f"{ours}.layernorm", f"{published}.decoder_norm")
    for index in range(3):
        origins |= _leaves(f"{ours}.mask_predictor.mask_embedder.{index}.0", f"{published}.mask_embed.layers.{index}")
    module = "model.transformer_module"
    origins |= _leaves(f"{module}.queries_features", f"{published}.query_feat", ("weight",))
    origins |= _leaves(f"{module}.queries_embedder", f"{published}.query_embed", ("weight",))
    origins |= _leaves(f"{module}.level_embed", f"{published}.level_embed", ("weight",))
    origins |= _leaves("class_predictor", f"{published}.class_embed")
    return origins


def convert_segmentor_state_dict(published: Mapping[str, Tensor], config: "Mask2FormerConfig") -> dict[str, Tensor]:
    """Rename a Mask2Former from its original naming to that of the transformers library.

    Args:
        published: ``backbone.*`` (a ResNet or a Swin Transformer) and ``sem_seg_head.*``.
        config: As ``infer_segmentor_config`` gives it.

    Returns:
        Every published parameter under its new name. The library's model has a little more that has no effect on its
        output: the backbone's unused last norm, counters, and the loss's class weights.

    Raises:
        ModelError: Parameters are missing, unexpected or misshapen; the message lists all of them.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    with torch.device("meta"):
        shapes = Mask2FormerForUniversalSegmentation(config).state_dict()
    return _gather(published, _segmentor_origins(config), shapes, "segmentor")
