import resource
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mpvss.errors import OutputError
from mpvss.outputs import LabelWriter, Mp4Writer
from mpvss.outputs.audio import Audio, Sound
from mpvss.video import read

SIZE = (48, 64)
TB = Fraction(1, 25)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def grey(level, size=SIZE):
    return np.full((*size, 3), level, np.uint8)


def write(path, times, *, size=SIZE, time_base=TB, images=None, sound=None, end=None, **options):
    audio = None if sound is None else Audio(sound, end)
    with Mp4Writer(path, size, time_base, audio=audio, **options) as writer:
        for i, time in enumerate(times):
            writer.append(grey(8 * i % 256, size) if images is None else images[i], time)
    return writer


def source_with_sound(path, codec, frames=30, rate=48000):
    """A video of 25 frames a second with a tone of the same length."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width = SIZE
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codec, rate=rate)
        sound.layout = "stereo"
        for i in range(frames):
            image = av.VideoFrame.from_ndarray(grey(i), "rgb24")
            image.pts, image.time_base = i, TB
            container.mux(video.encode(image))
        tone = np.sin(np.arange(rate * frames // 25) * 2 * np.pi * 440 / rate).astype(np.float32) / 2
        for start in range(0, len(tone), 1024):
            chunk = av.AudioFrame.from_ndarray(np.stack([tone[start : start + 1024]] * 2), "fltp", "stereo")
            chunk.sample_rate, chunk.pts, chunk.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(chunk))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


def sound_of(path):
    """(codec, time and bytes of each packet) of the first sound track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        packets = [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]
        return stream.codec_context.name, packets


# --- times


@pytest.mark.parametrize(
    ("time_base", "ticks"),
    [
        (Fraction(1, 25), [0, 1, 2, 3]),
        (Fraction(1, 25), [12, 13, 14, 17]),
        (Fraction(1001, 30000), [0, 1, 2, 5, 6, 9, 20]),
        (Fraction(1, 1000), [0, 33, 67, 100, 200, 201, 500]),
        (Fraction(1, 1000), [7]),
        (Fraction(1, 90000), [3003, 6006, 9009, 9010, 90000]),
        (Fraction(1, 1_000_000), [0, 1, 33333, 7_000_000, 9_999_999]),
        (Fraction(1, 1), [0, 1, 2]),
    ],
)
def test_times_are_kept_exactly(tmp_path, time_base, ticks):
    times = [tick * time_base for tick in ticks]
    write(tmp_path / "o.mp4", times, time_base=time_base)
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert [frame.pts * stream.time_base for frame in container.decode(stream)] == times
    assert [frame.pts for frame in read(tmp_path / "o.mp4")] == [time - times[0] for time in times]


def test_times_finer_than_a_microsecond_are_rounded_to_it(tmp_path):
    times = [Fraction(k, 10**9) for k in (0, 40_000_123, 80_000_987)]
    write(tmp_path / "o.mp4", times, time_base=Fraction(1, 10**9))
    for frame, time in zip(read(tmp_path / "o.mp4"), times, strict=True):
        assert abs(frame.pts - time) <= Fraction(1, 2_000_000)


def test_origin_becomes_zero(tmp_path):
    write(tmp_path / "o.mp4", [Fraction(k, 25) for k in (50, 51, 53)], origin=Fraction(2))
    assert [frame.pts for frame in read(tmp_path / "o.mp4")] == [0, TB, 3 * TB]


def test_the_last_image_stays_as_long_as_the_one_before(tmp_path):
    write(tmp_path / "o.mp4", [0 * TB, 5 * TB, 10 * TB])
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.duration == 600_000


def test_times_that_differ_by_less_than_can_be_written_stay_in_order(tmp_path):
    times = [Fraction(k, 10**9) for k in (0, 100, 200, 40_000_000)]
    write(tmp_path / "o.mp4", times, time_base=Fraction(1, 10**9))
    assert [frame.pts for frame in read(tmp_path / "o.mp4")] == [0, Fraction(1, 10**6), Fraction(2, 10**6), TB]


