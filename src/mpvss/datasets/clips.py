"""Clips and data sets: where the images and labels lie, and how label files become class ids.

Opening a data set lists directories and checks that images and labels pair up; it reads no image. Sizes and label
values are checked when a label is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8, UInt16

from mpvss.datasets.listing import and_more, contents, list_images, require_directory, require_names, require_no_extra
from mpvss.errors import DataError
from mpvss.labels import ignore_id, label_dtype, palette_for
from mpvss.types import shown_size
from mpvss.video.images import (
    BROKEN_IMAGE,
    common_full_scale,
    image_size,
    open_image,
    read_rgb,
)

Protocol = Literal["semantic", "davis", "cityscapes"]


@dataclass(frozen=True, slots=True)
class ClipFrame:
    """Where one frame of a clip lies.

    Attributes:
        image_path: The image.
        label_path: Its label file; ``None`` where the data set has no label for this frame.
        index: Position of the frame in its clip, counted from 0.
    """

    image_path: Path
    label_path: Path | None
    index: int


@dataclass(frozen=True, eq=False)
class Clip:
    """Consecutive frames of one video, with or without labels.

    Attributes:
        name: Unique in the data set.
        frames: The frames in the order of time.
        class_names: One name for each of the K classes.
        fps: Frames per second.
        label_table: Class id, or ``ignore``, for each value that a label file may hold; -1 for values it may not.
    """

    name: str
    frames: Sequence[ClipFrame]
    class_names: tuple[str, ...]
    fps: Fraction
    label_table: Int32[np.ndarray, " values"]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def ignore(self) -> int:
        """Id of pixels without a class: 255, or 65535 above 255 classes."""
        return ignore_id(self.num_classes)

    def load_image(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        """The image of frame ``i``, RGB.

        Raises:
            IndexError: There is no frame ``i``.
            DataError: The file cannot be read.
        """
        return read_image(self.frames[i].image_path, lambda: self._full_scale)

    @cached_property
    def _full_scale(self) -> float:
        """What images of more than 8 bits a channel are scaled by, the same for all: see ``mpvss.video.images``."""
        return common_full_scale([frame.image_path for frame in self.frames])

    def load_label(self, i: int) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"] | None:
        """The class ids of frame ``i``: 0..K-1 and ``ignore``; ``None`` where it has no label.

        Returns:
            uint8; uint16 only above 255 classes.

        Raises:
            IndexError: There is no frame ``i``.
            DataError: The file cannot be read, its size is not the image's, or it holds a value it may not.
        """
        frame = self.frames[i]
        if frame.label_path is None:
            return None
        values = read_label(frame.label_path)
        size = _image_size(frame.image_path)
        if values.shape != size:
            raise DataError(
                f"{frame.label_path}: expected the size of its image {frame.image_path}, {shown_size(size)}, "
                f"got {shown_size(values.shape)}"
            )
        table = self.label_table
        labels = table.take(values, mode="clip")
        wrong = (labels < 0) | (values >= len(table))
        if wrong.any():
            row, column = (int(axis[0]) for axis in np.nonzero(wrong))
            raise DataError(
                f"{frame.label_path}: label {values[row, column]} at row {row}, column {column} is out of range; "
                f"expected {_ranges(np.flatnonzero(table >= 0).tolist())}"
            )
        ids: np.ndarray = labels.astype(label_dtype(self.num_classes))
        return ids


@dataclass(frozen=True, eq=False)
class Dataset:
    """Clips that share their classes.

    Attributes:
        name: Which data set it is: vspw, cityscapes, camvid, davis or folder.
        class_names: One name for each of the K classes.
        clips: At least one.
        protocol: How it is scored. "semantic": all labelled frames; "cityscapes": one labelled frame in each clip, so
            by distance to the key frame; "davis": object masks given at key frames and propagated.

    Raises:
        DataError: The name of a clip is none that a file could have: outputs are called after it.
    """

    name: str
    class_names: tuple[str, ...]
    clips: list[Clip]
    protocol: Protocol = "semantic"

    def __post_init__(self) -> None:
        require_names((clip.name for clip in self.clips), self.name)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def ignore(self) -> int:
        """Id of pixels without a class: 255, or 65535 above 255 classes."""
        return ignore_id(self.num_classes)

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """A colour for each class, RGB."""
        return palette_for(self.class_names)


# Reading files


def read_image(path: Path, full_scale: Callable[[], float] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """An image file as RGB, upright, of 8 bits a channel; ``mpvss.video.images`` says how other depths become that.

    Args:
        path: The file.
        full_scale: Of the images around it, for more than 8 bits a channel; ``None`` for the image's own.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return read_rgb(path, full_scale)
    except BROKEN_IMAGE as error:
        raise DataError(f"{path}: cannot read the image: {error}") from error


def read_label(path: Path) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The values of a label PNG as they are stored: grey values or palette indices, never colours.

    Raises:
        DataError: The file cannot be read, or holds colours.
    """
    try:
        with open_image(path) as image:
            mode = image.mode
            # Pillow stretches grey of 2 and 4 bits to 0..255, which would change the ids.
            stretched = mode == "L" and image.tile and image.tile[0][3] in ("L;2", "L;4")
            values = np.array(image)
    except BROKEN_IMAGE as error:
        raise DataError(f"{path}: cannot read the label file: {error}") from error
    if stretched:
        raise DataError(f"{path}: expected 8 or 16 bits a pixel, got fewer; save the ids as an 8 bit grey PNG")
    if mode == "1":
        return values.astype(np.uint8)
    if mode in ("L", "P"):
        return values
    if mode.startswith("I") and (values.size == 0 or (values.min() >= 0 and values.max() <= 65535)):
        return values.astype(np.uint16)
    raise DataError(
        f"{path}: expected a label PNG with one class id a pixel (grey or palette), got mode {mode}; "
        "colours are not class ids, convert them first"
    )


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header alone."""
    try:
        return image_size(path)
    except BROKEN_IMAGE as error:
        raise DataError(f"{path}: cannot read the image: {error}") from error


# Class ids


def label_table(ids: Mapping[int, int]) -> Int32[np.ndarray, " values"]:
    """The table for `Clip` from a dictionary of file value to class id."""
    table = np.full(max(ids) + 1, -1, np.int32)
    table[list(ids)] = list(ids.values())
    return table


def _ranges(values: list[int]) -> str:
    """``[0, 1, 2, 255]`` as ``0..2, 255``."""
    parts: list[list[int]] = []
    for value in values:
        if parts and parts[-1][-1] == value - 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    return ", ".join("..".join(map(str, part)) for part in parts)


def list_pairs(image_directory: Path, label_directory: Path, layout: str) -> list[ClipFrame]:
    """The frames of a directory of images and a directory of label PNGs of the same names.

    Args:
        image_directory: The images; natural order is the order of time.
        label_directory: The labels.
        layout: What the data set should look like, for messages.

    Raises:
        DataError: A directory is missing or empty, an image has no label or a label no image.
    """
    require_directory(image_directory, layout)
    require_directory(label_directory, layout)
    images = list_images(image_directory)
    if not images:
        raise DataError(f"{image_directory}: empty, expected images; {contents(image_directory)}")
    labels = list_images(label_directory, (".png",))
    missing = [name for name in images if name not in labels]
    if missing:
        raise DataError(
            f"{label_directory / missing[0]}.png: missing label for {images[missing[0]]}{and_more(missing)}"
        )
    require_no_extra(images, labels)
    return [ClipFrame(image, labels[name], index) for index, (name, image) in enumerate(images.items())]
