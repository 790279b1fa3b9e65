"""Names and places of any kind: outputs stay in OUT, and messages on a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss._validate import printable
from mpvss.motion.dis import Hold
from mpvss.outputs import LabelReader
from mpvss.segmenter import VideoSegmenter
from mpvss.video import probe
from test_video_reader import write_video

FRAMES = 4
ENDINGS = (".json", ".labels.mkv", ".overlay.mp4", ".png")
AS_BYTES = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", [f.rgb for f in moving_frames(FRAMES, (48, 64))])


@pytest.fixture
def segment(monkeypatch, capfd, tmp_path):
    """Run ``segment`` on sources into OUT/: exit code, standard output, standard error."""
    monkeypatch.setattr(VideoSegmenter, "from_pretrained", lambda *_, **__: VideoSegmenter(ColourSegmentor(), Hold()))

    def run(source, *options, out=tmp_path / "OUT"):
        code = cli.run(["segment", "-o", str(out), "--save", "overlay,labels,png", *options, "--", str(source)])
        return (code, *capfd.readouterr())

    return run


def everything(folder):
    return {
        path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else None) for path in Path(folder).rglob("*")
    }


def harmless(text):
    return all(line == printable(line) for line in text.split("\n"))


def refused(result, *parts):
    code, out, err = result
    assert (code, out) == (2, "")
    (line,) = (line for line in err.splitlines() if "knows" not in line and "loading" not in line)
    assert line.startswith("mpvss: ")
    for part in parts:
        assert part in line


# --- names


@pytest.mark.parametrize(
    "stem",
    [
        "two\nlines", "mpvss: \x1b[2J\x07", 'it\'s "quoted"; $(touch x) `id` | & *', "..", " spaces ", "-o", "--help",
        "x" * 251, "é" * 125, AS_BYTES, "%d%s{}", "[a]?*", "c:\\d", "a#b?c=d", "\u202etxt", "http:", ".hidden",
    ],
)  # fmt: skip
def test_a_source_of_any_name(segment, clip, monkeypatch, tmp_path, stem):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / f"{stem}.mp4"
    source.write_bytes(clip.read_bytes())
    monkeypatch.chdir(source.parent)
    before = everything(source.parent)
    code, out, err = segment(source.name, "--json")
    assert code == 0, err
    (video,) = json.loads(out.encode("ascii"))["videos"]
    written = {path.name for path in (tmp_path / "OUT").iterdir()}
    name = probe(source).name
    assert written == {f"{name}{ending}" for ending in ENDINGS}
    assert stem == name or (len(os.fsencode(stem)) > 200 and stem.startswith(name.partition("~")[0]))
    assert everything(source.parent) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "in"]
    description = json.loads((tmp_path / "OUT" / f"{name}.json").read_bytes())
    assert os.fsencode(description["source"]) == os.fsencode(source.name)
    assert video["source"] == description["source"]
    assert len(LabelReader(tmp_path / "OUT" / f"{name}.labels.mkv")) == FRAMES
    assert harmless(err)


def test_long_names_that_begin_alike_stay_apart(segment, clip, tmp_path):
    for last in "ab":
        source = tmp_path / f"{'x' * 240}{last}.mp4"
        source.write_bytes(clip.read_bytes())
        assert segment(source)[0] == 0
    assert len(list((tmp_path / "OUT").iterdir())) == 2 * len(ENDINGS)


def test_a_folder_of_pictures_of_any_name(segment, tmp_path):
    folder = tmp_path / f"{AS_BYTES}\n"
    folder.mkdir()
    for frame in moving_frames(2, (48, 64)):
        Image.fromarray(frame.rgb).save(folder / f"{frame.index}\n.png")
    assert segment(folder)[0] == 0
    assert {path.name for path in (tmp_path / "OUT").iterdir()} == {f"{folder.name}{ending}" for ending in ENDINGS}


def test_a_name_forges_no_line(segment, tmp_path):
    name = "a\nmpvss: all is well\x1b[2J\r\u202e\udcff"
    refused(segment(tmp_path / name), r"a\nmpvss: all is well\x1b[2J\r\u202e\udcff, got none")
    (tmp_path / name).write_text("no video")
    refused(segment(tmp_path / name), r"a\nmpvss: all is well\x1b[2J\r", "no known video format")


def test_a_name_forges_no_line_where_results_are_printed(segment, clip, tmp_path):
    source = tmp_path / "a\nb\x1b[2J\udcff.mp4"
    source.write_bytes(clip.read_bytes())
    code, out, _ = segment(source)
    assert code == 0
    assert harmless(out)
    assert r"a\nb\x1b[2J\udcff.mp4: 4 frames" in out


def test_lists_in_messages_keep_their_lines():
    assert printable("these:\n  one\n  two\tx") == "these:\n  one\n  two\tx"
    assert printable("these:\none") == r"these:\none"


def test_letters_that_a_terminal_lacks_are_no_failure(clip, tmp_path):
    """In a program of its own: the stream is set up by ``main``."""
    source = tmp_path / "漢\udcff.mp4"
    source.write_bytes(clip.read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "mpvss.cli", "inspect", os.fsencode(source)],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert rb"\u6f22\udcff.mp4" in result.stdout


# --- places


def test_a_source_behind_a_link(segment, clip, tmp_path):
    (tmp_path / "link.mp4").symlink_to(clip)
    assert segment(tmp_path / "link.mp4")[0] == 0
    assert (tmp_path / "OUT" / "link.json").is_file()


def test_out_may_be_a_link(segment, clip, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "OUT").symlink_to(tmp_path / "real")
    assert segment(clip)[0] == 0
    assert len(list((tmp_path / "real").iterdir())) == len(ENDINGS)


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_leads_nowhere(segment, clip, tmp_path, there):
    """Without --overwrite it counts as there; with it the link is replaced, and not what it leads to."""
    (tmp_path / "OUT").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    for ending in ENDINGS:
        target = outside if ending == ".png" else outside / f"file{ending}"
        if there and ending != ".png":
            target.write_text("mine")
        (tmp_path / "OUT" / f"clip{ending}").symlink_to(target)
    before = everything(outside)
    refused(segment(clip), "exists already; pass --overwrite")
    assert segment(clip, "--overwrite")[0] == 0
    assert everything(outside) == before
    assert sorted(path.name for path in (tmp_path / "OUT").iterdir()) == sorted(f"clip{ending}" for ending in ENDINGS)
    assert not any(path.is_symlink() for path in (tmp_path / "OUT").iterdir())


def test_a_link_under_the_temporary_name_is_not_followed(segment, clip, tmp_path):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "outside").write_text("mine")
    for ending in ENDINGS[:3]:
        (tmp_path / "OUT" / f".clip{ending}.{os.getpid()}.part").symlink_to(tmp_path / "outside")
    assert segment(clip)[0] == 0
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small file system in memory; for the superuser of a machine that lets it."""
    mounts = []

    def mount(options):
        folder = tmp_path / f"mount{len(mounts)}"
        folder.mkdir()
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            pytest.skip("only the superuser of a Linux system mounts file systems")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
        mounts.append(folder)
        return folder

    yield mount
    for mount in mounts:
        subprocess.run(["umount", mount], check=True)


