"""Laws of the warp, of composed flows and of resized flows."""

import inspect

import numpy as np
import pytest
import torch

from mpvss.motion.warp import compose, fit_flow, invert, resize_flow, sample, warp


def _random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _loop_warp(values, flow):
    """The definition, pixel by pixel: bilinear between the four neighbours, coordinates clamped to the grid."""
    batch, channels, height, width = values.shape
    out = np.zeros(values.shape)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                px = min(max(x + float(flow[b, 0, y, x]), 0.0), width - 1.0)
                py = min(max(y + float(flow[b, 1, y, x]), 0.0), height - 1.0)
                x0, y0 = int(px), int(py)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                ax, ay = px - x0, py - y0
                for c in range(channels):
                    v = values[b, c]
                    top = (1 - ax) * v[y0, x0] + ax * v[y0, x1]
                    bottom = (1 - ax) * v[y1, x0] + ax * v[y1, x1]
                    out[b, c, y, x] = (1 - ay) * top + ay * bottom
    return torch.from_numpy(out)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (60, 108), (37, 51)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_zero_flow_is_the_identity(size, dtype, tolerance):
    values = _random(2, 3, *size).to(dtype)
    torch.testing.assert_close(warp(values, values.new_zeros(2, 2, *size)), values, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (3, -2), (-4, 5)])
def test_an_integer_shift_equals_slicing(dx, dy):
    values = _random(1, 2, 12, 15)
    flow = torch.tensor([dx, dy], dtype=torch.float64)[None, :, None, None].expand(1, 2, 12, 15)
    # The pixel (x, y) of the current frame shows what was at (x + dx, y + dy).
    inside_y, inside_x = slice(max(0, -dy), 12 - max(0, dy)), slice(max(0, -dx), 15 - max(0, dx))
    from_y, from_x = slice(max(0, dy), 12 + min(0, dy)), slice(max(0, dx), 15 + min(0, dx))
    torch.testing.assert_close(warp(values, flow)[..., inside_y, inside_x], values[..., from_y, from_x])


def test_equals_the_loop_written_reference():
    values, flow = _random(2, 3, 6, 8), _random(2, 2, 6, 8, seed=1, scale=4.0)
    torch.testing.assert_close(warp(values, flow), _loop_warp(values, flow), rtol=0, atol=1e-12)


def test_outside_the_grid_the_border_repeats():
    values = _random(1, 1, 5, 6)
    far = torch.full((1, 2, 5, 6), 100.0, dtype=torch.float64)
    torch.testing.assert_close(warp(values, far), values[..., -1:, -1:].expand_as(values))
    torch.testing.assert_close(warp(values, -far), values[..., :1, :1].expand_as(values))


def test_one_flow_for_many_masks_equals_the_masks_folded_into_the_batch():
    masks, flow = _random(1, 4, 6, 7), _random(1, 2, 6, 7, seed=1)
    folded = warp(masks.transpose(0, 1), flow.expand(4, -1, -1, -1))
    torch.testing.assert_close(warp(masks, flow), folded.transpose(0, 1))


def test_warping_by_the_composed_flow_equals_warping_twice():
    height, width = 14, 17
    ys, xs = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    # Bilinear sampling is exact on a plane, so there the law holds to rounding wherever no position leaves the grid.
    values = torch.stack([0.3 * xs - 0.7 * ys + 2, xs + ys])[None]
    accumulated, step = _random(1, 2, height, width).clamp(-1, 1), _random(1, 2, height, width, seed=1).clamp(-1, 1)
    twice = warp(warp(values, accumulated), step)
    once = warp(values, compose(step, accumulated))
    torch.testing.assert_close(once[..., 3:-3, 3:-3], twice[..., 3:-3, 3:-3], rtol=0, atol=1e-12)


def test_composing_integer_shifts_adds_them_and_nothing_to_compose_is_the_step():
    step = torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 5, 6)
    torch.testing.assert_close(compose(step, 3 * step), 4 * step)
    assert compose(step, None) is step


def test_a_resized_flow_is_scaled_per_axis():
    flow = torch.tensor([1.5, -2.0])[None, :, None, None].expand(1, 2, 6, 8)
    expected = torch.tensor([1.5 * 24 / 8, -2.0 * 12 / 6])[None, :, None, None].expand(1, 2, 12, 24)
    torch.testing.assert_close(resize_flow(flow, (12, 24)), expected)
    assert resize_flow(flow, (6, 8)) is flow


@pytest.mark.parametrize("covered", [(64, 96), (66, 99), (70, 97)])
def test_a_flow_that_covers_more_is_cut_where_the_grid_ends(covered):
    """A linear flow keeps its value at every place, whether or not it ends between two pixels of the grid."""
    height, width = 16, 24
    ys, xs = (torch.arange(height) + 0.5) * covered[0] / height, (torch.arange(width) + 0.5) * covered[1] / width
    flow = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1])[None] * 0.1
    in_its_pixels = flow * torch.tensor([width / covered[1], height / covered[0]])[:, None, None]
    wanted, grid = (60, 90), (40, 60)
    found = fit_flow(in_its_pixels, covered, wanted, grid)
    assert found.shape == (1, 2, *grid)
    ys, xs = (torch.arange(grid[0]) + 0.5) * wanted[0] / grid[0], (torch.arange(grid[1]) + 0.5) * wanted[1] / grid[1]
    expected = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1])[None] * 0.1 * 2 / 3
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-4, rtol=1e-4)


