"""How much faster: the library on every frame, ours on every frame, and ours at an interval, in one run.

All of them are warm and take turns, so that whatever else the machine does affects them alike; medians are reported,
and ratios of medians. On the CPU.
"""

import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mpvss._files import output_errors, write_json
from mpvss._threads import limited_threads
from mpvss.convert.cost import count_gmac
from mpvss.engine.decode import score_size
from mpvss.engine.session import Session
from mpvss.engine.stage_clock import STAGES
from mpvss.engine.state import KeyState
from mpvss.errors import MpvssError, OptionError, SourceError
from mpvss.evaluation import charts
from mpvss.evaluation.contest import (
    ACTIVE_QUERIES,
    PRESENT_CLASSES,
    Contest,
    Library,
    PlainRun,
    make_contest,
    make_ours,
    plain_decode,
    segformer_b0,
)
from mpvss.evaluation.machine import machine, peak_mib, synthetic_video
from mpvss.motion.dis import Dis
from mpvss.motion.propagator import serves_both_ways
from mpvss.motion.warp import warp
from mpvss.options import BenchOptions, DirectionName
from mpvss.progress import progress
from mpvss.segmenter import DEFAULT_INTERVAL, VideoSegmenter
from mpvss.segmentors.protocol import prepare
from mpvss.types import IMAGE_RATE, Frame, RunSummary
from mpvss.video import read

log = logging.getLogger(__name__)

_PAPER_SIZE, _PAPER_CLASSES = (480, 853), 124
_COMPACT_SIZE = (360, 480)
# Side of the square matrices whose product tells the machine's rate.
_MATRIX = 2048
_RUNS = ("library", "ours_per_frame", "ours", "segformer_b0")

Numbers = dict[str, float | None]


def resolve(options: BenchOptions) -> BenchOptions:
    """Return the same options with the numbers that depend on the kind of model filled in.

    Raises:
        OptionError: The networks are to run elsewhere or otherwise than the library's, on the CPU in float32.
    """
    for name, allowed in (("device", ("auto", "cpu")), ("dtype", ("float32",)), ("short_side", (None,))):
        if getattr(options, name) not in allowed:
            raise OptionError(name, "is for a VIDEO of yours: the library is compared with on the CPU, in float32")
    random = options.arch is not None
    direction = options.direction or ("forward" if random else "both")
    interval = 1 if options.propagator == "none" else options.interval or DEFAULT_INTERVAL.get(direction, 1)
    return options.replace(
        model=None if random else options.model or "compact",
        classes=options.classes or (_PAPER_CLASSES if random else None),
        size=options.size or (_PAPER_SIZE if random else _COMPACT_SIZE if options.source is None else None),
        direction=direction,
        interval=interval,
        frames=options.frames or interval * (1 if random else 5),
        runs=(1 if random else 3) if options.runs is None else options.runs,
    )


@dataclass(frozen=True)
class BenchSeconds:
    """Seconds a frame, medians over the rounds; ``None`` for what was not measured.

    Attributes:
        library_frame: The library's model on every frame: ``library_forward`` and ``library_decode``.
        library_forward: Of which the network.
        library_decode: Of which decoding.
        ours_frame: Ours on every frame.
        ours_forward: Of which the network.
        ours_decode: Of which decoding.
        ours_interval: Mean over one interval.
        ours_key: Of its key frame.
        ours_non_key: Of a frame between.
        stages: ``ours_interval`` by stage; ``read`` and ``write`` from the whole run.
        run: Whole runs, from file to files.
    """

    library_frame: float
    library_forward: float
    library_decode: float
    ours_frame: float
    ours_forward: float
    ours_decode: float
    ours_interval: float
    ours_key: float
    ours_non_key: float | None
    stages: Numbers
    run: Numbers


