"""Samples by number, and batches of them: the same ones whatever the number of workers, processes or restarts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils import data

from mpvss.data import Clip, open_dataset
from mpvss.data.augment import Augmentation, Pair
from mpvss.data.pairs import (
    Batch,
    MixedPairs,
    PairDataset,
    PairSampler,
    PairSource,
    SimulatedPairs,
    collate,
    init_worker,
)
from mpvss.data.simulate import SimulationConfig
from mpvss.errors import DataError
from mpvss.labels import IGNORE
from mpvss.train.config import TrainConfig
from mpvss.train.losses import dis_flow


class LabelledFrames:
    """Single labelled frames, as pairs of a frame with itself: what a segmentor is trained on."""

    def __init__(self, clips: Sequence[Clip], augment: Augmentation, seed: int) -> None:
        """List the frames that have a label; no picture is read.

        Args:
            clips: Where they come from.
            augment: What each goes through.
            seed: Of all random choices.

        Raises:
            DataError: No frame has a label.
        """
        self._places = [(clip, frame.index) for clip in clips for frame in clip.frames if frame.label_path is not None]
        self._augment, self._seed = augment, seed
        if not self._places:
            raise DataError(f"expected labelled frames, found none in {len(clips)} clips")

    def __len__(self) -> int:
        return len(self._places)

    def pair(self, epoch: int, index: int) -> Pair:
        """See ``PairSource.pair``."""
        clip, i = self._places[index]
        label = clip.load_label(i)
        assert label is not None
        image = torch.from_numpy(clip.load_image(i)).permute(2, 0, 1)
        ids = torch.from_numpy(label.astype(np.int64))
        return self._augment(
            Pair(image, image, ids, ids, None, None, 0), np.random.default_rng((self._seed, epoch, index))
        )


class Samples(data.Dataset[Pair]):
    """The samples of a run by their number, without end, complete: unknown labels and flows are marked as such.

    Attributes:
        epoch: Number of samples after which the sources begin anew.
    """

    def __init__(self, source: PairSource, seed: int, *, pseudo_flow: int | None) -> None:
        """Take a source.

        Args:
            source: Where pairs come from.
            seed: Of their order.
            pseudo_flow: Pyramid level at which DIS stops for pairs without a flow; ``None`` leaves them without.
        """
        self.epoch = len(source)
        self._ordered = PairDataset(source, seed, 2**62)
        self._pseudo_flow = pseudo_flow

    def __getitem__(self, number: int) -> Pair:
        pair = self._ordered[number]
        size = pair.current.shape[-2:]
        flow, visible = pair.flow, pair.visible
        if flow is None and self._pseudo_flow is not None:
            now, then = (picture.permute(1, 2, 0).contiguous().numpy() for picture in (pair.current, pair.key))
            flow, visible = (torch.from_numpy(values) for values in dis_flow(now, then, self._pseudo_flow))
        unlabelled = torch.full(size, IGNORE, dtype=torch.int64)
        return replace(
            pair,
            current_label=unlabelled if pair.current_label is None else pair.current_label,
            key_label=unlabelled if pair.key_label is None else pair.key_label,
            flow=torch.zeros(2, *size) if flow is None else flow,
            visible=torch.zeros(size, dtype=torch.bool) if visible is None else visible,
        )


def open_samples(config: TrainConfig) -> tuple[Samples, tuple[str, ...]]:
    """Open the sources of a run.

    Returns:
        The samples and the classes of their labels.

    Raises:
        DataError: A data set is not as its layout demands, or two of them have different numbers of classes.
        ConfigError: An option of augmentation or simulation is out of range.
    """
    data_config = config.data
    augment = Augmentation(data_config.crop, data_config.scale, data_config.flip, data_config.colour)
    simulation = SimulationConfig(frames=(1, data_config.max_distance))
    sources: list[tuple[PairSource, float]] = []
    names: dict[str, tuple[str, ...]] = {}
    for number, wanted in enumerate(data_config.sources):
        dataset = open_dataset(wanted.data, wanted.split)
        names[wanted.data] = dataset.class_names
        seed = config.seed + 1000 * (number + 1)
        source: PairSource
        if config.stage == "segmentor":
            source = LabelledFrames(dataset.clips, augment, seed)
        elif wanted.kind == "simulated":
            source = SimulatedPairs(dataset.clips, simulation, augment, seed)
        else:
            source = PairSampler(dataset.clips, data_config.max_distance, augment, seed)
        sources.append((source, wanted.weight))
    first, *others = names.items()
    for name, classes in others:
        if len(classes) != len(first[1]):
            raise DataError(
                f"sources of one run share their classes: {first[0]} has {len(first[1])}, {name} has {len(classes)}"
            )
    mixed = sources[0][0] if len(sources) == 1 else MixedPairs(sources, config.seed)
    return Samples(mixed, config.seed, pseudo_flow=data_config.pseudo_flow), first[1]


@dataclass(frozen=True)
class _Numbers(data.Sampler[list[int]]):
    """Which samples make up each batch of one process, from a step on."""

    first: int
    end: int
    batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first, self.end):
            begin = (number * self.world + self.rank) * self.batch
            yield list(range(begin, begin + self.batch))

    def __len__(self) -> int:
        return self.end - self.first


def batches(
    samples: Samples, config: TrainConfig, start: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, list[int]]]:
    """Yield the batches of one process with the numbers of their samples, ``accumulate`` of them for each step.

    Two processes with batches of B see what one process with batches of 2 B sees.

    Args:
        samples: All samples of the run.
        config: Sizes and numbers.
        start: Step to begin at.
        rank: Number of the process.
        world: Number of processes.
    """
    optim, workers = config.optim, config.run.workers
    numbers = _Numbers(start * optim.accumulate, optim.steps * optim.accumulate, optim.batch, rank, world)
    loader = data.DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=init_worker,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers; not from the global generator, which belongs to the step.
        generator=torch.Generator().manual_seed(config.seed),
    )
    yield from zip(loader, numbers, strict=True)
