"""What wins where there is no doubt is what wins when everything is computed."""

import cv2
import numpy as np
import pytest

from mpvss.engine.decode import ClassScores
from mpvss.engine.doubt import Sampled, Side
from mpvss.engine.enlarge import enlarged_winner, plane_winner
from mpvss.engine.packed import blend, pack, unpack, warp_packed

SIZES = [(40, 56), (37, 51), (1, 30), (30, 1), (2, 2), (1, 1)]


def scores(size, classes, seed, cells=5):
    """Smooth scores whose winners are large regions."""
    random = np.random.default_rng(seed)
    coarse = random.random((classes, cells, cells)).astype(np.float32)
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in coarse]
    return ClassScores(np.arange(classes), np.stack(planes), classes)


def flow(size, seed, scale=3.0):
    random = np.random.default_rng(seed)
    coarse = random.normal(0, scale, (2, 4, 4)).astype(np.float32)
    return np.stack([cv2.resize(plane, size[::-1]) for plane in coarse])


def everywhere(packed, flows, weights):
    """The scores with nothing left out, as ``Packed``."""
    warped = [warp_packed(one, field) for one, field in zip(packed, flows, strict=True)]
    return unpack(blend((warped[0], warped[1]), (weights[0], weights[1])) if weights else warped[0]).planes


def world(size, classes, seed, top, two):
    packed = [pack(scores(size, classes, seed + number), top=top) for number in range(1 + two)]
    flows = [flow(size, seed + number, 4.0) for number in range(1 + two)]
    random = np.random.default_rng(seed)
    weights = [random.random(size).astype(np.float32) + 1e-3 for _ in range(2)] if two else []
    return packed, flows, weights


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [1, 2, 5, 13])
@pytest.mark.parametrize("two", [False, True])
def test_winners_equal_those_of_all_scores(size, classes, two):
    for seed in range(4):
        packed, flows, weights = world(size, classes, seed, None, two)
        found = Sampled([Side.of(one) for one in packed], flows, weights).winner
        planes = everywhere(packed, flows, weights)
        assert found.shape == size
        # But for two that differ by rounding, the winner is the one.
        taken = np.take_along_axis(planes, found[None].astype(np.intp), 0)[0]
        np.testing.assert_allclose(taken, planes.max(0), rtol=0, atol=1e-6)
        assert (found == planes.argmax(0)).mean() > 0.99


@pytest.mark.parametrize("two", [False, True])
def test_of_bytes_the_winner_is_never_below_the_largest(two):
    """Sampling rounds each class to a level, so two of them may come out equal: then it is the one that was larger."""
    for seed in range(6):
        packed, flows, weights = world((40, 56), 9, seed, 1.0, two)
        found = Sampled([Side.of(one) for one in packed], flows, weights).winner
        planes = everywhere(packed, flows, weights)
        taken = np.take_along_axis(planes, found[None].astype(np.intp), 0)[0]
        assert (planes.max(0).astype(int) - taken).max() <= 1
        assert (taken == planes.max(0)).mean() > 0.995


@pytest.mark.parametrize("far", [-1e4, -60.0, 60.0, 1e4])
def test_outside_the_image_the_border_repeats(far):
    packed, _, _ = world((40, 56), 7, 3, None, False)
    flows = [np.full((2, 40, 56), far, np.float32)]
    corner = (0, 0) if far < 0 else (39, 55)
    planes = unpack(packed[0]).planes
    assert (Sampled([Side.of(packed[0])], flows).winner == planes[:, corner[0], corner[1]].argmax()).all()


def test_no_flow_changes_nothing():
    packed, _, _ = world((40, 56), 7, 5, None, False)
    found = Sampled([Side.of(packed[0])], [np.zeros((2, 20, 28), np.float32)]).winner
    np.testing.assert_array_equal(found, plane_winner(unpack(packed[0]).planes))


@pytest.mark.parametrize("top", [None, 1.0])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_larger_frame_needs_only_the_scores_around_changes(size, two, top):
    for seed in range(3):
        packed, flows, weights = world(size, 6, seed, top, two)
        sampled = Sampled([Side.of(one) for one in packed], flows, weights)
        larger = (2 * size[0] + 3, 3 * size[1] + 1)
        found = enlarged_winner(sampled.planes(), larger, sampled.winner)
        expected = enlarged_winner(everywhere(packed, flows, weights), larger)
        assert (found == expected).mean() > 0.995


def test_few_scores_are_sampled_where_regions_are_large(monkeypatch):
    """Two halves that both key frames agree on: only their border is in doubt."""
    planes = np.zeros((2, 60, 80), np.float32)
    planes[0, :, :40], planes[1, :, 40:] = 1, 1
    packed = pack(ClassScores(np.arange(2), planes, 2))
    counts = []
    sample = Sampled._scores
    monkeypatch.setattr(Sampled, "_scores", lambda self, places: counts.append(len(places)) or sample(self, places))
    still = np.zeros((2, 60, 80), np.float32)
    weights = [np.ones((60, 80), np.float32)] * 2
    found = Sampled([Side.of(packed), Side.of(packed)], [still, still], weights).winner
    assert counts[0] <= 60 * 2
    np.testing.assert_array_equal(found, np.arange(80) >= 40 + np.zeros((60, 1), int))
