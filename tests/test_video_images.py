"""Laws of reading images: whatever the form of a file, the same scene comes out, in folders and data sets alike."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor
from mpvss.cli import run
from mpvss.datasets import open_dataset
from mpvss.options import OutputOptions
from mpvss.outputs import LabelReader
from mpvss.segmenter import VideoSegmenter
from mpvss.video import probe, read
from mpvss.video.image_media import unique_names

SIZE = (12, 20)


def scene():
    """A smooth scene whose halves differ, so that turning it shows."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([columns * 12, rows * 20, np.where(columns < 10, 40, 200)], -1).astype(np.uint8)


def both_readers(folder):
    """The images of a folder as a source gives them, after checking that a data set gives the same."""
    with read(folder) as reader:
        frames = [frame.rgb for frame in reader]
    root = folder.parent
    (root / "classes.txt").write_text("a\n")
    (root / "labels").mkdir(exist_ok=True)
    for path in folder.iterdir():
        Image.new("L", SIZE[::-1]).save(root / "labels" / f"{path.stem}.png")
    (clip,) = open_dataset(f"folder:{root}").clips
    for index, rgb in enumerate(frames):
        np.testing.assert_array_equal(clip.load_image(index), rgb)
    return frames


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def near(rgb, expected, tolerance=1):
    assert rgb.shape == expected.shape
    assert np.abs(rgb.astype(int) - expected.astype(int)).max() <= tolerance


# Depth


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("colour", [True, False])
def test_samples_of_any_depth_fill_the_range(folder, bits, suffix, colour):
    expected = scene() if colour else np.repeat(scene()[..., :1], 3, 2)
    deep = np.round(expected / expected.max() * (2**bits - 1)).astype(np.uint16)
    stored = deep[..., ::-1] if colour else deep[..., 0]
    cv2.imwrite(str(folder / f"a.{suffix}"), stored)
    (rgb,) = both_readers(folder)
    near(rgb, np.round(deep / (2**bits - 1) * 255))


@pytest.mark.parametrize("largest", [1.0, 5.0, 255.0, 4095.0, 65535.0])
@pytest.mark.parametrize("colour", [True, False])
def test_floats_fill_the_range(folder, largest, colour):
    unit = scene().astype(np.float32) / 228
    values = unit * largest if largest != 5.0 else unit  # highlights above one
    if largest == 5.0:
        values[0, 0] = 5
    values[0, 1] = np.nan
    stored = values[..., ::-1] if colour else values[..., 0]
    cv2.imwrite(str(folder / "a.tif"), stored)
    (rgb,) = both_readers(folder)
    shown = np.nan_to_num(values / (1 if largest == 5.0 else largest)).clip(0, 1) * 255
    near(rgb, np.round(shown if colour else np.repeat(shown[..., :1], 3, 2)))


def test_the_images_of_a_folder_share_their_full_scale(folder):
    for index, largest in enumerate((300, 4095, 900)):  # a dark one first
        cv2.imwrite(str(folder / f"{index}.png"), np.full(SIZE, largest, np.uint16))
    frames = both_readers(folder)
    assert [int(rgb[0, 0, 0]) for rgb in frames] == [round(255 * v / 4095) for v in (300, 4095, 900)]


def test_what_exceeds_the_common_full_scale_is_said(folder):
    for index in range(40):
        cv2.imwrite(str(folder / f"{index}.png"), np.full(SIZE, 60000 if index == 1 else 4095, np.uint16))
    with read(folder) as reader:
        assert all((frame.rgb == 255).all() for frame in reader)
    assert reader.warnings == [
        "1 of the images exceed the full scale of the images around them and are clipped (first: 1.png)"
    ]


# Form


def transparent(mode):
    """The left half opaque red, the right half transparent green."""
    layer = Image.new("RGBA", SIZE[::-1], (255, 0, 0, 255))
    layer.paste((0, 255, 0, 0), (10, 0, 20, 12))
    if mode == "P":
        return layer.convert("P")
    return layer.convert(mode)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("LA", "png")])
