"""Videos alone make a motion module."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import moving_frames
from mpvss.cli import run
from mpvss.convert.checkpoint import load_motion
from mpvss.datasets import open_dataset
from mpvss.errors import OutputError
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import load_segmentor
from mpvss.training.teacher import teach
from mpvss.types import Frame
from train_world import MOTION, make_folder, make_segmentor


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    make_folder(root / "data", clips=1)
    make_segmentor(root / "segmentor")
    video = root / "street"
    video.mkdir()
    for scene in range(2):  # two scenes with a cut between
        for frame in moving_frames(4, (64, 96), seed=scene * 7):
            rgb = frame.rgb if scene == 0 else 255 - frame.rgb
            Image.fromarray(rgb).save(video / f"{scene * 4 + frame.index:03}.png")
    return root


def test_the_teacher_is_the_segmentor_and_works_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmentor = load_segmentor(world / "segmentor")
    spec = teach([str(world / "street")], segmentor, tmp_path / "taught", confidence=0.0)
    dataset = open_dataset(spec, "taught")
    assert dataset.class_names == segmentor.class_names
    assert sum(len(clip) for clip in dataset.clips) == 8
    clip = dataset.clips[0]
    image, label = clip.load_image(1), clip.load_label(1)
    assert label is not None
    frame = Frame(0, Fraction(0), np.asarray(Image.open(world / "street" / "001.png")))
    alone = VideoSegmenter(segmentor, None).session().push(frame)[0]
    np.testing.assert_array_equal(label, alone.labels)
    assert np.abs(image.astype(int) - frame.rgb).mean() < 3

    doubtful = open_dataset(teach([str(world / "street")], segmentor, tmp_path / "sure", confidence=1.0), "taught")
    assert all((doubtful.clips[0].load_label(i) == 255).all() for i in range(2))

    monkeypatch.setattr(VideoSegmenter, "session", None)  # a second time there is nothing to do
    assert teach([str(world / "street")], segmentor, tmp_path / "taught", confidence=0.0) == spec


def test_another_teacher_needs_another_directory(world: Path, tmp_path: Path) -> None:
    segmentor = load_segmentor(world / "segmentor")
    teach([str(world / "street")], segmentor, tmp_path)
    other = load_segmentor(make_segmentor(tmp_path / "other", num_labels=2))
    with pytest.raises(OutputError, match="labels of other classes"):
        teach([str(world / "street")], other, tmp_path)


@pytest.mark.parametrize("propagator", ["flow", "query"])
def test_distill_leaves_a_model_that_segments(
    world: Path, tmp_path: Path, propagator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model.motion": json.dumps(MOTION), "data.crop": "[64, 64]", "optim.steps": "4", "optim.batch": "2",
        "run.workers": "0", "run.device": "cpu", "run.pictures_every": "0",
    }  # fmt: skip
    command = ["distill", str(world / "street"), "--model", str(world / "segmentor"), "-o", str(tmp_path / "run")]
    command += ["--propagator", propagator, "--simulate", f"folder:{world / 'data'}", "--json", "--quiet"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4
    assert load_motion(tmp_path / "run").config.num_queries == 6
    assert run([*command, "--resume"]) == 0
    assert run(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    out = ["segment", str(world / "street"), "--model", str(tmp_path / "run"), "--propagator", propagator]
    assert run([*out, "-o", str(tmp_path / "out"), "--quiet"]) == 0


def test_train_reads_a_file(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from train_world import make_values

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(make_values(world, tmp_path / "run")))
    assert run(["train", str(config), "--set", "optim.steps=2", "--quiet"]) == 0
    assert "2 steps" in capsys.readouterr().out
    assert run(["train", str(config), "--set", "optim.stepz=2", "--quiet"]) == 2
    assert "did you mean optim.steps?" in capsys.readouterr().err
    assert run(["distill", "x", "-o", str(tmp_path / "y"), "--propagator", "dis"]) == 2
    assert "is not one of 'flow', 'query'" in capsys.readouterr().err
