"""Laws of a session: what it answers, when, and from which key frames."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from helpers import ColourSegmentor, moving_frames
from mpvss.decode import ClassScores
from mpvss.motion.classical import Dis, Hold
from mpvss.pipeline import VideoSegmenter
from mpvss.schedule import Schedule
from mpvss.session import Session
from mpvss.types import Frame

DIRECTIONS = ("forward", "both")


def run(segmenter, frames, direction):
    session = segmenter.session(direction)
    results = [result for frame in frames for result in session.push(frame)]
    return results + session.finish()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("propagator", [Hold(), Dis()])
def test_interval_1_equals_the_per_frame_segmentor(propagator, direction):
    frames = moving_frames(6)
    plain = run(VideoSegmenter(ColourSegmentor(), None), frames, "forward")
    ours = run(VideoSegmenter(ColourSegmentor(), propagator, interval=1), frames, direction)
    for a, b in zip(plain, ours, strict=True):
        assert a.is_key and b.is_key
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_session_answers_every_frame_once_and_in_order_as_stream_does(direction, motion):
    frames = moving_frames(14)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=4, motion=motion)
    pushed = run(segmenter, frames, direction)
    streamed = list(segmenter.stream(frames, direction=direction))
    assert [r.index for r in pushed] == list(range(14))
    for a, b in zip(pushed, streamed, strict=True):
        assert (a.index, a.pts, a.is_key) == (b.index, b.pts, b.is_key)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_forward_answers_each_frame_at_once_and_both_holds_back_less_than_an_interval():
    frames = moving_frames(11)
    session = VideoSegmenter(ColourSegmentor(), Hold(), interval=5).session("forward")
    assert [len(session.push(frame)) for frame in frames] == [1] * 11
    session = VideoSegmenter(ColourSegmentor(), Hold(), interval=5).session("both")
    assert [len(session.push(frame)) for frame in frames] == [1, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5]
    assert session.finish() == []


def test_key_frames_come_every_interval_and_only_they_cost_a_segmentor_call():
    segmentor = ColourSegmentor()
    results = run(VideoSegmenter(segmentor, Hold(), interval=4), moving_frames(10), "both")
    assert [r.index for r in results if r.is_key] == [0, 4, 8]
    assert segmentor.calls == 3


def test_hold_repeats_the_key_frame():
    results = run(VideoSegmenter(ColourSegmentor(), Hold(), interval=3, cuts=False), moving_frames(6), "forward")
    assert (results[0].labels == results[2].labels).mean() > 0.98  # scores less than a byte apart are a tie
    assert (results[2].labels == results[3].labels).mean() < 0.95


@pytest.mark.parametrize("motion", ["chain", "direct"])
def test_flow_follows_the_scene_better_than_hold(motion):
    frames = moving_frames(9, size=(96, 160), speed=3)
    truth = run(VideoSegmenter(ColourSegmentor(), None), frames, "forward")

    def agreement(propagator, direction):
        segmenter = VideoSegmenter(ColourSegmentor(), propagator, interval=8, motion=motion, cuts=False)
        results = run(segmenter, frames, direction)
        return np.mean([(a.labels == b.labels)[:, 30:-30].mean() for a, b in zip(results, truth, strict=True)])

    assert agreement(Dis(), "forward") > agreement(Hold(), "forward") + 0.1
    assert agreement(Dis(), "both") > agreement(Hold(), "both") + 0.05


def test_the_frame_next_to_a_key_frame_trusts_that_key_frame():
    """Two still scenes of other colours with the cut unknown: each half follows the nearer side."""
    dark = np.zeros((64, 96, 3), np.uint8)
    red, green = dark.copy(), dark.copy()
    red[..., 0] = 200
    green[..., 1] = 200
    pictures = [red, red, red, green, green, green]
    frames = [Frame(i, Fraction(i), picture) for i, picture in enumerate(pictures)]
    results = run(VideoSegmenter(ColourSegmentor(), Hold(), interval=5, cuts=False), frames, "both")
    assert [int(np.median(r.labels)) for r in results] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("direction", DIRECTIONS)
def _flashed(frames, at, by):
    """The same frames, one of them much brighter: photographed with a flash."""
    lit = frames[at]
    brighter = np.clip(lit.rgb.astype(int) + by, 0, 255).astype(np.uint8)
    return [*frames[:at], Frame(lit.index, lit.pts, brighter), *frames[at + 1 :]]


def test_a_frame_that_no_key_frame_looks_like_still_has_the_classes_of_the_key_frames():
    """Trust is then next to nothing on both sides, but the ratio of the two weights is what counts."""
    still = [Frame(i, Fraction(i, 25), moving_frames(1)[0].rgb) for i in range(5)]
    for confidence in (False, True):
        segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=4, cuts=False)
        flashed = list(segmenter.stream(_flashed(still, 2, 90), direction="both", confidence=confidence))
        assert (flashed[2].labels == flashed[0].labels).mean() > 0.98


def test_scores_are_bytes_unless_a_share_is_wanted_or_many_pixels_score_little():
    strong = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    weak = strong.clone()
    weak[:, :10] *= 0.01
    strong, weak = (ClassScores(torch.arange(3), planes, 3) for planes in (strong, weak))
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    session = segmenter.session("both")
    assert session._top(strong, strong) == float(strong.planes.max())
    assert session._top(strong, weak) is None
    assert session._top(ClassScores(torch.arange(3), torch.zeros(3, 4, 4), 3)) is None
    assert segmenter.session("both", confidence=True)._top(strong) is None


def test_flows_inverted_for_the_other_direction_lead_to_the_key_frame_after():
    """Hidden places aside, labels are those of two searches: a search for each direction."""
    frames = moving_frames(9, (96, 128), speed=3)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=8, cuts=False)
    one = list(segmenter.stream(frames, direction="both"))
    session = segmenter.session("both")
    session._flows_both_ways = lambda pictures, before, after: (
        session._flows(pictures, before),
        session._flows(pictures[::-1], after)[::-1],
    )
    two = [result for frame in frames for result in session.push(frame)] + session.finish()
    same = [(a.labels == b.labels).mean() for a, b in zip(one, two, strict=True)]
    assert min(same) > 0.95
    backwards = VideoSegmenter(ColourSegmentor(), Dis(), interval=8, cuts=False).session("both")
    original = backwards._flows_both_ways

    def swapped(pictures, before, after):
        forward, backward = original(pictures, before, after)
        return forward, backward[::-1]

    backwards._flows_both_ways = swapped
    wrong = [result for frame in frames for result in backwards.push(frame)] + backwards.finish()
    assert min((a.labels == b.labels).mean() for a, b in zip(wrong, two, strict=True)) < min(same)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_no_mask_crosses_a_cut(direction):
    before, after = moving_frames(7, speed=1, seed=1), moving_frames(7, speed=1, seed=2)
    pictures = [frame.rgb for frame in before] + [frame.rgb // 3 for frame in after]
    frames = [Frame(i, Fraction(i, 15), picture) for i, picture in enumerate(pictures)]
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=10)
    whole = run(segmenter, frames, direction)
    assert [r.index for r in whole if r.is_key] == [0, 7]
    parts = run(segmenter, frames[:7], direction) + run(segmenter, frames[7:], direction)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_a_frame_of_another_size_begins_anew():
    frames = [*moving_frames(3, size=(64, 96)), *moving_frames(3, size=(48, 80))]
    frames = [Frame(i, Fraction(i), f.rgb) for i, f in enumerate(frames)]
    results = run(VideoSegmenter(ColourSegmentor(), Dis(), interval=10, cuts=False), frames, "both")
    assert [r.is_key for r in results] == [True, False, False, True, False, False]
    assert [r.labels.shape for r in results] == [f.size for f in frames]


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (61, 95), (240, 5)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_any_size_comes_back_at_its_own_size(size, direction):
    random = np.random.default_rng(0)
    frames = [Frame(i, Fraction(i), random.integers(0, 256, (*size, 3), dtype=np.uint8)) for i in range(5)]
    for short_side in (None, 40):
        segmenter = VideoSegmenter(ColourSegmentor(short_side), Dis(), interval=4, cuts=False)
        assert {r.labels.shape for r in run(segmenter, frames, direction)} == {size}


def test_classes_restricts_what_is_kept_and_confidence_is_a_share():
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=4)
    results = list(segmenter.stream(moving_frames(6), classes=[0, 2], confidence=True))
    assert set(np.unique(np.stack([r.labels for r in results]))) == {0, 2, 255}
    share = np.stack([r.confidence for r in results])
    assert share.dtype == np.float32
    assert share.min() >= 0 and share.max() <= 1


def test_per_query_flow_moves_each_mask_by_its_own():
    class Apart:
        """Query q moves by q grid cells to the right."""

        name = "apart"
        per_query = True

        def estimate_flow(self, current, other, queries, padded, grid, active=None):
            flow = torch.zeros(len(current), queries.shape[1], 2, *grid)
            flow[:, :, 0] = -torch.arange(queries.shape[1], dtype=torch.float32)[:, None, None]
            return flow

    seen = []
    segmenter = VideoSegmenter(ColourSegmentor(), Apart(), interval=10, cuts=False, tolerance=0.0)
    session = segmenter.session("forward")
    warped = session._warped
    session._warped = lambda key, flow: seen.append(warped(key, flow)) or seen[-1]
    frames = moving_frames(3, speed=0)
    for frame in frames:
        session.push(frame)
    key = ColourSegmentor()(torch.from_numpy(frames[0].rgb).permute(2, 0, 1)[None]).mask_logits[0]
    for steps, masks in enumerate(seen, 1):
        for query in range(4):
            shift = query * steps  # chained: twice as far after two frames
            torch.testing.assert_close(
                masks[query, :, shift:], key[query, :, : key.shape[2] - shift], atol=1e-4, rtol=0
            )


def test_the_schedule_decides_and_a_non_key_frame_first_is_refused():
    class Never:
        interval, cuts = 5, None

        def next(self, rgb, restart=False):
            return False, False

    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    session = Session(segmenter.segment, segmenter.rule, Hold(), Never())
    with pytest.raises(ValueError, match="no key frame came before"):
        session.push(moving_frames(1)[0])


def test_options_out_of_range_are_refused():
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    with pytest.raises(ValueError, match="motion must be one of chain, direct"):
        Session(segmenter.segment, segmenter.rule, Hold(), Schedule(5), motion="sideways")
    with pytest.raises(ValueError, match="direction must be one of both, forward"):
        Session(segmenter.segment, segmenter.rule, Hold(), Schedule(5), direction="backward")
    with pytest.raises(ValueError, match="interval must be at least 1"):
        VideoSegmenter(ColourSegmentor(), Hold(), interval=0)


def test_bare_pictures_are_counted_and_segmented_as_frames_are():
    frames = moving_frames(6)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=4)
    session = segmenter.session("both")
    bare = [result for frame in frames for result in session.push(frame.rgb)] + session.finish()
    for a, b in zip(bare, run(segmenter, frames, "both"), strict=True):
        assert (a.index, a.is_key) == (b.index, b.is_key)
        assert a.pts == Fraction(a.index, 25)
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("which", ["mask_logits", "class_logits"])
def test_nan_from_the_segmentor_is_refused(which):
    class Broken(ColourSegmentor):
        def __call__(self, images):
            found = super().__call__(images)
            getattr(found, which)[:, 0, 0] = float("nan")
            return found

    session = VideoSegmenter(Broken(), Hold()).session()
    with pytest.raises(ValueError, match="found NaN"):
        session.push(moving_frames(1)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "frame.png",
    ],
)
def test_what_is_no_picture_is_refused(wrong):
    session = VideoSegmenter(ColourSegmentor(), Hold()).session()
    with pytest.raises((ValueError, TypeCheckError), match=r"RGB picture|ype-check"):
        session.push(wrong)


_FORKED = """
import os, sys, traceback
import torch
sys.path.insert(0, {tests!r})
from helpers import ColourSegmentor
from mpvss.motion.classical import Dis
from mpvss.pipeline import VideoSegmenter

torch.set_num_threads(1)
sys.setswitchinterval(1e-6)
picture = torch.zeros(1, 2, 256, 256)
broken = 0
for attempt in range(60):
    child = os.fork()
    if child == 0:
        begun = []

        def work(place):
            begun.append(place)
            while len(begun) < 2:  # both threads use torch at the same moment
                pass
            torch.nn.functional.interpolate(picture, size=(16, 16), mode="bilinear")

        try:
            VideoSegmenter(ColourSegmentor(), Dis()).session()._beside(work, range(2))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    broken += os.waitpid(child, 0)[1] != 0
print(broken)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads at once need two cores")
def test_frames_are_finished_side_by_side_in_a_forked_process_too():
    """There, torch makes its own threads anew at their first use: without care, one in four of these fails."""
    script = _FORKED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "0\n", done.stderr[-2000:]
