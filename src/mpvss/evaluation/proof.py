"""What propagation saves on a model and a video of one's own: per frame against a key frame every 5, 10 and 20 frames.

No labels are needed: the figures are the time, how much the classes flicker, and how far the result is the one that the
model gives on every frame. All take turns on each frame, so that whatever else the machine does affects them alike.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from mpvss._files import output_errors, write_json
from mpvss._threads import limited_threads
from mpvss._validate import shown_address
from mpvss.engine.session import Session
from mpvss.engine.spill import Spill
from mpvss.errors import SourceError
from mpvss.evaluation import charts
from mpvss.evaluation.machine import machine
from mpvss.labels import ignore_id
from mpvss.metrics import SMALLEST_FLOW, ConfusionMatrix, Flicker, Matcher
from mpvss.options import BenchOptions, ModelOptions
from mpvss.progress import progress
from mpvss.segmenter import VideoSegmenter
from mpvss.types import Frame, Segmentation

log = logging.getLogger(__name__)

INTERVALS = (5, 10, 20)
"""Frames from one key frame to the next that are compared with per frame."""

FRAMES = 101
"""How many frames of a video are taken: five of the longest intervals, and the key frame after them."""

_SHARED = (*(each.name for each in fields(ModelOptions)), "propagator", "motion", "short_side")


@dataclass(frozen=True)
class ProofRow:
    """One way to segment the video.

    Attributes:
        interval: Frames from one key frame to the next; 1 is per frame.
        seconds: Of segmentation, a frame: networks, propagation and decoding, without reading and writing.
        key_frames: On how many frames the model ran.
        flicker: Share of pixels, 0 to 1, whose class changes along the optical flow; ``None`` where no flow was found.
        agreement: Share of pixels, 0 to 1, with the class that the model gives per frame.
        miou: Mean IoU, 0 to 1, with the per-frame result as the truth: small classes count as much as large ones.
    """

    interval: int
    seconds: float
    key_frames: int
    flicker: float | None
    agreement: float
    miou: float | None

    @property
    def name(self) -> str:
        """The row's name, for people."""
        return "per frame" if self.interval == 1 else f"k = {self.interval}"


@dataclass(frozen=True)
class ProofResult:
    """Per frame against key frames at several intervals.

    Attributes:
        rows: Per frame first.
        model: Its name.
        video: Address of the source, without secrets.
        size: Height and width of the frames in pixels.
        frames: How many were segmented, from the first.
        seconds_of_video: From the first of them to the last.
        whole: Whether that was the whole video.
        options: What was measured.
        machine: Where.
    """

    rows: list[ProofRow]
    model: str
    video: str
    size: tuple[int, int]
    frames: int
    seconds_of_video: float
    whole: bool
    options: Mapping[str, Any]
    machine: Mapping[str, str | int | None]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {**asdict(self), "size": list(self.size)}

    @property
    def title(self) -> str:
        """What was measured, in one line for people."""
        part = "all" if self.whole else "the first"
        return (
            f"{self.model} on {Path(self.video).name}: {part} {self.frames} frames ({self.seconds_of_video:.1f} s), "
            f"{self.size[1]}x{self.size[0]}, {self.options['propagator']}, direction {self.options['direction']}"
        )


def prove(video: str | Path, options: BenchOptions | None = None) -> ProofResult:
    """Measure a model on a video, per frame and with a key frame every 5, 10 and 20 frames.

    Args:
        video: What ``read`` takes; its first 101 frames are segmented, or ``options.frames`` of them.
        options: The model and how its results are propagated; ``interval`` for one interval instead of three.

    Raises:
        ModelError: The model cannot be loaded.
        SourceError: The video cannot be read, or is not longer than the longest interval.
        OptionError: An option is out of its range.
    """
    options = options or BenchOptions()
    given = {name: value for name in _SHARED if (value := getattr(options, name)) is not None}
    with limited_threads(options.threads):
        segmenter = VideoSegmenter.from_pretrained(given.pop("model", "compact"), **given)
        return measure(segmenter, video, options)


def measure(segmenter: VideoSegmenter, video: str | Path, options: BenchOptions | None = None) -> ProofResult:
    """Do the same with a segmenter that is loaded already, or that wraps a function.

    Raises:
        SourceError: See ``prove``.
        ValueError: The segmenter has no propagator.
    """
    options = options or BenchOptions()
    if segmenter.propagator is None:
        raise ValueError("expected a segmenter with a propagator, got none: there would be nothing to compare")
    direction = options.direction or "both"
    intervals = INTERVALS if options.interval is None else (options.interval,)
    limit = options.frames or FRAMES
    with segmenter.read(video) as reader, progress("bench", limit) as advance:
        comparison = _Comparison(segmenter, intervals, direction)
        frames, times = 0, list[Fraction]()
        for frame in islice(reader, limit):
            if frames == 0:
                log.info("warming up")
                _warm_up(segmenter, frame)
            comparison.push(frame)
            frames, times = frames + 1, [*times[:1], frame.pts]
            advance()
        if frames <= max(intervals):
            raise SourceError(
                f"{video}: expected more than {max(intervals)} frames, a key frame and the next one, got {frames}; "
                "choose a longer video, more --frames or a smaller --interval"
            )
        rows = comparison.finish()
        whole = next(iter(reader), None) is None
    return ProofResult(
        rows=rows,
        model=segmenter.segmentor.name,
        video=shown_address(str(video)),
        size=frame.size,
        frames=frames,
        seconds_of_video=float(times[-1] - times[0]),
        whole=whole,
        options=segmenter.with_options(direction=direction).describe(direction)["options"]
        | {"interval": list(intervals)},
        machine=machine(),
    )


