"""Laws of filling a video from masks: what was given comes back, and what lies between follows the picture."""

import json
import threading

import av
import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss.annotate import Filler, propagate
from mpvss.cli import run
from mpvss.datasets.masks import find_masks
from mpvss.engine.decode import decode
from mpvss.engine.spill import Spill
from mpvss.engine.state import WarpedPrediction
from mpvss.engine.true_labels import oracle_rule, true_state
from mpvss.errors import DataError, OutputError
from mpvss.motion.dis import Dis, Hold
from mpvss.outputs import LabelReader
from mpvss.segmentors.protocol import InputRule, Prediction, prepare

SIZE = (48, 64)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def video(tmp_path):
    """A folder of 12 pictures of a scene that moves by 2 pixels a frame."""
    for frame in moving_frames(12, SIZE):
        save(tmp_path / "video" / f"{frame.index:03}.png", frame.rgb)
    return tmp_path / "video"


@pytest.fixture
def still(tmp_path):
    """A folder of 12 times the same picture."""
    for index in range(12):
        save(tmp_path / "still" / f"{index:03}.png", moving_frames(1, SIZE)[0].rgb)
    return tmp_path / "still"


def noise(ids, seed=0):
    ids = np.asarray(ids)
    chosen = np.random.default_rng(seed).integers(0, len(ids), SIZE)
    return ids[chosen].astype(np.uint8 if ids.max() < 256 else np.uint16)


def flat(id_):
    return np.full(SIZE, id_, np.uint8 if id_ < 256 else np.uint16)


def given(folder, masks):
    for name, mask in masks.items():
        save(folder / f"{name}.png", mask)
    return folder


def filled(video, masks, out, filler=None, **options):
    summary = propagate(video, masks, out, filler or Filler(Hold()), **options)
    frames = list(LabelReader(summary.outputs["labels"]))
    assert [frame[0] for frame in frames] == list(range(12))
    return summary, [frame[2] for frame in frames], [frame[3] for frame in frames]


# True masks as key states


@pytest.mark.parametrize("multiple", [1, 32])
def test_a_true_state_decodes_to_its_labels(multiple):
    labels = noise([0, 3, 7, 255])
    frame = moving_frames(1, SIZE)[0]
    image, geometry = prepare(frame, InputRule(multiple=multiple))
    ids = np.array([0, 1, 3, 7, 255])
    state = true_state(labels, ids, frame, image, geometry)
    assert len(state.mask_logits) == 4  # one query for each id that is there
    found, _ = decode([WarpedPrediction(state.class_logits, state.mask_logits)], geometry)
    np.testing.assert_array_equal(ids[found], labels)


def test_a_true_state_needs_the_frame_at_its_own_size_and_known_ids():
    frame = moving_frames(1, SIZE)[0]
    image, geometry = prepare(frame, InputRule(short_side=32))
    with pytest.raises(ValueError, match="own size"):
        true_state(flat(1), np.array([1]), frame, image, geometry)
    image, geometry = prepare(frame, InputRule(multiple=1))
    with pytest.raises(ValueError, match="labels hold 2"):
        true_state(flat(2), np.array([1]), frame, image, geometry)


class Halves:
    """A segmentor of three queries: nothing, the right half, the left half."""

    name = "halves"
    class_names = ("a",)
    rule = InputRule(short_side=16)

    def __call__(self, images):
        masks = np.full((1, 3, 12, 16), -5, np.float32)
        masks[:, 1, :, 8:] = 5
        masks[:, 2, :, :8] = 5
        queries = np.arange(3, dtype=np.float32)[None, :, None] * np.ones((1, 3, 4), np.float32)
        return Prediction(np.zeros((1, 3, 2), np.float32), masks, queries)


class ByQuery:
    """Query q moves by 2 q pixels to the left; it wants to see all three queries."""

    name = "query"
    per_query = True

    def estimate_flow(self, current, other, queries, padded, grid, active=None):
        assert queries.shape == (1, 3, 4)
        shift = 2 * queries[0, :, 0][active]
        flow = np.zeros((1, len(shift), 2, *grid), np.float32)
        flow[0, :, 0] = shift[:, None, None]
        return flow


