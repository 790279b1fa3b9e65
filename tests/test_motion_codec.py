import itertools
import re
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss.batch.listed import FrameList, fingerprint, read_listed
from mpvss.motion.codec import Codec, _filled
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.propagator import FollowsVectors
from mpvss.segmenter import VideoSegmenter
from mpvss.types import BLOCK, MotionVectors
from mpvss.video import read
from mpvss.video.vectors import _blocks
from test_video_reader import write_video

SPEED = 3
SIZE = (96, 144)
PLAIN = {"bf": 0, "refs": 1, "crf": 12}


@pytest.fixture(scope="module")
def pan():
    """The images of a scene that moves to the left by three pixels a frame."""
    return [frame.rgb for frame in moving_frames(12, SIZE, SPEED)]


@pytest.fixture(scope="module")
def video(pan, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("pan") / "pan.mp4", pan, **PLAIN)


def vectors_of(path, **options):
    with read(path, vectors=True, **options) as reader:
        return [frame.vectors for frame in reader]


def flow_between(now, then, grid=None, image_size=None):
    """The flow from a frame to the one before it, on images of this size."""
    images = [frame.rgb if image_size is None else cv2.resize(frame.rgb, image_size[::-1]) for frame in (now, then)]
    size = images[0].shape[:2]
    return Codec().flow_along(now.vectors, *images, size, grid or size)


# --- reading


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [SIZE, (90, 142)])
def test_blocks_of_a_pan_point_back_to_where_they_were(tmp_path, codec, size):
    images = [frame.rgb for frame in moving_frames(6, size, SPEED)]
    quality = PLAIN if codec == "libx264" else {"b": 4_000_000}
    first, *rest = vectors_of(write_video(tmp_path / "v.mp4", images, codec=codec, **quality))
    assert first is None
    for vectors in rest:
        assert vectors.size == size
        assert vectors.blocks.shape == (2, -(-size[0] // BLOCK), -(-size[1] // BLOCK))
        x, y = vectors.blocks[:, 2:-2, 2:-2].reshape(2, -1)
        assert np.nanmedian(x) == SPEED
        assert np.nanmedian(y) == 0
        assert np.mean(x == SPEED) > 0.6


def test_vectors_come_only_where_they_are_asked_for_and_change_no_image(video):
    with read(video) as plain, read(video, vectors=True) as reader:
        for frame, same in zip(plain, reader, strict=True):
            assert frame.vectors is None
            np.testing.assert_array_equal(frame.rgb, same.rgb)


def test_vectors_of_a_part_are_those_of_the_whole(video):
    whole = vectors_of(video)
    part = vectors_of(video, start="0.2")
    assert len(part) == 7
    for vectors, same in zip(part, whole[5:], strict=True):
        np.testing.assert_array_equal(vectors.blocks, same.blocks)


def test_chunks_have_the_vectors_of_the_whole(tmp_path, pan):
    path = write_video(tmp_path / "v.mp4", pan, g=4, **PLAIN)
    with read(path, vectors=True) as reader:
        frames = list(reader)
    listed = FrameList(
        np.arange(12), np.arange(12), np.array([fingerprint(frame.rgb) for frame in frames], np.uint32), Fraction(1, 25)
    )
    for frame, same in zip(read_listed(path, listed[6:11], vectors=True), frames[6:11], strict=True):
        assert (frame.vectors is None) == (same.vectors is None) == (frame.index % 4 == 0)
        if frame.vectors is not None:
            np.testing.assert_array_equal(frame.vectors.blocks, same.vectors.blocks)


def test_frames_that_refer_to_other_frames_have_none(tmp_path, pan):
    whole = vectors_of(write_video(tmp_path / "b.mp4", pan, bf=2, b_strategy=0, g=100))
    types = []
    with av.open(str(tmp_path / "b.mp4")) as container:
        types = [int(frame.pict_type) for frame in container.decode(video=0)]
    assert 3 in types
    for (before, kind), vectors in zip(itertools.pairwise([1, *types]), whole, strict=True):
        if kind != 2 or before == 3:
            assert vectors is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.mpg", {"codec": "mpeg2video"}),
        ("v.webm", {"codec": "libvpx-vp9"}),
        ("v.mkv", {"codec": "ffv1"}),
        ("v.mp4", {"rotation": 90, **PLAIN}),
        ("v.mp4", {"g": 1}),
    ],
)
def test_what_has_no_vectors_that_can_be_used_is_read_without(tmp_path, pan, name, options):
    path = write_video(tmp_path / name, pan[:5], **options)
    assert vectors_of(path) == [None] * 5


