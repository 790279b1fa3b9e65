"""Directories and lists of a data set: what is in them, and messages that say what was expected instead."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mpvss._files import IMAGE_SUFFIXES, natural_order
from mpvss._validate import shown
from mpvss.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding blanks, empty ones at the end left out.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the text file: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _entries(directory: Path) -> list[Path]:
    """What a directory holds, in natural order, without hidden files."""
    try:
        entries = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{directory}: cannot list the directory: {error}") from error
    return [directory / name for name in natural_order(entry.name for entry in entries)]


def list_folders(directory: Path) -> list[Path]:
    """The directories in a directory, in natural order.

    Raises:
        DataError: It cannot be listed.
    """
    return [entry for entry in _entries(directory) if entry.is_dir()]


def list_images(directory: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """The image files in a directory by name without suffix, in natural order.

    Raises:
        DataError: It cannot be listed, or two files differ only in their suffix.
    """
    images: dict[str, Path] = {}
    for entry in _entries(directory):
        if entry.suffix.lower() not in suffixes:
            continue
        if entry.stem in images:
            raise DataError(f"{entry}: a second image of the same name as {images[entry.stem].name}; keep one")
        images[entry.stem] = entry
    return images


def require_names(names: Iterable[str], listing: object) -> None:
    """Check that clips, as a list names them, are names in a directory and lead nowhere else.

    Args:
        names: Of clips.
        listing: Where they come from, for the message.

    Raises:
        DataError: One is empty, a path, or longer than the name of a file can be.
    """
    for name in names:
        if name in ("", ".", "..") or set(name) & set("/\\\0") or len(os.fsencode(name)) > 255:
            raise DataError(f"{listing}: expected the name of a clip, got {shown(name)}")


def require_directory(path: Path, layout: str) -> None:
    """Check that a directory is there.

    Args:
        path: The directory.
        layout: What the data set should look like, for the message.

    Raises:
        DataError: It is not; the message says what the nearest directory above holds instead.
    """
    if path.is_dir():
        return
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    raise DataError(f"{path}: no such directory; expected {layout}; {contents(parent)}")


def contents(directory: Path) -> str:
    """What a directory holds, in a few words."""
    names = [entry.name + "/" * entry.is_dir() for entry in _entries(directory)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{directory} holds {', '.join(names[:8]) or 'nothing'}{more}"


def require_no_extra(images: Iterable[str], labels: Mapping[str, Path]) -> None:
    """Check that every label has an image.

    Raises:
        DataError: One has none.
    """
    known = set(images)
    extra = [name for name in labels if name not in known]
    if extra:
        raise DataError(f"{labels[extra[0]]}: extra label, there is no image of that name{and_more(extra)}")


def and_more(names: Sequence[str]) -> str:
    """How many names there are besides the first one, for a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
