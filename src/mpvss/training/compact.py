"""Train the embedded default on CamVid, in stages.

    python -m mpvss.training.compact --data DIR --weights FILE --out RUN1
    python -m mpvss.training.compact --data DIR --start-from RUN1/model --out RUN2
    python -m mpvss.training.compact --data DIR --start-from RUN2/model --out RUN3 --steps 1600 --seed 2
    python -m mpvss.training.compact --data DIR --start-from RUN3/model --out RUN4 --steps 1600 --seed 3

The first stage starts from ImageNet's weights and learns at the pictures' own size. The second goes on at a third more,
where thin things have enough pixels, with a loss that counts classes and not pixels, and with rare classes pasted in.
The third and the fourth are the second again: the learning rate restarts.

Resumable: call it again with the same arguments. Every random choice of a step comes from a generator seeded with the
step's number, so that a resumed run sees the same pictures as one that was not interrupted.

The loss has these parts: the set loss of mask classification (each present class is matched to one query, at every
decoder layer), the negative log-likelihood of the class scores that inference takes the maximum of, a per-pixel
cross-entropy on the pixel decoder's features, which speeds up the first epochs and is thrown away, and in the second
stage the Lovasz extension of the class scores' intersection over union.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import MaskFormerForInstanceSegmentation

from mpvss.datasets import read_image, read_label
from mpvss.segmentors.compact import compact_config
from mpvss.segmentors.efficientnet import convert_imagenet_state_dict

log = logging.getLogger(__name__)

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
IGNORE = 11
# The initial weights were trained with pixels mapped as (x - 127) / 128.
MEAN, STD = 127.0, 128.0


@dataclass(frozen=True)
class Config:
    """The recipe. Sizes are (height, width) in pixels, rates per step."""

    steps: int = 7000
    batch: int = 4
    crop: tuple[int, int] = (256, 352)
    full_crop: tuple[int, int] = (352, 480)  # in the last part
    full_from: float = 0.75  # of the steps
    scale: tuple[float, float] = (0.6, 1.8)
    lr: float = 6e-4
    backbone_lr: float = 2e-4
    weight_decay: float = 0.05
    warmup: int = 200
    clip_norm: float = 5.0
    ema: float = 0.998
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    class_weight: float = 2.0
    score_weight: float = 4.0
    pixel_weight: float = 2.0
    lovasz_weight: float = 0.0
    no_object: float = 0.1
    light: float = 0.0  # spread of the exponent of a random gamma: dusk and glare
    paste: float = 0.0  # chance that a picture's rare classes are pasted into another
    seed: int = 0


SECOND_STAGE = Config(
    steps=4000,
    crop=(320, 448),
    full_crop=(416, 576),
    full_from=0.8,
    scale=(0.85, 2.2),
    lr=3e-4,
    backbone_lr=1.2e-4,
    ema=0.999,
    lovasz_weight=2.0,
    light=0.35,
    paste=0.4,
    seed=1,
)
# Classes of few pixels, which are pasted: poles, signs, fences, pedestrians, bicyclists.
RARE = (2, 6, 7, 9, 10)


def load_images(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read every image and label of a folder with ``images/`` and ``labels/`` as RGB and ids, sorted by name."""
    pairs = []
    for path in sorted((folder / "images").iterdir()):
        pairs.append((read_image(path), read_label(folder / "labels" / f"{path.stem}.png")))
    return pairs


