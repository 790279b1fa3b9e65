"""Published checkpoints become ours: their parameters' names, and directories of config.json and model.safetensors.

A published checkpoint is one file with a Mask2Former in its original naming and, below ``motion.``, the motion module.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mpvss._files import atomic
from mpvss._hub import quiet_library
from mpvss._validate import shown
from mpvss.errors import ModelError, OutputError
from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.pretrained import read_config
from mpvss.motion.network.query_flow import PixelFlow, QueryFlow

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig

MOTION_PREFIX = "motion."
SEGMENTOR_FOLDER = "segmentor"

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
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone: ResNetConfig | SwinConfig
    try:
        if "backbone.patch_embed.proj.weight" in published:
            tables = [
                published[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(stages))
            ]
            window = (int(tables[0].shape[0] ** 0.5) + 1) // 2
            patches = published["backbone.patch_embed.proj.weight"]
            backbone = SwinConfig(
                embed_dim=patches.shape[0],
                patch_size=patches.shape[2],
                depths=[_count(published, f"backbone.layers.{i}.blocks.{{}}.") for i in range(len(stages))],
                num_heads=[table.shape[1] for table in tables],
                mlp_ratio=published["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patches.shape[0],
                window_size=window,
                image_size=32 * window,
                drop_path_rate=0.3,
                out_features=stages,
            )
        else:
            backbone = ResNetConfig(
                embedding_size=published["backbone.stem.conv1.weight"].shape[0],
                hidden_sizes=[published[f"backbone.res{i}.0.conv3.weight"].shape[0] for i in range(2, 6)],
                depths=[_count(published, f"backbone.res{i}.{{}}.") for i in range(2, 6)],
                out_features=stages,
            )
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
            place = f"{level}.{number}"
            origins |= _leaves(f"{ours}.input_projections.{place}", f"{published}.input_proj.{place}")
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


def convert_reference(path: str | Path, out: str | Path, class_names: Sequence[str] | None = None) -> None:
    """Turn a checkpoint of the published code into a checkpoint directory of ours.

    ``out`` then holds the motion module, and ``out/segmentor`` the segmentor as the transformers library loads it. Only
    tensors are unpickled. Nothing is written unless everything fits.

    Args:
        path: The published file; its state dict may be below ``model``.
        out: Directory to make; it must not exist or be empty.
        class_names: Names of the classes in the order of their ids; ``LABEL_0`` and so on by default.

    Raises:
        ModelError: The file cannot be read, holds more than tensors, or its parameters are not as published.
        OutputError: ``out`` has files in it, or cannot be written.
        ValueError: The number of class names is not the number of classes.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists already; name a new directory")
    published = _load_tensors(Path(path))
    motion_state = convert_motion_state_dict({k: v for k, v in published.items() if k.startswith(MOTION_PREFIX)})
    rest = {k: v for k, v in published.items() if not k.startswith(MOTION_PREFIX)}
    config = infer_segmentor_config(rest)
    segmentor_state = convert_segmentor_state_dict(rest, config)
    if class_names is not None:
        if len(class_names) != config.num_labels:
            raise ValueError(f"expected {config.num_labels} class names, got {len(class_names)}")
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}

    motion = QueryFlow(num_queries=motion_state["query_embedding"].shape[0])
    motion.to(motion_state["query_embedding"].dtype).load_state_dict(motion_state, strict=True)
    motion.segmentor = SEGMENTOR_FOLDER
    check_fits(motion, config.hidden_dim, config.num_queries)
    segmentor = Mask2FormerForUniversalSegmentation(config).to(segmentor_state["class_predictor.bias"].dtype)
    segmentor.load_state_dict(segmentor_state, strict=False)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(out, folder=True) as part:
            motion.save_pretrained(part)
            with quiet_library():
                segmentor.save_pretrained(part / SEGMENTOR_FOLDER)
            preprocessor = part / SEGMENTOR_FOLDER / "preprocessor_config.json"
            preprocessor.write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error})") from error


