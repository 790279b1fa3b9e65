"""Decoding equals its plain definition, written here with loops; ties aside."""

import numpy as np
import pytest

from mpvss.engine.decode import averaged, class_scores, decode, label_map, possible_classes, score
from mpvss.engine.state import WarpedPrediction
from mpvss.types import Geometry

# source, resized, padded; the mask grid is the padded size over 4
GEOMETRIES = {
    "plain": Geometry((32, 64), (32, 64), (32, 64)),
    "padded": Geometry((27, 45), (27, 45), (32, 64)),
    "smaller than the source": Geometry((61, 95), (20, 31), (32, 32)),
    "larger than the source": Geometry((13, 21), (27, 43), (32, 64)),
    "one pixel": Geometry((1, 1), (1, 1), (32, 32)),
}


def random_views(geometry, count=1, queries=6, classes=4, seed=0, scale=4.0):
    random = np.random.default_rng(seed)
    height, width = geometry.padded[0] // 4, geometry.padded[1] // 4
    predictions = []
    for _ in range(count):
        logits = 2 * random.standard_normal((queries, classes + 1), np.float32)
        masks = np.float32(scale) * random.standard_normal((queries, height, width), np.float32)
        weight = random.random((height, width), np.float32) if count > 1 else None
        predictions.append(WarpedPrediction(logits, masks, weight))
    return predictions


def bilinear(plane, size, whole=None):
    """Pixel centres at halves, the border repeated, in float64: the first ``size`` pixels of the plane at ``whole``."""
    height, width = plane.shape
    whole = whole or size
    out = np.zeros(size)
    for y in range(size[0]):
        sy = min(max((y + 0.5) * height / whole[0] - 0.5, 0.0), height - 1.0)
        y0 = int(sy)
        y1 = min(y0 + 1, height - 1)
        for x in range(size[1]):
            sx = min(max((x + 0.5) * width / whole[1] - 0.5, 0.0), width - 1.0)
            x0 = int(sx)
            x1 = min(x0 + 1, width - 1)
            top = plane[y0, x0] + (sx - x0) * (plane[y0, x1] - plane[y0, x0])
            bottom = plane[y1, x0] + (sx - x0) * (plane[y1, x1] - plane[y1, x0])
            out[y, x] = top + (sy - y0) * (bottom - top)
    return out


def reference_scores(predictions, geometry):
    size = min(geometry.resized, geometry.source)
    whole = [all_ * side / part for all_, side, part in zip(geometry.padded, size, geometry.resized, strict=True)]
    classes = predictions[0].class_logits.shape[1] - 1
    scores = np.zeros((classes, *size))
    for prediction in predictions:
        weight = np.ones(size)
        if prediction.weight is not None:
            weight = bilinear(prediction.weight.astype(np.float64), size, whole)
        for logits, mask in zip(
            prediction.class_logits.astype(np.float64), prediction.mask_logits.astype(np.float64), strict=True
        ):
            odds = np.exp(logits - logits.max())
            probability = odds / odds.sum()
            shown = (1 + np.tanh(bilinear(mask, size, whole) / 2)) / 2
            for number in range(classes):
                scores[number] += probability[number] * weight * shown
    return scores


def reference(predictions, geometry, allowed=None):
    """Labels, the winner's share, and where the winner is not a tie."""
    scores = reference_scores(predictions, geometry)
    if geometry.source != scores.shape[1:]:
        scores = np.stack([bilinear(plane, geometry.source) for plane in scores])
    ranked = np.sort(scores, 0)
    clear = np.full(geometry.source, True) if len(scores) == 1 else ranked[-1] - ranked[-2] > 1e-5
    share = ranked[-1] / np.maximum(scores.sum(0), 1e-12)
    labels = scores.argmax(0)
    if allowed is not None:
        labels[~np.isin(labels, allowed)] = 255
    return labels, share, clear


