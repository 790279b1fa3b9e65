"""Runs end, stop with clear errors, and go on as if nothing had happened."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers import moving_frames
from mpvss.convert.checkpoint import load_motion, segmentor_of
from mpvss.datasets import Clip
from mpvss.errors import ConfigError, DataError, ModelError, OutputError
from mpvss.segmenter import VideoSegmenter
from mpvss.training.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from mpvss.training.config import make_config
from mpvss.training.loop import TrainingError, rate, train
from mpvss.training.samples import batches, check_labels, open_samples
from train_world import make_folder, make_segmentor, make_values

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_folder(root / "data")
    make_segmentor(root / "segmentor")
    return root


def run(world: Path, out: Path, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return train(make_config(make_values(world, out, **changes)), resume=resume, quiet=True).to_dict()


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("propagator", ["query", "flow"])
def test_a_run_leaves_a_model(world: Path, tmp_path: Path, propagator: str) -> None:
    validation = {"data__validation": f"folder:{world / 'data'}", "data__interval": 3, "run__pictures_every": 3}
    result = run(world, tmp_path, model__propagator=propagator, **validation)
    assert len(result["miou_by_distance"]) == len(result["oracle_miou_by_distance"]) == 3
    assert result["oracle_miou_by_distance"][0] == 1.0
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6, 6]
    assert set(metrics(tmp_path)[0]) >= {"loss", "sets", "flow", "lr", "images_per_second", "seconds", "grad_norm"}
    assert list((tmp_path / "tensorboard").iterdir())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004.pt",
        "step-00000006.pt",
    ]
    assert segmentor_of(str(tmp_path / "best")) == str(tmp_path / "best" / "segmentor")
    segmenter = VideoSegmenter.from_pretrained(tmp_path, propagator=propagator, interval=3)
    assert len(list(segmenter.stream(moving_frames(4)))) == 4


def test_named_heads_are_trained_and_exported(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, model__heads=["class_predictor"])
    before = load_file(world / "segmentor" / "model.safetensors")
    after = load_file(tmp_path / "segmentor" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_predictor.weight", "class_predictor.bias"}
    assert load_motion(tmp_path).segmentor == "segmentor"
    VideoSegmenter.from_pretrained(tmp_path, propagator="query")
    with pytest.raises(ConfigError, match="no module 'class_predicter'; near: class_predictor"):
        run(world, tmp_path / "other", model__heads=["class_predicter"])


def test_a_query_module_starts_from_one_flow(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "flow", model__propagator="flow")
    run(world, tmp_path / "query", model__start_from=str(tmp_path / "flow"), optim__steps=1, optim__lr=1e-9)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("flow", "query"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0)


def test_a_segmentor_is_trained_for_other_classes(world: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", clips=1)
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    values = make_values(
        world, tmp_path / "run", stage="segmentor", data__validation=f"folder:{tmp_path / 'data'}",
        model__new_classes=True, model__gradient_checkpointing=True,
        data__sources=[{"data": f"folder:{tmp_path / 'data'}"}],
        optim__frozen=["model.pixel_level_module.encoder"], optim__accumulate=2,
    )  # fmt: skip
    result = train(make_config(values), quiet=True).to_dict()
    assert 0 <= result["miou"] <= 1
    segmenter = VideoSegmenter.from_pretrained(tmp_path / "run", propagator="none")
    assert segmenter.segmentor.class_names == ("sky", "road", "car", "tree")
    before = load_file(world / "segmentor" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before if ".encoder.embedder" in n)
    values["model"]["new_classes"] = False
    with pytest.raises(ConfigError, match="has 3 classes, the data 4"):
        train(make_config(values | {"run": values["run"] | {"out": str(tmp_path / "other")}}), quiet=True)


def test_the_papers_architecture_starts_from_a_backbone(world: Path, tmp_path: Path) -> None:
    from transformers import ResNetBackbone, ResNetConfig

    from mpvss.training.tasks import make_task

    torch.manual_seed(1)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetBackbone(ResNetConfig(depths=[3, 4, 6, 3], out_features=stages))
    backbone.save_pretrained(tmp_path / "r50")
    values = make_values(
        world, tmp_path / "run", stage="segmentor", model__segmentor=None, model__arch="r50",
        model__backbone=str(tmp_path / "r50"), model__motion={},
    )  # fmt: skip
    task = make_task(make_config(values), ("a", "b"), torch.device("cpu"))
    loaded = task.model.model.pixel_level_module.encoder.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())
    rates = {round(group["peak"], 8) for group in task.groups()}
    assert rates == {1e-3, 1e-4}
    values["model"]["arch"] = "r101"
    with pytest.raises(ModelError, match=r"not the backbone of model\.arch"):
        make_task(make_config(values), ("a", "b"), torch.device("cpu"))


def test_samples_do_not_depend_on_workers_or_processes(world: Path, tmp_path: Path) -> None:
    def pictures(start: int, rank: int, world_size: int, **changes: Any) -> list[torch.Tensor]:
        config = make_config(make_values(world, tmp_path, **changes))
        samples, names = open_samples(config)
        assert len(names) == 3
        return [batch.current for batch, _ in batches(samples, config, start, rank, world_size)]

    alone = pictures(0, 0, 1)
    assert len(alone) == 6
    for one, other in zip(alone, pictures(0, 0, 1, run__workers=2), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(alone[4:], pictures(4, 0, 1), strict=True):
        assert torch.equal(one, other)
    shared = [pictures(0, rank, 2, optim__batch=1) for rank in (0, 1)]
    for one, first, second in zip(alone, *shared, strict=True):
        assert torch.equal(one, torch.cat([first, second]))


def spoil(path: Path, value: int = 77) -> None:
    label = np.asarray(Image.open(path)).copy()
    label[3, 4] = value
    Image.fromarray(label).save(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_label_in_a_worker_is_one_line(world: Path, tmp_path: Path, workers: int) -> None:
    copied = shutil.copytree(world, tmp_path / "world")
    config = make_config(make_values(copied, tmp_path / "run", run__workers=workers))
    for path in (copied / "data" / "labels").rglob("*.png"):
        spoil(path)
    with pytest.raises(DataError, match=r"^\S+\.png: label 77 at row 3, column 4 is out of range; [^\n]*$"):
        list(batches(open_samples(config)[0], config, 0))


def test_all_labels_are_checked_before_the_first_step_and_once(world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    copied = shutil.copytree(world, tmp_path / "world")
    files = sorted((copied / "data" / "labels").rglob("*.png"))
    spoil(files[-1])
    spoil(files[2])
    config = make_config(make_values(copied, tmp_path / "run"))
    with pytest.raises(DataError, match=rf"{files[2].name}: label 77 .*; 2 of {len(files)} labels are wrong"):
        train(config, quiet=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    read = []
    original = Clip.load_label
    monkeypatch.setattr(Clip, "load_label", lambda clip, i: read.append(clip.frames[i].label_path) or original(clip, i))
    samples, _ = open_samples(config)
    cache = tmp_path / "run" / "labels-checked.json"
    with pytest.raises(DataError, match="label 77"):
        check_labels(samples.clips, cache)
    assert sorted(read) == [files[2], files[-1]]
    spoil(files[2], 0)
    spoil(files[-1], 0)
    check_labels(samples.clips, cache)
    read.clear()
    check_labels(samples.clips, cache)
    assert read == []
    cache.write_text("[1")
    check_labels(samples.clips, cache)
    assert sorted(read) == files
    spoil(files[0], 50)
    with pytest.raises(DataError, match="label 50"):
        check_labels(samples.clips, cache)


def test_training_goes_on_labels_at_some_frames_and_a_void_id(world: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(world, tmp_path / "world")
    for path in sorted((copied / "data" / "labels").rglob("*.png"))[::2]:
        path.unlink()
    values = make_values(copied, tmp_path / "run")
    assert train(make_config(values), quiet=True).steps == values["optim"]["steps"]


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    optim = make_config(make_values(Path(), Path(), optim__steps=100, optim__warmup=10)).optim
    rates = [rate(step, optim) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert 0 < rates[99] < 0.02


# What goes wrong


def test_a_run_is_not_overwritten_nor_changed(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, optim__steps=2)
    with pytest.raises(OutputError, match="holds a run already"):
        run(world, tmp_path, optim__steps=2)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 in the run, 0\.002 now"):
        run(world, tmp_path, resume=True, optim__steps=2, optim__lr=2e-3)
    assert run(world, tmp_path, resume=True, optim__steps=2, run__workers=1)["steps"] == 2


def test_missing_data_leaves_nothing_behind(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        run(world, tmp_path / "run", data__sources=[{"data": f"folder:{tmp_path / 'nowhere'}"}])
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpvss.training import tasks

    calls = 0
    honest = tasks.endpoint_error

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(*arguments) * (float("nan") if calls == 4 else 1.0)

    monkeypatch.setattr(tasks, "endpoint_error", poisoned)
    with pytest.raises(
        TrainingError, match=r"step 4: .* is nan on samples 6 to 7, kept in .*not-finite-00000004-0\.pt"
    ):
        run(world, tmp_path)
    kept = torch.load(tmp_path / "not-finite-00000004-0.pt", weights_only=True)
    assert kept["current"].shape == (2, 3, 64, 64)
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert load_checkpoint(checkpoint)["step"] == 2
    assert run(world, tmp_path, resume=True)["steps"] == 6


@pytest.mark.parametrize("where", ["fsync", "write"])
def test_a_full_disk_keeps_the_checkpoints_before(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run(world, tmp_path, optim__steps=6)
    path = last_checkpoint(tmp_path)
    assert path is not None
    whole = path.read_bytes()
    if where == "fsync":

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device; earlier checkpoints are untouched"):
            save_checkpoint(tmp_path, 7, {"step": 7}, 2)
    else:
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(OutputError, match="cannot write: File too large"):
                save_checkpoint(tmp_path, 7, {"step": 7, "model": torch.zeros(100_000)}, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last_checkpoint(tmp_path) == path
    assert path.read_bytes() == whole
    assert not list(tmp_path.rglob("*.part"))


# Killed, and with several processes

_KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_world import make_values
from mpvss.training.config import make_config
from mpvss.training.loop import train
import accelerate, transformers, torch.utils.tensorboard, mpvss.training.losses

world, out = Path({world!r}), Path({out!r})
def begin(place):
    child = os.fork()
    if child == 0:
        values = make_values(world, place, optim__steps=24, optim__ema=0.9, run__save_every=3, run__keep=3)
        train(make_config(values), resume=True, quiet=True)
        os._exit(0)
    return child

clock = time.monotonic()
assert os.waitpid(begin(out / "whole"), 0)[1] == 0
whole = time.monotonic() - clock
dice, kills = random.Random(1), 0
def newest():
    return max((path.name for path in (out / "killed").glob("checkpoints/step-*.pt")), default="")
for attempt in range(4):
    before, child, ended = newest(), begin(out / "killed"), 0
    while newest() == before and not (ended := os.waitpid(child, os.WNOHANG)[0]):
        time.sleep(0.01)
    if ended:
        break
    time.sleep(dice.uniform(0, 1 / 8) * whole)  # some steps further, or while the next checkpoint is written
    os.kill(child, signal.SIGKILL)
    kills += os.waitpid(child, 0)[1] != 0
assert os.waitpid(begin(out / "killed"), 0)[1] == 0
print(kills)
"""