def test_times_must_increase(tmp_path):
    with pytest.raises(ValueError, match="expected a time after the image before"):
        write(tmp_path / "o.mp4", [Fraction(1), Fraction(1)])


# --- images


def test_format(tmp_path):
    write(tmp_path / "o.mp4", [0 * TB, TB])
    with av.open(str(tmp_path / "o.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
    data = (tmp_path / "o.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (30, 80, 200), (128, 64, 128)])
def test_colours_survive(tmp_path, colour):
    image = np.empty((*SIZE, 3), np.uint8)
    image[:] = colour
    write(tmp_path / "o.mp4", [0 * TB, TB], images=[image] * 2, crf=5)
    for frame in read(tmp_path / "o.mp4"):
        assert np.abs(frame.rgb.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64), (1, 1)])
def test_odd_sizes_are_padded_by_repeating_the_border(tmp_path, size):
    write(tmp_path / "o.mp4", [0 * TB, TB], size=size, images=[grey(200, size)] * 2, crf=5)
    for frame in read(tmp_path / "o.mp4"):
        assert frame.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert np.abs(frame.rgb.astype(int) - 200).max() <= 3


def test_views_of_a_image(tmp_path):
    write(tmp_path / "o.mp4", [0 * TB], images=[grey(90)[:, ::-1]])


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [((0, 64), {}, "expected a size of at least 1x1"), (SIZE, {"crf": 52}, "expected a crf of 0 to 51, got 52")],
)
def test_options_out_of_range(tmp_path, size, options, message):
    with pytest.raises(ValueError, match=message):
        Mp4Writer(tmp_path / "o.mp4", size, TB, **options)
    assert names(tmp_path) == []


def test_images_of_another_size(tmp_path):
    with pytest.raises(ValueError, match=r"expected a size of 64x48 \(width x height\), got 60x40"):
        write(tmp_path / "o.mp4", [0 * TB], images=[grey(0, (40, 60))])
    assert names(tmp_path) == []


# --- sound


@pytest.mark.parametrize(
    ("name", "codec"), [("s.mp4", "aac"), ("s.mp4", "libmp3lame"), ("s.mkv", "flac"), ("s.mkv", "libopus")]
)
def test_sound_is_copied(tmp_path, name, codec):
    source = source_with_sound(tmp_path / name, codec)
    writer = write(tmp_path / "o.mp4", [k * TB for k in range(30)], sound=source)
    assert writer.warnings == []
    codec_in, packets_in = sound_of(source)
    codec_out, packets_out = sound_of(tmp_path / "o.mp4")
    assert codec_out == codec_in
    assert [data for _, data in packets_out] == [data for _, data in packets_in]
    for (time_out, _), (time_in, _) in zip(packets_out, packets_in, strict=True):
        assert abs(time_out - time_in) < Fraction(1, 1000)


@pytest.mark.parametrize(("name", "codec"), [("s.avi", "pcm_s16le"), ("s.mkv", "pcm_s16le")])
def test_sound_that_mp4_cannot_hold_becomes_aac(tmp_path, name, codec):
    source = source_with_sound(tmp_path / name, codec)
    writer = write(tmp_path / "o.mp4", [k * TB for k in range(30)], sound=source)
    assert writer.warnings == []
    codec_out, packets = sound_of(tmp_path / "o.mp4")
    assert codec_out == "aac"
    assert packets[-1][0] == pytest.approx(30 / 25, abs=0.05)


def test_sound_of_a_transport_stream(tmp_path):
    source = source_with_sound(tmp_path / "s.ts", "aac")
    write(tmp_path / "o.mp4", [frame.pts for frame in read(source)], sound=source)
    assert sound_of(tmp_path / "o.mp4")[0] == "aac"
    assert len(sound_of(tmp_path / "o.mp4")[1]) == len(sound_of(source)[1])


