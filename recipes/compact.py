"""Train the embedded default, ``compact``, on CamVid: what the package's trainer does not do by itself.

    python recipes/compact.py start --weights efficientnet-lite0-57934424.pth --out runs/compact-start
    python recipes/compact.py train recipes/compact-first.yaml
    python recipes/compact.py train recipes/compact-second.yaml
    python recipes/compact.py export runs/compact-second --out assets

The loss has, besides the set loss of mask classification and the likelihood of the class scores, a cross entropy of
the pixel decoder's features, which speeds up the first epochs and is thrown away, and in later stages the Lovasz
extension of the class scores' intersection over union. Steps, crops and rates are in the YAML files; README.md says how
the shipped weights were made.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

from mpvss.datasets.augment import Pair
from mpvss.datasets.pairs import Batch
from mpvss.labels import IGNORE
from mpvss.segmentors import HuggingFaceSegmentor, InputRule, load_segmentor
from mpvss.segmentors.efficientnet import LITE0_GROUPS, EfficientNetLiteConfig, register
from mpvss.training.config import TrainConfig, load_config
from mpvss.training.loop import TrainSummary, train
from mpvss.training.losses import soft_targets
from mpvss.training.samples import Samples, open_samples
from mpvss.training.tasks import SegmentorTask, Terms, make_task, pad_like, pixels, predict_layers, save_segmentor

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
# Classes of few pixels, which are pasted into other images: poles, signs, fences, pedestrians, bicyclists.
RARE = (2, 6, 7, 9, 10)
# The initial weights were trained with pixels mapped as (x - 127) / 128.
RULE = InputRule(short_side=480, long_side=1280, mean=(127.0,) * 3, std=(128.0,) * 3)
GREY = 127


@dataclass(frozen=True)
class Stage:
    """What a stage of the recipe has besides its YAML file.

    Attributes:
        full_crop: Height and width of the crops in the last part, in pixels.
        full_from: Where that part begins, as a share of the steps.
        light: Spread of the exponent of a random gamma: dusk and glare.
        paste: Probability that an image's rare classes are pasted into another.
        lovasz: Weight of the Lovasz loss.
    """

    full_crop: tuple[int, int] = (352, 480)
    full_from: float = 0.75
    light: float = 0.0
    paste: float = 0.0
    lovasz: float = 0.0


STAGES = {"first": Stage(), "second": Stage((416, 576), full_from=0.8, light=0.35, paste=0.4, lovasz=2.0)}


# The network


def compact_config(class_names: Sequence[str]) -> MaskFormerConfig:
    """Return the configuration of ``compact`` for these classes, in the order of their ids.

    32 queries of width 128, three decoder layers over stride 32, a feature pyramid of width 96 (no deformable
    attention, which is slow on a CPU), masks at stride 4.
    """
    register()
    return MaskFormerConfig(
        backbone_config=EfficientNetLiteConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
        decoder_config=DetrConfig(
            num_queries=32, d_model=128, encoder_layers=0, decoder_layers=3, encoder_attention_heads=8,
            decoder_attention_heads=8, decoder_ffn_dim=256, dropout=0.0,
        ),
        fpn_feature_size=96,
        mask_feature_size=64,
        use_auxiliary_loss=False,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )  # fmt: skip


def convert_imagenet_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published ImageNet weights of EfficientNet-Lite0 to ours; the classification head is left out."""
    names: dict[str, str] = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    number = 0
    for group, (blocks, _, _, expansion, _) in enumerate(LITE0_GROUPS):
        for block in range(blocks):
            ours, theirs = f"groups.{group}.{block}.layers", f"_blocks.{number}"
            parts = ["_depthwise_conv", "_bn1", "", "_project_conv", "_bn2"]
            if expansion > 1:
                parts = ["_expand_conv", "_bn0", "", *parts]
            names |= {f"{theirs}.{part}": f"{ours}.{index}" for index, part in enumerate(parts) if part}
            number += 1
    return {
        f"{names[prefix]}.{leaf}": value
        for prefix, leaf, value in ((*name.rpartition(".")[::2], value) for name, value in published.items())
        if prefix in names
    }


def start(weights: Path, out: Path) -> None:
    """Write the segmentor that the first stage starts from: the backbone from ImageNet, the rest random."""
    torch.manual_seed(0)
    model: Any = MaskFormerForInstanceSegmentation(compact_config(CLASSES))
    published = torch.load(weights, weights_only=True)
    model.model.pixel_level_module.encoder.load_state_dict(convert_imagenet_state_dict(published), strict=True)
    # The library starts the queries at a fiftieth of DETR's spread and from a zero that the first layer norm divides
    # by: 32 nearly equal queries, and gradients a thousand times too large in one bias.
    nn.init.normal_(model.model.transformer_module.queries_embedder.weight)
    nn.init.normal_(model.model.transformer_module.decoder.layers[0].self_attn.o_proj.bias)
    save_segmentor(HuggingFaceSegmentor(model, RULE), out)


