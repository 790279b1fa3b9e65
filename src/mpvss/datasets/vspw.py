"""VSPW: 124 classes, labelled at 15 frames per second; both the 480p and the original release."""

from fractions import Fraction
from pathlib import Path

from mpvss._validate import read_json, shown
from mpvss.datasets.clips import Clip, ClipFrame, Dataset, label_table, list_pairs
from mpvss.datasets.listing import contents, list_images, read_lines, require_directory, require_names
from mpvss.errors import DataError

_LAYOUT = "VSPW as DIR/{train,val,test}.txt and DIR/data/VIDEO/{origin,mask}/"
_CLASSES = 124
# 0 is "others" and 255 unlabelled: neither is a class.
_TABLE = label_table({0: 255, 255: 255} | {value: value - 1 for value in range(1, _CLASSES + 1)})


def open_vspw(root: Path, split: str | None) -> Dataset:
    """Open a VSPW directory.

    Args:
        root: The directory that holds ``data`` and the lists of videos.
        split: Name of a list without ``.txt``; ``None`` is val. The test split may come without masks.

    Raises:
        DataError: The directory does not follow the layout.
    """
    split = split or "val"
    require_directory(root / "data", _LAYOUT)
    listing = root / f"{split}.txt"
    if not listing.is_file():
        raise DataError(f"{listing}: no such list of videos; expected {_LAYOUT}; {contents(root)}")
    videos = [name for name in read_lines(listing) if name]
    require_names(videos, listing)
    if not videos:
        raise DataError(f"{listing}: empty, expected one video name a line")
    names = _class_names(root / "label_num_dic_final.json")
    clips = [
        Clip(video, _frames(root / "data" / video, split), names, Fraction(15), _TABLE)
        for video in dict.fromkeys(videos)
    ]
    return Dataset("vspw", names, clips)


def _frames(video: Path, split: str) -> list[ClipFrame]:
    images, masks = video / "origin", video / "mask"
    if split != "test" or masks.exists():
        return list_pairs(images, masks, _LAYOUT)
    require_directory(images, _LAYOUT)
    frames = [ClipFrame(path, None, index) for index, path in enumerate(list_images(images).values())]
    if not frames:
        raise DataError(f"{images}: empty, expected images; {contents(images)}")
    return frames


def _class_names(path: Path) -> tuple[str, ...]:
    """Names of the file values 1..124; class000 and so on where the file is missing."""
    if not path.exists():
        return tuple(f"class{index:03}" for index in range(_CLASSES))
    try:
        values = read_json(path)
        names = {int(value): str(name) for name, value in values.items()}
        return tuple(names[value] for value in range(1, _CLASSES + 1))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise DataError(
            f"{path}: expected a dictionary of class name to file value with the values 1..{_CLASSES}: {shown(error)}"
        ) from error
