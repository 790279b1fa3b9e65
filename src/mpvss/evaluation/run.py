"""Score a segmentor, a propagator, or the label files of any program on a data set, one video after the other.

A run lives in a directory: ``run.json`` says what is scored, ``videos.jsonl`` has a line for each finished video with
everything that the figures and the report are made of, ``worst/`` keeps the predictions that the report shows, and
``result.json`` is there when all is done. A run that was killed goes on after the last finished video.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import UInt8, UInt16

from mpvss import __version__
from mpvss._files import write_json
from mpvss._validate import convert, parse_json, read_json, shown
from mpvss.cli.doctor import library_versions
from mpvss.datasets import Clip, Dataset, open_dataset, read_label
from mpvss.engine.carriers.true_labels import true_label_carrier
from mpvss.engine.decode import score_size
from mpvss.engine.schedule import CutDetector, FixedInterval
from mpvss.engine.session import Session
from mpvss.errors import DataError, ModelError, OutputError
from mpvss.evaluation.results import WINDOW, EvalResult
from mpvss.labels import label_dtype, map_classes, short_list
from mpvss.metrics import (
    SMALLEST_FLOW,
    ConfusionMatrix,
    Flicker,
    MiouByDistance,
    RegionSimilarity,
    VideoConsistency,
    region_similarity,
)
from mpvss.motion.dis import Dis
from mpvss.motion.propagator import Propagator, serves_both_ways
from mpvss.motion.propagators import describe_propagator, make_propagator, meant_propagator
from mpvss.options import EvalOptions, ModelOptions, PropagationOptions, SegmentOptions
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter
from mpvss.segmenter import DEFAULT_INTERVAL, VideoSegmenter
from mpvss.segmentors import Segmentor
from mpvss.segmentors.protocol import prepare
from mpvss.types import Frame, Segmentation, shown_size

log = logging.getLogger(__name__)

SCHEMA = 1

Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]

_NEED_MODEL = ("query", "flow")
_WORST_PER_VIDEO = 4
_CONSISTENCIES = {"vc8": (8, False), "vc16": (16, False), "correct_vc8": (8, True), "correct_vc16": (16, True)}
_METRICS: dict[str, Any] = {
    "confusion": ConfusionMatrix,
    "by_distance": MiouByDistance,
    **dict.fromkeys(_CONSISTENCIES, VideoConsistency),
    "flicker": Flicker,
    "j": RegionSimilarity,
}


def resolve(options: EvalOptions, dataset: Dataset) -> EvalOptions:
    """Return the same options with every default settled, and what does not matter set to one value.

    Raises:
        DataError: True labels are asked for, but most frames of the data set have none.
        ModelError: The model does not say which motion module it has.
    """
    if options.predictions is not None:
        return EvalOptions(
            data=options.data, split=options.split, model="", propagator="none", interval=options.interval,
            predictions=options.predictions,
        )  # fmt: skip
    oracle = options.oracle or dataset.protocol == "davis"
    propagator = meant_propagator(options.model, options.propagator, options.backend)
    if dataset.protocol == "cityscapes" and oracle:
        raise DataError("true labels at key frames need every frame labelled; these snippets have one labelled frame")
    none = propagator == "none"
    return options.replace(
        model="" if oracle and propagator not in _NEED_MODEL else options.model,
        propagator=propagator,
        motion="chain" if none else options.motion,
        direction="forward" if none else options.direction,
        interval=1 if none else options.interval or DEFAULT_INTERVAL[options.direction],
        cuts=options.cuts and not none,
        oracle=oracle,
    )


def evaluate(
    options: EvalOptions,
    run: str | Path,
    *,
    on_video: Callable[[str, int, int], None] | None = None,
    on_frame: Callable[[int], object] | None = None,
) -> EvalResult:
    """Score a data set; go on where an earlier call in the same directory stopped.

    Args:
        options: What is scored, and how.
        run: Directory of the run; made if missing.
        on_video: Called after each video with its name, the number of finished videos and that of all.
        on_frame: Called after each frame with the number of all that are to be scored, for progress.

    Raises:
        DataError: Data set or label files are not as they should be, or the run directory is damaged.
        ModelError: The segmentor cannot be loaded, or knows other classes.
        OutputError: The run directory belongs to other options, or cannot be written.
    """
    dataset = open_dataset(options.data, options.split)
    if not any(frame.label_path for clip in dataset.clips for frame in clip.frames):
        raise DataError(f"{options.data}: no frame of this split has labels, so there is nothing to score")
    resolved = resolve(options, dataset)
    header = {
        "schema": SCHEMA,
        "options": resolved.to_dict(),
        "protocol": dataset.protocol,
        "classes": list(dataset.class_names),
        "clips": len(dataset.clips),
    }
    directory = RunDirectory(Path(run))
    # Label files may be others by now, so they are read again when all of them were scored once.
    done = directory.begin(header, anew=resolved.predictions is not None)
    frames = sum(len(clip) for clip in dataset.clips if clip.name not in done)

    def count() -> None:
        if on_frame is not None:
            on_frame(frames)

    predictor: _Predictor | None = None
    for number, clip in enumerate(dataset.clips, 1):
        if clip.name in done:
            continue
        predictor = predictor or _Predictor(resolved, dataset)
        directory.append(predictor.score(clip, directory.path / "worst", count))
        if on_video is not None:
            on_video(clip.name, number, len(dataset.clips))
    result = directory.result()
    write_json(directory.path / "result.json", result.to_dict())
    return result


# Runs on disk


class RunDirectory:
    """A run on disk: what it scores, and a line for each finished video."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path / "videos.jsonl"

    def begin(self, header: dict[str, Any], *, anew: bool = False) -> set[str]:
        """Make the directory, or take it up again; return the names of the videos that are finished.

        Args:
            header: What is scored.
            anew: Whether a run that came to its end is forgotten; one that was killed never is.

        Raises:
            OutputError: The directory holds a run with other options, or cannot be written.
            DataError: It is damaged.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "run.json").exists():
                write_json(self.path / "run.json", header)
            self._check_same(header)
            if anew and (self.path / "result.json").exists():
                self._lines.unlink(missing_ok=True)
                (self.path / "result.json").unlink()
            self._cut_torn_line()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot write the run: {error.strerror}") from error
        return {line["clip"] for line in self.lines()}

    def _check_same(self, header: dict[str, Any]) -> None:
        found = self.header()
        old, new = found["options"], header["options"]
        old = {**EvalOptions(data="").to_dict(), **old}  # runs of the version before have fewer
        changed = [f"{name} {old.get(name)!r}, now {new[name]!r}" for name in new if old.get(name) != new[name]]
        if not changed and {**found, "options": old} != header:
            changed = ["another data set in the same place"]
        if changed:
            raise OutputError(
                f"{self.path}: holds a run with other options ({'; '.join(changed)}); choose another directory"
            )

    def _cut_torn_line(self) -> None:
        """Drop what a killed run began to write."""
        if not self._lines.exists():
            return
        with self._lines.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def header(self) -> dict[str, Any]:
        """What is scored.

        Raises:
            DataError: There is no run in this directory.
        """
        path = self.path / "run.json"
        try:
            header = convert(read_json(path), dict, what="run.json")
            if header.get("schema") != SCHEMA:
                raise DataError(f"{path}: expected schema {SCHEMA} of a run, got {shown(header.get('schema'))}")
            convert(header, _Header, what="run.json")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: expected a run directory, as mpvss eval --out writes it ({error})"
            ) from error
        return dict(header)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The finished videos, in order, one in memory at a time.

        Raises:
            DataError: A line is damaged.
        """
        if not self._lines.exists():
            return
        classes = len(self.header()["classes"])
        with self._lines.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = parse_json(text)
                    _check_line(line, classes)
                except ValueError as error:
                    raise DataError(
                        f"{self._lines}: line {number} is damaged ({error}); delete the run and begin anew"
                    ) from error
                yield line

    def append(self, line: dict[str, Any]) -> None:
        """Add a finished video, and see it on the disk.

        Raises:
            OutputError: The disk is full, for example.
        """
        try:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._lines}: cannot write: {error.strerror}") from error

    def result(self) -> EvalResult:
        """The figures of a finished run.

        Raises:
            DataError: It is not finished.
        """
        header = self.header()
        totals: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        videos = frames = 0
        key_frames: int | None = 0
        gmac: float | None = 0.0
        flows: int | None = 0
        for line in self.lines():
            for name, state in line["metrics"].items():
                metric = _METRICS[name].from_state(state)
                try:
                    totals[name] = totals[name] + metric if name in totals else metric
                except ValueError as error:
                    raise DataError(f"{self._lines}: {error}; delete the run and begin anew") from error
            for stage, spent in line["seconds"].items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
            videos += 1
            frames += line["frames"]
            key_frames = None if key_frames is None or line["key_frames"] is None else key_frames + line["key_frames"]
            gmac = None if gmac is None or line["gmac"] is None else gmac + line["gmac"]
            more = line.get("classical_flows")  # runs of the version before have none
            flows = None if flows is None or more is None else flows + more
        if videos != header["clips"]:
            raise DataError(
                f"{self.path}: {videos} of {header['clips']} videos are scored; "
                "run mpvss eval again with the same options"
            )
        confusion, by_distance = totals["confusion"], totals.get("by_distance")
        miou = confusion.miou
        if header["protocol"] == "cityscapes" and by_distance is not None:
            miou = by_distance.mean
        values = {name: _number(totals[name].value) for name in (*_CONSISTENCIES, "flicker", "j") if name in totals}
        return EvalResult(
            miou=_number(miou),
            wiou=_number(confusion.wiou),
            **{name: values.get(name) for name in (*_CONSISTENCIES, "flicker", "j")},
            miou_by_distance=None if by_distance is None else [_number(value) for value in by_distance.miou],
            iou={name: _number(value) for name, value in zip(header["classes"], confusion.iou.tolist(), strict=True)},
            videos=videos,
            frames=frames,
            key_frames=key_frames,
            gmac_per_frame=None if gmac is None else gmac / frames,
            classical_flows_per_frame=None if flows is None else flows / frames,
            seconds=seconds,
            options=header["options"],
        )