def export(run: Path, out: Path) -> None:
    """Write the weights of a run in half precision, with configuration and input rule."""
    segmentor = load_segmentor(run)
    segmentor.model.half()
    if not all(value.isfinite().all() for value in segmentor.model.state_dict().values()):
        raise SystemExit("a weight does not fit half precision")
    save_segmentor(segmentor, out)


# Samples


class CompactSamples(Samples):
    """Single labelled images by their number, augmented for this recipe; crops grow in the last part of the run."""

    def __init__(self, samples: Samples, config: TrainConfig, stage: Stage) -> None:
        self.clips = samples.clips
        self.frames = [(clip, frame.index) for clip in self.clips for frame in clip.frames if frame.label_path]
        self.epoch = len(self.frames) - len(self.frames) % config.optim.batch
        self.config, self.stage = config, stage

    def __getitem__(self, number: int) -> Pair:
        config, stage = self.config, self.stage
        step = number // config.optim.batch
        crop = stage.full_crop if step >= stage.full_from * config.optim.steps else config.data.crop
        epoch, position = divmod(number, self.epoch)
        order = np.random.default_rng((config.seed, 1, epoch)).permutation(len(self.frames))
        clip, index = self.frames[order[position]]
        random = np.random.default_rng((config.seed, 0, number))
        label = clip.load_label(index)
        image, label = _crop(clip.load_image(index), label.astype(np.uint8), crop, config.data.scale, random)
        image = torch.from_numpy(_recolour(image, stage.light, random)).permute(2, 0, 1)
        ids = torch.from_numpy(label.astype(np.int64))
        return Pair(image, image, ids, ids, None, None, 0)