def augment(
    image: np.ndarray, label: np.ndarray, crop: tuple[int, int], config: Config, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, flip and recolour one picture with its labels."""
    scale = math.exp(random.uniform(*np.log(config.scale)))
    stretch = math.exp(random.uniform(-0.1, 0.1))
    height, width = (round(image.shape[0] * scale * stretch), round(image.shape[1] * scale / stretch))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    pad_y, pad_x = max(crop[0] - height, 0), max(crop[1] - width, 0)
    if pad_y or pad_x:
        top, left = int(random.integers(pad_y + 1)), int(random.integers(pad_x + 1))
        edges = (top, pad_y - top, left, pad_x - left)
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=(127, 127, 127))
        label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=IGNORE)
    # The best of two crops by the number of classes in it: rare classes are seen more often.
    places = [
        (int(random.integers(image.shape[0] - crop[0] + 1)), int(random.integers(image.shape[1] - crop[1] + 1)))
        for _ in range(2)
    ]
    y, x = max(places, key=lambda at: len(np.unique(label[at[0] : at[0] + crop[0] : 4, at[1] : at[1] + crop[1] : 4])))
    image, label = image[y : y + crop[0], x : x + crop[1]], label[y : y + crop[0], x : x + crop[1]]
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    picture = image.astype(np.float32)
    if config.light and random.random() < 0.5:
        picture = (255 * (picture / 255) ** math.exp(random.normal(0, config.light))).astype(np.float32)
    if random.random() < 0.8:
        picture = picture * random.uniform(0.7, 1.35)
        picture = (picture - picture.mean()) * random.uniform(0.7, 1.35) + picture.mean()
        grey = picture.mean(2, keepdims=True)
        picture = grey + (picture - grey) * random.uniform(0.5, 1.5)
        picture = picture * random.uniform(0.92, 1.08, size=3)
    return np.clip(picture, 0, 255).astype(np.float32), np.ascontiguousarray(label)


def paste_rare(
    samples: list[tuple[np.ndarray, np.ndarray]], config: Config, random: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Paste, into some of a batch's pictures, the pixels of rare classes of the next one, where they stand there."""
    mixed = []
    for (picture, label), (other, theirs) in zip(samples, samples[1:] + samples[:1], strict=True):
        taken = np.isin(theirs, RARE) if random.random() < config.paste else np.zeros_like(theirs, dtype=bool)
        mixed.append((np.where(taken[..., None], other, picture), np.where(taken, theirs, label)))
    return mixed


def batches(pairs: list[tuple[np.ndarray, np.ndarray]], config: Config, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images (B, 3, H, W) and labels (B, H, W), one batch per step from ``start`` on."""
    for step in range(start, config.steps):
        random = np.random.default_rng((config.seed, step))
        crop = config.full_crop if step >= config.full_from * config.steps else config.crop
        epoch, place = divmod(step * config.batch, len(pairs) - len(pairs) % config.batch)
        order = np.random.default_rng((config.seed, 1_000_000 + epoch)).permutation(len(pairs))
        chosen = [
            augment(pairs[index][0], pairs[index][1], crop, config, random)
            for index in order[place : place + config.batch]
        ]
        if config.paste:
            chosen = paste_rare(chosen, config, random)
        images = torch.from_numpy(np.stack([image for image, _ in chosen])).permute(0, 3, 1, 2)
        yield (images - MEAN) / STD, torch.from_numpy(np.stack([label for _, label in chosen])).long()


def match(
    mask_logits: Tensor, class_logits: Tensor, targets: Tensor, valid: Tensor, config: Config
) -> list[np.ndarray]:
    """Assign one query to each present class of every image: rows of (query, class)."""
    logits = mask_logits.detach().float().flatten(2)
    goal, known = targets.flatten(2), valid.flatten(1)
    pixels = known.sum(1).clamp(min=1)[:, None, None]
    negative = F.softplus(logits) * known[:, None]
    # softplus(-m) = softplus(m) - m, so the cost of a mask is sum(softplus(m)) - m . target.
    bce = (negative.sum(2)[:, :, None] - logits @ goal.transpose(1, 2)) / pixels
    chance = logits.sigmoid() * known[:, None]
    dice = 1 - (2 * chance @ goal.transpose(1, 2) + 1) / (chance.sum(2)[:, :, None] + goal.sum(2)[:, None] + 1)
    cost_class = -class_logits.detach().float().softmax(2)[:, :, :-1]
    cost = config.mask_weight * bce + config.dice_weight * dice + config.class_weight * cost_class
    pairs = []
    for number in range(len(cost)):
        present = torch.nonzero(goal[number].sum(1) > 0)[:, 0]
        rows, columns = linear_sum_assignment(cost[number][:, present].numpy())
        pairs.append(np.stack([rows, present.numpy()[columns]], 1))
    return pairs


def set_loss(mask_logits: Tensor, class_logits: Tensor, targets: Tensor, valid: Tensor, config: Config) -> Tensor:
    """Set loss of mask classification on soft targets (B, K, h, w); pixels without a label do not count."""
    pairs = match(mask_logits, class_logits, targets, valid, config)
    wanted = torch.full(class_logits.shape[:2], class_logits.shape[2] - 1)
    images = torch.cat([torch.full((len(pair),), number) for number, pair in enumerate(pairs)])
    matched = torch.from_numpy(np.concatenate(pairs))
    wanted[images, matched[:, 0]] = matched[:, 1]
    weights = torch.ones(class_logits.shape[2])
    weights[-1] = config.no_object
    loss = config.class_weight * F.cross_entropy(class_logits.float().transpose(1, 2), wanted, weights)
    logits = mask_logits[images, matched[:, 0]].float().flatten(1)
    goal, known = targets[images, matched[:, 1]].flatten(1), valid[images].flatten(1)
    bce = ((F.softplus(logits) * known - logits * goal).sum(1) / known.sum(1).clamp(min=1)).mean()
    chance = logits.sigmoid() * known
    dice = (1 - (2 * (chance * goal).sum(1) + 1) / (chance.sum(1) + goal.sum(1) + 1)).mean()
    return loss + config.mask_weight * bce + config.dice_weight * dice


def class_scores(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Scores that inference takes the maximum of: sum over queries of p(class) sigmoid(mask)."""
    return torch.einsum("bqk,bqhw->bkhw", class_logits.float().softmax(2)[:, :, :-1], mask_logits.float().sigmoid())


def lovasz(chance: Tensor, labels: Tensor) -> Tensor:
    """Lovasz extension of one minus the intersection over union, the mean over the classes that are present.

    Args:
        chance: Probabilities (B, K, h, w).
        labels: Classes (B, h, w); pixels of other ids do not count.

    Paper: Berman et al., "The Lovasz-Softmax loss" (CVPR 2018).
    """
    classes = chance.shape[1]
    known = labels < classes
    goal, chosen = labels[known], chance.permute(0, 2, 3, 1)[known]
    losses = []
    for number in range(classes):
        inside = (goal == number).float()
        if not inside.any():
            continue
        errors, order = (inside - chosen[:, number]).abs().sort(descending=True)
        inside = inside[order]
        total = inside.sum()
        # The loss of the set of the first n errors; the weight of an error is what it adds.
        jaccard = 1 - (total - inside.cumsum(0)) / (total + (1 - inside).cumsum(0))
        weights = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append((errors * weights).sum())
    return torch.stack(losses).mean()


def total_loss(
    model: Any, pixel_head: nn.Module, images: Tensor, labels: Tensor, balance: Tensor, config: Config
) -> Tensor:
    """The whole training loss of one batch."""
    with torch.autocast(images.device.type, torch.bfloat16):
        outputs = model.model(images, output_hidden_states=True)
        features = outputs.pixel_decoder_last_hidden_state
        # The first hidden state is the input; the last one is normalised already, those between are not.
        norm = model.model.transformer_module.decoder.layernorm
        between = outputs.transformer_decoder_hidden_states[1:-1]
        states = torch.stack([*(norm(state) for state in between), outputs.transformer_decoder_last_hidden_state])
        classes = model.class_predictor(states)
        masks = torch.einsum("lbqc,bchw->lbqhw", model.mask_embedder(states), features)
        pixel_logits = pixel_head(features)
    one_hot = F.one_hot(labels, IGNORE + 1).permute(0, 3, 1, 2).float()
    half = F.avg_pool2d(one_hot, 2)
    quarter = F.avg_pool2d(half, 2)
    coarse, fine = (quarter[:, :-1], 1 - quarter[:, -1]), (half[:, :-1], 1 - half[:, -1])
    loss = sum(set_loss(masks[layer], classes[layer], *coarse, config) for layer in range(len(masks) - 1))
    last = F.interpolate(masks[-1].float(), size=half.shape[-2:], mode="bilinear", align_corners=False)
    loss = loss + set_loss(last, classes[-1], *fine, config)
    scores = class_scores(last, classes[-1])
    scores = scores / scores.sum(1, keepdim=True).clamp(min=1e-6)
    goal = fine[0] * balance[:, None, None]
    loss = loss - config.score_weight * (goal * scores.clamp(min=1e-6).log()).sum() / goal.sum()
    if config.lovasz_weight:
        loss = loss + config.lovasz_weight * lovasz(scores, labels[:, ::2, ::2])
    goal = coarse[0] * balance[:, None, None]
    return loss - config.pixel_weight * (goal * F.log_softmax(pixel_logits.float(), 1)).sum() / goal.sum()


@torch.inference_mode()
def evaluate(model: Any, folder: Path, enlarged: float = 4 / 3) -> dict[str, float]:
    """Intersection over union of each class over all images of a folder, enlarged, decoded at that size."""
    model.eval()
    confusion = np.zeros((IGNORE, IGNORE), np.int64)
    for image, label in load_images(folder):
        image = cv2.resize(image, None, fx=enlarged, fy=enlarged)  # noqa: PLW2901
        height, width = image.shape[:2]
        padded = F.pad(
            torch.from_numpy(image).permute(2, 0, 1)[None].float().sub(MEAN).div(STD), (0, -width % 32, 0, -height % 32)
        )
        outputs = model(padded.contiguous(memory_format=torch.channels_last))
        masks = F.interpolate(
            outputs.masks_queries_logits, size=padded.shape[-2:], mode="bilinear", align_corners=False
        )
        scores = class_scores(masks[..., :height, :width], outputs.class_queries_logits)
        scores = F.interpolate(scores, size=label.shape, mode="bilinear", align_corners=False)
        found = scores.argmax(1)[0].numpy()
        known = label < IGNORE
        confusion += np.bincount(label[known] * IGNORE + found[known], minlength=IGNORE**2).reshape(IGNORE, IGNORE)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion) / np.maximum(union, 1)
    present = confusion.sum(1) > 0
    return {"miou": float(iou[present].mean())} | {name: float(value) for name, value in zip(CLASSES, iou, strict=True)}


def rate(step: int, config: Config) -> float:
    """Share of the full learning rate at a step: linear warm-up, then a polynomial to zero."""
    return min(1.0, (step + 1) / config.warmup) * float((1 - step / config.steps) ** 0.9)


def initialise(model: Any) -> None:
    """Give the queries different starts.

    The library starts them at a fiftieth of DETR's spread and from a zero that the first layer norm divides by: 32
    nearly equal queries, and gradients a thousand times too large in one bias (set loss unchanged after 400 steps).
    """
    nn.init.normal_(model.model.transformer_module.queries_embedder.weight)
    nn.init.normal_(model.model.transformer_module.decoder.layers[0].self_attn.o_proj.bias)


def train(
    data: Path,
    weights: Path | None,
    start_from: Path | None,
    out: Path,
    config: Config,
    validation: Path | None,
    every: int,
) -> None:
    """Train from ImageNet's weights or from the first stage's, or go on from the last checkpoint in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model: Any = MaskFormerForInstanceSegmentation(compact_config(CLASSES))
    if start_from is not None:
        model = MaskFormerForInstanceSegmentation.from_pretrained(start_from, dtype=torch.float32)
    model = model.to(memory_format=torch.channels_last)
    backbone = model.model.pixel_level_module.encoder
    if weights is not None:
        backbone.load_state_dict(convert_imagenet_state_dict(torch.load(weights, weights_only=True)), strict=True)
        initialise(model)
    pixel_head = nn.Conv2d(model.config.mask_feature_size, len(CLASSES), 1)
    average = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}

    # The stem and the first two groups see edges and colours: ImageNet's are good, and half of a step's time is there.
    for part in (backbone.stem, *backbone.groups[:2]):
        part.requires_grad_(False)
    own = {id(parameter) for parameter in backbone.parameters()}
    head = [parameter for parameter in [*model.parameters(), *pixel_head.parameters()] if id(parameter) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone.parameters() if p.requires_grad], "peak": config.backbone_lr},
        {"params": [p for p in head if p.ndim > 1], "peak": config.lr},
        {"params": [p for p in head if p.ndim <= 1], "peak": config.lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)

    start, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["config"] != json.dumps(asdict(config)):
            raise SystemExit(f"{checkpoint} was made with another recipe: {saved['config']}; choose another --out")
        model.load_state_dict(saved["model"])
        pixel_head.load_state_dict(saved["pixel_head"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]

    pairs = load_images(data)
    counts = np.bincount(np.concatenate([label[::4, ::4].ravel() for _, label in pairs]), minlength=IGNORE + 1)
    share = torch.from_numpy(counts[:IGNORE] / counts[:IGNORE].sum()).float()
    balance = (share.mean() / share).sqrt().clamp(0.5, 3.0)
    began = time.monotonic()
    for step, (images, labels) in enumerate(batches(pairs, config, start), start):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, config)
        model.train()
        backbone.eval()  # statistics of four pictures are worse than ImageNet's
        pixels = images.contiguous(memory_format=torch.channels_last)
        loss = total_loss(model, pixel_head, pixels, labels, balance, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], config.clip_norm)
        optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        done = step + 1
        if done % 20 == 0:
            speed = (done - start) / (time.monotonic() - began)
            log.info("step %d loss %.3f %.2f steps/s", done, loss.item(), speed)
        if done % every == 0 or done == config.steps:
            state = {
                "config": json.dumps(asdict(config)), "step": done, "model": model.state_dict(), "average": average,
                "pixel_head": pixel_head.state_dict(), "optimizer": optimizer.state_dict(),
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            trained = model.state_dict()
            model.load_state_dict(average, strict=False)
            if validation is not None:
                result = evaluate(model, validation)
                log.info("step %d validation %s", done, json.dumps({k: round(v, 3) for k, v in result.items()}))
            model.save_pretrained(out / "model")
            model.load_state_dict(trained)


def export(run: Path, assets: Path) -> None:
    """Write the averaged weights of a run as half-precision safetensors, with configuration and input rule."""
    assets.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / "model" / "model.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    if not all(value.isfinite().all() for value in half.values()):
        raise SystemExit("a weight does not fit half precision")
    save_file(half, assets / "model.safetensors", metadata={"format": "pt"})
    compact_config(CLASSES).save_pretrained(assets)
    rule = {
        "size": {"shortest_edge": 480, "longest_edge": 1280},
        "image_mean": [MEAN / 255] * 3,
        "image_std": [STD / 255] * 3,
    }
    (assets / "preprocessor_config.json").write_text(json.dumps(rule, indent=2) + "\n")


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with images/ and labels/")
    parser.add_argument("--weights", type=Path, help="published ImageNet weights, a .pth file")
    parser.add_argument(
        "--start-from", type=Path, help="model of the stage before: makes this the second or a later one"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="folder to score the averaged weights on")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--export", type=Path, help="write the result of --out here instead of training")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.export is not None:
        export(arguments.out, arguments.export)
        return
    if (arguments.weights is None) == (arguments.start_from is None):
        parser.error("pass --weights for the first stage, or --start-from for a later one")
    config = Config() if arguments.start_from is None else SECOND_STAGE
    chosen = {name: value for name in ("steps", "seed") if (value := getattr(arguments, name)) is not None}
    config = replace(config, **chosen)
    train(
        arguments.data, arguments.weights, arguments.start_from, arguments.out, config, arguments.validation,
        arguments.every,
    )  # fmt: skip


if __name__ == "__main__":
    main()