# How the published models see an image: RGB, the usual ImageNet statistics, sides a multiple of 32.
_PREPROCESSOR = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_resize": True,
    "size": {"shortest_edge": 480, "longest_edge": 2048},
    "size_divisor": 32,
    "ignore_index": 255,
}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    loaded = load_torch(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path}: expected a state dict, alone or below 'model'")
    for name, value in loaded.items():
        # Views of one value can have any shape, and would have to be written out.
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(f"{path}: {shown(name)} has more values than the file holds")
    return {str(name): value for name, value in loaded.items()}


def load_torch(path: Path) -> Any:
    """Read a file of PyTorch: tensors and plain values, nothing is executed.

    Raises:
        ModelError: There is none, it is damaged or compressed, or it holds other objects.
    """
    if not path.is_file():
        raise ModelError(f"{path}: expected a checkpoint file, got none")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, as PyTorch never writes it")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: no PyTorch checkpoint of tensors only. Loading other objects could run code, so they are "
            f"refused; save the state dict alone ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # at damaged bytes the unpickler raises whatever its instructions meet with
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: not a PyTorch checkpoint ({reason[:500]})") from error


def check_fits(motion: QueryFlow | PixelFlow, query_width: int, num_queries: int) -> None:
    """Refuse a motion module whose segmentor has other queries.

    Args:
        motion: The motion module; a ``PixelFlow`` fits every segmentor.
        query_width: Width of the segmentor's query embeddings.
        num_queries: Number of the segmentor's queries.

    Raises:
        ModelError: Number or width differs.
    """
    config = motion.config
    if isinstance(motion, QueryFlow) and (config.num_queries, config.query_width) != (num_queries, query_width):
        raise ModelError(
            f"the motion module is for {config.num_queries} queries of width {config.query_width}, the segmentor has "
            f"{num_queries} of width {query_width}; use the segmentor it was trained with, or train it for this one"
        )


MOTION_TYPES: dict[str, type[QueryFlow] | type[PixelFlow]] = {"query_flow": QueryFlow, "pixel_flow": PixelFlow}


def load_motion(name: str | Path, *, revision: str | None = None) -> QueryFlow | PixelFlow:
    """Load whichever motion module a checkpoint directory, or a repository on the Hub, holds.

    Args:
        name: A directory, or the id of a repository.
        revision: Branch, tag or commit of the repository.

    Raises:
        ModelError: It holds none, or one that does not fit its configuration.
    """
    kind = read_config(name, revision=revision)["model_type"]
    if kind not in MOTION_TYPES:
        raise ModelError(f"{name}: expected a model of type {' or '.join(MOTION_TYPES)}, got {shown(kind)}")
    return MOTION_TYPES[kind].from_pretrained(name, revision=revision)


def segmentor_of(name: str | Path) -> str | None:
    """Return what to load the segmentor of a checkpoint from: a directory inside it, a Hub id, or what the user says.

    A checkpoint of others may not point at other directories of this machine. The environment's ``MPVSS_SEGMENTOR``
    replaces what it says.

    Args:
        name: A checkpoint directory, or the id of a repository on the Hub.

    Raises:
        ModelError: The checkpoint has no configuration, or names a local directory that is not below its own.
    """
    from mpvss.segmentors import EMBEDDED

    if os.environ.get("MPVSS_SEGMENTOR"):
        return os.environ["MPVSS_SEGMENTOR"]
    segmentor = read_config(name).get("segmentor")
    if segmentor is None or segmentor in EMBEDDED:
        return segmentor
    inside = Path(name) / str(segmentor)
    if inside.is_dir() and inside.resolve().is_relative_to(Path(name).resolve()):
        return str(inside)
    if inside.exists() or Path(str(segmentor)).exists() or not _HUB_ID.fullmatch(str(segmentor)):
        raise ModelError(
            f"{name}: expected a segmentor below this directory or a hub id such as owner/name in config.json, got "
            f"{shown(segmentor)}; if you trust it, say so: MPVSS_SEGMENTOR={shown(str(segmentor))}"
        )
    return str(segmentor)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