@dataclass(frozen=True)
class BenchResult:
    """What was measured; docs/benchmark.md explains every key.

    Attributes:
        seconds: Seconds a frame.
        gmac: Billions of multiply-adds of a key frame, of a frame between and on average, of networks on the padded
            image, all queries and classes decoded.
        classical_flow: Flows a frame without a network, which are not among them, and the ``seconds`` of one; ``None``
            where there are none.
        sgemm: ``gmac_per_second`` of the machine, and the ``share`` of it that each path reaches by that count.
        peak_mib: Peak memory of a process that does nothing but our whole run.
        ratios: Of the seconds.
        all_active: With random weights ``seconds`` and ``ratios`` for every query and class.
        note: What random weights stand for.
        options: What was measured.
        machine: Where.
    """

    seconds: BenchSeconds
    gmac: Numbers
    classical_flow: dict[str, float] | None
    sgemm: Mapping[str, Any]
    peak_mib: float | None
    ratios: Numbers
    all_active: dict[str, Numbers] | None
    note: str | None
    options: Mapping[str, Any]
    machine: dict[str, str | int | None]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)


def bench(options: BenchOptions) -> BenchResult:
    """Measure, taking turns.

    Raises:
        ModelError: The model cannot be loaded.
        SourceError: The video cannot be read, is too short, or cuts to another scene within the first interval.
    """
    options = resolve(options)
    with TemporaryDirectory(prefix="mpvss-bench-") as name, limited_threads(options.threads):
        folder, source = Path(name), options.source
        assert options.interval is not None and options.frames is not None
        if source is None:
            assert options.size is not None
            source = str(folder / "bench.mp4")
            synthetic_video(Path(source), options.size, max(options.frames, options.interval + 1))
        frames = _first_frames(source, options.interval + 1)
        contest = make_contest(options)
        log.info("warming up")
        gmac = _count(contest, frames, options.direction or "both", options.interval)
        rounds = _measure(contest, frames, options)
        runs = _whole_runs(contest, options, source, folder) if options.runs else {}
        seconds = _seconds(rounds.seconds, runs)
        ours = contest.ours
        return BenchResult(
            seconds=seconds,
            gmac=gmac,
            classical_flow=_classical_flow(ours, frames, options.direction or "both", options.interval),
            sgemm={"gmac_per_second": rounds.rate, "share": _shares(gmac, seconds, rounds.rate)},
            peak_mib=_peak_of_whole_run(options, source) if options.runs else None,
            ratios=ratios(asdict(seconds)),
            all_active=_all_active(rounds.all_active, seconds.library_frame) if rounds.all_active else None,
            note=_note(options),
            options={**options.to_dict(), **_measured(ours, frames[0])},
            machine=machine(),
        )


def _measured(ours: VideoSegmenter, frame: Frame) -> dict[str, Any]:
    """What the options left to the model and the video."""
    return {
        "propagator": "none" if ours.propagator is None else ours.propagator.name,
        "motion": ours.options.motion,
        "size": list(frame.size),
        "network": list(ours.rule.fit(frame.size).resized),
    }


def _note(options: BenchOptions) -> str | None:
    if options.arch is None:
        return None
    return (
        f"random weights: {ACTIVE_QUERIES} queries are made sure of {PRESENT_CLASSES} classes, as in trained models, "
        "the others of no object; all_active is with the classes of the random weights"
    )


def _seconds(medians: Mapping[str, float], runs: Mapping[str, float]) -> BenchSeconds:
    alone = {name: value for name, value in medians.items() if name not in ("ours_non_key", *STAGES)}
    return BenchSeconds(
        **alone,
        ours_non_key=medians.get("ours_non_key"),
        stages={**{name: medians[name] for name in STAGES}, "read": runs.get("read"), "write": runs.get("write")},
        run={name: runs.get(name) for name in _RUNS},
    )


def _all_active(medians: Mapping[str, float], library_frame: float) -> dict[str, Numbers]:
    seconds: Numbers = {name: value for name, value in medians.items() if name not in STAGES}
    compared = ratios({**seconds, "library_frame": library_frame})
    return {"seconds": seconds, "ratios": {name: value for name, value in compared.items() if "run" not in name}}


