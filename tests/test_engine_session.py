"""Laws of a session: what it answers, when, and from which key frames."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss.engine.carriers import CARRIERS, Inference, class_scores, make_carrier, queries
from mpvss.engine.decode import ClassScores
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.spill import Spill
from mpvss.errors import ModelError, OutputError
from mpvss.motion import PixelFlow, QueryFlow
from mpvss.motion.dis import Dis, Hold
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import load_segmentor
from mpvss.segmentors.protocol import Prediction
from mpvss.training.config import make_config
from mpvss.training.loop import train
from mpvss.training.teacher import teach
from mpvss.types import Frame, Segmentation
from test_motion_network import TINY
from train_world import make_folder, make_segmentor, make_values

DIRECTIONS = ("forward", "both")


def run(segmenter, frames, direction):
    session = segmenter.session(direction=direction)
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
    session = VideoSegmenter(ColourSegmentor(), Hold(), interval=5).session(direction="forward")
    assert [len(session.push(frame)) for frame in frames] == [1] * 11
    session = VideoSegmenter(ColourSegmentor(), Hold(), interval=5).session(direction="both")
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
    strong = np.random.default_rng(0).random((3, 40, 40), np.float32) + np.float32(0.5)
    weak = strong.copy()
    weak[:, :10] *= 0.01
    strong, weak = (ClassScores(np.arange(3), planes, 3) for planes in (strong, weak))
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    carrier = segmenter.session(direction="both").carrier
    assert carrier._top(strong, strong) == float(strong.planes.max())
    assert carrier._top(strong, weak) is None
    assert carrier._top(ClassScores(np.arange(3), np.zeros((3, 4, 4), np.float32), 3)) is None
    assert segmenter.session(direction="both", confidence=True).carrier._top(strong) is None


def test_flows_inverted_for_the_other_direction_lead_to_the_key_frame_after():
    """Hidden places aside, labels are those of two searches: a search for each direction."""
    frames = moving_frames(9, (96, 128), speed=3)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=8, cuts=False)
    one = list(segmenter.stream(frames, direction="both"))
    session = segmenter.session(direction="both")
    session.carrier._flows.invertible = False
    two = [result for frame in frames for result in session.push(frame)] + session.finish()
    same = [(a.labels == b.labels).mean() for a, b in zip(one, two, strict=True)]
    assert min(same) > 0.95
    backwards = VideoSegmenter(ColourSegmentor(), Dis(), interval=8, cuts=False).session(direction="both")
    original = backwards.carrier._flows.to_both

    def swapped(pictures, before, after):
        forward, backward = original(pictures, before, after)
        return forward, backward[::-1]

    backwards.carrier._flows.to_both = swapped
    wrong = [result for frame in frames for result in backwards.push(frame)] + backwards.finish()
    assert min((a.labels == b.labels).mean() for a, b in zip(wrong, two, strict=True)) < min(same)


@pytest.mark.parametrize(("motion", "flows"), [("chain", 8), ("direct", 2 * 7)])
def test_one_flow_between_neighbours_serves_both_directions(motion, flows):
    """What a chain costs is a flow for each pair of neighbours; a direct flow has its own for each key frame."""
    calls = []

    class Counted(Dis):
        def estimate_flow(self, *arguments):
            calls.append(arguments)
            return super().estimate_flow(*arguments)

    segmenter = VideoSegmenter(ColourSegmentor(), Counted(), motion=motion, interval=8, cuts=False)
    run(segmenter, moving_frames(9), "both")
    assert len(calls) == flows


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


def test_per_query_flow_moves_each_mask_by_its_own(monkeypatch):
    class Apart:
        """Query q moves by q grid cells to the right."""

        name = "apart"
        per_query = True

        def estimate_flow(self, current, other, queries, padded, grid, active=None):
            flow = np.zeros((len(current), queries.shape[1], 2, *grid), np.float32)
            flow[:, :, 0] = -np.arange(queries.shape[1])[:, None, None]
            return flow

    seen = []
    segmenter = VideoSegmenter(ColourSegmentor(), Apart(), interval=10, cuts=False, tolerance=0.0)
    session = segmenter.session(direction="forward")
    warp_each = queries.warp_each
    monkeypatch.setattr(queries, "warp_each", lambda masks, flow: seen.append(warp_each(masks, flow)) or seen[-1])
    frames = moving_frames(3, speed=0)
    for frame in frames:
        session.push(frame)
    key = ColourSegmentor()(frames[0].rgb[None]).mask_logits[0]
    assert len(seen) == 2
    for steps, masks in enumerate(seen, 1):
        for query in range(4):
            shift = query * steps  # chained: twice as far after two frames
            np.testing.assert_allclose(masks[query, :, shift:], key[query, :, : key.shape[2] - shift], atol=1e-4)


def carrier_of(segmenter, motion="chain"):
    return make_carrier(Inference(segmenter.segment, segmenter.rule, Hold(), motion))


class Looks:
    """Waits for ``ahead`` frames, then chooses the one at ``choice`` of them."""

    def __init__(self, ahead, choice):
        self.ahead, self.choice = ahead, choice

    def decide(self, window):
        return self.choice if len(window) >= self.ahead else None


@pytest.mark.parametrize(("ahead", "choice"), [(3, 0), (3, 1), (3, 2), (5, 1)])
def test_a_schedule_may_look_ahead_and_the_frames_it_leaves_are_decided_on_next(ahead, choice):
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    session = Session(carrier_of(segmenter), Looks(ahead, choice), direction="both")
    frames = moving_frames(13)
    results = [result for frame in frames for result in session.push(frame)] + session.finish()
    assert [result.index for result in results] == list(range(13))
    keys = [result.index for result in results if result.is_key]
    assert keys == [key for key in range(0, 13, choice + 1) if key == 0 or key + ahead - choice <= 13]
    alone = run(VideoSegmenter(ColourSegmentor(), None), frames, "forward")
    for result in results:
        if result.is_key:
            np.testing.assert_array_equal(result.labels, alone[result.index].labels)


def test_going_forward_only_the_last_frame_can_be_chosen():
    session = Session(carrier_of(VideoSegmenter(ColourSegmentor(), Hold())), Looks(3, 1))
    frames = moving_frames(4)
    for frame in frames[:3]:
        session.push(frame)
    with pytest.raises(ValueError, match="can choose only the last frame, got 1"):
        session.push(frames[3])


def test_a_session_as_a_context_manager_ends_its_threads(monkeypatch):
    monkeypatch.setattr("mpvss.engine.carriers.carrier.threads", lambda: 2)
    monkeypatch.setattr("mpvss.engine.carriers.carrier.cores", lambda: 2)
    with VideoSegmenter(ColourSegmentor(), Dis(), interval=4).session(direction="both") as session:
        for frame in moving_frames(6):
            session.push(frame)
        pool = session.carrier._pool
        assert pool is not None
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(print)


def test_stages_that_threads_share_add_up_to_the_time_that_went_by(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("mpvss.engine.stage_clock.time.perf_counter", lambda: float(next(ticks)))
    parts = [class_scores.StageClock() for _ in range(2)]
    whole = class_scores.StageClock()
    with whole.shared(parts):
        for part in parts:
            with part("propagate"):
                next(ticks)
                next(ticks)
            with part("decode"):
                pass
    assert whole.total == pytest.approx(13)
    assert whole.seconds["propagate"] == pytest.approx(3 * whole.seconds["decode"])
    assert whole.seconds["key"] == 0


def test_options_out_of_range_are_refused():
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    with pytest.raises(ValueError, match="motion must be one of chain, direct"):
        carrier_of(segmenter, motion="sideways")
    with pytest.raises(ValueError, match="direction must be one of both, forward"):
        Session(carrier_of(segmenter), FixedInterval(5), direction="backward")
    with pytest.raises(ValueError, match="interval must be at least 1"):
        VideoSegmenter(ColourSegmentor(), Hold(), interval=0)


def test_bare_pictures_are_counted_and_segmented_as_frames_are():
    frames = moving_frames(6)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=4)
    session = segmenter.session(direction="both")
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
    with pytest.raises(ValueError, match="got NaN"):
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
    with pytest.raises((ValueError, TypeCheckError), match=r"RGB image|ype-check"):
        session.push(wrong)


_FORKED = """
import os, signal, torch
import mpvss.engine.session