@pytest.mark.parametrize(("name", "codec"), [("s.mp4", "aac"), ("s.mkv", "pcm_s16le")])
def test_sound_follows_the_selected_range(tmp_path, name, codec):
    source = source_with_sound(tmp_path / name, codec)
    start, end = Fraction(10, 25), Fraction(20, 25)
    write(tmp_path / "o.mp4", [k * TB for k in range(10, 20)], sound=source, origin=start, end=end)
    times = [time for time, _ in sound_of(tmp_path / "o.mp4")[1]]
    assert -0.05 < times[0] <= 0.001
    assert times[-1] == pytest.approx(10 / 25, abs=0.05)
    assert [frame.pts for frame in read(tmp_path / "o.mp4")] == [k * TB for k in range(10)]


def test_a_source_without_sound(tmp_path):
    write(tmp_path / "silent.mp4", [k * TB for k in range(3)])
    writer = write(tmp_path / "o.mp4", [k * TB for k in range(3)], sound=tmp_path / "silent.mp4")
    assert writer.warnings == ["the sound of silent.mp4 is left out: it has no sound"]
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert not container.streams.audio


def test_sound_that_cannot_be_read_is_left_out_with_a_warning(tmp_path):
    writer = write(tmp_path / "o.mp4", [0 * TB], sound=tmp_path / "nope.mp4")
    assert writer.warnings == ["the sound of nope.mp4 is left out: No such file or directory"]


def test_sound_of_a_source_that_was_cut_off(tmp_path):
    source = source_with_sound(tmp_path / "s.mkv", "flac")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "o.mp4", [frame.pts for frame in read(source)], sound=source)
    assert sound_of(tmp_path / "o.mp4")[0] == "flac"


def test_damaged_sound_is_not_blamed_on_the_output(tmp_path, monkeypatch):
    """Where a packet of sound cannot be written the sound ends, with a warning; the images go on."""
    source = source_with_sound(tmp_path / "s.mkv", "flac")

    def damaged(*_):
        yield Fraction(0), [None]

    monkeypatch.setattr(Sound, "_copied", damaged)
    writer = write(tmp_path / "o.mp4", [k * TB for k in range(5)], sound=source)
    assert [warning.partition(":")[0] for warning in writer.warnings] == ["the sound ends early"]
    assert len(list(read(tmp_path / "o.mp4"))) == 5


# --- the file's name


def test_nothing_has_the_final_name_before_the_end(tmp_path):
    path = tmp_path / "o.mp4"
    with Mp4Writer(path, SIZE, TB) as writer:
        writer.append(grey(0), 0 * TB)
        assert not path.exists()
        assert all(name.startswith(".") for name in names(tmp_path))
    assert names(tmp_path) == ["o.mp4"]
    writer.close()  # harmless
    writer.abort()
    assert names(tmp_path) == ["o.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [0, 1, 100])
def test_an_exception_leaves_nothing_behind(tmp_path, error, written):
    with pytest.raises(error), Mp4Writer(tmp_path / "o.mp4", SIZE, TB) as writer:
        for k in range(written):
            writer.append(grey(k), k * TB)
        raise error
    assert names(tmp_path) == []


def test_an_exception_leaves_the_former_file_as_it_was(tmp_path):
    path = tmp_path / "o.mp4"
    path.write_text("former")
    with pytest.raises(RuntimeError), Mp4Writer(path, SIZE, TB) as writer:
        writer.append(grey(0), 0 * TB)
        raise RuntimeError
    assert path.read_text() == "former"
    write(path, [0 * TB])
    assert len(list(read(path))) == 1


def test_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="expected at least one image"):
        write(tmp_path / "o.mp4", [])
    assert names(tmp_path) == []


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_folder_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"expected to be able to write .*o\.mp4, got: .*; choose a writable folder"):
        Mp4Writer(tmp_path / folder / "o.mp4", SIZE, TB)


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for a disk without space."""
    rng = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(OutputError, match="expected to be able to write"),
            Mp4Writer(tmp_path / "o.mp4", SIZE, TB, crf=1) as writer,
        ):
            for k in range(300):
                writer.append(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), k * TB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a:b.mp4"), [0 * TB])
    write("%d.mp4", [0 * TB])
    assert names(tmp_path) == ["%d.mp4", "a:b.mp4"]


def overlay_of(path, out):
    """The overlay of a video as ``process`` makes it; the writer's warnings."""
    with read(path) as reader:
        frame = next(reader)
        info = reader.info
        audio = Audio(path, clock=reader.clock) if info.has_audio else None
        with Mp4Writer(out, info.size, info.time_base, audio=audio, origin=reader.origin) as writer:
            writer.append(frame.rgb, frame.pts)
            for frame in reader:
                writer.append(frame.rgb, frame.pts)
    return writer.warnings