class _Options(TypedDict):
    data: str
    split: str | None
    model: str
    propagator: str
    motion: str
    direction: str
    interval: int | None
    cuts: bool
    oracle: bool
    predictions: str | None


class _Header(TypedDict):
    protocol: str
    classes: list[str]
    clips: int
    options: _Options


class _TimeLine(TypedDict):
    score: list[float | None]
    key: list[bool | None]


class _Worst(TypedDict):
    index: int
    score: float


class _Part(TypedDict):
    confusion: dict[str, Any]
    j: tuple[float, float]
    vc8: NotRequired[tuple[float, float]]
    vc16: NotRequired[tuple[float, float]]
    correct_vc8: NotRequired[tuple[float, float]]
    correct_vc16: NotRequired[tuple[float, float]]


class _Line(TypedDict):
    clip: str
    frames: int
    key_frames: int | None
    metrics: dict[str, Any]
    gmac: float | None
    classical_flows: NotRequired[int | None]
    seconds: dict[str, float]
    timeline: _TimeLine
    worst: list[_Worst]
    parts: list[_Part]


class _State(TypedDict):
    num_classes: int
    interval: NotRequired[int]


_LARGEST_STATE = 2**27


def _check_line(line: Any, classes: int) -> None:
    """Check that everything the figures and the report are made of is in a line, so that neither has to.

    Raises:
        ValueError: Something is missing or of another form, or too large for the memory.
    """
    convert(line, _Line, what="the line")
    for name, state in line["metrics"].items():
        if name not in _METRICS:
            raise ValueError(f"no metric {shown(name)}")
        _check_state(name, state, classes)
    for part in line["parts"]:
        _check_state("confusion", part["confusion"], classes)


