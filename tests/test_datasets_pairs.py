"""Pairs from clips and images, and their augmentation."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from mpvss.datasets.augment import Augmentation, Pair, flip, resample
from mpvss.datasets.clips import Clip, ClipFrame, label_table
from mpvss.datasets.pairs import (
    MixedPairs,
    PairSampler,
    SimulatedPairs,
    collate,
)
from mpvss.datasets.simulate import SimulationConfig, simulate
from mpvss.errors import DataError
from mpvss.motion.warp import warp
from mpvss.training.samples import Samples

NAMES = ("current", "key", "current_label", "key_label", "flow", "visible")
AS_IT_IS = Augmentation((48, 64), flip=False, colour=0.0)
WILD = Augmentation((40, 56), scale=(0.6, 1.7), flip=True, colour=0.5)


def same(a: Pair, b: Pair) -> bool:
    values = [(getattr(a, name), getattr(b, name)) for name in NAMES]
    equal = [x is None and y is None if x is None or y is None else torch.equal(x, y) for x, y in values]
    return all(equal) and a.distance == b.distance


def simulated(seed: int = 0, size: tuple[int, int] = (96, 128)) -> Pair:
    """A smooth image, so that resampling changes little."""
    random = np.random.default_rng(seed)
    image = cv2.GaussianBlur(random.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    label = np.zeros(size, np.uint8)
    label[20:50, 30:70] = 1
    label[60:80, 20:50] = 2
    return simulate(image, label, random, SimulationConfig(segments=(2, 2), photometric=0.0))


def write_clip(
    folder: Path, count: int, labelled: set[int], size: tuple[int, int] = (48, 64), classes: int = 3
) -> Clip:
    """Frame i is of grey 10 i throughout, its label of class i % 3."""
    folder.mkdir()
    frames = []
    for i in range(count):
        Image.fromarray(np.full((*size, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
        label = folder / f"{i}_label.png" if i in labelled else None
        if label is not None:
            Image.fromarray(np.full(size, i % 3, np.uint8)).save(label)
        frames.append(ClipFrame(folder / f"{i}.png", label, i))
    names = tuple(f"class{k}" for k in range(classes))
    return Clip(folder.name, frames, names, Fraction(15), label_table({k: k for k in range(classes)}))


class Numbers:
    """A source whose images say the index and whose distance says the epoch."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def pair(self, epoch: int, index: int) -> Pair:
        picture = torch.full((3, 1, 1), min(self.first + index, 255), dtype=torch.uint8)
        return Pair(picture, picture, None, None, None, None, epoch)


def grey(picture: torch.Tensor) -> int:
    assert (picture == picture[0, 0, 0]).all()
    return int(picture[0, 0, 0])


# Augmentation


def test_flipping_twice_is_the_identity():
    pair = simulated()
    assert same(flip(flip(pair)), pair)
    assert torch.equal(flip(pair).flow[0], -pair.flow[0].flip(-1))
    assert torch.equal(flip(pair).flow[1], pair.flow[1].flip(-1))
    bare = replace(pair, current_label=None, key_label=None, flow=None, visible=None)
    assert same(flip(flip(bare)), bare)


def test_without_options_nothing_changes():
    pair = simulated(size=(48, 64))
    assert same(AS_IT_IS(pair, np.random.default_rng(0)), pair)


def test_a_crop_is_a_slice():
    pair = simulated()
    cut = resample(pair, (10, 20, 40, 56), (40, 56))
    assert torch.equal(cut.current, pair.current[:, 10:50, 20:76])
    assert torch.equal(cut.key_label, pair.key_label[10:50, 20:76])
    assert torch.equal(cut.flow, pair.flow[:, 10:50, 20:76])
    assert not (cut.visible & ~pair.visible[10:50, 20:76]).any()


def test_the_flow_is_scaled_with_the_picture():
    pair = simulated()
    pair = replace(pair, flow=torch.ones_like(pair.flow), visible=torch.ones_like(pair.visible))
    grown = resample(pair, (0, 0, 96, 128), (192, 64))
    assert (grown.flow[0] == 0.5).all()
    assert (grown.flow[1] == 2).all()
    assert grown.visible[:-2, :-1].all()
    assert not grown.visible[-2:].any()  # points below the image


