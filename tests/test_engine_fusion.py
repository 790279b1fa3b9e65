"""Laws of trust: which of two key frames is believed, where."""

import math

import numpy as np
import pytest

from mpvss.engine.fusion import _blur, blend_weight, thumbnail, visible_flow
from mpvss.motion.arrays import warp

GRID, PADDED = (16, 24), (64, 96)


def colours(seed=0, grid=GRID):
    return np.random.default_rng(seed).random((*grid, 3), np.float32) * 255


def grey(grid=GRID):
    return np.full((*grid, 3), 100, np.float32)


def weight(current, key, distance=2, gap=5, flow=None):
    grid = current.shape[:2]
    flow = np.zeros((2, *grid), np.float32) if flow is None else flow
    return blend_weight(current, key, flow, distance, gap, (grid[0] * 4, grid[1] * 4))


def test_of_a_perfect_match_the_squares_of_both_sides_share_one():
    picture = colours()
    for gap in (2, 5, 10):
        for distance in range(1, gap):
            before, after = weight(picture, picture, distance, gap), weight(picture, picture, gap - distance, gap)
            np.testing.assert_allclose(before**2 + after**2, np.ones(GRID), atol=1e-4)


def test_in_the_middle_both_sides_weigh_the_same():
    current, key = colours(0), colours(1)
    np.testing.assert_array_equal(weight(current, key, 3, 6), weight(current, key, 6 - 3, 6))


def test_trust_falls_with_the_distance_to_nothing_at_the_other_key_frame():
    picture = colours()
    at = np.stack([weight(picture, picture, distance, 5) for distance in range(6)])
    np.testing.assert_allclose(at.mean((1, 2)), np.sqrt([1, 0.8, 0.6, 0.4, 0.2, 0]), atol=1e-4)
    assert (np.diff(at, axis=0) < 0).all()


def test_trust_falls_to_one_e_th_at_four_grey_levels_of_error():
    for error in (0.0, 4.0, 8.0, 30.0):
        for sign in (-1, 1):
            found = weight(grey(), grey() + np.float32(sign * error), 1, 4)
            expected = math.sqrt(0.75) * math.exp(-error / 4)
            np.testing.assert_allclose(found, np.full(GRID, expected), atol=1e-5, rtol=1e-4)


def test_the_error_is_the_mean_of_the_three_channels():
    one = grey()
    one[..., 1] += 24
    np.testing.assert_allclose(weight(grey(), one), weight(grey(), grey() + np.float32(8)), atol=1e-5, rtol=1e-5)


def test_trust_falls_where_the_pictures_differ_and_only_there():
    other = grey()
    other[:, 12:] += 60
    found = weight(grey(), other, 1, 2)
    np.testing.assert_allclose(found[:, :9], np.full((16, 9), math.sqrt(0.5)), atol=1e-3)
    assert (found[:, 15:] < 0.01).all()
    assert (np.diff(found, axis=1) <= 1e-6).all()


def test_the_key_frame_is_compared_where_the_flow_points():
    key = colours()
    flow = np.zeros((2, *GRID), np.float32)
    flow[0], flow[1] = 3, -2
    current = np.ascontiguousarray(warp(key.transpose(2, 0, 1), flow).transpose(1, 2, 0))
    np.testing.assert_allclose(weight(current, key, 1, 2, flow), np.full(GRID, math.sqrt(0.5)), atol=1e-3)
    assert weight(current, key, 1, 2).mean() < 0.1
    assert weight(current, key, 1, 2, -flow).mean() < 0.1


def test_trust_is_between_zero_and_one():
    found = weight(colours(0) * 0, colours(1) * 0 + 255, 1, 10)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 5.0])
def test_the_blur_keeps_a_constant_also_at_the_border(sigma):
    np.testing.assert_allclose(_blur(np.full((9, 13), 7.25, np.float32), sigma), np.full((9, 13), 7.25), rtol=1e-5)


def test_the_blur_of_a_point_is_a_gaussian_of_that_width_and_keeps_the_sum():
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    blurred = _blur(point, 2.0)
    offsets = np.arange(-20, 21)
    assert abs(float(blurred.sum()) - 1) < 1e-5
    for line in (blurred.sum(0), blurred.sum(1)):
        assert abs(float((line * offsets**2).sum()) - 4) < 0.15
    np.testing.assert_allclose(blurred, blurred.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(blurred, blurred[::-1, ::-1], rtol=1e-5, atol=1e-7)


def test_the_blur_is_three_pixels_of_the_padded_picture_whatever_the_grid():
    """Beside a difference, trust comes back at the same distance in pixels of the picture."""
    reach = []
    for cells in (1, 2):
        grid = (64 // cells, 96 // cells)
        other = grey(grid)
        other[:, grid[1] // 2 :] += 60
        found = blend_weight(grey(grid), other, np.zeros((2, *grid), np.float32), 1, 2, (64, 96))
        reach.append(cells * float((found[0, : grid[1] // 2] < 0.9 * math.sqrt(0.5)).sum()))
    assert abs(reach[0] - reach[1]) <= 2
    assert 4 <= reach[0] <= 10


@pytest.mark.parametrize("size", [(64, 96), (61, 93), (33, 96), (64, 65)])
def test_a_thumbnail_is_the_average_of_each_cell_with_the_border_repeated_in_the_padding(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = thumbnail(image, PADDED, GRID)
    whole = np.pad(image, ((0, PADDED[0] - size[0]), (0, PADDED[1] - size[1]), (0, 0)), mode="edge")
    expected = whole.reshape(16, 4, 24, 4, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=0.51)  # rounded to a grey level


def test_a_thumbnail_lies_on_the_grid_of_the_masks():
    """What covers cells 3 to 5 of the mask grid in the picture covers them in the thumbnail, and nothing else."""
    image = np.zeros((61, 93, 3), np.uint8)
    image[12:24, 16:28] = 200
    found = thumbnail(image, PADDED, GRID)
    expected = np.zeros((*GRID, 3), np.float32)
    expected[3:6, 4:7] = 200
    np.testing.assert_array_equal(found, expected)


def test_the_visible_flow_is_the_flow_of_the_query_that_shows():
    flow = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None, None], (3, 2, *GRID)).copy()
    flow[:, 1] += 10
    masks = np.full((3, *GRID), -5, np.float32)
    masks[0, :8], masks[1, 8:] = 5, 5
    masks[2] = 9  # the largest mask everywhere, but of no object
    logits = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 9]], np.float32)
    found = visible_flow(flow, logits, masks)
    assert found.shape == (2, *GRID)
    assert (found[0, :8] == 0).all()
    assert (found[0, 8:] == 1).all()
    np.testing.assert_array_equal(found[1], found[0] + 10)


def test_the_visible_query_counts_all_of_its_classes():
    """A query torn between two classes shows before one that is partly of no object."""
    flow = np.array([1, 2], np.float32)[:, None, None, None] * np.ones((2, 2, *GRID), np.float32)
    logits = np.array([[5, 5, 0], [6, 0, 5]], np.float32)
    assert (visible_flow(flow, logits, np.zeros((2, *GRID), np.float32)) == 1).all()


def test_one_flow_for_all_masks_is_the_visible_one():
    flow = np.random.default_rng(0).standard_normal((1, 2, *GRID), np.float32)
    found = visible_flow(flow, np.zeros((5, 3), np.float32), np.zeros((5, *GRID), np.float32))
    np.testing.assert_array_equal(found, flow[0])