def ratios(seconds: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the ratios of a result's ``seconds``; ``None`` where one of the two was not measured."""

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above / below

    frame, run = seconds.get("library_frame"), seconds.get("run", {})
    mean, whole = seconds.get("ours_interval"), run.get("ours")
    return {
        "library_per_frame_over_ours": ratio(frame, mean),
        "library_key_over_ours_key": ratio(frame, seconds.get("ours_key")),
        "non_key_share_of_library_frame": ratio(seconds.get("ours_non_key"), frame),
        "ours_per_frame_over_ours": ratio(seconds.get("ours_frame"), mean),
        "library_run_over_ours": ratio(run.get("library"), whole),
        "ours_per_frame_run_over_ours": ratio(run.get("ours_per_frame"), whole),
        "segformer_b0_run_over_ours": ratio(run.get("segformer_b0"), whole),
    }


# --- the rounds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rounds:
    """Medians: seconds of the contest and of all active, and GMAC a second of a large matrix product."""

    seconds: dict[str, float]
    all_active: dict[str, float]
    rate: float


def _measure(contest: Contest, frames: list[Frame], options: BenchOptions) -> _Rounds:
    """Run everything once a round, in turn; the first round is to warm up."""
    interval, direction = options.interval, options.direction or "both"
    assert interval is not None
    per_frame = _Intervals(contest.ours.per_frame().session(direction="forward"), _back_and_forth(frames[:2]), 1)
    at_interval = _Intervals(contest.ours.session(direction=direction), _back_and_forth(frames), interval)
    all_active = None
    if contest.all_active is not None:
        all_active = _Intervals(contest.all_active.session(direction=direction), _back_and_forth(frames), interval)
    matrix = torch.randn(_MATRIX, _MATRIX, generator=torch.Generator().manual_seed(0))
    products, seconds, active_seconds = [], [], []
    with progress("bench", options.repeats + 1, unit="rounds") as advance:
        for number in range(options.repeats + 1):
            products.append(_timed(lambda: matrix @ matrix))
            library = _time_library(contest.library, frames[number % 2])
            ours = per_frame.time_one()
            ours = {"ours_frame": ours["ours_interval"], "ours_forward": ours["key"], "ours_decode": ours["decode"]}
            seconds.append(library | ours | at_interval.time_one())
            active_seconds.append({} if all_active is None else all_active.time_one())
            advance()
    rate = _MATRIX**3 / 1e9 / statistics.median(products[1:])
    return _Rounds(_medians(seconds[1:]), _medians(active_seconds[1:]), rate)


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in rounds[0]}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _time_library(library: Library, frame: Frame) -> dict[str, float]:
    began = time.perf_counter()
    prediction, geometry = library.forward(frame)
    forward = time.perf_counter()
    plain_decode(prediction.class_logits[0], prediction.mask_logits[0], geometry)
    end = time.perf_counter()
    return {"library_frame": end - began, "library_forward": forward - began, "library_decode": end - forward}


class _Intervals:
    """A session that is pushed one interval at a time, each ending with a key frame."""

    def __init__(self, session: Session, frames: Iterable[Frame], interval: int) -> None:
        self.session, self.frames, self.interval = session, iter(frames), interval
        self.session.push(next(self.frames))

    def time_one(self) -> dict[str, float]:
        """Return seconds of a key frame, of a frame between (only where there are), and per frame, also by stage."""
        stages = self.session.clock.seconds
        before = dict(stages)
        began = time.perf_counter()
        keys = [[result.is_key for result in self.session.push(frame)] for frame in islice(self.frames, self.interval)]
        total = time.perf_counter() - began
        if sum(map(sum, keys)) != 1 or not any(keys[-1]):
            raise SourceError(
                f"expected a key frame every {self.interval} frames, got another one: the video cuts to another "
                "scene within its first interval; choose another video"
            )
        number = self.interval
        spent = {stage: (stages[stage] - before[stage]) / number for stage in STAGES}
        key = spent["key"] * number + spent["decode"]
        seconds = {"ours_key": key, "ours_interval": total / number}
        if number > 1:
            seconds["ours_non_key"] = (total - key) / (number - 1)
        return seconds | spent


