"""Laws of trust: which of two key frames is believed, where."""

import math

import pytest
import torch

from mpvss.engine.fusion import _blur, blend_weight, thumbnail, visible_flow
from mpvss.motion.warp import warp

GRID, PADDED = (16, 24), (64, 96)


def colours(seed=0, grid=GRID):
    return torch.rand(3, *grid, generator=torch.Generator().manual_seed(seed)) * 255


def judged(current, key, flow, distance, gap, padded):
    current, key = (picture.permute(1, 2, 0).contiguous().numpy() for picture in (current, key))
    return blend_weight(current, key, flow, distance, gap, padded)


def weight(current, key, distance=2, gap=5, flow=None):
    flow = torch.zeros(2, *current.shape[1:]) if flow is None else flow
    padded = (current.shape[1] * 4, current.shape[2] * 4)
    return judged(current, key, flow, distance, gap, padded)


def blur(plane, sigma):
    return torch.from_numpy(_blur(plane.numpy(), sigma))


def test_of_a_perfect_match_the_squares_of_both_sides_share_one():
    picture = colours()
    for gap in (2, 5, 10):
        for distance in range(1, gap):
            before, after = weight(picture, picture, distance, gap), weight(picture, picture, gap - distance, gap)
            torch.testing.assert_close(before**2 + after**2, torch.ones(GRID), atol=1e-4, rtol=0)


def test_in_the_middle_both_sides_weigh_the_same():
    current, key = colours(0), colours(1)
    assert torch.equal(weight(current, key, 3, 6), weight(current, key, 6 - 3, 6))


def test_trust_falls_with_the_distance_to_nothing_at_the_other_key_frame():
    picture = colours()
    at = torch.stack([weight(picture, picture, distance, 5) for distance in range(6)])
    shares = torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0]).sqrt()
    torch.testing.assert_close(at.mean((1, 2)), shares, atol=1e-4, rtol=0)
    assert (at.diff(dim=0) < 0).all()


def test_trust_falls_to_one_e_th_at_four_grey_levels_of_error():
    grey = torch.full((3, *GRID), 100.0)
    for error in (0.0, 4.0, 8.0, 30.0):
        for sign in (-1, 1):
            found = weight(grey, grey + sign * error, 1, 4)
            expected = math.sqrt(0.75) * math.exp(-error / 4)
            torch.testing.assert_close(found, torch.full(GRID, expected), atol=1e-5, rtol=1e-4)


def test_the_error_is_the_mean_of_the_three_channels():
    grey = torch.full((3, *GRID), 100.0)
    one = grey.clone()
    one[1] += 24
    torch.testing.assert_close(weight(grey, one), weight(grey, grey + 8), atol=1e-5, rtol=1e-5)


def test_trust_falls_where_the_pictures_differ_and_only_there():
    grey = torch.full((3, *GRID), 100.0)
    other = grey.clone()
    other[:, :, 12:] += 60
    found = weight(grey, other, 1, 2)
    torch.testing.assert_close(found[:, :9], torch.full((16, 9), math.sqrt(0.5)), atol=1e-3, rtol=0)
    assert (found[:, 15:] < 0.01).all()
    assert (found.diff(dim=1) <= 1e-6).all()


def test_the_key_frame_is_compared_where_the_flow_points():
    key = colours()
    flow = torch.zeros(2, *GRID)
    flow[0], flow[1] = 3, -2
    current = warp(key[None], flow[None])[0]
    torch.testing.assert_close(weight(current, key, 1, 2, flow), torch.full(GRID, math.sqrt(0.5)), atol=1e-3, rtol=0)
    assert weight(current, key, 1, 2).mean() < 0.1
    assert weight(current, key, 1, 2, -flow).mean() < 0.1


def test_trust_is_between_zero_and_one():
    found = weight(colours(0) * 0, colours(1) * 0 + 255, 1, 10)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 5.0])
def test_the_blur_keeps_a_constant_also_at_the_border(sigma):
    torch.testing.assert_close(blur(torch.full((9, 13), 7.25), sigma), torch.full((9, 13), 7.25))