def test_the_flow_is_as_exact_after_the_augmentation():
    for seed in range(12):
        before = simulated(seed)
        random = np.random.default_rng(seed)
        after = Augmentation((64, 80), (0.6, 1.7), flip=True, colour=0.0)(before, random)
        for pair, limit in ((before, 1.0), (after, 2.0)):
            warped = warp(pair.key[None].float(), pair.flow[None])[0]
            error = (warped - pair.current.float()).abs().mean(0)[pair.visible]
            assert error.mean() < limit
        ys, xs = torch.nonzero(after.visible, as_tuple=True)
        x, y = xs + after.flow[0, ys, xs], ys + after.flow[1, ys, xs]
        assert x.min() >= 0
        assert y.min() >= 0
        assert x.max() <= 79
        assert y.max() <= 63
        found = after.key_label[y.round().long(), x.round().long()]
        assert (found == after.current_label[ys, xs]).float().mean() > 0.98


def test_half_of_the_pairs_are_flipped():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 48, 64)
    pair = Pair(ramp, ramp, None, None, None, None, 1)
    augment = Augmentation((48, 64), flip=True, colour=0.0)
    mirrored = [bool(augment(pair, np.random.default_rng(s)).current[0, 0, 0] == 63) for s in range(200)]
    assert 70 < sum(mirrored) < 130


def test_padding_is_grey_void_and_not_visible():
    pair = simulated(size=(32, 40))
    padded = Augmentation((48, 64), flip=False, colour=0.0)(pair, np.random.default_rng(1))
    outside = padded.current_label == 255
    known = pair.current_label != 255
    assert int((~outside).sum()) == int(known.sum())
    assert not padded.visible[outside].any()
    corners = padded.current[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 127).all(0).sum() >= 3
    frame = torch.ones(48, 64, dtype=torch.bool)
    top, left = (int(axis.min()) for axis in torch.nonzero(padded.key_label != 255, as_tuple=True))
    frame[top : top + 32, left : left + 40] = False
    assert (padded.key_label[frame] == 255).all()
    assert (padded.current[:, frame] == 127).all()
    assert (padded.flow[:, frame] == 0).all()
    assert torch.equal(padded.key[:, top : top + 32, left : left + 40], pair.key)


