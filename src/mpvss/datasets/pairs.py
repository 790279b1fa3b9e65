"""Training pairs from clips, and mixtures of them.

Every source answers ``pair(epoch, index)`` with the same pair, whenever and in whichever process it is asked: all
random choices come from a generator seeded with the source's seed, the epoch and the index. So neither the number of
workers nor an interruption changes the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8, UInt16
from torch import Tensor

from mpvss.datasets.augment import Augmentation, Pair
from mpvss.datasets.clips import Clip
from mpvss.datasets.simulate import SimulationConfig, simulate
from mpvss.errors import DataError
from mpvss.labels import IGNORE
from mpvss.types import shown_size


@runtime_checkable
class PairSource(Protocol):
    """Anything that pairs can be drawn from."""

    def __len__(self) -> int:
        """Number of pairs in an epoch."""
        ...

    def pair(self, epoch: int, index: int) -> Pair:
        """Pair ``index``, from 0 to the length, of an epoch; always the same for the same numbers."""
        ...


class ClipPairs:
    """Pairs made from the frames of clips, each frame of a list once an epoch.

    Args:
        frames: Clip and index of each frame; no image is read.
        augment: What both frames of a pair go through.
        seed: Of all random choices, 0 or more.
    """

    def __init__(self, frames: Sequence[tuple[Clip, int]], augment: Augmentation, seed: int) -> None:
        self._frames, self._augment, self._seed = frames, augment, seed

    def __len__(self) -> int:
        return len(self._frames)

    def pair(self, epoch: int, index: int) -> Pair:
        """See ``PairSource.pair``.

        Raises:
            IndexError: The index is out of range.
            DataError: A file cannot be read, or the two frames differ in size.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, got {index}")
        random = np.random.default_rng((self._seed, epoch, index))
        clip, frame = self._frames[index]
        return self._augment(self._make(clip, frame, random), random)

    def _make(self, clip: Clip, frame: int, random: np.random.Generator) -> Pair:
        """Make the pair of a frame, before augmentation."""
        raise NotImplementedError


class LabelledFrames(ClipPairs):
    """Single labelled frames, as pairs of a frame with itself: what a segmentor is trained on.

    Raises:
        DataError: No frame has a label.
    """

    def __init__(self, clips: Sequence[Clip], augment: Augmentation, seed: int) -> None:
        frames = [(clip, frame.index) for clip in clips for frame in clip.frames if frame.label_path is not None]
        if not frames:
            raise DataError(f"expected labelled frames, got none in {len(clips)} clips")
        super().__init__(frames, augment, seed)

    def _make(self, clip: Clip, frame: int, random: np.random.Generator) -> Pair:  # noqa: ARG002 - as its siblings
        image, ids = _tensor(clip.load_image(frame)), _ids(clip.load_label(frame))
        return Pair(image, image, ids, ids, None, None, 0)


class PairSampler(ClipPairs):
    """Each labelled frame, with a key frame near it, before or after.

    In a clip without labels each frame takes its turn. The frames of a clip are taken for consecutive: where only every
    thirtieth frame of a video is on disk, use ``SimulatedPairs``. Clips of one frame are left out.

    Args:
        clips: Clips with or without labels.
        max_distance: Most frames from the current to the key frame; 1 trains for chained motion.
        augment: What both frames go through.
        seed: Of all random choices, 0 or more.

    Raises:
        ValueError: The distance is below 1.
        DataError: No clip has two frames, or one has more than 255 classes.
    """

    def __init__(self, clips: Sequence[Clip], max_distance: int, augment: Augmentation, seed: int) -> None:
        if max_distance < 1:
            raise ValueError(f"max_distance must be at least 1 frame, got {max_distance}")
        self._max_distance = max_distance
        frames = [(clip, i) for clip in clips if len(clip) > 1 for i in _labelled(clip)]
        if not frames:
            raise DataError(f"expected a clip of at least 2 frames, got none in {len(clips)} clips")
        super().__init__(frames, augment, seed)

    def _make(self, clip: Clip, frame: int, random: np.random.Generator) -> Pair:
        key = self._draw_key(frame, len(clip) - 1, random)
        images = [clip.load_image(i) for i in (frame, key)]
        if images[0].shape != images[1].shape:
            paths = [clip.frames[i].image_path for i in (frame, key)]
            raise DataError(
                f"{paths[0]}: expected the size of {paths[1]}, {shown_size(images[1].shape)}, "
                f"got {shown_size(images[0].shape)}"
            )
        current_ids, key_ids = (_ids(clip.load_label(i)) for i in (frame, key))
        return Pair(_tensor(images[0]), _tensor(images[1]), current_ids, key_ids, None, None, abs(key - frame))

    def _draw_key(self, frame: int, last: int, random: np.random.Generator) -> int:
        """One of the other frames near enough, all equally likely."""
        low, high = max(0, frame - self._max_distance), min(last, frame + self._max_distance)
        drawn = int(random.integers(low, high))
        return drawn if drawn < frame else drawn + 1


class SimulatedPairs(ClipPairs):
    """Each image that has a label, or each one where none has, moved by a simulation.

    Args:
        clips: Where the images come from.
        config: What moves and how much.
        augment: What both frames go through after the simulation.
        seed: Of all random choices, 0 or more.

    Raises:
        DataError: There is no image, or a clip has more than 255 classes.
    """

    def __init__(self, clips: Sequence[Clip], config: SimulationConfig, augment: Augmentation, seed: int) -> None:
        self._config = config
        frames = [(clip, i) for clip in clips for i in _labelled(clip)]
        if not frames:
            raise DataError("expected at least one image to simulate motion on, got none")
        super().__init__(frames, augment, seed)

    def _make(self, clip: Clip, frame: int, random: np.random.Generator) -> Pair:
        return simulate(clip.load_image(frame), clip.load_label(frame), random, self._config)


def _labelled(clip: Clip) -> list[int]:
    """The frames of a clip that have a label; all of them where none has."""
    if clip.num_classes > IGNORE:
        raise DataError(
            f"{clip.name}: expected at most {IGNORE} classes, because {IGNORE} marks ignored pixels in training; "
            f"got {clip.num_classes}"
        )
    return [i for i, frame in enumerate(clip.frames) if frame.label_path is not None] or list(range(len(clip)))


def _tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(image).permute(2, 0, 1)


def _ids(label: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"] | None) -> Int64[Tensor, "H W"] | None:
    return None if label is None else torch.from_numpy(label.astype(np.int64))


class MixedPairs:
    """Pairs drawn from several sources, each with its share.

    An epoch is as long as those of the sources together. What an index draws from its source is drawn anew, with
    replacement, so that a small source with a large share does not repeat its augmentations.

    Args:
        sources: Each source with its weight, above 0; the shares are the weights divided by their sum.
        seed: Of the choices between and within the sources, 0 or more.

    Raises:
        ValueError: There is no source, or a weight is not above 0.
    """

    def __init__(self, sources: Sequence[tuple[PairSource, float]], seed: int) -> None:
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
        random = np.random.default_rng((self._seed, epoch, index))
        drawn = random.random() * self._bounds[-1]
        number = min(int(np.searchsorted(self._bounds, drawn, side="right")), len(self._sources) - 1)
        source = self._sources[number]
        return source.pair(int(random.integers(2**31)), int(random.integers(len(source))))


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
    stacked: dict[str, Any] = {}
    for field in fields(Pair):
        values = [getattr(pair, field.name) for pair in pairs]
        present = [torch.as_tensor(value) for value in values if value is not None]
        stacked[field.name] = torch.stack(present) if len(present) == len(values) else None
    return Batch(**stacked)
