"""How much faster: the library on every frame, ours on every frame, and ours at an interval, in one run.

All of them are warm and take turns, so that whatever else the machine does affects them alike; medians are reported,
and ratios of medians. On the CPU.
"""

import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mpvss._extras import command
from mpvss._files import output_errors, write_json
from mpvss._threads import limited_threads
from mpvss.engine.decode import score_size
from mpvss.engine.stage_clock import STAGES
from mpvss.errors import MpvssError, OptionError
from mpvss.evaluation import charts
from mpvss.evaluation.bench_results import BenchResult, BenchSeconds, Numbers, SizeResult, ratios
from mpvss.evaluation.contest import Contest, PlainRun, has_torch, make_contest, make_ours
from mpvss.evaluation.floor import overlay_quality, run_floor
from mpvss.evaluation.gmac import count_frame_gmac, flows_of_interval
from mpvss.evaluation.machine import machine, peak_mib, synthetic_video
from mpvss.evaluation.rounds import Intervals, OwnRounds, back_and_forth, first_frames, medians, timed
from mpvss.motion.dis import Dis
from mpvss.options import BenchOptions, EvalOptions
from mpvss.progress import progress
from mpvss.segmenter import DEFAULT_INTERVAL, VideoSegmenter
from mpvss.segmentors.protocol import prepare
from mpvss.types import Frame, RunSummary, shown_size
from mpvss.video import read

log = logging.getLogger(__name__)

_PAPER_SIZE, _PAPER_CLASSES = (480, 853), 124
_COMPACT_SIZE = (360, 480)
_LARGER_SIZES = ((540, 960), (1080, 1920))
_RUNS = ("library", "ours_per_frame", "ours", "segformer_b0", "floor")
_ACCURACY = ("miou", "vc8", "flicker")
_SCORED = ("model", "propagator", "motion", "direction", "interval", "backend", "fast")
_MATRIX_GMAC = 2048**3 / 1e9
_OF_A_FRAME = tuple(each.name for each in fields(BenchSeconds) if each.name not in ("stages", "run"))


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


def bench(options: BenchOptions) -> BenchResult:
    """Measure, taking turns.

    Without torch only ours is measured, on every frame and propagated.

    Raises:
        ModelError: The model cannot be loaded.
        SourceError: The video cannot be read, is too short, or cuts to another scene within the first interval.
    """
    options = resolve(options)
    with TemporaryDirectory(prefix="mpvss-bench-") as name, limited_threads(options.threads):
        folder = Path(name)
        source = options.source or _made(options, folder)
        frames = first_frames(source, _interval(options) + 1)
        contest = make_contest(options)
        ours = contest.ours
        log.info("warming up")
        gmac = _count(contest, frames[0], options)
        rounds = _measure(contest, frames, options)
        runs, overlay = _whole_runs(contest, options, source, folder) if options.runs else ({}, None)
        seconds = _seconds(rounds.seconds, runs)
        return BenchResult(
            seconds=seconds,
            gmac=gmac,
            classical_flow=_classical_flow(ours, frames, options),
            sgemm={"gmac_per_second": rounds.rate, "share": _shares(gmac, seconds, rounds.rate)},
            peak_mib=_peak_of_whole_run(options, source) if options.runs else None,
            overlay=overlay,
            sizes=[_other_size(ours, options.replace(size=size), folder) for size in _other_sizes(options)],
            accuracy=None if options.data is None else _accuracy(options, contest.library is not None),
            ratios=ratios(asdict(seconds)),
            all_active=_all_active(rounds.all_active, seconds.library_frame) if rounds.all_active else None,
            note=_note(options, contest),
            options={**options.to_dict(), **_measured(ours, frames[0])},
            machine=machine(),
        )


def _interval(options: BenchOptions) -> int:
    assert options.interval is not None
    return options.interval


def _direction(options: BenchOptions) -> str:
    return options.direction or "both"


def _made(options: BenchOptions, folder: Path) -> str:
    """Make a video of the size asked for; return its path."""
    assert options.size is not None and options.frames is not None
    path = folder / f"bench-{options.size[0]}.mp4"
    synthetic_video(path, options.size, max(options.frames, _interval(options) + 1))
    return str(path)


def _measured(ours: VideoSegmenter, frame: Frame) -> dict[str, Any]:
    """What the options left to the model and the video."""
    return {
        "propagator": "none" if ours.propagator is None else ours.propagator.name,
        "motion": ours.options.motion,
        "size": list(frame.size),
        "network": list(ours.rule.fit(frame.size).resized),
    }


