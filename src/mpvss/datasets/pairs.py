"""Training pairs from labelled clips, from single images, and mixtures of them.

Every source answers ``pair(epoch, index)`` with the same pair, whenever and in whichever process it is asked: all
random choices come from a generator seeded with the source's seed, the epoch and the index. So neither the number of
workers nor an interruption changes the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils import data

from mpvss.datasets.augment import Augmentation, Pair
from mpvss.datasets.clips import Clip
from mpvss.datasets.simulate import LabelMap, SimulationConfig, simulate
from mpvss.errors import DataError
from mpvss.labels import IGNORE
from mpvss.types import shown_size

__all__ = [
    "Augmentation",
    "Batch",
    "MixedPairs",
    "Pair",
    "PairDataset",
    "PairSampler",
    "PairSource",
    "SimulatedPairs",
    "SimulationConfig",
    "collate",
    "init_worker",
    "simulate",
]


@runtime_checkable
class PairSource(Protocol):
    """Anything that pairs can be drawn from."""

    def __len__(self) -> int:
        """Number of pairs in an epoch."""
        ...

    def pair(self, epoch: int, index: int) -> Pair:
        """Pair ``index``, from 0 to the length, of an epoch; always the same for the same numbers."""
        ...


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, index))


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"expected an index from 0 to {length - 1}, got {index}")


def _partner(place: int, first: int, last: int, max_distance: int, random: np.random.Generator) -> int:
    """A frame from ``first`` to ``last``, at most so far from ``place``, other than ``place``; all equally likely."""
    low, high = max(first, place - max_distance), min(last, place + max_distance)
    drawn = int(random.integers(low, high))
    return drawn if drawn < place else drawn + 1


def _tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(image).permute(2, 0, 1)


def _labelled(clip: Clip) -> list[int]:
    """The frames of a clip that have a label; all of them where none has."""
    frames = list(range(len(clip)))
    if clip.num_classes > IGNORE:
        raise DataError(
            f"{clip.name}: expected at most {IGNORE} classes, because {IGNORE} marks ignored pixels in training; "
            f"got {clip.num_classes}"
        )
    return [i for i in frames if clip.frames[i].label_path is not None] or frames


class PairSampler:
    """Pairs from clips: each labelled frame once an epoch, with a key frame near it, before or after.

    In a clip without labels each frame takes its turn. The frames of a clip are taken for consecutive: where only every
    thirtieth frame of a video is on disk, use ``SimulatedPairs``. Clips of one frame are left out.
    """

    def __init__(self, clips: Sequence[Clip], max_distance: int, augment: Augmentation, seed: int) -> None:
        """List the frames; no image is read.

        Args:
            clips: Clips with or without labels.
            max_distance: Most frames from the current to the key frame; 1 trains for chained motion.
            augment: What both frames go through.
            seed: Of all random choices, 0 or more.

        Raises:
            ValueError: The distance is below 1.
            DataError: No clip has two frames, or one has more than 255 classes.
        """
        if max_distance < 1:
            raise ValueError(f"max_distance must be at least 1 frame, got {max_distance}")
        self._clips, self._max_distance, self._augment, self._seed = clips, max_distance, augment, seed
        self._places = [(n, i) for n, clip in enumerate(clips) if len(clip) > 1 for i in _labelled(clip)]
        if not self._places:
            raise DataError(f"expected a clip of at least 2 frames, got none in {len(clips)} clips")

    def __len__(self) -> int:
        return len(self._places)

    def pair(self, epoch: int, index: int) -> Pair:
        """See ``PairSource.pair``.

        Raises:
            DataError: A file cannot be read, or the two frames differ in size.
        """
        _check_index(index, len(self))
        random = _generator(self._seed, epoch, index)
        number, current = self._places[index]
        clip = self._clips[number]
        key = _partner(current, 0, len(clip) - 1, self._max_distance, random)
        images = [clip.load_image(i) for i in (current, key)]
        if images[0].shape != images[1].shape:
            paths = [clip.frames[i].image_path for i in (current, key)]
            raise DataError(
                f"{paths[0]}: expected the size of {paths[1]}, {shown_size(images[1].shape)}, "
                f"got {shown_size(images[0].shape)}"
            )
        labels = [_label_tensor(clip.load_label(i)) for i in (current, key)]
        pair = Pair(_tensor(images[0]), _tensor(images[1]), labels[0], labels[1], None, None, abs(key - current))
        return self._augment(pair, random)


def _label_tensor(label: LabelMap | None) -> Int64[Tensor, "H W"] | None:
    return None if label is None else torch.from_numpy(label.astype(np.int64))


class SimulatedPairs:
    """Pairs made from single images: each one that has a label once an epoch, or each one where none has."""

    def __init__(self, clips: Sequence[Clip], config: SimulationConfig, augment: Augmentation, seed: int) -> None:
        """List the images; none is read.

        Args:
            clips: Clips.
            config: What moves and how much.
            augment: What both frames go through after the simulation.
            seed: Of all random choices, 0 or more.

        Raises:
            DataError: There is no image, or a clip has more than 255 classes.
        """
        self._clips, self._config, self._augment, self._seed = clips, config, augment, seed
        self._places = [(n, i) for n, clip in enumerate(clips) for i in _labelled(clip)]
        if not self._places:
            raise DataError("expected at least one image to simulate motion on, got none")

    def __len__(self) -> int:
        return len(self._places)

    def pair(self, epoch: int, index: int) -> Pair:
        """See ``PairSource.pair``."""
        _check_index(index, len(self))
        random = _generator(self._seed, epoch, index)
        number, i = self._places[index]
        clip = self._clips[number]
        pair = simulate(clip.load_image(i), clip.load_label(i), random, self._config)
        return self._augment(pair, random)


# Mixtures and batches


class MixedPairs:
    """Pairs drawn from several sources, each with its share.

    An epoch is as long as those of the sources together. What an index draws from its source is drawn anew, with
    replacement, so that a small source with a large share does not repeat its augmentations.
    """

    def __init__(self, sources: Sequence[tuple[PairSource, float]], seed: int) -> None:
        """Take the sources.

        Args:
            sources: Each source with its weight, above 0; the shares are the weights divided by their sum.
            seed: Of the choices between and within the sources, 0 or more.

        Raises:
            ValueError: There is no source, or a weight is not above 0.
        """
        if not sources or not all(0 < weight < float("inf") for _, weight in sources):
            raise ValueError(
                f"expected at least one source and weights above 0, got weights {[weight for _, weight in sources]}"
            )
        self._sources = [source for source, _ in sources]
        self._bounds = list(accumulate(weight for _, weight in sources))
        self._seed = seed

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources)

    def pair(self, epoch: int, index: int) -> Pair:
        """See ``PairSource.pair``."""
        _check_index(index, len(self))
        random = _generator(self._seed, epoch, index)
        drawn = random.random() * self._bounds[-1]
        number = min(int(np.searchsorted(self._bounds, drawn, side="right")), len(self._sources) - 1)
        source = self._sources[number]
        return source.pair(int(random.integers(2**31)), int(random.integers(len(source))))


class PairDataset(data.Dataset[Pair]):
    """The pairs of a training run in their order, for a ``DataLoader`` that does not shuffle.

    Each epoch goes through the source in another order. Item i is the pair at position ``start + i`` of the run, so a
    resumed run starts at its number of steps times its batch size.
    """

    def __init__(self, source: PairSource, seed: int, samples: int, start: int = 0) -> None:
        """Take a source.

        Args:
            source: Where pairs come from.
            seed: Of the order, 0 or more.
            samples: Pairs in the whole run.
            start: Pairs that are done.

        Raises:
            ValueError: ``start`` is not within the run.
        """
        if not 0 <= start <= samples:
            raise ValueError(f"start must be from 0 to the run's {samples} pairs, got {start}")
        self._source, self._seed, self._samples, self._start = source, seed, samples, start
        self._order: tuple[int, Int64[np.ndarray, " pairs"]] | None = None

    def __len__(self) -> int:
        return self._samples - self._start

    def __getitem__(self, i: int) -> Pair:
        _check_index(i, len(self))
        epoch, place = divmod(self._start + i, len(self._source))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(len(self._source))
        return self._source.pair(epoch, int(self._order[1][place]))


def init_worker(_: int) -> None:
    """For a ``DataLoader``'s ``worker_init_fn``: one thread a worker, so that workers do not crowd each other out."""
    cv2.setNumThreads(0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of one size, stacked; fields as in ``Pair``. What not every pair has is ``None``."""

    current: UInt8[Tensor, "B 3 H W"]
    key: UInt8[Tensor, "B 3 H W"]
    current_label: Int64[Tensor, "B H W"] | None
    key_label: Int64[Tensor, "B H W"] | None
    flow: Float[Tensor, "B 2 H W"] | None
    visible: Bool[Tensor, "B H W"] | None
    distance: Int64[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(pairs: Sequence[Pair]) -> Batch:
    """Stack pairs of one size; for a ``DataLoader``'s ``collate_fn``.

    Raises:
        ValueError: There is no pair.
    """
    if not pairs:
        raise ValueError("expected at least one pair to make a batch of")

    def stacked(values: Sequence[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.stack(present) if len(present) == len(values) else None

    return Batch(
        current=torch.stack([pair.current for pair in pairs]),
        key=torch.stack([pair.key for pair in pairs]),
        current_label=stacked([pair.current_label for pair in pairs]),
        key_label=stacked([pair.key_label for pair in pairs]),
        flow=stacked([pair.flow for pair in pairs]),
        visible=stacked([pair.visible for pair in pairs]),
        distance=torch.tensor([pair.distance for pair in pairs]),
    )
