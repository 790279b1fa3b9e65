"""What training minimises. Each term is a mean over the images of a batch, so that processes may share a batch."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
)

from mpvss.motion.warp import warp
from mpvss.training.config import LossConfig

# A mask logit that costs nothing where the target is 0, and where no uncertain point is sampled.
_NOWHERE = -30.0
_CHARBONNIER = 0.01
# Labels are certain; a pixel on the wrong side of an outline costs 3, and its gradient stays finite.
_LEAST_LIKELIHOOD = 0.05
_SSIM_SHARE = 0.85
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
# Part of the weight of every query's flow that is spread over all pixels, so that it is sensible off its segment too.
_EVERYWHERE = 0.1

Layers = Sequence[tuple[Float[Tensor, "B Q K1"], Float[Tensor, "B Q h w"]]]


# Masks


def soft_targets(
    labels: Int64[Tensor, "B H W"], num_classes: int, grid: tuple[int, int]
) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B h w"]]:
    """Return the share of each class among the labelled pixels of each cell, and the share of labelled pixels.

    The grid's sides divide those of the labels.
    """
    batch, rows, columns = len(labels), labels.shape[1] // grid[0], labels.shape[2] // grid[1]
    known = (labels >= 0) & (labels < num_classes)
    cells = torch.where(known, labels, num_classes).view(batch, grid[0], rows, grid[1], columns)
    cells = cells.transpose(2, 3).reshape(-1, rows * columns)
    counts = torch.zeros(len(cells), num_classes + 1, device=labels.device)
    counts.scatter_add_(1, cells, torch.ones((), device=labels.device).expand_as(cells))
    shares = counts.view(batch, *grid, -1).permute(0, 3, 1, 2) / (rows * columns)
    share = 1 - shares[:, -1]
    return shares[:, :-1] / share.clamp(min=1e-6)[:, None], share


def _mean_over_processes(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


class _AllPixelsMatcher(Mask2FormerHungarianMatcher):
    """The library's matching with every pixel of the grid in place of random points."""

    @torch.no_grad()
    def forward(self, masks: Tensor, classes: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor]) -> Any:
        matches = []
        for mask, probabilities, target, class_ids in zip(
            masks, classes.softmax(-1), mask_labels, class_labels, strict=True
        ):
            flat, goal = mask.flatten(1), target.flatten(1).to(mask)
            cost = (
                self.cost_mask * pair_wise_sigmoid_cross_entropy_loss(flat, goal)
                + self.cost_class * -probabilities[:, class_ids]
                + self.cost_dice * pair_wise_dice_loss(flat, goal)
            )
            rows, columns = linear_sum_assignment(torch.nan_to_num(cost, nan=1e9).cpu())
            matches.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return matches


class SetLoss(Mask2FormerLoss):
    """Mask2Former's loss and matcher, each present class one target, over every decoder layer.

    Paper: section 4, training. Differs from the paper: pixels without a class count for no mask, instead of against
    all of them; and the classification is a mean over the queries of all processes, as if there were one.
    """

    def __init__(self, num_classes: int, config: LossConfig) -> None:
        settings = SimpleNamespace(
            num_labels=num_classes,
            no_object_weight=config.no_object,
            train_num_points=config.points,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            class_weight=config.classification,
            mask_weight=config.mask,
            dice_weight=config.dice,
        )
        weights = {"cross_entropy": config.classification, "mask": config.mask, "dice": config.dice}
        super().__init__(settings, weights)
        if config.points == 0:
            self.matcher = _AllPixelsMatcher(config.classification, config.mask, config.dice, 0)

    def total(self, layers: Layers, labels: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
        """Return the weighted sum over the layers.

        Args:
            layers: Class and mask logits of each decoder layer, the last one last.
            labels: Class ids of the pixels that the mask grid covers; what is no class is not counted.
        """
        grid = (layers[0][1].shape[-2], layers[0][1].shape[-1])
        targets, share = soft_targets(labels, self.num_labels, grid)
        void = share < 0.5
        targets = targets.masked_fill(void[:, None], 0.0)
        present = [torch.nonzero(target.amax((1, 2)) > 0)[:, 0] for target in targets]
        if self.num_points == 0:
            goals = [target[classes] for target, classes in zip(targets, present, strict=True)]
        else:
            goals = [
                (label[None] == classes[:, None, None]).float() for label, classes in zip(labels, present, strict=True)
            ]
        total = layers[0][1].new_zeros(())
        for class_logits, mask_logits in layers:
            masks = mask_logits.float().masked_fill(void[:, None], _NOWHERE)
            for name, value in self(masks, class_logits.float(), goals, present).items():
                total = total + self.weight_dict[name.removeprefix("loss_")] * value
        return total

    def loss_labels(self, class_logits: Tensor, class_labels: list[Tensor], indices: Any) -> dict[str, Tensor]:
        """The library's classification loss, as a mean over all processes."""
        loss: dict[str, Tensor] = super().loss_labels(class_logits, class_labels, indices)
        matched = sum(len(rows) for rows, _ in indices)
        weight = matched + self.eos_coef * (class_logits.shape[0] * class_logits.shape[1] - matched)
        mean = _mean_over_processes(class_logits.new_tensor(weight))
        return {name: value * (weight / mean) for name, value in loss.items()}

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Mean number of targets over all processes; the library's divides by their number twice."""
        number = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
        return _mean_over_processes(number).clamp(min=1)

    def sample_points_using_uncertainty(self, logits: Tensor, *settings: Any) -> Tensor:
        """The library's points, or the centre of every pixel where no number of points is set."""
        if self.num_points:
            points: Tensor = super().sample_points_using_uncertainty(logits, *settings)
            return points
        height, width = logits.shape[-2:]
        ys = (torch.arange(height, device=logits.device) + 0.5) / height
        xs = (torch.arange(width, device=logits.device) + 0.5) / width
        centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).flatten(0, 1)
        return centres.expand(len(logits), -1, -1)