def test_each_segment_moves_with_the_query_that_overlaps_it_best(still, tmp_path):
    labels = flat(10)
    labels[:, 32:] = 20
    labels[:4, 32:] = 30  # the same query as the rest of its half
    masks = given(tmp_path / "masks", {"0": labels})
    _, found, _ = filled(still, masks, tmp_path / "out", Filler(ByQuery(), "direct", "forward", Halves()))
    # The left half moves by 4, the right one by 2; where both have left, the picture is told apart at the border.
    np.testing.assert_array_equal(found[1][:, :28], 10)
    np.testing.assert_array_equal(found[1][4:, 31:], 20)
    np.testing.assert_array_equal(found[1][:4, 31:], 30)
    frame = moving_frames(1, SIZE)[0]
    image, geometry = prepare(frame, oracle_rule(Halves()))
    state = true_state(labels, np.array([10, 20, 30]), frame, image, geometry, segmentor=Halves())
    assert state.active.tolist() == [2, 1, 1]


# Filling


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        ([0, 1, 2], np.uint8),
        ([5, 254, 255], np.uint16),
        ([0, 7], np.uint8),
        ([0, 256, 7], np.uint16),
        ([0, 255, 65535, 9], np.uint16),
    ],
)
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_given_masks_come_back_bit_for_bit(video, tmp_path, ids, dtype, direction):
    masks = {"0": noise(ids, 1), "0003": noise(ids, 2), "4": noise(ids, 3), "9": noise(ids[:2], 4)}
    folder = given(tmp_path / "masks", masks)
    summary, found, keys = filled(
        video, folder, tmp_path / "out", Filler(Dis(), direction=direction), save=("labels", "png", "overlay")
    )
    assert [index for index, key in enumerate(keys) if key] == [0, 3, 4, 9]
    assert (summary.frames, summary.key_frames, summary.unlabelled) == (12, 4, 0)
    for name, mask in masks.items():
        assert found[int(name)].dtype == dtype
        np.testing.assert_array_equal(found[int(name)], mask)
    for index, labels in enumerate(found):
        assert set(np.unique(labels)) <= set(ids)
        written = np.array(Image.open(tmp_path / "out" / "video.png" / f"{index:03}.png"))
        np.testing.assert_array_equal(written, labels)
    assert (tmp_path / "out" / "video.overlay.mp4").stat().st_size > 0


def test_forward_hold_repeats_the_mask_before_over_uneven_gaps(video, tmp_path):
    masks = given(tmp_path / "masks", {"2": flat(7), "3": flat(700), "8": noise([1, 2])})
    summary, found, _ = filled(video, masks, tmp_path / "out", Filler(Hold(), direction="forward"))
    assert summary.unlabelled == 2
    expected = [flat(65535)] * 2 + [flat(7)] + [flat(700)] * 5 + [noise([1, 2])] * 4
    for labels, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, wanted)


def test_both_fills_what_lies_before_the_first_mask_and_takes_the_nearer_one_between(still, tmp_path):
    masks = given(tmp_path / "masks", {"3": flat(1), "9": flat(2)})
    summary, found, _ = filled(still, masks, tmp_path / "out")
    assert summary.unlabelled == 0
    assert [int(labels[0, 0]) for labels in found[:6]] == [1] * 6
    assert [int(labels[0, 0]) for labels in found[7:]] == [2] * 5  # frame 6 is as near to one as to the other
    assert all(len(np.unique(labels)) == 1 for labels in found)


@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize("motion", ["chain", "direct"])
def test_labels_follow_the_picture_in_both_directions_of_time(video, tmp_path, direction, motion):
    def stripe(index):
        labels = flat(3)
        labels[:, max(0, 30 - 2 * index) : 42 - 2 * index] = 9
        return labels

    def overlap(labels, wanted):
        both = (labels == 9) & (wanted == 9)
        return both.sum() / ((labels == 9) | (wanted == 9)).sum()

    masks = given(tmp_path / "masks", {"4": stripe(4)})
    _, moved, _ = filled(video, masks, tmp_path / "out", Filler(Dis(), motion, direction))
    _, held, _ = filled(video, masks, tmp_path / "held", Filler(Hold(), motion, direction))
    for index in [*range(5, 9), *(range(4) if direction == "both" else ())]:
        assert overlap(moved[index], stripe(index)) > max(0.75, overlap(held[index], stripe(index)))


