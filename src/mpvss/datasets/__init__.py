"""Video data sets on disk, all read the same way: clips of frames with labels as contiguous class ids."""

from pathlib import Path

from mpvss.datasets.camvid import open_camvid
from mpvss.datasets.cityscapes import open_cityscapes
from mpvss.datasets.clips import Clip, ClipFrame, Dataset, Protocol, read_image, read_label
from mpvss.datasets.davis import open_davis
from mpvss.datasets.folder import open_folder
from mpvss.datasets.vspw import open_vspw
from mpvss.errors import DataError

__all__ = ["Clip", "ClipFrame", "Dataset", "Protocol", "open_dataset", "read_image", "read_label"]

DATASETS = {
    "vspw": open_vspw,
    "cityscapes": open_cityscapes,
    "camvid": open_camvid,
    "davis": open_davis,
    "folder": open_folder,
}


def open_dataset(spec: str, split: str | None = None) -> Dataset:
    """Open a data set; docs/datasets.md describes the layouts.

    Args:
        spec: Kind and directory, as in "vspw:DIR"; the kinds are vspw, cityscapes, camvid, davis and folder.
        split: Which part of it; ``None`` is the usual one for scoring.

    Returns:
        At least one clip, each with at least one frame.

    Raises:
        DataError: The kind is unknown, or the directory does not follow its layout.
    """
    kind, colon, directory = spec.partition(":")
    if kind not in DATASETS or not colon or not directory:
        known = ", ".join(f"{name}:DIR" for name in DATASETS)
        raise DataError(f"expected a data set as one of {known}; got {spec!r}")
    return DATASETS[kind](Path(directory).expanduser(), split)