def equals_reference(predictions, geometry, allowed=None):
    labels, share = decode(predictions, geometry, classes=allowed, confidence=True)
    expected, expected_share, clear = reference(predictions, geometry, allowed)
    assert labels.shape == share.shape == geometry.source
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected[clear])
    np.testing.assert_allclose(share, expected_share, atol=1e-5)
    return labels


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_loop_written_reference(geometry, count):
    for seed in range(3):
        equals_reference(random_views(geometry, count, seed=seed), geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("count", [1, 2])
def test_class_scores_equal_the_loop_written_reference(geometry, count):
    predictions = random_views(geometry, count)
    found = class_scores(predictions, geometry)
    np.testing.assert_allclose(found, reference_scores(predictions, geometry), atol=1e-5)


@pytest.mark.parametrize("allowed", [[0, 2], [3], [2, 1, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_pixels_of_other_classes_than_the_allowed_get_the_ignore_id(geometry, allowed):
    labels = equals_reference(random_views(geometry, 2, seed=4), geometry, allowed)
    assert set(np.unique(labels)) <= {*allowed, 255}
    if len(allowed) == 4:
        assert not (labels == 255).any()
    elif labels.size > 1:
        assert (labels == 255).any()


def test_views_with_their_own_queries_are_added_as_class_scores():
    """Another number and another order of queries on the other side: only the classes meet."""
    geometry = GEOMETRIES["padded"]
    (one,), (other,) = random_views(geometry, seed=1), random_views(geometry, queries=9, seed=2)
    weights = [prediction.weight for prediction in random_views(geometry, 2, seed=3)]
    predictions = [
        WarpedPrediction(prediction.class_logits, prediction.mask_logits, weight)
        for prediction, weight in zip((one, other), weights, strict=True)
    ]
    equals_reference(predictions, geometry)
    order = np.random.default_rng(0).permutation(9)
    shuffled = WarpedPrediction(other.class_logits[order], other.mask_logits[order], weights[1])
    before, after = class_scores(predictions, geometry), class_scores([predictions[0], shuffled], geometry)
    np.testing.assert_allclose(before, after, atol=1e-5, rtol=1e-5)


def test_a_view_of_weight_zero_is_not_heard_and_equal_weights_change_nothing():
    geometry = GEOMETRIES["smaller than the source"]
    one, other = random_views(geometry, 2)
    alone = WarpedPrediction(one.class_logits, one.mask_logits)
    silent = WarpedPrediction(other.class_logits, other.mask_logits, np.zeros_like(other.weight))
    loud = WarpedPrediction(one.class_logits, one.mask_logits, np.full_like(one.weight, 0.3))
    labels, share = decode([alone], geometry, confidence=True)
    for predictions in ([loud, silent], [silent, loud], [loud, loud]):
        found, found_share = decode(predictions, geometry, confidence=True)
        np.testing.assert_array_equal(found, labels)
        np.testing.assert_allclose(found_share, share, atol=1e-5)


def test_where_all_weights_are_zero_some_class_wins_and_its_share_is_zero():
    geometry = GEOMETRIES["plain"]
    predictions = random_views(geometry, 2)
    for prediction in predictions:
        prediction.weight[:, 8:] = 0
    labels, share = decode(predictions, geometry, confidence=True)
    expected, expected_share, clear = reference(predictions, geometry)
    np.testing.assert_array_equal(labels[clear], expected[clear])
    np.testing.assert_allclose(share, expected_share, atol=1e-5)
    assert not share[:, 36:].any()
    restricted, _ = decode(predictions, geometry, classes=[1, 3])
    assert set(np.unique(restricted)) <= {1, 3, 255}


def test_queries_that_say_no_object_have_no_voice():
    geometry = GEOMETRIES["padded"]
    (prediction,) = random_views(geometry)
    silent = np.full((5, 5), -200, np.float32)
    silent[:, -1] = 200
    more = WarpedPrediction(
        np.concatenate([prediction.class_logits, silent]),
        np.concatenate([prediction.mask_logits, prediction.mask_logits[:5] + 9]),
    )
    np.testing.assert_array_equal(decode([more], geometry)[0], decode([prediction], geometry)[0])


@pytest.mark.parametrize("certain", [5.0, 50.0, 5000.0])
def test_where_all_queries_say_no_object_the_best_of_the_rest_wins(certain):
    geometry = GEOMETRIES["smaller than the source"]
    (prediction,) = random_views(geometry)
    prediction.class_logits[:, -1] += certain
    labels, share = decode([prediction], geometry, confidence=True)
    assert labels.max() < 4
    assert ((share >= 0) & (share <= 1)).all()
    if certain < 10:
        equals_reference([prediction], geometry)
    np.testing.assert_array_equal(decode([prediction], geometry, classes=[2])[0], np.where(labels == 2, 2, 255))


@pytest.mark.parametrize(("classes", "dtype"), [(3, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_labels_are_sixteen_bits_wide_only_above_255_classes(classes, dtype):
    geometry = GEOMETRIES["one pixel"]
    (prediction,) = random_views(geometry, classes=classes)
    prediction.class_logits[:, classes - 1] = 50
    labels, share = decode([prediction], geometry)
    assert labels.dtype == dtype
    assert labels[0, 0] == classes - 1
    assert share is None


def test_confidence_is_float32_and_changes_no_label():
    geometry = GEOMETRIES["padded"]
    predictions = random_views(geometry, 2)
    labels, share = decode(predictions, geometry, confidence=True)
    assert share.dtype == np.float32
    np.testing.assert_array_equal(labels, decode(predictions, geometry)[0])


def test_a_single_class_wins_everywhere_with_all_of_the_scores():
    geometry = GEOMETRIES["padded"]
    labels, share = decode(random_views(geometry, classes=1), geometry, confidence=True)
    assert not labels.any()
    np.testing.assert_allclose(share, 1, atol=1e-6)


def test_extreme_logits_are_finite():
    geometry = GEOMETRIES["padded"]
    equals_reference(random_views(geometry, queries=12, scale=1e3), geometry)


def test_decoding_leaves_its_views_as_they_were():
    geometry = GEOMETRIES["plain"]
    predictions = random_views(geometry, 2)
    copies = [(v.class_logits.copy(), v.mask_logits.copy(), v.weight.copy()) for v in predictions]
    decode(predictions, geometry, classes=[1], confidence=True)
    for prediction, (logits, masks, weight) in zip(predictions, copies, strict=True):
        np.testing.assert_array_equal(prediction.class_logits, logits)
        np.testing.assert_array_equal(prediction.mask_logits, masks)
        np.testing.assert_array_equal(prediction.weight, weight)


@pytest.mark.parametrize("where", ["masks", "one mask pixel", "classes", "weight"])
@pytest.mark.parametrize("classes", [None, [1]])
def test_nan_is_refused(where, classes):
    geometry = GEOMETRIES["padded"]
    predictions = random_views(geometry, 2)
    if where == "masks":
        predictions[1].mask_logits[:] = np.nan
    elif where == "one mask pixel":
        predictions[1].mask_logits[3, 2, 5] = np.nan
    elif where == "classes":
        predictions[1].class_logits[3, 0] = np.nan
    else:
        predictions[1].weight[2, 5] = np.nan
    with pytest.raises(ValueError, match="expects finite logits, got NaN"):
        decode(predictions, geometry, classes=classes)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("count", [1, 2])
def test_of_many_classes_only_those_that_may_win_are_scored_and_the_labels_are_the_same(geometry, count):
    predictions = random_views(geometry, count, queries=9, classes=40, scale=8.0)
    for prediction in predictions:
        prediction.class_logits[:, 7:] -= 9  # seven classes are present, the others barely
    kept = possible_classes(predictions)
    assert 1 <= len(kept) < 30
    equals_reference(predictions, geometry)
    winners = decode(predictions, geometry)[0]
    assert np.isin(winners, kept).all()
    everything = class_scores(predictions, geometry)
    np.testing.assert_allclose(class_scores(predictions, geometry, kept), everything[kept], atol=1e-6, rtol=1e-5)


def test_a_class_that_wins_in_one_place_only_is_kept():
    """It has almost no mask: one cell in which everything else is weaker still."""
    geometry = GEOMETRIES["plain"]
    logits = np.full((2, 31), -9, np.float32)
    logits[0, 3], logits[1, 20] = 9.0, 9.0
    masks = np.full((2, 8, 16), -8, np.float32)
    masks[0] = 6.0
    masks[0, 5, 9], masks[1, 5, 9] = -8.0, 2.0
    prediction = WarpedPrediction(logits, masks)
    assert possible_classes([prediction]).tolist() == [3, 20]
    assert set(np.unique(decode([prediction], geometry)[0])) == {3, 20}


def test_no_view_is_refused():
    for call in (class_scores, decode):
        with pytest.raises(ValueError, match="at least one prediction"):
            call([], GEOMETRIES["plain"])


@pytest.mark.parametrize("classes", [3, 150])
def test_queries_of_which_none_says_anything_give_some_class_and_no_error(classes):
    """Every class is a tie with every other, and below any threshold."""
    random = np.random.default_rng(0)
    logits = np.full((4, classes + 1), -60, np.float32)
    logits[:, -1] = 60.0
    prediction = WarpedPrediction(logits, random.standard_normal((4, 8, 12), np.float32))
    geometry = Geometry((32, 48), (32, 48), (32, 48))
    labels, share = decode([prediction], geometry, confidence=True)
    assert labels.shape == (32, 48) and labels.max() < classes
    assert share.min() >= 0 and share.max() <= 1
    labels, _ = decode([prediction], geometry)
    assert labels.max() < classes
    weighted = [WarpedPrediction(logits, prediction.mask_logits, random.random((8, 12), np.float32)) for _ in range(2)]
    assert decode(weighted, geometry)[0].max() < classes
    assert set(np.unique(label_map(score([prediction], geometry), geometry, min_score=1e-3)[0])) == {255}


def test_the_mean_of_two_views_has_the_scale_of_one():
    predictions = [
        WarpedPrediction(
            np.array([[9, 0, 0]], np.float32), np.full((1, 8, 8), 9, np.float32), np.full((8, 8), w, np.float32)
        )
        for w in (1e-20, 3e-20)
    ]
    geometry = Geometry((32, 32), (32, 32), (32, 32))
    one = score([WarpedPrediction(predictions[0].class_logits, predictions[0].mask_logits)], geometry)
    two = averaged(score(predictions, geometry), predictions, geometry)
    np.testing.assert_allclose(two.planes, one.planes, rtol=1e-5)
    assert averaged(one, [WarpedPrediction(predictions[0].class_logits, predictions[0].mask_logits)], geometry) is one


def test_scoring_leaves_out_what_cannot_win_and_gives_no_share_unless_asked():
    geometry = GEOMETRIES["plain"]
    predictions = random_views(geometry, 1, queries=9, classes=40, scale=8.0)
    predictions[0].class_logits[:, 7:] -= 9
    scores = score(predictions, geometry)
    assert scores.ids.tolist() == possible_classes(predictions).tolist()
    assert score(predictions, geometry, every_class=True).ids.tolist() == list(range(40))
    labels, share = label_map(scores, geometry)
    assert share is None
    np.testing.assert_array_equal(labels, decode(predictions, geometry)[0])
