"""Laws of a whole run: what is written equals what is streamed, failures leave nothing, memory stays bounded."""

import errno
import json
import sys
import threading
import weakref
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from helpers import ColourSegmentor, moving_frames
from mpvss._devices import choose_device, choose_dtype
from mpvss._files import Pending
from mpvss._process import _WAITING
from mpvss.errors import ConfigError, DataError, MpvssError, OutputError, SourceError
from mpvss.motion.dis import Dis, Hold
from mpvss.options import OutputOptions, SegmentOptions
from mpvss.outputs import LabelReader, LabelWriter, Mp4Writer
from mpvss.segmenter import VideoSegmenter
from mpvss.types import Frame
from mpvss.video import read
from test_video_reader import cut_off, write_video

SIZE = (48, 64)
FRAMES = 14
READ_AHEAD = 8


def colour_segmenter(propagator=None, **options):
    return VideoSegmenter(ColourSegmentor(), Dis() if propagator is None else propagator, **options)


def clip_of(path, count, **options):
    return write_video(path, [frame.rgb for frame in moving_frames(count, SIZE)], **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Frames at uneven times, in a time base that a second is no round number of."""
    times = [2 * i + (i > 6) for i in range(FRAMES)]
    return clip_of(tmp_path_factory.mktemp("clip") / "clip.mkv", FRAMES, times=times, time_base=Fraction(1, 1000))


# --- what is written


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("motion", ["chain", "direct"])
def test_labels_read_back_equal_the_streamed_ones(clip, tmp_path, direction, motion):
    segmenter = colour_segmenter(interval=4, motion=motion)
    summary = segmenter.process(clip, tmp_path, direction=direction)
    streamed = list(segmenter.stream(clip, direction=direction))
    source = list(read(clip))
    stored = LabelReader(tmp_path / "clip.labels.mkv")
    assert len(stored) == len(streamed) == FRAMES
    for (index, pts, labels, key), result, frame in zip(stored, streamed, source, strict=True):
        assert (index, pts, key) == (result.index, result.pts, result.is_key) == (frame.index, frame.pts, result.is_key)
        np.testing.assert_array_equal(labels, result.labels)
    assert summary.frames == FRAMES
    assert summary.key_frames == sum(result.is_key for result in streamed) == 4


def test_the_description_says_what_was_done(clip, tmp_path):
    colour_segmenter(interval=4, cuts=False).process(
        clip, tmp_path, classes=("Blue", "red"), stride=2, direction="forward"
    )
    meta = json.loads((tmp_path / "clip.json").read_text())
    assert meta["schema"] == 1
    assert (meta["source"], meta["size"], meta["model"]) == (str(clip), [48, 64], "colour")
    assert (meta["classes"], meta["ignore"], len(meta["palette"])) == (["red", "green", "blue"], 255, 3)
    assert (
        meta["options"].items()
        >= {
            "propagator": "dis",
            "motion": "chain",
            "direction": "forward",
            "interval": 4,
            "cuts": False,
            "short_side": None,
            "classes": ["Blue", "red"],
            "stride": 2,
        }.items()
    )
    assert meta["time_base"] == [1, 1000]
    assert [frame["index"] for frame in meta["frames"]] == list(range(0, FRAMES, 2))
    assert [frame["pts"] for frame in meta["frames"]] == [2 * i + (i > 6) for i in range(0, FRAMES, 2)]
    assert [frame["key"] for frame in meta["frames"]] == [True, False, False, False, True, False, False]


def test_only_the_named_classes_are_written(clip, tmp_path):
    segmenter = colour_segmenter(interval=4)
    segmenter.process(clip, tmp_path, classes=("green", "blue"))
    every = {int(value) for result in segmenter.stream(clip) for value in np.unique(result.labels)}
    stored = {int(value) for _, _, labels, _ in LabelReader(tmp_path / "clip.json") for value in np.unique(labels)}
    assert every == {0, 1, 2}
    assert stored == {1, 2, 255}


def test_a_selection_is_segmented_as_if_it_were_the_whole(clip, tmp_path):
    segmenter = colour_segmenter(interval=3)
    segmenter.process(clip, tmp_path, start="0.004", end=0.025, stride=2)
    frames = list(read(clip, start="0.004", end=0.025, stride=2))
    assert 1 < len(frames) < FRAMES
    streamed = list(segmenter.stream(frames))
    for (index, pts, labels, key), result in zip(LabelReader(tmp_path / "clip.json"), streamed, strict=True):
        assert (index, pts, key) == (result.index, result.pts, result.is_key)
        np.testing.assert_array_equal(labels, result.labels)


def test_compare_shows_per_frame_beside_propagated(clip, tmp_path):
    """Hold never changes its side within an interval; the per-frame side does."""
    summary = colour_segmenter(Hold(), interval=FRAMES, cuts=False).process(
        clip, tmp_path, compare=True, alpha=1.0, save=("labels",), direction="forward"
    )
    assert names(tmp_path) == ["clip.compare.mp4", "clip.json", "clip.labels.mkv"]
    pictures = [frame.rgb[-20:] for frame in read(tmp_path / "clip.compare.mp4")]  # below the captions
    assert len(pictures) == FRAMES
    half = pictures[0].shape[1] // 2
    assert half >= SIZE[1]
    first, last = pictures[0].astype(int), pictures[-1].astype(int)
    changed = np.abs(first - last).max(-1) > 60
    left, right = changed[:, : SIZE[1]].mean(), changed[:, -SIZE[1] :].mean()
    assert left > 0.2
    assert right < 0.05
    assert set(summary.compare.seconds_per_frame) == {"per_frame", "propagated"}
    assert summary.compare.flicker["per_frame"] > 0


def test_a_segmenter_keeps_nothing_of_the_video_before(clip, tmp_path):
    other = clip_of(tmp_path / "other.mkv", 7, codec="ffv1", pixels="bgr0")
    used = colour_segmenter(interval=4)
    list(used.stream(other))
    abandoned = used.stream(clip)
    next(abandoned)
    abandoned.close()
    for again, fresh in zip(used.stream(clip), colour_segmenter(interval=4).stream(clip), strict=True):
        assert (again.index, again.is_key) == (fresh.index, fresh.is_key)
        np.testing.assert_array_equal(again.labels, fresh.labels)


def test_on_frame_hears_of_every_frame_in_order(clip, tmp_path):
    heard = []
    colour_segmenter().process(clip, tmp_path, on_frame=lambda result: heard.append(result.index))
    assert heard == list(range(FRAMES))


def test_every_stage_is_timed(clip, tmp_path):
    seconds = colour_segmenter(interval=4).process(clip, tmp_path).seconds
    assert list(seconds) == ["read", "key", "propagate", "decode", "write", "total"]
    assert all(value > 0 for value in seconds.values())
    # Writing and reading have threads of their own.
    assert seconds["key"] + seconds["propagate"] + seconds["decode"] < seconds["total"]
    assert seconds["write"] < seconds["total"]


# --- defaults


@pytest.mark.parametrize(("direction", "keys"), [(None, [0, 10]), ("both", [0, 10]), ("forward", [0, 5, 10])])
def test_the_default_interval_follows_the_direction(clip, tmp_path, direction, keys):
    segmenter = colour_segmenter(Hold(), cuts=False)
    assert [r.index for r in segmenter.stream(clip, direction=direction) if r.is_key] == keys
    segmenter.process(clip, tmp_path, direction=direction)
    meta = json.loads((tmp_path / "clip.json").read_text())
    assert [frame["index"] for frame in meta["frames"] if frame["key"]] == keys
    assert (meta["options"]["direction"], meta["options"]["interval"]) == (direction or "both", keys[1])


def test_a_live_source_goes_forward_by_default(clip, tmp_path, monkeypatch):
    def live(source, **options):
        reader = read(source, **options)
        reader.info = replace(reader.info, live=True)
        return reader

    monkeypatch.setattr("mpvss.segmenter.read", live)
    segmenter = colour_segmenter(Hold(), cuts=False)
    assert [r.index for r in segmenter.stream(clip) if r.is_key] == [0, 5, 10]
    segmenter.process(clip, tmp_path)
    assert json.loads((tmp_path / "clip.json").read_text())["options"]["direction"] == "forward"


def test_without_propagation_every_frame_is_a_key_frame(clip, tmp_path):
    summary = VideoSegmenter(ColourSegmentor(), None).process(clip, tmp_path)
    assert summary.key_frames == summary.frames == FRAMES
    options = json.loads((tmp_path / "clip.json").read_text())["options"]
    assert (options["propagator"], options["interval"], options["cuts"]) == ("none", 1, False)


# --- failures


class Failing(Hold):
    """Breaks at the n-th flow it is asked for."""

    def __init__(self, at, error):
        self.left, self.error = at, error

    def estimate_flow(self, *arguments):
        self.left -= 1
        if not self.left:
            raise self.error
        return super().estimate_flow(*arguments)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(clip, tmp_path, direction, error):
    segmenter = colour_segmenter(Failing(7, error), interval=4)
    everything = {"save": ("overlay", "labels", "png"), "compare": True}
    with pytest.raises(type(error)):
        segmenter.process(clip, tmp_path, **everything, direction=direction)
    assert names(tmp_path) == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_and_is_named(clip, tmp_path, monkeypatch):
    write, written = LabelWriter.append, []

    def fill_up(self, labels, pts):
        written.append(pts)
        if len(written) == 5:
            self._container = type("Full", (), {"mux": full_disk, "close": lambda _: None})()
        write(self, labels, pts)

    monkeypatch.setattr(LabelWriter, "append", fill_up)
    with pytest.raises(OutputError, match=r"clip\.labels\.mkv, got: No space left on device"):
        colour_segmenter().process(clip, tmp_path, save=("overlay", "labels", "png"))
    assert len(written) == 5
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", [Mp4Writer, LabelWriter])
def test_a_disk_that_is_full_at_the_end_leaves_nothing(clip, tmp_path, monkeypatch, writer):
    monkeypatch.setattr(writer, "_finish", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        colour_segmenter().process(clip, tmp_path, save=("overlay", "labels", "png"))
    assert names(tmp_path) == []


def test_a_failed_run_keeps_the_outputs_of_the_run_before(clip, tmp_path):
    colour_segmenter().process(clip, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="broken"):
        colour_segmenter(Failing(3, RuntimeError("broken"))).process(clip, tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damage_is_counted_and_what_decodes_is_written(tmp_path, caplog):
    path = cut_off(clip_of(tmp_path / "cut.mp4", 40, crf=1, g=4))
    summary = colour_segmenter().process(path, tmp_path / "out")
    assert 5 < summary.frames < 40
    assert summary.damaged >= 40 - summary.frames
    assert f"{summary.damaged} frames or packets are damaged or lost" in caplog.text
    assert len(list(LabelReader(tmp_path / "out" / "cut.json"))) == summary.frames
    assert len(list(read(tmp_path / "out" / "cut.overlay.mp4"))) == summary.frames


def test_what_is_wrong_is_said_before_any_output_is_begun(clip, tmp_path):
    out = tmp_path / "out"
    segmenter = colour_segmenter()
    with pytest.raises(ConfigError, match='got "gren"; did you mean "green"'):
        segmenter.process(clip, out, classes=("gren",))
    with pytest.raises(SourceError, match="got nothing at"):
        segmenter.process(tmp_path / "none.mp4", out)
    assert not out.exists()
    with pytest.raises(SourceError, match="expected frames from 9 s to the end, got none"):
        segmenter.process(clip, out, start=9.0)
    assert names(out) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": ("overlay", "video")}, "save takes overlay, labels, png, got 'video'"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"classes": ()}, "classes must name at least one class, got none"),
        ({"start": "soon"}, "expected a time in seconds such as .* got 'soon'"),
        ({"start": "0:02", "end": 2.0}, "end must be after start, got start 0:02 and end 2.0"),
        ({"end": 0.0}, "end must be after start, got start 0 and end 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentOptions(**{name: value for name, value in options.items() if name not in ("save", "alpha")})
        OutputOptions(**{name: value for name, value in options.items() if name in ("save", "alpha")})


def test_devices_and_precisions_are_named():
    assert choose_device("cpu").type == "cpu"
    assert choose_dtype("bfloat16").itemsize == 2
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"):
        choose_device("tpu")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        choose_dtype("int8")


# --- memory


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("to_files", [False, True])
def test_the_number_of_frames_in_memory_does_not_grow(tmp_path, monkeypatch, direction, to_files):
    """At most an interval of them wait, both threads have full queues, and a few are on their way."""
    interval, count = 6, 60
    alive, peak = weakref.WeakSet(), []

    class Counted(Frame):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    path = clip_of(tmp_path / "long.mp4", count)
    monkeypatch.setattr(sys.modules["mpvss.video.reader"], "Frame", Counted)  # the package has a function of that name
    segmenter = colour_segmenter(Hold(), interval=interval, cuts=False)
    if to_files:
        segmenter.process(path, tmp_path, direction=direction, on_frame=lambda _: peak.append(len(alive)))
    else:
        for _ in segmenter.stream(path, direction=direction):
            peak.append(len(alive))
    assert len(peak) == count
    waiting = interval if direction == "both" else 1
    assert 0 < max(peak) <= waiting + READ_AHEAD + _WAITING + 4
    assert len(alive) <= 1


def test_labels_that_a_run_did_not_write_stay_and_are_not_taken_for_its_own(clip, tmp_path):
    """Law: nothing that a run did not write is removed, with or without NAME.json."""
    colour_segmenter().process(clip, tmp_path, classes=("red",))
    labels = (tmp_path / "clip.labels.mkv").read_bytes()
    (tmp_path / "clip.json").unlink()
    colour_segmenter().process(clip, tmp_path, save=("png",))
    assert (tmp_path / "clip.labels.mkv").read_bytes() == labels
    with pytest.raises(DataError, match="expected the labels of frame 0"):
        list(LabelReader(tmp_path / "clip.json"))


@pytest.mark.parametrize("kill", range(4))
def test_a_kill_between_two_names_leaves_no_pair_of_two_runs(clip, tmp_path, monkeypatch, kill):
    colour_segmenter().process(clip, tmp_path)
    former = list(map(str, LabelReader(tmp_path / "clip.json")))
    done = []

    class Killed(BaseException):
        pass

    def replace_until_killed(self):
        if len(done) == kill:
            monkeypatch.setattr(Pending, "discard", lambda self: None)
            raise Killed
        done.append(self.path.name)
        commit(self)

    commit = Pending.commit
    monkeypatch.setattr(Pending, "commit", replace_until_killed)
    options = {"classes": ("red",), "overwrite": True}
    try:
        colour_segmenter().process(clip, tmp_path, **options)
    except Killed:
        assert not (tmp_path / "clip.json").exists()  # so that no reader takes the others for one result
        with pytest.raises(DataError, match="expected the description of the labels"):
            LabelReader(tmp_path / "clip.json")
    else:
        assert done == ["clip.labels.mkv", "clip.overlay.mp4", "clip.json"]
        assert list(map(str, LabelReader(tmp_path / "clip.json"))) != former


def test_two_runs_of_one_output(clip, tmp_path):
    """Law: one wins, the other is refused, and the later replaces nothing unasked."""
    refused = []

    def again(result):
        if result.index == 3:
            for overwrite in (False, True):
                with pytest.raises(OutputError, match="got another run at work; wait for it"):
                    colour_segmenter().process(clip, tmp_path, overwrite=overwrite)
                refused.append(overwrite)

    colour_segmenter().process(clip, tmp_path, on_frame=again)
    assert refused == [False, True]
    assert len(list(LabelReader(tmp_path / "clip.json"))) == FRAMES
    assert names(tmp_path) == ["clip.json", "clip.labels.mkv", "clip.overlay.mp4"]


def test_an_output_that_appears_meanwhile_is_not_replaced(clip, tmp_path):
    def appear(result):
        (tmp_path / "clip.labels.mkv").write_text("of someone else")

    with pytest.raises(OutputError, match=r"clip.labels.mkv exists already; pass --overwrite"):
        colour_segmenter().process(clip, tmp_path, on_frame=appear)
    assert names(tmp_path) == ["clip.labels.mkv"]
    assert (tmp_path / "clip.labels.mkv").read_text() == "of someone else"


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda"):
        choose_device("tpu")
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda"):
        choose_device("cpu:x")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "fast": False, "tolerance": 0.0}])
def test_what_decides_the_labels_is_described(options):
    segmenter = VideoSegmenter.from_pretrained("compact", device="cpu", **options)
    described = segmenter.with_options(start="1:02").describe("both")["options"]
    assert json.loads(json.dumps(described)) == described
    runtime = {"fast": False, "backend": "torch"} if options else {"fast": None, "backend": "onnx"}
    said = runtime | {"dtype": "float32", "tolerance": 1e-3, "device": "cpu", "start": "1:02"}
    assert described | said | options == described
    assert described["flow"] == {"preset": "lean", "scale": 1.0, "finest_scale": None}


def test_a_number_is_that_of_a_cuda_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MpvssError, match="device cuda:0 was asked for, but this machine"):
        choose_device(0)
    with pytest.raises(MpvssError, match="device cuda:0 was asked for"):
        VideoSegmenter.from_pretrained("compact", device=0)
    with pytest.raises(ValueError, match="device must be auto"):
        choose_device("0")


def test_legends_of_other_scripts_are_drawn_and_said_at_most_once(clip, tmp_path, caplog):
    segmenter = colour_segmenter(interval=4)
    segmenter.segmentor.class_names = ("дорога", "天空", "green")
    for compare in (False, True):
        caplog.clear()
        options = {"legend": True, "compare": compare, "overwrite": True}
        segmenter.process(clip, tmp_path, **options)
        assert sum("no font here has" in record.message for record in caplog.records) <= 1
        assert len(list(read(tmp_path / "clip.overlay.mp4"))) == FRAMES
    assert len(list(read(tmp_path / "clip.compare.mp4"))) == FRAMES


def test_a_run_that_is_stopped_keeps_what_came(clip, tmp_path):
    """Law: a stop ends a run between two frames; everything written until then is whole."""
    stop = threading.Event()
    summary = colour_segmenter(interval=4).process(
        clip,
        tmp_path,
        stop=stop,
        direction="forward",
        on_frame=lambda result: stop.set() if result.index == 5 else None,
    )
    assert summary.stopped
    assert summary.to_dict()["stopped"] is True
    assert 6 <= summary.frames < FRAMES
    assert len(list(LabelReader(tmp_path / "clip.json"))) == summary.frames
    assert len(list(read(tmp_path / "clip.overlay.mp4"))) == summary.frames
    whole = colour_segmenter(interval=4).process(clip, tmp_path / "whole", direction="forward", stop=threading.Event())
    assert (whole.stopped, whole.frames, "stopped" in whole.to_dict()) == (False, FRAMES, False)