def test_transparency_is_composed_over_white(folder, mode, suffix):
    transparent(mode).save(folder / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    (rgb,) = both_readers(folder)
    assert rgb[0, 15].tolist() == [255, 255, 255]
    assert rgb[0, 5].tolist() == ([76, 76, 76] if mode == "LA" else [255, 0, 0])


def test_transparency_of_a_palette_and_of_16_bits_is_composed_over_white(folder):
    image = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 10, 1).repeat(12, 0))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(folder / "a.png", transparency=1)
    deep = np.zeros((*SIZE, 4), np.uint16)
    deep[:, :10] = (0, 0, 65535, 65535)
    deep[:, 10:] = (0, 65535, 0, 0)
    cv2.imwrite(str(folder / "b.png"), deep)
    for rgb in both_readers(folder):
        assert rgb[0, 5].tolist() == [255, 0, 0]
        assert rgb[0, 15].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("L", "bmp")]
)
def test_other_forms_show_the_scene(folder, mode, suffix):
    image = Image.fromarray(scene() // 128 * 255).convert(mode)
    image.save(folder / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    (rgb,) = both_readers(folder)
    assert np.abs(rgb.astype(int) - np.asarray(image.convert("RGB"))).mean() < 8
    assert rgb.std() > 60


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "deep.tif", "deep.png"])
def test_images_are_upright_and_labels_are_not_turned(folder, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = scene()
    turned = {3: np.rot90(array, 2), 6: np.rot90(array, -1), 8: np.rot90(array), 1: array, 2: array[:, ::-1]}
    turned |= {4: array[::-1], 5: array.swapaxes(0, 1), 7: np.rot90(array, 2).swapaxes(0, 1)}
    if suffix.startswith("deep"):
        array = array[..., 0].astype(np.uint16) * 257
        turned = {key: np.repeat(value[..., :1], 3, 2) for key, value in turned.items()}
    kind = suffix.rpartition(".")[2]
    Image.fromarray(array).save(folder / f"a.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
    expected = turned[orientation]
    assert probe(folder).size == expected.shape[:2]
    with read(folder) as reader:
        (frame,) = reader
    assert np.abs(frame.rgb.astype(int) - expected).mean() < 12
    (folder.parent / "labels").mkdir()
    (folder.parent / "classes.txt").write_text("a\nb\n")
    label = (np.arange(expected.shape[0] * expected.shape[1]) % 2).reshape(expected.shape[:2]).astype(np.uint8)
    Image.fromarray(label).save(folder.parent / "labels" / "a.png")
    (clip,) = open_dataset(f"folder:{folder.parent}").clips
    np.testing.assert_array_equal(clip.load_image(0), frame.rgb)
    np.testing.assert_array_equal(clip.load_label(0), label)


# Several images in a file


def animated(path, count=5, delays=None, **options):
    images = [Image.fromarray(np.full((*SIZE, 3), 20 * i, np.uint8)) for i in range(count)]
    if delays is not None:
        options["duration"] = delays
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("suffix", ["webp", "png", "gif"])
def test_an_animated_file_is_a_video_with_its_own_times(tmp_path, suffix):
    delays = [100, 40, 200, 70, 100]
    path = animated(tmp_path / f"a.{suffix}", delays=delays, **({"lossless": True} if suffix == "webp" else {}))
    with read(path) as reader:
        frames = list(reader)
    assert [int(frame.rgb.mean()) for frame in frames] == [0, 20, 40, 60, 80]
    assert [frame.pts for frame in frames] == [Fraction(sum(delays[:i]), 1000) for i in range(5)]
    assert all(frame.pts % reader.info.time_base == 0 for frame in frames)
    assert probe(path).frames == 5


def test_a_shared_case_of_an_animated_webp_has_eight_frames():
    case = Path(__file__).parent / "data" / "anim.webp"
    with read(case) as reader:
        assert [frame.pts for frame in reader] == [Fraction(i, 10) for i in range(8)]


def test_an_apng_keeps_rates_that_are_no_whole_milliseconds_and_leaves_out_its_still(tmp_path):
    path = animated(tmp_path / "a.png", 4, 1000 / 30, default_image=True)
    with read(path) as reader:
        frames = list(reader)
    assert [frame.pts for frame in frames] == [Fraction(i, 30) for i in range(3)]
    assert [int(frame.rgb.mean()) for frame in frames] == [20, 40, 60]


def test_a_tiff_of_several_pages_is_a_video_without_its_thumbnails(tmp_path):
    from PIL import TiffImagePlugin

    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for i, kind in enumerate([0, 1, 0, 0]):
            Image.fromarray(np.full(SIZE if not kind else (3, 5), 1000 * (i + 1), np.uint16)).save(
                file, format="TIFF", tiffinfo={254: kind}
            )
            file.newFrame()
    with read(tmp_path / "a.tif") as reader:
        frames = list(reader)
    assert [int(frame.rgb.mean()) for frame in frames] == [round(255 * v / 4095) for v in (1000, 3000, 4000)]
    assert [frame.pts for frame in frames] == [Fraction(i, 25) for i in range(3)]
    assert reader.warnings == []


def test_a_deep_colour_tiff_of_several_pages(tmp_path):
    pages = [np.full((*SIZE, 3), (4095, 0, 1000 * i), np.uint16) for i in range(3)]
    cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    with read(tmp_path / "a.tif") as reader:
        colours = [frame.rgb[0, 0].tolist() for frame in reader]
    assert colours == [[round(1000 * i / 4095 * 255), 0, 255] for i in range(3)]


def test_in_a_folder_an_animated_file_gives_its_first_image_and_that_is_said(folder):
    animated(folder / "a.webp", lossless=True)
    animated(folder / "b.tif")
    Image.fromarray(scene()).save(folder / "c.png")
    with read(folder) as reader:
        frames = list(reader)
    assert [int(frame.rgb.mean()) for frame in frames][:2] == [0, 0]
    assert reader.warnings == ["2 of the images hold several images, of which only the first is taken (first: a.webp)"]


def test_a_torn_animation_gives_what_there_is_and_counts_the_rest(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)) for _ in range(6)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=50)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) * 6 // 10])
    with read(tmp_path / "a.png") as reader:
        frames = list(reader)
    assert 2 <= len(frames) < 6
    assert len(frames) + reader.damaged == 6
    assert "images of a.png cannot be read" in reader.warnings[0]


