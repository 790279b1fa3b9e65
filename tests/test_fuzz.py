"""No damaged file brings a reader to anything but a result or an error of ours; and the fuzzer would notice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fuzz
from mpvss.errors import MpvssError


def run(inputs, seed, *options):
    """In a program of its own, without the checks of shapes that only tests have."""
    command = [sys.executable, Path(fuzz.__file__), "--inputs", str(inputs), "--seed", str(seed), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout, found.stderr[-3000:]
    report = json.loads(found.stdout)
    assert report["findings"] == []
    assert report["inputs"] == inputs
    return report


def test_damaged_files_are_read_or_refused():
    report = run(60, 20)
    assert set(report["outcomes"]) == {"read", "refused"}


@pytest.mark.soak
def test_many_damaged_files_are_read_or_refused(tmp_path):
    report = run(2000, 21)
    assert set(report["by_reader"]) == set(fuzz.READERS)


def read(path, out, beat, rng):
    path.joinpath("a.txt").read_bytes()


def refuse(path, out, beat, rng):
    raise MpvssError("no")


def fail(path, out, beat, rng):
    raise KeyError("a bug")


def crash(path, out, beat, rng):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path, out, beat, rng):
    while True:
        pass


def work(path, out, beat, rng):
    """Longer than a hang, but something comes of it."""
    until = time.process_time() + 1.5
    while time.process_time() < until:
        beat()


def grow(path, out, beat, rng):
    held = []
    while True:
        held.append(b"x" * 10**7)
        beat()  # it gets on, whatever the machine's pace: only memory can end it


def leave(path, out, beat, rng):
    (out.parent / "outside" / "a").write_text("x")


def overwrite(path, out, beat, rng):
    path.joinpath("a.txt").write_text("x")


def start(path, out, beat, rng):
    subprocess.run(["true"], check=True)


def write(path, out, beat, rng):
    (out / "a").write_text("x")


@pytest.mark.parametrize(
    ("reader", "kind", "detail"),
    [
        (read, "read", ""),
        (write, "read", ""),
        (work, "read", ""),
        (refuse, "refused", "MpvssError: no"),
        (fail, "exception", "KeyError: 'a bug'"),
        (crash, "crash", "ended with -9"),
        (hang, "hang", "nothing for"),
        (grow, "memory", "MiB more"),
        (leave, "outside", "outside/a"),
        (overwrite, "outside", "world/a.txt"),
        (start, "outside", "subprocess.Popen"),
    ],
)
def test_the_watch_notices(monkeypatch, tmp_path, reader, kind, detail):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("a line\n" * 5)
    monkeypatch.setattr(fuzz, "READERS", {"one": (1, reader)})
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "MEMORY_BYTES", 100_000_000)
    worker = fuzz.Worker(0, {"one": tmp_path / "source"}, tmp_path / "place")
    try:
        for number in range(2):  # a child that had to be stopped is followed by another
            outcome = worker.run(number)
            assert (outcome.number, outcome.reader, outcome.kind) == (number, "one", kind)
            assert detail in outcome.detail
    finally:
        worker.close()


def test_an_input_follows_from_its_number(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a line\n" * 50)
    (source / "b.json").write_text(json.dumps({"a": [1, 2, {"b": "c"}]}))
    worlds = dict.fromkeys(fuzz.READERS, source)
    worlds["video"] = worlds["segment"] = source
    built = []
    for place in ("one", "other"):
        for number in range(30):
            folder = tmp_path / place / str(number)
            folder.mkdir(parents=True)
            fuzz.build(number, 3, worlds, folder)
        files = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
        built.append([(str(path.relative_to(tmp_path / place)), path.read_bytes()) for path in files])
    assert built[0] == built[1]
    assert len({content for _, content in built[0]}) > 20