def test_encoded_sound_that_becomes_mono_is_resampled_to_its_end(tmp_path):
    assert overlay_of(Path(__file__).parent / "data" / "joined.ts", tmp_path / "o.mp4") == []
    codec, packets = sound_of(tmp_path / "o.mp4")
    assert codec == "aac"
    assert packets[-1][0] > 0.9  # of 0.96 s, twice as long as the clock of each half
    assert len(list(read(tmp_path / "o.mp4"))) == 24


def test_copied_sound_that_changes_is_said_once_and_the_rest_is_kept(tmp_path):
    halves = [source_with_sound(tmp_path / f"{rate}.ts", "aac", rate=rate).read_bytes() for rate in (48000, 44100)]
    (tmp_path / "v.ts").write_bytes(b"".join(halves))
    warnings = overlay_of(tmp_path / "v.ts", tmp_path / "o.mp4")
    assert warnings == ["the sound changes from 48000 Hz stereo to 44100 Hz stereo: what differs is left out"]
    assert 1.1 < sound_of(tmp_path / "o.mp4")[1][-1][0] < 1.3
    assert len(list(read(tmp_path / "o.mp4"))) == 60


@pytest.mark.parametrize(("codec", "magic"), [("aac", b"A_AAC"), ("flac", b"fLaC"), ("libopus", b"OpusHead")])
def test_a_damaged_sound_header_ends_no_run(tmp_path, codec, magic):
    path = source_with_sound(tmp_path / "v.mkv", codec, frames=8)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(whole)
        for offset in rng.integers(0, 80, 4):
            damaged[whole.index(magic) + offset] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        overlay_of(path, tmp_path / "o.mp4")
        assert len(list(read(tmp_path / "o.mp4"))) == 8


