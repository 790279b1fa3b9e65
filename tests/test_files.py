"""Laws of the one writer, whole or not there at all and one at a time, and of the order of names."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ColourSegmentor
from mpvss._files import Pending, atomic, install, natural_order, output_errors, scratch, write_json
from mpvss.errors import OutputError


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(part, text):
    if part.is_dir():
        (part / "in").mkdir()
        (part / "in" / "a").write_text(text)
    else:
        part.write_text(text)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [None, "file", "folder", "link"])
def test_an_output_is_there_when_it_is_whole_and_not_before(tmp_path, folder, before):
    path = tmp_path / "o"
    if before == "folder":
        path.mkdir()
        (path / "former").write_text("f")
    elif before == "file":
        path.write_text("f")
    elif before == "link":
        path.symlink_to(tmp_path / "nowhere")
    with atomic(path, folder=folder) as part:
        write(part, "new")
        assert tree(tmp_path).get("o/in/a") != "new"
        assert tree(tmp_path).get("o") != "new"
    assert tree(tmp_path) == ({"o/in/a": "new"} if folder else {"o": "new"})
    assert not path.is_symlink()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there_and_nothing_else(tmp_path, folder, error):
    path = tmp_path / "o"
    with atomic(path, folder=folder) as part:
        write(part, "old")
    before = tree(tmp_path)
    with pytest.raises(error), atomic(path, folder=folder) as part:
        write(part, "new")
        raise error
    assert tree(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["o"]


def test_the_bytes_of_every_file_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    synced, renamed = [], []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))

    def replacing(self, target):
        renamed.append((self.name, {file.stat().st_ino for file in [self, *self.rglob("*")]} <= set(synced)))
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", replacing)
    with atomic(tmp_path / "o", folder=True) as part:
        write(part, "new")
    assert [whole for _, whole in renamed] == [True]
    assert tmp_path.stat().st_ino in synced


def test_what_is_staged_is_installed_and_the_rest_is_removed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("former")
    with scratch(tmp_path / "stage") as part:
        (part / "b").write_text("new")
        (part / "clip").mkdir()
        (part / "clip" / "0").write_text("0")
        (part / "rest").write_text("rest")
        for name in ("b", "clip"):
            install(part / name, tmp_path / "out" / name)
    assert tree(tmp_path) == {"out/b": "new", "out/clip/0": "0"}
    with pytest.raises(OutputError, match=r"expected to be able to write .*o, got: No such file"):
        install(tmp_path / "missing", tmp_path / "o")


def test_errors_of_the_system_name_the_output(tmp_path):
    refused = pytest.raises(
        OutputError, match=r"expected to be able to write .*a, got: Is a directory; choose a writable"
    )
    with refused, output_errors(tmp_path / "a"):
        tmp_path.read_bytes()
    with pytest.raises(ValueError, match="ours"), output_errors(tmp_path / "a"):
        raise ValueError("ours")


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    code = "import os, sys; from mpvss._files import Pending; a = Pending(sys.argv[1]); "
    code += "os.kill(os.getpid(), 9)"
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    assert dead.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".mine.01234567.part").write_text("of no writer: it has no lock")
    alive = Pending(tmp_path / "b.json")
    (tmp_path / f".c.json.{2**22 + 1}.part").write_text("of a process of the version before that is gone")
    with pytest.raises(OutputError, match="got another run at work"):
        Pending(tmp_path / "b.json")
    Pending(tmp_path / "c.json").discard()
    assert alive.temporary.exists()
    alive.commit()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mine.01234567.part", "b.json"]


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"b": object()})
    with pytest.raises(OutputError, match="expected to be able to write"):
        write_json(tmp_path / "missing" / "a.json", {})
    assert list(tree(tmp_path)) == ["a.json"]


@pytest.mark.parametrize(
    "names",
    [
        ["t10.25.png", "t10.4.png"],
        ["-2.png", "-1.png", "0.png", "1.png", "10.png"],
        ["t-2.png", "t-1.png", "t0.png", "t1.png"],
        ["t_-10.5.png", "t_-2.png", "t_3.png"],
        ["+1.png", "+2.png", "+10.png"],
        ["shot-1.png", "shot-2.png", "shot-10.png"],
        ["2024-01-09.png", "2024-01-10.png", "2024-11-02.png"],
        ["frame_1.png", "frame_02.png", "frame_003.png", "frame_10.png"],
        ["007.png", "07.png", "7.png", "08.png"],
        ["v1.2.9.png", "v1.2.10.png", "v1.10.1.png"],
        ["a.0009.png", "a.0010.png", "b.0001.png"],
        ["A1.png", "a1.png", "a2.png", "B1.png", "b2.png", "C.png"],
        ["a.jpg", "a.png", "a1.jpg"],
        ["2/1.png", "10/1.png", "10/2.png"],
        ["frame9.png", "frame" + "9" * 200 + ".png"],
        ["x\u00e9.png", "xe\u03011.png"],
    ],
)
def test_names_are_in_natural_order_whatever_order_they_come_in(names):
    random.seed(0)
    for _ in range(20):
        mixed = random.sample(names, len(names))
        assert natural_order(mixed) == names


def _writers():
    """Functions that write, by what they write; each takes where."""
    from mpvss.convert.export import export
    from mpvss.motion import QueryFlow
    from mpvss.motion.dis import Hold
    from mpvss.segmenter import VideoSegmenter
    from mpvss.segmentors import load_segmentor
    from mpvss.training.tasks import save_segmentor
    from test_motion_network import TINY

    image = Path(__file__).parent / "data" / "anim.webp"

    return {
        "export": lambda out: export("compact", (64, 96), out),
        "motion module": QueryFlow(TINY).save_pretrained,
        "segmentor": lambda out: save_segmentor(load_segmentor("compact"), out),
        "segment": lambda out: VideoSegmenter(ColourSegmentor(), Hold()).process(image, out),
        "json": lambda out: write_json(out, {}),
    }


@pytest.mark.parametrize("what", ["export", "motion module", "segmentor", "segment", "json"])
@pytest.mark.parametrize("kind", ["below a file", "not a name", "a very long path"])
def test_whatever_cannot_be_written_is_one_error_of_ours(tmp_path, what, kind):
    (tmp_path / "file").write_text("")
    out = tmp_path / {"below a file": "file/below", "not a name": "n" * 300, "a very long path": "a/" * 2100}[kind]
    with pytest.raises(OutputError, match=r"expected to be able to write|cannot make the output directory") as caught:
        _writers()[what](out)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
