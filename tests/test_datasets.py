import json
import struct
import subprocess
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from mpvss.datasets import open_dataset, read_image, read_label
from mpvss.errors import DataError

SIZE = (4, 6)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_image(path, size=SIZE, value=90):
    write(path, np.full((*size, 3), value, np.uint8))


def write_label(path, value=1, size=SIZE):
    """A label of one value, or of a row of values repeated."""
    write(path, np.broadcast_to(np.asarray(value, np.uint8), size).copy())


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def ids(clip, i=0):
    return sorted(set(clip.load_label(i).ravel().tolist()))


def names(dataset):
    return {clip.name: len(clip) for clip in dataset.clips}


# VSPW


@pytest.fixture
def vspw(tmp_path):
    for video, frames in {"1_a": 3, "10_b": 2, "7_c": 1}.items():
        for frame in range(frames):
            write_image(tmp_path / "data" / video / "origin" / f"{frame:08}.jpg")
            write_label(tmp_path / "data" / video / "mask" / f"{frame:08}.png", [0, 1, 2, 124, 255, 255])
    write_text(tmp_path / "val.txt", "10_b\n1_a")
    write_text(tmp_path / "train.txt", "7_c\r\n\r\n")
    write_text(tmp_path / "test.txt", "9_t\n")
    for frame in range(2):
        write_image(tmp_path / "data" / "9_t" / "origin" / f"{frame:08}.jpg")
    return tmp_path


def test_vspw(vspw):
    dataset = open_dataset(f"vspw:{vspw}")
    assert names(dataset) == {"10_b": 2, "1_a": 3}
    assert (dataset.num_classes, dataset.ignore, dataset.protocol) == (124, 255, "semantic")
    assert (dataset.class_names[0], dataset.class_names[123]) == ("class000", "class123")
    assert dataset.palette.shape == (124, 3)
    clip = dataset.clips[0]
    assert clip.fps == Fraction(15)
    assert clip.load_label(0)[0].tolist() == [255, 0, 1, 123, 255, 255]
    assert clip.load_label(0).dtype == np.uint8
    assert clip.load_image(1).shape == (*SIZE, 3)
    assert [frame.index for frame in clip.frames] == [0, 1]
    assert names(open_dataset(f"vspw:{vspw}", "train")) == {"7_c": 1}


def test_vspw_class_names(vspw):
    values = {"others": 0, **{f"name {value}": value for value in range(124, 0, -1)}}
    write_text(vspw / "label_num_dic_final.json", json.dumps(values))
    assert open_dataset(f"vspw:{vspw}").class_names[:2] == ("name 1", "name 2")
    del values["name 7"]
    write_text(vspw / "label_num_dic_final.json", json.dumps(values))
    with pytest.raises(DataError, match=r"label_num_dic_final\.json: expected a dictionary .* 1\.\.124"):
        open_dataset(f"vspw:{vspw}")


def test_vspw_test_videos_may_lack_masks(vspw):
    dataset = open_dataset(f"vspw:{vspw}", "test")
    assert names(dataset) == {"9_t": 2}
    assert dataset.clips[0].load_label(0) is None
    write_text(vspw / "val.txt", "9_t")
    with pytest.raises(DataError, match=r"9_t/mask: no such directory; expected VSPW as .* holds origin/"):
        open_dataset(f"vspw:{vspw}")


def test_vspw_errors(vspw):
    with pytest.raises(DataError, match=r"dev\.txt: no such list of videos; .* holds data/, test\.txt"):
        open_dataset(f"vspw:{vspw}", "dev")
    write_text(vspw / "val.txt", "1_a\nmissing\n")
    with pytest.raises(DataError, match=r"missing/origin: no such directory"):
        open_dataset(f"vspw:{vspw}")
    write_text(vspw / "val.txt", "\n")
    with pytest.raises(DataError, match=r"val\.txt: empty"):
        open_dataset(f"vspw:{vspw}")
    write_label(vspw / "data/7_c/mask/00000000.png", 125)
    with pytest.raises(DataError, match=r"00000000\.png: label 125 at row 0, column 0 .* expected 0\.\.124, 255"):
        open_dataset(f"vspw:{vspw}", "train").clips[0].load_label(0)


# Cityscapes