def _check_state(name: str, state: Any, classes: int) -> None:
    if "num_classes" in convert(state, dict, what=name):
        convert(state, _State, what=name)
        if state["num_classes"] != classes:
            raise ValueError(f"{name}: expected {classes} classes, found {shown(state['num_classes'])}")
        if classes**2 * state.get("interval", 1) > _LARGEST_STATE:
            raise ValueError(f"{name}: {classes} classes and an interval of {state.get('interval', 1)} are too many")
    _METRICS[name].from_state(state)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# Predictions


@dataclass(frozen=True, eq=False)
class _Found:
    """A predicted frame; ``is_key`` is ``None`` where nobody knows."""

    index: int
    rgb: UInt8[np.ndarray, "H W 3"]
    labels: Labels
    is_key: bool | None


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


class _Predictor:
    """Predicts and scores the clips of a data set."""

    def __init__(self, options: EvalOptions, dataset: Dataset) -> None:
        self._options, self._dataset = options, dataset
        self._segmentor: Segmentor | None = None
        self._propagator: Propagator | None = None
        self._gmac: dict[tuple[int, int], tuple[float, float, float]] = {}
        # Class ids of what a session answers: those of the data set, and last "no class" where labels are true.
        ids = [*range(dataset.num_classes), dataset.ignore]
        if options.model:
            shared = (*fields(ModelOptions), *fields(PropagationOptions))
            inherited = {each.name: getattr(options, each.name) for each in shared}
            self._segmenter = VideoSegmenter.from_pretrained(options.model, options=SegmentOptions(**inherited))
            self._segmentor = self._segmenter.segmentor
            self._propagator = self._segmenter.propagator
            if not options.oracle:
                ids = class_table(self._segmentor, dataset)
        elif options.predictions is None:
            # Without propagation every frame is a key frame: what brings masks to the others does not matter.
            self._propagator = make_propagator("hold" if options.propagator == "none" else options.propagator)
        self._ids = np.array(ids)

    def score(self, clip: Clip, worst: Path, on_frame: Callable[[], object]) -> dict[str, Any]:
        """Predict and score one clip; return its line."""
        began = time.perf_counter()
        if self._dataset.protocol == "cityscapes":
            line = self._score_snippet(clip, worst)
        else:
            scores = _Scores(self._dataset, self._options.interval, worst / clip.name)
            every = _of_one_size(clip, self._predict(clip, range(len(clip)), scores.seconds, ""))
            for found in self._saved(clip, "", every):
                with _timed(scores.seconds, "read"):
                    truth = clip.load_label(found.index)
                scores.update(found, truth, clip)
                on_frame()
            line = scores.line(clip.name)
        if self._segmentor is not None and not self._options.oracle:
            # What ONNX Runtime computes, torch cannot count.
            gmac, searches = self._work(clip, line["timeline"]["key"])
            line["gmac"] = None if self._options.backend == "onnx" else gmac
            line["classical_flows"] = searches if isinstance(self._propagator, Dis) else 0
        line["seconds"]["total"] = time.perf_counter() - began
        return line

    def _score_snippet(self, clip: Clip, worst: Path) -> dict[str, Any]:
        """One labelled frame, once at each distance to a key frame before it."""
        labelled = next((i for i, frame in enumerate(clip.frames) if frame.label_path is not None), None)
        if labelled is None:
            raise DataError(f"{clip.frames[0].image_path.parent}: snippet {clip.name} has no labelled frame")
        distances = self._options.interval
        if self._options.predictions is not None:
            distances = 0
            while (Path(self._options.predictions) / f"d{distances}").is_dir():
                distances += 1
        if distances and labelled < distances - 1:
            raise DataError(
                f"{clip.frames[labelled].image_path}: an interval of {distances} needs {distances - 1} frames before "
                f"the labelled one, found {labelled}"
            )
        scores = _Scores(self._dataset, distances or None, worst / clip.name, consecutive=False)
        with _timed(scores.seconds, "read"):
            truth = clip.load_label(labelled)
        for distance in range(distances or 1):
            key = labelled - distance
            after = key + (distances or 1) if self._options.direction == "both" else labelled
            part = f"d{distance}" if distances else ""
            frames = range(key, min(after + 1, len(clip)))
            if self._options.predictions is not None:
                frames = range(labelled, labelled + 1)
            every = self._predict(clip, frames, scores.seconds, part)
            is_key = distance == 0 if distances else None
            chosen = (replace(found, is_key=is_key) for found in every if found.index == labelled)
            for found in self._saved(clip, part, chosen):
                scores.update(found, truth, clip, distance if distances else None)
        return scores.line(clip.name)

    def _predict(self, clip: Clip, indices: range, seconds: dict[str, float], part: str) -> Iterator[_Found]:
        if self._options.predictions is not None:
            yield from self._read(Path(self._options.predictions) / part, clip, indices, seconds)
            return
        session = self._session(clip)

        def answers(results: list[Segmentation]) -> Iterator[_Found]:
            for result in results:
                yield _Found(result.index, result.frame.rgb, self._data_ids(result.labels), result.is_key)

        try:
            for index in indices:
                with _timed(seconds, "read"):
                    frame = Frame(index, Fraction(index) / clip.fps, clip.load_image(index))
                yield from answers(session.push(frame, copy=False))
            yield from answers(session.finish())
        finally:
            for stage, spent in session.clock.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent

    def _data_ids(self, labels: Labels) -> Labels:
        """What a session answers in the data set's ids; its pixels without a class have none there, either."""
        known = labels < len(self._ids)
        ids = np.where(known, self._ids[np.where(known, labels, 0)], self._dataset.ignore)
        return ids.astype(label_dtype(self._dataset.num_classes))

    def _session(self, clip: Clip) -> Session:
        options = self._options
        if not options.oracle:
            return self._segmenter.session(direction=options.direction)
        assert self._propagator is not None and options.interval is not None

        def label(frame: Frame) -> Labels:
            truth = clip.load_label(frame.index)
            if truth is None:
                raise DataError(f"{clip.frames[frame.index].image_path}: a key frame without its true labels")
            return truth

        return Session(
            true_label_carrier(label, self._ids, self._propagator, motion=options.motion, segmentor=self._segmentor),
            FixedInterval(options.interval),
            direction=options.direction,
            cuts=CutDetector() if options.cuts else None,
        )

    def _read(self, folder: Path, clip: Clip, indices: range, seconds: dict[str, float]) -> Iterator[_Found]:
        """Label files of one clip: our label video, or a PNG for each labelled frame; by name, or else by position."""
        with _timed(seconds, "read"):
            found = self._label_video(folder, clip, indices) or self._label_pngs(folder, clip, indices)
        while True:
            with _timed(seconds, "read"):
                item = next(found, None)
                if item is None:
                    return
                index, labels, is_key = item
                rgb = clip.load_image(index)
                if labels.shape != rgb.shape[:2]:
                    raise DataError(
                        f"{folder}: the prediction for {clip.frames[index].image_path} is "
                        f"{shown_size(labels.shape)}, expected its size {shown_size(rgb.shape)}"
                    )
                if self._dataset.protocol == "davis":
                    labels = (labels != 0).astype(np.uint8)
            yield _Found(index, rgb, labels, is_key)

    def _label_video(
        self, folder: Path, clip: Clip, indices: range
    ) -> Iterator[tuple[int, Labels, bool | None]] | None:
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
            raise DataError(f"{path}: expected a label map for each of {len(indices)} frames, found {len(reader)}")
        return ((index, ids(labels), is_key) for index, (_, _, labels, is_key) in zip(indices, reader, strict=True))

    def _ids_of_video(self, path: Path, names: list[str]) -> Callable[[Labels], Labels]:
        """What turns the ids of a label video, which says its classes, into those of the data set."""
        dataset = self._dataset
        if dataset.protocol == "davis" or tuple(names) == dataset.class_names:
            return lambda labels: labels
        table = np.full(2**16, dataset.ignore, label_dtype(dataset.num_classes))
        table[: len(names)] = _class_ids(str(path), names, dataset)
        return lambda labels: table[labels]

    def _label_pngs(self, folder: Path, clip: Clip, indices: range) -> Iterator[tuple[int, Labels, bool | None]]:
        place = folder / clip.name
        if not place.is_dir():
            place = folder / f"{clip.name}.png"  # as mpvss segment writes them
        if not place.is_dir():
            if len(self._dataset.clips) > 1 or not folder.is_dir():
                raise DataError(
                    f"{folder / clip.name}: no predictions for this clip; expected PNG files there, or "
                    f"{folder / clip.name}.labels.mkv"
                )
            written = [entry for entry in folder.glob("*.png") if entry.is_dir()]
            place = written[0] if len(written) == 1 else folder
        interval = self._options.interval
        scored = [index for index in indices if clip.frames[index].label_path is not None]
        paths = [place / f"{clip.frames[index].image_path.stem}.png" for index in scored]
        if not any(path.is_file() for path in paths):
            numbered = [place / f"{index:06d}.png" for index in scored]
            paths = numbered if all(path.is_file() for path in numbered) else paths
        for index, path in zip(scored, paths, strict=True):
            if not path.is_file():
                raise DataError(f"{path}: missing prediction for {clip.frames[index].image_path}")
            yield index, read_label(path), None if interval is None else index % interval == 0

    def _saved(self, clip: Clip, part: str, found: Iterable[_Found]) -> Iterator[_Found]:
        """Hand on what is found, and write it where that is asked for."""
        if self._options.save_predictions is None:
            yield from found
            return
        folder = Path(self._options.save_predictions) / part
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot make the directory: {error.strerror}") from error
        with ExitStack() as stack:
            meta: MetaWriter | None = None
            for item in found:
                size = (item.labels.shape[0], item.labels.shape[1])
                if meta is None:
                    header = {
                        "version": __version__,
                        "libraries": library_versions(),
                        "source": clip.name,
                        "size": list(size),
                        "classes": list(clip.class_names),
                        "palette": self._dataset.palette.tolist(),
                        "ignore": clip.ignore,
                        "model": self._options.model or None,
                        "options": {
                            name: getattr(self._options, name)
                            for name in (
                                "propagator",
                                "motion",
                                "direction",
                                "interval",
                                "cuts",
                                "oracle",
                                "device",
                                "dtype",
                                "fast",
                                "backend",
                            )
                        }
                        | {"flow": describe_propagator(self._propagator)},
                    }
                    meta = stack.enter_context(MetaWriter(folder / f"{clip.name}.json", header, 1 / clip.fps))
                    path = folder / f"{clip.name}.labels.mkv"
                    video = stack.enter_context(LabelWriter(path, size, clip.num_classes, 1 / clip.fps))
                pts = Fraction(item.index) / clip.fps
                meta.add(item.index, pts, bool(item.is_key), labels=item.labels)
                video.append(item.labels, pts)
                yield item

    def _work(self, clip: Clip, keys: list[bool]) -> tuple[float, int]:
        """GMAC of a clip's frames, and the number of flows among them.

        A frame between two key frames pays for both sides where both are used, but for one flow where one between
        neighbours serves both.
        """
        key = flow = view = 0.0
        if self._options.backend != "onnx":
            frame = Frame(0, Fraction(0), clip.load_image(0))
            if frame.size not in self._gmac:
                self._gmac[frame.size] = gmac(self._segmenter, frame)
            key, flow, view = self._gmac[frame.size]
        # A snippet's frames are each before another key frame.
        after_last = 0 if self._dataset.protocol == "cityscapes" else keys[::-1].index(True)
        between = len(keys) - sum(keys) - after_last
        sides = 2 if self._options.direction == "both" else 1
        propagator = self._segmenter.propagator
        shared = propagator is not None and serves_both_ways(propagator, self._options.motion)
        # With both sides, flows to the neighbour before: each frame but the first, key frames included.
        searches = len(keys) - 1 if shared and sides == 2 else sides * between + after_last
        return sum(keys) * key + (sides * between + after_last) * view + searches * flow, searches


