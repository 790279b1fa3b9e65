import json
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from mpvss.errors import DataError, OutputError
from mpvss.labels import label_dtype, palette_for
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter, PngWriter

TB = Fraction(1001, 30000)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def label_maps(count, size, num_classes):
    rng = np.random.default_rng(0)
    top = np.iinfo(label_dtype(num_classes)).max
    maps = rng.integers(0, num_classes, (count, *size)).astype(label_dtype(num_classes))
    maps[:, 0, 0] = top  # the ignore id
    return maps


def header(size, num_classes):
    return {
        "source": "a.mp4",
        "size": list(size),
        "classes": [f"c{i}" for i in range(num_classes)],
        "palette": palette_for([str(i) for i in range(num_classes)]).tolist(),
        "ignore": 255,
        "model": "compact",
        "options": {"interval": 5},
    }


def store(folder, maps, num_classes, *, listed=None, summed=False):
    size = maps.shape[1:]
    with (
        LabelWriter(folder / "a.labels.mkv", size, num_classes, TB) as labels,
        MetaWriter(folder / "a.json", header(size, num_classes), TB) as meta,
    ):
        for i, label_map in enumerate(maps):
            labels.append(label_map, 7 * i * TB)
        for i in range(len(maps) if listed is None else listed):
            meta.add(3 * i, 7 * i * TB, i % 5 == 0, labels=maps[i] if summed else None)
    return folder / "a.json"


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1), (3, 200)])
@pytest.mark.parametrize("num_classes", [2, 255, 256, 3000])
def test_labels_come_back_bit_for_bit(tmp_path, size, num_classes):
    maps = label_maps(12, size, num_classes)
    reader = LabelReader(store(tmp_path, maps, num_classes))
    assert len(reader) == 12
    for _ in range(2):
        read = list(reader)
        for (index, pts, labels, key), label_map, i in zip(read, maps, range(12), strict=True):
            assert (index, pts, key) == (3 * i, 7 * i * TB, i % 5 == 0)
            assert labels.dtype == label_map.dtype
            np.testing.assert_array_equal(labels, label_map)


def test_meta_has_the_documented_schema(tmp_path):
    path = store(tmp_path, label_maps(2, (4, 6), 3), 3)
    written = json.loads(path.read_text())
    assert isinstance(written.pop("crc32"), int)
    assert written == {
        "schema": 1,
        **header((4, 6), 3),
        "time_base": [1001, 30000],
        "frames": [{"index": 0, "pts": 0, "key": True}, {"index": 3, "pts": 7, "key": False}],
    }
    meta = LabelReader(tmp_path / "a.labels.mkv").meta
    assert meta["classes"] == ["c0", "c1", "c2"]
    assert "frames" not in meta


def test_meta_takes_no_memory_per_frame(tmp_path):
    with MetaWriter(tmp_path / "a.json", {}, TB) as meta:
        meta.add(0, 0 * TB, True)
        tracemalloc.start()
        for i in range(1, 20_000):
            meta.add(i, i * TB, False)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert taken < 20 * 20_000 / 10
    assert len(json.loads((tmp_path / "a.json").read_text())["frames"]) == 20_000


def test_meta_without_frames_is_still_json(tmp_path):
    with MetaWriter(tmp_path / "a.json", {"source": "ä"}, TB):
        pass
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["frames"] == []


def test_times_closer_than_a_millisecond(tmp_path):
    times = [Fraction(k, 90000) for k in (0, 1, 2, 3003)]
    with LabelWriter(tmp_path / "a.labels.mkv", (4, 6), 3, Fraction(1, 90000)) as labels:
        for time in times:
            labels.append(np.zeros((4, 6), np.uint8), time)
    with MetaWriter(tmp_path / "a.json", header((4, 6), 3), Fraction(1, 90000)) as meta:
        for i, time in enumerate(times):
            meta.add(i, time, False)
    assert [pts for _, pts, _, _ in LabelReader(tmp_path / "a.json")] == times


@pytest.mark.parametrize("listed", [3, 7])
def test_counts_that_differ(tmp_path, listed):
    path = store(tmp_path, label_maps(5, (8, 8), 3), 3, listed=listed)
    with pytest.raises(DataError, match=rf"expected {listed} frames in .*, as a.json lists, got 5: the two files"):
        list(LabelReader(path))


