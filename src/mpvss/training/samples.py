"""Samples by number, and batches of them: the same ones whatever the number of workers, processes or restarts."""

import contextlib
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Int64
from torch.utils import data

from mpvss._files import write_json
from mpvss._threads import cores
from mpvss._validate import read_json
from mpvss.datasets import Clip, open_dataset
from mpvss.datasets.augment import Augmentation, Pair
from mpvss.datasets.pairs import (
    Batch,
    LabelledFrames,
    MixedPairs,
    PairSampler,
    PairSource,
    SimulatedPairs,
    collate,
)
from mpvss.datasets.simulate import SimulationConfig
from mpvss.errors import DataError, MpvssError
from mpvss.labels import IGNORE
from mpvss.training.config import TrainConfig
from mpvss.training.losses import dis_flow

log = logging.getLogger(__name__)


class Samples(data.Dataset["Pair | MpvssError"]):
    """The samples of a run by their number, without end, complete: unknown labels and flows are marked as such.

    Args:
        source: Where pairs come from.
        seed: Of their order.
        pseudo_flow: Pyramid level at which DIS stops for pairs without a flow; ``None`` leaves them without.
        clips: The clips of the source.

    Attributes:
        epoch: Number of samples after which the source begins anew.
        clips: The clips of the source.
    """

    def __init__(
        self, source: PairSource, seed: int, *, pseudo_flow: int | None = None, clips: Sequence[Clip] = ()
    ) -> None:
        self.clips = clips
        self.epoch = len(source)
        self._source, self._seed, self._pseudo_flow = source, seed, pseudo_flow
        self._order: tuple[int, Int64[np.ndarray, " pairs"]] | None = None

    def __getitem__(self, number: int) -> "Pair | MpvssError":
        """The sample, or what is wrong with it: torch would make a traceback of an error raised in a worker."""
        try:
            return self._complete(self._draw(number))
        except MpvssError as error:
            return error

    def _draw(self, number: int) -> Pair:
        """The pair of a number: each epoch goes through the source in another order."""
        epoch, position = divmod(number, self.epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(self.epoch)
        return self._source.pair(epoch, int(self._order[1][position]))

    def _complete(self, pair: Pair) -> Pair:
        size = pair.current.shape[-2:]
        flow, visible = pair.flow, pair.visible
        if flow is None and self._pseudo_flow is not None:
            now, then = (image.permute(1, 2, 0).contiguous().numpy() for image in (pair.current, pair.key))
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
        DataError: A data set does not follow its layout, or two of them have different numbers of classes.
        ConfigError: An option of augmentation or simulation is out of range.
    """
    data_config = config.data
    augment = Augmentation(data_config.crop, data_config.scale, data_config.flip, data_config.colour)
    simulation = SimulationConfig(frames=(1, data_config.max_distance))
    sources: list[tuple[PairSource, float]] = []
    names: dict[str, tuple[str, ...]] = {}
    clips: list[Clip] = []
    for number, source_config in enumerate(data_config.sources):
        dataset = open_dataset(source_config.data, source_config.split)
        names[source_config.data] = dataset.class_names
        clips += dataset.clips
        seed = config.seed + 1000 * (number + 1)
        source: PairSource
        if config.stage == "segmentor":
            source = LabelledFrames(dataset.clips, augment, seed)
        elif source_config.kind == "simulated":
            source = SimulatedPairs(dataset.clips, simulation, augment, seed)
        else:
            source = PairSampler(dataset.clips, data_config.max_distance, augment, seed)
        sources.append((source, source_config.weight))
    first, *others = names.items()
    for name, classes in others:
        if len(classes) != len(first[1]):
            raise DataError(
                f"sources of one run share their classes: {first[0]} has {len(first[1])}, {name} has {len(classes)}"
            )
    mixed = sources[0][0] if len(sources) == 1 else MixedPairs(sources, config.seed)
    return Samples(mixed, config.seed, pseudo_flow=data_config.pseudo_flow, clips=clips), first[1]


def check_labels(clips: Iterable[Clip], cache: Path) -> None:
    """Read every label once, so that a wrong one raises before the first step and not in the middle of a run.

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
        worker_init_fn=_init_worker,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers; not from the global generator, which belongs to the step.
        generator=torch.Generator().manual_seed(config.seed),
    )
    for batch, drawn in zip(loader, numbers, strict=True):
        if isinstance(batch, MpvssError):
            raise batch
        yield batch, drawn


def _init_worker(_: int) -> None:
    """One thread a worker, so that workers do not crowd each other out."""
    cv2.setNumThreads(0)


def _collate(samples: Sequence["Pair | MpvssError"]) -> "Batch | MpvssError":
    error = next((sample for sample in samples if isinstance(sample, MpvssError)), None)
    return error or collate([sample for sample in samples if isinstance(sample, Pair)])