def test_the_second_image_of_a_phones_jpeg_is_no_frame(tmp_path):
    images = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    images[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=images[1:])
    assert probe(tmp_path / "a.jpg").frames == 1


# Names


def test_a_folder_and_a_data_set_have_the_same_order(folder):
    names = ["-2", "-1", "t10.25", "t10.4", "A1", "a2", "b-1"]
    for index, name in enumerate(names):
        Image.new("RGB", SIZE[::-1], (index, 0, 0)).save(folder / f"{name}.png")
    order = [int(rgb[0, 0, 0]) for rgb in both_readers(folder)]
    assert [names[index] for index in order] == ["-2", "-1", "A1", "a2", "b-1", "t10.25", "t10.4"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["cam_1.jpg", "cam_2.jpg"], ["cam_1", "cam_2"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["000000_a", "000001_a.jpg", "000002_a"]),
        (["left/1.png", "right/1.png"], ["000000_1", "000001_1"]),
    ],
)
def test_no_two_images_share_a_name(files, expected):
    assert list(unique_names([Path(file) for file in files])) == expected


def test_a_very_long_name_leaves_room_for_its_ending():
    (name,) = unique_names([Path("\u6f22" * 83 + "ab.png")])
    assert len(f"{name}.png".encode()) <= 255


def test_outputs_are_called_after_the_images(folder, tmp_path):
    names = ["cam_0100", "cam_0101.x", "cam_0099"]
    for name in names:
        Image.fromarray(scene()).save(folder / f"{name}.png")
    Image.fromarray(scene()).save(folder / "cam_0100.jpg")
    VideoSegmenter(ColourSegmentor(), None).process(folder, tmp_path / "out", save=("labels", "png"))
    expected = ["cam_0099", "cam_0100.jpg", "cam_0100.png", "cam_0101.x"]
    assert sorted(path.name for path in (tmp_path / "out" / "images.png").iterdir()) == [f"{n}.png" for n in expected]
    meta = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [frame["name"] for frame in meta["frames"]] == expected
    assert LabelReader(tmp_path / "out" / "images.json").names == tuple(expected)


def test_two_folders_called_images_can_be_named(tmp_path):
    for clip in "ab":
        (tmp_path / clip / "images").mkdir(parents=True)
        Image.fromarray(scene()).save(tmp_path / clip / "images" / "1.png")
        options = {"save": ("png",), "name": f"clip {clip}"}
        VideoSegmenter(ColourSegmentor(), None).process(tmp_path / clip / "images", tmp_path / "out", **options)
    names = ["clip a.json", "clip a.png", "clip b.json", "clip b.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize("name", ["", " ", ".hidden", "..", "a/b", "a\\b", "a\0b", "x" * 201])
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match="name must be a file's name without folders, of at most 200 bytes, got"):
        OutputOptions(name=name)


def test_a_name_goes_with_one_source(tmp_path, capsys):
    assert run(["segment", "a.mp4", "b.mp4", "-o", str(tmp_path), "--name", "x"]) == 2
    assert "--name goes with one source, got 2" in capsys.readouterr().err