torch.set_num_threads(2)
matrix = torch.rand(600, 600)
expected = matrix @ matrix
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it where it hangs
    os._exit(not torch.allclose(matrix @ matrix, expected))
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_forked_off_two_torch_threads_goes_on():
    """OpenMP's threads are not in the child, which would wait for them for ever."""
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr[-2000:]


# What is pushed

PICTURE = moving_frames(1, (48, 64))[0].rgb


@pytest.mark.parametrize(
    "wrong", [PICTURE / 255, PICTURE[..., 0], np.dstack([PICTURE, PICTURE[..., 0]]), PICTURE.astype(np.int16), [[1]]]
)
@pytest.mark.parametrize("framed", [True, False])
def test_a_frame_is_validated_as_a_bare_picture_is(wrong, framed):
    session = VideoSegmenter(ColourSegmentor(), Hold()).session()
    frame = Frame(0, Fraction(0), PICTURE)
    object.__setattr__(frame, "rgb", wrong)  # without the checks that only tests have
    push = getattr(Session.push, "__wrapped__", Session.push)
    with pytest.raises((ValueError, TypeCheckError), match=r"expected an RGB image|ype-check"):
        push(session, frame if framed else wrong)


def _read_only(rgb):
    rgb = rgb.copy()
    rgb.flags.writeable = False
    return rgb


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda rgb: np.ascontiguousarray(rgb[..., ::-1])[..., ::-1],
        lambda rgb: np.ascontiguousarray(rgb[::-1])[::-1],
        lambda rgb: np.repeat(rgb, 2, 1)[:, ::2],
        np.asfortranarray,
        _read_only,
    ],
)
def test_every_layout_of_an_array_gives_the_same_labels(layout, motion, direction):
    frames = moving_frames(6, (48, 64))
    for short_side in (None, 40):
        segmenter = VideoSegmenter(ColourSegmentor(short_side), Dis(), interval=4, motion=motion)
        laid_out = [Frame(frame.index, frame.pts, layout(frame.rgb)) for frame in frames]
        for a, b in zip(run(segmenter, frames, direction), run(segmenter, laid_out, direction), strict=True):
            np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("framed", [True, False])