@pytest.mark.parametrize("motion", ["chain", "direct"])
def test_a_wide_gap_holds_a_bounded_number_of_bytes_and_fills_it_alike(video, tmp_path, motion, monkeypatch, caplog):
    masks = given(tmp_path / "masks", {"5": noise([1, 2]), "11": noise([2, 300], 1)})
    _, expected, _ = filled(video, masks, tmp_path / "out", Filler(Dis(), motion))
    held = []

    class Held(Spill):
        def keep(self, array):
            kept = super().keep(array)
            held.append((self.held, kept is array))
            return kept

    limit = 2 * 3 * SIZE[0] * SIZE[1]
    monkeypatch.setattr("mpvss.engine.spill.MOST_HELD", limit)
    for module in ("annotate", "engine.session", "engine.carriers.carrier"):
        monkeypatch.setattr(f"mpvss.{module}.Spill", Held)
    _, found, _ = filled(video, masks, tmp_path / "spilled", Filler(Dis(), motion))
    assert max(held)[0] <= limit and sum(not kept for _, kept in held) > 20
    assert "frames that wait for the next mask take more than" in caplog.text
    for labels, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, wanted)


@pytest.mark.parametrize("wrong", [{"motion": "chian"}, {"direction": "backward"}])
def test_a_filler_that_there_is_not_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be one of"):
        Filler(Hold(), **wrong)


def test_a_gap_knows_only_the_ids_around_it(video, tmp_path):
    masks = given(tmp_path / "masks", {"0": noise([1, 2]), "5": noise([2, 3], 1), "11": noise([4], 2)})
    _, found, _ = filled(video, masks, tmp_path / "out", Filler(Dis()))
    for index in range(12):
        around = {1, 2, 3} if index < 5 else {2, 3, 4}
        assert set(np.unique(found[index])) <= around


def test_the_description_names_the_ids(video, tmp_path):
    propagate(video, given(tmp_path / "masks", {"1": flat(3)}), tmp_path / "out", Filler(Hold()))
    meta = json.loads((tmp_path / "out" / "video.json").read_text())
    assert meta["classes"] == ["0", "1", "2", "3"]
    assert (meta["ignore"], meta["options"]["masks"]) == (255, [1])
    assert [frame["key"] for frame in meta["frames"]] == [index == 1 for index in range(12)]


# Forms of masks


def overlay_of(out, index):
    with av.open(str(next(out.glob("*.overlay.mp4")))) as container:
        return next(f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i == index)


def stored_as(form, mask):
    """A mask of 0 and 255 in one of the forms that programs write."""
    if form == "1":
        return Image.fromarray(mask > 0)
    if form in ("RGB", "RGBA"):
        return Image.fromarray(mask).convert(form)
    image = Image.fromarray((mask > 0).astype(np.uint8) if form == "P" else mask)
    if form == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    return image


