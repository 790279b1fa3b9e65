"""Carried class scores are the warped ones, class by class, whatever order they lie in."""

import numpy as np
import pytest

from mpvss.engine.decode import ClassScores
from mpvss.engine.packed import blend, keep_classes, pack, union_of_classes, unpack, warp_packed
from mpvss.motion.arrays import resize_flow, warp


def scores(ids, size=(9, 13), seed=0, num_classes=20):
    planes = np.random.default_rng(seed).random((len(ids), *size), np.float32)
    return ClassScores(np.array(ids), planes, num_classes)


def a_flow(size=(9, 13), seed=0):
    return 3 * np.random.default_rng(seed).standard_normal((2, *size), np.float32)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_packing_loses_nothing(count):
    given = scores(list(range(count)))
    found = unpack(pack(given))
    np.testing.assert_array_equal(found.planes, given.planes)
    np.testing.assert_array_equal(found.ids, given.ids)
    assert found.num_classes == 20


@pytest.mark.parametrize("count", [1, 4, 6])
def test_bytes_are_the_scores_in_steps_of_a_255th_of_the_top(count):
    given, flow = scores(list(range(count))), a_flow()
    for top in (1.0, 4.0):
        packed = pack(given, top=top)
        assert packed.blocks[0].dtype == np.uint8
        found = unpack(warp_packed(packed, flow)).planes
        assert found.dtype == np.uint8
        expected = unpack(warp_packed(pack(given), flow)).planes
        np.testing.assert_allclose(found * (top / 255), expected, atol=1.01 * top / 255, rtol=0)


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1.0, 7.0])
def test_the_mix_of_bytes_is_the_weighted_mean_however_small_both_weights_are(factor):
    one, other = scores([0, 1, 2, 3, 4], seed=1), scores([0, 1, 2, 3, 4], seed=2)
    left, right = scores([0, 1], seed=3).planes + 0.1
    expected = (one.planes * left + other.planes * right) / (left + right)
    for top in (None, 1.0):
        found = unpack(blend((pack(one, top=top), pack(other, top=top)), (factor * left, factor * right))).planes
        found = found if top is None else found / 255
        np.testing.assert_allclose(found, expected, atol=1e-4 if top is None else 1.5 / 255, rtol=0)


def test_a_flow_of_another_grid_is_brought_to_that_of_the_scores():
    given, coarse = scores([0, 1, 2], size=(18, 26)), a_flow(size=(12, 17))
    whole = resize_flow(coarse[None], (18, 26))[0]
    fetched, expected = warp_packed(pack(given), coarse), warp_packed(pack(given), whole)
    np.testing.assert_allclose(unpack(fetched).planes, unpack(expected).planes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_fetching_is_the_warp_of_each_class(count):
    given, flow = scores(list(range(count))), a_flow()
    expected = warp(given.planes, flow)
    np.testing.assert_allclose(unpack(warp_packed(pack(given), flow)).planes, expected, atol=1e-4, rtol=0)


def test_zero_flow_is_the_identity():
    given = scores([0, 1, 2, 5, 7])
    found = unpack(warp_packed(pack(given), np.zeros((2, 9, 13), np.float32)))
    np.testing.assert_allclose(found.planes, given.planes, atol=1e-6, rtol=0)


def test_two_key_frames_meet_in_the_classes_of_either():
    one, other = scores([1, 4, 6], seed=1), scores([0, 4, 9], seed=2)
    ids = union_of_classes(one, other)
    assert ids.tolist() == [0, 1, 4, 6, 9]
    spread = unpack(pack(one, ids)).planes
    np.testing.assert_array_equal(spread[[1, 2, 3]], one.planes)
    assert not spread[[0, 4]].any()


def test_the_mix_is_the_weighted_mean_and_only_the_ratio_of_the_weights_counts():
    one, other = scores([0, 1, 2, 3, 4], seed=1), scores([0, 1, 2, 3, 4], seed=2)
    left, right = scores([0, 1], seed=3).planes + 0.1
    expected = (one.planes * left + other.planes * right) / (left + right)
    for factor in (1.0, 7.0):
        found = unpack(blend((pack(one), pack(other)), (factor * left, factor * right)))
        np.testing.assert_allclose(found.planes, expected, atol=1e-4, rtol=0)


def test_where_no_side_has_weight_nothing_is_scored():
    one, other = scores([0, 1], seed=1), scores([0, 1], seed=2)
    nothing = np.zeros((9, 13), np.float32)
    found = unpack(blend((pack(one), pack(other)), (nothing, nothing)))
    assert not found.planes.any()


def test_what_wins_somewhere_is_carried_however_faint_and_what_is_faint_and_loses_is_not():
    given = scores([2, 3, 5, 8])
    given.planes[:] = 0.0
    given.planes[0] = 0.9
    given.planes[0, 4, 4] = 0.0
    given.planes[1, 4, 4] = 0.01  # wins one pixel
    given.planes[2, 0, 0] = 0.04  # faint, loses
    given.planes[3, 0, 0] = 0.3  # loses, but not faint
    kept = keep_classes(given)
    assert kept.ids.tolist() == [2, 3, 8]
    np.testing.assert_array_equal(kept.planes, given.planes[[0, 1, 3]])


def test_at_least_one_class_is_carried():
    given = scores([0, 1])
    given.planes[:] = 0
    assert len(keep_classes(given).ids) >= 1
