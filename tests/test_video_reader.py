import functools
import http.server
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mpvss.errors import ConfigError, SourceError
from mpvss.video import parse_time, probe, read
from test_outputs_overlay import source_with_sound

SIZE = (48, 64)
NTSC = Fraction(30000, 1001)


def grey(level, size=SIZE):
    return np.full((*size, 3), level, np.uint8)


def noise(count, size=SIZE):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def write_video(
    path,
    pictures,
    *,
    times=None,
    time_base=Fraction(1, 25),
    codec="libx264",
    pixels="yuv420p",
    rate=25,
    rotation=None,
    **options,
):
    """A video of the pictures at times[i] * time_base."""
    muxer = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", container_options=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_off(path, share=0.6):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def levels(frames):
    """Index of each frame of a video whose i-th picture has the grey level 8 * i."""
    return [round(float(frame.rgb.mean()) / 8) for frame in frames]


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("ramp") / "ramp.mp4", [grey(8 * i) for i in range(20)], crf=1)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        Image.fromarray(grey(8 * i)).save(tmp_path / f"{i}.png")
    return tmp_path


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mpvss-read")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert reading_threads() == []


# --- frames and times


def test_reads_every_frame_in_order(ramp):
    with read(ramp) as reader:
        frames = list(reader)
    assert [frame.index for frame in frames] == list(range(20)) == levels(frames)
    assert [frame.pts for frame in frames] == [Fraction(i, 25) for i in range(20)]
    assert all(frame.size == SIZE and frame.rgb.dtype == np.uint8 for frame in frames)
    assert reader.damaged == 0
    assert reader.warnings == []
    assert reader.origin == 0
    assert reader.seconds > 0


def test_variable_frame_rate_is_kept_exactly(tmp_path):
    times = [0, 33, 67, 100, 200, 201, 500]
    path = write_video(tmp_path / "v.mkv", [grey(8 * i) for i in range(7)], times=times, time_base=Fraction(1, 1000))
    assert [frame.pts for frame in read(path)] == [Fraction(t, 1000) for t in times]


def test_ntsc_rate_is_kept_exactly(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(8 * i) for i in range(5)], time_base=1 / NTSC, rate=NTSC)
    assert [frame.pts for frame in read(path)] == [i / NTSC for i in range(5)]
    assert probe(path).frame_rate == NTSC


@pytest.mark.parametrize(
    ("start", "end", "stride"),
    [
        (None, None, 3),
        ("0.2", None, 1),
        (None, 0.2, 1),
        (Fraction(1, 5), "0:00.6", 1),
        ("0.2", "0.6", 4),
        (0.21, 0.25, 1),
    ],
)
@pytest.mark.parametrize("kind", ["video", "images"])
def test_selection_equals_slicing_the_whole(ramp, folder, kind, start, end, stride):
    source = ramp if kind == "video" else folder
    every = list(read(source))
    first = 0 if start is None else parse_time(start)
    last = 100 if end is None else parse_time(end)
    expected = [frame for frame in every if first <= frame.pts < last][::stride]
    selected = list(read(source, start=start, end=end, stride=stride))
    assert [(frame.index, frame.pts) for frame in selected] == [(frame.index, frame.pts) for frame in expected]
    for frame, same in zip(selected, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, same.rgb)


def test_origin_is_the_first_selected_frame(ramp):
    reader = read(ramp, start="0.21")
    with pytest.raises(ValueError, match="after the first frame"):
        _ = reader.origin
    next(reader)
    assert reader.origin == Fraction(6, 25)
    reader.close()


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts"])  # AVI has no way to begin late
@pytest.mark.parametrize("start", [0, 100, 50_000])
def test_times_count_from_the_first_frame_whatever_the_clock_says(tmp_path, suffix, start):
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    times = [start + i for i in range(15)]
    path = write_video(tmp_path / f"v{suffix}", noise(15), times=times, codec=codec)
    with read(path, start="0.2", end="0.4") as reader:
        assert [frame.pts for frame in reader] == [Fraction(i, 25) for i in range(5, 10)]
        assert reader.origin == Fraction(1, 5)
    assert reader.damaged == 0
    assert reader.warnings == []
    assert abs(reader.info.start - Fraction(start, 25)) < 0.1  # TS begins by the encoder's delay later


