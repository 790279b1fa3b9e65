"""Colours, interlaced frames and the shape of pixels: what a viewer would see is what comes in and goes out."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from mpvss.batch.listed import FrameList, fingerprint, read_listed
from mpvss.outputs import Mp4Writer
from mpvss.video import probe, read
from mpvss.video.colour import to_rgb
from mpvss.video.deinterlace import deinterlaced

PATCH = (200, 40, 40)
BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def write(path, pictures, *, pixels="yuv420p", matrix=None, tags=None, codec="libx264", audio=None, **options):
    """A video whose pixels are made with a matrix and that is tagged as ``tags`` says; 16-bit pictures are rgb48."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "1"} | options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            kind = "rgb24" if picture.dtype == np.uint8 else "rgb48le"
            frame = av.VideoFrame.from_ndarray(picture, kind).reformat(format=pixels, dst_colorspace=matrix)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def flat(colour, size=(48, 64), dtype=np.uint8):
    return np.full((*size, 3), colour, dtype)


def first(path, **options):
    with read(path, **options) as reader:
        return next(reader).rgb, reader.warnings


@pytest.mark.parametrize(
    ("size", "matrix", "tags"),
    [
        ((720, 1280), 1, {}),
        ((720, 720), 1, {}),
        ((578, 64), 1, {}),
        ((64, 1280), 1, {}),
        ((576, 720), 5, {}),
        ((480, 720), 5, {}),
        ((720, 1280), 5, {"colorspace": 5}),
        ((48, 64), 1, {"colorspace": 1}),
        ((48, 64), 9, {"colorspace": 9, "color_primaries": 1}),
    ],
)
def test_the_matrix_is_the_tagged_one_or_the_one_that_players_take(tmp_path, size, matrix, tags):
    path = write(tmp_path / "v.mp4", [flat(PATCH, size)], matrix=matrix, tags=tags)
    rgb, warnings = first(path)
    assert np.abs(rgb.astype(int) - PATCH).max() <= 4
    assert warnings == []


@pytest.mark.parametrize("matrix", [3, 8, 11, 14])
def test_a_matrix_that_cannot_be_converted_is_said_and_costs_no_frame(matrix):
    frame = av.VideoFrame.from_ndarray(flat(PATCH), "rgb24").reformat(format="yuv420p")
    frame.colorspace = matrix
    notes = []
    assert np.abs(to_rgb(frame, av.video.reformatter.VideoReformatter(), notes.append).astype(int) - PATCH).max() <= 4
    assert notes == [f"the colour matrix {matrix} (ITU-T H.273) cannot be converted: colours are as of untagged video"]


