"""Segmentors without queries: labels of key frames are the library's, and class scores are propagated as all are."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from helpers import ColourSegmentor, moving_frames
from mpvss.engine.decode import label_map, pixel_labels, pixel_scores, possible_maps
from mpvss.engine.state import PixelState
from mpvss.errors import ModelError
from mpvss.motion.dis import Dis, Hold
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.protocol import PixelPrediction
from mpvss.types import Frame, Geometry
from test_engine_decode import GEOMETRIES

DIRECTIONS = ("forward", "both")


def pixel_state(geometry, count=5, kind="logits", ids=None, num_classes=None, seed=0, cell=4):
    random = np.random.default_rng(seed)
    size = [-(-side // cell) for side in geometry.padded]
    maps = 3 * random.standard_normal((count, *size), np.float32)
    image = np.zeros((*geometry.resized, 3), np.uint8)
    ids = np.arange(count) if ids is None else np.array(ids)
    frame = Frame(0, Fraction(0), np.zeros((*geometry.source, 3), np.uint8))
    maps = np.abs(maps) if kind == "scores" else maps
    return PixelState(frame, image, maps, kind, ids, num_classes or count, geometry)


def interpolated(maps, size, whole):
    """Pixel centres at halves, the border repeated, in float64: the first ``size`` of ``whole`` pixels."""
    maps = maps.astype(np.float64)
    for axis, (side, all_) in enumerate(zip(size, whole, strict=True), 1):
        cells = maps.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * cells / all_ - 0.5, 0, cells - 1)
        lower = position.astype(int)
        share = (position - lower).reshape(-1, *[1] * (2 - axis))
        upper = np.minimum(lower + 1, cells - 1)
        maps = maps.take(lower, axis) * (1 - share) + maps.take(upper, axis) * share
    return maps


def at_frame(state):
    whole = [
        p * s / r for p, s, r in zip(state.geometry.padded, state.geometry.source, state.geometry.resized, strict=True)
    ]
    return interpolated(state.maps, state.geometry.source, whole)


def clear(scores):
    """Where the winner is no tie."""
    ranked = np.sort(scores, 0)
    return ranked[-1] - ranked[-2] > 1e-4


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_labels_of_a_key_frame_are_the_largest_of_the_maps_resized_to_the_frame(geometry, count, kind):
    state = pixel_state(geometry, count, kind)
    scores = at_frame(state)
    sure = clear(scores)
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(pixel_labels(state)[sure], scores.argmax(0)[sure])


@pytest.mark.parametrize("count", [3, 19, 150])
@pytest.mark.parametrize(("source", "grid"), [((61, 95), (16, 24)), ((48, 64), (48, 64)), ((30, 20), (33, 47))])
def test_labels_of_a_key_frame_are_those_of_the_librarys_own_interpolation(count, source, grid):
    """Law: ``F.interpolate`` of the logits to the frame, bilinear, then the largest; of equal ones the first."""
    geometry = Geometry(source, source, source)
    maps = 5 * np.random.default_rng(1).standard_normal((count, *grid), np.float32)
    state = replace(pixel_state(geometry, count), maps=maps)
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], source, mode="bilinear")[0]
    sure = clear(expected.numpy())
    assert sure.mean() > 0.99
    labels = pixel_labels(state)
    np.testing.assert_array_equal(labels[sure], expected.argmax(0).numpy()[sure])
    if grid == source:
        np.testing.assert_array_equal(labels, expected.argmax(0).numpy())


def test_of_equal_maps_the_first_wins():
    state = pixel_state(GEOMETRIES["padded"])
    equal = replace(state, maps=np.broadcast_to(state.maps[:1], state.maps.shape).copy())
    assert not pixel_labels(equal).any()
    assert not label_map(pixel_scores(equal), state.geometry)[0].any()


@pytest.mark.parametrize("count", [3, 40])
def test_maps_that_may_be_the_largest_somewhere_hold_every_winner_and_few_others(count):
    geometry = GEOMETRIES["smaller than the source"]
    maps = np.random.default_rng(0).standard_normal((count, 8, 8)).astype(np.float32)
    maps[7:] -= 20
    kept = possible_maps(maps)
    assert set(interpolated(maps, geometry.source, geometry.source).argmax(0).ravel()) <= set(kept)
    assert set(kept) == set(range(min(count, 7)))


def test_a_map_that_is_the_largest_in_one_cell_only_is_kept():
    maps = np.zeros((40, 6, 7), np.float32)
    maps[0], maps[23, 2, 3] = 1, 1.5
    assert possible_maps(maps).tolist() == [0, 23]
    state = replace(pixel_state(GEOMETRIES["plain"], 40), maps=maps)
    assert set(np.unique(pixel_labels(state))) == {0, 23}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_scores_are_the_softmax_of_the_interpolated_logits_or_themselves(geometry):
    size = min(geometry.source, geometry.resized)
    whole = [p * s / r for p, s, r in zip(geometry.padded, size, geometry.resized, strict=True)]
    for kind in ("logits", "scores"):
        state = pixel_state(geometry, kind=kind)
        expected = interpolated(state.maps, size, whole)
        if kind == "logits":
            expected = np.exp(expected) / np.exp(expected).sum(0)
        scores = pixel_scores(state, every_class=True)
        assert (scores.ids.tolist(), scores.num_classes) == ([0, 1, 2, 3, 4], 5)
        np.testing.assert_allclose(scores.planes, expected, atol=1e-5)


def test_maps_of_some_classes_keep_their_ids():
    ids = [1, 4, 7, 30]
    state = pixel_state(GEOMETRIES["plain"], 4, ids=ids, num_classes=300)
    labels = pixel_labels(state)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, np.array(ids)[pixel_labels(pixel_state(GEOMETRIES["plain"], 4))])
    assert pixel_scores(state).ids.tolist() == ids
    assert set(np.unique(pixel_labels(state, classes=[4, 30]))) == {4, 30, 65535}


def test_classes_that_are_the_largest_nowhere_have_no_part_in_the_scores_unless_asked_for():
    state = pixel_state(GEOMETRIES["plain"], 40)
    state.maps[7:] -= 30
    assert pixel_scores(state).ids.tolist() == list(range(7))
    everything = pixel_scores(state, every_class=True)
    assert everything.ids.tolist() == list(range(40))
    np.testing.assert_allclose(everything.planes[:7], pixel_scores(state).planes, atol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(wrong):
    state = pixel_state(GEOMETRIES["plain"])
    state.maps[2, 3, 4] = wrong
    with pytest.raises(ValueError, match="expects finite scores, got NaN or infinity"):
        pixel_scores(state)


# In a session


class PixelColours(ColourSegmentor):
    """Class scores of pixels: how much each colour rules, at stride 4; only of some classes where it says so."""

    def __init__(self, kind="logits", ids=None, short_side=None):
        super().__init__(short_side)
        self.kind, self.ids = kind, ids

    def __call__(self, images):
        maps = super().__call__(images).mask_logits[:, :3]
        if self.kind == "scores":
            maps = 1 / (1 + np.exp(-maps))
        if self.ids is None:
            return PixelPrediction(maps, self.kind)
        return PixelPrediction(maps[:, self.ids], self.kind, np.array(self.ids))


def expected_labels(segmenter, frame):
    """The plain definition, of one frame."""
    geometry = segmenter.rule.fit(frame.size)
    from mpvss.segmentors.protocol import resize_frame

    prediction = segmenter.segmentor(resize_frame(frame, geometry.resized)[None])
    maps = prediction.scores[0]
    whole = [p * s / r for p, s, r in zip(geometry.padded, frame.size, geometry.resized, strict=True)]
    scores = interpolated(maps, frame.size, whole)
    return scores.argmax(0), clear(scores)


@pytest.mark.parametrize("kind", ["logits", "scores"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("short_side", [None, 32])
@pytest.mark.parametrize("confidence", [False, True])
def test_key_frames_of_a_session_have_the_labels_of_the_plain_definition(kind, direction, short_side, confidence):
    frames = moving_frames(7, (61, 93))
    segmenter = VideoSegmenter(PixelColours(kind, short_side=short_side), Dis(), interval=3, cuts=False)
    results = list(segmenter.stream(frames, direction=direction, confidence=confidence))
    assert [result.index for result in results] == list(range(7))
    for result in results:
        assert result.class_names == ("red", "green", "blue")
        if confidence:
            assert result.confidence.dtype == np.float32
            assert result.confidence.min() >= 0 and result.confidence.max() <= 1 + 1e-6
        if result.is_key:
            labels, sure = expected_labels(segmenter, frames[result.index])
            assert sure.mean() > 0.99
            np.testing.assert_array_equal(result.labels[sure], labels[sure])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_interval_1_equals_the_per_frame_segmentor(direction):
    frames = moving_frames(4)
    plain = VideoSegmenter(PixelColours(), None).stream(frames)
    ours = VideoSegmenter(PixelColours(), Dis(), interval=1).stream(frames, direction=direction)
    for a, b in zip(plain, ours, strict=True):
        assert a.is_key and b.is_key
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("kind", ["logits", "scores"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_flow_follows_the_scene_better_than_hold(kind, direction):
    frames = moving_frames(9, size=(96, 160), speed=3)
    truth = list(VideoSegmenter(PixelColours(kind), None).stream(frames))

    def agreement(propagator):
        segmenter = VideoSegmenter(PixelColours(kind), propagator, interval=8, cuts=False)
        results = segmenter.stream(frames, direction=direction)
        return np.mean([(a.labels == b.labels)[:, 30:-30].mean() for a, b in zip(results, truth, strict=True)])

    assert agreement(Dis()) > agreement(Hold()) + 0.05


@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_hold_repeats_the_key_frame(kind):
    segmenter = VideoSegmenter(PixelColours(kind), Hold(), interval=3, cuts=False)
    results = list(segmenter.stream(moving_frames(4), direction="forward"))
    assert (results[0].labels == results[2].labels).mean() > 0.97  # interpolated logits or probabilities; ties
    assert (results[2].labels == results[3].labels).mean() < 0.95


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_segmentor_that_gives_only_some_classes_has_only_those(direction):
    results = VideoSegmenter(PixelColours("scores", [0, 2]), Dis(), interval=3).stream(
        moving_frames(7), direction=direction
    )
    assert all(set(np.unique(result.labels)) == {0, 2} for result in results)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_key_frames_with_other_classes_each_are_fused(direction):
    class Changing(PixelColours):
        def __call__(self, images):
            self.ids = [0, 2] if self.calls == 0 else [1, 2]
            return super().__call__(images)

    still = [Frame(i, Fraction(i), moving_frames(1)[0].rgb) for i in range(5)]
    results = list(
        VideoSegmenter(Changing("scores"), Hold(), interval=4, cuts=False).stream(still, direction=direction)
    )
    assert set(np.unique(results[0].labels)) == {0, 2}
    assert set(np.unique(results[4].labels)) == {1, 2}
    assert set(np.unique(results[2].labels)) <= ({0, 2} if direction == "forward" else {0, 1, 2})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pixels_below_the_least_score_and_classes_that_are_left_out_have_no_class(direction):
    class Unsure(PixelColours):
        """Sure of the left half, of red; of nothing on the right."""

        def __call__(self, images):
            found = super().__call__(images)
            found.scores[:] = 0
            found.scores[:, 0, :, : found.scores.shape[3] // 2] = 9
            return found

    frames = [Frame(i, Fraction(i), moving_frames(1, (48, 64))[0].rgb) for i in range(5)]
    segmenter = VideoSegmenter(Unsure(), Hold(), interval=3, cuts=False)
    for result in segmenter.stream(frames, direction=direction, min_score=0.5):
        assert set(np.unique(result.labels[:, :28])) == {0}
        assert set(np.unique(result.labels[:, 36:])) == {255}
    for result in segmenter.stream(frames, direction=direction):
        assert 255 not in result.labels
    for result in segmenter.stream(frames, direction=direction, classes=["green", "blue"], min_score=0.5):
        assert set(np.unique(result.labels)) == {255}


def test_a_flow_for_each_query_is_refused_as_there_are_none():
    class QueryHold(Hold):
        per_query = True

    with pytest.raises(ModelError, match=r"gives a class to each pixel and has no queries: .* such as dis, instead"):
        VideoSegmenter(PixelColours(), QueryHold()).session().push(moving_frames(1)[0])


def test_scores_of_another_number_of_classes_are_refused():
    class Short(PixelColours):
        def __call__(self, images):
            return PixelPrediction(super().__call__(images).scores[:, :2])

    with pytest.raises(ModelError, match="expected scores of 3 classes, got 2 maps; class_names has one name for each"):
        VideoSegmenter(Short(), Hold()).session().push(moving_frames(1)[0])


def test_nan_from_the_segmentor_is_refused():
    class Broken(PixelColours):
        def __call__(self, images):
            found = super().__call__(images)
            found.scores[0, 1, 2, 3] = np.nan
            return found

    with pytest.raises((ValueError, TypeCheckError), match="got NaN"):
        VideoSegmenter(Broken(), Hold()).session().push(moving_frames(1)[0])
