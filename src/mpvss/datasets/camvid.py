"""CamVid, the 480x360 split with 11 classes: drives filmed at 30 frames per second, of which some are labelled."""

import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath

from mpvss.datasets.clips import Clip, ClipFrame, Dataset, label_table, list_pairs
from mpvss.datasets.listing import contents, list_folders, read_lines, require_directory
from mpvss.errors import DataError

_LAYOUT = "CamVid as DIR/{images,labels}/, DIR/SPLIT/{images,labels}/, or DIR/SPLIT/ beside DIR/SPLITannot/"
_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
_VOID = 11
_TABLE = label_table({value: value for value in range(len(_NAMES))} | {_VOID: 255, 255: 255})
_FILMED_FPS = 30


def open_camvid(root: Path, split: str | None) -> Dataset:
    """Open a CamVid directory in any of its common layouts.

    Every drive, the part of a file name before the frame number, makes one clip; its frame rate follows from the
    distance of the frame numbers.

    Args:
        root: The directory.
        split: Name of a split; ``None`` is test where there is one, or the only one.

    Raises:
        DataError: The directory follows none of the layouts, or ``split`` is needed or not there.
    """
    require_directory(root, _LAYOUT)
    splits = _splits(root)
    if not splits:
        raise DataError(f"{root}: expected {_LAYOUT}; {contents(root)}")
    if "" in splits and split is not None:
        raise DataError(f"{root}: holds images and labels directly, so there is no split {split!r}; leave it out")
    if split is None:
        split = "test" if "test" in splits else next(iter(splits))
        if len(splits) > 1 and split != "test":
            raise DataError(f"{root}: choose a split, one of {', '.join(splits)}")
    if split not in splits:
        raise DataError(f"{root}: no split {split!r}; expected one of {', '.join(splits)}")

    frames = list_pairs(*splits[split], _LAYOUT)
    listing = root / f"{split}.txt"
    if split and listing.is_file():
        frames = _listed(listing, frames)
    drives: dict[str, list[ClipFrame]] = {}
    for frame in frames:
        drives.setdefault(_drive_and_number(frame.image_path)[0] or split or root.name, []).append(frame)
    clips = [
        Clip(drive, [replace(frame, index=i) for i, frame in enumerate(members)], _NAMES, _fps(members), _TABLE)
        for drive, members in drives.items()
    ]
    return Dataset("camvid", _NAMES, clips)


def _splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Directories of images and labels by split; "" where the root holds them directly."""
    if (root / "images").is_dir():
        return {"": (root / "images", root / "labels")}
    splits = {}
    for folder in list_folders(root):
        if (root / f"{folder.name}annot").is_dir():
            splits[folder.name] = (folder, root / f"{folder.name}annot")
        elif (folder / "images").is_dir():
            splits[folder.name] = (folder / "images", folder / "labels")
    return splits


def _listed(listing: Path, frames: list[ClipFrame]) -> list[ClipFrame]:
    """The frames that a list names: on each line the path of an image, optionally followed by that of its label."""
    by_name = {frame.image_path.stem: frame for frame in frames}
    names = [PurePosixPath(line.split()[0]).stem for line in read_lines(listing) if line]
    for name in names:
        if name not in by_name:
            raise DataError(f"{listing}: lists {name}, which is not in {frames[0].image_path.parent}")
    if not names:
        raise DataError(f"{listing}: empty, expected an image a line")
    return [by_name[name] for name in names]


def _drive_and_number(path: Path) -> tuple[str | None, int]:
    """``("0016E5", 7959)`` of 0016E5_07959.png, also of 0016E5_f07959.png."""
    match = re.fullmatch(r"(.+)_f?(\d+)", path.stem)
    return (match[1], int(match[2])) if match else (None, 0)


def _fps(frames: list[ClipFrame]) -> Fraction:
    """From the usual distance of neighbouring frame numbers; 1 where there is none, as in the labelled splits."""
    numbers = [_drive_and_number(frame.image_path)[1] for frame in frames]
    steps = Counter(after - before for before, after in pairwise(numbers) if after > before)
    return Fraction(_FILMED_FPS, steps.most_common(1)[0][0]) if steps else Fraction(1)