def cityscapes_snippet(root, city, sequence, labelled, frames, kind="labelIds", values=7):
    for frame in frames:
        name = f"{city}_{sequence:06}_{frame:06}_leftImg8bit.png"
        write_image(root / "leftImg8bit_sequence" / "val" / city / name)
    name = f"{city}_{sequence:06}_{labelled:06}"
    write_image(root / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png")
    write_label(root / "gtFine" / "val" / city / f"{name}_gtFine_{kind}.png", values)
    write_image(root / "gtFine" / "val" / city / f"{name}_gtFine_color.png")


def test_cityscapes_snippets(tmp_path):
    cityscapes_snippet(tmp_path, "ulm", 0, 19, range(30), values=[7, 8, 33, 31, 0, 29])
    cityscapes_snippet(tmp_path, "bad_tolz", 2, 142, range(123, 153))
    cityscapes_snippet(tmp_path, "ulm", 1, 19, range(9, 20))  # cut short at both ends
    dataset = open_dataset(f"cityscapes:{tmp_path}")
    assert names(dataset) == {"bad_tolz_000002_000142": 30, "ulm_000000_000019": 30, "ulm_000001_000019": 11}
    assert (dataset.num_classes, dataset.protocol) == (19, "cityscapes")
    assert (dataset.class_names[0], dataset.class_names[18]) == ("road", "bicycle")
    assert dataset.palette[0].tolist() == [128, 64, 128]
    for clip, labelled in zip(dataset.clips, (19, 19, 10), strict=True):
        assert [i for i in range(len(clip)) if clip.load_label(i) is not None] == [labelled]
        assert clip.fps == 17
    assert dataset.clips[1].load_label(19)[0].tolist() == [0, 1, 18, 16, 255, 255]
    assert dataset.clips[0].frames[0].image_path.name == "bad_tolz_000002_000123_leftImg8bit.png"


def test_cityscapes_label_ids_map_to_the_training_ids(tmp_path):
    cityscapes_snippet(tmp_path, "ulm", 0, 19, [19])
    path = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
    image = tmp_path / "leftImg8bit_sequence/val/ulm/ulm_000000_000019_leftImg8bit.png"
    write_image(image, (1, 35))
    write_label(path, [*range(34), 255], (1, 35))
    void = 255
    expected = [void] * 7 + [0, 1, void, void, 2, 3, 4, void, void, void, 5, void, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    expected += [void, void, 16, 17, 18, void]
    assert open_dataset(f"cityscapes:{tmp_path}").clips[0].load_label(0)[0].tolist() == expected
    write_label(path, 34, (1, 35))
    with pytest.raises(DataError, match=r"label 34 .* expected 0\.\.33, 255"):
        open_dataset(f"cityscapes:{tmp_path}").clips[0].load_label(0)


def test_cityscapes_pictures_alone_and_training_ids(tmp_path):
    cityscapes_snippet(tmp_path, "ulm", 0, 19, [], "labelTrainIds", [0, 1, 18, 255, 255, 0])
    dataset = open_dataset(f"cityscapes:{tmp_path}", "val")
    assert names(dataset) == {"ulm_000000_000019": 1}
    assert dataset.protocol == "semantic"
    assert dataset.clips[0].load_label(0)[0].tolist() == [0, 1, 18, 255, 255, 0]


def test_cityscapes_errors(tmp_path):
    with pytest.raises(DataError, match=r"leftImg8bit/val: no such directory; expected Cityscapes as .* holds nothing"):
        open_dataset(f"cityscapes:{tmp_path}")
    cityscapes_snippet(tmp_path, "ulm", 0, 19, [*range(10), *range(11, 30)])
    with pytest.raises(DataError, match=r"missing image ulm_000000_000010 in a snippet"):
        open_dataset(f"cityscapes:{tmp_path}")
    pictures = tmp_path / "leftImg8bit_sequence/val/ulm"
    write_image(pictures / "ulm_000000_000010_leftImg8bit.png")
    write_image(pictures / "ulm_000005_000003_leftImg8bit.png")
    with pytest.raises(DataError, match=r"ulm_000005_000003_leftImg8bit\.png: missing label"):
        open_dataset(f"cityscapes:{tmp_path}")
    (pictures / "ulm_000005_000003_leftImg8bit.png").unlink()
    (pictures / "ulm_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"ulm_000000_000019_gtFine_labelIds\.png: extra label"):
        open_dataset(f"cityscapes:{tmp_path}")
    (tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"gtFine/val: no label files"):
        open_dataset(f"cityscapes:{tmp_path}")


# CamVid

CAMVID_VALUES = [0, 1, 10, 11, 255, 3]


def camvid_frames(images, labels, stems, suffix=".png"):
    for stem in stems:
        write_image(images / f"{stem}{suffix}")
        write_label(labels / f"{stem}.png", CAMVID_VALUES)


def test_camvid_directly(tmp_path):
    camvid_frames(tmp_path / "images", tmp_path / "labels", [f"0016E5_{n:05}" for n in (7959, 7961, 7963)])
    dataset = open_dataset(f"camvid:{tmp_path}")
    assert names(dataset) == {"0016E5": 3}
    assert (dataset.num_classes, dataset.class_names[3], dataset.protocol) == (11, "road", "semantic")
    assert dataset.clips[0].fps == 15
    assert dataset.clips[0].load_label(2)[0].tolist() == [0, 1, 10, 255, 255, 3]
    with pytest.raises(DataError, match="no split 'test'; leave it out"):
        open_dataset(f"camvid:{tmp_path}", "test")


def test_camvid_directories_of_splits(tmp_path):
    stems = ["0001TP_006690", "0001TP_006720", "0006R0_f00930", "0006R0_f00960", "0006R0_f00990", "one"]
    camvid_frames(tmp_path / "train/images", tmp_path / "train/labels", stems, ".jpg")
    assert names(open_dataset(f"camvid:{tmp_path}")) == {"0001TP": 2, "0006R0": 3, "train": 1}
    camvid_frames(tmp_path / "clip/images", tmp_path / "clip/labels", ["0016E5_1"])
    dataset = open_dataset(f"camvid:{tmp_path}", "train")
    assert [clip.fps for clip in dataset.clips] == [1, 1, 1]
    assert [frame.index for frame in dataset.clips[1].frames] == [0, 1, 2]
    assert names(open_dataset(f"camvid:{tmp_path}", "clip")) == {"0016E5": 1}
    with pytest.raises(DataError, match="choose a split, one of clip, train"):
        open_dataset(f"camvid:{tmp_path}")
    with pytest.raises(DataError, match="no split 'val'; expected one of clip, train"):
        open_dataset(f"camvid:{tmp_path}", "val")


def test_camvid_annot_directories(tmp_path):
    for split in ("train", "val", "test"):
        camvid_frames(tmp_path / split, tmp_path / f"{split}annot", [f"Seq05VD_f{n:05}" for n in (0, 30, 60)])
    assert names(open_dataset(f"camvid:{tmp_path}")) == {"Seq05VD": 3}
    line = "/SegNet/CamVid/val/Seq05VD_f{0}.png /SegNet/CamVid/valannot/Seq05VD_f{0}.png\n"
    write_text(tmp_path / "val.txt", line.format("00000") + line.format("00060"))
    clip = open_dataset(f"camvid:{tmp_path}", "val").clips[0]
    assert [frame.image_path.name for frame in clip.frames] == ["Seq05VD_f00000.png", "Seq05VD_f00060.png"]
    write_text(tmp_path / "val.txt", line.format("99999"))
    with pytest.raises(DataError, match=r"val\.txt: lists Seq05VD_f99999, which is not in .*val"):
        open_dataset(f"camvid:{tmp_path}", "val")
    write_text(tmp_path / "val.txt", "")
    with pytest.raises(DataError, match=r"val\.txt: empty"):
        open_dataset(f"camvid:{tmp_path}", "val")


def test_camvid_errors(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such directory; expected CamVid as .* holds nothing"):
        open_dataset(f"camvid:{tmp_path}/nowhere")
    (tmp_path / "JPEG").mkdir()
    with pytest.raises(DataError, match=r"expected CamVid as .* holds JPEG/$"):
        open_dataset(f"camvid:{tmp_path}")
    camvid_frames(tmp_path / "images", tmp_path / "labels", ["a_1"])
    write_label(tmp_path / "labels/a_1.png", [0, 1, 12, 0, 0, 0])
    with pytest.raises(DataError, match=r"a_1\.png: label 12 at row 0, column 2 .* expected 0\.\.11, 255"):
        open_dataset(f"camvid:{tmp_path}").clips[0].load_label(0)


# DAVIS


def davis_clip(images, masks, frames):
    for frame in range(frames):
        write_image(images / f"{frame:05}.jpg")
        write_label(masks / f"{frame:05}.png", [0, 255, 255, 0, 0, 0])


def test_davis_directory_of_clips(tmp_path):
    davis_clip(tmp_path / "dog/images", tmp_path / "dog/masks", 3)
    davis_clip(tmp_path / "blackswan/images", tmp_path / "blackswan/masks", 2)
    (tmp_path / "notes").mkdir()
    dataset = open_dataset(f"davis:{tmp_path}")
    assert names(dataset) == {"blackswan": 2, "dog": 3}
    assert (dataset.class_names, dataset.protocol) == (("background", "object"), "davis")
    assert dataset.clips[0].load_label(0)[0].tolist() == [0, 1, 1, 0, 0, 0]
    assert dataset.clips[0].fps == 24
    with pytest.raises(DataError, match="no split 'val'; leave it out"):
        open_dataset(f"davis:{tmp_path}", "val")


@pytest.mark.parametrize("kind", ["480p", "2016", "none"])
def test_davis_official(tmp_path, kind):
    for clip in ("bear", "dog", "bus"):
        davis_clip(tmp_path / "JPEGImages/480p" / clip, tmp_path / "Annotations/480p" / clip, 2)
    line = "/JPEGImages/480p/{0}/{1:05}.jpg /Annotations/480p/{0}/{1:05}.png \n"
    if kind == "480p":
        text = "".join(line.format(clip, frame) for clip in ("dog", "bear") for frame in range(2))
        write_text(tmp_path / "ImageSets/480p/val.txt", text)
    elif kind == "2016":
        write_text(tmp_path / "ImageSets/2016/val.txt", "dog\nbear")
    expected = ["bear", "bus", "dog"] if kind == "none" else ["dog", "bear"]
    assert list(names(open_dataset(f"davis:{tmp_path}"))) == expected
    with pytest.raises(DataError, match="ImageSets"):
        open_dataset(f"davis:{tmp_path}", "train")


def test_davis_errors(tmp_path):
    with pytest.raises(DataError, match="no clips; expected DAVIS as"):
        open_dataset(f"davis:{tmp_path}")
    davis_clip(tmp_path / "dog/images", tmp_path / "dog/masks", 1)
    write_label(tmp_path / "dog/masks/00000.png", 2)
    with pytest.raises(DataError, match=r"masks/00000\.png: label 2 .* expected 0\.\.1, 255"):
        open_dataset(f"davis:{tmp_path}").clips[0].load_label(0)


# Plain folders


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path / "classes.txt", "Straße\nblue sky\ncar\n\n")
    for stem in ("frame 10", "frame 9", "frame 100 ä"):
        write_image(tmp_path / "images" / f"{stem}.jpg")
        write_label(tmp_path / "labels" / f"{stem}.png", [0, 1, 2, 255, 0, 0])
    write_text(tmp_path / "images" / "Thumbs.db", "")
    write_text(tmp_path / "images" / ".hidden.jpg", "")
    return tmp_path


def test_folder(folder):
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.class_names == ("Straße", "blue sky", "car")
    assert names(dataset) == {folder.name: 3}
    clip = dataset.clips[0]
    assert [frame.image_path.stem for frame in clip.frames] == ["frame 9", "frame 10", "frame 100 ä"]
    assert [frame.index for frame in clip.frames] == [0, 1, 2]
    assert ids(clip) == [0, 1, 2, 255]
    assert (clip.num_classes, clip.ignore) == (3, 255)
    with pytest.raises(IndexError):
        clip.load_image(3)


def test_folder_of_clips(tmp_path):
    write_text(tmp_path / "classes.txt", "a\nb")
    for clip in ("clip 2", "clip 10"):
        write_image(tmp_path / "images" / clip / "1.png")
        write_label(tmp_path / "labels" / clip / "1.png")
    assert list(names(open_dataset(f"folder:{tmp_path}"))) == ["clip 2", "clip 10"]
    write_text(tmp_path / "val.txt", "clip 10")
    assert list(names(open_dataset(f"folder:{tmp_path}", "val"))) == ["clip 10"]
    write_text(tmp_path / "val.txt", "clip 3")
    with pytest.raises(DataError, match=r"val\.txt: lists 'clip 3', which is no directory"):
        open_dataset(f"folder:{tmp_path}", "val")
    with pytest.raises(DataError, match=r"train\.txt: no such list of clips"):
        open_dataset(f"folder:{tmp_path}", "train")
    (tmp_path / "labels/clip 3").mkdir()
    with pytest.raises(DataError, match=r"labels/clip 3: extra labels"):
        open_dataset(f"folder:{tmp_path}")
    write_image(tmp_path / "images" / "stray.png")
    with pytest.raises(DataError, match="holds images beside directories"):
        open_dataset(f"folder:{tmp_path}")


def test_many_classes_need_16_bits(tmp_path):
    write_text(tmp_path / "classes.txt", "\n".join(f"c{i}" for i in range(300)))
    write_image(tmp_path / "images/a.png", (1, 4))
    write(tmp_path / "labels/a.png", np.array([[0, 255, 299, 65535]], np.uint16))
    clip = open_dataset(f"folder:{tmp_path}").clips[0]
    labels = clip.load_label(0)
    assert clip.ignore == 65535
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[0, 255, 299, 65535]]
    write(tmp_path / "labels/a.png", np.array([[0, 255, 300, 65535]], np.uint16))
    with pytest.raises(DataError, match=r"label 300 at row 0, column 2 .* expected 0\.\.299, 65535"):
        clip.load_label(0)


def test_16_bit_files_of_few_classes(folder):
    write(folder / "labels/frame 9.png", np.full(SIZE, [0, 1, 2, 255, 65535, 0], np.uint16))
    labels = open_dataset(f"folder:{folder}").clips[0].load_label(0)
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [0, 1, 2, 255, 255, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got 0"), ("a\n\nb", "line 2 is empty"), ("a\nb\na", "line 3 repeats the class 'a'")],
)
def test_folder_class_names(folder, text, message):
    write_text(folder / "classes.txt", text)
    with pytest.raises(DataError, match=rf"classes\.txt: .*{message}"):
        open_dataset(f"folder:{folder}")


def test_folder_without_class_names(folder):
    (folder / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"classes\.txt: cannot read"):
        open_dataset(f"folder:{folder}")
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: cannot read"):
        open_dataset(f"folder:{folder}")


# What every layout checks


def test_missing_and_extra_labels(folder, caplog):
    (folder / "labels/frame 9.png").rename(folder / "labels/other.png")
    with pytest.raises(DataError, match=r"labels/other\.png: extra label"):
        open_dataset(f"folder:{folder}")
    (folder / "labels/other.png").unlink()
    (clip,) = open_dataset(f"folder:{folder}").clips
    labelled = [frame.image_path.stem for frame in clip.frames if frame.label_path is not None]
    assert "frame 9" not in labelled
    assert clip.load_label(next(i for i, frame in enumerate(clip.frames) if frame.image_path.stem == "frame 9")) is None
    assert f"1 of {len(clip)} images have no label" in caplog.text
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="expected PNG labels of the names of images, got none"):
        open_dataset(f"folder:{folder}")


@pytest.mark.parametrize(
    ("text", "names", "stored"),
    [
        ("ignore: 0\nroad\ncar", ("road", "car"), {0: 255, 1: 0, 2: 1}),
        ("ignore: void\nroad\ncar", ("road", "car"), {0: 255, 1: 0, 2: 1}),
        ("void\nroad\ncar\nignore: 0", ("road", "car"), {0: 255, 1: 0, 2: 1}),
        ("void\nroad\ncar\nIgnore: void", ("road", "car"), {0: 255, 1: 0, 2: 1}),
        ("road\nvoid\ncar\nignore: void, 7", ("road", "car"), {0: 0, 1: 255, 2: 1, 7: 255}),
        ("road\nignore: 1\ncar", ("road", "car"), {0: 0, 1: 255, 2: 1}),
        ("road\ncar\nignore: 2", ("road", "car"), {0: 0, 1: 1, 2: 255}),
        ("ignore: 254\nroad\ncar", ("road", "car"), {0: 0, 1: 1, 254: 255, 255: 255}),
        ("ignore: 0, 254\nroad\ncar", ("road", "car"), {0: 255, 1: 0, 2: 1, 254: 255}),
        ("road\ncar", ("road", "car"), {0: 0, 1: 1, 255: 255}),
    ],
)
def test_any_id_may_be_no_class(folder, text, names, stored):
    write_text(folder / "classes.txt", text)
    label = np.resize(np.array(list(stored), np.uint8), SIZE)
    write(folder / "labels/frame 9.png", label)
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.class_names == names
    (clip,) = dataset.clips
    index = next(i for i, frame in enumerate(clip.frames) if frame.image_path.stem == "frame 9")
    np.testing.assert_array_equal(clip.load_label(index), np.vectorize(stored.get)(label))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ignore: 0\nvoid\nroad", "got ignore: and then 'void': put the line ignore: at the end"),
        ("road\nignore: road", "expected 1 to 65535 class names, one a line, got 0"),
        ("road\nignore: 7, cra", "line 2: expected ids or names of other lines to ignore, got 'cra'"),
    ],
)
def test_ids_to_ignore_that_are_not_clear(folder, text, message):
    write_text(folder / "classes.txt", text)
    with pytest.raises(DataError, match=rf"classes\.txt: .*{message}"):
        open_dataset(f"folder:{folder}")