def test_missing_times_advance_by_the_frame_rate(tmp_path):
    path = write_video(tmp_path / "v.h264", noise(6))  # a raw stream has no times at all
    assert [frame.pts for frame in read(path)] == [Fraction(i, 25) for i in range(6)]


CASES = Path(__file__).parent / "data"


def times_of(path, **options):
    with read(path, **options) as reader:
        times = [frame.pts for frame in reader]
    return times, reader


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.avi"])
def test_a_variable_rate_is_exact_and_no_damage(name):
    slots = [0, 1, 2, 3, 10, 11, 12, 30, 31, 32, 33, 34, 60, 61, 62, *range(85, 100), 140]
    times, reader = times_of(CASES / name)
    assert len(times) == 30
    assert times[:15] == [Fraction(slot, 25) for slot in slots[:15]]
    assert times[-1] == Fraction(140, 25)
    assert (reader.damaged, reader.warnings) == (0, [])


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi", ".mp4", ".gif"])
def test_slide_shows_are_no_damage(tmp_path, suffix):
    codec, pixels = {".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8"), ".avi": ("mpeg4", "yuv420p")}.get(
        suffix, ("libx264", "yuv420p")
    )
    slots = [0, 125, 250, 500, 600]
    pictures = [grey(40 * i) for i in range(5)]
    path = write_video(tmp_path / f"s{suffix}", pictures, times=slots, codec=codec, pixels=pixels)
    times, reader = times_of(path)
    assert times == [Fraction(slot, 25) for slot in slots]
    assert (reader.damaged, reader.warnings) == (0, [])


def test_a_file_of_two_recordings_has_one_clock():
    times, reader = times_of(CASES / "joined.ts")
    assert len(times) == 24
    assert times == [Fraction(i, 25) for i in range(len(times))]
    assert reader.damaged == 0
    assert reader.warnings == ["timestamps start anew in the middle, once: counted on from there"]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_avi_with_reordered_frames_has_no_hole(tmp_path, codec):
    path = write_video(tmp_path / "b.avi", [grey(8 * i) for i in range(25)], codec=codec, bf=3, g=50)
    with read(path) as reader:
        frames = list(reader)
    assert [frame.pts for frame in frames] == [Fraction(i, 25) for i in range(25)]
    assert reader.warnings == []


@pytest.mark.parametrize(("position", "seconds"), [(5, 100), (20, 0.01), (20, 3), (20, 100), (20, 4000), (38, 100)])
def test_one_wrong_time_shifts_nothing_after_it(tmp_path, position, seconds, monkeypatch):
    path = write_video(tmp_path / "v.mkv", noise(40), bf=0)
    original = av.container.InputContainer.demux

    def demux(self, *streams):
        for number, packet in enumerate(original(self, *streams)):
            if number == position:
                packet.pts = packet.dts = round(seconds * 1000)
            yield packet

    monkeypatch.setattr(sys.modules["mpvss.video.decode"], "_demux", demux)
    times, reader = times_of(path)
    assert times == [Fraction(i, 25) for i in range(40)]
    assert reader.warnings == ["timestamps that do not fit their neighbours: 1, replaced by times between them"]


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(".h264", "libx264", 60), (".hevc", "libx265", 30), (".m2v", "mpeg2video", 30), (".h264", "libx264", NTSC)],
)
def test_raw_streams_have_their_own_rate(tmp_path, suffix, codec, rate):
    path = write_video(
        tmp_path / f"v{suffix}", noise(8, (96, 128)), codec=codec, rate=rate, time_base=1 / Fraction(rate)
    )
    times, reader = times_of(path)
    assert times == [i / Fraction(rate) for i in range(8)]
    assert (reader.info.assumed_rate, reader.warnings, reader.end) == (False, [], 8 / Fraction(rate))


def test_a_rate_that_nothing_says_is_assumed_said_and_set(tmp_path, folder):
    path = write_video(tmp_path / "v.mjpeg", noise(5), codec="mjpeg", pixels="yuvj420p", rate=30)
    times, reader = times_of(path)
    assert times == [Fraction(i, 25) for i in range(5)]
    assert reader.info.assumed_rate
    assert "25 assumed; --fps sets it" in reader.warnings[0]
    assert times_of(path, fps="29.97")[0] == [i / NTSC for i in range(5)]
    assert times_of(folder, fps=50)[0][:2] == [0, Fraction(1, 50)]
    with pytest.raises(ValueError, match="expected a frame rate such as 25"):
        read(path, fps=0)


