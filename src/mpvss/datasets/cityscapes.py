"""Cityscapes: 19 classes; snippets of 30 frames at 17 frames per second of which only the 20th is labelled."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mpvss.datasets.clips import Clip, ClipFrame, Dataset, label_table
from mpvss.datasets.listing import contents, list_folders, list_images, require_directory
from mpvss.errors import DataError

_LAYOUT = (
    "Cityscapes as DIR/gtFine/SPLIT/CITY/*_gtFine_labelIds.png (or labelTrainIds) and "
    "DIR/leftImg8bit_sequence/SPLIT/CITY/*_leftImg8bit.png (or leftImg8bit)"
)
_BEFORE, _AFTER = 19, 10  # frames of a snippet around its labelled one

# Files of one city by "CITY_SEQUENCE" and frame number.
_Files = dict[tuple[str, int], Path]

# Class name by the label id in the files; the order is that of the training ids.
_CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_TABLES = {
    "labelIds": label_table(
        dict.fromkeys((*range(34), 255), 255) | {label_id: train_id for train_id, label_id in enumerate(_CLASSES)}
    ),
    "labelTrainIds": label_table({255: 255} | {train_id: train_id for train_id in range(len(_CLASSES))}),
}


def open_cityscapes(root: Path, split: str | None) -> Dataset:
    """Open a Cityscapes directory.

    With ``leftImg8bit_sequence`` every labelled frame makes a clip of its snippet: 19 frames before it and 10 after.
    A snippet may lack frames at its ends, but has no holes. With ``leftImg8bit`` alone every labelled frame is a clip
    of its own.

    Args:
        root: The directory that holds ``gtFine`` and the images.
        split: train, val or test; ``None`` is val.

    Raises:
        DataError: The directory does not follow the layout.
    """
    split = split or "val"
    whole_snippets = (root / "leftImg8bit_sequence" / split).is_dir()
    image_root = root / ("leftImg8bit_sequence" if whole_snippets else "leftImg8bit") / split
    label_root = root / "gtFine" / split
    require_directory(image_root, _LAYOUT)
    require_directory(label_root, _LAYOUT)
    kind = next((kind for kind in _TABLES if any(label_root.glob(f"*/*_gtFine_{kind}.png"))), None)
    if kind is None:
        raise DataError(f"{label_root}: no label files; expected {_LAYOUT}; {contents(label_root)}")

    names = tuple(_CLASSES.values())
    clips = []
    for city in dict.fromkeys(folder.name for side in (image_root, label_root) for folder in list_folders(side)):
        images = _files(image_root / city, "leftImg8bit")
        labels = _files(label_root / city, f"gtFine_{kind}")
        around = (_BEFORE, _AFTER) if whole_snippets else (0, 0)
        clips += [
            Clip(name, frames, names, Fraction(17), _TABLES[kind])
            for name, frames in _snippets(images, labels, around, label_root / city)
        ]
    return Dataset("cityscapes", names, clips, protocol="cityscapes" if whole_snippets else "semantic")


def _files(directory: Path, ending: str) -> _Files:
    """Files CITY_SEQUENCE_FRAME_ending.png of one city; none where there is no such directory."""
    files: _Files = {}
    for name, path in (list_images(directory) if directory.is_dir() else {}).items():
        match = re.fullmatch(rf"(.+_\d+)_(\d+)_{ending}", name)
        if match:
            files[match[1], int(match[2])] = path
    return files


def _snippets(
    images: _Files, labels: _Files, around: tuple[int, int], label_directory: Path
) -> Iterator[tuple[str, list[ClipFrame]]]:
    """Name and frames of the snippet of each label: so many frames before and after the labelled one."""
    unused = set(images)
    for (sequence, labelled), label in labels.items():
        numbers = [n for n in range(labelled - around[0], labelled + around[1] + 1) if (sequence, n) in images]
        if labelled not in numbers:
            raise DataError(f"{label}: extra label, there is no image {sequence}_{labelled:06} for it")
        hole = next((n for n in range(numbers[0], numbers[-1]) if n not in numbers), None)
        if hole is not None:
            raise DataError(f"{images[sequence, numbers[0]].parent}: missing image {sequence}_{hole:06} in a snippet")
        unused -= {(sequence, number) for number in numbers}
        frames = [
            ClipFrame(images[sequence, number], label if number == labelled else None, index)
            for index, number in enumerate(numbers)
        ]
        yield f"{sequence}_{labelled:06}", frames
    if unused:
        lost = images[min(unused)]
        raise DataError(f"{lost}: missing label, neither it nor its snippet has one in {label_directory}")