def _by_name(
    path: Path, reader: LabelReader, indices: Mapping[str, int], ids: Callable[[Labels], Labels]
) -> Iterator[tuple[int, Labels, bool | None]]:
    """The frames of a label video that a clip has, whatever others there are."""
    order = [indices[name] for name in reader.names if name in indices]
    if order != sorted(set(order)):
        raise DataError(f"{path}: expected its images in the order of the clip's, found another order")
    for name, (_, _, labels, is_key) in zip(reader.names, reader, strict=True):
        if name in indices:
            yield indices[name], ids(labels), is_key


def _of_one_size(clip: Clip, found: Iterable[_Found]) -> Iterator[_Found]:
    """Hand on the frames of a clip; consistency and label videos need one size.

    Raises:
        DataError: A picture has another size than the first.
    """
    size: tuple[int, ...] | None = None
    for item in found:
        here = item.rgb.shape[:2]
        size = size or here
        if here != size:
            raise DataError(
                f"{clip.frames[item.index].image_path}: expected the size of the clip's first picture, "
                f"{shown_size(size)}, found {shown_size(here)}; make pictures of another size a clip of their own"
            )
        yield item


def class_table(segmentor: Segmentor, dataset: Dataset) -> list[int]:
    """The data set's id of each class of a segmentor; classes that it does not have become its "no class".

    Raises:
        ModelError: The segmentor does not know one of the data set's classes.
    """
    return _class_ids(segmentor.name, segmentor.class_names, dataset)


