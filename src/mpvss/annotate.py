"""Masks that a person drew at some frames, propagated to all the others.

Between two masks a frame is filled from both of them, after the last one from that one alone. The frames before the
first mask are filled backward from it.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from mpvss._validate import shown, shown_address
from mpvss.datasets.clips import read_label
from mpvss.datasets.listing import list_images, read_lines
from mpvss.engine.carriers.true_labels import true_label_carrier
from mpvss.engine.decode import Labels
from mpvss.engine.flows import check_motion
from mpvss.engine.schedule import ListedKeyFrames
from mpvss.engine.session import Session, check_direction
from mpvss.engine.spill import Spill
from mpvss.errors import DataError
from mpvss.labels import IGNORE, MAX_CLASSES, ignore_id, label_dtype
from mpvss.motion.propagator import Propagator
from mpvss.motion.propagators import describe_propagator
from mpvss.options import OutputOptions
from mpvss.outputs.sinks import Sinks, output_paths
from mpvss.segmentors.protocol import Segmentor
from mpvss.types import Frame, RunSummary, Segmentation, shown_size
from mpvss.video import read
from mpvss.video.images import BROKEN_PICTURE, open_image

log = logging.getLogger(__name__)

_Colour = tuple[int, int, int]
_BACKGROUND = "background"


@dataclass(frozen=True)
class Masks:
    """Masks of a video, checked.

    Attributes:
        files: By frame index.
        names: Of the ids, which are 0 and up.
        labelmap: Id of each colour that ``labelmap.txt`` lists, or ``None``.
        binary: Whether the only values are 0 and 255, which become background (0) and object (1).
    """

    files: dict[int, Path]
    names: tuple[str, ...]
    labelmap: dict[_Colour, int] | None
    binary: bool

    def read(self, index: int) -> Labels:
        """The ids of the mask at a frame.

        Raises:
            DataError: It cannot be read.
        """
        values = _read_mask(self.files[index], self.labelmap)
        return (values != 0).astype(np.uint8) if self.binary else values

    @property
    def drawn(self) -> list[int] | None:
        """The ids that an overlay tints: all but one that is called background; ``None`` for all."""
        ids = [id_ for id_, name in enumerate(self.names) if name.lower() != _BACKGROUND]
        return ids if 0 < len(ids) < len(self.names) else None


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
        self, frames: Iterable[Frame], masks: Masks, dtype: type[np.uint8] | type[np.uint16]
    ) -> Iterator[Segmentation]:
        """Label every frame, in order. Memory is bounded: what a long gap leaves waiting lies in a temporary file.

        Args:
            frames: The video.
            masks: At least one.
            dtype: Type of the labels; it holds every id.

        Raises:
            DataError: A mask belongs to a frame that does not come, or cannot be read.
        """
        after = dict(pairwise(sorted(masks.files)))
        expected: int | None = min(masks.files)
        lead: list[Frame] = []
        spill = Spill("frames that wait for the next mask")
        session: Session | None = None
        ids = np.zeros(0, np.int64)
        mask = masks.read(min(masks.files))
        last = -1

        def ready(results: Sequence[Segmentation]) -> Iterator[Segmentation]:
            return (Segmentation(each.frame, ids[each.labels].astype(dtype), False) for each in results)

        for frame in frames:
            last = frame.index
            if expected is not None and frame.index > expected:
                raise DataError(f"{masks.files[expected]}: frame {expected} cannot be read from the video")
            if frame.index != expected:
                if session is not None:
                    yield from ready(session.push(frame, copy=False))
                elif self.direction == "both":
                    lead.append(spill.keep_frame(frame))
                else:
                    blank = np.full(frame.size, np.iinfo(dtype).max, dtype)
                    yield Segmentation(frame, blank, False)
                continue
            if session is not None:
                yield from ready(session.push(frame, copy=False)[:-1])
            if lead:
                yield from self._backward(lead, frame, mask, dtype, spill)
                lead = []
            spill.clear()
            yield Segmentation(frame, mask.astype(dtype), True)

            # Every gap is a session of its own, with only the ids around it as classes.
            expected = after.get(frame.index)
            coming = mask if expected is None else masks.read(expected)
            ids = _ids(mask, coming)
            direction = "forward" if expected is None else self.direction
            session = self._session((mask, coming), ids, expected, direction)
            session.push(frame, copy=False)
            mask = coming
        if expected is not None:
            raise DataError(
                f"{masks.files[expected]}: frame {expected} is beyond the end of the video, whose last frame is {last} "
                "(frames are counted from 0)"
            )

    def _session(
        self, masks: tuple[Labels, Labels], ids: Int64[np.ndarray, " K"], last: int | None, direction: str
    ) -> Session:
        """A session whose first key frame has the first mask, and the one at ``last`` the second."""
        coming = iter(masks)
        carrier = true_label_carrier(
            lambda _: next(coming), ids, self.propagator, motion=self.motion, segmentor=self.segmentor
        )
        return Session(carrier, ListedKeyFrames(() if last is None else (last,)), direction=direction)

    def _backward(
        self, lead: list[Frame], key: Frame, mask: Labels, dtype: type[np.uint8] | type[np.uint16], spill: Spill
    ) -> list[Segmentation]:
        """Label the frames before a mask from it: a session that runs backward."""
        ids = _ids(mask)
        session = self._session((mask, mask), ids, None, "forward")
        session.push(replace(key, pts=-key.pts), copy=False)
        results = []
        for frame in reversed(lead):
            (result,) = session.push(replace(frame, pts=-frame.pts), copy=False)
            labels = spill.keep(ids[result.labels].astype(dtype))
            results.append(Segmentation(frame, labels, False))
        return results[::-1]


def _ids(*masks: Labels) -> Int64[np.ndarray, " K"]:
    ids: np.ndarray = np.unique(np.concatenate([np.unique(mask) for mask in masks])).astype(np.int64)
    return ids


def find_masks(folder: Path, size: tuple[int, int], images: Sequence[str] = ()) -> Masks:
    """Find and check the masks of a video.

    Args:
        folder: PNG files, and perhaps ``labelmap.txt``; other files are left alone. See ``_by_frame`` for their names.
        size: Height and width of the video in pixels.
        images: What the images of a folder are called, by index; empty for a video.

    Raises:
        DataError: There is none, a name says no frame or comes twice, or a file is no mask of this size.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of masks, PNG files named by frame number, found none")
    labelmap = _read_labelmap(folder)
    ids = None if labelmap is None else {colour: id_ for id_, (_, colour) in enumerate(labelmap)}
    files = list_images(folder, (".png",))
    if not files and (folder / "SegmentationClass").is_dir():  # where CVAT and VOC keep them
        files = list_images(folder / "SegmentationClass", (".png",))
    if not files:
        raise DataError(f"{folder}: no masks; expected PNG files named by frame number, such as 000120.png")
    masks: dict[int, Path] = {}
    values: set[int] = set()
    for index, path in _by_frame(files, images):
        if index in masks:
            raise DataError(f"{path}: a second mask for frame {index}, beside {masks[index].name}; keep one")
        mask = _read_mask(path, ids)
        if mask.shape != size:
            raise DataError(
                f"{path}: expected a mask of the video's size {shown_size(size)}, found {shown_size(mask.shape)}"
            )
        masks[index] = path
        values.update(np.unique(mask).tolist())
    return _named(masks, values, labelmap)


