"""Laws of what a run keeps on disk: what is damaged is said, and what can be kept is kept."""

import json

import pytest
import torch

from mpvss.errors import ConfigError, ModelError
from mpvss.training.checkpoints import begin, cut_metrics, load_checkpoint, save_checkpoint
from mpvss.training.config import make_config

STATE = {"step": 4, "model": {"a": torch.zeros(2)}, "average": {}, "best": None, "optimizer": {}, "scaler": None}


def config():
    return make_config({"stage": "motion", "data": {"sources": [{"data": "folder:x"}]}})


def test_a_checkpoint_comes_back(tmp_path):
    found = load_checkpoint(save_checkpoint(tmp_path, 4, STATE, 2))
    assert found["step"] == 4
    assert found["model"]["a"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["step", "model", "average", "best", "optimizer"])
def test_a_checkpoint_of_another_form(tmp_path, name):
    path = save_checkpoint(tmp_path, 4, STATE | {name: "x"}, 2)
    with pytest.raises(
        ModelError, match=f"no checkpoint of a training run .the checkpoint: expected .*at {name}.*remove it"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02]q\x00.", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.pt: no"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("content", ["", "[1]", "a: &a [*a]", "'", "\x07", "a: !!int x"])
def test_a_run_whose_configuration_is_damaged(tmp_path, content):
    begin(tmp_path, config(), resume=False)
    (tmp_path / "train.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"train\.yaml: not the configuration of a run"):
        begin(tmp_path, config(), resume=True)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"{}", b"null", b'{"step": "1"}', b'{"step": [1]}', b"\xff", b"[" * 99_999]
)
def test_metrics_that_are_damaged_are_forgotten_and_the_others_kept(tmp_path, line):
    good = [json.dumps({"step": step}).encode() for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], line, good[1], good[2], b'{"step": 2']))
    cut_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good[0] + b"\n" + good[1] + b"\n"