def test_a_rate_for_a_source_with_times_is_refused(ramp):
    with pytest.raises(ConfigError, match="expected --fps for raw streams and images only"):
        read(ramp, fps=30)


@pytest.mark.parametrize(("suffix", "codec", "end"), [(".gif", "gif", None), (".mkv", "ffv1", None)])
def test_the_end_of_the_last_frame_comes_from_the_stream(tmp_path, suffix, codec, end):
    path = write_video(
        tmp_path / f"v{suffix}", noise(3), times=[0, 10, 100], time_base=Fraction(1, 100), codec=codec,
        pixels="rgb8" if suffix == ".gif" else "bgr0",
    )  # fmt: skip
    with av.open(str(path)) as container:
        *_, last = container.decode(video=0)
        expected = (last.pts + last.duration) * last.time_base
    _, reader = times_of(path)
    assert reader.end == expected
    assert times_of(path, end="0.5")[1].end == Fraction(1, 2)


def test_several_video_streams(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = *SIZE, "bgr0"
        for number, stream in enumerate(streams):
            frame = av.VideoFrame.from_ndarray(grey(100 + 50 * number), "rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    for number in range(2):
        assert probe(path, video_stream=number).video_stream == number
        assert len(probe(path).video_streams) == 2
        (frame,) = read(path, video_stream=number)
        assert frame.rgb.mean() == 100 + 50 * number
    with pytest.raises(ConfigError, match=r"expected --video-stream below 2, .* got 2: mpvss inspect lists them"):
        read(path, video_stream=2)


# --- pipes


@pytest.fixture
def piped():
    """A path of a pipe that gives these bytes."""
    ends = []

    def make(data):
        end, inlet = os.pipe()
        ends.append(end)

        def feed():
            with suppress(BrokenPipeError), os.fdopen(inlet, "wb") as file:
                file.write(data)

        threading.Thread(target=feed, daemon=True).start()
        return f"/dev/fd/{end}"

    yield make
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("name", ["late.ts", "vfr.mkv", "raw60.h264"])
def test_a_pipe_gives_what_the_file_gives(piped, name):
    path = piped((CASES / name).read_bytes())
    assert probe(path).kind == "stream"  # and nothing of it is lost
    with read(CASES / name) as whole, read(path) as reader:
        assert not reader.info.live
        for frame, same in zip(reader, whole, strict=True):
            assert frame.pts == same.pts
            np.testing.assert_array_equal(frame.rgb, same.rgb)


def test_an_mp4_with_its_index_at_the_end_in_a_pipe(piped, tmp_path):
    write_video(tmp_path / "v.mov", noise(60, (240, 320)), crf=1)  # no fast start
    with pytest.raises(SourceError, match="got an MP4 whose index is at its end: give the file itself"):
        read(piped((tmp_path / "v.mov").read_bytes()))


def test_a_fifo_without_a_writer(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "f")
    monkeypatch.setattr("mpvss.video.file._SECONDS_WITHOUT_WRITER", 0.2)
    with pytest.raises(SourceError, match=r"expected somebody to write a video to .*f, got none"):
        read(tmp_path / "f")
    with pytest.raises(SourceError, match="a device, not a pipe"):
        read("/dev/zero")


# --- one file


@pytest.mark.parametrize("suffix", ["tga", "ppm", "jp2", "pcx", "sgi"])
def test_a_file_named_like_a_pattern_is_itself(tmp_path, suffix):
    for name, level in (("q%d", 200), ("q0", 10), ("q1", 20)):
        Image.fromarray(grey(level)).save(tmp_path / f"{name}.{suffix}")
    (frame,) = read(tmp_path / f"q%d.{suffix}")
    assert abs(frame.rgb.mean() - 200) < 3


# --- sources that fall silent


def raise_source_error():
    raise SourceError("gone")


def test_a_live_source_that_falls_silent_is_an_error_after_its_frames(ramp, monkeypatch):
    module = sys.modules["mpvss.video.media"]
    decoding = sys.modules["mpvss.video.decode"]
    original = decoding._demux

    def demux(container, stream):
        for number, packet in enumerate(original(container, stream)):
            if number == 12:
                raise av.error.ExitError(1, "silent")
            yield packet

    monkeypatch.setattr(decoding, "_demux", demux)
    monkeypatch.setattr(module, "_SECONDS_BEFORE_TRIES", (0, 0))
    monkeypatch.setattr(module.VideoMedia, "_declared_duration", lambda self: None)
    files = sys.modules["mpvss.video.file"]
    address = files.Address(str(ramp), "video", "rtsp://127.0.0.1/x", "x")
    opened = iter([address.open()])  # once, and never again
    monkeypatch.setattr(files.Address, "open", lambda self: next(opened, None) or raise_source_error())
    stream = replace(address, kind="stream")
    monkeypatch.setattr(sys.modules["mpvss.video.sources"], "_open_url", lambda url, make: make(stream))
    reader = read("rtsp://127.0.0.1/x")
    assert reader.info.live
    frames = []
    with pytest.raises(SourceError, match=r"expected more frames of the live source rtsp://127.0.0.1/x, got none"):
        frames.extend(iter(reader))


@pytest.mark.parametrize(
    ("name", "codec", "mark"),
    [("v.mp4", "aac", b"trak"), ("v.mp4", "eac3", b"trak"), ("v.mkv", "libopus", b"\x83\x81\x02")],
)
def test_sound_that_a_damaged_header_hides_is_said(tmp_path, name, codec, mark):
    path = source_with_sound(tmp_path / name, codec, frames=3)
    with read(path) as reader:
        assert reader.info.has_audio
        assert reader.warnings == []
    data = path.read_bytes()
    begin = data.rindex(mark)
    hidden = 0
    for position in range(begin, begin + len(mark)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                with read(path) as reader:
                    list(reader)
                    if not reader.info.has_audio:
                        hidden += 1
                        assert any("names sound that cannot be found" in warning for warning in reader.warnings)
            except SourceError:
                continue
    assert hidden


def test_no_sound_is_missed_where_there_is_none(tmp_path):
    for suffix in ("mp4", "mkv", "avi", "ts"):
        with read(write_video(tmp_path / f"v.{suffix}", noise(3))) as reader:
            assert reader.warnings == []


def test_frames_before_the_first_key_frame_are_counted(tmp_path):
    path = write_video(tmp_path / "v.ts", noise(60), bf=0, g=20, **{"x264-params": "scenecut=0:repeat-headers=1"})
    packets = []
    with av.open(str(path)) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    data = path.read_bytes()
    begin = packets[15] // 188 * 188
    path.write_bytes(data[: 3 * 188] + data[begin:])
    with read(path) as reader:
        frames = list(reader)
    assert len(frames) + reader.damaged == 45
    assert "frames before the first key frame cannot be decoded: left out" in " ".join(reader.warnings)


@pytest.mark.parametrize(
    ("value", "seconds"), [("12.5", "25/2"), ("1:02.5", "125/2"), ("1:00:00", "3600"), (2, "2"), (0.25, "1/4")]
)
def test_parse_time(value, seconds):
    assert parse_time(value) == Fraction(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "1:2:3:4",
        "-1",
        -1.0,
        float("nan"),
        float("inf"),
        "1/0",
        "1e400",
        "1e-9999999",
        "1:99",
        "1:60:00",
        "1:2:60",
        "9" * 5000,
        1e300,
        "１２",
        "1_0",
        "inf",
    ],
)
def test_parse_time_refuses_what_is_no_time(value):
    with pytest.raises(ValueError, match="expected a time in seconds such as"):
        parse_time(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 2, "end": 2}, "expected an end after the start"),
        ({"end": 0}, "expected an end after the start"),
        ({"stride": 0}, "expected a stride of 1 or more, got 0"),
        ({"read_ahead": 0}, "expected a read-ahead of 1 frame or more, got 0"),
    ],
)
def test_selections_out_of_range(ramp, options, message):
    with pytest.raises(ValueError, match=message):
        read(ramp, **options)


