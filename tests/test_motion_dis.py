"""Laws of the propagators that need no training: what they find, in which direction, on which grid."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from mpvss.motion.arrays import warp
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.propagator import Propagator

SIZE = (96, 128)


def texture(seed=0, size=SIZE):
    """Soft blobs of two sizes, of which every patch is another."""
    random = np.random.default_rng(seed)
    rough = [cv2.GaussianBlur(random.normal(0, 1, size), (0, 0), sigma) * sigma for sigma in (2, 6)]
    plane = sum(rough)
    plane = (plane - plane.min()) / max(np.ptp(plane), 1e-9) * 255
    return np.repeat(plane.astype(np.uint8)[None, ..., None], 3, 3)


def moved(dx, dy, size=SIZE, seed=0):
    """The current image and the other one, where the content of (x, y) is at (x + dx, y + dy)."""
    margin = 16
    wide = texture(seed, (size[0] + 2 * margin, size[1] + 2 * margin))
    current = wide[:, margin : margin + size[0], margin : margin + size[1]]
    other = wide[:, margin - dy :, margin - dx :][:, : size[0], : size[1]]
    return current, other


def estimate(propagator, current, other, padded=None, grid=None):
    size = current.shape[1:3]
    padded = padded or size
    return propagator.estimate_flow(current, other, None, padded, grid or (padded[0] // 4, padded[1] // 4))


def inside(flow, cells=4):
    return flow[..., cells:-cells, cells:-cells]


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium", "lean", "fine"])
@pytest.mark.parametrize(("dx", "dy"), [(4, 0), (0, 4), (-3, 2), (5, -6)])
def test_dis_points_from_the_current_picture_to_the_same_content_in_the_other(preset, dx, dy):
    flow = estimate(Dis(preset), *moved(dx, dy), grid=SIZE)
    assert flow.shape == (1, 1, 2, *SIZE)
    error = np.abs(inside(flow[0, 0] - np.array([dx, dy])[:, None, None], 12))
    assert np.median(error) < 0.3
    assert error.max() < 1.5


def test_warping_the_other_picture_by_the_flow_gives_the_current_one():
    current, other = moved(5, -3)
    now, then = (image[0].transpose(2, 0, 1).astype(np.float32) for image in (current, other))
    warped = warp(then, estimate(Dis(), current, other, grid=SIZE)[0, 0])
    still = inside(np.abs(then - now), 12).mean()
    assert inside(np.abs(warped - now), 12).mean() < 0.1 * still


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_on_a_coarser_grid_the_flow_is_the_same_motion_in_its_pixels(factor, scale):
    flow = estimate(Dis(scale=scale), *moved(6, -4), grid=(SIZE[0] // factor, SIZE[1] // factor))
    assert flow.shape == (1, 1, 2, SIZE[0] // factor, SIZE[1] // factor)
    middle = np.median(inside(flow[0, 0], 16 // factor), (1, 2))
    np.testing.assert_allclose(middle, np.array([6, -4]) / factor, atol=0.5 / factor)


def test_a_cell_of_the_grid_takes_the_average_of_its_pixels():
    current, other = moved(3, 1)
    fine, coarse = (estimate(Dis("fine"), current, other, grid=grid) for grid in (SIZE, (SIZE[0] // 4, SIZE[1] // 4)))
    cells = fine[0, 0].reshape(2, SIZE[0] // 4, 4, SIZE[1] // 4, 4).mean((2, 4)) / 4
    np.testing.assert_allclose(coarse[0, 0], cells, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["lean", "fine"])
def test_an_exposure_that_changes_is_no_motion(preset):
    current, other = moved(6, -4)
    brighter = np.minimum(other * 1.25, 255).astype(np.uint8)
    flow, same = (estimate(Dis(preset), current, then, grid=SIZE)[0, 0] for then in (brighter, other))
    off = inside(np.linalg.norm(flow - same, axis=0), 12)
    assert off.mean() < 0.25


@pytest.mark.parametrize("preset", ["lean", "fine"])
def test_something_bright_that_comes_in_does_not_move_the_rest(preset):
    still = (texture(3, SIZE) * 0.6).astype(np.uint8)
    current, other = still.copy(), still.copy()
    current[:, 30:70, :60], other[:, 30:70, :40] = 250, 250
    flow = estimate(Dis(preset), current, other, grid=SIZE)[0, 0]
    assert np.abs(flow[..., 80:]).max() < 0.05


def test_a_grid_that_does_not_divide_the_picture_is_scaled_per_axis():
    flow = estimate(Dis(), *moved(6, -4), grid=(36, 50))
    middle = np.median(inside(flow[0, 0], 6), (1, 2))
    np.testing.assert_allclose(middle, [6.0 * 50 / 128, -4.0 * 36 / 96], atol=0.15)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("size", [(90, 100), (65, 127), (96, 97)])
def test_padding_does_not_shift_the_flow(size, scale):
    """Only a disc moves: the flow is where the disc is in the image, whatever was padded at right and bottom."""
    padded = tuple(-(-side // 32) * 32 for side in size)
    ground, (near, far) = texture(1, size), moved(6, 0, size, seed=2)
    ys, xs = np.mgrid[: size[0], : size[1]]
    centre, radius = (size[0] // 2, size[1] // 2), 22
    disc = ((ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 < radius**2)[..., None]
    current = np.where(disc, near, ground)
    other = np.where(np.roll(disc, 6, 1), far, ground)
    flow = estimate(Dis("fine", scale=scale), current, other, padded)
    assert flow.shape[-2:] == (padded[0] // 4, padded[1] // 4)
    motion = flow[0, 0, 0] > 0.75
    rows, columns = np.argwhere(motion).mean(0)
    assert abs(rows * 4 + 1.5 - centre[0]) < 4
    assert abs(columns * 4 + 1.5 - centre[1]) < 4
    assert abs(motion.sum() * 16 / (np.pi * radius**2) - 1) < 0.4


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium", "lean", "fine"])
def test_identical_pictures_have_no_flow(preset):
    picture = texture()
    assert np.abs(estimate(Dis(preset), picture, picture)).max() < 0.05


def test_a_batch_is_its_pictures_one_by_one():
    pairs = [moved(4, 0), moved(-2, 3, seed=5)]
    together = estimate(Dis(), np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
    np.testing.assert_array_equal(together, np.concatenate([estimate(Dis(), *pair) for pair in pairs]))


def test_one_other_picture_serves_a_batch():
    (one, other), (two, _) = moved(4, 0), moved(-2, 3, seed=5)
    together = estimate(Dis(), np.concatenate([one, two]), other)
    alone = np.concatenate([estimate(Dis(), current, other) for current in (one, two)])
    np.testing.assert_array_equal(together, alone)


def test_one_object_serves_pictures_of_several_sizes_and_keeps_nothing_of_them():
    dis = Dis()
    first = estimate(dis, *moved(4, 0))
    estimate(dis, *moved(-3, 2, (64, 160), seed=3))
    np.testing.assert_array_equal(estimate(dis, *moved(4, 0)), first)


def test_threads_that_share_one_object_get_what_one_thread_gets():
    dis, pairs = Dis(), [moved(dx, dy, seed=seed) for seed, (dx, dy) in enumerate([(4, 0), (-3, 2), (0, 5), (2, -2)])]
    alone = [estimate(dis, *pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            shared = list(pool.map(lambda pair: estimate(dis, *pair), pairs))
            for ours, theirs in zip(shared, alone, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (15, 15), (200, 3)])
def test_pictures_too_small_for_a_search_have_no_flow(size):
    one, other = texture(0, size), texture(1, size)
    assert not estimate(Dis(), one, other, size, (max(1, size[0] // 4), max(1, size[1] // 4))).any()


def test_half_a_picture_too_small_for_a_search_has_no_flow():
    one, other = texture(0, (31, 64)), texture(1, (31, 64))
    assert not estimate(Dis(scale=0.5), one, other, (31, 64), (8, 16)).any()
    assert estimate(Dis(), one, other, (31, 64), (8, 16)).any()


@pytest.mark.parametrize("size", [(16, 16), (17, 40)])
@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium", "lean", "fine"])
def test_the_smallest_pictures_have_a_finite_flow(size, preset):
    assert np.isfinite(estimate(Dis(preset), texture(0, size), texture(1, size), size, (4, 4))).all()


def test_a_finer_search_is_not_worse():
    current, other = moved(3, -2)
    expected = np.array([3, -2])[:, None, None]
    errors = [
        inside(np.abs(estimate(Dis(finest_scale=level), current, other, grid=SIZE)[0, 0] - expected), 12).mean()
        for level in (0, 2)
    ]
    assert errors[0] <= errors[1] + 0.02
    assert errors[0] != errors[1]


def test_hold_never_moves():
    one, other = moved(4, 0)
    flow = Hold().estimate_flow(np.concatenate([one, one]), np.concatenate([other, other]), None, SIZE, (24, 32))
    assert flow.shape == (2, 1, 2, 24, 32)
    assert not flow.any()


@pytest.mark.parametrize(("propagator", "name"), [(Hold(), "hold"), (Dis(), "dis")])
def test_both_keep_the_protocol(propagator, name):
    assert isinstance(propagator, Propagator)
    assert propagator.name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "preset must be one of ultrafast, fast, medium, lean, fine, got 'slow'"),
        ({"scale": 0.0}, r"scale must be above 0 and at most 1, got 0\.0"),
        ({"scale": 1.5}, r"scale must be above 0 and at most 1, got 1\.5"),
        ({"finest_scale": -1}, "finest_scale must be at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dis(**options)
