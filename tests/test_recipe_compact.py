"""The recipe of the embedded model runs on the package's trainer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compact
from mpvss.segmentors import load_segmentor
from mpvss.training.config import load_config
from test_segmentors_efficientnet import published

RECIPES = Path(compact.__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images of all classes, and the segmentor that the first stage starts from."""
    root = tmp_path_factory.mktemp("compact")
    random = np.random.default_rng(0)
    for split in ("images", "labels"):
        (root / "data" / split).mkdir(parents=True)
    for i in range(4):
        ids = np.kron(random.integers(0, 12, (8, 12)), np.ones((16, 16), np.int64)).astype(np.uint8)
        Image.fromarray(ids).save(root / "data" / "labels" / f"0001_{i:03}.png")
        Image.fromarray(random.integers(0, 256, (128, 192, 3), np.uint8)).save(
            root / "data/images" / f"0001_{i:03}.png"
        )
    torch.save(published(), root / "weights.pth")
    compact.main(["start", "--weights", str(root / "weights.pth"), "--out", str(root / "start")])
    return root


def configure(world, name, out, *more):
    settings = [
        f"data.sources=[{{data: 'camvid:{world / 'data'}'}}]", f"model.segmentor={world / 'start'}", f"run.out={out}",
        "data.crop=[64, 96]", "optim.batch=2", "run.workers=0", "run.device=cpu", "run.pictures_every=0",
        "run.precision='no'", *more,
    ]  # fmt: skip
    return load_config(RECIPES / f"compact-{name}.yaml", settings)


def test_a_stage_trains_the_heads_and_not_the_frozen_groups(world, tmp_path):
    stage = replace(compact.STAGES["first"], full_crop=(96, 128), full_from=0.5)
    summary = compact.run_stage(configure(world, "first", tmp_path / "run", "optim.steps=2"), stage, quiet=True)
    assert summary.steps == 2
    before, after = (load_segmentor(place).model.state_dict() for place in (world / "start", tmp_path / "run"))
    assert not torch.equal(before["class_predictor.weight"], after["class_predictor.weight"])
    frozen = "model.pixel_level_module.encoder.groups.1.0.layers.0.weight"
    torch.testing.assert_close(before[frozen], after[frozen])
    compact.export(tmp_path / "run", tmp_path / "half")
    assert load_segmentor(tmp_path / "half").rule == compact.RULE


def test_a_resumed_stage_equals_an_uninterrupted_one(world, tmp_path):
    stage = compact.STAGES["second"]
    whole = configure(world, "second", tmp_path / "whole", "optim.steps=2", "run.save_every=1", "run.keep=9")
    compact.run_stage(whole, stage, quiet=True)
    expected = load_segmentor(tmp_path / "whole").model.state_dict()
    (tmp_path / "whole" / "checkpoints" / "step-00000002.pt").unlink()
    compact.run_stage(whole, stage, resume=True, quiet=True)
    resumed = load_segmentor(tmp_path / "whole").model.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_the_lovasz_loss_is_one_minus_the_iou_at_certain_probabilities():
    labels = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    predicted = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    probabilities = torch.nn.functional.one_hot(predicted, 3).permute(0, 3, 1, 2).float()
    known = labels < 3
    ious = [
        ((labels == k) & (predicted == k)).sum() / (((labels == k) | (predicted == k)) & known).sum() for k in range(3)
    ]
    torch.testing.assert_close(compact.lovasz(probabilities, labels), 1 - torch.stack(ious).mean())


def test_rare_classes_of_the_next_image_are_pasted_and_nothing_else():
    labels = torch.randint(0, 11, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = labels[:, None].repeat(1, 3, 1, 1).to(torch.uint8)
    pasted, ids = compact.paste_rare(images, labels, 1.0)
    rare = torch.isin(labels.roll(-1, 0), torch.tensor(compact.RARE))
    assert torch.equal(ids, torch.where(rare, labels.roll(-1, 0), labels))
    assert torch.equal(pasted[:, 0].long(), ids)
    same, unchanged = compact.paste_rare(images, labels, 0.0)
    assert torch.equal(same, images) and torch.equal(unchanged, labels)