@pytest.mark.parametrize("form", ["L", "1", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_two_values_are_background_and_object(still, tmp_path, form, direction):
    mask = flat(0)
    mask[8:40, 8:40] = 255
    (tmp_path / "masks").mkdir()
    stored_as(form, mask).save(tmp_path / "masks" / "3.png")
    filler = Filler(Hold(), direction=direction)
    _, found, _ = filled(still, tmp_path / "masks", tmp_path / "out", filler, save=("labels", "png", "overlay"))
    meta = json.loads((tmp_path / "out" / "still.json").read_text())
    assert meta["classes"] == ["background", "object"]
    unreached = range(3) if direction == "forward" else ()
    plain = moving_frames(1, SIZE)[0].rgb.astype(int)
    for index, labels in enumerate(found):
        if index in unreached:
            assert (labels == meta["ignore"]).all()
        else:
            np.testing.assert_array_equal(labels, mask > 0)
        written = np.array(Image.open(tmp_path / "out" / "still.png" / f"{index:03}.png"))
        np.testing.assert_array_equal(written, labels)
        tinted = np.abs(overlay_of(tmp_path / "out", index).astype(int) - plain).mean(2)
        assert tinted[:, 44:].mean() < 20
        assert (tinted[12:36, 12:36].mean() > 40) == (index not in unreached)


@pytest.mark.parametrize("values", [[0, 255], [255], [0, 1, 255], [254, 255], [1, 2], [0, 300], [0, 65534]])
def test_the_id_for_no_label_is_never_one_in_use(still, tmp_path, values):
    masks = given(tmp_path / "masks", {"5": noise(values)})
    _, found, _ = filled(still, masks, tmp_path / "out", Filler(Hold(), direction="forward"))
    ignore = json.loads((tmp_path / "out" / "still.json").read_text())["ignore"]
    assert all((labels == ignore).all() for labels in found[:5])
    assert not any((labels == ignore).any() for labels in found[5:])
    assert ignore not in values or values in ([0, 255], [255])  # which become 0 and 1


@pytest.mark.parametrize(
    "names",
    [
        ["frame_000002", "frame_000007"],
        ["clip2_000002_mask", "clip2_000007_mask"],
        ["2", "0007"],
        ["seg-2", "seg-7"],
        ["x_v3_f2", "f7"],
    ],
)
def test_masks_are_named_by_frame_number_with_or_without_a_prefix(video, tmp_path, names):
    masks = given(tmp_path / "masks", {names[0]: flat(1), names[1]: flat(2)})
    _, _, keys = filled(video, masks, tmp_path / "out")
    assert [index for index, key in enumerate(keys) if key] == [2, 7]


def test_masks_are_named_as_the_images_of_a_folder(tmp_path, caplog):
    for index, name in enumerate(["cam_0100", "cam_0101.5", "cam_0103", "cam_0104"]):
        save(tmp_path / "cam" / f"{name}.png", moving_frames(4, SIZE)[index].rgb)
        save(tmp_path / "numbers" / f"{index + 1}.jpg", moving_frames(4, SIZE)[index].rgb)
    masks = given(tmp_path / "masks", {"cam_0101.5": flat(1), "cam_0104": flat(2)})
    summary = propagate(tmp_path / "cam", masks, tmp_path / "out", Filler(Hold()))
    assert [key for *_, key in LabelReader(summary.outputs["labels"])] == [False, True, False, True]
    assert (tmp_path / "out" / "cam.png" / "cam_0103.png").is_file()
    masks = given(tmp_path / "more", {"1": flat(1), "4": flat(2)})
    summary = propagate(tmp_path / "numbers", masks, tmp_path / "out", Filler(Hold()))
    assert [key for *_, key in LabelReader(summary.outputs["labels"])] == [True, False, False, True]
    assert "masks belong to the images of their names: 1.png to frame 0" in caplog.text


@pytest.mark.parametrize("place", ["beside", "above", "cvat"])
@pytest.mark.parametrize("form", ["RGB", "P"])
def test_colours_are_read_by_a_labelmap(still, tmp_path, place, form):
    export = tmp_path / "export"
    folder = export / ("SegmentationClass" if place != "beside" else "")
    colours = np.full((*SIZE, 3), 0, np.uint8)
    colours[:, 20:40] = (128, 0, 0)
    colours[:, 40:] = (0, 60, 100)
    image = Image.fromarray(colours)
    save(folder / "frame_000004.png", colours)
    if form == "P":  # in an order of its own
        image.quantize().save(folder / "frame_000004.png")
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbus: stop:0,60,100::\ncar:128,0,0:a,b:\n"
    (export / "labelmap.txt").write_text(text)
    given_folder = export if place == "cvat" else folder
    _, found, _ = filled(still, given_folder, tmp_path / "out", save=("labels", "overlay"))
    assert json.loads((tmp_path / "out" / "still.json").read_text())["classes"] == ["background", "bus: stop", "car"]
    for labels in found:
        assert [int(labels[0, x]) for x in (0, 30, 50)] == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0,0,0::", r"got 9,0,0 \(red,green,blue\); add a line name:red,green,blue:: for it"),
        ("a:0,0,0::\nb 9,0,0", "line 2: expected name:red,green,blue::, got 'b 9,0,0'"),
        ("a:0,0,300::", "line 1: expected name:red,green,blue::"),
        ("a:9,0,0::\nb:9,0,0::", "line 2: the colour of 'b' is that of an earlier line"),
        ("# nothing", "expected a line name:red,green,blue:: for each class, got none"),
    ],
)
def test_a_labelmap_that_does_not_fit(still, tmp_path, text, message):
    masks = given(tmp_path / "masks", {"0": np.full((*SIZE, 3), (9, 0, 0), np.uint8)})
    (masks / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        propagate(still, masks, tmp_path / "out", Filler(Hold()))


# Errors


def test_masks_are_checked_before_anything_is_written(video, tmp_path):
    colour = np.full((*SIZE, 3), (9, 0, 0), np.uint8)
    wrong = {
        "no masks": {},
        "got 8x8": {"1": np.zeros((8, 8), np.uint8)},
        "colours are not class ids": {"1": colour},
        "second mask for frame 1": {"1": flat(0), "01": flat(0)},
        "by its frame number": {"first": flat(0)},
    }
    for number, (message, masks) in enumerate(wrong.items()):
        folder = tmp_path / f"masks-{number}"
        folder.mkdir()
        given(folder, masks)
        with pytest.raises(DataError, match=message):
            propagate(video, folder, tmp_path / "out", Filler(Hold()))
    folder = given(tmp_path / "torn", {"2": noise(range(9))})
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"2\.png: cannot read"):
        propagate(video, folder, tmp_path / "out", Filler(Hold()))
    with pytest.raises(DataError, match="expected a folder of masks"):
        find_masks(tmp_path / "nowhere", SIZE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [12, 500])
