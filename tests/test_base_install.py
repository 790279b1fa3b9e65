"""What works with the base installation alone: no torch, no transformers, no scipy, no charts.

Every command runs in a process that cannot import them, workers included. ``make test-base`` runs this file once more,
in an environment that does not have them.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mpvss.evaluation.machine import synthetic_video
from mpvss.outputs import LabelReader

ABSENT = ("torch", "transformers", "scipy", "safetensors", "huggingface_hub", "matplotlib", "onnx", "accelerate")
SIZE, FRAMES = (96, 128), 7
REFUSAL = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
FUNCTION = """
import numpy as np

def halves(image):
    return (np.arange(image.shape[1]) > image.shape[1] // 2)[None].repeat(len(image), 0).astype(np.uint8)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clip, its frames as a data set, two masks, a function, and a module that refuses what is absent."""
    place = tmp_path_factory.mktemp("base")
    (place / "refusal").mkdir()
    (place / "refusal" / "sitecustomize.py").write_text(REFUSAL)
    (place / "function.py").write_text(FUNCTION)
    (place / "names.txt").write_text("left\nright\n")
    synthetic_video(place / "clip.mp4", SIZE, FRAMES)
    capture = cv2.VideoCapture(str(place / "clip.mp4"))
    for folder in ("data/images", "data/labels", "masks"):
        (place / folder).mkdir(parents=True)
    for index in range(FRAMES):
        Image.fromarray(capture.read()[1][..., ::-1]).save(place / "data" / "images" / f"{index:02}.png")
        label = Image.fromarray((np.indices(SIZE)[1] > 40 + index).astype(np.uint8))
        label.save(place / "data" / "labels" / f"{index:02}.png")
        if index in (0, FRAMES - 1):
            label.save(place / "masks" / f"{index:02}.png")
    names = json.loads((Path(find_spec("mpvss").origin).parent / "assets/compact/config.json").read_text())["id2label"]
    (place / "data" / "classes.txt").write_text("\n".join(names[str(id_)] for id_ in range(len(names))))
    return place


@pytest.fixture
def mpvss(place, tmp_path):
    """Run a command in a process without what is absent: exit code, standard output, standard error."""
    source = str(Path(find_spec("mpvss").origin).parents[1])
    path = os.pathsep.join([str(place / "refusal"), str(place), source])

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "mpvss", *map(str, arguments)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    return run


def one_line(error):
    """The one line of an error, without what was logged before it."""
    (line,) = (line for line in error.splitlines() if line.startswith("mpvss: "))
    return line


def test_everything_a_video_needs_is_imported_without_torch(place):
    modules = (
        "mpvss.segmenter, mpvss.cli.segment, mpvss.cli.models, mpvss.cli.evaluate, mpvss.cli.annotate, mpvss.batch.run,"
        " mpvss.batch.worker, mpvss.outputs.sinks, mpvss.video, mpvss.annotate, mpvss.evaluation.run, mpvss.segmentors,"
        " mpvss.evaluation.compare, mpvss.evaluation.report, mpvss.evaluation.benchmark, mpvss.datasets, mpvss.metrics"
    )
    source = str(Path(find_spec("mpvss").origin).parents[1])
    path = os.pathsep.join([str(place / "refusal"), source])
    networks = "{'build', 'TrainSummary', 'ExportSummary'}"
    code = f"import {modules}\nimport mpvss\nfor name in set(mpvss.__all__) - {networks}: getattr(mpvss, name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_segment_and_inspect(mpvss, place, tmp_path):
    out, _ = mpvss("segment", place / "clip.mp4", "--json")
    (video,) = json.loads(out)["videos"]
    assert (video["frames"], video["propagator"]) == (FRAMES, "dis")
    reader = LabelReader(tmp_path / video["outputs"]["labels"])
    assert [labels.shape for _, _, labels, _ in reader] == [SIZE] * FRAMES
    assert "verified" in mpvss("inspect", video["outputs"]["labels"], "--verify")[0]
    assert json.loads(mpvss("inspect", place / "clip.mp4", "--json")[0])["frames"] == FRAMES
    meta = json.loads((tmp_path / video["outputs"]["meta"]).read_text())
    assert ("torch" in meta["libraries"]) == bool(list(metadata.distributions(name="torch")))  # what is installed
    assert "onnxruntime" in meta["libraries"]


def test_segment_with_a_function(mpvss, place, tmp_path):
    model = ("--model", f"{place / 'function.py'}:halves", "--classes-file", place / "names.txt")
    out, _ = mpvss("segment", place / "clip.mp4", *model, "--save", "labels", "--json")
    (video,) = json.loads(out)["videos"]
    assert all((labels[:, -1] == 1).all() for _, _, labels, _ in LabelReader(tmp_path / video["outputs"]["labels"]))


def test_segment_with_an_exported_model(mpvss, place):
    folder = Path(find_spec("mpvss").origin).parent / "assets" / "compact"
    out, _ = mpvss("segment", place / "clip.mp4", "--model", folder, "--save", "labels", "--json")
    assert json.loads(out)["videos"][0]["frames"] == FRAMES


def test_batch(mpvss, place, tmp_path):
    out, _ = mpvss("batch", place / "clip.mp4", "-o", tmp_path / "out", "--workers", 1, "--json")
    assert json.loads(out)["done"] == 1


def test_eval_and_compare(mpvss, place):
    for run in ("a", "b"):
        interval = {"a": 3, "b": 5}[run]
        out, _ = mpvss("eval", "--data", f"folder:{place / 'data'}", "--interval", interval, "-o", run, "--json")
        assert json.loads(out)["frames"] == FRAMES
    out, _ = mpvss("compare", "a", "b")
    assert "mIoU" in out
    data = f"folder:{place / 'data'}"
    _, error = mpvss("eval", "--data", data, "-o", "c", "--report", "page", code=2)
    assert one_line(error) == "mpvss: charts need matplotlib, which is not installed: pip install 'mpvss[eval]'"


def test_propagate(mpvss, place):
    out, _ = mpvss("propagate", place / "data" / "images", "--masks", place / "masks", "--json")
    assert json.loads(out)["frames"] == FRAMES


def test_bench(mpvss, place):
    out, _ = mpvss("bench", place / "clip.mp4", "--interval", 3, "--json")
    assert json.loads(out)
    out, _ = mpvss("bench", "--size", "64x96", "--frames", 3, "--interval", 2, "--repeats", 1, "--runs", 1)
    assert "pip install 'mpvss[torch]'" in out  # of the rows that need the library


def test_models_and_doctor(mpvss):
    assert "compact" in mpvss("models")[0]
    out, _ = mpvss("doctor")
    assert "torch: not installed: pip install 'mpvss[torch]'" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "clip.mp4", "--model", "facebook/mask2former-swin-tiny-cityscapes-semantic"],
        ["segment", "clip.mp4", "--device", "cuda"],
        ["segment", "clip.mp4", "--dtype", "bfloat16"],
        ["eval", "--data", "folder:data", "--model", "owner/name"],
        ["train", "config.yaml"],
        ["distill", "clip.mp4", "-o", "out"],
        ["export", "-o", "out"],
        ["cost", "--arch", "r50"],
        ["bench", "--arch", "swin-t"],
    ],
    ids=" ".join,
)
def test_what_needs_torch_says_the_command_in_one_line(mpvss, place, arguments):
    given = {"clip.mp4": place / "clip.mp4", "folder:data": f"folder:{place / 'data'}"}
    _, error = mpvss(*(given.get(each, each) for each in arguments), code=2)
    assert "pip install 'mpvss[" in one_line(error)


@pytest.mark.skipif(find_spec("torch") is not None, reason="for make test-base: this environment has torch")
def test_this_environment_has_nothing_of_it():
    assert [name for name in ABSENT if find_spec(name) is not None] == []
