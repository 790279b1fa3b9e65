"""Losses are what their names say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from helpers import moving_frames
from mpvss.motion.warp import warp
from mpvss.training.config import LossConfig
from mpvss.training.losses import (
    SetLoss,
    dis_flow,
    endpoint_error,
    label_loss,
    photometric,
    score_loss,
    shown_share,
    soft_targets,
)


def make_layers(batch: int = 2, queries: int = 5, classes: int = 3, grid: tuple[int, int] = (8, 8)) -> list:
    torch.manual_seed(0)
    return [(torch.randn(batch, queries, classes + 1), torch.randn(batch, queries, *grid) * 3) for _ in range(2)]


def test_soft_targets_equal_pooled_one_hot() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 255], (2, 16, 24)))
    targets, share = soft_targets(labels, 3, (4, 6))
    one_hot = torch.stack([(labels == k).float() for k in range(3)], 1)
    pooled = F.avg_pool2d(one_hot, 4)
    torch.testing.assert_close(share, pooled.sum(1))
    torch.testing.assert_close(targets * share[:, None], pooled)


def test_set_loss_is_the_librarys() -> None:
    """Fully labelled, the same random points: nothing is different."""
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 32, 32)))
    layers = make_layers()
    ours = SetLoss(3, LossConfig(points=50))
    config = Mask2FormerConfig(
        num_labels=3, train_num_points=50, class_weight=2.0, mask_weight=5.0, dice_weight=5.0, no_object_weight=0.1
    )
    theirs = Mask2FormerLoss(config, {})
    goals = [torch.stack([(label == k).float() for k in range(3)]) for label in labels]
    torch.manual_seed(3)
    found = ours.total(layers, labels)
    torch.manual_seed(3)
    wanted = 0.0
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    for classes, masks in layers:
        values = theirs(masks, classes, goals, [torch.arange(3)] * 2)
        wanted = wanted + sum(weights[name] * value for name, value in values.items())
    torch.testing.assert_close(found, wanted)


def test_set_loss_with_all_pixels_draws_nothing_and_ignores_void() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[:, :, 16:] = 1
    labels[:, :8] = 255
    loss = SetLoss(3, LossConfig(points=0))
    layers = make_layers(batch=1)
    before = torch.get_rng_state()
    first = loss.total(layers, labels)
    assert torch.equal(before, torch.get_rng_state())
    changed = [(classes, masks.clone()) for classes, masks in layers]
    for _, masks in changed:
        masks[:, :, :2] = 7.0
    torch.testing.assert_close(loss.total(changed, labels), first)


def test_set_loss_survives_a_picture_without_labels() -> None:
    labels = torch.full((2, 32, 32), 255)
    labels[0] = 1
    for points in (0, 20):
        loss = SetLoss(3, LossConfig(points=points))
        assert torch.isfinite(loss.total(make_layers(), labels))
        assert torch.isfinite(loss.total(make_layers(), torch.full((2, 32, 32), 255)))


def test_score_loss_is_least_for_the_right_classes() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :, 4:] = 1
    masks = torch.full((1, 2, 2, 2), -9.0)
    masks[:, 0, :, 0] = masks[:, 1, :, 1] = 9.0
    classes = torch.eye(3)[None, :2] * 20
    assert float(score_loss(classes, masks, labels)) < 1e-3
    assert float(score_loss(classes, masks.flip(3), labels)) > 5


def test_flow_losses_are_least_at_the_true_flow() -> None:
    random = np.random.default_rng(0)
    key = F.interpolate(torch.from_numpy(random.random((1, 3, 8, 10), np.float32)), scale_factor=4, mode="bilinear")
    truth = torch.full((1, 2, 32, 40), 2.0)
    current = warp(key, truth)
    seen = torch.ones(1, 32, 40)
    values = [float(photometric(current, key, truth * scale, seen)) for scale in (0.0, 0.5, 1.0, 1.5)]
    assert min(values) == values[2]
    errors = [float(endpoint_error((truth * s)[:, None], truth, seen, None)) for s in (0.0, 1.0)]
    assert errors == pytest.approx([8**0.5, 0.01], abs=1e-3)


def test_endpoint_error_of_queries_counts_what_shows() -> None:
    truth = torch.zeros(1, 2, 4, 4)
    flow = torch.zeros(1, 2, 2, 4, 4)
    flow[:, 1] = 3.0
    classes = torch.tensor([[[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    masks = torch.stack([torch.full((4, 4), 20.0), torch.full((4, 4), -20.0)])[None]
    share = shown_share(classes, masks)
    shown = float(endpoint_error(flow, truth, torch.ones(1, 4, 4), share))
    hidden = float(endpoint_error(flow.flip(1), truth, torch.ones(1, 4, 4), share))
    assert 0 < shown < hidden / 5


def test_label_loss_is_least_at_the_true_flow() -> None:
    ids = torch.from_numpy(np.kron(np.random.default_rng(0).integers(0, 3, (1, 4, 6)), np.ones((16, 16), np.int64)))
    current = torch.roll(ids, -8, 2)
    current[:, :, -8:] = 255
    flow = torch.zeros(1, 2, 16, 24)
    still = float(label_loss(current, ids, flow, 3))
    flow[:, 0] = 2.0
    assert float(label_loss(current, ids, flow, 3)) < 1e-3 < still


def test_dis_flow_finds_a_shift() -> None:
    now, before = (moving_frames(2, speed=4)[i].rgb for i in (1, 0))
    flow, agrees = dis_flow(now, before)
    assert agrees.mean() > 0.5
    assert abs(np.median(flow[0][agrees]) - 4) < 0.3
    assert abs(np.median(flow[1][agrees])) < 0.3
