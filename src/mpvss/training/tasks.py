"""What is trained, as one module: a batch in, the terms of the loss out. One task for each stage."""

import copy
import difflib
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpvss._files import output_errors, write_json
from mpvss._hub import quiet_library
from mpvss.convert.architectures import segmentor_config
from mpvss.convert.checkpoint import load_motion
from mpvss.datasets.pairs import Batch
from mpvss.errors import ConfigError, ModelError
from mpvss.motion import PixelFlow, QueryFlow, QueryFlowConfig
from mpvss.motion.warp import resize_flow, warp
from mpvss.segmentors import InputRule, load_segmentor
from mpvss.segmentors.families import require_family
from mpvss.segmentors.huggingface import HuggingFaceSegmentor
from mpvss.segmentors.tensors import normalised
from mpvss.training.config import ModelConfig, TrainConfig
from mpvss.training.losses import (
    Layers,
    SetLoss,
    endpoint_error,
    label_loss,
    photometric,
    score_loss,
    shown_flow,
    shown_share,
)

Terms = dict[str, Tensor]
# Pixels of the padded image per pixel of the mask grid, in every family.
_MASK_STRIDE = 4
_DIFFERENCE_GAIN = 4.0


def predict_layers(
    model: Any, images: Float[Tensor, "B 3 H W"], *, every_layer: bool = True
) -> tuple[Layers, Float[Tensor, "B Q D"]]:
    """Return class and mask logits of each decoder layer, the last one last, and the final query embeddings.

    Args:
        model: A Mask2Former or a MaskFormer of the transformers library.
        images: Normalised and padded.
        every_layer: Whether to return all layers, or the last one alone.

    Raises:
        ModelError: The model's family cannot be trained.
    """
    layers, queries = require_family("the segmentor", model.config).layers(model, images)
    return (layers if every_layer else layers[-1:]), queries


# Batches


def pad_like(rule: InputRule, values: Tensor, fill: float | int) -> Tensor:
    """Pad at right and bottom to what the networks see; ``fill`` is the value there."""
    height, width = values.shape[-2:]
    padding = (0, -width % rule.multiple, 0, -height % rule.multiple)
    return F.pad(values, padding, value=fill) if any(padding) else values


class SegmentorTask(nn.Module):
    """The segmentor on single images, as it is trained per frame.

    Paper: section 4, the first stage of training.

    Args:
        segmentor: Trained from its weights as they are.
        config: The run's configuration.
    """

    def __init__(self, segmentor: HuggingFaceSegmentor, config: TrainConfig) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.model = segmentor.model.requires_grad_(True)
        self.loss = SetLoss(len(segmentor.class_names), config.loss)
        self._config = config
        for name in config.optim.frozen:
            named = [parameter for full, parameter in self.model.named_parameters() if full.startswith(name)]
            if not named:
                raise ConfigError(f"optim.frozen: the segmentor has no parameter that begins with {name!r}")
            for parameter in named:
                parameter.requires_grad_(False)
        if config.model.gradient_checkpointing:
            # Backbone and pixel decoder, where most of the memory is; the library offers it for none of the families.
            part = self.model.model.pixel_level_module
            part.forward = functools.partial(checkpoint, part.forward, use_reentrant=False)

    def train(self, mode: bool = True) -> "SegmentorTask":
        """Set the mode; batch norm keeps its statistics, which those of few images would spoil."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, batch: Batch) -> Terms:
        """Return the weighted terms of the loss of the current frames."""
        rule, weights = self.segmentor.rule, self._config.loss
        labels = pad_like(rule, _labels(batch.current_label, batch), 255)
        layers, _ = predict_layers(self.model, pixels(rule, batch.current), every_layer=weights.every_layer)
        terms = {}
        if weights.sets:
            terms["sets"] = weights.sets * self.loss.total(layers, labels)
        if weights.scores:
            terms["scores"] = weights.scores * score_loss(*layers[-1], labels)
        return terms

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay."""
        return _groups(self.model, self._config, backbone="pixel_level_module.encoder")

    def trained(self) -> nn.Module:
        """The module whose weights are the result."""
        model: nn.Module = self.model
        return model

    def export(self, directory: Path) -> None:
        """Write the segmentor as ``--model`` takes it."""
        save_segmentor(self.segmentor, directory)