def _class_ids(owner: str, names: Sequence[str], dataset: Dataset) -> list[int]:
    """The data set's id of each class of a model or of label files, by name."""
    wanted = dataset.class_names
    if len(names) == len(wanted) and any(all(map(_UNNAMED.fullmatch, side)) for side in (names, wanted)):
        log.warning("%s and %s: one of them names no classes, so ids are taken in order", owner, dataset.name)
        return list(range(len(names)))
    ids, left = map_classes(names, wanted)
    if left:
        unused = [name for name, id_ in zip(names, ids, strict=True) if id_ is None]
        raise ModelError(
            f"{owner} does not know the classes of {dataset.name}: no class matches {len(left)} of {len(wanted)} names "
            f"({short_list([wanted[id_] for id_ in left], 6)}); its classes that no name took: "
            f"{short_list(unused, 6) or 'none'}. Give the same names on both sides, in the data set or in id2label of "
            "the model's config.json"
        )
    return [dataset.ignore if id_ is None else id_ for id_ in ids]


# Names that stand for none: of models saved without, of data sets published without, of masks drawn by hand.
_UNNAMED = re.compile(r"(?:class|label)?[ _-]?\d+", re.IGNORECASE)


def gmac(segmenter: VideoSegmenter, frame: Frame) -> tuple[float, float, float]:
    """Count the thousand millions of multiply-adds of a key frame, of a flow, and of the rest of one side of a frame.

    Networks are counted as they run, on the padded image, which is how the paper counts; a resized or warped value
    costs 4; decoding is that of all queries and classes at the size of the image. With one flow for all queries nothing
    is decoded between key frames: the scores of all classes are warped.

    Args:
        segmenter: A segmentor and its propagator.
        frame: A picture of the size that counts.
    """
    from mpvss.convert.cost import count_gmac

    image, geometry = prepare(frame, segmenter.rule)
    states = []
    key = count_gmac(lambda: states.append(segmenter.segment(frame, image, geometry)))
    queries, classes = states[0].class_logits.shape[0], states[0].class_logits.shape[1] - 1
    grid = (states[0].mask_logits.shape[-2], states[0].mask_logits.shape[-1])
    decoding = queries * (classes * math.prod(geometry.resized) + 4 * math.prod(geometry.padded)) / 1e9
    flow = 0.0
    if segmenter.propagator is not None:
        estimate = segmenter.propagator.estimate_flow
        flow = count_gmac(lambda: estimate(image[None], image[None], states[0].queries[None], geometry.padded, grid))
    if segmenter.propagator is not None and not segmenter.propagator.per_query:
        return key + decoding, flow, 4 * classes * math.prod(score_size(geometry)) / 1e9
    return key + decoding, flow, 4 * queries * math.prod(grid) / 1e9 + decoding