def noise(path, count=6):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (192, 256, 3), dtype=np.uint8) for _ in range(count)]
    return write_video(path, images, codec="ffv1", pixels="bgr0")


@pytest.mark.parametrize("save", ["overlay", "labels", "png", "overlay,labels,png"])
def test_a_full_disk_is_said_and_leaves_nothing(segment, mounted, tmp_path, save):
    disk = mounted("size=12k")
    refused(
        segment(noise(tmp_path / "noise.mkv"), "--save", save, out=disk), "expected to be able to write", "No space"
    )
    assert list(disk.iterdir()) == []


def test_a_full_disk_keeps_what_was_there(segment, mounted, tmp_path):
    disk = mounted("size=16k")
    source = noise(tmp_path / "noise.mkv")
    for name in ("noise.json", "noise.labels.mkv"):
        (disk / name).write_text("mine")
    refused(segment(source, "--overwrite", "--save", "labels", out=disk), "No space left on device")
    assert {path.name: path.read_text() for path in disk.iterdir()} == {
        "noise.json": "mine",
        "noise.labels.mkv": "mine",
    }


def test_a_disk_that_is_read_only_is_said(segment, mounted, clip):
    disk = mounted("ro")
    refused(segment(clip, out=disk), "Read-only file system")
    refused(segment(clip, out=disk / "below"), "cannot make the output directory", "Read-only file system")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_place_that_takes_no_folders_is_said(segment, clip):
    refused(segment(clip, out=Path("/proc/mpvss")), "/proc/mpvss: cannot make the output directory")
