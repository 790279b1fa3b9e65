"""Laws of batches: chunks join to the bytes of one run, each video is finished once, the broken ones alone fail."""

import ctypes
import errno
import functools
import http.server
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter, deque
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, batch_settings, changed, moving_frames
from mpvss import cli
from mpvss.batch import driver as driver_module
from mpvss.batch import run as run_module
from mpvss.batch.chunks import FRAMES, PLAN, ChunkedVideo, Plan, chunk_files, divide
from mpvss.batch.copies import SourceCopies, machine_folder
from mpvss.batch.listed import FrameList, Listing, fingerprint, read_listed
from mpvss.batch.local import LocalEngine
from mpvss.batch.locks import lock, unlock
from mpvss.batch.manifest import Manifest
from mpvss.batch.run import in_shard, run_batch
from mpvss.batch.settings import Settings
from mpvss.batch.single import process_in_chunks
from mpvss.batch.sources import Job, expand
from mpvss.batch.storage import fetch
from mpvss.batch.tasks import Outcome
from mpvss.batch.worker import Worker
from mpvss.errors import ConfigError, DataError, MpvssError, OutputError, SourceError
from mpvss.motion.dis import Dis, Hold
from mpvss.options import BatchOptions, OutputOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.video import read
from mpvss.video.media import VideoMedia
from test_video_reader import cut_off, noise, write_video

SIZE = (48, 64)
ENDINGS = (".json", ".labels.mkv", ".overlay.mp4")


def pictures(count=40, size=SIZE):
    """Two scenes, so that there is a cut."""
    half = count // 2
    return [
        frame.rgb for seed, n in ((0, half), (7, count - half)) for frame in moving_frames(n, size, seed=seed, speed=3)
    ]


def colour_segmenter(propagator=None, **options):
    return VideoSegmenter(ColourSegmentor(), Dis() if propagator is None else propagator, **options)


