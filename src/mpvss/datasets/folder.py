"""Plain folders: anyone's own labelled images, as docs/datasets.md describes them."""

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from mpvss.datasets.clips import Clip, ClipFrame, Dataset, label_table
from mpvss.datasets.listing import contents, list_folders, list_images, read_lines, require_directory, require_no_extra
from mpvss.errors import DataError
from mpvss.labels import IGNORE, MAX_CLASSES, ignore_id

log = logging.getLogger(__name__)

_IGNORE = "ignore:"
_VOID_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled", "unknown")
_LAYOUT = "a folder as DIR/classes.txt and DIR/{images,labels}/, or DIR/{images,labels}/CLIP/"


def open_folder(root: Path, split: str | None) -> Dataset:
    """Open a plain folder.

    Args:
        root: The directory that holds ``classes.txt``, ``images`` and ``labels``.
        split: Name of a list of clips, ``DIR/SPLIT.txt``; ``None`` is all clips.

    Raises:
        DataError: The directory does not follow the layout.
    """
    images, labels = root / "images", root / "labels"
    require_directory(images, _LAYOUT)
    require_directory(labels, _LAYOUT)
    names, ids = _read_classes(root / "classes.txt")
    clip_names = [folder.name for folder in list_folders(images)]
    if clip_names and list_images(images):
        raise DataError(f"{images}: holds images beside directories of clips; {contents(images)}")
    for folder in list_folders(labels):
        if folder.name not in clip_names:
            raise DataError(f"{folder}: extra labels, there is no directory {images / folder.name}")
    if split is not None:
        clip_names = _listed(root / f"{split}.txt", clip_names, images)
    directories = {name: (images / name, labels / name) for name in clip_names} or {
        root.resolve().name: (images, labels)
    }
    table = _table(len(names), ids)
    clips = [Clip(name, _frames(*pair), names, Fraction(25), table) for name, pair in directories.items()]
    frames = [frame for clip in clips for frame in clip.frames]
    labelled = sum(frame.label_path is not None for frame in frames)
    if not labelled:
        raise DataError(f"{labels}: expected PNG labels of the names of images, got none; {contents(labels)}")
    if labelled < len(frames):
        log.warning("%s: %d of %d images have no label", root, len(frames) - labelled, len(frames))
    return Dataset("folder", names, clips)


def _frames(images: Path, labels: Path) -> list[ClipFrame]:
    """The frames of a clip, of which some, or all, may have no label."""
    paths = list_images(images)
    if not paths:
        raise DataError(f"{images}: empty, expected images; {contents(images)}")
    files = list_images(labels, (".png",)) if labels.is_dir() else {}
    require_no_extra(paths, files)
    return [ClipFrame(path, files.get(name), index) for index, (name, path) in enumerate(paths.items())]


def _listed(listing: Path, clip_names: list[str], images: Path) -> list[str]:
    if not listing.is_file():
        raise DataError(f"{listing}: no such list of clips; {contents(listing.parent)}")
    listed = [name for name in read_lines(listing) if name]
    for name in listed:
        if name not in clip_names:
            raise DataError(f"{listing}: lists {name!r}, which is no directory in {images}")
    if not listed:
        raise DataError(f"{listing}: empty, expected the name of a clip a line")
    return listed


def _read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names, and the class id of each file value that ``classes.txt`` names.

    A line names the next id from 0. A line ``ignore: 0, 7, void`` says which ids, or lines by their name, are no class.
    Such a line names no id, unless it stands at one that it lists, or lists only a word that no other line has
    (``ignore: void``): then it is that id's line.

    Raises:
        DataError: The file is not so.
    """
    names: list[str | None] = []
    ignored: list[tuple[int, str]] = []
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line.lower().startswith(_IGNORE):
            if not line:
                raise DataError(
                    f"{path}: line {number} is empty; the line number gives the class id, so name every line"
                )
            if line in names:
                raise DataError(f"{path}: line {number} repeats the class {line!r}")
            names.append(line)
            continue
        words = [word.strip() for word in line[len(_IGNORE) :].split(",")]
        ignored += [(number, word) for word in words]
        if str(len(names)) in words or not (set(words) & set(lines) or any(map(str.isdecimal, words))):
            ignored.append((number, str(len(names))))
            names.append(None)
    return _without(path, names, ignored)


def _without(
    path: Path, names: list[str | None], ignored: list[tuple[int, str]]
) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes that are left, numbered from 0, and the class id of each file value."""
    void: set[int] = set()
    for number, word in ignored:
        if word.isascii() and word.isdecimal() and int(word) <= MAX_CLASSES:
            void.add(int(word))
        elif word in names:
            void.add(names.index(word))
        elif None not in names:
            raise DataError(f"{path}: line {number}: expected ids or names of other lines to ignore, got {word!r}")
    after = [name for id_, name in enumerate(names) if id_ - 1 in void and id_ > 0 and names[id_ - 1] is None]
    if any(name is not None and name.lower() in _VOID_NAMES for name in after):
        raise DataError(
            f"{path}: expected one line for the ignored id, got ignore: and then {after[0]!r}: put the line ignore: "
            "at the end, or leave the other out"
        )
    kept = [(id_, name) for id_, name in enumerate(names) if name is not None and id_ not in void]
    if not 1 <= len(kept) <= MAX_CLASSES:
        raise DataError(f"{path}: expected 1 to {MAX_CLASSES} class names, one a line, got {len(kept)}")
    ignore = ignore_id(len(kept))
    ids = {value: class_id for class_id, (value, _) in enumerate(kept)}
    return tuple(name for _, name in kept), ids | dict.fromkeys(void, ignore)


def _table(num_classes: int, ids: Mapping[int, int]) -> Int32[np.ndarray, " values"]:
    """Void is 65535, what is ignored, and 255 where that is no class."""
    ignore = ignore_id(num_classes)
    void = {MAX_CLASSES: ignore} | ({IGNORE: ignore} if IGNORE not in ids else {})
    return label_table(void | dict(ids))