def test_a_buffer_may_be_written_over_after_each_push(framed, motion, direction):
    frames = moving_frames(9, (48, 64), speed=3)
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=4, motion=motion, cuts=False)
    buffer, session, results = np.empty_like(frames[0].rgb), segmenter.session(direction=direction), []
    for frame in frames:
        buffer[:] = frame.rgb
        results += session.push(Frame(frame.index, frame.pts, buffer) if framed else buffer)
    buffer[:] = 0
    results += session.finish()
    for a, b in zip(results, run(segmenter, frames, direction), strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_a_finished_session_and_a_time_that_goes_backward_are_refused():
    frames = moving_frames(4)
    session = VideoSegmenter(ColourSegmentor(), Hold()).session()
    session.push(frames[2])
    with pytest.raises(ValueError, match=r"order of their times, got frame 1 at 0\.0666667 s after"):
        session.push(frames[1])
    session.push(frames[2])  # equal times are a matter of rounding
    session.push(frames[3])
    session.finish()
    with pytest.raises(ValueError, match="this session is finished; begin another"):
        session.push(frames[3])
    assert session.finish() == []


# What segmentors and propagators answer


class Raw(ColourSegmentor):
    """Answers in another precision."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __call__(self, images):
        found = super().__call__(images)
        return Prediction(*(x.astype(self.dtype) for x in (found.class_logits, found.mask_logits, found.queries)))


class RawFlow(Dis):
    """A flow in another precision."""

    def __init__(self, dtype, per_query):
        super().__init__()
        self.dtype, self.per_query = dtype, per_query

    def estimate_flow(self, current, other, queries, padded, grid, active=None):
        return np.zeros((len(current), 1, 2, *grid), self.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_answers_of_any_precision_are_taken(dtype, per_query, direction):
    frames = moving_frames(5, (48, 64))
    segmenter = VideoSegmenter(Raw(dtype), RawFlow(dtype, per_query), interval=4, cuts=False)
    exact = VideoSegmenter(ColourSegmentor(), RawFlow(np.float32, per_query), interval=4, cuts=False)
    for a, b in zip(run(segmenter, frames, direction), run(exact, frames, direction), strict=True):
        assert (a.labels == b.labels).mean() > (0.97 if dtype == np.float16 else 0.999)


def test_a_propagator_is_called_by_one_thread_unless_it_says_otherwise(monkeypatch):
    threads = set()

    class Network:
        name, per_query = "network", False

        def estimate_flow(self, current, other, queries, padded, grid, active=None):
            threads.add(threading.get_ident())
            return np.zeros((len(current), 1, 2, *grid), np.float32)

    monkeypatch.setattr("mpvss.engine.carriers.carrier.threads", lambda: 4)
    monkeypatch.setattr("mpvss.engine.carriers.carrier.cores", lambda: 4)
    frames = moving_frames(9, (48, 64))
    run(VideoSegmenter(ColourSegmentor(), Network(), interval=8, cuts=False), frames, "both")
    assert threads == {threading.get_ident()}
    Network.thread_safe = True
    run(VideoSegmenter(ColourSegmentor(), Network(), interval=8, cuts=False), frames, "both")
    assert threads != {threading.get_ident()}


@pytest.mark.parametrize(
    ("allowed", "asked", "expected"), [(1, 8, None), (8, 1, None), (3, 8, 3), (8, 2, 2), (8, 8, 4)]
)
def test_no_more_threads_than_cores_that_are_allowed_and_threads_that_were_asked_for(
    allowed, asked, expected, monkeypatch
):
    monkeypatch.setattr("mpvss.engine.carriers.carrier.threads", lambda: asked)
    monkeypatch.setattr("mpvss.engine.carriers.carrier.cores", lambda: allowed)
    session = VideoSegmenter(ColourSegmentor(), Dis()).session()
    assert session.carrier.map(abs, [-1, 2]) == [1, 2]
    assert (session.carrier._pool and session.carrier._pool._max_workers) == expected


# What waits


class Held(Spill):
    """Counts what was kept in memory, over all."""

    most, spilled = 0, 0

    def keep(self, array):
        kept = super().keep(array)
        Held.most, Held.spilled = max(Held.most, self.held), Held.spilled + (kept is not array)
        return kept


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("confidence", [False, True])
def test_what_waits_is_bounded_whatever_the_interval_and_labels_are_the_same(
    per_query, motion, confidence, monkeypatch, caplog, tmp_path
):
    frames = [*moving_frames(11, (32, 48), speed=1), *moving_frames(4, (32, 48), seed=5)]
    frames = [Frame(i, Fraction(i), frame.rgb) for i, frame in enumerate(frames)]
    segmenter = VideoSegmenter(ColourSegmentor(), Dis(), interval=100_000, motion=motion)
    segmenter.propagator.per_query = per_query

    def answers():
        return list(segmenter.stream(frames, direction="both", confidence=confidence))

    expected = answers()
    segmenter = segmenter.with_options(interval=10)  # with a second key frame, too
    expected += answers()
    segmenter = segmenter.with_options(interval=100_000)
    limit = 2 * frames[0].rgb.nbytes
    monkeypatch.setattr("mpvss.engine.spill.MOST_HELD", limit)
    for module in ("session", "carriers.carrier"):
        monkeypatch.setattr(f"mpvss.engine.{module}.Spill", Held)
    monkeypatch.setattr("mpvss.engine.spill._BLOCK", 2**16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Held.most = Held.spilled = 0
    spilled = answers()
    segmenter = segmenter.with_options(interval=10)
    spilled += answers()
    assert 0 < Held.most <= limit
    assert Held.spilled > 20
    assert list(tmp_path.iterdir()) == []
    assert "frames that wait for a key frame take more than" in caplog.text
    for a, b in zip(expected, spilled, strict=True):
        assert (a.index, a.pts, a.is_key) == (b.index, b.pts, b.is_key)
        np.testing.assert_array_equal(a.labels, b.labels)
        if confidence:
            np.testing.assert_array_equal(a.confidence, b.confidence)


def test_a_full_temporary_folder_is_one_line(monkeypatch):
    class Full:
        def truncate(self, size):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("mpvss.engine.spill.MOST_HELD", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    session = VideoSegmenter(ColourSegmentor(), Hold()).session(direction="both")
    session.push(moving_frames(1)[0])
    with pytest.raises(OutputError, match=r"No space left on device.*set TMPDIR"):
        session.push(moving_frames(1)[0].rgb)


# Pixels without a class


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pixels_below_the_least_score_have_no_class(per_query, direction):
    class Things(ColourSegmentor):
        """Only the left half shows anything."""

        def __call__(self, images):
            found = super().__call__(images)
            masks = np.full_like(found.mask_logits, -9)
            masks[:, 1, :, : masks.shape[3] // 2] = 9.0
            return Prediction(found.class_logits, masks, found.queries)

    frames = [Frame(i, Fraction(i), PICTURE) for i in range(7)]
    segmenter = VideoSegmenter(Things(), Dis(), interval=3)
    segmenter.propagator.per_query = per_query
    for result in segmenter.stream(frames, direction=direction, min_score=0.5):
        assert set(np.unique(result.labels[:, :30])) == {1}
        assert set(np.unique(result.labels[:, 34:])) == {255}
    for result in segmenter.stream(frames, direction=direction):
        assert 255 not in result.labels


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_a_least_score_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="min_score must be at least 0 and finite"):
        VideoSegmenter(ColourSegmentor(), Hold()).session(min_score=wrong)


@pytest.mark.parametrize("change", ["columns", "masks"])
def test_an_answer_that_does_not_fit_the_classes_is_refused_at_the_first_frame(change):
    class Short(ColourSegmentor):
        def __call__(self, images):
            found = super().__call__(images)
            if change == "columns":
                return Prediction(found.class_logits[..., :-1], found.mask_logits, found.queries)
            return Prediction(found.class_logits, found.mask_logits[:, 1:], found.queries)

    messages = {"columns": "3 classes and, last, no object, got 3 columns", "masks": "got 4 classes, 3 masks"}
    with pytest.raises((ModelError, TypeCheckError), match=f"{messages[change]}|ype-check"):
        VideoSegmenter(Short(), Hold()).session().push(PICTURE)


def test_a_misspelt_motion_and_a_tolerance_out_of_range_are_refused_at_construction():
    with pytest.raises(ValueError, match="motion must be one of chain, direct, got 'chian'"):
        VideoSegmenter(ColourSegmentor(), Hold(), motion="chian")
    with pytest.raises(ValueError, match="motion must be one of chain, direct, got 'chian'"):
        VideoSegmenter.from_pretrained("owner/none-that-is-loaded", motion="chian")
    with pytest.raises(ValueError, match="tolerance must be from 0 to 1, got nan"):
        VideoSegmenter(ColourSegmentor(), Hold(), tolerance=float("nan"))


# Devices without doubles


class NoDouble(torch.utils._python_dispatch.TorchDispatchMode):
    """Stands for such a device: every tensor but those that ``.cpu()`` made must not be of 64-bit floats."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, f"{func} on the device"
        return result


@pytest.fixture
def device_without_double(monkeypatch):
    """Whatever is brought to the CPU first may be one."""
    brought = torch.Tensor.cpu

    def cpu(tensor):
        return brought(tensor).as_subclass(OnCpu)

    class OnCpu(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch.utils._python_dispatch._disable_current_modes():
                return super().__torch_function__(func, types, args, kwargs or {})

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr("mpvss.engine.carriers.carrier.threads", lambda: 1)  # a mode belongs to one thread
    return NoDouble()


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_folder(root / "data")
    make_segmentor(root / "segmentor")
    return root


@pytest.mark.parametrize("kind", [QueryFlow, PixelFlow])
@pytest.mark.parametrize("fast", [False, True])
def test_no_double_is_on_the_device_with_networks(tiny_world, kind, fast, device_without_double):
    """Loading included, of a checkpoint of doubles as well."""
    segmentor = load_segmentor(tiny_world / "segmentor")
    config = replace(TINY, num_queries=segmentor.num_queries, query_width=segmentor.query_width)
    module = kind(config).double()
    module.segmentor = "segmentor"
    place = tiny_world / f"{kind.__name__}-{fast}"
    module.save_pretrained(place)
    shutil.copytree(tiny_world / "segmentor", place / "segmentor")
    segmenter = VideoSegmenter.from_pretrained(place, interval=3, device="cpu", fast=fast)
    with device_without_double:
        assert len(run(segmenter, moving_frames(4, (48, 64)), "both")) == 4
        assert len(run(segmenter, moving_frames(4, (48, 64)), "forward")) == 4
        with pytest.raises(AssertionError, match="on the device"):
            torch.zeros(1).double()


def test_no_double_is_on_the_device_of_a_teacher(tiny_world, tmp_path, device_without_double):
    segmentor = load_segmentor(tiny_world / "segmentor")
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(tmp_path / f"{name}.png")
    with device_without_double:
        assert teach([str(tmp_path)], segmentor, tmp_path / "taught").startswith("folder:")


@pytest.mark.parametrize("propagator", ["query", "flow"])
def test_no_double_is_on_the_device_in_training(tiny_world, tmp_path, propagator, device_without_double):
    changes = {"model__propagator": propagator, "optim__steps": 2, "data__validation": f"folder:{tiny_world / 'data'}"}
    values = make_values(tiny_world, tmp_path / "run", data__interval=3, **changes)
    with device_without_double:
        train(make_config(values), quiet=True)


class QueryHold(Hold):
    """Nothing moves, said for each query."""

    per_query = True

    def estimate_flow(self, current, other, queries, padded, grid, active=None):
        return np.zeros((len(current), queries.shape[1] if active is None else len(active), 2, *grid), np.float32)


@pytest.mark.parametrize("propagator", [Hold(), QueryHold()], ids=["scores", "masks"])
def test_a_video_and_the_same_video_backwards_have_the_same_labels(propagator):
    """Both key frames count alike: by their distance and by what they look like."""
    frames = moving_frames(9)
    backwards = [Frame(i, Fraction(i), frame.rgb) for i, frame in enumerate(frames[::-1])]
    segmenter = VideoSegmenter(ColourSegmentor(), propagator, interval=4, cuts=False)
    one, other = run(segmenter, frames, "both"), run(segmenter, backwards, "both")
    assert len(one) == len(other) == 9
    for a, b in zip(one, other[::-1], strict=True):
        assert a.is_key == b.is_key
        assert (a.labels == b.labels).mean() > 0.995  # ties aside


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_flow_for_each_query_that_is_the_same_for_all_does_what_one_flow_does(direction):
    frames = moving_frames(9)
    one, each = (
        run(VideoSegmenter(ColourSegmentor(), propagator, interval=4, cuts=False), frames, direction)
        for propagator in (Hold(), QueryHold())
    )
    assert [(r.index, r.is_key) for r in one] == [(r.index, r.is_key) for r in each]
    assert min((a.labels == b.labels).mean() for a, b in zip(one, each, strict=True)) > 0.95


@pytest.mark.parametrize("propagator", [Dis(), QueryHold()], ids=["scores", "masks"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_stages_together_take_no_longer_than_all(direction, propagator):
    began = time.perf_counter()
    session = VideoSegmenter(ColourSegmentor(), propagator, interval=4).session(direction=direction)
    for frame in moving_frames(7):
        session.push(frame)
    session.finish()
    assert min(session.clock.seconds.values()) > 0
    assert session.clock.total == pytest.approx(sum(session.clock.seconds.values()))
    assert session.clock.total <= time.perf_counter() - began


def test_a_propagator_with_a_flow_for_each_query_is_called_from_one_thread():
    threads = set()

    class Watched(QueryHold):
        def estimate_flow(self, *given, **named):
            threads.add(threading.get_ident())
            return super().estimate_flow(*given, **named)

    run(VideoSegmenter(ColourSegmentor(), Watched(), interval=8, motion="direct"), moving_frames(9), "both")
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("propagator", [Hold(), QueryHold()], ids=["scores", "masks"])
def test_where_both_key_frames_look_alike_the_nearer_one_counts_more(propagator):
    class Changed(ColourSegmentor):
        """Says something else of the same image at the second call."""

        def __call__(self, images):
            answer = super().__call__(images)
            if self.calls == 1:
                return answer
            return Prediction(answer.class_logits[:, [1, 2, 0, 3]], answer.mask_logits, answer.queries)

    still = [Frame(i, Fraction(i), moving_frames(1)[0].rgb) for i in range(6)]
    results = run(VideoSegmenter(Changed(), propagator, interval=5, cuts=False), still, "both")
    labels = [result.labels for result in results]
    assert (labels[0] != labels[5]).all()
    for near, far, frames in ((0, 5, (1, 2)), (5, 0, (3, 4))):
        for frame in frames:
            assert (labels[frame] == labels[near]).mean() > (labels[frame] == labels[far]).mean() + 0.1


def test_images_of_opencv_are_pushed_as_they_are():
    frames = [frame.rgb for frame in moving_frames(5)]
    ours = VideoSegmenter(ColourSegmentor(), Hold(), interval=2)
    rgb, bgr = ours.session(), ours.session()
    for image in frames:
        (one,), (other,) = rgb.push(image), bgr.push(image[..., ::-1], color="bgr")
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.frame.rgb, other.frame.rgb)
    with pytest.raises((ValueError, TypeCheckError), match=r"color must be rgb or bgr, got 'hsv'|ype-check"):
        rgb.push(frames[0], color="hsv")


def test_options_that_a_session_does_not_look_at_are_refused():
    segmenter = VideoSegmenter(ColourSegmentor(), Hold())
    with pytest.raises(ValueError, match="start is of a source: push the frames that you want, or use stream"):
        segmenter.session(start=2)
    with pytest.raises(ValueError, match="device is for from_pretrained: this segmentor is loaded already"):
        VideoSegmenter(ColourSegmentor(), Hold(), device="cpu")
    with segmenter.session() as session:
        session.push(moving_frames(1)[0])
    with pytest.raises(ValueError, match="this session is finished"):
        session.push(moving_frames(2)[1])


def test_a_schedule_sees_the_confidence_of_what_was_propagated():
    """Law: the last frame of a window is not propagated yet; those before it are, going forward."""
    windows = []

    class Watching:
        def decide(self, window):
            windows.append([frame.confidence for frame in window])
            return len(window) - 1 if len(window) == 4 else None

    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), cuts=False)
    with segmenter.session(confidence=True, key_frames=(Watching(), None)) as session:
        results = [result for frame in moving_frames(9) for result in session.push(frame)]
    assert [result.is_key for result in results] == [i % 4 == 0 for i in range(9)]
    assert [len(window) for window in windows] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert all(window[-1] is None for window in windows)
    assert windows[3][:3] == pytest.approx([float(results[i].confidence.mean()) for i in (1, 2, 3)])
    windows.clear()
    with segmenter.session(direction="both", key_frames=(Watching(), None)) as session:
        for frame in moving_frames(5):
            session.push(frame)
    assert all(value is None for window in windows for value in window)


def test_a_stop_ends_a_stream_before_the_next_frame():
    stop, frames = threading.Event(), moving_frames(20)
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=4)
    taken = []
    for result in segmenter.stream(iter(frames), stop=stop, direction="forward"):
        taken.append(result.index)
        if len(taken) == 7:
            stop.set()
    assert taken == list(range(7))