def _warm_up(segmenter: VideoSegmenter, frame: Frame) -> None:
    """Run a key frame and a frame between: what a first call loads and compiles is nobody's time a frame."""
    with segmenter.session(direction="forward", interval=2) as session:
        for _ in range(2):
            session.push(replace(frame, index=0))


class _Side:
    """One way to segment the video, and its figures; results wait here until every side has that frame."""

    def __init__(self, session: Session, interval: int, classes: int) -> None:
        self.session, self.interval = session, interval
        self.seconds, self.key_frames = 0.0, 0
        self.waiting: deque[Segmentation] = deque()
        self.flicker, self.matrix = Flicker(), ConfusionMatrix(classes, ignore_id(classes))
        self.equal = self.pixels = 0
        self._spill = Spill("results that wait to be compared")

    def take(self, work: Callable[[], Iterable[Segmentation]]) -> None:
        """Do work of the session, on its clock, and keep what comes of it."""
        began = time.perf_counter()
        results = list(work())
        self.seconds += time.perf_counter() - began
        self.waiting.extend(replace(result, labels=self._spill.keep(result.labels)) for result in results)

    def next(self) -> Segmentation:
        """Return the next result."""
        result = self.waiting.popleft()
        if not self.waiting:
            self._spill.clear()
        self.key_frames += result.is_key
        return result

    def row(self, frames: int) -> ProofRow:
        """The figures over all frames."""
        flicker, miou = (None if math.isnan(value) else value for value in (self.flicker.value, self.matrix.miou))
        agreement = self.equal / self.pixels
        return ProofRow(self.interval, self.seconds / frames, self.key_frames, flicker, agreement, miou)


class _Comparison:
    """Pushes each frame to all sides, and compares their results."""

    def __init__(self, segmenter: VideoSegmenter, intervals: Sequence[int], direction: Any) -> None:
        classes = len(segmenter.class_names)
        batch = segmenter.key_batch()  # as a run on a file has it
        sessions = {1: segmenter.per_frame().session(direction="forward", key_batch=batch)}
        for each in sorted(intervals):
            sessions[each] = segmenter.session(direction=direction, interval=each, key_batch=batch)
        self._sides = [_Side(session, interval, classes) for interval, session in sessions.items()]
        self._matcher, self._frames = Matcher(), 0

    def push(self, frame: Frame) -> None:
        for side in self._sides:
            side.take(lambda side=side: side.session.push(frame, copy=False))  # type: ignore[misc]
        self._compare()

    def finish(self) -> list[ProofRow]:
        for side in self._sides:
            side.take(side.session.finish)
        self._compare()
        return [side.row(self._frames) for side in self._sides]

    def _compare(self) -> None:
        """Compare what every side has by now; one flow serves the flicker of all of them."""
        while all(side.waiting for side in self._sides):
            results = [side.next() for side in self._sides]
            frame, expected = results[-1].frame, results[0].labels
            self._frames += 1
            large = min(frame.size) >= SMALLEST_FLOW
            matches = self._matcher.next(frame.rgb, frame.size) if large else None
            for side, result in zip(self._sides, results, strict=True):
                if large:
                    side.flicker.compare(result.labels, matches)
                side.matrix.update(result.labels, expected)
                side.equal += int((result.labels == expected).sum())
                side.pixels += expected.size


# --- table, picture and files -----------------------------------------------------------------------------------------


HEAD = ("", "ms a frame", "frames/s", "times faster", "key frames", "flicker", "agreement", "mIoU to per frame")


def table(result: ProofResult) -> list[tuple[str, ...]]:
    """The rows under ``HEAD``, as text."""
    base = result.rows[0].seconds

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    return [
        (
            row.name,
            f"{1000 * row.seconds:.1f}",
            f"{1 / row.seconds:.1f}",
            f"{base / row.seconds:.2f}",
            str(row.key_frames),
            percent(row.flicker),
            percent(row.agreement),
            "-" if row.miou is None else f"{row.miou:.3f}",
        )
        for row in result.rows
    ]


def plot(result: ProofResult, path: Path) -> None:
    """Draw speed, flicker and agreement as bars, to a PNG file.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    names = [row.name for row in result.rows]
    panels = {
        "frames a second": [1 / row.seconds for row in result.rows],
        "flicker, % of pixels (less is better)": [100 * (row.flicker or 0.0) for row in result.rows],
        "agreement with per frame, % of pixels": [100 * row.agreement for row in result.rows],
    }
    with output_errors(path):
        charts.save(charts.bar_panels(result.title, names, panels), path)


def save(result: ProofResult, folder: Path, *, picture: bool = True) -> list[Path]:
    """Write ``NAME.bench.json`` and, if asked for, ``NAME.bench.png``; return their paths.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: A file cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    name = Path(result.video).stem or "video"
    paths = [folder / f"{name}.bench.json"]
    write_json(paths[0], result.to_dict())
    if picture:
        paths.append(folder / f"{name}.bench.png")
        plot(result, paths[1])
    return paths