def test_a_killed_run_goes_on_bit_identically(world: Path, tmp_path: Path) -> None:
    script = _KILLED.format(tests=str(HERE), world=str(world), out=str(tmp_path))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "step-00000024.pt") for name in ("whole", "killed"))
    for key, state in one["optimizer"]["state"].items():
        assert all(torch.equal(value, other["optimizer"]["state"][key][name]) for name, value in state.items())
    assert [line["step"] for line in metrics(tmp_path / "killed")] == list(range(2, 25, 2))


_SHARED = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_world import make_values
from mpvss.training.config import make_config
from mpvss.training.loop import train

values = make_values(Path({world!r}), Path({out!r}), optim__steps=3, optim__batch=2, loss__points=0, loss__scores=1.0,
    model__heads=["class_predictor"], run__log_every=1, optim__clip_norm=1e9)
train(make_config(values), quiet=True)
"""


def test_two_processes_equal_one_with_the_doubled_batch(world: Path, tmp_path: Path) -> None:
    alone = {"optim__steps": 3, "optim__batch": 4, "loss__points": 0, "loss__scores": 1.0, "run__log_every": 1}
    run(world, tmp_path / "one", model__heads=["class_predictor"], optim__clip_norm=1e9, **alone)
    script = tmp_path / "shared.py"
    script.write_text(_SHARED.format(tests=str(HERE), world=str(world), out=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        # Adam's first steps are as long as the rate whatever the gradient, so rounding shows where it is tiny.
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)


def test_a_training_that_is_stopped_is_gone_on_with(world: Path, tmp_path: Path) -> None:
    """Law: it leaves a checkpoint of the step at which it was stopped, whatever ``save_every`` says."""
    stop = threading.Event()
    stop.set()
    summary = train(make_config(make_values(world, tmp_path)), quiet=True, stop=stop)
    assert summary.steps == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.pt"]
    assert run(world, tmp_path, resume=True)["steps"] == 6