def _first_frames(source: str, count: int) -> list[Frame]:
    with read(source) as reader:
        frames = list(islice(reader, count))
    if len(frames) < count:
        raise SourceError(
            f"{source}: expected at least {count} frames, one interval and the next key frame, got {len(frames)}; "
            "choose a longer video or a smaller interval"
        )
    return frames


def _back_and_forth(frames: list[Frame]) -> Iterator[Frame]:
    """Play frames forward and backward, again and again: no cut, and a key frame is always one of the two ends."""
    turns = chain.from_iterable(repeat(frames[1:] + frames[-2::-1]))
    for number, frame in enumerate(chain(frames[:1], turns)):
        yield replace(frame, pts=number / IMAGE_RATE)


# --- counting -----------------------------------------------------------------------------------------------------


def _count(contest: Contest, frames: list[Frame], direction: DirectionName, interval: int) -> Numbers:
    """Count multiply-adds by the rule in ``cost.py``; this also warms the library up."""
    ours = contest.ours
    key = count_gmac(lambda: contest.library(frames[0]))
    if ours.propagator is None:
        return {"key": key, "non_key": None, "per_frame": key}
    propagator = ours.propagator
    (then, geometry), (now, _) = (prepare(frame, ours.rule) for frame in frames[:2])
    (state,) = ours.segment(frames[:1], [then], geometry)
    assert isinstance(state, KeyState)
    grid = (state.mask_logits.shape[-2], state.mask_logits.shape[-1])

    def estimate() -> np.ndarray:
        flow: np.ndarray = propagator.estimate_flow(now[None], then[None], state.queries[None], geometry.padded, grid)[
            0
        ]
        return flow

    def propagate() -> None:
        if not propagator.per_query:  # nothing is decoded between key frames: the scores of all classes are warped
            classes = state.class_logits.shape[1] - 1
            warp(torch.zeros(1, classes, *score_size(geometry)), torch.zeros(1, 2, *score_size(geometry)))
            return
        logits, masks, flows = map(torch.from_numpy, (state.class_logits, state.mask_logits, flow))
        warped = warp(masks[None] if len(flows) == 1 else masks[:, None], flows)
        plain_decode(logits, warped.reshape_as(masks), geometry)

    # Each of the two sides has its own masks and its own part of the class scores.
    sides = 2 if direction == "both" else 1
    flow = estimate()
    flows = _flows(ours, direction, interval) / (interval - 1)
    non_key = flows * count_gmac(estimate) + sides * count_gmac(propagate)
    return {"key": key, "non_key": non_key, "per_frame": (key + (interval - 1) * non_key) / interval}


def _flows(ours: VideoSegmenter, direction: DirectionName, interval: int) -> int:
    """Flows of an interval: of those that serve both sides there is one more than frames between."""
    if ours.propagator is not None and direction == "both" and serves_both_ways(ours.propagator, ours.options.motion):
        return interval
    return (interval - 1) * (2 if direction == "both" else 1)


def _classical_flow(
    ours: VideoSegmenter, frames: list[Frame], direction: DirectionName, interval: int
) -> dict[str, float] | None:
    """How many flows without a network a frame takes, and the seconds of one; multiply-adds say nothing of them."""
    dis = ours.propagator
    if not isinstance(dis, Dis):
        return None
    (then, geometry), (now, _) = (prepare(frame, ours.rule) for frame in frames[:2])
    grid = score_size(geometry)
    seconds = [_timed(lambda: dis.estimate_flow(now[None], then[None], None, geometry.padded, grid)) for _ in range(3)]
    return {"flows_per_frame": _flows(ours, direction, interval) / interval, "seconds": statistics.median(seconds)}