@pytest.mark.parametrize("flips", [200, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("num_classes", [3, 300])
def test_no_flipped_bit_gives_other_labels_without_an_error(tmp_path, flips, num_classes):
    maps = np.repeat(np.repeat(label_maps(6, (3, 4), num_classes), 8, 1), 8, 2)
    path = store(tmp_path, maps, num_classes, summed=True)

    def content():
        reader = LabelReader(path)
        return reader.meta, [(index, pts, labels.tobytes(), key) for index, pts, labels, key in reader]

    expected = content()
    random = np.random.default_rng(0)
    results = {"right": 0, "refused": 0, "wrong": 0}
    for file in (path, tmp_path / "a.labels.mkv"):
        whole = file.read_bytes()
        for bit in random.integers(0, 8 * len(whole), flips // 4).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            try:
                results["right" if content() == expected else "wrong"] += 1
            except DataError:
                results["refused"] += 1
        file.write_bytes(whole)
    print(results)
    assert results["wrong"] == 0
    assert results["refused"] > flips // 4
    assert content() == expected


def test_a_damaged_frame_is_named(tmp_path):
    maps = label_maps(3, (8, 8), 3)
    path = store(tmp_path, maps, 3, summed=True)
    maps[1, 4, 4] ^= 1
    with LabelWriter(tmp_path / "a.labels.mkv", (8, 8), 3, TB) as labels:
        for i, label_map in enumerate(maps):
            labels.append(label_map, 7 * i * TB)
    with pytest.raises(
        DataError, match=r"expected the labels of frame 3 in .*a.labels.mkv to have the checksum of a.json"
    ):
        list(LabelReader(path))


def test_a_description_that_was_changed_is_refused_and_one_that_is_laid_out_anew_is_not(tmp_path):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3, summed=True)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True))
    assert LabelReader(path).verified
    path.write_text(path.read_text().replace('"c1"', '"c9"'))
    with pytest.raises(DataError, match=r"expected the checksum \d+ in .*a.json, got \d+: the file is damaged or was"):
        LabelReader(path)


def test_files_without_checksums_are_read_and_said_to_be_unverified(tmp_path, caplog):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3)
    content = json.loads(path.read_text())
    del content["crc32"]
    path.write_text(json.dumps(content))
    reader = LabelReader(path)
    assert len(list(reader)) == 2
    assert not reader.verified
    assert "labels are read unverified" in caplog.text


@pytest.mark.parametrize("time_base", [Fraction(1, 10**9), Fraction(1, 2**33), Fraction(1, 3 * 10**9)])
def test_labels_of_times_finer_than_a_microsecond(tmp_path, time_base):
    maps = label_maps(3, (8, 8), 3)
    with (
        LabelWriter(tmp_path / "a.labels.mkv", (8, 8), 3, time_base) as labels,
        MetaWriter(tmp_path / "a.json", header((8, 8), 3), time_base) as meta,
    ):
        for i, label_map in enumerate(maps):
            labels.append(label_map, i * time_base)
            meta.add(i, i * time_base, True, labels=label_map)
    assert [pts for _, pts, _, _ in LabelReader(tmp_path / "a.json")] == [i * time_base for i in range(3)]


def test_sizes_that_differ(tmp_path):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3)
    content = json.loads(path.read_text()) | {"size": [8, 9]}
    del content["crc32"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"expected labels of \(8, 9\).*got \(8, 8\).*different runs"):
        list(LabelReader(path))


@pytest.mark.parametrize(("name", "what"), [("a.json", "description of the labels"), ("a.labels.mkv", "label video")])
def test_missing_file(tmp_path, name, what):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3)
    (tmp_path / name).unlink()
    for given in (path, tmp_path / "a.labels.mkv"):
        with pytest.raises(DataError, match=f"expected the {what} .*, got no such file: keep both"):
            LabelReader(given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON in .*a.json, got text that is none"),
        ("[]", "expected schema 1 .* got None"),
        ('{"schema": 2}', "expected schema 1 .* got 2"),
        ('{"schema": 1}', r"got a malformed one: the description: time_base is missing"),
        (
            '{"schema": 1, "frames": [{}], "time_base": [1, 25], "size": [8, 8], "classes": ["a"]}',
            r"index is missing \(at frames\[0\]\)",
        ),
        (
            '{"schema": 1, "frames": [], "time_base": [1, 0], "size": [8, 8], "classes": ["a"]}',
            r"malformed one: Fraction\(1, 0\)",
        ),
    ],
)
def test_malformed_meta(tmp_path, content, message):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        LabelReader(path)


