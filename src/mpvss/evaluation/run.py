"""Score a segmentor, a propagator, or the label files of any program on a data set, one video after the other.

A run lives in a directory: ``run.json`` says what is scored, ``videos.jsonl`` has a line for each finished video with
everything that the figures and the report are made of, ``worst/`` keeps the predictions that the report shows, and
``result.json`` is there when all is done. A run that was killed goes on after the last finished video.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpvss._files import write_json
from mpvss.datasets import Clip, Dataset, open_dataset
from mpvss.errors import DataError
from mpvss.evaluation.label_files import LabelFiles, save_predictions
from mpvss.evaluation.predict import Predictor
from mpvss.evaluation.results import EvalResult
from mpvss.evaluation.run_directory import SCHEMA, RunDirectory
from mpvss.evaluation.scores import ClipScores, Line, PredictedFrame, timed
from mpvss.motion.propagators import describe_propagator, meant_propagator
from mpvss.options import EvalOptions
from mpvss.segmenter import DEFAULT_INTERVAL
from mpvss.types import Stop, shown_size

_NEED_MODEL = ("query", "flow")
# Options that NAME.json of a saved prediction says.
_DESCRIBED = (
    *("propagator", "motion", "direction", "interval", "cuts", "oracle"),
    *("device", "dtype", "fast", "backend"),
)


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
    propagator = meant_propagator(options.model, options.propagator)
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


class _Stopped(BaseException):
    """The caller has ended the run."""


def evaluate(
    options: EvalOptions,
    run: str | Path,
    *,
    on_video: Callable[[str, int, int], None] | None = None,
    on_frame: Callable[[int], object] | None = None,
    stop: Stop | None = None,
) -> EvalResult:
    """Score a data set; go on where an earlier call in the same directory stopped.

    Args:
        options: What is scored, and how.
        run: Directory of the run; made if missing.
        on_video: Called after each video with its name, the number of finished videos and that of all.
        on_frame: Called after each frame with the number of all that are to be scored, for progress.
        stop: Ends the run between two frames, once it is set; the result is that of the finished videos, and a later
            call goes on from there.

    Raises:
        DataError: Data set or label files are malformed or do not belong together, the run directory is damaged, or the
            run was stopped before one video was finished.
        ModelError: The segmentor cannot be loaded, or knows other classes.
        OutputError: The run directory belongs to other options, or cannot be written.
    """
    dataset = open_dataset(options.data, options.split)
    if not any(frame.label_path for clip in dataset.clips for frame in clip.frames):
        raise DataError(f"{options.data}: no frame of this split has labels, so there is nothing to score")
    resolved = resolve(options, dataset)
    directory = RunDirectory(Path(run))
    # Label files may be others by now, so they are read again when all of them were scored once.
    done = directory.begin(_header(resolved, dataset), restart=resolved.predictions is not None)
    frames = sum(len(clip) for clip in dataset.clips if clip.name not in done)

    def count() -> None:
        if on_frame is not None:
            on_frame(frames)
        if stop is not None and stop.is_set():
            raise _Stopped

    scorer: _Scorer | None = None
    try:
        for number, clip in enumerate(dataset.clips, 1):
            if clip.name in done:
                continue
            scorer = scorer or _Scorer(resolved, dataset, directory.path / "worst")
            directory.append(scorer.score(clip, count))
            if on_video is not None:
                on_video(clip.name, number, len(dataset.clips))
    except _Stopped:
        return directory.result(partial=True)
    result = directory.result()
    write_json(directory.path / "result.json", result.to_dict())
    return result


def _header(options: EvalOptions, dataset: Dataset) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "options": options.to_dict(),
        "protocol": dataset.protocol,
        "classes": list(dataset.class_names),
        "clips": len(dataset.clips),
    }


class _Scorer:
    """Predicts and scores the clips of a data set."""

    def __init__(self, options: EvalOptions, dataset: Dataset, worst: Path) -> None:
        self._options, self._dataset, self._worst = options, dataset, worst
        self._predictor: Predictor | None = None
        self._files: LabelFiles | None = None
        if options.predictions is None:
            self._predictor = Predictor(options, dataset)
        else:
            self._files = LabelFiles(Path(options.predictions), dataset, options.interval)

    def score(self, clip: Clip, on_frame: Callable[[], object]) -> Line:
        """Predict and score one clip."""
        began = time.perf_counter()
        if self._dataset.protocol == "cityscapes":
            line = self._score_snippet(clip)
            for _ in clip.frames:
                on_frame()
        else:
            scores = ClipScores(self._dataset, self._options.interval, self._worst / clip.name)
            frames = _of_one_size(clip, self._frames(clip, range(len(clip)), scores.seconds, ""))
            for frame in self._saved(clip, "", frames):
                with timed(scores.seconds, "read"):
                    truth = clip.load_label(frame.index)
                scores.update(frame, truth, clip.name)
                on_frame()
            line = scores.line(clip.name)
        if self._predictor is not None:
            keys = [bool(is_key) for is_key in line["timeline"]["key"]]
            line["gmac"], line["classical_flows"] = self._predictor.cost(clip, keys)
        line["seconds"]["total"] = time.perf_counter() - began
        return line

    def _score_snippet(self, clip: Clip) -> Line:
        """Score one labelled frame, once at each distance to a key frame before it; once if there are none."""
        labelled = next((i for i, frame in enumerate(clip.frames) if frame.label_path is not None), None)
        if labelled is None:
            raise DataError(f"{clip.frames[0].image_path.parent}: snippet {clip.name} has no labelled frame")
        distances = (self._options.interval if self._files is None else self._files.distances) or 0
        if labelled < distances - 1:
            raise DataError(
                f"{clip.frames[labelled].image_path}: an interval of {distances} needs {distances - 1} frames before "
                f"the labelled one, got {labelled}"
            )
        scores = ClipScores(self._dataset, distances or None, self._worst / clip.name, consecutive=False)
        with timed(scores.seconds, "read"):
            truth = clip.load_label(labelled)
        for distance in range(distances or 1):
            part = f"d{distance}" if distances else ""
            frames = self._frames(clip, self._needed(clip, labelled, distance, distances), scores.seconds, part)
            is_key = distance == 0 if distances else None
            frames = (replace(frame, is_key=is_key) for frame in frames if frame.index == labelled)
            for frame in self._saved(clip, part, frames):
                scores.update(frame, truth, clip.name, distance if distances else None)
        return scores.line(clip.name)

    def _needed(self, clip: Clip, labelled: int, distance: int, interval: int) -> range:
        """The frames that a prediction is made from: from the key frame before to the one after, where it is used."""
        if self._files is not None:
            return range(labelled, labelled + 1)
        key = labelled - distance
        last = key + interval if self._options.direction == "both" else labelled
        return range(key, min(last + 1, len(clip)))

    def _frames(self, clip: Clip, indices: range, seconds: dict[str, float], part: str) -> Iterator[PredictedFrame]:
        source = self._predictor or self._files
        assert source is not None
        return source.frames(clip, indices, seconds, part)

    def _saved(self, clip: Clip, part: str, frames: Iterable[PredictedFrame]) -> Iterable[PredictedFrame]:
        """Hand frames on, and write them where that is asked for."""
        options = self._options
        if options.save_predictions is None or self._predictor is None:
            return frames
        described = {name: getattr(options, name) for name in _DESCRIBED}
        described["flow"] = describe_propagator(self._predictor.propagator)
        description = {"model": options.model or None, "options": described}
        return save_predictions(Path(options.save_predictions) / part, clip, self._dataset, description, frames)


def _of_one_size(clip: Clip, frames: Iterable[PredictedFrame]) -> Iterator[PredictedFrame]:
    """Hand on the frames of a clip; consistency and label videos need one size.

    Raises:
        DataError: An image has another size than the first.
    """
    first: tuple[int, ...] | None = None
    for frame in frames:
        size = frame.rgb.shape[:2]
        first = first or size
        if size != first:
            raise DataError(
                f"{clip.frames[frame.index].image_path}: expected the size of the clip's first image, "
                f"{shown_size(first)}, got {shown_size(size)}; make images of another size a clip of their own"
            )
        yield frame
