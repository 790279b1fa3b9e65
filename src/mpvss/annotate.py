"""Masks that a person drew at some frames, propagated to all the others.

Between two masks a frame is filled from both of them, after the last one from that one alone. The frames before the
first mask are filled backward from it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Int64

from mpvss._threads import threads
from mpvss._validate import shown_address
from mpvss.datasets.masks import Masks, find_masks
from mpvss.engine.decode import Labels
from mpvss.engine.flows import check_motion
from mpvss.engine.schedule import ListedKeyFrames, check_direction
from mpvss.engine.session import Session
from mpvss.engine.spill import Spill
from mpvss.engine.true_labels import true_label_carrier
from mpvss.errors import DataError, OptionError
from mpvss.labels import ignore_id, label_dtype
from mpvss.motion.propagator import FollowsVectors, Propagator
from mpvss.motion.propagators import describe_propagator
from mpvss.options import OutputOptions, OutputOverrides
from mpvss.outputs.sinks import Sinks, output_paths
from mpvss.segmentors.protocol import Segmentor
from mpvss.types import IMAGE_RATE, Frame, RunSummary, Segmentation, Stop, until
from mpvss.video import read

log = logging.getLogger(__name__)

_Type = type[np.uint8] | type[np.uint16]
_Ids = Int64[np.ndarray, " K"]


@dataclass(frozen=True)
class Filler:
    """How the frames between masks are filled.

    Attributes:
        propagator: How masks reach other frames.
        motion: ``chain`` or ``direct``; see ``Session``.
        direction: ``both`` fills from the masks on both sides, ``forward`` only from the one before.
        segmentor: For the learned propagators: the segmentor they were trained with.

    Raises:
        ValueError: There is no such motion or direction.
    """

    propagator: Propagator
    motion: str = "chain"
    direction: str = "both"
    segmentor: Segmentor | None = None

    def __post_init__(self) -> None:
        check_motion(self.motion)
        check_direction(self.direction)

    def fill(
        self, frames: Iterable[Frame], masks: Masks, dtype: _Type, stop: Stop | None = None
    ) -> Iterator[Segmentation]:
        """Label every frame, in order. Memory is bounded: what a long gap leaves waiting lies in a temporary file.

        Args:
            frames: The video.
            masks: At least one.
            dtype: Type of the labels; it holds every id.
            stop: Ends the video before the next frame is taken, once it is set; frames that wait are still labelled.

        Raises:
            DataError: A mask belongs to a frame that does not come, or cannot be read.
        """
        filling = _Filling(self, masks, dtype)
        for frame in until(frames, stop):
            yield from filling.push(frame)
        if stop is not None and stop.is_set():
            yield from filling.flush()
        else:
            filling.finish()

    def session(self, labels: Iterable[Labels], ids: _Ids, keys: tuple[int, ...], direction: str) -> Session:
        """Return a session whose first key frame has the first labels, and those at ``keys`` the following ones."""
        coming = iter(labels)
        carrier = true_label_carrier(
            lambda _: next(coming), ids, self.propagator, motion=self.motion, segmentor=self.segmentor
        )
        return Session(carrier, ListedKeyFrames(keys), direction=direction)


class _Filling:
    """One video on its way: the frames before its first mask, and after each mask a session for the gap to the next."""

    def __init__(self, filler: Filler, masks: Masks, dtype: _Type) -> None:
        self._filler, self._masks, self._dtype = filler, masks, dtype
        self._following = dict(pairwise(sorted(masks.files)))
        self._next_mask: int | None = min(masks.files)
        self._mask = masks.read(self._next_mask)
        self._lead: list[Frame] = []  # before the first mask
        self._spill = Spill("frames that wait for the next mask")
        self._session: Session | None = None
        self._ids: _Ids = np.zeros(0, np.int64)
        self._last = -1

    def push(self, frame: Frame) -> Iterator[Segmentation]:
        """Take the next frame, and label those that can be labelled now."""
        if self._next_mask is not None and frame.index > self._next_mask:
            raise DataError(
                f"{self._masks.files[self._next_mask]}: frame {self._next_mask} cannot be read from the video"
            )
        self._last = frame.index
        if frame.index == self._next_mask:
            yield from self._end_gap(frame)
            yield Segmentation(frame, self._mask.astype(self._dtype), True)
            self._begin_gap(frame)
        elif self._session is not None:
            yield from self._filled(self._session.push(frame, copy=False))
        elif self._filler.direction == "both":
            self._lead.append(self._spill.keep_frame(frame))
        else:
            yield self._unlabelled(frame)

    def flush(self) -> Iterator[Segmentation]:
        """Label the frames that wait for a mask that will not come: from the mask before them, if there is one."""
        if self._session is not None:
            yield from self._filled(self._session.finish())
        yield from map(self._unlabelled, self._lead)

    def _unlabelled(self, frame: Frame) -> Segmentation:
        return Segmentation(frame, np.full(frame.size, np.iinfo(self._dtype).max, self._dtype), False)

    def finish(self) -> None:
        """Check that no mask is left."""
        if self._next_mask is not None:
            raise DataError(
                f"{self._masks.files[self._next_mask]}: frame {self._next_mask} is beyond the end of the video, whose "
                f"last frame is {self._last} (frames are counted from 0)"
            )

    def _end_gap(self, key: Frame) -> Iterator[Segmentation]:
        """Label the frames that waited for the mask of this frame."""
        if self._session is not None:
            yield from self._filled(self._session.push(key, copy=False)[:-1])
        if self._lead:
            yield from self._backward(key)
            self._lead = []
        self._spill.clear()

    def _begin_gap(self, key: Frame) -> None:
        """Begin a session after a mask, with only the ids around the gap as classes."""
        self._next_mask = self._following.get(key.index)
        before = after = self._mask
        keys: tuple[int, ...] = ()
        if self._next_mask is not None:
            after = self._masks.read(self._next_mask)
            keys = (self._next_mask,)
        self._ids = _present(before, after)
        direction = self._filler.direction if keys else "forward"
        self._session = self._filler.session((before, after), self._ids, keys, direction)
        self._session.push(key, copy=False)
        self._mask = after

    def _filled(self, results: Sequence[Segmentation]) -> Iterator[Segmentation]:
        """Results of the gap's session with the masks' own ids."""
        for result in results:
            yield Segmentation(result.frame, self._ids[result.labels].astype(self._dtype), False)

    def _backward(self, key: Frame) -> list[Segmentation]:
        """Label the frames before the first mask from it: a session that runs backward."""
        ids = _present(self._mask)
        session = self._filler.session((self._mask,), ids, (), "forward")
        session.push(replace(key, pts=-key.pts), copy=False)
        results = []
        for frame in reversed(self._lead):
            (result,) = session.push(replace(frame, pts=-frame.pts), copy=False)
            results.append(Segmentation(frame, self._spill.keep(ids[result.labels].astype(self._dtype)), False))
        return results[::-1]


def _present(*masks: Labels) -> _Ids:
    ids: np.ndarray = np.unique(np.concatenate([np.unique(mask) for mask in masks])).astype(np.int64)
    return ids


@dataclass(frozen=True)
class FillSummary(RunSummary):
    """What became of a video that was filled.

    Attributes:
        unlabelled: Frames before the first mask, going forward.
    """

    unlabelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**super().to_dict(), "unlabelled": self.unlabelled}


def propagate(
    source: str | Path,
    masks: str | Path,
    out: str | Path,
    filler: Filler,
    *,
    on_frame: Callable[[Segmentation], None] | None = None,
    stop: Stop | None = None,
    **output: Unpack[OutputOverrides],
) -> FillSummary:
    """Fill a video from masks at some of its frames, into files under ``out``.

    Ids are arbitrary, 0 to 65534, and kept exactly; frames with a mask get it back bit for bit. Where the only values
    are 0 and 255 they become background, id 0, and object, id 1. Going forward only, the frames before the first mask
    have no label: 255, or 65535 where any id is above 254. A pixel of 65535 has no label.

    Args:
        source: A video file, or a folder or glob of images.
        masks: Folder of PNG masks named as the images or by frame number; see ``find_masks``.
        out: Directory; made if missing.
        filler: How the frames between are filled.
        on_frame: Called with each finished frame, for progress.
        stop: Ends the video before the next frame is read, once it is set; what was filled is written.
        output: See ``OutputOptions``; without ``save``, labels and PNG.

    Returns:
        What became of the video; its key frames are those with a mask.

    Raises:
        SourceError: The video cannot be read.
        DataError: The masks are not as expected.
        OutputError: An output exists, or cannot be written.
        OptionError: An option is unknown or out of its range.
    """
    began = time.perf_counter()
    options = OutputOptions(save=("labels", "png")).replace(**output)
    if options.compare:
        raise OptionError("compare", "is for a segmentor: masks made by hand have nothing to be compared with")
    with read(source, vectors=isinstance(filler.propagator, FollowsVectors)) as reader:
        given = find_masks(Path(masks), reader.info.size, reader.names)
        paths = output_paths(options.name or reader.info.name, Path(out), options)
        first = next(reader)
        unlabelled, last = 0, first.pts
        with Sinks(reader, paths, options, given.names, _describe(filler, given), given.drawn) as sinks:
            for result in filler.fill(chain([first], reader), given, label_dtype(len(given.names)), stop):
                sinks.write(result)
                last = result.pts
                unlabelled += filler.direction == "forward" and result.index < min(given.files)
                if on_frame is not None:
                    on_frame(result)
            if stop is not None and stop.is_set():  # sound goes on no longer than the frames
                sinks.end = last + 1 / (reader.info.frame_rate or IMAGE_RATE)
        for message in reader.warnings:
            log.warning("%s: %s", reader.info.source, message)
        if unlabelled:
            log.warning(
                "%s: %d frames before the first mask have no label (%d); --direction both fills them",
                reader.info.source, unlabelled, ignore_id(len(given.names)),
            )  # fmt: skip
        return FillSummary(
            source=shown_address(str(source)),
            frames=sinks.frames,
            key_frames=sinks.key_frames,
            propagator=filler.propagator.name,
            damaged=reader.damaged,
            unlabelled=unlabelled,
            outputs=paths,
            seconds={"read": reader.seconds, "write": sinks.seconds, "total": time.perf_counter() - began},
            stopped=stop is not None and stop.is_set(),
        )


def _describe(filler: Filler, masks: Masks) -> dict[str, Any]:
    """What decides the labels, for NAME.json."""
    options = {
        "propagator": filler.propagator.name,
        "motion": filler.motion,
        "direction": filler.direction,
        "flow": describe_propagator(filler.propagator),
        "threads": threads(),
        "masks": sorted(masks.files),
    }
    if masks.binary:
        options["values"] = {"0": 0, "255": 1}
    return {"model": None if filler.segmentor is None else filler.segmentor.name, "options": options}