def test_label_video_that_is_none(tmp_path):
    path = store(tmp_path, label_maps(2, (8, 8), 3), 3)
    (tmp_path / "a.labels.mkv").write_text("just text")
    with pytest.raises(DataError, match=r"expected a label video in .*, got data that is none"):
        list(LabelReader(path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((8, 9), np.uint8), r"expected a size of 8x8 \(width x height\), got 9x8"),
        (np.zeros((8, 8), np.uint16), "expected labels of type uint8, got uint16"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message), LabelWriter(tmp_path / "a.labels.mkv", (8, 8), 3, TB) as writer:
        writer.append(labels, 0 * TB)
    assert names(tmp_path) == []


def test_times_must_be_multiples_of_the_time_base(tmp_path):
    with pytest.raises(ValueError, match="expected a time in whole multiples of 1001/30000 s, got 1/7 s"):
        MetaWriter(tmp_path / "a.json", {}, TB).add(0, Fraction(1, 7), True)
    with (
        pytest.raises(ValueError, match="expected a time in whole multiples"),
        LabelWriter(tmp_path / "a.labels.mkv", (8, 8), 3, TB) as writer,
    ):
        writer.append(np.zeros((8, 8), np.uint8), Fraction(1, 7))


def test_header_must_leave_the_writers_own_entries(tmp_path):
    with pytest.raises(ValueError, match="expected a header without frames, schema"):
        MetaWriter(tmp_path / "a.json", {"schema": 2, "frames": []}, TB)


@pytest.mark.parametrize("size", [(0, 8), (8, 0)])
def test_size_out_of_range(tmp_path, size):
    with pytest.raises(ValueError, match="expected a size of at least 1x1"):
        LabelWriter(tmp_path / "a.labels.mkv", size, 3, TB)


def test_no_label_maps(tmp_path):
    with pytest.raises(ValueError, match="expected at least one label map"):
        LabelWriter(tmp_path / "a.labels.mkv", (8, 8), 3, TB).close()
    assert names(tmp_path) == []


WRITERS = [
    lambda folder: LabelWriter(folder / "a.labels.mkv", (8, 8), 3, TB),
    lambda folder: MetaWriter(folder / "a.json", {}, TB),
    lambda folder: PngWriter(folder / "a.png", palette_for([str(i) for i in range(3)])),
]


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path, make, error):
    with pytest.raises(error), make(tmp_path) as writer:
        if isinstance(writer, LabelWriter):
            writer.append(np.zeros((8, 8), np.uint8), 0 * TB)
        elif isinstance(writer, PngWriter):
            writer.append(np.zeros((8, 8), np.uint8), 0)
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", WRITERS)
def test_folder_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(OutputError, match=r"expected to be able to write .*; choose a writable folder"):
            make(tmp_path / folder)


def test_palette_pngs(tmp_path):
    maps = label_maps(3, (47, 63), 5)
    palette = palette_for([str(i) for i in range(5)])
    for _ in range(2):  # a second run replaces the first
        with PngWriter(tmp_path / "a.png", palette) as writer:
            for i, label_map in enumerate(maps):
                writer.append(label_map, 10 * i)
            assert names(tmp_path)[0].startswith(".a.png")
    assert names(tmp_path) == ["a.png"]
    assert names(tmp_path / "a.png") == ["000000.png", "000010.png", "000020.png"]
    for i, label_map in enumerate(maps):
        with Image.open(tmp_path / "a.png" / f"{10 * i:06d}.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), label_map)
            known = label_map < 5
            np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[known], palette[label_map[known]])


def test_pngs_of_many_classes(tmp_path):
    (label_map,) = label_maps(1, (8, 8), 300)
    with PngWriter(tmp_path / "a.png", palette_for([str(i) for i in range(300)])) as writer:
        writer.append(label_map, 0)
    with Image.open(tmp_path / "a.png" / "000000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), label_map)
    with (
        pytest.raises(ValueError, match="expected labels of type uint16, got uint8"),
        PngWriter(tmp_path / "b.png", palette_for([str(i) for i in range(300)])) as writer,
    ):
        writer.append(label_map.astype(np.uint8), 0)


def test_equal_labels_are_equal_files(tmp_path):
    for name in ("a", "b"):
        with LabelWriter(tmp_path / f"{name}.mkv", (16, 24), 5, Fraction(1, 25)) as writer:
            for i in range(4):
                writer.append(np.full((16, 24), i, np.uint8), Fraction(i, 25))
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