def _shares(gmac: Numbers, seconds: BenchSeconds, rate: float) -> Numbers:
    """The share of the machine's rate that each path reaches."""

    def share(work: str, spent: float | None) -> float | None:
        amount = gmac[work]
        return None if amount is None or spent is None else amount / (spent * rate)

    return {
        "library_frame": share("key", seconds.library_frame),
        "ours_key": share("key", seconds.ours_key),
        "ours_non_key": share("non_key", seconds.ours_non_key),
        "ours_interval": share("per_frame", seconds.ours_interval),
    }


# --- whole runs ---------------------------------------------------------------------------------------------------


def _whole_runs(contest: Contest, options: BenchOptions, source: str, folder: Path) -> dict[str, float]:
    """Return seconds a frame of whole runs from file to files, by contestant, and of our reading and writing."""
    assert options.runs is not None
    ours = contest.ours
    peer = segformer_b0(len(ours.segmentor.class_names), ours.rule)
    peer(_first_frames(source, 1)[0])
    contestants = {
        "library": PlainRun(ours.segmentor, contest.library),
        "ours_per_frame": ours.per_frame(),
        "ours": ours,
        "segformer_b0": PlainRun(ours.segmentor, peer),
    }
    rounds: list[dict[str, float]] = []
    with progress("bench, whole runs", options.runs * len(contestants), unit="runs") as advance:
        for _ in range(options.runs):
            seconds: dict[str, float] = {}
            for name, segmenter in contestants.items():
                result = _process(segmenter, options, source, folder / name)
                seconds[name] = result.seconds["total"] / result.frames
                if name == "ours":
                    seconds |= {stage: result.seconds[stage] / result.frames for stage in ("read", "write")}
                advance()
            rounds.append(seconds)
    return _medians(rounds)


def _process(segmenter: VideoSegmenter, options: BenchOptions, source: str, out: Path) -> RunSummary:
    """Run from file to files over the first ``options.frames`` frames."""
    assert options.frames is not None
    with read(source) as reader:
        ends = [frame.pts for frame in islice(reader, options.frames + 1)]
    end = ends[options.frames] if len(ends) > options.frames else None
    return segmenter.process(source, out, overwrite=True, end=end, direction=options.direction)


def _peak_of_whole_run(options: BenchOptions, source: str) -> float | None:
    """Return the peak memory, in MiB, of a process of its own that does nothing but our whole run."""
    log.info("measuring memory")
    program = "import sys; from mpvss.evaluation.benchmark import _run_and_print_peak as run; run(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(options.to_dict()), source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MpvssError(f"the run that measures memory failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    peak: float | None = json.loads(done.stdout)
    return peak


def _run_and_print_peak(options_json: str, source: str) -> None:
    values = json.loads(options_json)
    values["size"] = None if values["size"] is None else tuple(values["size"])
    options = BenchOptions.from_dict(values)
    with TemporaryDirectory(prefix="mpvss-bench-") as folder, limited_threads(options.threads):
        _process(make_ours(options), options, source, Path(folder))
    print(json.dumps(peak_mib()))


# --- files --------------------------------------------------------------------------------------------------------


def plot(result: BenchResult, path: Path) -> None:
    """Draw seconds a frame of segmentation and of whole runs as bars, to a PNG file.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    seconds = result.seconds
    stages = {name: value or 0.0 for name, value in seconds.stages.items()}
    parts = {
        "library, every frame": {"network": seconds.library_forward, "decode": seconds.library_decode},
        "ours, every frame": {"network": seconds.ours_forward, "decode": seconds.ours_decode},
        f"ours, interval {result.options['interval']}": stages | {"network": stages["key"]},
    }
    runs = {name.replace("_", " "): value for name, value in seconds.run.items() if value is not None}
    with output_errors(path):
        charts.save(charts.seconds_bars(parts, runs), path)


def save(result: BenchResult, folder: Path) -> None:
    """Write ``BENCH.json`` and ``BENCH.png``.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: A file cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "BENCH.json", result.to_dict())
    plot(result, folder / "BENCH.png")
