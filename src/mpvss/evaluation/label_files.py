"""Predictions as label files: those of any program are read, those of a run are written."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mpvss import __version__
from mpvss._files import output_errors
from mpvss.cli.doctor import library_versions
from mpvss.datasets import Clip, Dataset, read_label
from mpvss.engine.decode import Labels
from mpvss.errors import DataError, ModelError
from mpvss.evaluation.scores import PredictedFrame, timed
from mpvss.labels import label_dtype, map_classes, short_list
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter
from mpvss.types import shown_size

log = logging.getLogger(__name__)

# Names that stand for none: of models saved without, of data sets published without, of masks drawn by hand.
_UNNAMED = re.compile(r"(?:class|label)?[ _-]?\d+", re.IGNORECASE)

_LabelledFrames = Iterator[tuple[int, Labels, bool | None]]  # index, labels, whether it is a key frame


def class_table(owner: str, names: Sequence[str], dataset: Dataset) -> list[int]:
    """The data set's id of each class of a model or of label files, by name; its "no class" for unknown ones.

    Raises:
        ModelError: One of the data set's classes is missing.
    """
    expected = dataset.class_names
    if len(names) == len(expected) and any(all(map(_UNNAMED.fullmatch, side)) for side in (names, expected)):
        log.warning("%s and %s: one of them names no classes, so ids are taken in order", owner, dataset.name)
        return list(range(len(names)))
    ids, left = map_classes(names, expected)
    if left:
        unused = [name for name, id_ in zip(names, ids, strict=True) if id_ is None]
        raise ModelError(
            f"{owner} does not know the classes of {dataset.name}: no class matches {len(left)} of {len(expected)} "
            f"names ({short_list([expected[id_] for id_ in left], 6)}); its classes that no name took: "
            f"{short_list(unused, 6) or 'none'}. Give the same names on both sides, in the data set or in id2label of "
            "the model's config.json"
        )
    return [dataset.ignore if id_ is None else id_ for id_ in ids]


class LabelFiles:
    """Label files of any program: our label videos, or a PNG for each labelled frame; by name, or else by position.

    Args:
        folder: Where they lie.
        dataset: What they are predictions for.
        interval: Frames from one key frame to the next, for PNG files, which do not say it.
    """

    def __init__(self, folder: Path, dataset: Dataset, interval: int | None) -> None:
        self._folder, self._dataset, self._interval = folder, dataset, interval

    @property
    def distances(self) -> int:
        """How many folders d0, d1, ... there are, one for each distance to the key frame."""
        number = 0
        while (self._folder / f"d{number}").is_dir():
            number += 1
        return number

    def frames(self, clip: Clip, indices: range, seconds: dict[str, float], part: str) -> Iterator[PredictedFrame]:
        """Read the predictions of frames of a clip.

        Args:
            clip: The clip.
            indices: Of its frames.
            seconds: Counts the time, as ``read``.
            part: Folder inside the folder.

        Raises:
            DataError: A prediction is missing, or of another size.
            ModelError: A label video does not know the data set's classes.
        """
        folder = self._folder / part
        with timed(seconds, "read"):
            entries = self._label_video(folder, clip, indices) or self._label_pngs(folder, clip, indices)
        while True:
            with timed(seconds, "read"):
                entry = next(entries, None)
                if entry is None:
                    return
                index, labels, is_key = entry
                rgb = clip.load_image(index)
                if labels.shape != rgb.shape[:2]:
                    raise DataError(
                        f"{folder}: the prediction for {clip.frames[index].image_path} is "
                        f"{shown_size(labels.shape)}, expected its size {shown_size(rgb.shape)}"
                    )
                if self._dataset.protocol == "davis":
                    labels = (labels != 0).astype(np.uint8)
            yield PredictedFrame(index, rgb, labels, is_key)

    def _label_video(self, folder: Path, clip: Clip, indices: range) -> _LabelledFrames | None:
        path = folder / f"{clip.name}.labels.mkv"
        if not path.is_file() and len(self._dataset.clips) == 1 and not (folder / clip.name).is_dir():
            # There is nothing to mistake it for, whatever the video was called that it was made from.
            others = sorted(folder.glob("*.labels.mkv"))
            path = others[0] if len(others) == 1 else path
        if not path.is_file():
            return None
        reader = LabelReader(path)
        ids = self._ids_of_video(path, reader.meta["classes"])
        stems = [clip.frames[index].image_path.stem for index in indices]
        if set(stems) <= set(reader.names):
            return _by_name(path, reader, dict(zip(stems, indices, strict=True)), ids)
        if len(reader) != len(indices):
            raise DataError(f"{path}: expected a label map for each of {len(indices)} frames, got {len(reader)}")
        return ((index, ids(labels), is_key) for index, (_, _, labels, is_key) in zip(indices, reader, strict=True))

    def _ids_of_video(self, path: Path, names: list[str]) -> Callable[[Labels], Labels]:
        """What turns the ids of a label video, which says its classes, into those of the data set."""
        dataset = self._dataset
        if dataset.protocol == "davis" or tuple(names) == dataset.class_names:
            return lambda labels: labels
        table = np.full(2**16, dataset.ignore, label_dtype(dataset.num_classes))
        table[: len(names)] = class_table(str(path), names, dataset)
        return lambda labels: table[labels]

    def _label_pngs(self, folder: Path, clip: Clip, indices: range) -> _LabelledFrames:
        pngs = self._png_folder(folder, clip)
        labelled = [index for index in indices if clip.frames[index].label_path is not None]
        paths = [pngs / f"{clip.frames[index].image_path.stem}.png" for index in labelled]
        if not any(path.is_file() for path in paths):
            numbered = [pngs / f"{index:06d}.png" for index in labelled]
            paths = numbered if all(path.is_file() for path in numbered) else paths
        for index, path in zip(labelled, paths, strict=True):
            if not path.is_file():
                raise DataError(f"{path}: missing prediction for {clip.frames[index].image_path}")
            yield index, read_label(path), None if self._interval is None else index % self._interval == 0

    def _png_folder(self, folder: Path, clip: Clip) -> Path:
        for path in (folder / clip.name, folder / f"{clip.name}.png"):  # the second as mpvss segment writes it
            if path.is_dir():
                return path
        if len(self._dataset.clips) > 1 or not folder.is_dir():
            raise DataError(
                f"{folder / clip.name}: no predictions for this clip; expected PNG files there, or "
                f"{folder / clip.name}.labels.mkv"
            )
        written = [entry for entry in folder.glob("*.png") if entry.is_dir()]
        return written[0] if len(written) == 1 else folder


def _by_name(
    path: Path, reader: LabelReader, indices: Mapping[str, int], ids: Callable[[Labels], Labels]
) -> _LabelledFrames:
    """The frames of a label video that a clip has, whatever others there are."""
    order = [indices[name] for name in reader.names if name in indices]
    if order != sorted(set(order)):
        raise DataError(f"{path}: expected its images in the order of the clip's, got another order")
    for name, (_, _, labels, is_key) in zip(reader.names, reader, strict=True):
        if name in indices:
            yield indices[name], ids(labels), is_key


def save_predictions(
    folder: Path, clip: Clip, dataset: Dataset, description: Mapping[str, Any], frames: Iterable[PredictedFrame]
) -> Iterator[PredictedFrame]:
    """Write frames as a label video while they are handed on.

    Args:
        folder: Where it is written; made if missing.
        clip: Gives its name and frame rate.
        dataset: Gives the classes.
        description: ``model`` and ``options`` of NAME.json.
        frames: Of one size.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        meta: MetaWriter | None = None
        for frame in frames:
            height, width = frame.labels.shape
            if meta is None:
                header = {
                    "version": __version__,
                    "libraries": library_versions(),
                    "source": clip.name,
                    "size": [height, width],
                    "classes": list(clip.class_names),
                    "palette": dataset.palette.tolist(),
                    "ignore": clip.ignore,
                    **description,
                }
                meta = stack.enter_context(MetaWriter(folder / f"{clip.name}.json", header, 1 / clip.fps))
                path = folder / f"{clip.name}.labels.mkv"
                video = stack.enter_context(LabelWriter(path, (height, width), clip.num_classes, 1 / clip.fps))
            pts = Fraction(frame.index) / clip.fps
            meta.add(frame.index, pts, bool(frame.is_key), labels=frame.labels)
            video.append(frame.labels, pts)
            yield frame