def _note(options: BenchOptions, contest: Contest) -> str | None:
    if contest.library is None:
        rows = "the library's model and SegFormer-B0 were not measured"
        if not has_torch():
            return f"{rows}: they need torch, {command('torch')}"
        return f"{rows}: {options.model} is no checkpoint of a mask classifier of the library"
    if options.arch is None:
        return None
    from mpvss.evaluation.library import ACTIVE_QUERIES, PRESENT_CLASSES

    return (
        f"random weights: {ACTIVE_QUERIES} queries are made sure of {PRESENT_CLASSES} classes, as in trained models, "
        "the others of no object; all_active is with the classes of the random weights"
    )


def _seconds(measured: Mapping[str, float], runs: Mapping[str, float]) -> BenchSeconds:
    frame: dict[str, Any] = {name: measured.get(name) for name in _OF_A_FRAME}
    stages = {**{name: measured[name] for name in STAGES}, "read": runs.get("read"), "write": runs.get("write")}
    return BenchSeconds(**frame, stages=stages, run={name: runs.get(name) for name in _RUNS})


def _all_active(measured: Mapping[str, float], library_frame: float | None) -> dict[str, Numbers]:
    seconds: Numbers = {name: value for name, value in measured.items() if name not in STAGES}
    compared = ratios({**seconds, "library_frame": library_frame})
    return {"seconds": seconds, "ratios": {name: value for name, value in compared.items() if "run" not in name}}


# --- the rounds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rounds:
    """Medians: seconds of the contest and of all active, and GMAC a second of a large matrix product."""

    seconds: dict[str, float]
    all_active: dict[str, float]
    rate: float | None


def _measure(contest: Contest, frames: list[Frame], options: BenchOptions) -> _Rounds:
    """Run everything once a round, in turn; the first round is to warm up."""
    interval, direction = _interval(options), _direction(options)
    own = OwnRounds(contest.ours, frames, direction, interval)
    all_active = None
    if contest.all_active is not None:
        session = contest.all_active.session(direction=options.direction)
        all_active = Intervals(session, back_and_forth(frames), interval)
    product = None
    if contest.library is not None:
        from mpvss.evaluation.library import matrix_product

        product = matrix_product()
    products, seconds, active_seconds = [], [], []
    with progress("bench", options.repeats + 1, unit="rounds") as advance:
        for number in range(options.repeats + 1):
            products.append(0.0 if product is None else timed(product))
            library = {} if contest.library is None else contest.library.timed(frames[number % 2])
            seconds.append(library | own.time_one())
            active_seconds.append({} if all_active is None else all_active.time_one())
            advance()
    rate = None if product is None else _MATRIX_GMAC / statistics.median(products[1:])
    return _Rounds(medians(seconds[1:]), medians(active_seconds[1:]), rate)


# --- counting -----------------------------------------------------------------------------------------------------


def _count(contest: Contest, frame: Frame, options: BenchOptions) -> Numbers:
    """Count multiply-adds, of the networks in torch; this also warms the library up."""
    if contest.library is None:
        return dict.fromkeys(("key", "non_key", "per_frame"))
    contest.library(frame)
    from mpvss.evaluation.library import counted

    interval, direction = _interval(options), _direction(options)
    count = count_frame_gmac(counted(contest), frame)
    flows, sides = flows_of_interval(contest.ours, direction, interval), 2 if direction == "both" else 1
    non_key, per_frame = count.of_interval(interval, flows=flows, sides=sides)
    return {"key": count.key, "non_key": non_key, "per_frame": per_frame}


def _classical_flow(ours: VideoSegmenter, frames: list[Frame], options: BenchOptions) -> dict[str, float] | None:
    """How many flows without a network a frame takes, and the seconds of one; multiply-adds say nothing of them."""
    dis, interval = ours.propagator, _interval(options)
    if not isinstance(dis, Dis):
        return None
    (then, geometry), (now, _) = (prepare(frame, ours.rule) for frame in frames[:2])
    grid = score_size(geometry)
    seconds = [timed(lambda: dis.estimate_flow(now[None], then[None], None, geometry.padded, grid)) for _ in range(3)]
    flows = flows_of_interval(ours, _direction(options), interval)
    return {"flows_per_frame": flows / interval, "seconds": statistics.median(seconds)}