def _crop(
    image: UInt8[np.ndarray, "H W 3"],
    label: UInt8[np.ndarray, "H W"],
    crop: tuple[int, int],
    scale: tuple[float, float],
    random: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Scale, crop and flip an image with its labels."""
    factor, stretch = math.exp(random.uniform(*np.log(scale))), math.exp(random.uniform(-0.1, 0.1))
    height, width = round(image.shape[0] * factor * stretch), round(image.shape[1] * factor / stretch)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    pad_y, pad_x = max(crop[0] - height, 0), max(crop[1] - width, 0)
    top, left = int(random.integers(pad_y + 1)), int(random.integers(pad_x + 1))
    edges = (top, pad_y - top, left, pad_x - left)
    image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
    label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=IGNORE)
    # The best of two crops by the number of classes in it: rare classes are seen more often.
    corners = [random.integers((label.shape[0] - crop[0] + 1, label.shape[1] - crop[1] + 1)) for _ in range(2)]
    windows = [np.s_[y : y + crop[0], x : x + crop[1]] for y, x in corners]
    window = max(windows, key=lambda window: len(np.unique(label[window][::4, ::4])))
    image, label = image[window], label[window]
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, np.ascontiguousarray(label)


def _recolour(
    image: UInt8[np.ndarray, "H W 3"], light: float, random: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Change gamma, brightness, contrast, saturation and white balance."""
    values = image.astype(np.float32)
    if light and random.random() < 0.5:
        values = 255 * (values / 255) ** math.exp(random.normal(0, light))
    if random.random() < 0.8:
        values = values * random.uniform(0.7, 1.35)
        values = (values - values.mean()) * random.uniform(0.7, 1.35) + values.mean()
        grey = values.mean(2, keepdims=True)
        values = grey + (values - grey) * random.uniform(0.5, 1.5)
        values = values * random.uniform(0.92, 1.08, size=3)
    return np.clip(values, 0, 255).round().astype(np.uint8)


def paste_rare(images: Tensor, labels: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Paste, into some images of a batch, the pixels of rare classes of the next one, where they are there."""
    pasted = torch.isin(labels.roll(-1, 0), torch.tensor(RARE, device=labels.device))
    pasted &= (torch.rand(len(labels), device=labels.device) < probability)[:, None, None]
    images = torch.where(pasted[:, None], images.roll(-1, 0), images)
    return images, torch.where(pasted, labels.roll(-1, 0), labels)


# The loss


class CompactTask(SegmentorTask):
    """``SegmentorTask`` with this recipe's loss."""

    def __init__(self, segmentor: HuggingFaceSegmentor, config: TrainConfig, stage: Stage, balance: Tensor) -> None:
        super().__init__(segmentor, config)
        self.stage = stage
        self.pixel_head = nn.Conv2d(self.model.config.mask_feature_size, len(CLASSES), 1)
        self.register_buffer("balance", balance, persistent=False)
        self.model.model.pixel_level_module.register_forward_hook(self._keep_features)

    def _keep_features(self, _: Any, __: Any, output: Any) -> None:
        self.features = output.decoder_last_hidden_state

    def forward(self, batch: Batch) -> Terms:
        """Return the weighted terms of the loss."""
        images, labels = paste_rare(batch.current, batch.current_label, self.stage.paste)
        rule, weights = self.segmentor.rule, self._config.loss
        labels = pad_like(rule, labels, IGNORE)
        layers, _ = predict_layers(self.model, pixels(rule, images))
        classes, masks = layers[-1]
        # The last layer is compared at twice the mask grid.
        last = F.interpolate(masks.float(), scale_factor=2, mode="bilinear", align_corners=False)
        sets = self.loss.total(layers[:-1], labels) + self.loss.total([(classes, last)], labels)
        scores = torch.einsum("bqk,bqhw->bkhw", classes.float().softmax(2)[:, :, :-1], last.sigmoid())
        scores = scores / scores.sum(1, keepdim=True).clamp(min=1e-6)
        terms = {
            "sets": weights.sets * sets,
            "scores": weights.scores * self._balanced(scores.clamp(min=1e-6).log(), labels),
            "pixels": 2.0 * self._balanced(F.log_softmax(self.pixel_head(self.features).float(), 1), labels),
        }
        if self.stage.lovasz:
            terms["lovasz"] = self.stage.lovasz * lovasz(scores, labels[:, ::2, ::2])
        return terms

    def _balanced(self, log_probabilities: Float[Tensor, "B K h w"], labels: Int64[Tensor, "B H W"]) -> Tensor:
        """Negative log-likelihood of the labels, rare classes weighted more."""
        grid = (log_probabilities.shape[-2], log_probabilities.shape[-1])
        targets, share = soft_targets(labels, len(CLASSES), grid)
        targets = targets * share[:, None] * self.balance[:, None, None]
        return -(targets * log_probabilities).sum() / targets.sum()

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay; the pixel head goes with the segmentor's heads."""
        return [*super().groups(), {"params": [*self.pixel_head.parameters()], "peak": self._config.optim.lr}]

    def trained(self) -> nn.Module:
        """The segmentor, and the head that is thrown away."""
        return nn.ModuleDict({"model": self.model, "pixel_head": self.pixel_head})


def lovasz(probabilities: Float[Tensor, "B K h w"], labels: Int64[Tensor, "B h w"]) -> Float[Tensor, ""]:
    """Lovasz extension of one minus the intersection over union, the mean over the classes that are present.

    Pixels of other ids do not count.

    Paper: Berman et al., "The Lovasz-Softmax loss" (CVPR 2018).
    """
    known = labels < probabilities.shape[1]
    classes, predicted = labels[known], probabilities.permute(0, 2, 3, 1)[known]
    losses = []
    for class_id in classes.unique():
        inside = (classes == class_id).float()
        errors, order = (inside - predicted[:, class_id]).abs().sort(descending=True)
        inside = inside[order]
        total = inside.sum()
        # The loss of the set of the first n errors; the weight of an error is what it adds.
        jaccard = 1 - (total - inside.cumsum(0)) / (total + (1 - inside).cumsum(0))
        losses.append((errors * torch.cat([jaccard[:1], jaccard.diff()])).sum())
    return torch.stack(losses).mean()


def class_balance(samples: Samples) -> Float[Tensor, " K"]:
    """Weight of each class: the root of the inverse of its share of the pixels, from 0.5 to 3."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for clip in samples.clips:
        for frame in clip.frames:
            label = clip.load_label(frame.index)
            if label is not None:
                counts += np.bincount(label[::4, ::4].ravel(), minlength=IGNORE + 1)
    share = torch.from_numpy(counts[: len(CLASSES)] / counts[: len(CLASSES)].sum()).float()
    return (share.mean() / share).sqrt().clamp(0.5, 3.0)


def run_stage(config: TrainConfig, stage: Stage, *, resume: bool = False, quiet: bool = False) -> TrainSummary:
    """Run a stage on the package's trainer."""
    opened, names = open_samples(config)

    def make(config: TrainConfig, class_names: tuple[str, ...], device: torch.device) -> CompactTask:
        task = make_task(config, class_names, device)
        return CompactTask(task.segmentor, config, stage, class_balance(opened)).to(device)

    samples = CompactSamples(opened, config, stage)
    return train(config, resume=resume, quiet=quiet, open_samples=lambda _: (samples, names), make_task=make)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("start", help="write the segmentor that the first stage starts from")
    begin.add_argument("--weights", type=Path, required=True, help="published ImageNet weights, a .pth file")
    begin.add_argument("--out", type=Path, required=True)
    go = commands.add_parser("train", help="run a stage")
    go.add_argument("config", type=Path, help="recipes/compact-first.yaml or -second.yaml, which name the stage")
    go.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value")
    go.add_argument("--resume", action="store_true")
    write = commands.add_parser("export", help="write the weights of a run in half precision")
    write.add_argument("run", type=Path)
    write.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if chosen.command == "start":
        start(chosen.weights, chosen.out)
    elif chosen.command == "export":
        export(chosen.run, chosen.out)
    else:
        stage = STAGES[chosen.config.stem.rpartition("-")[2]]
        summary = run_stage(load_config(chosen.config, chosen.set), stage, resume=chosen.resume)
        json.dump(summary.to_dict(), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