def test_the_blur_of_a_point_is_a_gaussian_of_that_width_and_keeps_the_sum():
    point = torch.zeros(41, 41)
    point[20, 20] = 1
    blurred = blur(point, 2.0)
    offsets = torch.arange(-20.0, 21)
    assert abs(float(blurred.sum()) - 1) < 1e-5
    for line in (blurred.sum(0), blurred.sum(1)):
        assert abs(float((line * offsets**2).sum()) - 4) < 0.15
    torch.testing.assert_close(blurred, blurred.T)
    torch.testing.assert_close(blurred, blurred.flip(0, 1))


def test_the_blur_is_three_pixels_of_the_padded_picture_whatever_the_grid():
    """Beside a difference, trust comes back at the same distance in pixels of the picture."""
    reach = []
    for cells in (1, 2):
        grid = (64 // cells, 96 // cells)
        grey = torch.full((3, *grid), 100.0)
        other = grey.clone()
        other[:, :, grid[1] // 2 :] += 60
        found = judged(grey, other, torch.zeros(2, *grid), 1, 2, (64, 96))
        reach.append(cells * float((found[0, : grid[1] // 2] < 0.9 * math.sqrt(0.5)).sum()))
    assert abs(reach[0] - reach[1]) <= 2
    assert 4 <= reach[0] <= 10


@pytest.mark.parametrize("size", [(64, 96), (61, 93), (33, 96), (64, 65)])
def test_a_thumbnail_is_the_average_of_each_cell_with_the_border_repeated_in_the_padding(size):
    image = (torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    found = torch.from_numpy(thumbnail(image, PADDED, GRID)).permute(2, 0, 1)
    rows = torch.arange(PADDED[0]).clamp(max=size[0] - 1)
    columns = torch.arange(PADDED[1]).clamp(max=size[1] - 1)
    expected = image[:, rows][:, :, columns].float().reshape(3, 16, 4, 24, 4).mean((2, 4))
    torch.testing.assert_close(found, expected, atol=0.51, rtol=0)  # rounded to a grey level


def test_a_thumbnail_lies_on_the_grid_of_the_masks():
    """What covers cells 3 to 5 of the mask grid in the picture covers them in the thumbnail, and nothing else."""
    image = torch.zeros(3, 61, 93, dtype=torch.uint8)
    image[:, 12:24, 16:28] = 200
    found = torch.from_numpy(thumbnail(image, PADDED, GRID)).permute(2, 0, 1)
    expected = torch.zeros(3, *GRID)
    expected[:, 3:6, 4:7] = 200
    torch.testing.assert_close(found, expected)


def test_the_visible_flow_is_the_flow_of_the_query_that_shows():
    flow = torch.arange(3.0)[:, None, None, None].expand(3, 2, *GRID).clone()
    flow[:, 1] += 10
    masks = torch.full((3, *GRID), -5.0)
    masks[0, :8], masks[1, 8:] = 5, 5
    masks[2] = 9  # the largest mask everywhere, but of no object
    logits = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 9]])
    found = visible_flow(flow, logits, masks)
    assert found.shape == (2, *GRID)
    assert (found[0, :8] == 0).all()
    assert (found[0, 8:] == 1).all()
    assert torch.equal(found[1], found[0] + 10)


def test_the_visible_query_counts_all_of_its_classes():
    """A query torn between two classes shows before one that is partly of no object."""
    flow = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 2, *GRID)
    logits = torch.tensor([[5.0, 5.0, 0.0], [6.0, 0.0, 5.0]])
    assert (visible_flow(flow, logits, torch.zeros(2, *GRID)) == 1).all()


def test_one_flow_for_all_masks_is_the_visible_one():
    flow = torch.randn(1, 2, *GRID, generator=torch.Generator().manual_seed(0))
    assert torch.equal(visible_flow(flow, torch.zeros(5, 3), torch.zeros(5, *GRID)), flow[0])