def test_a_flow_that_covers_less_is_refused():
    with pytest.raises(ValueError, match="covers"):
        fit_flow(torch.zeros(1, 2, 8, 8), (32, 32), (40, 32), (10, 8))


def test_an_inverted_flow_leads_back():
    """There and back again is where one was, away from the border; a shift comes out exact."""
    shift = torch.tensor([3.0, -2.0])[None, :, None, None].expand(1, 2, 24, 32)
    torch.testing.assert_close(invert(shift), -shift)
    ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    zoom_and_turn = torch.stack([0.08 * (xs - 32) - 0.05 * (ys - 24), 0.05 * (xs - 32) + 0.08 * (ys - 24)])[None]
    there_and_back = compose(zoom_and_turn, invert(zoom_and_turn))
    assert there_and_back[..., 8:-8, 8:-8].abs().max() < 0.05
    assert zoom_and_turn[..., 8:-8, 8:-8].abs().max() > 2


def test_the_gradients_of_the_warp_are_right():
    values = _random(1, 2, 4, 5).requires_grad_()
    # Sampling has kinks at whole pixels and at the border; a fraction of 0.2 to 0.8 stays clear of both.
    flow = (0.2 + 0.6 * torch.rand(1, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))) - 1
    flow[..., 0, :] += 1
    flow[..., :, 0] += 1
    assert torch.autograd.gradcheck(warp, (values, flow.requires_grad_()))


def test_another_grid_is_refused():
    unchecked = inspect.unwrap(warp)  # below the shape checks that only tests have
    with pytest.raises(ValueError, match=r"got flow \(2, 3\) and values \(4, 6\); use resize_flow first"):
        unchecked(torch.zeros(1, 1, 4, 6), torch.zeros(1, 2, 2, 3))


class _Apple(torch.Tensor):
    """A tensor that says it is on Apple's device, where torch has no border padding."""

    @property
    def device(self):
        return torch.device("mps")


@pytest.mark.parametrize("align_corners", [True, False])
def test_sampling_on_a_device_without_border_padding_is_the_same(align_corners, monkeypatch):
    values = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    grid = torch.rand(2, 5, 6, 2, generator=torch.Generator().manual_seed(1)) * 4 - 2
    expected = torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=align_corners)
    torch.testing.assert_close(sample(values, grid, align_corners=align_corners), expected)
    real, paddings = torch.nn.functional.grid_sample, []

    def without_border(values, grid, *, padding_mode, **options):
        paddings.append(padding_mode)
        return real(values.as_subclass(torch.Tensor), grid, padding_mode=padding_mode, **options)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", without_border)
    found = sample(values.as_subclass(_Apple), grid, align_corners=align_corners)
    assert paddings == ["zeros"]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def _loop_resize(plane, size):
    """The definition: pixel centres at halves, the border repeated."""
    height, width = plane.shape
    out = np.zeros(size)
    for y in range(size[0]):
        py = min(max((y + 0.5) * height / size[0] - 0.5, 0.0), height - 1.0)
        for x in range(size[1]):
            px = min(max((x + 0.5) * width / size[1] - 0.5, 0.0), width - 1.0)
            x0, y0 = int(px), int(py)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            top = plane[y0, x0] + (px - x0) * (plane[y0, x1] - plane[y0, x0])
            bottom = plane[y1, x0] + (px - x0) * (plane[y1, x1] - plane[y1, x0])
            out[y, x] = top + (py - y0) * (bottom - top)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2])
def test_resizing_a_flow_is_resizing_each_axis_and_scaling_it(count, dtype):
    flow = _random(count, 2, 5, 7)
    expected = [[_loop_resize(x, (9, 16)) * 16 / 7, _loop_resize(y, (9, 16)) * 9 / 5] for x, y in flow.numpy()]
    np.testing.assert_allclose(resize_flow(flow.to(dtype), (9, 16)), np.array(expected), atol=1e-5)


def test_a_flow_that_covers_what_is_wanted_is_only_resized():
    flow = _random(1, 2, 8, 12)
    assert torch.equal(fit_flow(flow, (64, 96), (64, 96), (16, 18)), resize_flow(flow, (16, 18)))


@pytest.mark.parametrize("learns", ["values", "flow"])
def test_gradients_pass_the_warp_and_a_resized_flow_in_single_precision_too(learns):
    values, flow = _random(1, 2, 6, 8).float(), _random(1, 2, 3, 4, seed=1).float()
    learned = {"values": values, "flow": flow}[learns].requires_grad_()
    warp(values, resize_flow(flow, (6, 8))).square().sum().backward()
    assert learned.grad is not None and learned.grad.abs().sum() > 0
