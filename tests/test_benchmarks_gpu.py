"""The benchmark for a GPU runs all of its steps on the CPU, through the carrier that a GPU has."""

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mpvss.segmenter import VideoSegmenter

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    """Its names, with everything on the CPU taken for another device."""
    monkeypatch.setattr(VideoSegmenter, "_on_device", lambda _: True)
    return runpy.run_path(str(SCRIPT))


def run(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    return gpu["main"]()


@pytest.mark.soak
def test_every_step_runs_and_is_written(gpu, monkeypatch, tmp_path):
    assert run(gpu, monkeypatch, "--device", "cpu", "--quick", "--dtypes", "float32", "--out", str(tmp_path)) == 0
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert not [name for name, found in steps.items() if "failed" in found or "skipped" in found]
    assert steps["labels as on the CPU"]["dis"] > 0.99
    ways = {"per frame", "hold, forward", "dis, forward", "dis, both"}
    assert set(steps["EoMT-L 64, float32: segmentation, 64x48"]["frames a second"]) == ways
    ours = steps["Mask2Former Swin-T, float32: segmentation, 64x48"]["frames a second"]
    assert set(ours) == ways | {"query, forward"}
    assert set(steps["EoMT-L 64, float32: key frame"]) == {"batch 1", "batch 2"}


def test_a_step_that_fails_or_comes_too_late_is_said(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(gpu["measure"].__globals__, "make_models", lambda *_: iter(()))
    monkeypatch.setitem(gpu["measure"].__globals__, "missing", list)
    monkeypatch.setattr(gpu["Run"], "agreement", lambda _: 1 / 0)
    assert run(gpu, monkeypatch, "--device", "cpu", "--out", str(tmp_path)) == 1
    assert "failed: labels as on the CPU" in capsys.readouterr().out
    assert run(gpu, monkeypatch, "--device", "cpu", "--out", str(tmp_path), "--seconds", "0") == 0
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {"skipped"} == {key for found in steps.values() for key in found}


def test_missing_packages_are_listed_before_anything_else(gpu, monkeypatch, capsys):
    monkeypatch.setitem(gpu["missing"].__globals__, "NEEDED", ["numpy", "no_such_package"])
    assert run(gpu, monkeypatch) == 2
    assert capsys.readouterr().out == "missing: no_such_package\n"


def test_frames_are_endless_and_in_order(gpu):
    source = gpu["made_frames"]((16, 24))
    frames = [next(source) for _ in range(4)]
    assert {frame.rgb.shape for frame in frames} == {(16, 24, 3)}
    again = gpu["endless"](frames)
    played = [next(again) for _ in range(9)]
    assert [frame.index for frame in played] == list(range(9))
    assert all(now.pts > then.pts for then, now in pairwise(played))
    assert (played[6].rgb == played[0].rgb).all()
