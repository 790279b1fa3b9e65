"""The winner of each pixel of a frame that is larger than its class scores, against the plain definition."""

import numpy as np
import pytest

from mpvss.engine import enlarge
from mpvss.engine.enlarge import enlarged_winner

SIZES = (
    ((1, 1), (1, 1)),
    ((1, 1), (5, 3)),
    ((1, 9), (1, 9)),
    ((1, 9), (4, 31)),
    ((7, 1), (20, 6)),
    ((2, 2), (2, 2)),
    ((2, 3), (37, 41)),
    ((12, 17), (27, 38)),
    ((12, 17), (12, 40)),
    ((30, 53), (68, 120)),
    ((20, 30), (7, 61)),
    ((20, 30), (9, 11)),
)


def interpolated(planes: np.ndarray, size: tuple[int, int], one: int | None) -> np.ndarray:
    """Every plane at every pixel, bilinear, centres at halves; ``one`` is what weights in whole numbers sum to."""
    for axis, pixels in zip((1, 2), size, strict=True):
        scores = planes.shape[axis]
        at = np.clip((np.arange(pixels) + 0.5) * (scores / pixels) - 0.5, 0, scores - 1)
        before = np.floor(at).astype(int)
        share = at - before
        weight = np.rint(share * one).astype(np.int64) if one else share
        shape = (-1, 1) if axis == 1 else (-1,)
        first = planes.take(before, axis) * ((one or 1) - weight).reshape(shape)
        planes = first + planes.take(np.minimum(before + 1, scores - 1), axis) * weight.reshape(shape)
    return planes


def made(seed: int, count: int, grid: tuple[int, int], levels: int) -> np.ndarray:
    """Planes of few levels, in patches, so that ties and cells of one winner are frequent."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, levels, (count, *(-(-side // 3) for side in grid)))
    patches = coarse.repeat(3, 1).repeat(3, 2)[:, : grid[0], : grid[1]]
    noisy = np.where(rng.random((count, *grid)) < 0.2, rng.integers(0, levels, (count, *grid)), patches)
    return noisy * (255 // (levels - 1))


@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("levels", [2, 4, 256])
def test_bytes_give_the_winner_of_exact_interpolation(grid, size, levels):
    for seed, count in enumerate((1, 2, 3, 11, 19)):
        planes = made(seed, count, grid, levels)
        expected = interpolated(planes.astype(np.int64), size, 2048).argmax(0)
        np.testing.assert_array_equal(enlarged_winner(planes.astype(np.uint8), size), expected)


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_floats_give_the_winner_up_to_rounding(grid, size):
    for seed, count in enumerate((1, 2, 7, 19)):
        rng = np.random.default_rng(seed)
        # Scores in some places, logits of either sign in others, in patches.
        planes = (made(seed, count, grid, 256) + rng.normal(0, 5, (count, *grid)) - 60).astype(np.float32)
        exact = interpolated(planes.astype(np.float64), size, None)
        winner = enlarged_winner(planes, size)
        chosen = np.take_along_axis(exact, winner[None].astype(np.intp), 0)[0]
        assert (exact.max(0) - chosen).max(initial=0) <= 1e-4
        assert np.mean(winner != exact.argmax(0)) <= 0.001


def test_ties_of_floats_go_to_the_first_plane():
    # Sizes of a power of two: nothing is rounded, so equal is equal.
    planes = made(3, 9, (16, 32), 3).astype(np.float32)
    planes = np.concatenate([planes, planes])
    expected = interpolated(planes.astype(np.float64), (64, 128), None).argmax(0)
    np.testing.assert_array_equal(enlarged_winner(planes, (64, 128)), expected)
    assert expected.max() < 9


def test_a_class_that_wins_at_no_corner_wins_between_them():
    planes = np.array([[[10, 0], [10, 0]], [[0, 10], [0, 10]], [[9, 9], [9, 9]]], np.uint8)
    assert set(enlarged_winner(planes, (2, 9)).ravel().tolist()) == {0, 1, 2}


def test_more_planes_than_a_byte_counts():
    planes = made(5, 300, (6, 7), 256).astype(np.uint8)
    winner = enlarged_winner(planes, (13, 20))
    assert winner.dtype == np.uint16
    np.testing.assert_array_equal(winner, interpolated(planes.astype(np.int64), (13, 20), 2048).argmax(0))


def test_few_cells_at_a_time_give_the_same(monkeypatch):
    planes = made(6, 8, (30, 40), 256).astype(np.uint8)
    whole = enlarged_winner(planes, (70, 90))
    monkeypatch.setattr(enlarge, "_AT_ONCE", 7)
    np.testing.assert_array_equal(enlarged_winner(planes, (70, 90)), whole)


def test_cells_of_one_winner_are_not_interpolated(monkeypatch):
    cells = []
    interpolate = enlarge._interpolate
    monkeypatch.setattr(enlarge, "_interpolate", lambda *args: (cells.append(len(args[1][0])), interpolate(*args)))
    planes = np.zeros((2, 50, 60), np.float32)
    planes[0, :, :30] = planes[1, :, 30:] = 1
    enlarged_winner(planes, (100, 120))
    assert cells == [49]