def tree(folder):
    """The bytes of every file but the manifests, and of an overlay the times and pictures of its frames.

    x264 does not always make the same bytes of the same pictures: 31 of 2,460 encodings of one clip were others.
    """
    return {
        str(path.relative_to(folder)): Pictures(path) if path.name.endswith(".overlay.mp4") else path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


class Pictures:
    """Times and decoded pictures of an overlay; equal to those of another encoding of the same pictures."""

    def __init__(self, path):
        with read(path) as reader:
            self.frames = [(frame.pts, frame.rgb.astype(int)) for frame in reader]

    __hash__ = None

    def __eq__(self, other):
        return [pts for pts, _ in self.frames] == [pts for pts, _ in other.frames] and all(
            np.abs(one - two).mean() < 2 for (_, one), (_, two) in zip(self.frames, other.frames, strict=True)
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", pictures(), g=12)


# --- reading what was listed


def listed(source, **selection):
    with read(source, **selection) as reader:
        frames = list(reader)
        base = reader.info.time_base
    return frames, FrameList(
        np.array([frame.index for frame in frames]),
        np.array([int(frame.pts / base) for frame in frames]),
        np.array([fingerprint(frame.rgb) for frame in frames], np.uint32),
        base,
    )


def test_any_pixel_changes_the_fingerprint():
    rgb = np.zeros((9, 10, 3), np.uint8)
    prints = {fingerprint(rgb)}
    for position in np.ndindex(9, 10):
        changed = rgb.copy()
        changed[position] = 1
        prints.add(fingerprint(changed))
    assert len(prints) == 91


def uneven(folder):
    times = [3 * i + (i > 6) for i in range(40)]
    return write_video(folder / "clip.mkv", pictures(), times=times, time_base=Fraction(1, 1000), g=9)


def stepped_clock(folder):
    """The clock starts anew in the middle, so times from a jump into the file are others."""
    halves = [
        write_video(folder / f"{i}.ts", pictures()[20 * i : 20 * i + 20], times=range(100, 120), g=5) for i in range(2)
    ]
    (folder / "clip.ts").write_bytes(b"".join(half.read_bytes() for half in halves))
    return folder / "clip.ts"


KINDS = {
    "b-frames": lambda folder: write_video(folder / "clip.mp4", pictures(), g=10, bf=3),
    "open groups": lambda folder: write_video(
        folder / "clip.mkv", pictures(), g=8, bf=3, **{"x264-params": "open-gop=1"}
    ),
    "refresh without key frames": lambda folder: write_video(
        folder / "clip.mkv", pictures(), g=8, **{"x264-params": "intra-refresh=1"}
    ),
    "transport stream": lambda folder: write_video(folder / "clip.ts", pictures(), g=10, bf=2),
    "one key frame": lambda folder: write_video(folder / "clip.mp4", pictures(), g=400),
    "uneven": uneven,
    "cut off": lambda folder: cut_off(write_video(folder / "clip.mkv", pictures(), g=10)),
    "clock starts anew": stepped_clock,
}


@pytest.mark.parametrize("kind", KINDS)
def test_listed_frames_are_those_of_one_reading(kind, tmp_path):
    source = KINDS[kind](tmp_path)
    frames, rows = listed(source)
    for first, end in [(0, 1), (0, len(frames)), (11, 17), (len(frames) - 3, len(frames))]:
        result = list(read_listed(source, rows[first:end]))
        assert [(frame.index, frame.pts) for frame in result] == [(f.index, f.pts) for f in frames[first:end]]
        for one, other in zip(result, frames[first:end], strict=True):
            np.testing.assert_array_equal(one.rgb, other.rgb)


def test_a_selection_is_read_from_the_middle(clip, tmp_path):
    for i, picture in enumerate(noise(20)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"damaged")
    for source in (clip, tmp_path):
        frames, rows = listed(source, start="0.1", end="0.7", stride=3)
        result = list(read_listed(source, rows[2:]))
        assert [frame.index for frame in result] == [frame.index for frame in frames[2:]]
        np.testing.assert_array_equal(result[-1].rgb, frames[-1].rgb)


def test_a_jump_saves_decoding(clip, monkeypatch):
    decoded = []
    times = VideoMedia.images

    def counted(self):
        for image in times(self):
            decoded.append(image)
            yield image

    _, rows = listed(clip)
    monkeypatch.setattr(VideoMedia, "images", counted)
    list(read_listed(clip, rows[38:]))
    assert len(decoded) < 12


@pytest.mark.parametrize("wrong", [Fraction(1), Fraction(0)])
def test_a_jump_to_a_wrong_place_costs_time_only(clip, monkeypatch, wrong):
    frames, rows = listed(clip)
    monkeypatch.setattr(VideoMedia, "seek", lambda self, pts, seek=VideoMedia.seek: seek(self, wrong))
    assert [frame.pts for frame in read_listed(clip, rows[13:])] == [frame.pts for frame in frames[13:]]


def test_another_video_is_refused(clip, tmp_path):
    _, rows = listed(clip)
    changed = pictures()
    changed[30] = 255 - changed[30]
    other = write_video(tmp_path / "other.mp4", changed, g=12)
    with pytest.raises(SourceError, match=r"as it was read before, got another or none.*start anew"):
        list(read_listed(other, rows))


# --- chunks


@pytest.mark.parametrize("frames", [1, 2, 9, 39, 40, 400])
def test_chunks_cover_the_video_and_begin_at_key_frames(frames):
    keys = np.zeros(40, bool)
    keys[[0, 3, 10, 20, 30]] = True
    bounds = divide(keys, frames)
    assert bounds[0] == 0
    assert bounds[-1] == 40
    assert all(keys[row] for row in bounds[:-1])
    assert bounds == sorted(set(bounds))
    assert len(bounds) - 1 <= -(-40 // frames)
    for first, end in pairwise(bounds):  # none goes on past a key frame that it could have ended before
        assert not keys[first + frames : end].any()


def test_chunks_have_at_least_a_frame():
    with pytest.raises(ValueError, match="chunks of at least 1 frame, got 0"):
        divide(np.ones(4, bool), 0)


def in_chunks(segmenter, source, folder, options, direction, at_most, order=1):
    """As workers do it, in any order."""
    folder.mkdir()
    output = OutputOptions(**{name: value for name, value in options.items() if name == "save"})
    segmenter = segmenter.with_options(**{name: value for name, value in options.items() if name != "save"})
    video = ChunkedVideo(segmenter.with_options(direction=direction), source)
    plan = video.list_frames(folder, at_most, {})
    assert Plan.read(folder) == plan
    listing = Listing.read(folder / FRAMES)
    for number in range(plan.chunks)[::order]:
        video.segment(plan, listing, number, folder)
    out = folder / "out"
    video.join(output, plan, (folder / chunk_files(number)[0] for number in range(plan.chunks)), out)
    return plan, {name.removeprefix("video"): content for name, content in tree(out).items()}


@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize("propagator", [Dis, Hold, lambda: None])
def test_chunks_join_to_the_bytes_of_one_run(clip, tmp_path, motion, direction, propagator):
    segmenter = VideoSegmenter(ColourSegmentor(), propagator(), motion=motion, interval=6)
    options = {"save": ("overlay", "labels", "png")}
    segmenter.process(clip, tmp_path / "whole", **options, direction=direction)
    plan, result = in_chunks(segmenter, clip, tmp_path / "parts", options, direction, 7, order=-1)
    assert plan.chunks >= 4
    assert result == {name.removeprefix("clip"): content for name, content in tree(tmp_path / "whole").items()}


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("kind", ["uneven", "cut off", "clock starts anew"])
def test_chunks_of_difficult_videos(tmp_path, kind, cuts):
    source = KINDS[kind](tmp_path)
    segmenter = colour_segmenter(interval=5, cuts=cuts)
    options = {"start": "0.01", "stride": 2, "classes": ("red", "blue")}
    segmenter.process(source, tmp_path / "whole", **options)
    _, result = in_chunks(segmenter, source, tmp_path / "parts", options, None, 5)
    assert result == {name.removeprefix("clip"): content for name, content in tree(tmp_path / "whole").items()}


# --- segment --resume


SETTINGS = batch_settings(interval=5, split=8)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_after_its_last_chunk(clip, tmp_path, monkeypatch):
    colour_segmenter(interval=5).process(clip, tmp_path / "whole")
    segmenter, out = colour_segmenter(interval=5), tmp_path / "OUT"
    moments = {"segment": 2, "join": 0}
    calls = []
    for name, allowed in moments.items():
        function = getattr(ChunkedVideo, name)

        def dying(*arguments, function=function, allowed=allowed, seen=[], **rest):  # noqa: B006
            if len(seen) == allowed:
                raise Killed
            seen.append(1)
            return function(*arguments, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(ChunkedVideo, name, dying)
            with pytest.raises(Killed):
                process_in_chunks(segmenter, str(clip), out, SETTINGS)
        calls.append(segmenter.segmentor.calls)
        assert [path.name for path in out.iterdir()] == [".clip.parts"]
    summary = process_in_chunks(segmenter, str(clip), out, SETTINGS)
    assert calls[0] > 0
    assert segmenter.segmentor.calls == calls[1]  # the chunks were all there
    assert tree(out) == tree(tmp_path / "whole")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert (summary.frames, set(summary.seconds)) == (40, {"list", "segment", "join", "total"})


def test_a_damaged_chunk_of_a_killed_run_is_done_again(clip, tmp_path, monkeypatch, caplog):
    colour_segmenter(interval=5).process(clip, tmp_path / "whole")
    out = tmp_path / "OUT"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mpvss.batch.single.ChunkedVideo.join", lambda *_, **__: (_ for _ in ()).throw(Killed))
        process_in_chunks(colour_segmenter(interval=5), str(clip), out, SETTINGS)
    flip_a_bit(out / ".clip.parts" / "00001.labels.mkv")
    process_in_chunks(colour_segmenter(interval=5), str(clip), out, SETTINGS)
    assert "a finished chunk is damaged, and done again" in caplog.text
    assert tree(out) == tree(tmp_path / "whole")


def test_results_that_came_meanwhile_are_not_replaced_by_a_run_that_goes_on(clip, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mpvss.batch.single.ChunkedVideo.join", lambda *_, **__: (_ for _ in ()).throw(Killed))
        process_in_chunks(colour_segmenter(interval=5), str(clip), tmp_path, SETTINGS)
    (tmp_path / "clip.json").write_text("of another run")
    with pytest.raises(OutputError, match=r"clip.json exists already"):
        process_in_chunks(colour_segmenter(interval=5), str(clip), tmp_path, SETTINGS)


def test_another_option_or_source_is_not_gone_on_with(clip, tmp_path, monkeypatch):
    source = tmp_path / "clip.mp4"
    source.write_bytes(clip.read_bytes())
    segmenter, out = colour_segmenter(interval=5), tmp_path / "OUT"
    monkeypatch.setattr("mpvss.batch.single.ChunkedVideo.join", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        process_in_chunks(segmenter, str(source), out, SETTINGS)
    with pytest.raises(ConfigError, match="interval was 5, now 6; give the same, or remove it to start anew"):
        process_in_chunks(segmenter, str(source), out, changed(SETTINGS, interval=6))
    held = lock(out / ".clip.parts" / "lock")
    with pytest.raises(OutputError, match="another run is writing there"):
        process_in_chunks(segmenter, str(source), out, SETTINGS)
    unlock(held)
    os.utime(source, (1, 1))
    with pytest.raises(SourceError, match=r"has changed since .* was begun: remove the folder"):
        process_in_chunks(segmenter, str(source), out, SETTINGS)


def as_the_version_before(settings):
    """Settings as the version before described them, without the options that came later."""
    about = settings.describe()
    nested = ("save", "alpha", "classes", "legend", "compare", "start", "end", "stride")
    flat = ("mpvss", "model", "propagator", "motion", "direction", "interval", "cuts", "short_side", "device", "dtype")
    values = {name: about[name] for name in (*flat, "split", "threads")}
    return values | {"options": {name: about[name] for name in nested}}


NEWER = [
    ("deinterlace", "off", "deinterlace was 'auto', now 'off'"),
    ("min_score", 0.5, "min_score was 0.0, now 0.5"),
    ("fps", "30", "fps was None, now '30'"),
    ("video_stream", 1, "video_stream was None, now 1"),
    ("backend", "onnx", "backend was 'auto', now 'onnx'"),
    ("confidence", True, "confidence was False, now True"),
    ("fast", False, "fast was True, now False"),
    ("schedule", None, None),
    ("tolerance", 0.5, "tolerance was 0.001, now 0.5"),
    ("prompt", ("road",), "prompt was [], now ['road']"),
    ("classes_file", "names.txt", "classes_file was None, now 'names.txt'"),
    ("output_kind", "scores", "output_kind was None, now 'scores'"),
]


def test_every_newer_option_has_a_test():
    before = as_the_version_before(batch_settings())
    known = {*before, *before["options"]} - {"options"}
    assert set(batch_settings().describe()) - known == {name for name, *_ in NEWER}


@pytest.mark.parametrize(("name", "value", "message"), NEWER)
def test_options_that_a_version_did_not_have_were_at_their_defaults(name, value, message):
    if value is None:  # there is but one
        return
    newer = changed(SETTINGS, **{name: value})
    assert SETTINGS.difference(as_the_version_before(SETTINGS)) is None
    assert newer.difference(as_the_version_before(SETTINGS)) == message
    # And the other way round: what was given once is not dropped without a word.
    assert newer.difference(newer.describe()) is None
    assert SETTINGS.difference(newer.describe()).startswith(f"{name} was ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpvss": "0.0.9"}, r"mpvss was '0\.0\.9', now"),
        ({"later": 3}, "later was 3, now None"),
        ({"options": [1]}, r"options was \[1\], now"),
        ({"interval": "x" * 5000}, "interval was 'xxx"),
    ],
)
def test_settings_of_another_program_are_said(change, message):
    assert re.match(message, SETTINGS.difference(SETTINGS.describe() | change))
    assert len(SETTINGS.difference(SETTINGS.describe() | change)) < 600


def test_a_run_begun_by_the_version_before_is_gone_on_with(clip, tmp_path, monkeypatch):
    segmenter, out = colour_segmenter(interval=5), tmp_path / "OUT"
    with monkeypatch.context() as killed:
        killed.setattr("mpvss.batch.single.ChunkedVideo.join", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            process_in_chunks(segmenter, str(clip), out, SETTINGS)
    path = out / ".clip.parts" / "plan.json"
    plan = json.loads(path.read_text())
    plan.pop("crc32", None)  # which the version before did not write
    plan["identity"] = {key: plan["identity"][key] for key in ("source", "stamp")} | as_the_version_before(SETTINGS)
    path.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"min_score was 0\.0, now 0\.5; give the same, or remove it to start anew"):
        process_in_chunks(segmenter, str(clip), out, changed(SETTINGS, min_score=0.5))
    calls = segmenter.segmentor.calls
    process_in_chunks(segmenter, str(clip), out, SETTINGS)
    assert segmenter.segmentor.calls == calls  # the chunks were all there
    process_in_chunks(segmenter, str(clip), tmp_path / "whole", SETTINGS)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_run_in_chunks_does_not_replace_what_is_there(clip, tmp_path):
    (tmp_path / "clip.json").touch()
    with pytest.raises(OutputError, match=r"clip.json exists already"):
        process_in_chunks(colour_segmenter(), str(clip), tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="a comparison cannot be made in chunks"):
        process_in_chunks(colour_segmenter(), str(clip), tmp_path, batch_settings(compare=True))
    with pytest.raises(ValueError, match="split must be at least 0, got -1"):
        BatchOptions(split=-1)


@pytest.mark.parametrize("name", [PLAN, FRAMES])
def test_a_damaged_plan_is_reported(clip, tmp_path, name, monkeypatch):
    monkeypatch.setattr("mpvss.batch.single.ChunkedVideo.join", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        process_in_chunks(colour_segmenter(), str(clip), tmp_path, SETTINGS)
    (tmp_path / ".clip.parts" / name).write_bytes(b"[1]")
    with pytest.raises(DataError, match=r"got other data: remove .*\.clip\.parts"):
        process_in_chunks(colour_segmenter(), str(clip), tmp_path, SETTINGS)


def test_a_listing_with_columns_that_do_not_fit_or_objects_is_refused_unread(clip, tmp_path):
    _, rows = listed(clip)
    path = tmp_path / "frames.npz"
    keys = np.zeros(len(rows), bool)
    Listing(rows, keys, keys).write(path)
    assert len(Listing.read(path).keys) == len(rows)
    with np.load(path) as file:
        columns = dict(file)
    np.savez(path, **(columns | {"cuts": columns["cuts"][1:]}))
    with pytest.raises(DataError, match=r"expected a list of frames in .*frames\.npz"):
        Listing.read(path)
    columns["keys"] = columns["keys"].astype(object)  # a pickle inside: reading it could run anything
    np.savez(path, **columns)
    with pytest.raises(DataError, match=r"expected a list of frames in .*frames\.npz"):
        Listing.read(path)


@pytest.mark.parametrize(("direction", "more"), [("forward", 0), ("both", 1)])
def test_a_chunk_costs_its_own_key_frames_and_the_one_after_where_that_counts(clip, tmp_path, direction, more):
    segmenter = colour_segmenter(interval=5, cuts=False)
    video = ChunkedVideo(segmenter.with_options(direction=direction), clip)
    plan = video.list_frames(tmp_path, 10, {})
    listing = Listing.read(tmp_path / FRAMES)
    for number, (first, end) in enumerate(pairwise(plan.bounds)):
        before = segmenter.segmentor.calls
        video.segment(plan, listing, number, tmp_path)
        own = int(listing.keys[first:end].sum())
        assert segmenter.segmentor.calls - before == own + (more if end < plan.frames else 0)


# --- the manifest


def test_a_torn_last_line_is_as_if_it_had_not_been_begun(tmp_path):
    path = tmp_path / "manifest.jsonl"
    manifest = Manifest(path)
    manifest.add("run", schema=1, settings={}, overwrite=False)
    manifest.add("start", item="a")
    manifest.add("failed", item="ü\udcff\n", error="no")
    manifest.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        manifest = Manifest(path)
        lines = sum(end <= length for end in ends)
        assert (manifest.run is not None) == (lines >= 1)
        assert list(manifest.items) == [[], [], ["a"], ["a", "ü\udcff\n"]][lines]
        manifest.add("start", item="b")
        manifest.close()
        assert "b" in Manifest(path).started


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "done", "item": "a", "outputs": []}',
        '{"event": "done", "item": "a", "outputs": {"labels": {"bytes": "1", "sha256": "0"}}}',
        '{"event": "run", "schema": 1, "settings": [], "overwrite": false}',
        '{"event": "run", "schema": 1, "settings": {}, "overwrite": 1}',
        "{}",
        "junk",
        '{"event": "no"}',
        '{"event": "done", "item": "a"}',
        '{"event": "run", "schema": 2}',
        "[]",
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"expected an event of schema 1 in line 1 of .*m.jsonl.*move the file away"):
        Manifest(tmp_path / "m.jsonl")


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path):
    path = tmp_path / "lock"
    begun, release = threading.Event(), threading.Event()

    def hold():
        held = lock(path)
        begun.set()
        release.wait(60)
        unlock(held)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(60)
    assert lock(path) is None
    threading.Timer(0.2, release.set).start()
    mine = lock(path, seconds=60.0)
    holder.join()
    assert mine is not None
    unlock(mine)


def test_one_driver_at_a_time(tmp_path):
    first = Manifest(tmp_path / "m.jsonl")
    with pytest.raises(OutputError, match="another batch is writing there"):
        Manifest(tmp_path / "m.jsonl")
    first.close()
    Manifest(tmp_path / "m.jsonl").close()
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, code):
    import fcntl

    def none(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", none)
    Manifest(tmp_path / "m.jsonl").close()
    assert f"{tmp_path}: this file system has no locks" in caplog.text
    assert "have one run at a time write there" in caplog.text
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OutputError, match=r"m\.jsonl.*broken"):
        Manifest(tmp_path / "m.jsonl")


