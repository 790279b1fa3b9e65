"""Plain folders: anyone's own labelled pictures, as docs/datasets.md describes them."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from mpvss.data.clips import (
    Clip,
    Dataset,
    found_in,
    label_table,
    list_folders,
    list_images,
    list_pairs,
    read_lines,
    require_directory,
)
from mpvss.errors import DataError
from mpvss.labels import IGNORE, MAX_CLASSES, ignore_id

_LAYOUT = "a folder as DIR/classes.txt and DIR/{images,labels}/, or DIR/{images,labels}/CLIP/"


def open_folder(root: Path, split: str | None) -> Dataset:
    """Open a plain folder.

    Args:
        root: The directory that holds ``classes.txt``, ``images`` and ``labels``.
        split: Name of a list of clips, ``DIR/SPLIT.txt``; ``None`` is all clips.

    Raises:
        DataError: The directory is not as the layout demands.
    """
    images, labels = root / "images", root / "labels"
    require_directory(images, _LAYOUT)
    require_directory(labels, _LAYOUT)
    names = _class_names(root / "classes.txt")
    clip_names = [folder.name for folder in list_folders(images)]
    if clip_names and list_images(images):
        raise DataError(f"{images}: holds pictures beside directories of clips; {found_in(images)}")
    for folder in list_folders(labels):
        if folder.name not in clip_names:
            raise DataError(f"{folder}: extra labels, there is no directory {images / folder.name}")
    if split is not None:
        clip_names = _listed(root / f"{split}.txt", clip_names, images)
    directories = {name: (images / name, labels / name) for name in clip_names} or {
        root.resolve().name: (images, labels)
    }
    table = _table(len(names))
    clips = [Clip(name, list_pairs(*pair, _LAYOUT), names, Fraction(25), table) for name, pair in directories.items()]
    return Dataset("folder", names, clips)


def _listed(listing: Path, clip_names: list[str], images: Path) -> list[str]:
    if not listing.is_file():
        raise DataError(f"{listing}: no such list of clips; {found_in(listing.parent)}")
    listed = [name for name in read_lines(listing) if name]
    for name in listed:
        if name not in clip_names:
            raise DataError(f"{listing}: lists {name!r}, which is no directory in {images}")
    if not listed:
        raise DataError(f"{listing}: empty, expected the name of a clip a line")
    return listed


def _class_names(path: Path) -> tuple[str, ...]:
    names = read_lines(path)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{path}: expected 1 to {MAX_CLASSES} class names, one a line, found {len(names)}")
    for line, name in enumerate(names):
        if not name:
            raise DataError(f"{path}: line {line + 1} is empty; the line number gives the class id, so name every line")
        if name in names[:line]:
            raise DataError(f"{path}: line {line + 1} repeats the class {name!r}")
    return tuple(names)


def _table(num_classes: int) -> Int32[np.ndarray, " values"]:
    """Every class is itself; void is 65535, and 255 where that is no class."""
    ignore = ignore_id(num_classes)
    void = {MAX_CLASSES: ignore} | ({IGNORE: ignore} if num_classes <= IGNORE else {})
    return label_table(void | {value: value for value in range(num_classes)})