# --- pictures


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".mp4", "libx264", "yuv420p"),
        (".mp4", "libx264", "yuv420p10le"),
        (".mp4", "libx264", "yuv444p"),
        (".mkv", "ffv1", "bgr0"),
    ],
)
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 80, 200)])
def test_colours_survive(tmp_path, suffix, codec, pixels, colour):
    picture = np.empty((*SIZE, 3), np.uint8)
    picture[:] = colour
    options = {"crf": 1} if codec == "libx264" else {}
    path = write_video(tmp_path / f"v{suffix}", [picture] * 2, codec=codec, pixels=pixels, **options)
    for frame in read(path):
        assert np.abs(frame.rgb.astype(int) - colour).max() <= 4


def test_grey_video(tmp_path):
    path = write_video(tmp_path / "v.mkv", [grey(100)] * 3, codec="ffv1", pixels="gray")
    assert probe(path).pixel_format == "gray"
    for frame in read(path):
        assert frame.rgb.shape == (*SIZE, 3)
        assert np.abs(frame.rgb.astype(int) - 100).max() <= 2


def test_odd_size(tmp_path):
    pictures = noise(2, (47, 63))
    path = write_video(tmp_path / "v.mkv", pictures, codec="ffv1", pixels="bgr0")
    for frame, picture in zip(read(path), pictures, strict=True):
        np.testing.assert_array_equal(frame.rgb, picture)