def _named(masks: dict[int, Path], values: set[int], labelmap: list[tuple[str, _Colour]] | None) -> Masks:
    largest = max(values)
    if labelmap is not None:
        names = [name for name, _ in labelmap]
        names += [str(id_) for id_ in range(len(names), largest + 1) if id_ < MAX_CLASSES]
        return Masks(masks, tuple(names), {colour: id_ for id_, (_, colour) in enumerate(labelmap)}, binary=False)
    if 255 in values and values <= {0, 255}:
        return Masks(masks, (_BACKGROUND, "object"), None, binary=True)
    # One more than the largest, so that the id of "no label" is free: 255, or 65535 where there are more than 255.
    names = [str(id_) for id_ in range(min(largest + 1, MAX_CLASSES))]
    if len(values) == 2 and 0 in values and largest < MAX_CLASSES:
        names[0], names[largest] = _BACKGROUND, "object"
    return Masks(masks, tuple(names), None, binary=False)


def _by_frame(files: Mapping[str, Path], images: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """Pair masks with frame indices: by the names of a folder's images where all are such names, or by number.

    The number of a frame is the only one in the names of the masks that differs between them, or the last:
    ``frame_000123.png`` is frame 123, and so is ``clip2_000123_mask.png`` beside ``clip2_000124_mask.png``.

    Raises:
        DataError: A name has no number.
    """
    positions = {name: index for index, name in enumerate(images)}
    by_name = {name: positions[name] for name in files if name in positions}
    if len(by_name) == len(files):
        other = next((name for name, index in by_name.items() if name.isdecimal() and int(name) != index), None)
        if other is not None:
            log.warning("masks belong to the images of their names: %s.png to frame %d", other, by_name[other])
        yield from ((by_name[name], path) for name, path in files.items())
        return
    numbers = {name: re.findall(r"\d+", name, re.ASCII) for name in files}
    column = _frame_column(numbers)
    for name, path in files.items():
        if not numbers[name]:
            what = "by its frame number, such as 120.png or frame_000120.png"
            raise DataError(f"{path}: expected a mask named {what if not images else f'as its image, or {what}'}")
        yield int(numbers[name][column]), path


def _frame_column(numbers: Mapping[str, Sequence[str]]) -> int:
    """Which number of a name is the frame's: the only one that differs where all have equally many, or the last."""
    rows = list(numbers.values())
    if len({len(row) for row in rows}) > 1:
        return -1
    differing = [column for column, values in enumerate(zip(*rows, strict=True)) if len(set(values)) > 1]
    return differing[0] if len(differing) == 1 else -1


def _read_mask(path: Path, labelmap: Mapping[_Colour, int] | None) -> Labels:
    """The ids of a mask file: as stored, grey stored as RGB, or the colours of a label map.

    Raises:
        DataError: It cannot be read, or has colours that the label map does not list.
    """
    try:
        with open_image(path) as image:
            coloured = image.mode in ("RGB", "RGBA") or (image.mode == "P" and labelmap is not None)
            rgb = np.array(image.convert("RGB")) if coloured else np.zeros((0, 0, 3), np.uint8)
    except BROKEN_PICTURE as error:
        raise DataError(f"{path}: cannot read the label file: {error}") from error
    if not coloured:
        return read_label(path)
    packed = (rgb.astype(np.int32) << (16, 8, 0)).sum(2, dtype=np.int32)
    colours, inverse = np.unique(packed, return_inverse=True)
    listed = [(int(colour) >> 16, int(colour) >> 8 & 255, int(colour) & 255) for colour in colours]
    if labelmap is None:
        if any(len(set(colour)) > 1 for colour in listed):
            return read_label(path)  # which refuses colours
        ids = [colour[0] for colour in listed]
    else:
        unknown = [colour for colour in listed if colour not in labelmap]
        if unknown:
            raise DataError(
                f"{path}: expected colours that labelmap.txt lists, found {','.join(map(str, unknown[0]))} (red,green,"
                "blue); add a line name:red,green,blue:: for it"
            )
        ids = [labelmap[colour] for colour in listed]
    labels: Labels = np.array(ids, np.uint8 if max(ids) <= IGNORE else np.uint16)[inverse].reshape(packed.shape)
    return labels


def _read_labelmap(folder: Path) -> list[tuple[str, _Colour]] | None:
    """Names and colours of ``labelmap.txt``, in the masks' folder or the one above, as CVAT and VOC write it.

    A line is ``name:red,green,blue:parts:actions``; the first line is id 0. Lines that begin with ``#`` are comments.

    Raises:
        DataError: A line has another form, or two have one colour.
    """
    path = next(
        (place / "labelmap.txt" for place in (folder, folder.parent) if (place / "labelmap.txt").is_file()), None
    )
    if path is None:
        return None
    entries: list[tuple[str, _Colour]] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(:.*)?", line, re.ASCII)
        colour = tuple(int(part) for part in match.groups()[1:4]) if match else (256,)
        if match is None or max(colour) > 255:
            raise DataError(f"{path}: line {number}: expected name:red,green,blue::, found {shown(line)}")
        if colour in [known for _, known in entries]:
            raise DataError(f"{path}: line {number}: the colour of {shown(match[1])} is that of an earlier line")
        entries.append((match[1].strip(), (colour[0], colour[1], colour[2])))
    if not entries:
        raise DataError(f"{path}: expected a line name:red,green,blue:: for each class, found none")
    return entries


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
    save: tuple[str, ...] = ("labels", "png"),
    overwrite: bool = False,
    name: str | None = None,
    on_frame: Callable[[Segmentation], None] | None = None,
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
        save: Any of ``labels``, ``png`` and ``overlay``; NAME.json is always written.
        overwrite: Whether files that exist already are replaced.
        name: What the files are called; ``None`` for the video's name.
        on_frame: Called with each finished frame, for progress.

    Returns:
        What became of the video; its key frames are those with a mask.

    Raises:
        SourceError: The video cannot be read.
        DataError: The masks are not as expected.
        OutputError: An output exists, or cannot be written.
        ValueError: ``save`` names something else.
    """
    began = time.perf_counter()
    options = OutputOptions(save=save, overwrite=overwrite, name=name)
    with read(source) as reader:
        given = find_masks(Path(masks), reader.info.size, reader.names)
        files, names = given.files, given.names
        classes = len(names)
        paths = output_paths(name or reader.info.name, Path(out), options)
        about = {
            "model": None if filler.segmentor is None else filler.segmentor.name,
            "options": {
                "propagator": filler.propagator.name,
                "motion": filler.motion,
                "direction": filler.direction,
                "flow": describe_propagator(filler.propagator),
                "threads": torch.get_num_threads(),
                "masks": sorted(files),
                **({"values": {"0": 0, "255": 1}} if given.binary else {}),
            },
        }
        first = next(reader)
        unlabelled = 0
        with Sinks(reader, paths, options, names, about, given.drawn) as sinks:
            for result in filler.fill(chain([first], reader), given, label_dtype(classes)):
                sinks.write(result)
                unlabelled += filler.direction == "forward" and result.index < min(files)
                if on_frame is not None:
                    on_frame(result)
        for message in reader.warnings:
            log.warning("%s: %s", reader.info.source, message)
        if unlabelled:
            log.warning(
                "%s: %d frames before the first mask have no label (%d); --direction both fills them",
                source,
                unlabelled,
                ignore_id(classes),
            )
        return FillSummary(
            source=shown_address(str(source)),
            frames=sinks.frames,
            key_frames=sinks.key_frames,
            propagator=filler.propagator.name,
            damaged=reader.damaged,
            unlabelled=unlabelled,
            outputs=paths,
            seconds={"read": reader.seconds, "write": sinks.seconds, "total": time.perf_counter() - began},
        )
