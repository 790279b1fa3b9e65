"""Laws of an evaluation: what it scores, that it can stop anywhere, and that it reads what it writes."""

import json
import threading
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss.cli import run as command
from mpvss.datasets import Clip, Dataset, open_dataset
from mpvss.errors import DataError, ModelError, OutputError
from mpvss.evaluation import run as evaluation
from mpvss.evaluation.label_files import class_table
from mpvss.evaluation.run_directory import RunDirectory
from mpvss.metrics import (
    ConfusionMatrix,
    region_similarity,
    video_consistency,
)
from mpvss.motion.propagators import make_propagator
from mpvss.options import EvalOptions
from mpvss.outputs import LabelReader
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import Prediction

SIZE = (48, 64)


def evaluate(*args, **kwargs):
    """The result as JSON holds it."""
    return evaluation.evaluate(*args, **kwargs).to_dict()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def labels_of(index, seed=0, classes=3):
    """Stripes that move with the picture, by 2 pixels a frame, and a void corner."""
    stripes = np.random.default_rng(seed).integers(0, classes, 40)
    columns = (np.arange(SIZE[1]) + 2 * index) // 8
    labels = np.broadcast_to(stripes[columns], SIZE).astype(np.uint8)
    labels[:6, :10] = 255
    return labels


@pytest.fixture
def folder(tmp_path):
    """Two clips of 23 and 9 frames with the classes red, green, blue and one that never comes."""
    root = tmp_path / "data"
    for clip, count in (("a b", 23), ("c", 9)):
        for frame in moving_frames(count, SIZE, seed=len(clip)):
            save(root / "images" / clip / f"{frame.index}.png", frame.rgb)
            save(root / "labels" / clip / f"{frame.index}.png", labels_of(frame.index, count))
    (root / "classes.txt").write_text("red\ngreen\nblue\nnever\n")
    return f"folder:{root}"


@pytest.fixture
def davis(tmp_path):
    for clip in ("cow", "dog"):
        for frame in moving_frames(11, SIZE, seed=len(clip) + (clip == "dog")):
            save(tmp_path / "davis" / clip / "images" / f"{frame.index:05}.jpg", frame.rgb)
            mask = np.where(labels_of(frame.index, 3 + (clip == "dog"), 2) == 1, 255, 0).astype(np.uint8)
            save(tmp_path / "davis" / clip / "masks" / f"{frame.index:05}.png", mask)
    return f"davis:{tmp_path / 'davis'}"


@pytest.fixture
def colours(monkeypatch):
    """Every model is the segmentor that tells colours apart."""
    made = []

    def load(model, *, options):
        made.append(ColourSegmentor())
        made[-1].class_names = ("Red", "blue", "green")  # in another order than the data set
        return VideoSegmenter(made[-1], make_propagator(options.propagator), options=options)

    monkeypatch.setattr(VideoSegmenter, "from_pretrained", load)
    return made


@pytest.fixture
def colour_folder(tmp_path):
    """One clip of 7 frames whose labels are random."""
    root = tmp_path / "colours"
    for frame in moving_frames(7, SIZE):
        save(root / "images" / f"{frame.index}.png", frame.rgb)
        save(root / "labels" / f"{frame.index}.png", labels_of(frame.index))
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return f"folder:{root}"


WORK = ("gmac_per_frame", "classical_flows_per_frame")


def without(result, *names):
    return {name: value for name, value in result.items() if name not in ("seconds", *names)}


def hold(data, **options):
    settings = {"propagator": "hold", "direction": "forward", "oracle": True, "interval": 4}
    return EvalOptions(data=data, **(settings | options))


# Scores


