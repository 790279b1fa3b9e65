"""Kills at random moments: a batch that is resumed until it is done has the files of one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import moving_frames
from mpvss import cli
from test_batch import Pictures, tree
from test_video_reader import write_video

KILLS = int(os.environ.get("MPVSS_KILLS", "50"))
SIZE = (64, 96)
FRAMES = {"a/one": 12, "a/two": 20, "b/one": 16, "long": 40}
SEGMENT = ("--short-side", "96", "--interval", "5", "--propagator", "hold", "--quiet", "--json")
BATCH = ("batch", "--workers", "2", "--split", "12", *SEGMENT)


class Running:
    """A batch in a process group of its own."""

    def __init__(self, videos, out, *options):
        command = (sys.executable, "-m", "mpvss.cli", *BATCH, str(videos), "--out", str(out), *options)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def workers(self):
        """Processes of the group that are neither the driver nor multiprocessing's tracker."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != self.process.pid:
                try:
                    same = os.getpgid(int(entry.name)) == self.process.pid
                    if same and b"spawn_main" in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
                except (OSError, ProcessLookupError):
                    continue
        return found

    def kill(self, what, choose):
        """Send SIGKILL; return whether there was anything to send it to."""
        try:
            if what == "worker":
                os.kill(choose(self.workers()), signal.SIGKILL)
            elif what == "driver":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, IndexError):
            return False
        return True

    def end(self):
        out, err = self.process.communicate(timeout=900)
        return self.process.returncode, out, err


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for seed, (name, count) in enumerate(FRAMES.items()):
        path = folder / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, [frame.rgb for frame in moving_frames(count, SIZE, seed=seed)], g=9)
    (folder / "broken.mp4").write_text("no video")
    return folder


def segmented_whole(videos, out):
    """What ``mpvss segment`` makes of each video, one after the other and never divided."""
    for name in FRAMES:
        assert cli.run(["segment", str(videos / f"{name}.mp4"), "--out", str((out / name).parent), *SEGMENT]) == 0
    return tree(out)


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
def test_kills_at_any_moment_leave_the_files_of_a_run_that_was_left_alone(videos, tmp_path):
    seed = int(os.environ.get("MPVSS_SEED", time.time_ns() % 1_000_000))
    print(f"MPVSS_SEED={seed}")
    chance = random.Random(seed)
    began = time.monotonic()
    code, printed, err = Running(videos, tmp_path / "undisturbed").end()
    usual = time.monotonic() - began
    assert code == 3, err
    assert {item["name"]: item["state"] for item in json.loads(printed)["items"]} == {
        **dict.fromkeys(FRAMES, "done"), "broken": "failed"
    }  # fmt: skip
    expected = tree(tmp_path / "undisturbed")
    assert len(expected) == 3 * len(FRAMES)
    assert expected == segmented_whole(videos, tmp_path / "whole")

    kills = {"worker": 0, "driver": 0, "everything": 0}
    rounds = 0
    while sum(kills.values()) < KILLS:
        out = tmp_path / f"out-{rounds}"
        rounds += 1
        options = ()
        while True:
            running = Running(videos, out, *options)
            what = chance.choice(list(kills))
            # Half of the moments are within the start, when the manifest and the models are opened.
            alive = True
            while alive and sum(kills.values()) < KILLS:
                try:
                    running.process.wait(chance.uniform(0.0, usual * 0.8))
                    alive = False
                except subprocess.TimeoutExpired:
                    kills[what] += running.kill(what, chance.choice)
                    if what != "worker":
                        break
                    what = chance.choice(list(kills))
            code, printed, err = running.end()
            for path in out.rglob("*"):  # whatever has its final name is whole
                if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts):
                    name = str(path.relative_to(out))
                    found = Pictures(path) if name.endswith(".overlay.mp4") else path.read_bytes()
                    assert path.suffix == ".jsonl" or found == expected[name], name
            if code == 3:
                break
            # Workers that are killed five times before they are ready end the batch: it looks like too little memory.
            assert code == -signal.SIGKILL or (code == 2 and "died one after the other" in err), err
            options = ("--resume",) if (out / "manifest.jsonl").is_file() else ()
        states = {item["name"]: item["state"] for item in json.loads(printed)["items"]}
        assert {name for name, state in states.items() if state == "failed"} <= {"broken"} | gave_up(out), err
        if gave_up(out):  # a task whose worker was killed three times: the limit is doing its work
            code, printed, err = Running(videos, out, "--resume").end()
            assert code == 3, err
        assert tree(out) == expected
        assert not list(out.glob(".*"))
        check_manifest(out / "manifest.jsonl")
        shutil.rmtree(out)
        print(f"{kills}: {rounds} batches", flush=True)
    print(f"{kills}: {sum(kills.values())} kills, {rounds} batches, {time.monotonic() - began:.0f} s")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
def test_a_batch_goes_on_after_ctrl_c(videos, tmp_path):
    """A terminal sends SIGINT to all processes of the batch."""
    (videos / "broken.mp4").unlink()
    one_worker = ("--workers", "1")  # starting a process is what takes time
    running = Running(videos, tmp_path / "out", *one_worker)
    manifest = tmp_path / "out" / "manifest.jsonl"
    while not manifest.is_file() or '"done"' not in manifest.read_text():
        assert running.process.poll() is None, running.end()
        time.sleep(0.02)
    os.killpg(running.process.pid, signal.SIGINT)
    code, printed, err = running.end()
    assert (code, printed) == (130, "")
    assert err.splitlines() == ["--resume goes on from here", "mpvss: interrupted; nothing half-written was kept"]
    assert running.workers() == []
    whole = segmented_whole(videos, tmp_path / "whole")
    interrupted = tree(tmp_path / "out")
    assert 0 < len(interrupted) < len(whole)
    assert interrupted == {name: whole[name] for name in interrupted}
    code, _, err = Running(videos, tmp_path / "out", "--resume", *one_worker).end()
    assert code == 0, err
    assert tree(tmp_path / "out") == whole


def gave_up(out):
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {line["item"] for line in lines if line["event"] == "failed" and "its worker died" in line["error"]}


def check_manifest(path):
    """Every line is whole; what is done was begun before, and is done once unless its files were not whole."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    started = set()
    for event in events:
        if event["event"] == "start":
            started.add(event["item"])
        elif event["event"] == "done":
            assert event["item"] in started
    done = [event["item"] for event in events if event["event"] == "done"]
    assert sorted(done) == sorted(FRAMES)