def test_one_frame(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(90)])
    assert [(frame.index, frame.pts) for frame in read(path)] == [(0, 0)]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_honoured(tmp_path, degrees):
    marked = grey(0)
    marked[:16, :16] = 255  # upper left
    path = write_video(tmp_path / "v.mp4", [marked] * 3, rotation=degrees, crf=1)
    info = probe(path)
    assert info.rotation == degrees
    upright = np.rot90(marked, degrees // 90)
    assert info.size == upright.shape[:2]
    for frame in read(path):
        assert frame.size == info.size
        assert np.abs(frame.rgb.astype(int) - upright).mean() < 3


def test_mirrored_display_matrix(tmp_path):
    marked = grey(0)
    marked[:16, :16] = 255
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(marked, "rgb24")))
        container.mux(stream.encode(None))
    (frame,) = read(path)
    assert np.abs(frame.rgb.astype(int) - marked[:, ::-1]).mean() < 3


def test_video_that_changes_size_is_scaled_to_the_first_frame(tmp_path):
    first = write_video(tmp_path / "a.h264", noise(4))
    second = write_video(tmp_path / "b.h264", noise(4, (96, 128)))
    path = tmp_path / "c.h264"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with read(path) as reader:
        frames = list(reader)
    assert [frame.size for frame in frames] == [SIZE] * 8
    assert reader.warnings == [
        "frames change size from 64x48 (width x height) to 128x96 (width x height): scaled to the size of the first"
    ]


# --- images


def test_folder_is_in_natural_order_at_25_a_second(folder):
    frames = list(read(folder))
    assert levels(frames) == list(range(12))
    assert [frame.pts for frame in frames] == [Fraction(i, 25) for i in range(12)]
    info = probe(folder)
    assert (info.kind, info.name, info.frames, info.time_base) == ("images", folder.name, 12, Fraction(1, 25))


def test_glob_pattern(folder):
    assert levels(read(f"{folder}/1*.png")) == [1, 10, 11]
    assert probe(f"{folder}/1*.png").name == folder.name


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_image_formats(tmp_path, suffix):
    Image.fromarray(grey(120)).save(tmp_path / f"a.{suffix}")
    (frame,) = read(tmp_path / f"a.{suffix}")
    assert np.abs(frame.rgb.astype(int) - 120).max() <= 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_image_modes_become_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full(SIZE, 120 * 257, np.uint16))
    else:
        image = Image.fromarray(grey(120))
        image = image.quantize() if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    (frame,) = read(tmp_path)
    np.testing.assert_array_equal(frame.rgb, grey(120))