def test_the_figures_are_those_of_plain_loops(folder, tmp_path):
    interval = 4
    result = evaluate(hold(folder), tmp_path / "run")
    confusion = ConfusionMatrix(4)
    distances = [ConfusionMatrix(4) for _ in range(interval)]
    vc, correct = [], []
    for clip in open_dataset(folder).clips:
        truth = np.stack([clip.load_label(i) for i in range(len(clip))])
        found = np.stack([truth[i - i % interval] for i in range(len(clip))])
        for i in range(len(clip)):
            confusion.update(prediction=found[i], target=truth[i])
            distances[i % interval].update(prediction=found[i], target=truth[i])
        windows = len(clip) - 8
        vc.append((video_consistency(truth, found, 8), windows))
        correct.append((video_consistency(truth, found, 8, correct=True), windows))
    assert result["miou"] == confusion.miou
    assert result["wiou"] == confusion.wiou
    assert result["miou_by_distance"] == [matrix.miou for matrix in distances]
    assert result["miou_by_distance"][0] == 1
    assert list(result["iou"]) == ["red", "green", "blue", "never"]
    assert result["iou"]["never"] is None
    for name, parts in (("vc8", vc), ("correct_vc8", correct)):
        assert result[name] == pytest.approx(sum(value * n for value, n in parts) / sum(n for _, n in parts))
    assert (result["videos"], result["frames"], result["key_frames"]) == (2, 32, 9)
    assert result["gmac_per_frame"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


@pytest.mark.parametrize("direction", ["both", "forward"])
def test_interval_1_scores_1(folder, tmp_path, direction):
    result = evaluate(EvalOptions(data=folder, oracle=True, interval=1, direction=direction), tmp_path / "run")
    assert (result["miou"], result["vc8"], result["frames"]) == (1, 1, result["key_frames"])


def test_void_is_a_segment_and_its_prediction_is_wrong(tmp_path):
    root = tmp_path / "data"
    for frame in moving_frames(2, SIZE):
        save(root / "images" / f"{frame.index}.png", frame.rgb)
        label = np.full(SIZE, 255 if frame.index == 0 else 0, np.uint8)
        label[24:] = 0
        save(root / "labels" / f"{frame.index}.png", label)
    (root / "classes.txt").write_text("only\n")
    result = evaluate(hold(f"folder:{root}"), tmp_path / "run")
    assert result["iou"]["only"] == (24 + 24) / (24 + 48)


def test_flow_beats_hold_and_both_sides_beat_one(folder, tmp_path):
    scores = {
        (propagator, direction): evaluate(
            EvalOptions(data=folder, propagator=propagator, direction=direction, interval=6, oracle=True),
            tmp_path / f"{propagator}-{direction}",
        )["miou"]
        for propagator in ("hold", "auto")
        for direction in ("forward", "both")
    }
    assert scores["auto", "both"] > scores["auto", "forward"] > scores["hold", "both"] > scores["hold", "forward"]


def test_davis_is_oracle_and_leaves_key_frames_out(davis, tmp_path):
    result = evaluate(EvalOptions(data=davis, propagator="hold", direction="forward", interval=5), tmp_path / "run")
    clips = []
    for clip in open_dataset(davis).clips:
        truth = [clip.load_label(i) for i in range(len(clip))]
        clips.append(np.mean([region_similarity(truth[i - i % 5], truth[i]) for i in range(len(clip)) if i % 5]))
    assert result["j"] == pytest.approx(np.mean(clips))
    assert result["options"]["oracle"] is True


def test_a_model_is_scored_by_the_names_of_its_classes(colour_folder, colours, tmp_path):
    result = evaluate(EvalOptions(data=colour_folder, propagator="none"), tmp_path / "run")
    confusion = ConfusionMatrix(3)
    segmentor = ColourSegmentor()
    (clip,) = open_dataset(colour_folder).clips
    for frame, found in zip(
        moving_frames(7, SIZE), VideoSegmenter(segmentor, None).stream(moving_frames(7, SIZE)), strict=True
    ):
        renamed = np.array([0, 2, 1])[found.labels]
        confusion.update(prediction=renamed, target=clip.load_label(frame.index))
    assert result["miou"] == confusion.miou
    assert (result["key_frames"], result["miou_by_distance"]) == (7, [result["miou"]])


def test_class_table():
    def table(*names):
        return class_table("model", ("red", "green", "blue"), Dataset("data", names, []))

    assert table("Red", "green", "blue") == [0, 1, 2]
    assert table("blue", "red") == [1, 255, 0]
    assert table("class000", "class001", "class002") == [0, 1, 2]
    with pytest.raises(ModelError, match=r"does not know the classes of data: no class .* 1 of 2 names \(purple\)"):
        table("red", "purple")
    for names in (("blue", "red", "greenish"), ("red", "green", "RED"), ("x", "y", "z")):  # as many, yet never in order
        with pytest.raises(ModelError, match="does not know the classes of data"):
            table(*names)


def test_multiply_adds_follow_from_key_frames_and_sides(colour_folder, colours, tmp_path):
    def gmac(name, **options):
        return evaluate(EvalOptions(data=colour_folder, **options), tmp_path / name)["gmac_per_frame"]

    pixels = SIZE[0] * SIZE[1]
    padded = 64 * 64
    decoding = 4 * (3 * pixels + 4 * padded)
    warp = 4 * 3 * pixels  # one flow for all: class scores are warped, and nothing is decoded
    assert gmac("none", propagator="none") == pytest.approx(decoding / 1e9)
    forward = gmac("forward", propagator="dis", direction="forward", interval=4)
    assert forward == pytest.approx((2 * decoding + 5 * warp) / 7 / 1e9)
    both = gmac("both", propagator="dis", direction="both", interval=4)
    # Frames 1 to 3 lie between key frames, 5 and 6 after the last.
    assert both == pytest.approx((2 * decoding + 8 * warp) / 7 / 1e9)


def test_classical_flow_has_a_figure_of_its_own(colour_folder, colours, tmp_path):
    def flows(name, **options):
        result = evaluate(EvalOptions(data=colour_folder, interval=4, **options), tmp_path / name)
        return result["classical_flows_per_frame"]

    # Frames 1 to 3 and 5 to 6; in both directions one flow between neighbours serves both sides, from frame 1 on.
    assert flows("forward", propagator="dis", direction="forward") == 5 / 7
    assert flows("both", propagator="dis", direction="both") == 6 / 7
    assert flows("direct", propagator="dis", direction="both", motion="direct") == 8 / 7
    assert flows("hold", propagator="hold") == 0
    assert flows("none", propagator="none") == 0
    assert flows("oracle", propagator="dis", oracle=True) is None
    # A line of the version before says nothing of it.
    path = tmp_path / "both" / "videos.jsonl"
    line = json.loads(path.read_text())
    del line["classical_flows"]
    path.write_text(json.dumps(line) + "\n")
    assert RunDirectory(tmp_path / "both").result().classical_flows_per_frame is None


class NineteenSegmentor(ColourSegmentor):
    """Knows the first three of Cityscapes' classes, and the names of all."""

    class_names = (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
        *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    )

    def __call__(self, images):
        found = super().__call__(images)
        classes = np.zeros((len(images), 4, 20), np.float32)
        classes[..., :3], classes[..., 19] = found.class_logits[..., :3], found.class_logits[..., 3]
        return Prediction(classes, found.mask_logits, found.queries)


@pytest.fixture
def cityscapes(tmp_path, monkeypatch):
    root = tmp_path / "cityscapes"
    for number in (0, 100):
        for frame in moving_frames(30, SIZE, seed=number):
            name = f"aachen_000000_{number + frame.index:06}"
            save(root / "leftImg8bit_sequence" / "val" / "aachen" / f"{name}_leftImg8bit.png", frame.rgb)
            if frame.index == 19:
                label = np.array([7, 8, 11], np.uint8)[labels_of(0) % 3]
                save(root / "gtFine" / "val" / "aachen" / f"{name}_gtFine_labelIds.png", label)

    def load(model, *, options):
        segmentor = NineteenSegmentor()
        return VideoSegmenter(segmentor, make_propagator(options.propagator), options=options)

    monkeypatch.setattr(VideoSegmenter, "from_pretrained", load)
    return f"cityscapes:{root}"


def test_cityscapes_scores_the_labelled_frame_at_every_distance(cityscapes, tmp_path):
    options = EvalOptions(
        data=cityscapes, propagator="hold", direction="forward", interval=3, save_predictions=str(tmp_path / "saved")
    )
    result = evaluate(options, tmp_path / "run")
    matrices = [ConfusionMatrix(19) for _ in range(3)]
    for clip in open_dataset(cityscapes).clips:
        for distance, matrix in enumerate(matrices):
            frame = moving_frames(30, SIZE, seed=0 if clip.name.endswith("000019") else 100)[19 - distance]
            (found,) = VideoSegmenter(NineteenSegmentor(), None).stream([frame])
            matrix.update(prediction=found.labels, target=clip.load_label(19))
    # Held scores are bytes: a few pixels are ties.
    assert result["miou_by_distance"] == pytest.approx([matrix.miou for matrix in matrices], abs=5e-3)
    assert result["miou"] == pytest.approx(np.mean(result["miou_by_distance"]))
    assert (result["frames"], result["key_frames"], result["vc8"], result["flicker"]) == (6, 2, None, None)
    again = evaluate(EvalOptions(data=cityscapes, predictions=str(tmp_path / "saved")), tmp_path / "again")
    assert without(again, "options", *WORK) == without(result, "options", *WORK)
    both = evaluate(EvalOptions(data=cityscapes, propagator="hold", interval=3), tmp_path / "both")
    assert both["miou_by_distance"][0] == result["miou_by_distance"][0]
    assert both["miou_by_distance"][1] != result["miou_by_distance"][1]
    # One key frame and two others in every snippet; the others pay for one side, or for both.
    decoding, warp = 4 * (19 * SIZE[0] * SIZE[1] + 4 * 64 * 64), 4 * 19 * SIZE[0] * SIZE[1]
    assert result["gmac_per_frame"] == pytest.approx((decoding + 2 * warp) / 3 / 1e9)
    assert both["gmac_per_frame"] == pytest.approx((decoding + 4 * warp) / 3 / 1e9)


def test_cityscapes_counts_every_frame_of_its_snippets(cityscapes, tmp_path):
    totals = []
    options = EvalOptions(data=cityscapes, propagator="hold", direction="forward", interval=3)
    evaluate(options, tmp_path / "run", on_frame=totals.append)
    frames = sum(len(clip) for clip in open_dataset(cityscapes).clips)
    assert totals == [frames] * frames


def test_cityscapes_errors(cityscapes, tmp_path):
    with pytest.raises(DataError, match="one labelled frame"):
        evaluate(EvalOptions(data=cityscapes, oracle=True), tmp_path / "oracle")
    with pytest.raises(DataError, match="needs 24 frames before the labelled one, got 19"):
        evaluate(EvalOptions(data=cityscapes, interval=25), tmp_path / "long")


# Label files


@pytest.mark.parametrize("more", [{}, {"cuts": True, "direction": "both"}])
def test_what_is_saved_scores_the_same(folder, tmp_path, more):
    options = hold(folder, save_predictions=str(tmp_path / "saved"), **more)
    result = evaluate(options, tmp_path / "run")
    saved = EvalOptions(data=folder, predictions=str(tmp_path / "saved"), interval=4)
    again = evaluate(saved, tmp_path / "again")
    assert without(again, "options") == without(result, "options")


def test_png_files_of_another_program_score_the_same(folder, davis, tmp_path):
    for name, data, options in (("a", folder, hold(folder)), ("b", davis, EvalOptions(data=davis, interval=4))):
        result = evaluate(replace(options, save_predictions=str(tmp_path / name / "saved")), tmp_path / name / "run")
        for clip in open_dataset(data).clips:
            for index, _, labels, _ in LabelReader(tmp_path / name / "saved" / f"{clip.name}.labels.mkv"):
                stem = clip.frames[index].image_path.stem
                scale = 255 if data == davis else 1
                save(tmp_path / name / "png" / clip.name / f"{stem}.png", labels * np.uint8(scale))
        scored = EvalOptions(data=data, predictions=str(tmp_path / name / "png"), interval=4)
        again = evaluate(scored, tmp_path / name / "again")
        assert without(again, "options") == without(result, "options")
        unknown = evaluate(
            EvalOptions(data=data, predictions=str(tmp_path / name / "png")), tmp_path / name / "unknown"
        )
        assert (unknown["miou"], unknown["key_frames"], unknown["miou_by_distance"]) == (result["miou"], None, None)


def test_png_files_of_one_clip_may_lie_in_the_directory_itself(colour_folder, tmp_path):
    for index in range(7):
        save(tmp_path / "found" / f"{index}.png", labels_of(index))
    options = EvalOptions(data=colour_folder, predictions=str(tmp_path / "found"))
    assert evaluate(options, tmp_path / "run")["miou"] == 1
    save(tmp_path / "found" / "3.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"is 9x9 .width x height., expected its size 64x48"):
        evaluate(options, tmp_path / "size")
    (tmp_path / "found" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: missing prediction"):
        evaluate(options, tmp_path / "missing")


def test_the_only_label_video_is_taken_for_the_only_clip(colour_folder, tmp_path):
    saved = tmp_path / "saved"
    result = evaluate(hold(colour_folder, save_predictions=str(saved)), tmp_path / "run")
    (saved / "colours.labels.mkv").rename(saved / "another name.labels.mkv")
    (saved / "colours.json").rename(saved / "another name.json")
    options = EvalOptions(data=colour_folder, predictions=str(saved), interval=4)
    assert without(evaluate(options, tmp_path / "again"), "options") == without(result, "options")
    (saved / "second.labels.mkv").write_bytes(b"")
    with pytest.raises(DataError, match="missing prediction"):
        evaluate(options, tmp_path / "two")


def test_label_videos_are_matched_by_the_names_of_their_classes(colour_folder, tmp_path):
    """A label video says its classes: of those in another order the ids are others, and unknown ones are refused."""
    saved = tmp_path / "saved"
    result = evaluate(hold(colour_folder, save_predictions=str(saved)), tmp_path / "run")
    classes = Path(colour_folder.partition(":")[2]) / "classes.txt"
    names = classes.read_text().split()
    assert names[:3] == ["red", "green", "blue"]
    description = next(saved.glob("*.json"))
    meta = json.loads(description.read_text())
    del meta["crc32"]  # and those of the frames: as the version before wrote it, unverified
    for frame in meta["frames"]:
        del frame["crc32"]
    options = EvalOptions(data=colour_folder, predictions=str(saved), interval=4)
    meta["classes"] = [names[1], names[0], *names[2:]]
    description.write_text(json.dumps(meta))
    swapped = evaluate(options, tmp_path / "swapped")
    assert swapped["miou"] < result["miou"]
    meta["classes"] = ["reddish", *names[1:]]
    description.write_text(json.dumps(meta))
    with pytest.raises(ModelError, match=r"does not know the classes of folder.*\(red\).*no name took: reddish"):
        evaluate(options, tmp_path / "unknown")


def test_label_files_are_scored_anew_when_the_run_was_finished(colour_folder, tmp_path):
    for index in range(7):
        save(tmp_path / "found" / f"{index}.png", labels_of(index))
    options = EvalOptions(data=colour_folder, predictions=str(tmp_path / "found"))
    assert evaluate(options, tmp_path / "run")["miou"] == 1
    save(tmp_path / "found" / "3.png", np.full(SIZE, 200, np.uint8))
    assert evaluate(options, tmp_path / "run")["miou"] < 1


@pytest.mark.parametrize("names", [["cam_0100", "cam_0101", "cam_0102"], ["t10.25", "t10.4", "t11"], ["7", "8", "9"]])
@pytest.mark.parametrize("kind", ["png", "labels", "out", "numbered"])
def test_what_segment_wrote_of_a_folder_is_found_by_name_and_by_position(tmp_path, names, kind):
    root = tmp_path / "data"
    for name, frame in zip(names, moving_frames(3, SIZE), strict=True):
        save(root / "images" / f"{name}.png", frame.rgb)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    segmenter = VideoSegmenter(ColourSegmentor(), None)
    segmenter.process(root / "images", tmp_path / "out", save=("png", "labels"))
    for name in names:
        save(root / "labels" / f"{name}.png", np.asarray(Image.open(tmp_path / "out" / "images.png" / f"{name}.png")))
    if kind == "out":
        (tmp_path / "out" / "images.labels.mkv").unlink()
    if kind == "labels":  # of more images than are scored
        (root / "images" / f"{names[1]}.png").unlink()
        (root / "labels" / f"{names[1]}.png").unlink()
    if kind == "numbered":
        for index, name in enumerate(names):
            (tmp_path / "out" / "images.png" / f"{name}.png").rename(
                tmp_path / "out" / "images.png" / f"{index:06}.png"
            )
    given = tmp_path / "out" / "images.png" if kind in ("png", "numbered") else tmp_path / "out"
    result = evaluate(EvalOptions(data=f"folder:{root}", predictions=str(given)), tmp_path / "run")
    assert (result["wiou"], result["frames"]) == (1.0, 2 if kind == "labels" else 3)


def test_a_prediction_that_is_missing_among_names_is_not_taken_by_position(tmp_path):
    root = tmp_path / "data"
    for index in (1, 2, 3):
        save(root / "images" / f"{index:06}.png", moving_frames(1, SIZE)[0].rgb)
        save(root / "labels" / f"{index:06}.png", labels_of(index))
        save(tmp_path / "found" / f"{index - 1:06}.png", labels_of(index))
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(DataError, match=r"000003\.png: missing prediction"):
        evaluate(EvalOptions(data=f"folder:{root}", predictions=str(tmp_path / "found")), tmp_path / "run")


@pytest.mark.parametrize("more", [{}, {"save": True}, {"predictions": True}])
def test_pictures_of_several_sizes_in_one_clip_are_an_error(colour_folder, tmp_path, more):
    root = tmp_path / "colours"
    save(root / "images" / "7.png", np.zeros((50, 64, 3), np.uint8))
    save(root / "labels" / "7.png", np.zeros((50, 64), np.uint8))
    options = hold(colour_folder)
    if "save" in more:
        options = hold(colour_folder, save_predictions=str(tmp_path / "saved"))
    if "predictions" in more:
        options = EvalOptions(data=colour_folder, predictions=str(root / "labels"))
    with pytest.raises(DataError, match=r"7\.png: expected the size .* 64x48 .*, (?:got|found) 64x50"):
        evaluate(options, tmp_path / "run")


def test_label_files_that_do_not_fit_are_errors(folder, tmp_path):
    with pytest.raises(DataError, match="no predictions for this clip"):
        evaluate(EvalOptions(data=folder, predictions=str(tmp_path)), tmp_path / "run")
    evaluate(hold(folder, interval=6, save_predictions=str(tmp_path / "saved")), tmp_path / "six")
    with pytest.raises(DataError, match="frame 4 is 4 frames after its key frame"):
        evaluate(EvalOptions(data=folder, predictions=str(tmp_path / "saved"), interval=4), tmp_path / "four")
    (tmp_path / "saved" / "c.labels.mkv").rename(tmp_path / "saved" / "a b.labels.mkv")
    (tmp_path / "saved" / "c.json").rename(tmp_path / "saved" / "a b.json")
    with pytest.raises(DataError, match="each of 23 frames, got 9"):
        evaluate(EvalOptions(data=folder, predictions=str(tmp_path / "saved"), interval=6), tmp_path / "short")


# Runs


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(folder, tmp_path):
    whole = evaluate(hold(folder), tmp_path / "whole")
    lines = (tmp_path / "whole" / "videos.jsonl").read_bytes()
    first = lines.index(b"\n") + 1

    def kill(*_):
        raise KilledError

    with pytest.raises(KilledError):
        evaluate(hold(folder), tmp_path / "run", on_video=kill)
    kept = (tmp_path / "run" / "videos.jsonl").read_bytes()
    assert kept.count(b"\n") == 1
    # Killed again while it wrote the second line, at any byte of it.
    for torn in (b"", lines[first : first + 1], lines[first:-5], lines[first:-1]):
        (tmp_path / "run" / "videos.jsonl").write_bytes(kept + torn)
        seen = []
        result = evaluate(hold(folder), tmp_path / "run", on_video=lambda *what, seen=seen: seen.append(what))
        assert seen == [("c", 2, 2)]
        assert without(result) == without(whole)
    finished = evaluate(hold(folder), tmp_path / "run", on_video=kill)
    assert finished == result


def test_a_run_belongs_to_one_set_of_options(folder, davis, tmp_path):
    evaluate(hold(folder), tmp_path / "run")
    evaluate(hold(folder, model="does not matter with true labels"), tmp_path / "run")
    with pytest.raises(OutputError, match="other options \\(interval 4, now 5\\)"):
        evaluate(hold(folder, interval=5), tmp_path / "run")
    with pytest.raises(OutputError, match="propagator 'hold', now 'dis'"):
        evaluate(EvalOptions(data=davis), tmp_path / "run")


def test_a_damaged_run_is_an_error(folder, tmp_path):
    evaluate(hold(folder), tmp_path / "run")
    lines = (tmp_path / "run" / "videos.jsonl").read_bytes()
    (tmp_path / "run" / "videos.jsonl").write_bytes(lines[5:])
    with pytest.raises(DataError, match="line 1 is damaged"):
        evaluate(hold(folder), tmp_path / "run")


def test_no_more_pictures_are_held_than_the_interval_needs(folder, tmp_path, monkeypatch):
    alive = most = 0
    load_image = Clip.load_image

    def forget():
        nonlocal alive
        alive -= 1

    def load(clip, i):
        nonlocal alive, most
        picture = load_image(clip, i)
        weakref.finalize(picture, forget)
        alive += 1
        most = max(most, alive)
        return picture

    monkeypatch.setattr(Clip, "load_image", load)
    for direction in ("forward", "both"):
        for interval in (2, 5):
            most = 0
            options = EvalOptions(data=folder, direction=direction, interval=interval, oracle=True)
            evaluate(options, tmp_path / f"{direction}{interval}")
            assert most <= (3 if direction == "forward" else interval + 2)


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval": 0}, "interval"),
        ({"motion": "sideways"}, "motion must be one of chain, direct"),
        ({"direction": "back"}, "direction must be"),
        ({"propagator": "magic"}, "propagator must be one of auto, "),
        ({"predictions": "x", "oracle": True}, "only scored"),
        ({"dtype": "int8"}, "dtype"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_options_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        EvalOptions(data="folder:x", **wrong)


def test_nothing_to_score_is_an_error(tmp_path):
    root = tmp_path / "vspw"
    save(root / "data" / "v" / "origin" / "0.png", moving_frames(1, SIZE)[0].rgb)
    (root / "test.txt").write_text("v\n")
    with pytest.raises(DataError, match="no frame of this split has labels"):
        evaluate(EvalOptions(data=f"vspw:{root}", split="test", oracle=True), tmp_path / "run")


# Command line


def test_command_line(folder, tmp_path, capsys):
    arguments = ["eval", "--data", folder, "--oracle", "--propagator", "hold", "--direction", "forward"]
    assert command([*arguments, "--interval", "4", "--json", "-o", str(tmp_path / "run")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert without(result) == without(evaluate(hold(folder), tmp_path / "other"))
    assert command([*arguments, "--interval", "3", "-o", str(tmp_path / "run")]) == 2
    assert "interval 4, now 3" in capsys.readouterr().err
    assert command([*arguments, "-q"]) == 0
    out = capsys.readouterr().out
    assert "videos 2, frames 32, key frames 7" in out
    assert "mIoU" in out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data", "folder:nowhere"],
        ["--data", "x"],
        ["--predictions", "y"],
        ["--baseline", "z"],
    ],
)
def test_command_line_mistakes_are_one_line(folder, capsys, wrong):
    assert command(["eval", "--data", folder, "--oracle", *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mpvss: ")
    assert "Traceback" not in error


def test_time_lines_say_where_key_frames_are(folder, tmp_path):
    evaluate(hold(folder), tmp_path / "run")
    for text in (tmp_path / "run" / "videos.jsonl").read_text().splitlines():
        line = json.loads(text)
        keys, scores = line["timeline"]["key"], line["timeline"]["score"]
        assert keys == [index % 4 == 0 for index in range(len(keys))]
        assert all(score == 1 for score, is_key in zip(scores, keys, strict=True) if is_key)
        assert all(
            after < before for (before, is_key), (after, _) in pairwise(zip(scores, keys, strict=True)) if is_key
        )
        assert sum(part["confusion"]["num_classes"] == 4 for part in line["parts"]) == -(-len(keys) // 10)


@pytest.mark.parametrize(
    "name", ["clip", "frames", "key_frames", "metrics", "gmac", "seconds", "timeline", "worst", "parts"]
)
@pytest.mark.parametrize("value", [None, "x", {"a": []}, [[]]])
def test_a_line_of_another_form_is_an_error(colour_folder, tmp_path, name, value):
    """Whatever is damaged is found when a line is read, before anything is computed from it."""
    evaluate(hold(colour_folder), tmp_path / "run")
    path = tmp_path / "run" / "videos.jsonl"
    line = json.loads(path.read_text())
    if value is None:
        del line[name]
    else:
        line[name] = value
    path.write_text(json.dumps(line) + "\n")
    if (name, value) == ("clip", "x"):  # another name is a name
        assert RunDirectory(tmp_path / "run").result().videos == 1
        return
    with pytest.raises(DataError, match=r"line 1 is damaged .*delete the run and start again"):
        RunDirectory(tmp_path / "run").result()


@pytest.mark.parametrize(
    "state", [{"num_classes": 10**9}, {"_counts": {"index": [2**70], "count": [1]}}, {"_counts": 1}]
)
def test_a_metric_of_another_form_is_an_error(colour_folder, tmp_path, state):
    evaluate(hold(colour_folder), tmp_path / "run")
    path = tmp_path / "run" / "videos.jsonl"
    line = json.loads(path.read_text())
    line["metrics"]["by_distance"] |= state
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        RunDirectory(tmp_path / "run").result()


@pytest.mark.parametrize("content", [b"\xff\n", b"[" * 100_000 + b"\n", b"null\n", b"\n"])
def test_a_line_that_is_none_is_an_error(colour_folder, tmp_path, content):
    evaluate(hold(colour_folder), tmp_path / "run")
    (tmp_path / "run" / "videos.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="line 1 is damaged"):
        RunDirectory(tmp_path / "run").result()


@pytest.mark.parametrize("name", ["protocol", "classes", "clips", "options"])
def test_a_header_of_another_form_is_an_error(colour_folder, tmp_path, name):
    evaluate(hold(colour_folder), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    header = json.loads(path.read_text())
    del header[name]
    path.write_text(json.dumps(header))
    with pytest.raises(DataError, match=f"expected a run directory.*{name} is missing"):
        RunDirectory(tmp_path / "run").result()


def test_a_run_that_is_stopped_is_gone_on_with(folder, tmp_path):
    """Law: the result of a run that was stopped and gone on with is that of one run."""
    stop, seen = threading.Event(), []

    def count(frames):
        seen.append(frames)
        if len(seen) == 25:  # in the second clip
            stop.set()

    partial = evaluate(hold(folder), tmp_path / "run", on_frame=count, stop=stop)
    assert (partial["videos"], len(seen)) == (1, 25)
    assert not (tmp_path / "run" / "result.json").exists()
    whole = evaluate(hold(folder), tmp_path / "run")
    alone = evaluate(hold(folder), tmp_path / "alone")
    assert whole["videos"] == 2
    assert {k: v for k, v in whole.items() if k != "seconds"} == {k: v for k, v in alone.items() if k != "seconds"}
