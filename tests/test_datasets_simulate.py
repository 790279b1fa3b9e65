"""Simulated pairs: the flow is exact, what is called visible is visible, randomness comes from the generator alone."""

import cv2
import numpy as np
import pytest
import torch

from mpvss.datasets.augment import Pair
from mpvss.datasets.simulate import SimulationConfig, simulate
from mpvss.motion.warp import warp

STILL_CAMERA = {"zoom": 0.0, "pan": 0.0, "rotation": 0.0, "perspective": 0.0}


def scene(size: tuple[int, int] = (96, 128), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, so that interpolating twice changes little, and labels with regions away from the border."""
    random = np.random.default_rng(seed)
    image = cv2.GaussianBlur(random.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 4)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :] = 1
    for class_id, (y, x) in enumerate([(20, 20), (60, 40), (30, 90)], 2):
        label[y : y + 16, x : x + 20] = class_id
    label[:6, :6] = 255
    return image, label


def make(seed: int, labelled: bool = True, **options: object) -> Pair:
    image, label = scene(seed=seed)
    return simulate(image, label if labelled else None, np.random.default_rng(seed), SimulationConfig(**options))


def same(a: Pair, b: Pair, *names: str) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_key_frame_warped_by_the_flow_is_the_current_frame_where_visible(labelled):
    for seed in range(12):
        pair = make(seed, labelled, photometric=0.0, segments=(1, 4))
        assert pair.flow.isfinite().all()
        warped = warp(pair.key[None].float(), pair.flow[None])[0]
        error = (warped - pair.current.float()).abs().amax(0)[pair.visible]
        assert len(error) > 0.3 * pair.visible.numel()
        assert error.mean() < 1.5
        assert error.quantile(0.999) < 12


def test_the_key_labels_warped_are_the_current_labels_where_visible():
    agreed = total = 0
    for seed in range(12):
        pair = make(seed, segments=(1, 4))
        ys, xs = torch.nonzero(pair.visible, as_tuple=True)
        x = (xs + pair.flow[0, ys, xs]).round().long()
        y = (ys + pair.flow[1, ys, xs]).round().long()
        agreed += int((pair.key_label[y, x] == pair.current_label[ys, xs]).sum())
        total += len(xs)
        assert set(pair.current_label.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert agreed / total > 0.99


def test_zero_motion_is_the_identity():
    image, label = scene()
    config = SimulationConfig(frames=(0, 0), segments=(0, 0), photometric=0.0)
    pair = simulate(image, label, np.random.default_rng(0), config)
    expected = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(pair.current, expected)
    assert torch.equal(pair.key, expected)
    assert torch.equal(pair.current_label, torch.from_numpy(label).long())
    assert torch.equal(pair.key_label, pair.current_label)
    assert (pair.flow == 0).all()
    assert pair.visible.all()
    assert pair.distance == 0
    resting = make(0, frames=(0, 0), segments=(3, 3), photometric=0.0)
    assert torch.equal(resting.current, resting.key)
    assert resting.flow.abs().max() < 1e-4


def test_the_generator_decides_everything():
    names = ("current", "key", "current_label", "key_label", "flow", "visible")
    assert same(make(3), make(3), *names)
    image, label = scene()
    first, second = (simulate(image, label, np.random.default_rng(s), SimulationConfig()) for s in (1, 2))
    assert not torch.equal(first.flow, second.flow)


def test_moving_segments_hide_and_uncover():
    for seed in range(5):
        pair = make(seed, segments=(2, 3), frames=(10, 10), own=0.02, photometric=0.0, **STILL_CAMERA)
        hidden = ~pair.visible
        assert 0.005 < hidden.float().mean() < 0.6
        # Some of what is not visible is the resting background: a segment hid it in the key frame.
        resting = (pair.flow == 0).all(0)
        assert (hidden & resting).any()
        assert (pair.visible & resting).any()
        # There the labels of the two frames differ: one has the segment.
        assert (pair.current_label != pair.key_label)[hidden].any()


def test_a_segment_moves_by_one_affine_map_over_a_resting_background():
    pair = make(1, segments=(1, 1), frames=(10, 10), photometric=0.0, **STILL_CAMERA)
    ys, xs = torch.nonzero((pair.flow != 0).any(0), as_tuple=True)
    assert len(xs) > 100
    points = torch.stack([torch.ones(len(xs)), xs, ys], 1)
    moved = pair.flow[:, ys, xs].T
    fitted = points @ torch.linalg.lstsq(points, moved).solution
    assert (fitted - moved).abs().max() < 1e-2
    assert pair.current_label[ys, xs].unique().numel() == 1


def test_photometric_change_leaves_the_geometry_alone():
    plain, changed = make(4, photometric=0.0), make(4, photometric=1.0)
    assert same(plain, changed, "current_label", "key_label", "flow", "visible")
    assert not torch.equal(plain.current, changed.current)
    assert not torch.equal(plain.key, changed.key)
    assert (plain.current.float() - changed.current.float()).abs().mean() < 20


def test_motion_grows_with_time():
    def displacement(frames: int) -> float:
        pairs = [make(seed, frames=(frames, frames), segments=(0, 0)) for seed in range(20)]
        return float(np.mean([pair.flow.norm(dim=0).mean() for pair in pairs]))

    short, long = displacement(1), displacement(10)
    assert 8 < long / short < 12
    # 2 to 3 pixels for each frame on images of 360 rows.
    assert 1.5 < short * 360 / 96 < 4


def test_what_the_camera_finds_outside_has_no_label_and_is_not_visible():
    pair = make(0, segments=(0, 0), frames=(10, 10), pan=0.01)
    height, width = pair.visible.shape
    x, y = pair.flow[0] + torch.arange(width), pair.flow[1] + torch.arange(height)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    assert torch.equal(pair.visible, inside)
    far = (x < -0.51) | (x > width - 0.49) | (y < -0.51) | (y > height - 0.49)
    assert far.any()
    assert (pair.current_label[far] == 255).all()


def test_labels_of_16_bits_and_odd_sizes():
    image, label = scene((97, 131))
    wide = simulate(image, label.astype(np.uint16), np.random.default_rng(0), SimulationConfig(segments=(3, 3)))
    narrow = simulate(image, label, np.random.default_rng(0), SimulationConfig(segments=(3, 3)))
    assert same(wide, narrow, "current", "key", "current_label", "key_label", "flow", "visible")
    tiny = simulate(image[:16, :16], None, np.random.default_rng(0), SimulationConfig(segments=(4, 4)))
    assert tiny.current.shape == (3, 16, 16)
    assert tiny.current_label is None
    for seed in range(20):  # everything has one label, or none: no region can move
        for value in (0, 255):
            simulate(image, np.full_like(label, value), np.random.default_rng(seed), SimulationConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": (3, 2)}, "frames must be"),
        ({"segments": (0, 300)}, "segments must be"),
        ({"segment_area": (0.0, 0.1)}, "segment_area must be"),
        ({"pan": -0.1}, "pan must be 0 or more"),
        ({"own": float("nan")}, "own must be 0 or more"),
        ({"zoom": 0.2}, "zoom, perspective and own_zoom must be at most 0.05 for 10 frames"),
    ],
)
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**options)


def test_too_small_a_picture():
    with pytest.raises(ValueError, match="at least 16x16"):
        simulate(np.zeros((8, 40, 3), np.uint8), None, np.random.default_rng(0), SimulationConfig())