def test_orientation_written_by_a_camera(tmp_path):
    marked = grey(0)
    marked[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise for display
    Image.fromarray(marked).save(tmp_path / "a.png", exif=exif)
    (frame,) = read(tmp_path)
    np.testing.assert_array_equal(frame.rgb, np.rot90(marked, -1))
    assert probe(tmp_path).size == frame.size


@pytest.mark.parametrize("odd", ["0.png", "5.png", "11.png"])
def test_an_image_of_another_size_is_scaled_and_counted(folder, odd):
    Image.fromarray(grey(77, (40, 60))).save(folder / odd)
    with read(folder) as reader:
        frames = list(reader)
    assert [frame.size for frame in frames] == [SIZE] * 12
    np.testing.assert_array_equal(frames[int(odd[:-4])].rgb, grey(77))
    assert reader.warnings == [
        "1 of the images are scaled to 64x48 (width x height), the size of the others "
        f"(first: {odd}: 60x40 (width x height))"
    ]


@pytest.mark.parametrize("broken", [["0.png"], ["5.png"], ["0.png", "3.png", "11.png"]])
def test_damaged_images_are_left_out_and_counted(folder, broken):
    for name in broken:
        (folder / name).write_bytes(b"" if name == "0.png" else (folder / name).read_bytes()[:60])
    with read(folder) as reader:
        assert [f"{frame.index}.png" for frame in reader] == [f"{i}.png" for i in range(12) if f"{i}.png" not in broken]
    assert reader.damaged == len(broken)
    (warning,) = reader.warnings
    assert warning.startswith(f"{len(broken)} of the images cannot be read and are left out (first: {broken[0]}: ")


# --- damage


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cut_off_file_gives_what_decodes_and_counts_the_rest(tmp_path, suffix):
    path = write_video(tmp_path / f"v{suffix}", noise(30), bf=0)
    whole = list(read(path))
    cut_off(path)
    with read(path) as reader:
        frames = list(reader)
    assert 10 < len(frames) < 30
    # A Matroska file says how many bytes it has, and not how many frames.
    assert len(frames) + reader.damaged == 30 if suffix == ".mp4" else reader.damaged >= 1
    assert "the file is cut off" in reader.warnings[-1]
    for frame, same in zip(frames, whole, strict=False):
        np.testing.assert_array_equal(frame.rgb, same.rgb)


def test_damage_in_the_middle_is_counted(tmp_path):
    path = write_video(tmp_path / "v.mp4", noise(30))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with read(path) as reader:
        assert 20 < len(list(reader)) <= 30
    assert reader.damaged > 0


def test_a_selection_that_ends_early_is_not_called_cut_off(ramp):
    with read(ramp, end="0.2") as reader:
        list(reader)
    assert reader.damaged == 0


# --- sources that are none


def test_no_such_file(tmp_path):
    with pytest.raises(SourceError, match=r"got nothing at .*nope\.mp4: check the path"):
        read(tmp_path / "nope.mp4")


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SourceError, match=r"expected images \(png.* got none among 1 entries: give the folder"):
        read(tmp_path)


def test_pattern_without_images(tmp_path):
    with pytest.raises(SourceError, match="got none among 0 matches: check the pattern"):
        read(f"{tmp_path}/*.png")


@pytest.mark.parametrize("content", ["just text\n" * 100, ""])
def test_text_named_mp4(tmp_path, content):
    path = tmp_path / "v.mp4"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"expected a video in .* got data that is no known video format"):
        read(path)


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("just text")
    with pytest.raises(SourceError, match=r"expected an image in .*a.png, got data that is none"):
        read(tmp_path)


def test_video_without_frames(tmp_path):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(SourceError, match=r"expected a video with frames in .* got none: give"):
        read(tmp_path / "v.mkv")


def test_sound_without_pictures(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        stream.layout = "mono"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match=r"expected a video stream with frames in .* got audio: give a video"):
        read(tmp_path / "a.mp4")


def test_start_beyond_the_end(ramp):
    reader = read(ramp, start=100)
    with pytest.raises(SourceError, match=r"from 100 s to the end, got none: .* read up to 0.76 s; choose a range"):
        next(reader)


def test_no_such_camera():
    with pytest.raises(SourceError, match="camera"):
        read("camera:97")


def test_no_such_stream_and_no_password_in_the_message():
    with pytest.raises(SourceError, match=r"expected a video stream at rtsp://127\.0\.0\.1:9/a, got none") as caught:
        read("rtsp://user:secret@127.0.0.1:9/a")
    assert "secret" not in str(caught.value)