def pq(light):
    """The PQ signal of light, 1 being 203 nits."""
    power = (light * 203 / 1e4) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light):
    """The HLG signal of light on a display of 1000 nits, 1 being 203 nits."""
    display = light * 0.203
    luminance = display @ [0.2627, 0.6780, 0.0593]
    scene = display * luminance[..., None] ** (1 / 1.2 - 1)
    low = np.sqrt(3 * scene)
    return np.where(scene <= 1 / 12, low, 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


@pytest.mark.parametrize(
    ("transfer", "encode", "said"),
    [
        (16, pq, "high dynamic range (PQ) is tone-mapped"),
        (18, hlg, "high dynamic range (HLG) is tone-mapped"),
        (14, lambda light: light ** (1 / 2.4), "the wide gamut of BT.2020 is converted"),
    ],
)
@pytest.mark.parametrize("colour", [(220, 30, 30), (30, 200, 60), (60, 60, 220), (128, 128, 128), (16, 16, 16)])
def test_wide_colours_come_back_as_bt709(tmp_path, transfer, encode, said, colour):
    light = BT709_TO_BT2020 @ (np.array(colour) / 255) ** 2.4
    signal = np.round(65535 * encode(light)).astype(np.uint16)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": transfer}
    path = write(tmp_path / "v.mp4", [flat(signal, dtype=np.uint16)] * 2, pixels="yuv420p10le", matrix=9, tags=tags)
    rgb, warnings = first(path)
    assert np.abs(rgb.astype(int) - colour).max() <= 6
    assert len(warnings) == 1
    assert warnings[0].startswith(said)


@pytest.mark.parametrize("encode", [pq, hlg])
def test_sdr_white_is_nearly_white_and_brighter_light_is_still_told_apart(encode):
    levels = []
    for light in (0.5, 0.9, 1.0, 1.5, 4.0):
        signal = np.round(65535 * encode(np.full(3, light))).astype(np.uint16)
        frame = av.VideoFrame.from_ndarray(flat(signal, dtype=np.uint16), "rgb48le")
        frame.color_trc, frame.color_primaries = (16 if encode is pq else 18), 9
        levels.append(int(to_rgb(frame, av.video.reformatter.VideoReformatter(), lambda _: None)[5, 5].mean()))
    assert levels[2] >= 245
    assert all(a < b for a, b in pairwise(levels[:4]))
    assert levels[4] >= 254


# --- interlaced video


def moving(count, size=(64, 96)):
    """A white bar that moves to the right, woven of two moments a frame as an interlaced camera does."""
    pictures = []
    for index in range(count):
        picture = np.zeros((*size, 3), np.uint8)
        for field in (0, 1):
            left = 4 * (2 * index + field)
            picture[field::2, left : left + 24] = 255
        pictures.append(picture)
    return pictures


def combing(rgb):
    """How much neighbouring lines differ."""
    return float(np.abs(np.diff(rgb.astype(int), axis=0)).mean())


def interlaced(path, count=8, **options):
    return write(path, moving(count), pixels="yuv444p", **{"x264-params": "tff=1"}, **options)


def test_interlaced_frames_are_deinterlaced_one_for_one_with_their_times(tmp_path):
    path = interlaced(tmp_path / "v.mp4")
    with read(path) as auto, read(path, deinterlace="off") as off:
        pairs = list(zip(auto, off, strict=True))
    assert [a.pts for a, _ in pairs] == [b.pts for _, b in pairs]
    assert len(pairs) == 8
    assert all(combing(a.rgb) < combing(b.rgb) / 4 for a, b in pairs[1:-1])
    assert auto.warnings == ["interlaced video is deinterlaced (bwdif); --deinterlace off leaves it as it is"]
    assert off.warnings == []


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.mkv", "libx264", {"x264-params": "interlaced=1"}),  # MBAFF
        ("v.ts", "libx264", {"x264-params": "bff=1:bframes=2"}),
        ("v.mp4", "libx264", {"flags": "+ildct+ilme"}),
        ("v.ts", "mpeg2video", {"flags": "+ildct+ilme"}),
    ],
)
def test_every_way_to_interlace_is_deinterlaced(tmp_path, name, codec, options):
    path = write(tmp_path / name, moving(12), codec=codec, **options)
    with read(path) as auto, read(path, deinterlace="off") as off:
        pairs = list(zip(auto, off, strict=True))
    assert len(pairs) == 12
    assert all(combing(a.rgb) < combing(b.rgb) / 2 for a, b in pairs[1:-1])
    assert auto.warnings == ["interlaced video is deinterlaced (bwdif); --deinterlace off leaves it as it is"]


def test_progressive_frames_pass_untouched_also_between_interlaced_ones():
    frames = [av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p") for picture in moving(4)]
    assert list(map(id, deinterlaced(iter(frames), pytest.fail))) == list(map(id, frames))


@pytest.mark.parametrize("gop", [1, 3, 100])
def test_entering_an_interlaced_video_anywhere_gives_the_same_pictures(tmp_path, gop):
    path = interlaced(tmp_path / "v.mp4", g=str(gop))
    with read(path) as reader:
        frames = list(reader)
    time_base = reader.info.time_base
    listing = FrameList(
        np.array([frame.index for frame in frames]),
        np.array([frame.pts / time_base for frame in frames], dtype=np.int64),
        np.array([fingerprint(frame.rgb) for frame in frames], dtype=np.uint32),
        time_base,
    )
    for start in range(len(frames)):
        for expected, got in zip(frames[start:], read_listed(path, listing[start:]), strict=True):
            np.testing.assert_array_equal(got.rgb, expected.rgb)


def test_deinterlace_is_auto_or_off(tmp_path):
    with pytest.raises(ValueError, match="deinterlace must be one of auto, off, got 'on'"):
        read(tmp_path, deinterlace="on")


# --- the shape of pixels


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("64/45", Fraction(64, 45)),
        ("1/2", Fraction(1, 2)),
        ("0", Fraction(1)),
        ("1/65000", Fraction(1)),
        ("60000", Fraction(1)),
    ],
)
def test_the_shape_of_pixels_goes_from_source_to_overlay(tmp_path, stored, expected):
    path = write(tmp_path / "v.mp4", [flat(PATCH)], tags={"sample_aspect_ratio": Fraction(stored)})
    info = probe(path)
    assert info.sample_aspect_ratio == expected
    assert info.to_dict()["sample_aspect_ratio"] == [expected.numerator, expected.denominator]
    with Mp4Writer(
        tmp_path / "o.mp4", info.size, info.time_base, sample_aspect_ratio=info.sample_aspect_ratio
    ) as writer:
        writer.append(flat(PATCH), Fraction(0))
    assert probe(tmp_path / "o.mp4").sample_aspect_ratio == expected


def test_pixels_of_a_turned_video_are_turned(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat(PATCH), "rgb24")))
        container.mux(stream.encode(None))
    assert probe(path).sample_aspect_ratio == Fraction(3, 4)
