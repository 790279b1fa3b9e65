"""Laws of the warp and of flows as arrays, and the one that ties them to those of tensors."""

import inspect

import numpy as np
import pytest
import torch

from mpvss.motion import arrays, warp


def _random(*shape, seed=0, scale=1.0):
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape, np.float32)


def _constant(vector, size, count=1):
    return np.broadcast_to(np.array(vector, np.float32)[:, None, None], (count, 2, *size)).copy()


def _positions(size):
    """The x and y of every pixel."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0]))).astype(np.float32)


def _at(plane, y, x):
    """The definition of sampling: bilinear between the four neighbours, positions clamped to the grid; in float64."""
    height, width = plane.shape
    y, x = min(max(float(y), 0.0), height - 1.0), min(max(float(x), 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = plane[y0, x0] + (x - x0) * (float(plane[y0, x1]) - plane[y0, x0])
    bottom = plane[y1, x0] + (x - x0) * (float(plane[y1, x1]) - plane[y1, x0])
    return top + (y - y0) * (bottom - top)


def _loop_warp(values, flow):
    height, width = values.shape[1:]
    return np.array(
        [
            [[_at(plane, y + flow[1, y, x], x + flow[0, y, x]) for x in range(width)] for y in range(height)]
            for plane in values
        ]
    )


def _loop_spread(maps, whole, size):
    """Pixel centres at halves, the border repeated, at the first ``size`` of ``whole`` pixels."""
    scale = [cells / all_ for cells, all_ in zip(maps.shape[1:], whole, strict=True)]
    return np.array(
        [
            [
                [_at(p, (y + 0.5) * scale[0] - 0.5, (x + 0.5) * scale[1] - 0.5) for x in range(size[1])]
                for y in range(size[0])
            ]
            for p in maps
        ]
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (60, 108), (37, 51)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_zero_flow_is_the_identity(size, count):
    values = _random(count, *size)
    np.testing.assert_array_equal(arrays.warp(values, np.zeros((2, *size), np.float32)), values)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (3, -2), (-4, 5)])
def test_an_integer_shift_equals_slicing(dx, dy):
    values = _random(2, 12, 15)
    # The pixel (x, y) of the current frame shows what was at (x + dx, y + dy).
    inside_y, inside_x = slice(max(0, -dy), 12 - max(0, dy)), slice(max(0, -dx), 15 - max(0, dx))
    from_y, from_x = slice(max(0, dy), 12 + min(0, dy)), slice(max(0, dx), 15 + min(0, dx))
    warped = arrays.warp(values, _constant((dx, dy), (12, 15))[0])
    np.testing.assert_array_equal(warped[:, inside_y, inside_x], values[:, from_y, from_x])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_loop_written_reference(count):
    """With two channels as with any other number: positions are not rounded."""
    values, flow = _random(count, 6, 8), _random(2, 6, 8, seed=1, scale=4.0)
    np.testing.assert_allclose(arrays.warp(values, flow), _loop_warp(values, flow), atol=1e-5)


def test_outside_the_grid_the_border_repeats():
    values = _random(1, 5, 6)
    far = np.full((2, 5, 6), 100, np.float32)
    np.testing.assert_array_equal(arrays.warp(values, far), np.broadcast_to(values[:, -1:, -1:], values.shape))
    np.testing.assert_array_equal(arrays.warp(values, -far), np.broadcast_to(values[:, :1, :1], values.shape))


def test_every_layout_of_values_is_warped_alike_and_none_is_changed():
    values, flow = _random(3, 6, 8), _random(2, 6, 8, seed=1)
    expected = arrays.warp(values, flow)
    laid_out = np.asfortranarray(values), np.repeat(values, 2, 2)[..., ::2], values[:, ::-1].copy()[:, ::-1]
    for each in laid_out:
        copy = each.copy()
        np.testing.assert_array_equal(arrays.warp(each, flow), expected)
        np.testing.assert_array_equal(each, copy)


def test_maps_have_a_flow_each_or_one_for_all():
    values, flows = _random(4, 6, 8), _random(4, 2, 6, 8, seed=1)
    each = np.concatenate([arrays.warp(values[i : i + 1], flows[i]) for i in range(4)])
    np.testing.assert_array_equal(arrays.warp_each(values, flows), each)
    np.testing.assert_array_equal(arrays.warp_each(values, flows[:1]), arrays.warp(values, flows[0]))


def test_warping_by_the_composed_flow_equals_warping_twice():
    size = (14, 17)
    xs, ys = _positions(size)
    # Bilinear sampling is exact on a plane, so there the law holds to rounding wherever no position leaves the grid.
    values = np.stack([0.3 * xs - 0.7 * ys + 2, xs + ys]).astype(np.float32)
    accumulated, step = (_random(1, 2, *size, seed=seed).clip(-1, 1) for seed in (0, 1))
    twice = arrays.warp(arrays.warp(values, accumulated[0]), step[0])
    once = arrays.warp(values, arrays.compose(step, accumulated)[0])
    np.testing.assert_allclose(once[:, 3:-3, 3:-3], twice[:, 3:-3, 3:-3], atol=1e-4)


def test_composing_integer_shifts_adds_them_and_nothing_to_compose_is_the_step():
    step = _constant((2, -1), (5, 6), count=3)
    np.testing.assert_array_equal(arrays.compose(step, 3 * step), 4 * step)
    assert arrays.compose(step, None) is step


def test_an_inverted_flow_leads_back():
    """There and back again is where one was, away from the border; a shift comes out exact."""
    shift = _constant((3, -2), (24, 32))
    np.testing.assert_array_equal(arrays.invert(shift), -shift)
    xs, ys = _positions((48, 64)) - np.array([32, 24], np.float32)[:, None, None]
    zoom_and_turn = np.stack([0.08 * xs - 0.05 * ys, 0.05 * xs + 0.08 * ys])[None].astype(np.float32)
    there_and_back = arrays.compose(zoom_and_turn, arrays.invert(zoom_and_turn))
    assert np.abs(there_and_back[..., 8:-8, 8:-8]).max() < 0.05
    assert np.abs(zoom_and_turn[..., 8:-8, 8:-8]).max() > 2


@pytest.mark.parametrize("size", [(9, 16), (5, 31), (12, 7), (3, 3)])
def test_resizing_equals_the_loop_written_reference(size):
    maps = _random(3, 5, 7)
    resized = arrays.resize(maps, size)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, _loop_spread(maps, size, size), atol=1e-5)


def test_resizing_bytes_is_resizing_numbers_to_rounding():
    maps = np.random.default_rng(0).integers(0, 256, (2, 5, 7), np.uint8)
    resized = arrays.resize(maps, (9, 16))
    assert resized.dtype == np.uint8
    expected = arrays.resize(maps.astype(np.float32), (9, 16))
    np.testing.assert_allclose(resized.astype(float), expected, atol=1.01)


def test_a_resized_flow_is_scaled_per_axis():
    flow = _constant((1.5, -2), (6, 8), count=2)
    np.testing.assert_array_equal(arrays.resize_flow(flow, (12, 24)), _constant((4.5, -4), (12, 24), count=2))
    assert arrays.resize_flow(flow, (6, 8)) is flow


@pytest.mark.parametrize("whole", [(20.0, 30.0), (20.5, 30.25), (12.0, 31.5), (40 / 3, 20.0)])
def test_spreading_is_resizing_to_the_whole_even_where_it_ends_within_a_pixel(whole):
    maps, size = _random(2, 8, 11), (12, 20)
    np.testing.assert_allclose(arrays.spread(maps, whole, size), _loop_spread(maps, whole, size), atol=1e-5)


@pytest.mark.parametrize("covered", [(64, 96), (66, 99), (70, 97)])
def test_a_flow_that_covers_more_is_cut_where_the_grid_ends(covered):
    """A linear flow keeps its value at every place, whether or not it ends between two pixels of the grid."""

    def linear(size, pixels):
        """A tenth of the place, in pixels of the grid, where a grid of this size covers so many pixels."""
        cell = np.array([pixels[1] / size[1], pixels[0] / size[0]], np.float32)[:, None, None]
        return ((_positions(size) + 0.5) * cell * 0.1 / cell)[None].astype(np.float32)

    target, grid = (60, 90), (40, 60)
    fitted = arrays.fit_flow(linear((16, 24), covered), covered, target, grid)
    assert fitted.shape == (1, 2, *grid)
    expected = linear(grid, target)
    np.testing.assert_allclose(fitted[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-4, rtol=1e-4)


def test_a_flow_that_covers_what_is_wanted_is_only_resized():
    flow = _random(1, 2, 8, 12)
    fitted = arrays.fit_flow(flow, (64, 96), (64, 96), (16, 18))
    np.testing.assert_array_equal(fitted, arrays.resize_flow(flow, (16, 18)))


def test_a_flow_that_covers_less_is_refused():
    with pytest.raises(ValueError, match=r"flow covers \(32, 32\) pixels, the grid \(10, 8\) covers \(40, 32\)"):
        arrays.fit_flow(np.zeros((1, 2, 8, 8), np.float32), (32, 32), (40, 32), (10, 8))


def test_another_grid_is_refused():
    unchecked = inspect.unwrap(arrays.warp)  # below the shape checks that only tests have
    with pytest.raises(ValueError, match=r"got flow \(2, 3\) and values \(4, 6\); use resize_flow first"):
        unchecked(np.zeros((1, 4, 6), np.float32), np.zeros((2, 2, 3), np.float32))


_SIZES = [(1, 1), (1, 9), (7, 1), (24, 31), (60, 108)]


def _tensors(*values):
    return (torch.from_numpy(value) for value in values)


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_arrays_and_tensors_are_warped_composed_and_inverted_alike(size, seed):
    """Law: both are the same functions, to 1e-4; smooth flows, as rounding moves a position by some 1e-5."""
    values = _random(3, *size, seed=seed)
    step, accumulated = (
        arrays.resize(_random(4, 4, 5, seed=seed + number, scale=5.0), size).reshape(2, 2, *size) for number in (10, 20)
    )
    tensors = list(_tensors(values[None], step, accumulated))
    for flow, ours in zip(step, tensors[1], strict=True):
        expected = warp.warp(tensors[0], ours[None])[0]
        np.testing.assert_allclose(arrays.warp(values, flow), expected, atol=1e-4)
    np.testing.assert_allclose(arrays.compose(step, accumulated), warp.compose(*tensors[1:]), atol=1e-4)
    np.testing.assert_allclose(arrays.invert(step), warp.invert(tensors[1]), atol=1e-4)


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("target", [(1, 1), (8, 9), (33, 62), (60, 108)])
def test_flows_of_arrays_and_of_tensors_are_resized_alike(size, target):
    flow = _random(3, 2, *size, scale=5.0)
    expected = warp.resize_flow(torch.from_numpy(flow), target)
    np.testing.assert_allclose(arrays.resize_flow(flow, target), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("covered", "target", "grid"),
    [((64, 96), (64, 96), (16, 24)), ((64, 96), (60, 90), (40, 60)), ((70, 97), (61, 93), (16, 24)),
     ((96, 128), (65, 97), (65, 97)), ((64, 64), (1, 1), (1, 1))],
)  # fmt: skip
def test_flows_of_arrays_and_of_tensors_are_fitted_alike(covered, target, grid):
    flow = _random(2, 2, covered[0] // 4, covered[1] // 4, scale=5.0)
    expected = warp.fit_flow(torch.from_numpy(flow), covered, target, grid)
    np.testing.assert_allclose(arrays.fit_flow(flow, covered, target, grid), expected, atol=1e-4)