def test_a_stream_of_frames_takes_the_same_selection_as_a_file():
    frames = moving_frames(20)  # 15 a second
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=4)
    results = list(segmenter.stream(frames, start="0.2", end=1, stride=3))
    assert [result.index for result in results] == [3, 6, 9, 12]


def test_options_of_a_call_replace_those_of_the_segmenter_and_of_nobody_else():
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=4)
    keys = [result.index for result in segmenter.stream(moving_frames(9), interval=3) if result.is_key]
    assert keys == [0, 3, 6]
    assert segmenter.options.interval == 4
    everything = list(segmenter.stream(moving_frames(3), propagator="none"))
    assert all(result.is_key for result in everything)
    (only,) = segmenter.session(classes=("Green",)).push(moving_frames(1)[0])
    assert set(np.unique(only.labels)) <= {1, 255}
    with pytest.raises(ValueError, match="classes must be names, or ids from 0 to 2, got 3"):
        segmenter.session(classes=(3,))
    with pytest.raises(ValueError, match="device is decided when the model is loaded"):
        segmenter.with_options(device="cpu")
    with pytest.raises(ModelError, match="propagator query needs a motion module"):
        segmenter.with_options(propagator="query")
    assert segmenter.per_frame().with_options(propagator="auto").propagator is segmenter.propagator
    small = segmenter.with_options(short_side=32)
    assert (small.rule.short_side, small.with_options(short_side=None).rule) == (32, segmenter.rule)
    assert segmenter.class_names == ("red", "green", "blue")
    assert segmenter.palette.shape == (3, 3)