def test_images_have_none(tmp_path, pan):
    for number, image in enumerate(pan[:3]):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    assert vectors_of(tmp_path) == [None] * 3


def test_interlaced_frames_have_none(tmp_path, pan):
    path = write_video(tmp_path / "v.mp4", pan[:6], **{"x264-params": "tff=1", **PLAIN})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert vectors_of(path) == vectors_of(path, deinterlace="off") == [None] * 6


def test_damage_is_no_error(tmp_path, video):
    data = bytearray(video.read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(len(data) // 3, len(data), 40):
        data[place] = random.integers(256)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with read(path) as plain, read(path, vectors=True) as reader:
        for frame, same in zip(plain, reader, strict=True):
            np.testing.assert_array_equal(frame.rgb, same.rgb)


def test_a_block_of_every_shape_lies_where_the_table_says():
    kind = [("w", "u1"), ("h", "u1"), ("dst_x", "i2"), ("dst_y", "i2"), ("motion_x", "i4"), ("motion_y", "i4")]
    rows = [
        (16, 16, 8, 8, 4, -8, 4), (16, 8, 24, 4, 8, 0, 4), (8, 16, 36, 8, 12, 0, 4), (8, 8, 44, 12, 0, 6, 4),
        (16, 16, 200, 8, 4, 4, 4), (16, 16, -8, 8, 4, 4, 4), (16, 16, 8, 24, 2, 2, 2),
    ]  # fmt: skip
    blocks = _blocks(np.array(rows, [*kind, ("motion_scale", "u2")]), (24, 48))
    none = np.nan
    np.testing.assert_array_equal(blocks[0], [[1, 1, 2, 2, 3, none], [1, 1, none, none, 3, 0], [1, 1, *[none] * 4]])
    np.testing.assert_array_equal(
        blocks[1], [[-2, -2, 0, 0, 0, none], [-2, -2, none, none, 0, 1.5], [1, 1, *[none] * 4]]
    )


# --- flow


@pytest.mark.parametrize(
    ("image_size", "grid"), [(None, None), (None, (64, 96)), ((48, 72), (32, 48)), ((192, 216), (64, 72))]
)
def test_the_flow_of_a_pan_is_the_pan(video, image_size, grid):
    with read(video, vectors=True) as reader:
        frames = list(reader)
    for then, now in itertools.pairwise(frames):
        flow = flow_between(now, then, grid, image_size)
        shown = SPEED * flow.shape[-1] / SIZE[1]
        inside = flow[0][:, 8:-8, 8:-8]
        assert np.median(inside[0]) == pytest.approx(shown, rel=0.02)
        assert np.mean(np.abs(inside[0] - shown) < 0.25 * shown) > 0.8
        assert np.abs(np.median(inside[1])) < 1e-6


@pytest.mark.parametrize("size", [(90, 142), (97, 133)])
def test_the_flow_of_an_image_that_ends_within_a_block(size):
    scene = moving_frames(2, size, SPEED)
    blocks = np.zeros((2, -(-size[0] // BLOCK), -(-size[1] // BLOCK)), np.float32)
    blocks[0] = np.arange(blocks.shape[2]) * 1e-3 + SPEED
    flow = Codec().flow_along(MotionVectors(blocks, size), scene[1].rgb, scene[0].rgb, size, size)
    centres = (np.arange(size[1]) + 0.5) / BLOCK - 0.5
    expected = np.clip(centres, 0, blocks.shape[2] - 1) * 1e-3 + SPEED
    np.testing.assert_allclose(flow[0, 0], np.broadcast_to(expected, size), atol=1e-4)


def test_the_flow_covers_padding():
    scene = moving_frames(2, SIZE, SPEED)
    blocks = np.zeros((2, 12, 18), np.float32)
    blocks[0] = SPEED
    flow = Codec().flow_along(MotionVectors(blocks, SIZE), scene[1].rgb, scene[0].rgb, (128, 160), (64, 80))
    np.testing.assert_allclose(flow[0, 0], SPEED / 2, atol=1e-5)


def test_what_stands_still_has_no_flow(tmp_path, pan):
    path = write_video(tmp_path / "v.mp4", [pan[0]] * 5, **PLAIN)
    with read(path, vectors=True) as reader:
        frames = list(reader)
    for then, now in itertools.pairwise(frames):
        np.testing.assert_array_equal(flow_between(now, then), 0)


def test_blocks_without_a_vector_take_the_nearest():
    blocks = np.full((2, 5, 9), np.nan, np.float32)
    blocks[:, 2, 1], blocks[:, 2, 7] = (1, 2), (3, 4)
    filled = _filled(blocks, ~np.isnan(blocks[0]))
    np.testing.assert_array_equal(filled[0, :, :4], 1)
    np.testing.assert_array_equal(filled[1, :, 5:], 4)


def test_vectors_that_go_two_frames_back_are_halved():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[0], SIZE[1] + SPEED, 3), dtype=np.uint8)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    then, now = (np.ascontiguousarray(wide[:, first : first + SIZE[1]]) for first in (0, SPEED))
    once, twice = (np.zeros((2, 12, 18), np.float32) for _ in range(2))
    once[0], twice[0] = SPEED, 2 * SPEED
    twice[0, :, :9] = SPEED
    flows = [Codec().flow_along(MotionVectors(blocks, SIZE), now, then, SIZE, SIZE) for blocks in (once, twice)]
    np.testing.assert_array_equal(flows[0][0, 0, :, 20:-20], SPEED)
    np.testing.assert_allclose(flows[1][0, 0, :, 20:60], SPEED)
    assert np.mean(flows[1][0, 0, :, 84:124] == SPEED) > 0.95


@pytest.mark.parametrize("case", ["few", "wrong"])
def test_vectors_that_are_few_or_wrong_are_not_followed(case):
    random = np.random.default_rng(0)
    now, then = random.integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    blocks = np.zeros((2, 12, 18), np.float32)
    if case == "few":
        then = now
        blocks[:, 3:] = np.nan
    assert Codec().flow_along(MotionVectors(blocks, SIZE), now, then, SIZE, SIZE) is None


def test_without_vectors_it_is_dis(pan):
    expected, flow = (each.estimate_flow(pan[1][None], pan[0][None], None, SIZE, (64, 96)) for each in (Dis(), Codec()))
    np.testing.assert_array_equal(flow, expected)


# --- a whole video


def segmenter_with(propagator, **options):
    return VideoSegmenter(ColourSegmentor(), propagator, interval=5, cuts=False, **options)


def labels_of(session, frames):
    with session:
        results = [result for frame in frames for result in session.push(frame)] + session.finish()
    return [result.labels for result in results]


@pytest.mark.parametrize(("direction", "keys"), [("forward", 3), ("both", 3)])
def test_labels_of_a_pan_are_nearly_those_of_dis(video, direction, keys):
    with read(video, vectors=True) as reader:
        frames = list(reader)
    session = segmenter_with(Codec()).session(direction=direction)
    ours = labels_of(session, frames)
    others = labels_of(segmenter_with(Dis()).session(direction=direction), frames)
    repeated = labels_of(segmenter_with(Hold()).session(direction=direction), frames)
    near = [(one == other).mean() for one, other in zip(ours, others, strict=True)]
    assert min(near) > 0.97
    assert min((one == other).mean() for one, other in zip(repeated, others, strict=True)) < min(near)
    # Forward, key frames need no flow; with both directions one flow serves a pair of neighbours.
    assert session.flow_counts == {"codec": 12 - keys if direction == "forward" else 11}


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_device_carrier_follows_vectors_as_well(video, direction, monkeypatch):
    monkeypatch.setattr("mpvss.engine.carriers.class_scores.ClassScoreCarrier._top", lambda *_: None)
    from test_engine_device import Colours, alike, run

    with read(video, vectors=True) as reader:
        frames = list(reader)
    alike(*(run(Colours(), Codec(), frames, carrier, direction) for carrier in (None, "class_scores")))


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("case", ["images", "webm", "stride", "direct", "rotated"])
def test_without_vectors_labels_and_counts_are_those_of_dis(tmp_path, pan, video, case, direction, caplog):
    source, options = video, {"direction": direction}
    if case == "images":
        source = tmp_path
        for number, image in enumerate(pan):
            Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    elif case == "webm":
        source = write_video(tmp_path / "v.webm", pan, codec="libvpx-vp9")
    elif case == "rotated":
        source = write_video(tmp_path / "v.mp4", pan, rotation=180, **PLAIN)
    elif case == "stride":
        options["stride"] = 2
    else:
        options["motion"], options["start"], options["end"] = "direct", 0, "0.2"
    ours = [result.labels for result in segmenter_with(Codec()).stream(source, **options)]
    others = [result.labels for result in segmenter_with(Dis()).stream(source, **options)]
    if case == "direct":  # only the frame after the key frame has vectors to it
        assert all((one == other).mean() > 0.97 for one, other in zip(ours[:2], others[:2], strict=True))
        ours, others = ours[2:], others[2:]
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [record.getMessage() for record in caplog.records if "by dis" in record.getMessage()]
    assert len(lines) == 1
    assert re.search(r"propagator codec: (\d+) of \1 flows by dis" if case != "direct" else "3 of 4 flows", lines[0])


def test_counts_are_in_the_summary(video, tmp_path, pan):
    output = {"save": ("labels",), "direction": "forward"}
    whole = segmenter_with(Codec()).process(video, tmp_path / "whole", **output)
    assert whole.to_dict()["flows"] == {"codec": 9}
    mixed = write_video(tmp_path / "mixed.mp4", pan, g=7, **PLAIN)  # frame 7 is an I frame, and no key frame
    assert segmenter_with(Codec()).process(mixed, tmp_path / "mixed", **output).flows == {"codec": 8, "dis": 1}
    assert "flows" not in segmenter_with(Dis()).process(video, tmp_path / "dis", **output).to_dict()


def test_propagator_codec_is_made_by_its_name():
    segmenter = segmenter_with(Hold()).with_options(propagator="codec")
    assert isinstance(segmenter.propagator, Codec)
    assert isinstance(segmenter.propagator, FollowsVectors)
    assert not isinstance(Dis(), FollowsVectors)
    assert segmenter.describe("forward")["options"]["propagator"] == "codec"


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_chunks_join_to_the_bytes_of_one_run(tmp_path, pan, direction):
    from test_batch import in_chunks, tree

    path = write_video(tmp_path / "clip.mp4", pan * 2, g=6, **PLAIN)
    segmenter, options = segmenter_with(Codec()), {"save": ("labels",)}
    whole = segmenter.process(path, tmp_path / "whole", **options, direction=direction)
    assert whole.flows["codec"] > 8
    plan, result = in_chunks(segmenter, path, tmp_path / "parts", options, direction, 6, order=-1)
    assert plan.chunks >= 3
    assert result == {name.removeprefix("clip"): content for name, content in tree(tmp_path / "whole").items()}


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_part_is_labelled_as_its_frames_alone(video, direction):
    with read(video, vectors=True) as reader:
        frames = list(reader)[5:]
    part = [result.labels for result in segmenter_with(Codec()).stream(video, start="0.2", direction=direction)]
    alone = labels_of(segmenter_with(Codec()).session(direction=direction), frames)
    for one, other in zip(part, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frames_that_wait_in_a_file_keep_their_vectors(video, monkeypatch):
    expected = [result.labels for result in segmenter_with(Codec()).stream(video, direction="both")]
    monkeypatch.setattr("mpvss.engine.spill.MOST_HELD", 0)
    for one, result in zip(expected, segmenter_with(Codec()).stream(video, direction="both"), strict=True):
        np.testing.assert_array_equal(one, result.labels)


def test_a_frame_that_was_left_out_is_no_neighbour(video):
    """Vectors point to the frame with the index before; where that was not pushed, the images are searched."""
    with read(video, vectors=True) as reader:
        frames = list(reader)
    session = segmenter_with(Codec()).session(direction="forward")
    labels_of(session, [*frames[:2], *frames[3:5]])
    assert session.flow_counts == {"codec": 2, "dis": 1}