def test_colours_change_together():
    pair = simulated(size=(48, 64))
    pair = replace(pair, key=pair.current)
    differences = []
    for seed in range(20):
        changed = Augmentation((48, 64), flip=False, colour=0.4)(pair, np.random.default_rng(seed))
        together = (changed.current.float() - pair.current.float()).abs().mean()
        apart = (changed.current.float() - changed.key.float()).abs().mean()
        differences.append((float(together), float(apart)))
        assert torch.equal(changed.current_label, pair.current_label)
        assert torch.equal(changed.flow, pair.flow)
    together, apart = np.mean(differences, 0)
    assert together > 10
    assert 0.5 < apart < together / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 8)}, "crop must be"),
        ({"crop": (8, 8), "scale": (2.0, 1.0)}, "scale must be"),
        ({"crop": (8, 8), "scale": (0.0, 1.0)}, "scale must be"),
        ({"crop": (8, 8), "colour": 1.5}, "colour must be"),
    ],
)
def test_wrong_augmentations(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


# Clips


def test_key_frames_are_near_on_both_sides_and_each_labelled_frame_is_current_once(tmp_path):
    clips = [write_clip(tmp_path / "a", 12, {2, 5, 11}), write_clip(tmp_path / "b", 4, set())]
    sampler = PairSampler([*clips, write_clip(tmp_path / "c", 1, {0})], 3, AS_IT_IS, seed=0)
    assert len(sampler) == 3 + 4
    seen = set()
    for epoch in range(40):
        for index in range(len(sampler)):
            pair = sampler.pair(epoch, index)
            current, key = grey(pair.current) // 10, grey(pair.key) // 10
            assert pair.distance == abs(current - key)
            assert 1 <= pair.distance <= 3
            assert pair.flow is None
            assert pair.visible is None
            if index < 3:
                assert current == (2, 5, 11)[index]
                assert (pair.current_label == current % 3).all()
                seen.add((current, key))
            else:
                assert current == index - 3
                assert pair.current_label is None
            if key not in (2, 5, 11) or index >= 3:
                assert pair.key_label is None
            else:
                assert (pair.key_label == key % 3).all()
    assert seen == {(2, k) for k in (0, 1, 3, 4, 5)} | {(5, k) for k in (2, 3, 4, 6, 7, 8)} | {
        (11, k) for k in (8, 9, 10)
    }


def test_the_same_numbers_give_the_same_pair_in_any_process_and_order(tmp_path):
    clip = write_clip(tmp_path / "a", 8, set(range(8)))
    sampler = PairSampler([clip], 4, WILD, seed=7)
    motion = SimulatedPairs([clip], SimulationConfig(), WILD, seed=7)
    mixed = MixedPairs([(sampler, 1.0), (motion, 1.0)], seed=3)
    alone = [mixed.pair(1, i) for i in range(8)]
    again = [mixed.pair(1, i) for i in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(alone, again, strict=True))
    assert not all(same(a, mixed.pair(2, i)) for i, a in enumerate(alone))
    samples = Samples(mixed, seed=5)
    options = {"batch_size": 3, "collate_fn": collate}
    here = list(DataLoader(Subset(samples, range(20)), **options))
    elsewhere = list(DataLoader(Subset(samples, range(20)), num_workers=2, **options))
    assert len(here) == len(elsewhere) == 7
    for a, b in zip(here, elsewhere, strict=True):
        assert torch.equal(a.current, b.current)
        assert torch.equal(a.current_label, b.current_label)
        assert torch.equal(a.distance, b.distance)
    assert same(Samples(mixed, seed=5)[9], samples[9])


def test_every_epoch_goes_through_the_source_in_another_order():
    samples = Samples(Numbers(10), seed=0)
    pairs = [samples[i] for i in range(25)]
    order = [grey(pair.current) for pair in pairs]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert [pair.distance for pair in pairs] == [0] * 10 + [1] * 10 + [2] * 5


def test_sources_are_mixed_by_their_weights():
    mixed = MixedPairs([(Numbers(10), 3.0), (Numbers(390, first=200), 1.0)], seed=0)
    assert len(mixed) == 400
    drawn = [grey(mixed.pair(0, i).current) for i in range(400)]
    assert 70 < sum(value >= 10 for value in drawn) < 130
    assert set(range(10)) < set(drawn)


def test_what_clips_cannot_give(tmp_path):
    alone = write_clip(tmp_path / "alone", 1, {0})
    with pytest.raises(DataError, match="at least 2 frames, got none in 1 clips"):
        PairSampler([alone], 1, AS_IT_IS, 0)
    with pytest.raises(ValueError, match="max_distance must be at least 1"):
        PairSampler([alone], 0, AS_IT_IS, 0)
    with pytest.raises(DataError, match="at least one image"):
        SimulatedPairs([], SimulationConfig(), AS_IT_IS, 0)
    with pytest.raises(DataError, match="at most 255 classes"):
        PairSampler([write_clip(tmp_path / "many", 2, {0}, classes=256)], 1, AS_IT_IS, 0)
    with pytest.raises(ValueError, match="weights above 0"):
        MixedPairs([(SimulatedPairs([alone], SimulationConfig(), AS_IT_IS, 0), 0.0)], 0)
    with pytest.raises(IndexError, match="from 0 to 0, got 1"):
        SimulatedPairs([alone], SimulationConfig(), AS_IT_IS, 0).pair(0, 1)
    uneven = write_clip(tmp_path / "uneven", 2, set())
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(uneven.frames[1].image_path)
    with pytest.raises(DataError, match=r"0.png: expected the size of .*1.png, 10x10 .*, got 64x48"):
        PairSampler([uneven], 1, AS_IT_IS, 0).pair(0, 0)


def test_simulated_pairs_take_the_labelled_pictures(tmp_path):
    source = SimulatedPairs([write_clip(tmp_path / "a", 6, {1, 4})], SimulationConfig(), AS_IT_IS, seed=0)
    assert len(source) == 2
    pair = source.pair(0, 1)
    assert set(pair.current_label.unique().tolist()) <= {1, 255}
    assert pair.flow is not None


# Batches


def test_what_one_pair_lacks_the_batch_lacks():
    full = simulated()
    batch = collate([full, replace(full, key_label=None, distance=4)])
    assert batch.current.shape == (2, 3, 96, 128)
    assert batch.current_label.shape == (2, 96, 128)
    assert batch.key_label is None
    assert batch.flow.shape == (2, 2, 96, 128)
    assert batch.visible.shape == (2, 96, 128)
    assert batch.distance.tolist() == [0, 4]
    moved = batch.to("cpu")
    assert torch.equal(moved.flow, batch.flow)
    assert moved.key_label is None
    with pytest.raises(ValueError, match="at least one pair"):
        collate([])
