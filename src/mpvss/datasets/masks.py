"""Masks that a person drew at some frames of a video: listed, checked and read, whatever tool wrote them."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpvss._validate import shown
from mpvss.datasets.clips import read_label
from mpvss.datasets.listing import list_images, read_lines
from mpvss.engine.decode import Labels
from mpvss.errors import DataError
from mpvss.labels import IGNORE, MAX_CLASSES
from mpvss.types import shown_size
from mpvss.video.images import BROKEN_IMAGE, open_image

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


def find_masks(folder: Path, size: tuple[int, int], images: Sequence[str] = ()) -> Masks:
    """Find and check the masks of a video.

    Args:
        folder: PNG files, and optionally ``labelmap.txt``; others are ignored. See ``_by_frame`` for their names.
        size: Height and width of the video in pixels.
        images: What the images of a folder are called, by index; empty for a video.

    Raises:
        DataError: There is none, a name says no frame or comes twice, or a file is no mask of this size.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of masks, PNG files named by frame number, got none")
    names = _read_labelmap(folder)
    labelmap = None if names is None else {colour: id_ for id_, colour in enumerate(names)}
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
        mask = _read_mask(path, labelmap)
        if mask.shape != size:
            raise DataError(
                f"{path}: expected a mask of the video's size {shown_size(size)}, got {shown_size(mask.shape)}"
            )
        masks[index] = path
        values.update(np.unique(mask).tolist())
    if names is None:
        binary = 255 in values and values <= {0, 255}
        return Masks(masks, (_BACKGROUND, "object") if binary else _names_of(values), None, binary)
    listed = [*names.values(), *(str(id_) for id_ in range(len(names), min(max(values) + 1, MAX_CLASSES)))]
    return Masks(masks, tuple(listed), labelmap, binary=False)


def _names_of(values: set[int]) -> tuple[str, ...]:
    """Names of ids that nobody named: the ids themselves, or background and object where there are two."""
    largest = max(values)
    # One more than the largest, so that the id of "no label" is free: 255, or 65535 where there are more than 255.
    names = [str(id_) for id_ in range(min(largest + 1, MAX_CLASSES))]
    if len(values) == 2 and 0 in values and largest < MAX_CLASSES:
        names[0], names[largest] = _BACKGROUND, "object"
    return tuple(names)


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
    except BROKEN_IMAGE as error:
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
                f"{path}: expected colours that labelmap.txt lists, got {','.join(map(str, unknown[0]))} (red,green,"
                "blue); add a line name:red,green,blue:: for it"
            )
        ids = [labelmap[colour] for colour in listed]
    labels: Labels = np.array(ids, np.uint8 if max(ids) <= IGNORE else np.uint16)[inverse].reshape(packed.shape)
    return labels


def _read_labelmap(folder: Path) -> dict[_Colour, str] | None:
    """Names by colour of ``labelmap.txt``, in the masks' folder or the one above, as CVAT and VOC write it.

    A line is ``name:red,green,blue:parts:actions``; ids count lines from 0. Lines that begin with ``#`` are comments.

    Raises:
        DataError: A line has another form, or two have one colour.
    """
    paths = [path for path in (folder / "labelmap.txt", folder.parent / "labelmap.txt") if path.is_file()]
    if not paths:
        return None
    path = paths[0]
    names: dict[_Colour, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(:.*)?", line, re.ASCII)
        colour = tuple(int(part) for part in match.groups()[1:4]) if match else (256,)
        if match is None or max(colour) > 255:
            raise DataError(f"{path}: line {number}: expected name:red,green,blue::, got {shown(line)}")
        if colour in names:
            raise DataError(f"{path}: line {number}: the colour of {shown(match[1])} is that of an earlier line")
        names[colour[0], colour[1], colour[2]] = match[1].strip()
    if not names:
        raise DataError(f"{path}: expected a line name:red,green,blue:: for each class, got none")
    return names