def test_batches_and_resume_need_no_fcntl(clip, tmp_path):
    """As on Windows."""
    code = f"""
import signal, sys
sys.modules["fcntl"] = None
del signal.pthread_sigmask
from mpvss.batch import local, run, single
from mpvss.batch.locks import lock
from mpvss.batch.manifest import Manifest
from pathlib import Path
Manifest(Path({str(tmp_path / "m.jsonl")!r})).close()
with local._deaf_to_ctrl_c():
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "fine\n"


def test_a_link_is_no_folder_of_unfinished_work(inline, clip, tmp_path):
    (tmp_path / "elsewhere" / "tmp").mkdir(parents=True)
    (tmp_path / "elsewhere" / "tmp" / "precious").touch()
    out = tmp_path / "OUT"
    out.mkdir()
    for name, run in {
        ".clip.parts": lambda: process_in_chunks(colour_segmenter(), str(clip), out, SETTINGS),
        ".mpvss-work": lambda: run_batch([str(clip)], str(out), HOLD, TWO),
    }.items():
        for target in ("elsewhere", "gone"):
            (out / name).symlink_to(tmp_path / target)
            with pytest.raises(OutputError, match=rf"expected a folder of its own at .*{name}, got a link: remove"):
                run()
            (out / name).unlink()
        (out / "manifest.jsonl").unlink(missing_ok=True)
    assert (tmp_path / "elsewhere" / "tmp" / "precious").exists()


# --- sources


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "videos"
    for name in ("a/x.mp4", "b/x.MKV", "b/.hidden.mp4", ".cache/y.mp4", "b/notes.pdf", "z.avi"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_folders_and_patterns_keep_relative_names(sources, monkeypatch):
    assert [job.name for job in expand([str(sources)])] == ["a/x", "b/x", "z"]
    assert [job.name for job in expand([str(sources / "*" / "*.mp4")])] == ["a/x"]
    assert [job.name for job in expand([str(sources / "[ab]")])] == ["a/x", "b/x"]
    assert [job.name for job in expand([str(sources / "a" / "x.mp4")] * 2)] == ["x"]
    monkeypatch.chdir(sources)
    (job,) = expand(["a/x.mp4"])
    assert (job.name, job.shown, job.source) == ("x", "a/x.mp4", str(sources / "a" / "x.mp4"))
    assert expand([(sources / "z.avi").as_uri()])[0].source == str(sources / "z.avi")


def test_what_this_program_wrote_is_no_source(sources):
    (sources / "a" / "x.png").mkdir()
    (sources / "a" / "x.png" / "0.mp4").touch()
    for ending in (".overlay.mp4", ".compare.mp4", ".labels.mkv"):
        (sources / "a" / f"x{ending}").touch()
    assert [job.name for job in expand([str(sources)])] == ["a/x", "b/x", "z"]
    assert [job.name for job in expand([str(sources / "a" / "*")])] == ["x"]
    assert [job.name for job in expand([str(sources / "a" / "x.overlay.mp4")])] == ["x.overlay"]


def test_a_store_is_expanded_as_a_folder_is(caplog):
    import fsspec

    fs = fsspec.filesystem("memory")
    names = (
        "a/x.mp4",
        "b/x.MKV",
        "b/.hidden.mp4",
        ".cache/y.mp4",
        "b/notes.pdf",
        "a/x.overlay.mp4",
        "a/x.png/0.mp4",
        "z.avi",
    )
    for name in names:
        fs.pipe_file(f"/expanded/{name}", b"bytes")
    try:
        assert [job.name for job in expand(["memory://expanded"])] == ["a/x", "b/x", "z"]
        assert caplog.messages == ["memory://expanded: 1 files are no videos, and left out: b/notes.pdf"]
        assert [job.name for job in expand(["memory://expanded/*/*.mp4"])] == ["a/x"]
        assert [job.source for job in expand(["memory://expanded/z.avi"])] == ["memory://expanded/z.avi"]
        assert [job.name for job in expand(["memory://expanded/[ab]/*"])] == ["a/x", "b/notes", "b/x"]
        with pytest.raises(
            SourceError, match=r"expected videos in memory://expanded/\*\.mov, got none: check the path"
        ):
            expand(["memory://expanded/*.mov"])
        fs.pipe_file("/expanded/only/notes.pdf", b"bytes")
        with pytest.raises(SourceError, match="got none among 1 files: check the path"):
            expand(["memory://expanded/only"])
    finally:
        fs.rm("/expanded", recursive=True)


def test_a_path_that_begins_like_a_live_scheme_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["srt_clips/a.mp4", "rtsp.mp4", "udp/b.mp4", "rtmp-1.mkv", "rtp:x.mp4", "camera:front.mp4"]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert {job.source for job in expand(names)} == {str(tmp_path / name) for name in names}
    Path("list.txt").write_text("\n".join(names))
    assert {job.source for job in expand(["list.txt"])} == {str(tmp_path / name) for name in names}
    for address in ("srt://h:1", "RTSP://u:pw@h/x", "rtmps://h/x", "udp://@:1234", "camera:0"):
        with pytest.raises(ConfigError, match=r"expected recorded videos, got the live source .*: use mpvss segment"):
            expand([address])


def test_a_folder_stands_for_all_that_can_be_read(tmp_path, caplog):
    for name in ("a.mxf", "b.h264", "c.gif", "d.vob", "e.asf"):
        (tmp_path / name).touch()
    write_video(tmp_path / "v.mkv", [frame.rgb for frame in moving_frames(2, SIZE)]).rename(tmp_path / "f.rec")
    images = [Image.fromarray(frame.rgb) for frame in moving_frames(3, SIZE)]
    images[0].save(tmp_path / "g.webp", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "poster.webp")
    (tmp_path / "notes.nfo").write_text("any text is a picture to FFmpeg\n" * 50)
    for name in ("h.pdf", "i.xyz", "h.json", ".hidden.dat", "list.txt", "read.me"):
        (tmp_path / name).write_bytes(b"no video")
    assert [job.name for job in expand([str(tmp_path)])] == list("abcdefg")
    assert caplog.messages == [
        f"{tmp_path}: 5 files are no videos, and left out: h.pdf, i.xyz, notes.nfo, poster.webp, read.me"
    ]
    only = tmp_path / "only"
    only.mkdir()
    (only / "x.pdf").touch()
    with pytest.raises(SourceError, match="got none among 1 files: check the path"):
        expand([str(only)])


def test_files_that_differ_in_their_ending_keep_it(tmp_path, caplog):
    for name in ("IMG_1.MOV", "IMG_1.mp4", "IMG_1.MOV.mkv", "b.mp4", "c/IMG_1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["IMG_1.MOV", "IMG_1.MOV.mkv", "IMG_1.mp4", "b", "c/IMG_1"]
    assert [job.name for job in expand([str(tmp_path)])] == names
    assert caplog.messages == [
        "3 sources differ from another one in their ending only, and keep it in the names of their outputs: "
        "IMG_1.MOV.*, IMG_1.mp4.*, IMG_1.MOV.mkv.*"
    ]
    files = [str(tmp_path / "IMG_1.mp4"), str(tmp_path / "c" / "IMG_1.mp4")]
    with pytest.raises(ConfigError, match=r"which would both be written as IMG_1\.mp4\.\*"):
        expand(files)
    lines = [{"source": "b.mp4", "name": "IMG_1"}, {"source": "IMG_1.mp4"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [job.name for job in expand([str(tmp_path / "list.jsonl")])] == ["IMG_1", "IMG_1.mp4"]


def test_a_name_does_not_lie_below_an_output(tmp_path):
    for name in ("x.mp4", "x.png/y.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = [{"source": "x.mp4"}, {"source": "x.png/y.mp4", "name": "x.png/y"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError, match=r"got x.png/y, which lies below an output of x: give them other names"):
        expand([str(tmp_path / "list.jsonl")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_other_programs(tmp_path, encoding, end):
    names = ["ünï.mp4", "second\u2028half.mp4"]
    (tmp_path / "l.txt").write_bytes(end.join(["# videos", *names, ""]).encode(encoding))
    assert [Path(job.source).name for job in expand([str(tmp_path / "l.txt")])] == names[::-1]
    lines = [json.dumps({"source": name}, ensure_ascii=False) for name in names]
    (tmp_path / "l.jsonl").write_bytes(end.join(lines).encode(encoding))
    assert [Path(job.source).name for job in expand([str(tmp_path / "l.jsonl")])] == names[::-1]


def test_a_list_names_files_whose_names_are_no_text(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"not utf-8 \xff.mp4\n")
    (job,) = expand([str(tmp_path / "l.txt")])
    assert job.source == str(tmp_path / os.fsdecode(b"not utf-8 \xff.mp4"))


def test_images_are_one_video(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    assert [job.name for job in expand([str(tmp_path)])] == [tmp_path.name]
    assert [job.name for job in expand([str(tmp_path / "*.png")])] == [tmp_path.name]


def test_lists_name_sources_relative_to_themselves(sources):
    (sources / "some.txt").write_text("# mine\na/x.mp4\n\nz.avi\n")
    assert [job.name for job in expand([str(sources / "some.txt")])] == ["x", "z"]
    lines = [{"source": "a/x.mp4", "name": "one/first"}, {"source": "b/x.MKV", "name": "2"}]
    (sources / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = expand([str(sources / "some.jsonl")])
    assert [(job.name, Path(job.source).parent.name) for job in result] == [("2", "b"), ("one/first", "a")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("junk", r"in line 1 of .*got 'junk'"),
        ('{"name": "x"}', "in line 1"),
        ('{"source": 1}', "expected str, got 1"),
        ('{"source": "a", "name": "../up"}', r"without \. and \.\., in line 1 of .*got '../up'"),
        ('{"source": "a", "name": "/etc/x"}', r"without \. and \.\."),
        ('{"source": "more.txt"}', "another list in line 1"),
        ('{"source": "a", "name": ".mpvss-work/tmp/x"}', r"a name without a dot in front of a part, which is reserved"),
        ('{"source": "a", "name": "a/.MPVSS-Work-1-of-2/x"}', "reserved for unfinished work, in line 1"),
        ('{"source": "a", "name": ".x.parts/tmp/x"}', "reserved for unfinished work"),
        ('{"source": "a", "name": "a\\\\.x.former"}', "reserved for unfinished work"),
        ('{"source": "a", "name": "a/../.mpvss-work/x"}', r"without \. and \.\."),
        (json.dumps({"source": "a", "name": "f/" * 2000 + "x"}), "at most 1024 bytes, and 200 between two slashes"),
        (json.dumps({"source": "a", "name": "f/" + "\u00fc" * 101}), "200 between two slashes, in line 1.*got 204"),
        ('{"source": "a", "name": "\\ud800"}', "a name that a file can have in line 1"),
        ('{"source": "a\\u0000b"}', "the source is empty or has a NUL"),
        ('{"source": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_lists_that_cannot_be_followed(tmp_path, text, error):
    (tmp_path / "list.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=error):
        expand([str(tmp_path / "list.jsonl")])


def test_sources_that_are_none(sources, tmp_path):
    with pytest.raises(ConfigError, match=r"got .*a/x.mp4 and .*b/x.mp4, which would both be written as x.mp4\.\*"):
        (sources / "b" / "x.mp4").touch()
        expand([str(sources / "a" / "x.mp4"), str(sources / "b" / "x.mp4")])
    with pytest.raises(ConfigError, match=r"live source camera:0: use mpvss segment"):
        expand(["camera:0"])
    with pytest.raises(SourceError, match=r"expected videos in .*none, got none"):
        (tmp_path / "none").mkdir()
        expand([str(tmp_path / "none")])
    with pytest.raises(SourceError, match=r"expected videos in .*\*\.mp4, got none"):
        expand([str(tmp_path / "none" / "*.mp4")])
    with pytest.raises(SourceError, match="got an empty list"):
        (tmp_path / "empty.txt").write_text("# nothing\n")
        expand([str(tmp_path / "empty.txt")])
    with pytest.raises(SourceError, match=r"a list of sources in .*gone.txt, got none"):
        expand([str(tmp_path / "gone.txt")])


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_are_disjoint_and_complete(shards):
    names = [f"video-{i}" for i in range(200)]
    parts = [[name for name in names if in_shard(name, (i, shards))] for i in range(1, shards + 1)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert min(map(len, parts)) > 200 / shards / 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine": "dask"}, "engine must be one of local, ray, got 'dask'"),
        ({"workers": 0}, "workers must be from 1 to 4096, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"stall": 0}, "stall must be .* 1.*, got 0"),
        ({"ray_address": "auto"}, "ray_address goes with engine ray only"),
        ({"ray_address": "auto", "engine": "ray"}, "say how many workers"),
        ({"shard": (3, 2)}, "shard must be i/n with i from 1 to n, got 3/2"),
        ({"resume": True, "overwrite": True}, "choose one"),
    ],
)
def test_options_out_of_range(options, error):
    with pytest.raises(ValueError, match=error):
        BatchOptions(**options)


# --- whole batches, with workers in this process


class InlineEngine:
    """Workers that take turns in this process; ``fault`` may replace the outcome of a task."""

    fault = staticmethod(lambda task: None)

    def __init__(self, setup, workers, level):
        self._workers = [Worker(setup, f"inline-{number}") for number in range(workers)]
        self._given = deque()
        self.tasks = []

    def idle(self):
        busy = {number for number, _ in self._given}
        return [number for number in range(len(self._workers)) if number not in busy]

    def submit(self, worker, task):
        self.tasks.append(task)
        self._given.append((worker, task))

    def wait(self, seconds):
        worker, task = self._given.popleft()
        return [type(self).fault(task) or self._workers[worker].run(task)], 0

    def close(self):
        for worker in self._workers:
            worker.close()


@pytest.fixture
def inline(monkeypatch):
    """Batches run in this process with a model that needs no loading; holds the tasks of each run."""
    runs = []

    class Engine(InlineEngine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append(self.tasks)

    makers = {"dis": Dis, "hold": Hold, "none": lambda: None}

    def load(self, device=None):
        return VideoSegmenter(ColourSegmentor(), makers[self.segment.propagator](), self.segment)

    monkeypatch.setattr(Settings, "load", load)
    monkeypatch.setattr(driver_module, "LocalEngine", Engine)
    monkeypatch.setattr(InlineEngine, "fault", staticmethod(lambda task: None))
    return runs


HOLD = batch_settings(propagator="hold", interval=5, split=20)
TWO = BatchOptions(workers=2)


@pytest.fixture
def videos(tmp_path, clip):
    """Two short ones, a long one, and a broken one."""
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    for i, name in enumerate(("a/one", "two")):
        write_video(folder / f"{name}.mp4", [frame.rgb for frame in moving_frames(6, SIZE, seed=i)])
    (folder / "long.mp4").write_bytes(clip.read_bytes())
    (folder / "broken.mp4").write_text("no video")
    return folder


def events(out, *kinds):
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    return [line for line in lines if not kinds or line["event"] in kinds]


def states(summary):
    return {item.name: item.state for item in summary.items}


def test_a_broken_video_does_not_stop_the_others(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    summary = run_batch([str(videos)], str(out), HOLD, TWO)
    assert states(summary) == {"a/one": "done", "broken": "failed", "long": "done", "two": "done"}
    assert (summary.done, summary.failed, summary.skipped) == (3, 1, 0)
    (failed,) = events(out, "failed")
    assert (failed["item"], failed["attempts"]) == ("broken", 1)  # what does not decode will not decode
    assert "no known video format" in failed["error"]
    (split,) = events(out, "split")
    assert (split["item"], split["frames"], split["segments"]) == ("long", 40, 2)
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=5)
    for name in ("a/one", "long", "two"):
        segmenter.process(str(videos / f"{name}.mp4"), (tmp_path / "whole" / name).parent)
    assert tree(out) == tree(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_resuming_does_what_is_not_whole(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    run_batch([str(videos)], str(out), HOLD, TWO)
    whole = tree(out)
    (out / "two.json").unlink()
    (out / "a" / "one.labels.mkv").write_bytes(b"short")
    summary = run_batch([str(videos)], str(out), HOLD, replace(TWO, resume=True))
    assert states(summary) == {"a/one": "done", "broken": "failed", "long": "skipped", "two": "done"}
    assert {task.job.name for task in inline[1]} == {"a/one", "broken", "two"}
    assert tree(out) == whole


def test_checksums_find_what_sizes_do_not(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    settings = changed(HOLD, save=("labels", "png"))
    run_batch([str(videos)], str(out), settings, TWO)
    whole = tree(out)
    for name in ("two.labels.mkv", "a/one.png/000003.png"):
        (out / name).write_bytes(bytes(len(whole[name])))
    resume = replace(TWO, resume=True)
    assert states(run_batch([str(videos)], str(out), settings, resume))["two"] == "skipped"
    summary = run_batch([str(videos)], str(out), settings, replace(resume, verify=True))
    assert states(summary) == {"a/one": "done", "broken": "failed", "long": "skipped", "two": "done"}
    assert tree(out) == whole


def test_a_batch_is_gone_on_with_only_as_it_was_begun(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    run_batch([str(videos)], str(out), HOLD, TWO)
    with pytest.raises(OutputError, match=r"manifest.jsonl exists already: pass --resume"):
        run_batch([str(videos)], str(out), HOLD, TWO)
    with pytest.raises(ConfigError, match=r"was begun with other options: alpha was 0\.5, now 0.25"):
        run_batch([str(videos)], str(out), changed(HOLD, alpha=0.25), replace(TWO, resume=True))
    summary = run_batch([str(videos)], str(out), changed(HOLD, interval=3), replace(TWO, overwrite=True))
    assert summary.done == 3
    assert json.loads((out / "two.json").read_text())["options"]["interval"] == 3


def test_a_batch_begun_by_the_version_before_is_gone_on_with(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    run_batch([str(videos)], str(out), HOLD, TWO)
    path = out / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["settings"] = as_the_version_before(HOLD)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "two.labels.mkv").unlink()
    assert states(run_batch([str(videos)], str(out), HOLD, replace(TWO, resume=True)))["long"] == "skipped"
    assert (out / "two.labels.mkv").is_file()
    with pytest.raises(ConfigError, match="deinterlace was 'auto', now 'off'; give the same, or choose another"):
        other = changed(HOLD, deinterlace="off")
        run_batch([str(videos)], str(out), other, replace(TWO, resume=True))


def test_what_another_program_wrote_is_not_replaced(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    out.mkdir()
    (out / "two.overlay.mp4").write_text("precious")
    for options in (TWO, replace(TWO, resume=True)):
        summary = run_batch([str(videos)], str(out), HOLD, options)
        (item,) = [item for item in summary.items if item.name == "two"]
        assert item.state == "failed"
        assert item.error.startswith("two.overlay.mp4 exists already; pass --overwrite")
        assert (out / "two.overlay.mp4").read_text() == "precious"


def test_a_dead_worker_is_an_attempt(inline, videos, tmp_path, monkeypatch):
    seen = []

    def fault(task):
        seen.append(task)
        tries = sum(task == other for other in seen)
        if task.job.name == "two" or ((task.kind, task.chunk) == ("chunk", 1) and tries < 3):
            return Outcome(task, error="its worker died: signal 9 (SIGKILL)", died=True)
        return None

    monkeypatch.setattr(InlineEngine, "fault", staticmethod(fault))
    out = tmp_path / "OUT"
    summary = run_batch([str(videos)], str(out), HOLD, TWO)
    assert states(summary) == {"a/one": "done", "broken": "failed", "long": "done", "two": "failed"}
    attempts = {item.name: item.attempts for item in summary.items}
    assert attempts == {"a/one": 1, "broken": 1, "long": 3, "two": 3}
    assert len(events(out, "retry")) == 4


def test_a_preempted_task_is_no_failed_try(inline, videos, tmp_path, monkeypatch):
    seen = []

    def fault(task):
        seen.append(task)
        if sum(task == other for other in seen) <= 3:
            return Outcome(task, error="its worker died: preempted", died=True, preempted=True)
        return None

    monkeypatch.setattr(InlineEngine, "fault", staticmethod(fault))
    summary = run_batch([str(videos / "long.mp4")], str(tmp_path / "OUT"), HOLD, replace(TWO, retries=0))
    assert states(summary) == {"long": "done"}
    assert summary.items[0].attempts == 1
    assert len(events(tmp_path / "OUT", "retry")) == 3 * 4  # the video, two chunks, the join
    assert len(events(tmp_path / "OUT", "start")) == 1


def test_ray_tells_a_lost_machine_from_a_dead_worker():
    from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    from mpvss.batch.ray_engine import _is_lost_machine

    def died(message, **rest):
        return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16), **rest))

    preempted = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    assert _is_lost_machine(died("drained", node_death_info=preempted))
    assert _is_lost_machine(died("The actor is dead because its node has died. Node Id: 1"))
    assert not _is_lost_machine(died("The actor is dead because its worker process has died. Worker exit type: ..."))
    assert not _is_lost_machine(OutOfMemoryError("memory"))


def test_a_ray_cluster_that_does_not_answer_is_said_in_one_line(videos, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("mpvss.batch.ray_engine._CONNECT_SECONDS", 1)
    options = BatchOptions("ray", workers=1, ray_address="127.0.0.1:9")
    with pytest.raises(MpvssError, match=r"cluster at 127.0.0.1:9, got none: no answer within 1 s; check the addr"):
        run_batch([str(videos)], str(tmp_path / "OUT"), HOLD, options)
    assert capfd.readouterr() == ("", "")


def test_a_video_given_up_takes_its_chunks_with_it(inline, videos, tmp_path, monkeypatch):
    def fault(task):
        return Outcome(task, error="no", again=False) if task.kind == "chunk" and task.chunk == 0 else None

    monkeypatch.setattr(InlineEngine, "fault", staticmethod(fault))
    out = tmp_path / "OUT"
    summary = run_batch([str(videos / "long.mp4")], str(out), replace(HOLD, split=6), BatchOptions(workers=1))
    assert states(summary) == {"long": "failed"}
    assert len(inline[0]) == 2
    monkeypatch.setattr(InlineEngine, "fault", staticmethod(lambda task: None))
    summary = run_batch([str(videos / "long.mp4")], str(out), replace(HOLD, split=6), replace(TWO, resume=True))
    assert states(summary) == {"long": "done"}
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def flip_a_bit(path):
    """In the middle, where the last but one frame or so is; it decodes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink])
