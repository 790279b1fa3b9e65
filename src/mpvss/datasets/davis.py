"""DAVIS 2016: one object in each clip, every frame with its mask, at 24 frames per second."""

from fractions import Fraction
from pathlib import Path, PurePosixPath

from mpvss.datasets.clips import Clip, Dataset, label_table, list_pairs
from mpvss.datasets.listing import contents, list_folders, read_lines, require_directory, require_names
from mpvss.errors import DataError

_LAYOUT = (
    "DAVIS as DIR/CLIP/{images,masks}/, or as DIR/JPEGImages/480p/CLIP/ and DIR/Annotations/480p/CLIP/ with "
    "DIR/ImageSets/480p/SPLIT.txt"
)
_NAMES = ("background", "object")
_TABLE = label_table({0: 0, 1: 1, 255: 1})


def open_davis(root: Path, split: str | None) -> Dataset:
    """Open a DAVIS 2016 directory, the official one or one directory for each clip.

    Args:
        root: The directory.
        split: Name of a list in ``ImageSets``; ``None`` is val, or all clips where there are no lists.

    Raises:
        DataError: The directory follows none of the layouts.
    """
    require_directory(root, _LAYOUT)
    if (root / "JPEGImages").is_dir():
        images, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        require_directory(images, _LAYOUT)
        directories = {name: (images / name, masks / name) for name in _clip_names(root, split, images)}
    elif split is not None:
        raise DataError(f"{root}: without ImageSets there is no split {split!r}; leave it out; {contents(root)}")
    else:
        directories = {
            folder.name: (folder / "images", folder / "masks")
            for folder in list_folders(root)
            if (folder / "images").is_dir() or (folder / "masks").is_dir()
        }
    if not directories:
        raise DataError(f"{root}: no clips; expected {_LAYOUT}; {contents(root)}")
    clips = [
        Clip(name, list_pairs(images, masks, _LAYOUT), _NAMES, Fraction(24), _TABLE)
        for name, (images, masks) in directories.items()
    ]
    return Dataset("davis", _NAMES, clips, protocol="davis")


def _clip_names(root: Path, split: str | None, images: Path) -> list[str]:
    lists = root / "ImageSets"
    if split is None and not lists.is_dir():
        return [folder.name for folder in list_folders(images)]
    require_directory(lists, _LAYOUT)
    # The two releases of these clips keep their lists in different folders, one of frames and one of clips.
    candidates = [lists / folder / f"{split or 'val'}.txt" for folder in ("480p", "2016")]
    listing = next((path for path in candidates if path.is_file()), None)
    if listing is None:
        raise DataError(f"{candidates[0]}: no such list; expected {_LAYOUT}; {contents(lists)}")
    paths = [PurePosixPath(line.split()[0]) for line in read_lines(listing) if line]
    names = list(dict.fromkeys(path.parent.name if path.suffix else path.name for path in paths))
    require_names(names, listing)
    return names