def _shares(gmac: Numbers, seconds: BenchSeconds, rate: float | None) -> Numbers:
    """The share of the machine's rate that each path reaches."""

    def share(work: str, spent: float | None) -> float | None:
        amount = gmac[work]
        return None if amount is None or spent is None or rate is None else amount / (spent * rate)

    return {
        "library_frame": share("key", seconds.library_frame),
        "ours_key": share("key", seconds.ours_key),
        "ours_non_key": share("non_key", seconds.ours_non_key),
        "ours_interval": share("per_frame", seconds.ours_interval),
    }


# --- whole runs ---------------------------------------------------------------------------------------------------


def _whole_runs(
    contest: Contest, options: BenchOptions, source: str, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds a frame of whole runs from file to files, by contestant, and the size and quality of our overlay.

    Also of our reading and writing, and of decoding and encoding alone.
    """
    ours = contest.ours
    contestants = {"ours_per_frame": ours.per_frame(), "ours": ours}
    if contest.library is not None:
        from mpvss.evaluation.library import segformer_b0

        peer = segformer_b0(len(ours.class_names), ours.rule)
        peer(first_frames(source, 1)[0])
        contestants["library"] = PlainRun(ours.segmentor, contest.library)
        contestants["segformer_b0"] = PlainRun(ours.segmentor, peer)
    return _timed_runs(contestants, options, source, folder)


def _timed_runs(
    contestants: Mapping[str, VideoSegmenter], options: BenchOptions, source: str, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    assert options.runs is not None
    rounds: list[dict[str, float]] = []
    floor_path = folder / "floor.mp4"
    with progress("bench, whole runs", options.runs * (len(contestants) + 1), unit="runs") as advance:
        for _ in range(options.runs):
            seconds: dict[str, float] = {}
            for name, segmenter in contestants.items():
                result = _process(segmenter, options, source, folder / name)
                seconds[name] = result.seconds["total"] / result.frames
                if name == "ours":
                    seconds |= {stage: result.seconds[stage] / result.frames for stage in ("read", "write")}
                    frames, overlay = result.frames, result.outputs["overlay"]
                advance()
            seconds["floor"] = run_floor(source, floor_path, frames) / frames
            advance()
            rounds.append(seconds)
    quality = overlay_quality(source, overlay, contestants["ours"].palette)
    return medians(rounds), {**quality, "floor_bytes": floor_path.stat().st_size}


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


# --- other sizes, and accuracy ------------------------------------------------------------------------------------


def _other_sizes(options: BenchOptions) -> tuple[tuple[int, int], ...]:
    """Which other sizes are measured: of the plain ``mpvss bench`` alone, of which the table is."""
    return _LARGER_SIZES if options.arch is None and options.source is None and options.size == _COMPACT_SIZE else ()


def _other_size(ours: VideoSegmenter, options: BenchOptions, folder: Path) -> SizeResult:
    """Measure ours on every frame and propagated, and a whole run over the floor, on a video of another size."""
    assert options.size is not None
    log.info("measuring %s", shown_size(options.size))
    source = _made(options, folder)
    own = OwnRounds(ours, first_frames(source, _interval(options) + 1), _direction(options), _interval(options))
    measured = medians([own.time_one() for _ in range(options.repeats + 1)][1:])
    runs, overlay = _timed_runs({"ours": ours}, options, source, folder) if options.runs else ({}, None)
    peak = _peak_of_whole_run(options, source) if options.runs else None
    seconds: Numbers = {name: measured[name] for name in ("ours_frame", "ours_interval")}
    return SizeResult(options.size, seconds | {"run": runs.get("ours"), "floor": runs.get("floor")}, overlay, peak)


def _accuracy(options: BenchOptions, with_library: bool) -> dict[str, Numbers]:
    """Score what is compared on a data set; the library's model is the same one, run as the library does."""
    from mpvss.evaluation.run import evaluate

    assert options.data is not None
    shared = {name: getattr(options, name) for name in _SCORED if getattr(options, name) is not None}
    ours = EvalOptions(data=options.data, split=options.split, **shared)
    contestants = {"ours_per_frame": ours.replace(propagator="none", interval=None), "ours": ours}
    if with_library:
        contestants["library"] = contestants["ours_per_frame"].replace(backend="torch", fast=False)
    accuracy: dict[str, Numbers] = {}
    for name, each in contestants.items():
        log.info("scoring %s", name.replace("_", " "))
        with TemporaryDirectory(prefix="mpvss-bench-") as folder:
            figures = evaluate(each, folder).figures()
        accuracy[name] = {figure: figures.get(figure) for figure in _ACCURACY}
    return accuracy


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
        "library, every frame": {"network": seconds.library_forward or 0.0, "decode": seconds.library_decode or 0.0},
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