def test_a_damaged_chunk_is_made_anew(inline, videos, tmp_path, monkeypatch, damage):
    out = tmp_path / "OUT"
    seen = []

    def fault(task):
        if task.kind == "join" and not seen:
            seen.append(task)
            (part,) = out.glob(".mpvss-work/parts/*/00001.labels.mkv")
            damage(part)
        return

    monkeypatch.setattr(InlineEngine, "fault", staticmethod(fault))
    summary = run_batch([str(videos / "long.mp4")], str(out), HOLD, TWO)
    assert states(summary) == {"long": "done"}
    assert summary.items[0].attempts == 1  # only the chunk is done again
    VideoSegmenter(ColourSegmentor(), Hold(), interval=5).process(str(videos / "long.mp4"), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_bug_is_the_failure_of_its_video(inline, videos, tmp_path, monkeypatch, caplog):
    process = VideoSegmenter.process

    def failing(self, source, *arguments, **rest):
        if "two" in str(source):
            raise ZeroDivisionError("by zero")
        return process(self, source, *arguments, **rest)

    monkeypatch.setattr(VideoSegmenter, "process", failing)
    with caplog.at_level(logging.CRITICAL):
        summary = run_batch([str(videos)], str(tmp_path / "OUT"), HOLD, replace(TWO, retries=1))
    (item,) = [item for item in summary.items if item.name == "two"]
    assert (item.state, item.attempts, item.error) == ("failed", 2, "ZeroDivisionError: by zero")


def test_two_batches_do_not_share_a_work_folder(inline, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_ORPHAN_SECONDS", 0.0)
    work = tmp_path / "OUT" / ".mpvss-work"
    work.mkdir(parents=True)
    held = [lock(work / f"alive-{number}") for number in range(2)]
    for one in held:
        with pytest.raises(OutputError, match="workers of another batch are still writing there"):
            run_batch([str(videos)], str(tmp_path / "OUT"), HOLD, TWO)
        unlock(one)
    (work / "alive").touch()  # of the version before
    assert run_batch([str(videos)], str(tmp_path / "OUT"), HOLD, TWO).done == 3


def test_names_that_are_difficult(inline, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    content = write_video(tmp_path / "v.mp4", [frame.rgb for frame in moving_frames(3, SIZE)]).read_bytes()
    names = [
        b"new\nline.mp4",
        b'it\'s "quoted".mp4',
        b"not utf-8 \xff.mp4",
        b"..dots..mp4",
        b"[1].mp4",
        b"n" * 251 + b".mp4",
        ("a" + "ü" * 125 + ".mp4").encode(),
    ]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(content)
    out = tmp_path / "OUT"
    summary = run_batch([str(folder)], str(out), HOLD, TWO)
    assert set(states(summary).values()) == {"done"}
    assert all(len(os.fsencode(item.name)) <= 200 for item in summary.items)
    assert any("ü" * 90 in item.name for item in summary.items)
    again = run_batch([str(folder)], str(out), HOLD, replace(TWO, resume=True))
    assert set(states(again).values()) == {"skipped"}
    assert (out / "[1].labels.mkv").is_file()


def test_a_download_has_a_name_that_the_disk_takes(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in ("ü" * 120 + ".mp4", "x." + "s" * 300, "v.mp4"):
        fs.pipe_file(f"/names/{name}", b"bytes")
        assert fetch(f"memory://names/{name}", tmp_path).read_bytes() == b"bytes"
    assert max(len(os.fsencode(path.name)) for path in tmp_path.iterdir()) < 220
    assert (tmp_path / "v.mp4").is_file()
    fs.rm("/names", recursive=True)


@pytest.fixture
def remote(clip, monkeypatch):
    """A store with the clip, and the number of bytes that were read of each file."""
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    fs = fsspec.filesystem("memory")
    read_bytes = Counter()

    def counted(file, size=-1):
        data = io.BytesIO.read(file, size)
        read_bytes[Path(file.path).name] += len(data)
        return data

    monkeypatch.setattr(MemoryFile, "read", counted, raising=False)
    for name in ("long.mp4", "other.mp4"):
        fs.pipe_file(f"/store/{name}", clip.read_bytes())
    yield read_bytes
    fs.rm("/store", recursive=True)


def test_the_chunks_of_a_remote_video_read_it_once(inline, remote, clip, tmp_path):
    sources = ["memory://store/long.mp4", "memory://store/other.mp4"]
    summary = run_batch(sources, str(tmp_path / "OUT"), replace(HOLD, split=8), replace(TWO, workers=4))
    assert set(states(summary).values()) == {"done"}
    assert sum(task.kind == "chunk" for task in inline[0]) == 8
    assert remote == {name: clip.stat().st_size for name in ("long.mp4", "other.mp4")}


def test_workers_share_one_download(remote, clip, tmp_path):
    job = Job("long", "memory://store/long.mp4", "long")
    workers = [SourceCopies(tmp_path, f"w-{number}") for number in range(4)]
    copies = [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: copies.__setitem__(i, workers[i].get(job, lambda: None))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(copies)) == 1
    assert copies[0].read_bytes() == clip.read_bytes()
    assert remote["long.mp4"] == clip.stat().st_size
    workers[0].drop(job)
    assert not copies[0].exists()


def test_a_copy_that_no_worker_uses_makes_way(remote, clip, tmp_path, monkeypatch):
    long, other = (Job(name, f"memory://store/{name}.mp4", name) for name in ("long", "other"))
    one, two = (SourceCopies(tmp_path, name) for name in ("w-1", "w-2"))
    room = 1.5 * clip.stat().st_size

    def usage(path):
        used = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        return SimpleNamespace(free=room - used)

    monkeypatch.setattr("mpvss.batch.storage.shutil.disk_usage", usage)
    kept = one.get(long, lambda: None)
    with pytest.raises(SourceError, match=r"expected at most .* bytes from memory://store/other\.mp4"):
        two.get(other, lambda: None)
    assert kept.is_file()
    one.release()
    assert two.get(other, lambda: None).is_file()
    assert not kept.exists()
    assert not list(tmp_path.glob("*.part"))


def test_copies_of_killed_batches_are_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alive, held = machine_folder("one", "w-1")
    (tmp_path / "mpvss-sources-dead").mkdir()
    (tmp_path / "mpvss-sources-dead" / "w-1.worker").touch()
    folder, other = machine_folder("two", "w-2")
    assert sorted(tmp_path.iterdir()) == sorted([alive, folder])
    unlock(held)
    unlock(other)


def test_shards_have_manifests_of_their_own(inline, videos, tmp_path):
    out = tmp_path / "OUT"
    summary = [run_batch([str(videos)], str(out), HOLD, replace(TWO, shard=(i, 2))) for i in (1, 2)]
    assert sorted(item.name for part in summary for item in part.items) == ["a/one", "broken", "long", "two"]
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["manifest-1-of-2.jsonl", "manifest-2-of-2.jsonl"]


# --- over the network


@pytest.fixture
def web(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            if "short" in self.path or "stuck" in self.path:  # says more than it has
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"x" * 1000)
                closing.wait(60 if "stuck" in self.path else 0)
                return
            super().do_GET()

    folder = tmp_path / "web"
    folder.mkdir()
    closing = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    closing.set()
    server.shutdown()
    server.server_close()


def test_web_addresses_are_downloaded_whole_or_fail(inline, web, videos, tmp_path):
    folder, address = web
    (folder / "two.mp4").write_bytes((videos / "two.mp4").read_bytes())
    (folder / "long one.mp4").write_bytes((videos / "long.mp4").read_bytes())
    (folder / "short.mp4").write_bytes(b"x" * 100000)
    urls = [f"{address}/{name}.mp4" for name in ("two", "long%20one", "short", "gone")]
    out = tmp_path / "OUT"
    summary = run_batch(urls, str(out), HOLD, replace(TWO, retries=1))
    assert states(summary) == {"gone": "failed", "long one": "done", "short": "failed", "two": "done"}
    assert {item.name: item.attempts for item in summary.items} == {
        "gone": 2,
        "long one": 1,
        "short": 2,
        "two": 1,
    }
    assert json.loads((out / "two.json").read_text())["source"] == urls[0]
    VideoSegmenter(ColourSegmentor(), Hold(), interval=5).process(str(folder / "long one.mp4"), tmp_path / "whole")
    assert tree(tmp_path / "whole")["long one.labels.mkv"] == (out / "long one.labels.mkv").read_bytes()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_worker_that_gets_nothing_done_is_ended(web, tmp_path):
    """With real processes: a server that does not go on."""
    folder, address = web
    (folder / "stuck.mp4").write_bytes(b"x" * 100000)
    options = BatchOptions(workers=1, retries=0, stall=2)
    summary = run_batch([f"{address}/stuck.mp4"], str(tmp_path / "OUT"), HOLD, options)
    assert states(summary) == {"stuck": "failed"}
    assert summary.items[0].error == ("its worker got nothing done for 2 s and was ended; --stall allows more")


class HangsOnce(ColourSegmentor):
    """In native code that keeps the interpreter's lock, so that no other thread runs either."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def __call__(self, images):
        if not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            ctypes.PyDLL(None).sleep(3600)
        return super().__call__(images)


class StopsOnce(HangsOnce):
    def __call__(self, images):
        if not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__call__(images)


@dataclass(frozen=True)
class HangingSettings(Settings):
    marker: str = ""
    how: type = HangsOnce

    def describe(self):
        return Settings.describe(Settings())

    def load(self, device=None):
        return VideoSegmenter(self.how(Path(self.marker)), Hold(), interval=5)


def watched(engine, stall=1):
    """An engine that ends a silent worker after a second, once and never again: pace decides nothing."""

    class Engine(engine):
        def wait(self, seconds):
            self._setup = replace(self._setup, stall=stall if not self.ended else 10**6)
            outcomes, deaths = super().wait(min(seconds, 0.2))
            self.ended = self.ended or any(outcome.died for outcome in outcomes)
            return outcomes, deaths

        ended = False

    return Engine


HANGS = pytest.mark.parametrize("how", [HangsOnce, StopsOnce])


def check_a_hang(engine, videos, tmp_path, how):
    marker = tmp_path / "hung"
    settings = HangingSettings(marker=str(marker), how=how)
    summary = run_batch([str(videos / "two.mp4")], str(tmp_path / "OUT"), settings, BatchOptions(engine, workers=1))
    assert states(summary) == {"two": "done"}
    (retry,) = events(tmp_path / "OUT", "retry")
    assert retry["error"] == "its worker got nothing done for 1 s and was ended; --stall allows more"
    VideoSegmenter(ColourSegmentor(), Hold(), interval=5).process(str(videos / "two.mp4"), tmp_path / "whole")
    assert tree(tmp_path / "OUT") == tree(tmp_path / "whole")
    return int(marker.read_text())


@HANGS
def test_a_worker_that_hangs_is_ended_and_its_task_tried_again(videos, tmp_path, monkeypatch, how):
    """With real processes: none of these runs a timer of its own, so the watch is the driver's."""
    monkeypatch.setattr(driver_module, "LocalEngine", watched(LocalEngine))
    pid = check_a_hang("local", videos, tmp_path, how)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of an S3 server of this machine."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"").close()  # its memory is the process's
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("bucket")
    fs.invalidate_cache()
    fsspec.filesystem("s3").clear_instance_cache()
    yield fs
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


def test_object_stores_are_read_and_written(inline, bucket, videos, tmp_path):
    for path in videos.rglob("*.mp4"):
        bucket.put_file(str(path), f"bucket/in/{path.relative_to(videos)}")
    assert [job.name for job in expand(["s3://bucket/in/*.mp4"])] == ["broken", "long", "two"]
    settings = changed(HOLD, save=("overlay", "labels", "png"))
    with pytest.raises(ConfigError, match=r"s3://bucket/out is not on this machine.*give --state a directory"):
        run_batch(["s3://bucket/in"], "s3://bucket/out", settings, TWO)
    options = replace(TWO, state=tmp_path / "state")
    summary = run_batch(["s3://bucket/in"], "s3://bucket/out", settings, options)
    assert states(summary) == {"a/one": "done", "broken": "failed", "long": "done", "two": "done"}
    bucket.get("bucket/out", str(tmp_path / "got"), recursive=True)
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), interval=5)
    for name in ("a/one", "long", "two"):
        segmenter.process(
            str(videos / f"{name}.mp4"), (tmp_path / "whole" / name).parent, settings.output,
            named=f"s3://bucket/in/{name}.mp4",
        )  # fmt: skip
    assert tree(tmp_path / "got") == tree(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["manifest.jsonl"]
    (tmp_path / "other").mkdir()
    summary = run_batch(["s3://bucket/in/two.mp4"], "s3://bucket/out", settings, replace(TWO, state=tmp_path / "other"))
    assert summary.items[0].error.startswith("two.json exists already")
    bucket.rm("bucket/out/long.json")
    bucket.pipe_file("bucket/out/two.png/000000.png", bytes(bucket.info("bucket/out/two.png/000000.png")["size"]))
    bucket.invalidate_cache()
    summary = run_batch(["s3://bucket/in"], "s3://bucket/out", settings, replace(options, resume=True, verify=True))
    assert states(summary) == {"a/one": "skipped", "broken": "failed", "long": "done", "two": "done"}


def test_chunks_can_lie_in_a_store(inline, bucket, videos, tmp_path, monkeypatch):
    """As with workers on other machines, which reach the output only."""
    monkeypatch.setattr(
        "mpvss.batch.ray_engine.RayEngine",
        lambda setup, workers, level, _: driver_module.LocalEngine(setup, workers, level),
    )
    options = BatchOptions("ray", 2, state=tmp_path / "state")
    summary = run_batch([str(videos / "long.mp4")], "s3://bucket/out", HOLD, options)
    assert states(summary) == {"long": "done"}
    assert {task.kind for task in inline[0]} == {"video", "chunk", "join"}
    bucket.invalidate_cache()
    assert sorted(bucket.find("bucket/out")) == [f"bucket/out/long{ending}" for ending in ENDINGS]


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    import fsspec

    def missing(place):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"s3://b/\*\.mp4 needs a package.*pip install 'mpvss\[s3\]'"):
        expand(["s3://b/*.mp4"])


def test_workers_that_cannot_load_the_model_end_the_batch(videos, tmp_path):
    """With real processes: the first thing they do fails, and takes nothing long."""
    settings = batch_settings(model=str(tmp_path / "nothing"))
    with pytest.raises(MpvssError, match="nothing"):
        run_batch([str(videos)], str(tmp_path / "OUT"), settings, BatchOptions(workers=1))
    assert [path.name for path in (tmp_path / "OUT").iterdir()] == ["manifest.jsonl"]


# --- the command line


@pytest.fixture
def command(inline, capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return run


def test_a_table_and_an_exit_code_say_what_failed(command, videos, tmp_path):
    (videos / "broken.mp4").rename(videos / os.fsdecode(b"brok\nen \xff.mp4"))
    arguments = ("batch", videos, "-o", tmp_path / "OUT", "--workers", 1, "--propagator", "hold", "--split", 20)
    code, out, _ = command(*arguments)
    assert code == 3
    head, *rows, last = out.splitlines()
    assert head.split() == ["video", "state", "frames", "attempts", "seconds", "error"]
    assert [row.split("  ")[0].strip() for row in rows] == ["a/one", "brok\\nen \\udcff", "long", "two"]
    assert last.startswith("3 done, 1 failed, 0 skipped; ")
    next(iter(videos.glob("brok*"))).unlink()
    code, out, _ = command(*arguments, "--resume", "--json")
    assert code == 0
    assert (json.loads(out)["skipped"], json.loads(out)["failed"]) == (3, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--shard", "2"), "expected a shard as I/N such as 1/4, got '2'"),
        (("--shard", "5/4"), "shard must be i/n with i from 1 to n, got 5/4"),
        (("--resume", "--overwrite"), "resume keeps what is finished and overwrite replaces it"),
        (("--save", "video"), "save takes overlay, labels, png, got 'video'"),
    ],
)
def test_batch_options_that_do_not_fit(command, videos, tmp_path, options, error):
    code, out, err = command("batch", videos, "-o", tmp_path / "OUT", *options)
    assert (code, out) == (2, "")
    assert error in err
    assert not (tmp_path / "OUT").exists()


def test_segment_resume_writes_what_segment_writes(command, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(VideoSegmenter, "from_pretrained", lambda *_, **__: colour_segmenter(interval=5))
    code, out, _ = command("segment", videos / "long.mp4", "-o", tmp_path / "a", "--resume", "--json")
    assert code == 0
    assert json.loads(out)["videos"][0]["frames"] == 40
    command("segment", videos / "long.mp4", "-o", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    code, _, err = command("segment", videos / "long.mp4", "-o", tmp_path / "a", "--resume")
    assert code == 2
    assert "long.json exists already" in err
    for more in ((videos / "two.mp4",), ("--compare",), ("--overwrite",)):
        code, _, err = command("segment", videos / "long.mp4", "-o", tmp_path / "c", "--resume", *more)
        assert code == 2
        assert "--resume goes with one video, and not with --compare, --overwrite, --no-fast or --backend" in err


# --- on a Ray cluster


@pytest.mark.soak
def test_ray_does_what_processes_do(videos, tmp_path):
    """A cluster on this machine, with real networks; an actor that dies is a try."""
    settings = batch_settings(propagator="hold", interval=5, split=20)
    local = run_batch([str(videos)], str(tmp_path / "local"), settings, BatchOptions(workers=1))
    assert states(local) == {"a/one": "done", "broken": "failed", "long": "done", "two": "done"}
    killed = []

    def kill_one(item, done, total):
        if item.state == "done" and not killed:
            mine = [worker for worker in ray_workers() if worker not in killed]
            os.kill(mine[0], signal.SIGKILL)
            killed.append(mine[0])

    summary = run_batch(
        [str(videos)], str(tmp_path / "ray"), settings, BatchOptions("ray", workers=2, retries=3), on_item=kill_one
    )
    assert killed
    assert states(summary) == states(local)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.soak
@HANGS
def test_an_actor_that_hangs_is_ended_and_its_task_tried_again(videos, tmp_path, monkeypatch, how):
    from mpvss.batch import ray_engine

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # actors import this module
    monkeypatch.setattr(ray_engine, "RayEngine", watched(ray_engine.RayEngine))
    check_a_hang("ray", videos, tmp_path, how)


def ray_workers():
    """Processes in which our actors live; Ray gives them the name of the class."""
    result = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"ray::_Actor" in (entry / "cmdline").read_bytes():
                result.append(int(entry.name))
        except OSError:
            continue
    return result


def test_the_number_of_workers_does_not_decide_what_they_compute(videos, tmp_path, inline, monkeypatch):
    """A network's sums depend on its threads in the last digit, so one worker has as many as each of three."""
    result = []

    class Engine(driver_module.LocalEngine):
        def __init__(self, setup, workers, level):
            super().__init__(setup, workers, level)
            result.append((workers, setup.settings.threads))

    monkeypatch.setattr(driver_module, "LocalEngine", Engine)
    for workers in (1, 3):
        settings = changed(HOLD, threads=workers + 1)
        run_batch([str(videos)], str(tmp_path / str(workers)), settings, BatchOptions(workers=workers))
    for name, workers in (("usual", 3), ("alone", 1)):
        run_batch([str(videos)], str(tmp_path / name), HOLD, BatchOptions(workers=workers))
    assert result == [(1, 2), (3, 4), (3, 1), (1, 1)]
    alone = tree(tmp_path / "alone")
    assert any(name.endswith(".labels.mkv") for name in alone)
    assert tree(tmp_path / "usual") == alone


def test_a_worker_has_the_threads_it_is_given():
    code = (
        "import cv2, torch; from mpvss.batch.local import prepare; prepare({}, 30); "
        "print(torch.get_num_threads(), cv2.getNumThreads())"
    )
    for threads in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", code.format(threads)], check=True, stdout=subprocess.PIPE, text=True
        )
        assert done.stdout.split() == [str(threads)] * 2
    with pytest.raises(ValueError, match="threads must be from 1 to 1024, got 0"):
        batch_settings(threads=0)


def test_ray_that_is_not_installed_is_named(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"engine ray needs a package.*pip install 'mpvss\[ray\]'"):
        run_batch([str(videos)], str(tmp_path / "OUT"), HOLD, BatchOptions("ray", workers=1))


def test_downloads_have_a_bound(inline, web, videos, tmp_path, monkeypatch):
    folder, address = web
    (folder / "two.mp4").write_bytes((videos / "two.mp4").read_bytes())
    monkeypatch.setattr(sys.modules[fetch.__module__], "_MOST_DOWNLOADED", 1000)
    summary = run_batch([f"{address}/two.mp4"], str(tmp_path / "OUT"), HOLD, replace(TWO, retries=1))
    (item,) = summary.items
    assert (item.state, item.attempts) == ("failed", 1)  # trying again would not help
    with pytest.raises(SourceError, match=r"expected at most 1000 bytes from .*two\.mp4, got \d+: download it"):
        fetch(f"{address}/two.mp4", tmp_path / "scratch")


@pytest.mark.parametrize("start", [2, 72_000])
def test_a_range_of_a_batch_counts_from_the_first_frame(inline, clip, tmp_path, start):
    source = write_video(
        tmp_path / "late.mkv", pictures(), times=range(25 * start, 25 * start + 40), time_base=Fraction(1, 25), g=12
    )
    options = {"start": "0.2", "end": "1.2"}
    run_batch([str(source)], str(tmp_path / "OUT"), changed(HOLD, **options, split=10), TWO)
    VideoSegmenter(ColourSegmentor(), Hold(), interval=5).process(str(source), tmp_path / "whole", **options)
    assert Pictures(tmp_path / "OUT" / "late.overlay.mp4") == Pictures(tmp_path / "whole" / "late.overlay.mp4")
    result, whole = (json.loads((tmp_path / where / "late.json").read_text()) for where in ("OUT", "whole"))
    assert result["frames"] == whole["frames"]
    assert [frame["index"] for frame in result["frames"]] == list(range(5, 30))


def test_a_batch_that_is_stopped_is_gone_on_with(inline, videos, tmp_path):
    stop, out = threading.Event(), tmp_path / "OUT"
    summary = run_batch([str(videos)], str(out), HOLD, TWO, on_item=lambda *_: stop.set(), stop=stop)
    assert 0 < len(summary.items) < 4
    again = run_batch([str(videos)], str(out), HOLD, replace(TWO, resume=True))
    assert (again.done + again.skipped, again.failed) == (3, 1)
    assert again.skipped >= summary.done