def test_size_mismatch(folder):
    write_label(folder / "labels/frame 9.png", size=(6, 4))
    with pytest.raises(DataError, match=r"labels/frame 9\.png: expected the size of .*frame 9\.jpg, 6x4 .*, got 4x6"):
        open_dataset(f"folder:{folder}").clips[0].load_label(0)


def test_out_of_range_label(folder):
    label = np.zeros(SIZE, np.uint8)
    label[2, 5] = 3
    write(folder / "labels/frame 9.png", label)
    with pytest.raises(DataError, match=r"frame 9\.png: label 3 at row 2, column 5 .* expected 0\.\.2, 255"):
        open_dataset(f"folder:{folder}").clips[0].load_label(0)


def test_empty_directory(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images: empty, expected images"):
        open_dataset(f"folder:{folder}")


def test_two_pictures_of_one_name(folder):
    write_image(folder / "images/frame 9.png")
    with pytest.raises(DataError, match=r"a second image of the same name as frame 9\.jpg"):
        open_dataset(f"folder:{folder}")


@pytest.mark.parametrize("spec", ["ade20k:DIR", "vspw", "vspw:", "", "DIR"])
def test_unknown_kind(spec):
    with pytest.raises(DataError, match="one of vspw:DIR, cityscapes:DIR, camvid:DIR, davis:DIR, folder:DIR; got"):
        open_dataset(spec)


# Files


def test_palette_labels_give_indices_not_colours(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png").tolist() == indices.tolist()
    Image.fromarray(indices).save(tmp_path / "b.png")
    assert read_label(tmp_path / "b.png").tolist() == indices.tolist()
    Image.fromarray(indices > 0).save(tmp_path / "c.png")
    assert read_label(tmp_path / "c.png").tolist() == (indices > 0).astype(int).tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_labels_are_refused(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: expected a label PNG .* got mode {mode}; colours"):
        read_label(tmp_path / "a.png")


def test_grey_of_few_bits_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # One row of four pixels of 4 bits: 0, 1, 2, 3.
    header = struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x01\x23")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(DataError, match=r"a\.png: expected 8 or 16 bits a pixel"):
        read_label(tmp_path / "a.png")


def test_pictures_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (3, 2)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (2, 3, 3)


def test_damaged_files_are_data_errors(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    write(path, rng.integers(0, 9, (20, 20), dtype=np.uint8))
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    for position in range(0, len(whole), 5):
        data = bytearray(whole)
        data[position] ^= 0xFF
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        for read in (read_image, read_label):
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > len(damaged)


def test_reading_data_and_scoring_do_not_load_a_network_library():
    code = "import sys, mpvss.datasets, mpvss.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("line", ["..", "../../elsewhere", "a/../b", "x" * 300, "a\\b"])
def test_a_list_leads_nowhere_else(vspw, tmp_path, line):
    """Predictions are written under the names that it holds."""
    write_text(tmp_path / "val.txt", f"1_a\n{line}\n")
    with pytest.raises(DataError, match=r"val\.txt: expected the name of a clip, got"):
        open_dataset(f"vspw:{vspw}")


def test_class_names_that_are_nested_too_deeply(vspw):
    write_text(vspw / "label_num_dic_final.json", "[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        open_dataset(f"vspw:{vspw}")


def test_class_names_are_not_repeated_in_full(vspw):
    write_text(vspw / "label_num_dic_final.json", json.dumps({"road": "x" * 10**6}))
    with pytest.raises(DataError, match="expected a dictionary of class name to file value") as caught:
        open_dataset(f"vspw:{vspw}")
    assert len(str(caught.value)) < 1000
