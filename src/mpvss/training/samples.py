"""Samples by number, and batches of them: the same ones whatever the number of workers, processes or restarts."""

import contextlib
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils import data

from mpvss._files import write_json
from mpvss._validate import read_json
from mpvss.cli.doctor import cores
from mpvss.datasets import Clip, open_dataset
from mpvss.datasets.augment import Augmentation, Pair
from mpvss.datasets.pairs import (
    Batch,
    MixedPairs,
    PairDataset,
    PairSampler,
    PairSource,
    SimulatedPairs,
    collate,
    init_worker,
)
from mpvss.datasets.simulate import SimulationConfig
from mpvss.errors import DataError, MpvssError
from mpvss.labels import IGNORE
from mpvss.training.config import TrainConfig
from mpvss.training.losses import dis_flow

log = logging.getLogger(__name__)


class LabelledFrames:
    """Single labelled frames, as pairs of a frame with itself: what a segmentor is trained on."""

    def __init__(self, clips: Sequence[Clip], augment: Augmentation, seed: int) -> None:
        """List the frames that have a label; no image is read.

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
            raise DataError(f"expected labelled frames, got none in {len(clips)} clips")

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


class Samples(data.Dataset["Pair | MpvssError"]):
    """The samples of a run by their number, without end, complete: unknown labels and flows are marked as such.

    Attributes:
        epoch: Number of samples after which the sources begin anew.
        clips: Where they come from.
    """

    def __init__(self, source: PairSource, seed: int, *, pseudo_flow: int | None, clips: Sequence[Clip] = ()) -> None:
        """Take a source.

        Args:
            source: Where pairs come from.
            seed: Of their order.
            pseudo_flow: Pyramid level at which DIS stops for pairs without a flow; ``None`` leaves them without.
            clips: Where they come from.
        """
        self.clips = clips
        self.epoch = len(source)
        self._ordered = PairDataset(source, seed, 2**62)
        self._pseudo_flow = pseudo_flow

    def __getitem__(self, number: int) -> "Pair | MpvssError":
        """The sample, or what is wrong with it: torch would make a traceback of an error raised in a worker."""
        try:
            return self._complete(self._ordered[number])
        except MpvssError as error:
            return error

    def _complete(self, pair: Pair) -> Pair:
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
    clips: list[Clip] = []
    for number, wanted in enumerate(data_config.sources):
        dataset = open_dataset(wanted.data, wanted.split)
        names[wanted.data] = dataset.class_names
        clips += dataset.clips
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
    return Samples(mixed, config.seed, pseudo_flow=data_config.pseudo_flow, clips=clips), first[1]


def check_labels(clips: Iterable[Clip], cache: Path) -> None:
    """Read every label once, so that a wrong one is found before the first step and not in the middle of a run.

    Args:
        clips: Whose labels are checked.
        cache: JSON file of what was checked and right: not read again while size and time of label and image stay.

    Raises:
        DataError: Labels are wrong: the first one, and the number of them.
    """
    try:
        right = dict(read_json(cache))
    except (OSError, ValueError, TypeError):
        right = {}
    now: dict[str, list[int]] = {}
    todo: dict[str, tuple[Clip, int]] = {}
    for clip in clips:
        table = zlib.crc32(clip.label_table.tobytes())
        for frame in clip.frames:
            if frame.label_path is not None:
                name = f"{frame.label_path.resolve()} {table:08x}"
                now[name] = [*_facts(frame.label_path), *_facts(frame.image_path)]
                if right.get(name) != now[name]:
                    todo[name] = clip, frame.index
    if not todo:
        return
    log.info("checking %d labels", len(todo))
    with ThreadPoolExecutor(cores()) as pool:
        errors = dict(zip(todo, pool.map(_wrong, todo.values()), strict=True))
    wrong = [error for error in errors.values() if error is not None]
    now = {name: facts for name, facts in now.items() if errors.get(name) is None}
    with contextlib.suppress(MpvssError, OSError):  # then they are read again the next time
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, now)
    if wrong:
        more = f"; {len(wrong)} of {len(todo)} labels are wrong" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}")


def _facts(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror}") from error
    return [status.st_size, status.st_mtime_ns]


def _wrong(label: tuple[Clip, int]) -> DataError | None:
    clip, index = label
    try:
        clip.load_label(index)
    except DataError as error:
        return error
    return None


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

    Raises:
        MpvssError: A sample cannot be made: a file is missing or damaged.
    """
    optim, workers = config.optim, config.run.workers
    numbers = _Numbers(start * optim.accumulate, optim.steps * optim.accumulate, optim.batch, rank, world)
    loader = data.DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=init_worker,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers; not from the global generator, which belongs to the step.
        generator=torch.Generator().manual_seed(config.seed),
    )
    for batch, drawn in zip(loader, numbers, strict=True):
        if isinstance(batch, MpvssError):
            raise batch
        yield batch, drawn


def _collate(samples: Sequence["Pair | MpvssError"]) -> "Batch | MpvssError":
    error = next((sample for sample in samples if isinstance(sample, MpvssError)), None)
    return error or collate([sample for sample in samples if isinstance(sample, Pair)])