def score_loss(
    class_logits: Float[Tensor, "B Q K1"], mask_logits: Float[Tensor, "B Q h w"], labels: Int64[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the class scores that decoding takes the maximum of, per labelled pixel."""
    probabilities = class_logits.float().softmax(2)[:, :, :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", probabilities, mask_logits.float().sigmoid())
    scores = scores / scores.sum(1, keepdim=True).clamp(min=1e-6)
    grid = (mask_logits.shape[-2], mask_logits.shape[-1])
    targets, share = soft_targets(labels, probabilities.shape[2], grid)
    surprise = -(targets * scores.clamp(min=1e-4).log()).sum(1)
    return _mean(surprise, share)


def label_loss(
    current: Int64[Tensor, "B H W"],
    key: Int64[Tensor, "B H W"],
    flow: Float[Tensor, "B 2 h w"],
    num_classes: int,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the current labels under the key frame's, warped as scores.

    Where the key frame has no label there is nothing to warp, and nothing counts.
    """
    grid = (flow.shape[-2], flow.shape[-1])
    targets, share = soft_targets(current, num_classes, grid)
    scores, known = soft_targets(key, num_classes, grid)
    warped = warp(torch.cat([scores * known[:, None], known[:, None]], 1), flow)
    likelihood = (warped[:, :-1] * targets).sum(1) / warped[:, -1].clamp(min=1e-6)
    return _mean(-likelihood.clamp(min=_LEAST_LIKELIHOOD).log(), share * (warped[:, -1].detach() > 0.5))


# Flow


def shown_share(
    class_logits: Float[Tensor, "B Q K1"], mask_logits: Float[Tensor, "B Q h w"]
) -> Float[Tensor, "B Q h w"]:
    """How much of each pixel each query shows, over all queries 1: p(any class) sigmoid(mask), normalised."""
    present = 1 - class_logits.float().softmax(2)[:, :, -1]
    shown = present[:, :, None, None] * mask_logits.float().sigmoid() + 1e-6
    return shown / shown.sum(1, keepdim=True)


def shown_flow(flow: Float[Tensor, "B G 2 h w"], share: Float[Tensor, "B Q h w"]) -> Float[Tensor, "B 2 h w"]:
    """One flow a pixel: that of the queries that show there."""
    return flow[:, 0] if flow.shape[1] == 1 else (flow * share[:, :, None]).sum(1)


def endpoint_error(
    flow: Float[Tensor, "B G 2 h w"],
    truth: Float[Tensor, "B 2 h w"],
    visible: Float[Tensor, "B h w"],
    share: Float[Tensor, "B Q h w"] | None,
) -> Float[Tensor, ""]:
    """Mean distance between the ends of flow and truth at visible pixels, in their unit; robust at zero.

    Where every query has a flow, each counts by how much of the pixel it shows, and a little everywhere.
    """
    distance = ((flow - truth[:, None]).square().sum(2) + _CHARBONNIER**2).sqrt()
    if share is not None and flow.shape[1] > 1:
        share = (1 - _EVERYWHERE) * share + _EVERYWHERE / share.shape[1]
        distance = distance * share
    return _mean(distance.sum(1), visible)


def photometric(
    current: Float[Tensor, "B 3 h w"],
    key: Float[Tensor, "B 3 h w"],
    flow: Float[Tensor, "B 2 h w"],
    visible: Float[Tensor, "B h w"],
) -> Float[Tensor, ""]:
    """How far the warped key image is from the current one: structural similarity and absolute difference.

    Args:
        current: The current image on the mask grid, RGB 0..1.
        key: The key frame's, likewise.
        flow: Backward flow in pixels of the grid.
        visible: Where the content was in the key frame, 0 or 1.
    """
    warped = warp(key, flow)
    difference = ((current - warped).square() + _CHARBONNIER**2).sqrt().mean(1)

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    mean_a, mean_b = local(current), local(warped)
    variance_a, variance_b = local(current.square()) - mean_a.square(), local(warped.square()) - mean_b.square()
    covariance = local(current * warped) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + _SSIM_C1) * (variance_a + variance_b + _SSIM_C2))
    structure = ((1 - similarity) / 2).clamp(0, 1).mean(1)
    return _mean(_SSIM_SHARE * structure + (1 - _SSIM_SHARE) * difference, visible)


def _mean(values: Float[Tensor, "B h w"], weight: Float[Tensor, "B h w"]) -> Float[Tensor, ""]:
    """Weighted mean of each image, then of the batch; an image without any weight counts as 0."""
    return ((values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).mean()


def dis_flow(
    current: UInt8[np.ndarray, "H W 3"], key: UInt8[np.ndarray, "H W 3"], finest: int = 0
) -> tuple[Float[np.ndarray, "2 H W"], Bool[np.ndarray, "H W"]]:
    """OpenCV's DIS flow as if it were true, and where flow there and back agree to a pixel.

    Args:
        current: RGB.
        key: RGB.
        finest: Pyramid level at which the search stops, 0 the full size.

    Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (ECCV 2016).
    """
    engine: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    engine.setFinestScale(finest)
    now, then = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (current, key))
    back, forth = engine.calc(now, then, None), engine.calc(then, now, None)
    height, width = now.shape
    x = np.arange(width, dtype=np.float32) + back[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + back[..., 1]
    returned = cv2.remap(forth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    agrees = np.hypot(*np.moveaxis(back + returned, -1, 0)) < 1
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.ascontiguousarray(np.moveaxis(back, -1, 0)), agrees & inside