def test_video_over_http(ramp):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(ramp.parent))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with read(f"http://127.0.0.1:{server.server_port}/ramp.mp4") as reader:
            assert levels(reader) == list(range(20))
        assert reader.info.kind == "stream"
        assert reader.info.name == "127.0.0.1-ramp"
        assert not reader.info.live
        with pytest.raises(SourceError, match="Not Found"):
            read(f"http://127.0.0.1:{server.server_port}/nope.mp4")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class NoRange(http.server.BaseHTTPRequestHandler):
    """A server that gives whole files only."""

    data = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(self.data)

    def log_message(self, *_):
        pass


def test_an_mp4_with_its_index_at_the_end_from_a_server_without_ranges(tmp_path, monkeypatch):
    write_video(tmp_path / "v.mov", noise(60, (240, 320)), crf=1)
    monkeypatch.setattr(NoRange, "data", (tmp_path / "v.mov").read_bytes())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoRange)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v.mov"
    try:
        assert probe(url).kind == "stream"
        with read(url) as reader:
            assert len(list(reader)) == 60
        assert list(tmp_path.glob("mpvss-*")) == []
        monkeypatch.setattr(sys.modules["mpvss.video.sources"], "_MOST_DOWNLOADED", 1000)
        with pytest.raises(SourceError, match=r"expected to download .* got .* at most 1000 are taken"):
            read(url)
        assert list(tmp_path.glob("mpvss-*")) == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- description


def test_probe_describes_without_reading(ramp):
    info = probe(ramp)
    assert info.to_dict() == {
        "source": str(ramp),
        "name": "ramp",
        "kind": "video",
        "size": [48, 64],
        "time_base": [1, 12800],
        "frame_rate": [25, 1],
        "frames": 20,
        "duration": [4, 5],
        "codec": "h264",
        "pixel_format": "yuv420p",
        "rotation": 0,
        "has_audio": False,
        "live": False,
        "start": [0, 1],
        "assumed_rate": False,
        "video_streams": ["h264 64x48 (width x height), 25 frames a second"],
        "video_stream": 0,
        "sample_aspect_ratio": [1, 1],
    }
    assert info.size == SIZE


def test_a_file_whose_name_looks_like_a_pattern_or_a_url(ramp, tmp_path):
    for name in ("a[1].mp4", "a:b.mp4", "%03d.mp4"):
        path = tmp_path / name
        path.write_bytes(ramp.read_bytes())
        assert probe(path).name == path.stem
    assert probe(f"file://{ramp}").name == "ramp"


# --- the thread


def test_reading_ahead_is_bounded(folder, monkeypatch):
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or original(file))
    with read(folder, read_ahead=2) as reader:
        next(reader)
        time.sleep(0.3)
        assert len(opened) <= 12 + 1 + 1 + 2 + 1  # looked at for their size, described, taken, waiting, in hand


def test_stopping_early_ends_the_thread(ramp):
    for _ in read(ramp, read_ahead=1):
        break
    assert reading_threads() == []


def test_an_exception_in_the_consumer_ends_the_thread(ramp):
    with pytest.raises(RuntimeError, match="mine"), read(ramp, read_ahead=1) as reader:
        next(reader)
        raise RuntimeError("mine")
    assert reading_threads() == []


def test_a_reader_that_was_never_used_ends_its_thread(ramp):
    read(ramp, read_ahead=1).close()
    reader = read(ramp, read_ahead=1)
    del reader
    assert reading_threads() == []


def test_an_exception_in_the_thread_reaches_the_consumer_after_the_frames_before_it(ramp, monkeypatch):
    from mpvss.video.media import VideoMedia

    original = VideoMedia.images

    def failing(self):
        pictures = original(self)
        for _ in range(3):
            yield next(pictures)
        raise RuntimeError("theirs")

    monkeypatch.setattr(VideoMedia, "images", failing)
    reader = read(ramp)
    assert [next(reader).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="theirs"):
        next(reader)
    with pytest.raises(StopIteration):
        next(reader)


def test_a_closed_reader_gives_nothing_more(ramp):
    reader = read(ramp)
    next(reader)
    reader.close()
    reader.close()
    assert list(reader) == []


def test_paths_may_be_text(ramp):
    assert len(list(read(str(Path(ramp))))) == 20