def test_a_carrier_of_somebody_else_is_one_entry(monkeypatch):
    """It carries what it likes; the session knows nothing of it."""

    class Counting:
        """Labels a frame by how many frames ago its key frame was."""

        def __init__(self, inference):
            self.inference, self.clock = inference, inference.clock

        def predict(self, frames):
            return [None] * len(frames)

        def keep(self, frame, predicted):
            self.last = 0
            return frame, self._result(frame, is_key=True)

        def next(self, kept, frame):
            self.last += 1
            return self._result(frame, is_key=False)

        def between(self, before, frames, after):
            return [self.next(before, frame) for frame in frames]

        def geometry(self, frame):
            return self.inference.rule.fit(frame.size)

        def close(self):
            pass

        def _result(self, frame, is_key):
            return Segmentation(frame, np.full(frame.size, self.last, np.uint8), is_key)

    monkeypatch.setitem(CARRIERS, "counting", Counting)
    inference = carrier_of(VideoSegmenter(ColourSegmentor(), Hold())).inference
    with Session(make_carrier(inference, "counting"), FixedInterval(3)) as session:
        results = [result for frame in moving_frames(7) for result in session.push(frame)]
    assert [int(result.labels[0, 0]) for result in results] == [0, 1, 2, 0, 1, 2, 0]