def test_a_mask_beyond_the_end_is_an_error_that_leaves_nothing_behind(video, tmp_path, number):
    masks = given(tmp_path / "masks", {"0": flat(1), str(number): flat(1)})
    with pytest.raises(DataError, match=f"frame {number} is beyond the end of the video, whose last frame is 11"):
        propagate(video, masks, tmp_path / "out", Filler(Hold()))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mask_for_a_frame_that_cannot_be_read_is_an_error(video, tmp_path):
    (video / "004.png").write_bytes(b"no picture")
    masks = given(tmp_path / "masks", {"0": flat(1), "4": flat(1)})
    with pytest.raises(DataError, match="frame 4 cannot be read"):
        propagate(video, masks, tmp_path / "out", Filler(Hold()))


def test_outputs_are_replaced_only_when_that_is_asked_for(video, tmp_path):
    masks = given(tmp_path / "masks", {"0": flat(1)})
    filled(video, masks, tmp_path / "out")
    given(tmp_path / "masks", {"0": flat(2)})
    with pytest.raises(OutputError, match="exists already"):
        propagate(video, masks, tmp_path / "out", Filler(Hold()))
    _, found, _ = filled(video, masks, tmp_path / "out", overwrite=True)
    assert found[0][0, 0] == 2


# Command line


def test_command_line(video, tmp_path, capsys):
    masks = given(tmp_path / "masks", {"0": noise([3, 300]), "7": noise([3, 300], 5)})
    arguments = ["propagate", str(video), "--masks", str(masks), "-o", str(tmp_path / "out"), "-q"]
    assert run([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["outputs"]) == {"meta", "labels", "png"}
    frames = list(LabelReader(summary["outputs"]["labels"]))
    np.testing.assert_array_equal(frames[7][2], noise([3, 300], 5))
    assert run(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*arguments, "--overwrite", "--direction", "forward", "--motion", "direct", "--save", "overlay"]) == 0
    assert "12 frames, 2 of them" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [["--propagator", "none"], ["--save", "gif"], ["--propagator", "query"], ["--masks", "nowhere"]]
)
def test_command_line_mistakes_are_one_line(video, tmp_path, capsys, wrong):
    masks = given(tmp_path / "masks", {"0": flat(1)})
    assert run(["propagate", str(video), "--masks", str(masks), "-o", str(tmp_path / "out"), *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mpvss: ")
    assert "Traceback" not in error


def test_oracle_rule_keeps_the_size_of_the_frame():
    assert oracle_rule(None).fit((33, 47)).padded == (33, 47)
    geometry = oracle_rule(ColourSegmentor(short_side=16)).fit((33, 47))
    assert (geometry.resized, geometry.padded) == ((33, 47), (64, 64))


def test_a_video_that_is_stopped_keeps_what_came(video, tmp_path):
    stop = threading.Event()
    masks = given(tmp_path / "masks", {"0": noise([3, 300])})
    summary = propagate(
        video, masks, tmp_path / "out", Filler(Hold(), direction="forward"), stop=stop,
        on_frame=lambda result: stop.set() if result.index == 4 else None,
    )  # fmt: skip
    assert (summary.stopped, summary.frames) == (True, 5)
    assert len(list(LabelReader(summary.outputs["labels"]))) == 5


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("numbers", [(0, 9), (8,)])
def test_frames_that_wait_for_a_mask_that_does_not_come_are_kept(video, tmp_path, direction, numbers):
    """Law: whatever a stop leaves undone, every frame that was taken is written, once."""

    class AfterFive:
        asked = 0

        def is_set(self):
            AfterFive.asked += 1
            return AfterFive.asked > 5

    masks = given(tmp_path / "masks", {str(number): noise([3, 300]) for number in numbers})
    summary = propagate(video, masks, tmp_path / "out", Filler(Hold(), direction=direction), stop=AfterFive())
    frames = list(LabelReader(summary.outputs["labels"]))
    assert [index for index, *_ in frames] == list(range(5))
    assert summary.frames == 5
    filled = numbers[0] == 0
    assert all((labels != np.iinfo(labels.dtype).max).any() == filled for _, _, labels, _ in frames)