class MotionTask(nn.Module):
    """The motion module for a segmentor that is frozen, in evaluation mode, except for its named heads.

    The key frame's masks of every decoder layer are warped by one flow and compared with the current frame's labels.

    Paper: section 4, the second stage of training. Differs from the paper: may add the distance to a known flow, a
    photometric term, and the likelihood of the class scores.

    Args:
        segmentor: Its weights are read only, but for the heads.
        motion: Trained.
        config: The run's configuration.
    """

    def __init__(self, segmentor: HuggingFaceSegmentor, motion: QueryFlow | PixelFlow, config: TrainConfig) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.model = segmentor.model.eval().requires_grad_(False)
        self.motion = motion.requires_grad_(True)
        self.loss = SetLoss(len(segmentor.class_names), config.loss)
        self._config = config
        known = [name for name, _ in self.model.named_modules() if name]
        # The pixel flow of each grid but the finest, kept while the motion module runs.
        self._coarse: list[Tensor] = []
        if config.loss.coarse and hasattr(motion, "pixel_flow"):
            for predict in motion.pixel_flow.predict[:-1]:
                predict.register_forward_hook(lambda _, __, made: self._coarse.append(made))
        self.heads = []
        for name in config.model.heads:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known, 3, 0.3))
                raise ConfigError(f"model.heads: the segmentor has no module {name!r}; near: {near}")
            self.heads.append(self.model.get_submodule(name).requires_grad_(True))

    def train(self, mode: bool = True) -> "MotionTask":
        """Set the mode of the motion module; the segmentor stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def flow(
        self, batch: Batch, queries: Float[Tensor, "B Q D"] | None, grid: tuple[int, int]
    ) -> Float[Tensor, "B G 2 h w"]:
        """The student's flow on the mask grid."""
        now, then = batch.current.float(), batch.key.float()
        self._coarse.clear()
        flow = self.motion(now, then) if isinstance(self.motion, PixelFlow) else self.motion(now, then, queries)
        return resize_flow(flow.float().flatten(0, 1), grid).reshape(*flow.shape[:3], *grid)

    def propagate(self, batch: Batch) -> tuple[Layers, Float[Tensor, "B G 2 h w"]]:
        """Return the key frames' predictions with their masks warped to the current frames, and the flow."""
        weights = self._config.loss
        images = pixels(self.segmentor.rule, batch.key)
        with torch.set_grad_enabled(bool(self.heads) and torch.is_grad_enabled()):
            layers, queries = predict_layers(self.model, images, every_layer=weights.every_layer and weights.sets > 0)
        grid = (layers[-1][1].shape[-2], layers[-1][1].shape[-1])
        flow = self.flow(batch, queries.float(), grid)
        warped = _warp_layers([masks.float() for _, masks in layers], flow)
        return [(classes, masks) for (classes, _), masks in zip(layers, warped, strict=True)], flow

    def forward(self, batch: Batch) -> Terms:
        """Return the weighted terms of the loss."""
        rule, weights = self.segmentor.rule, self._config.loss
        labels = pad_like(rule, _labels(batch.current_label, batch), 255)
        terms: Terms = {}
        share = None
        if weights.sets or weights.scores or isinstance(self.motion, QueryFlow):
            layers, flow = self.propagate(batch)
            classes, masks = layers[-1]
            if weights.sets:
                terms["sets"] = weights.sets * self.loss.total(layers, labels)
            if weights.scores:
                terms["scores"] = weights.scores * score_loss(classes, masks, labels)
            share = shown_share(classes, masks).detach()
        else:
            flow = self.flow(batch, None, (labels.shape[-2] // _MASK_STRIDE, labels.shape[-1] // _MASK_STRIDE))
        grid = (flow.shape[-2], flow.shape[-1])
        shown = flow[:, 0] if share is None else shown_flow(flow, share)
        if weights.labels:
            before = pad_like(rule, _labels(batch.key_label, batch), 255)
            terms["labels"] = weights.labels * label_loss(labels, before, shown, len(self.segmentor.class_names))
        if weights.flow and batch.flow is not None and batch.visible is not None:
            truth, visible = _to_grid(rule, batch.flow, batch.visible, grid)
            stride = labels.shape[-1] / grid[1]
            terms["flow"] = weights.flow * endpoint_error(flow * stride, truth, visible, share)
            for coarse in self._coarse:
                finer = F.interpolate(coarse.float(), size=grid, mode="bilinear", align_corners=False)
                error = weights.coarse * endpoint_error(finer[:, None] * stride, truth, visible, None)
                terms["coarse"] = terms.get("coarse", 0.0) + error
        if weights.photometric:
            now, then = (_pool(pad_like(rule, x.float() / 255, 0.0), grid) for x in (batch.current, batch.key))
            inside = _pool(pad_like(rule, torch.ones_like(batch.current[:, :1]).float(), 0.0), grid)
            terms["photometric"] = weights.photometric * photometric(now, then, shown, inside[:, 0])
        return terms

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay."""
        groups = _groups(self.motion, self._config)
        for head in self.heads:
            groups += _groups(head, self._config)
        return groups

    def trained(self) -> nn.Module:
        """The modules whose weights are the result."""
        return nn.ModuleDict({"motion": self.motion, "heads": nn.ModuleList(self.heads)})

    def export(self, directory: Path) -> None:
        """Write the motion module as ``--model`` takes it; with trained heads, or a local one, also the segmentor."""
        source = self._config.model.segmentor
        # A motion module names no directory that is not below its own.
        if self.heads or (source is not None and Path(source).is_dir()):
            save_segmentor(self.segmentor, directory / "segmentor")
            self.motion.segmentor = "segmentor"
        else:
            self.motion.segmentor = source
        self.motion.save_pretrained(directory)


Task = SegmentorTask | MotionTask


def pixels(rule: InputRule, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 Hp Wp"]:
    """What a segmentor's model takes: normalised, padded, channels last."""
    return normalised(rule, images).contiguous(memory_format=torch.channels_last)


def _labels(label: Int64[Tensor, "B H W"] | None, batch: Batch) -> Int64[Tensor, "B H W"]:
    return torch.full_like(batch.current[:, 0], 255, dtype=torch.int64) if label is None else label


def _warp_layers(
    layers: list[Float[Tensor, "B Q h w"]], flow: Float[Tensor, "B G 2 h w"]
) -> list[Float[Tensor, "B Q h w"]]:
    """Warp the masks of all layers by the same flow, one for each query or one for all."""
    if flow.shape[1] == 1:
        return list(warp(torch.cat(layers, 1), flow[:, 0]).chunk(len(layers), 1))
    stacked = torch.stack(layers, 2)  # (B, Q, layers, h, w)
    return list(warp(stacked.flatten(0, 1), flow.flatten(0, 1)).view_as(stacked).unbind(2))


def _pool(values: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Average over the cells of a grid that divides the image."""
    return F.avg_pool2d(values, (values.shape[-2] // grid[0], values.shape[-1] // grid[1]))


def _to_grid(
    rule: InputRule, flow: Float[Tensor, "B 2 H W"], visible: Bool[Tensor, "B H W"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "B 2 h w"], Float[Tensor, "B h w"]]:
    """Average a flow, still in pixels of the image, over the visible pixels of each cell; and their share."""
    known = pad_like(rule, visible[:, None].float(), 0.0)
    share = _pool(known, grid)
    mean = _pool(pad_like(rule, flow, 0.0) * known, grid) / share.clamp(min=1e-6)
    return mean, share[:, 0]


def _groups(module: nn.Module, config: TrainConfig, backbone: str = "") -> list[dict[str, Any]]:
    """Weights with decay and all else without; the backbone with its own rate."""
    undecayed = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm | nn.Embedding)
        for parameter in part.parameters()
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = bool(backbone) and backbone in name
            groups.setdefault((inside, parameter.ndim > 1 and id(parameter) not in undecayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": config.optim.lr * (config.optim.backbone_lr if inside else 1.0),
            "weight_decay": config.optim.weight_decay if decays else 0.0,
        }
        for (inside, decays), parameters in groups.items()
    ]


# Making and saving


def make_task(config: TrainConfig, class_names: tuple[str, ...], device: torch.device) -> Task:
    """Build or load what a run trains.

    Args:
        config: The run's configuration.
        class_names: Classes of the data.
        device: Where the segmentor is put.

    Raises:
        ModelError: The segmentor or a motion module cannot be loaded.
        ConfigError: The segmentor's classes are not those of the data, or a setting does not fit the model.
    """
    segmentor = _make_segmentor(config.model, class_names, device)
    if len(segmentor.class_names) != len(class_names):
        raise ConfigError(
            f"the segmentor {segmentor.name} has {len(segmentor.class_names)} classes, the data {len(class_names)}; "
            "train stage segmentor with model.new_classes: true first"
        )
    if config.stage == "segmentor":
        return SegmentorTask(segmentor, config)
    return MotionTask(segmentor, _make_motion(config.model, segmentor).to(device), config)


def _make_segmentor(config: ModelConfig, class_names: tuple[str, ...], device: torch.device) -> HuggingFaceSegmentor:
    import transformers

    names = dict(enumerate(class_names))
    if config.arch is not None:
        shape = segmentor_config(config.arch, len(class_names))
        shape.id2label, shape.label2id = names, {name: index for index, name in names.items()}
        model = transformers.Mask2FormerForUniversalSegmentation(shape)
        if config.backbone is not None:
            _load_backbone(model, config.backbone)
        return HuggingFaceSegmentor(model.to(device), InputRule(short_side=480), name=config.arch)
    assert config.segmentor is not None
    segmentor = load_segmentor(config.segmentor, device=device)
    if not config.new_classes:
        return segmentor
    shape = copy.deepcopy(segmentor.model.config)
    shape.id2label, shape.label2id = names, {name: index for index, name in names.items()}
    model = type(segmentor.model)(shape)
    expected = model.state_dict()
    kept = {name: value for name, value in segmentor.model.state_dict().items() if value.shape == expected[name].shape}
    model.load_state_dict(kept, strict=False)
    return HuggingFaceSegmentor(model.to(device), segmentor.rule, name=segmentor.name)


def _load_backbone(model: Any, name: str) -> None:

    encoder = model.model.pixel_level_module.encoder
    try:
        source, report = type(encoder).from_pretrained(name, config=encoder.config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: cannot load the backbone: {str(error).splitlines()[0]}") from error
    # The norms of a Swin's stages belong to the segmentor; a classifier has none.
    wrong = [key for key in report["missing_keys"] if "hidden_states_norms" not in key]
    wrong += [str(key) for key in report["mismatched_keys"]]
    if wrong:
        raise ModelError(f"{name}: not the backbone of model.arch: {sorted(wrong)[0]} is missing or of another shape")
    encoder.load_state_dict(source.state_dict())


def _make_motion(config: ModelConfig, segmentor: HuggingFaceSegmentor) -> QueryFlow | PixelFlow:
    kind = QueryFlow if config.propagator == "query" else PixelFlow
    settings = {"num_queries": segmentor.num_queries, "query_width": segmentor.query_width}
    for name in config.motion:
        if name in settings:
            raise ConfigError(f"model.motion.{name} is the segmentor's, leave it out")
    motion: QueryFlow | PixelFlow = kind(QueryFlowConfig.from_dict(settings | config.motion))
    if config.start_from is None:
        initialise(motion)
    else:
        _start_from(motion, load_motion(config.start_from), config.start_from)
    return motion


@torch.no_grad()
def initialise(motion: QueryFlow | PixelFlow) -> None:
    """Let the first convolution see how the two images differ: one half of its filters their difference, enlarged.

    The other half sees their sum. Random filters have to learn that first. Distance to the true flow after 400 steps
    on simulated pairs, as a share of that of zero flow: 0.84 from random filters, 0.67 with these (times 1: 0.84, times
    8: 0.69, times 16: 0.78).
    """
    first = motion.encoder.stages[0]
    assert isinstance(first, nn.Sequential)
    weight = first[0].get_parameter("weight")
    half = len(weight) // 2
    weight[:, 3:] = weight[:, :3]
    weight[:half, 3:] *= -1
    weight[:half] *= _DIFFERENCE_GAIN


@torch.no_grad()
def _start_from(motion: QueryFlow | PixelFlow, source: QueryFlow | PixelFlow, name: str) -> None:
    """Copy the weights; a ``QueryFlow`` may start from a ``PixelFlow``, whose flow it then gives to every query."""
    if source.config != motion.config:
        raise ConfigError(f"model.start_from: {name} has another shape than model.motion")
    if isinstance(motion, PixelFlow) and isinstance(source, QueryFlow):
        raise ConfigError(f"model.start_from: {name} has a flow for each query, and one for all is to be trained")
    missing = motion.load_state_dict(source.state_dict(), strict=False).missing_keys
    if "fusion.weight" in missing and isinstance(motion, QueryFlow):
        motion.fusion.weight[[0, 1], [0, 1], 1, 1] = 1.0


def save_segmentor(segmentor: HuggingFaceSegmentor, directory: Path) -> None:
    """Write weights, configuration and input rule as ``load_segmentor`` reads them.

    Raises:
        OutputError: They cannot be written.
    """
    with output_errors(directory), quiet_library():
        directory.mkdir(parents=True, exist_ok=True)
        segmentor.model.save_pretrained(directory)
    rule = segmentor.rule
    size = None if rule.short_side is None else {"shortest_edge": rule.short_side}
    if size is not None and rule.long_side is not None:
        size["longest_edge"] = rule.long_side
    settings = {
        "do_resize": size is not None,
        "image_mean": [value / 255 for value in rule.mean],
        "image_std": [value / 255 for value in rule.std],
    }
    if size is not None:
        settings["size"] = size
    write_json(directory / "preprocessor_config.json", settings)