# Scores


class _Scores:
    """Everything that is kept of one video."""

    def __init__(self, dataset: Dataset, distances: int | None, worst: Path, *, consecutive: bool = True) -> None:
        classes, ignore = dataset.num_classes, dataset.ignore
        self.seconds: dict[str, float] = {"read": 0.0, "key": 0.0, "propagate": 0.0, "decode": 0.0, "score": 0.0}
        self._dataset, self._worst_folder = dataset, worst
        self._metrics: dict[str, Any] = {"confusion": ConfusionMatrix(classes, ignore)}
        if distances is not None:
            self._metrics["by_distance"] = MiouByDistance(classes, distances, ignore)
        if consecutive:
            for name, (n, correct) in _CONSISTENCIES.items():
                self._metrics[name] = VideoConsistency(n, correct=correct, ignore=ignore)
            self._metrics["flicker"] = Flicker()
        if dataset.protocol == "davis":
            self._metrics["j"] = RegionSimilarity()
        self._parts: list[dict[str, Any]] = []
        self._begin_part()
        self._timeline: dict[str, list[Any]] = {"score": [], "key": []}
        self._since_key: int | None = None
        self._worst: list[tuple[float, int, Labels]] = []
        self._worst_here: tuple[float, int, Labels] | None = None

    def update(self, found: _Found, truth: Labels | None, clip: Clip, distance: int | None = None) -> None:
        """Take the next frame; the distance to its key frame is found out unless it is given."""
        with _timed(self.seconds, "score"):
            by_distance = self._metrics.get("by_distance")
            if distance is None and by_distance is not None:
                distance = 0 if found.is_key else (self._since_key or 0) + 1
                if distance >= by_distance.interval:
                    raise DataError(
                        f"{clip.name}: frame {found.index} is {distance} frames after its key frame; give the interval "
                        "that the predictions were made with"
                    )
                self._since_key = distance
            score = self._count(found, truth, distance)
            # Where nobody knows the key frames, the first one is taken to have been given.
            self._timeline["score"].append(_number(score))
            self._timeline["key"].append(found.is_key)
            if not math.isnan(score) and score < 1 and (self._worst_here is None or score < self._worst_here[0]):
                self._worst_here = (score, found.index, found.labels)
            if len(self._timeline["score"]) % WINDOW == 0:
                self._end_part()

    def _count(self, found: _Found, truth: Labels | None, distance: int | None) -> float:
        """Update every metric; return the frame's own score."""
        metrics = self._metrics
        if "flicker" in metrics and min(found.labels.shape) >= SMALLEST_FLOW:
            metrics["flicker"].update(found.rgb, found.labels)
        if truth is None:
            for name in _CONSISTENCIES:
                if name in metrics:
                    metrics[name].end_video()
            return math.nan
        frame = ConfusionMatrix(self._dataset.num_classes, self._dataset.ignore)
        frame.update(prediction=found.labels, target=truth)
        metrics["confusion"].merge(frame)
        self._part["confusion"].merge(frame)
        if distance is not None:
            metrics["by_distance"].update(prediction=found.labels, target=truth, distance=distance)
        for name in _CONSISTENCIES:
            if name in metrics:
                metrics[name].update(target=truth, prediction=found.labels)
        if "j" not in metrics:
            return frame.miou
        is_key = found.index == 0 if found.is_key is None else found.is_key
        score = metrics["j"].update(prediction=found.labels, target=truth, is_key=is_key)
        if score is not None:
            self._part["j"][0] += score
            self._part["j"][1] += 1
        return region_similarity(found.labels, truth)

    def _consistencies(self) -> dict[str, tuple[float, int]]:
        """Sum and number of windows so far."""
        found = {}
        for name in _CONSISTENCIES:
            metric = self._metrics.get(name)
            if metric is not None:
                found[name] = (metric.value * metric.windows if metric.windows else 0.0, metric.windows)
        return found

    def _begin_part(self) -> None:
        self._part: dict[str, Any] = {
            "confusion": ConfusionMatrix(self._dataset.num_classes, self._dataset.ignore),
            "j": [0.0, 0],
        }
        self._before = self._consistencies()

    def _end_part(self) -> None:
        after = self._consistencies()
        windows = {
            name: [after[name][0] - self._before[name][0], after[name][1] - self._before[name][1]] for name in after
        }
        self._parts.append({"confusion": self._part["confusion"].state(), "j": self._part["j"], **windows})
        self._begin_part()
        if self._worst_here is not None:
            self._worst = sorted([*self._worst, self._worst_here], key=lambda item: item[0])[:_WORST_PER_VIDEO]
        self._worst_here = None

    def line(self, name: str) -> dict[str, Any]:
        """Close the video."""
        from PIL import Image

        with _timed(self.seconds, "score"):
            if len(self._timeline["score"]) % WINDOW:
                self._end_part()
            for metric in self._metrics.values():
                if isinstance(metric, VideoConsistency | RegionSimilarity):
                    metric.end_video()
            try:
                for _, index, labels in self._worst:
                    self._worst_folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(labels).save(self._worst_folder / f"{index}.png")
            except OSError as error:
                raise OutputError(f"{self._worst_folder}: cannot write: {error.strerror}") from error
            keys = self._timeline["key"]
            return {
                "clip": name,
                "frames": len(keys),
                "key_frames": None if None in keys else sum(keys),
                "metrics": {kind: metric.state() for kind, metric in self._metrics.items()},
                "gmac": None,
                "classical_flows": None,
                "seconds": self.seconds,
                "timeline": self._timeline,
                "worst": [{"index": index, "score": score} for score, index, _ in self._worst],
                "parts": self._parts,
            }


def read_worst(run: Path, clip: str, index: int) -> Labels:
    """The prediction that a run kept for one of its worst frames.

    Raises:
        DataError: It is not there.
    """
    return read_label(run / "worst" / clip / f"{index}.png")


def score_of(line: Mapping[str, Any]) -> float | None:
    """The score of one video's line: J where it has one, otherwise its mIoU."""
    if "j" in line["metrics"]:
        return _number(RegionSimilarity.from_state(line["metrics"]["j"]).value)
    return _number(ConfusionMatrix.from_state(line["metrics"]["confusion"]).miou)