def test_whatever_the_sound_raises_ends_in_a_warning_but_not_what_the_disk_does(tmp_path, monkeypatch):
    path = source_with_sound(tmp_path / "v.mkv", "pcm_s16le")
    for error in (RuntimeError("odd"), KeyError("odd"), av.error.InvalidDataError(1, "odd"), ValueError("odd")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(Sound, "_encoded", fail)
        assert len(overlay_of(path, tmp_path / "o.mp4")) == 1
    sound = Sound.__new__(Sound)
    with pytest.raises(OSError, match="full"), sound.forgiven():
        raise OSError(28, "full")


@pytest.mark.parametrize("copying", ["fails", "succeeds"])
def test_a_file_that_the_sound_spoils_at_its_end_is_written_without(tmp_path, monkeypatch, copying):
    """MP4 may find only in its trailer that it cannot hold the sound; the images are whole by then."""
    path = source_with_sound(tmp_path / "v.mkv", "flac", frames=8)
    finish, tries = Sound.finish, []

    def spoil(sound):
        finish(sound)
        tries.append(sound)
        if copying == "fails" or len(tries) == 1:
            raise av.error.InvalidDataError(1, "no trailer")

    monkeypatch.setattr(Sound, "finish", spoil)
    warnings = overlay_of(path, tmp_path / "o.mp4")
    assert len(list(read(tmp_path / "o.mp4"))) == 8
    assert names(tmp_path) == ["o.mp4", "v.mkv"]
    if copying == "fails":
        assert warnings == ["the sound of v.mkv is left out: no trailer"]
    else:
        assert (warnings, sound_of(tmp_path / "o.mp4")[0]) == ([], "aac")


def test_no_sound_is_left_out_without_a_word(tmp_path):
    path = source_with_sound(tmp_path / "v.mkv", "libopus", frames=8)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"OpusHead", b"0pusHead"))
    said = overlay_of(path, tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert said or container.streams.audio
    path.write_bytes(whole)
    writer = write(tmp_path / "late.mp4", [Fraction(9)], sound=path, origin=Fraction(9))
    assert writer.warnings == ["the sound of v.mkv is left out: none of it that decodes belongs to these frames"]


@pytest.mark.parametrize("shift", [-1, 1])
def test_sound_that_begins_before_or_after_the_images_keeps_its_time(tmp_path, shift):
    path = tmp_path / "v.mkv"
    with av.open(str(source_with_sound(tmp_path / "s.mp4", "aac"))) as source, av.open(str(path), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                late = (packet.stream.type == "audio") == (shift > 0)
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    assert overlay_of(path, tmp_path / "o.mp4") == []
    first, last = (sound_of(tmp_path / "o.mp4")[1][at][0] for at in (0, -1))
    assert abs(first - max(0, shift)) < Fraction(1, 10)
    assert abs(last - (Fraction(6, 5) + shift)) < Fraction(1, 5)


def test_the_first_of_several_sound_tracks_is_kept(tmp_path):
    path = tmp_path / "v.mkv"
    one, two = source_with_sound(tmp_path / "a.mkv", "flac"), source_with_sound(tmp_path / "b.mkv", "aac")
    with av.open(str(one)) as first, av.open(str(two)) as second, av.open(str(path), "w") as target:
        streams = [*first.streams, *second.streams.audio]
        copies = [target.add_stream_from_template(stream) for stream in streams]
        for container, kept in ((first, copies[:2]), (second, copies[2:])):
            for packet in container.demux(*streams[:2] if container is first else streams[2:]):
                if packet.size:
                    packet.stream = kept[packet.stream.index if container is first else 0]
                    target.mux(packet)
    assert overlay_of(path, tmp_path / "o.mp4") == []
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["flac"]


@contextmanager
def files_of_at_most(size):
    """A full disk, for files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_below(folder):
    links = list(Path("/proc/self/fd").iterdir())
    return [target for link in links if link.is_symlink() and (target := str(link.readlink())).startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
@pytest.mark.parametrize("kind", ["overlay", "overlay with sound", "labels"])
@pytest.mark.parametrize("size", [0, 10, 1000, 8000, 30_000])  # the header, a frame, the sound, the end
def test_a_full_disk_leaves_nothing_open(tmp_path, kind, size):
    random = np.random.default_rng(0)
    source = source_with_sound(tmp_path / "source.mkv", "aac") if kind == "overlay with sound" else None
    out = tmp_path / "out"
    out.mkdir()
    writer = None
    with pytest.raises(OutputError, match="expected to be able to write"), files_of_at_most(size):
        if kind == "labels":
            writer = LabelWriter(out / "v.labels.mkv", SIZE, 250, TB)
        else:
            writer = Mp4Writer(out / "v.mp4", SIZE, TB, audio=source and Audio(source))
        with writer:
            for i in range(30):
                shape = SIZE if kind == "labels" else (*SIZE, 3)
                writer.append(random.integers(0, 250, shape, dtype=np.uint8), i * TB)
    assert writer is not None  # which is still held, as by a traceback
    assert open_below(out) == []
    assert names(out) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
@pytest.mark.parametrize("error", [KeyboardInterrupt, av.error.UnknownError])
@pytest.mark.parametrize("call", ["mux", "close"])
def test_whatever_a_container_raises_nothing_stays_open(tmp_path, monkeypatch, call, error):
    class Failing:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            if name == call:
                raise error(-1, "it fails")
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    real = av.open
    monkeypatch.setattr("mpvss.outputs.container.av.open", lambda *a, **k: Failing(real(*a, **k)))

    with pytest.raises((OutputError, KeyboardInterrupt)), Mp4Writer(tmp_path / "v.mp4", SIZE, TB) as writer:
        writer.append(grey(0), 0 * TB)
    assert open_below(tmp_path) == []
    assert names(tmp_path) == []
