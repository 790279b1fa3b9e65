"""What a run looks like, as one HTML page and PNG files; and how two runs differ.

Charts are drawn once and come out as SVG in the page and as PNG beside it. The page needs nothing else: no network, no
fonts, no scripts.
"""

import base64
import html
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from mpvss._files import atomic
from mpvss.datasets import Clip, Dataset, open_dataset
from mpvss.errors import DataError, OutputError
from mpvss.evaluation.run import WINDOW, RunDirectory, read_worst, score_of
from mpvss.metrics import ConfusionMatrix, MiouByDistance, RegionSimilarity, VideoConsistency

FIGURES = {
    "miou": "mIoU",
    "wiou": "weighted IoU",
    "j": "J",
    "vc8": "VC8",
    "vc16": "VC16",
    "correct_vc8": "correct VC8",
    "correct_vc16": "correct VC16",
    "flicker": "flicker",
    "gmac_per_frame": "GMAC a frame",
}
"""Names of the figures, for people."""

LEAST_UNITS = 10
"""Units (videos, or windows of one video) that an interval needs: of normal values, 95 % intervals hold the truth in
73 of 100 cases with 3 units, in 89 with 10, in 91 with 20."""
_COMPARED = ("miou", "j", "vc8", "vc16", "correct_vc8", "correct_vc16")
_WORST_SHOWN = 6
_TIMELINES_SHOWN = 24
_PANEL = 300
_WIDTH = 1140

Picture = UInt8[np.ndarray, "H W 3"]
Number = int | float


# Two runs side by side


@dataclass(frozen=True, eq=False)
class _Units:
    """What a bootstrap draws from: pixel counts and sums of each video, or of each whole window of one video."""

    counts: Float64[np.ndarray, "n D 3 K"]  # right, true and predicted pixels by class; D key frame distances or 1
    sums: dict[str, Float64[np.ndarray, "n 2"]]  # sum and number of what a figure is the mean of

    def values(self, name: str, draws: Float64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """A figure of each draw; a draw says how often every unit is in it."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if name != "miou":
                total = draws @ self.sums[name]
                mean: np.ndarray = total[:, 0] / total[:, 1]
                return mean
            right, true, predicted = np.moveaxis(np.tensordot(draws, self.counts, 1), 2, 0)
            return _mean(_mean(np.where(true > 0, right / (true + predicted - right), np.nan)))

    def known(self, name: str) -> Bool[np.ndarray, " n"]:
        """Which units have anything to say about a figure."""
        if name == "miou":
            known: np.ndarray = self.counts[:, :, 1].sum((1, 2)) > 0
            return known
        return self.sums[name][:, 1] > 0 if name in self.sums else np.zeros(len(self.counts), bool)

    def first(self, number: int) -> "_Units":
        """The first units."""
        return _Units(self.counts[:number], {name: sums[:number] for name, sums in self.sums.items()})


def _mean(values: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    mean: np.ndarray = np.where(known, values, 0).sum(-1) / known.sum(-1)
    return mean


def compare(run_a: str | Path, run_b: str | Path, *, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Put two finished runs on the same videos side by side.

    Differences are b - a, with a 95 % interval from a paired bootstrap: videos are drawn with replacement, the same for
    both runs, and every figure is computed anew from the pooled pixels of a draw. Where there is one video, windows of
    10 frames are drawn instead; frames after the last whole window count in ``value`` and not in the interval. The
    interval is bias-corrected and accelerated (BCa) where that is defined and scipy is installed, otherwise plain
    percentiles. Fewer than 10 units that have the figure make no interval.

    The interval says how much the choice of videos matters, no more; neighbouring windows resemble each other, so with
    one video it is too narrow rather than too wide.

    Args:
        run_a: Directory of a run, as ``evaluate`` writes it.
        run_b: Another.
        samples: Number of draws, at least 1.
        seed: Of the random draws.

    Returns:
        ``a`` and ``b`` (the results), ``difference`` ({figure: {"value", "low", "high", "method", "why"}}), ``unit``
        ("video" or "window"), ``units`` (how many), ``frames_left_out`` (after the last whole window) and ``samples``.
        ``method`` is "BCa", "percentile" or ``None``; ``why`` says why it is no BCa interval.

    Raises:
        DataError: A run is not there or not finished, or the two are of other videos or classes.
        ValueError: ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, found {samples}")
    runs = [RunDirectory(Path(run)) for run in (run_a, run_b)]
    results = [run.result() for run in runs]
    headers = [run.header() for run in runs]
    if headers[0]["classes"] != headers[1]["classes"] or headers[0]["protocol"] != headers[1]["protocol"]:
        raise DataError(f"{run_a} and {run_b} are of different data sets; compare runs on the same videos")
    videos = [{line["clip"]: line["frames"] for line in run.lines()} for run in runs]
    same = list(videos[0]) == list(videos[1])
    if not same or (headers[0]["protocol"] != "cityscapes" and videos[0] != videos[1]):
        raise DataError(f"{run_a} and {run_b} are of different videos; compare runs on the same ones")
    one = len(videos[0]) == 1
    units = [_window_units(run) if one else _video_units(run) for run in runs]
    number = min(len(unit.counts) for unit in units)
    units = [unit.first(number) for unit in units]
    difference = {}
    for name in _COMPARED:
        a, b = (result.get(name) for result in results)
        if a is not None and b is not None:
            spread = _interval(name, *units, samples=samples, seed=seed, unit="window" if one else "video")
            difference[name] = {"value": b - a, **spread}
    return {
        "a": results[0],
        "b": results[1],
        "difference": difference,
        "unit": "window" if one else "video",
        "units": number,
        "frames_left_out": max(videos[0].values()) - number * WINDOW if one else 0,
        "samples": samples,
    }


def _interval(name: str, a: _Units, b: _Units, *, samples: int, seed: int, unit: str) -> dict[str, Any]:
    """The 95 % interval of a figure's difference, what made it, and why it is not a better one."""
    number, known = len(a.counts), int((a.known(name) & b.known(name)).sum())
    if known < LEAST_UNITS:
        why = f"{known} {unit}{'' if known == 1 else 's'}, needs {LEAST_UNITS}"
        return {"low": None, "high": None, "method": None, "why": why}

    def statistic(indices: np.ndarray, **_: object) -> np.ndarray:
        rows = indices.reshape(-1, indices.shape[-1])
        draws = np.zeros((len(rows), number))
        np.add.at(draws, (np.arange(len(rows))[:, None], rows), 1)
        spread: np.ndarray = b.values(name, draws) - a.values(name, draws)
        return spread.reshape(indices.shape[:-1])

    random = np.random.default_rng(seed)
    try:
        from scipy.stats import bootstrap
    except ImportError:
        why, values = "scipy is not installed", statistic(random.integers(0, number, (samples, number)))
    else:
        with warnings.catch_warnings():  # scipy's of what BCa cannot do, which is looked at below
            warnings.simplefilter("ignore")
            result = bootstrap(
                (np.arange(number),), statistic, n_resamples=samples, vectorized=True, batch=256, random_state=random
            )
        low, high = (float(value) for value in result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            return {"low": low, "high": high, "method": "BCa", "why": None}
        why, values = "BCa is undefined here", np.asarray(result.bootstrap_distribution)
    values = values[~np.isnan(values)]
    if not values.size:
        return {"low": None, "high": None, "method": None, "why": "no draw has a value"}
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return {"low": low, "high": high, "method": "percentile", "why": why}


def _video_units(run: RunDirectory) -> _Units:
    counts, sums = [], []
    cityscapes = run.header()["protocol"] == "cityscapes"
    for line in run.lines():
        metrics = line["metrics"]
        if cityscapes and "by_distance" in metrics:
            by_distance = MiouByDistance.from_state(metrics["by_distance"])
            counts.append(np.stack([_pixels(by_distance.at(distance)) for distance in range(by_distance.interval)]))
        else:
            counts.append(_pixels(ConfusionMatrix.from_state(metrics["confusion"]))[None])
        unit = {}
        for name in _COMPARED:
            if "vc" in name and name in metrics:
                consistency = VideoConsistency.from_state(metrics[name])
                unit[name] = _sum(consistency.value, consistency.windows)
        if "j" in metrics:
            similarity = RegionSimilarity.from_state(metrics["j"])
            unit["j"] = _sum(similarity.value, similarity.clips)
        sums.append(unit)
    return _units(counts, sums)


def _window_units(run: RunDirectory) -> _Units:
    (line,) = run.lines()
    counts, sums = [], []
    # The last part is what remains of the video, down to a single frame: units are of one length.
    for part in line["parts"][: line["frames"] // WINDOW]:
        counts.append(_pixels(ConfusionMatrix.from_state(part["confusion"]))[None])
        sums.append({name: tuple(part[name]) for name in _COMPARED if name in part})
    return _units(counts, sums)


def _units(counts: list[np.ndarray], sums: list[dict[str, Any]]) -> _Units:
    names = sums[0].keys() if sums else ()
    return _Units(
        np.stack(counts).astype(np.float64) if counts else np.zeros((0, 1, 3, 0)),
        {name: np.array([unit[name] for unit in sums], np.float64) for name in names},
    )


def _pixels(matrix: ConfusionMatrix) -> Float64[np.ndarray, "3 K"]:
    counts = matrix.matrix
    return np.stack([counts.diagonal(), matrix.pixels, counts.sum(0)]).astype(np.float64)


def _sum(mean: float, number: int) -> tuple[float, int]:
    return (mean * number, number) if number else (0.0, 0)


# Charts

# Colours that people with any colour vision tell apart, dark enough on white.
_RUN, _BASE, _KEY = "#0b5cad", "#8a8f98", "#c2410c"
_INK, _SOFT, _GRID = "#1b1f24", "#59616b", "#e3e6ea"


@dataclass
class Chart:
    """A drawing of rectangles, lines, dots and words.

    Attributes:
        width: In pixels.
        height: In pixels.
        title: What it shows, for those who cannot see it.
    """

    width: int
    height: int
    title: str
    _marks: list[tuple[Any, ...]] = field(default_factory=list, repr=False)

    def rect(self, x: Number, y: Number, width: Number, height: Number, fill: str) -> None:
        """Draw a filled rectangle."""
        self._marks.append(("rect", x, y, max(width, 0.5), height, fill))

    def line(self, points: Sequence[tuple[Number, Number]], stroke: str, width: Number = 1.0) -> None:
        """Draw a line through points; none make no line."""
        if points:
            self._marks.append(("line", points, stroke, width))

    def dot(self, x: Number, y: Number, radius: Number, fill: str) -> None:
        """Draw a dot."""
        self._marks.append(("dot", x, y, radius, fill))

    def text(self, x: Number, y: Number, text: str, *, anchor: str = "start", fill: str = _INK, size: int = 13) -> None:
        """Write a line; ``y`` is its middle, ``anchor`` start, middle or end."""
        self._marks.append(("text", x, y, text, anchor, fill, size))

    def svg(self) -> str:
        """The drawing for a page; it shrinks with the page."""
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" role="img" '
            f'aria-label="{html.escape(self.title)}"><title>{html.escape(self.title)}</title>'
        ]
        for kind, *mark in self._marks:
            if kind == "rect":
                x, y, width, height, fill = mark
                parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>')
            elif kind == "line":
                points, stroke, width = mark
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}" '
                    'stroke-linejoin="round"/>'
                )
            elif kind == "dot":
                x, y, radius, fill = mark
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"/>')
            else:
                x, y, text, anchor, fill, size = mark
                parts.append(
                    f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}" fill="{fill}" '
                    f'font-size="{size}">{html.escape(text)}</text>'
                )
        return "".join([*parts, "</svg>"])

    def picture(self) -> Image.Image:
        """The drawing at twice its size in pixels."""
        scale = 4  # twice as fine as what comes out, for smooth edges
        image = Image.new("RGB", (self.width * scale, self.height * scale), "white")
        draw = ImageDraw.Draw(image)
        for kind, *mark in self._marks:
            if kind == "rect":
                x, y, width, height, fill = mark
                draw.rectangle([x * scale, y * scale, (x + width) * scale, (y + height) * scale], fill=fill)
            elif kind == "line":
                points, stroke, width = mark
                draw.line([(x * scale, y * scale) for x, y in points], stroke, round(width * scale), joint="curve")
            elif kind == "dot":
                x, y, radius, fill = mark
                box = [(x - radius) * scale, (y - radius) * scale, (x + radius) * scale, (y + radius) * scale]
                draw.ellipse(box, fill=fill)
            else:
                x, y, text, anchor, fill, size = mark
                font = ImageFont.load_default(size * scale)
                side = {"start": "l", "middle": "m", "end": "r"}[anchor]
                draw.text((x * scale, y * scale), text, fill, font, anchor=f"{side}m")
        return image.resize((self.width * 2, self.height * 2), Image.Resampling.LANCZOS)


def class_bars(iou: Mapping[str, float | None], baseline: Mapping[str, float | None] | None) -> Chart:
    """IoU of each class that has true pixels, as bars, with those of a baseline below."""
    shown = [name for name, value in iou.items() if value is not None]
    left = 28 + max((round(7.4 * min(len(name), 28)) for name in shown), default=40)
    row = 24 if baseline is None else 34
    top, width = 34, _WIDTH
    chart = Chart(width, top + row * len(shown) + 40, "IoU of each class")
    span = width - left - 130
    bottom = top + row * len(shown)
    for tick in range(0, 11, 2):
        x = left + span * tick / 10
        chart.line([(x, top - 6), (x, bottom)], _GRID)
        chart.text(x, bottom + 14, f"{tick / 10:.1f}", anchor="middle", fill=_SOFT)
    chart.text(left + span / 2, bottom + 30, "IoU", anchor="middle", fill=_SOFT)
    _key(chart, left, [("this run", _RUN)] + ([("baseline", _BASE)] if baseline is not None else []))
    for number, name in enumerate(shown):
        y = top + row * number
        value = iou[name] or 0.0
        chart.text(left - 10, y + row / 2, name[:28], anchor="end")
        chart.rect(left, y + 4, span * value, 14, _RUN)
        words = f"{value:.3f}"
        if baseline is not None and baseline.get(name) is not None:
            before = baseline[name] or 0.0
            chart.rect(left, y + 20, span * before, 8, _BASE)
            words += f" ({value - before:+.3f})"
        chart.text(left + span + 8, y + 12, words)
    return chart


def distance_lines(values: Sequence[float | None], baseline: Sequence[float | None] | None) -> Chart:
    """The mIoU by distance to the key frame."""
    longest = max(len(values), len(baseline or ()))
    chart = Chart(_WIDTH, 320, "mIoU by distance to the key frame")
    known = [value for value in (*values, *(baseline or ())) if value is not None]
    low = _floor(known)
    left, top, right, bottom = 64, 62, _WIDTH - 20, 260

    def place(distance: int, value: Number) -> tuple[Number, Number]:
        return (
            left + 20 + (right - left - 40) * distance / max(longest - 1, 1),
            bottom - (bottom - top) * (value - low) / (1 - low),
        )

    _scale(chart, (left, top, right, bottom), low)
    step = -(-longest // 20)
    for distance in range(0, longest, step):
        chart.text(place(distance, low)[0], bottom + 14, str(distance), anchor="middle", fill=_SOFT)
    chart.text((left + right) / 2, bottom + 38, "frames from the key frame", anchor="middle", fill=_SOFT)
    chart.text(left - 8, top - 22, "mIoU", anchor="end", fill=_SOFT)
    _key(chart, left + 20, [("this run", _RUN)] + ([("baseline", _BASE)] if baseline else []))
    for series, colour, radius in ((baseline, _BASE, 3.0), (values, _RUN, 4.0)):
        points = [place(distance, value) for distance, value in enumerate(series or ()) if value is not None]
        chart.line(points, colour, 2.0)
        for x, y in points:
            chart.dot(x, y, radius, colour)
    if longest <= 20:
        for distance, value in enumerate(values):
            if value is not None:
                x, y = place(distance, value)
                chart.text(x, y - 14, f"{value:.3f}", anchor="middle", size=12)
    return chart


def time_line(
    name: str,
    scores: Sequence[float | None],
    keys: Sequence[bool | None],
    baseline: Sequence[float | None] | None,
    measure: str,
) -> Chart:
    """The score of every frame of one video, its key frames marked."""
    chart = Chart(_WIDTH, 170, f"{measure} of each frame of {name}")
    known = [value for value in (*scores, *(baseline or ())) if value is not None]
    low = _floor(known)
    left, top, right, bottom = 64, 32, _WIDTH - 20, 130

    def place(index: int, value: Number) -> tuple[Number, Number]:
        return (
            left + (right - left) * index / max(len(scores) - 1, 1),
            bottom - (bottom - top) * (value - low) / (1 - low),
        )

    _scale(chart, (left, top, right, bottom), low)
    step = max(1, 10 ** max(0, math.ceil(math.log10(max(len(scores), 1) / 10))) // 2)
    while len(scores) / step > 14:
        step *= 2
    for index in range(0, len(scores), step):
        chart.text(place(index, low)[0], bottom + 14, str(index), anchor="middle", fill=_SOFT, size=12)
    chart.text((left + right) / 2, bottom + 32, "frame", anchor="middle", fill=_SOFT, size=12)
    chart.text(left - 8, 12, measure, anchor="end", fill=_SOFT, size=12)
    named = [("this run", _RUN)] + ([("baseline", _BASE)] if baseline else [])
    if any(keys):
        named.append(("key frame", _KEY))
    _key(chart, left, named, y=12)
    for series, colour, width in ((baseline, _BASE, 1.5), (scores, _RUN, 2.0)):
        run: list[tuple[Number, Number]] = []
        for index, value in enumerate([*(series or ()), None]):
            if value is not None:
                run.append(place(index, value))
            elif run:
                chart.line(run if len(run) > 1 else [run[0], run[0]], colour, width)
                run = []
    for index, (is_key, value) in enumerate(zip(keys, scores, strict=True)):
        if is_key and value is not None:
            chart.dot(*place(index, value), 3.5, _KEY)
    return chart


def _floor(values: Sequence[float]) -> float:
    """A round lower end of a scale that ends at 1."""
    return min(0.9, max(0.0, math.floor((min(values, default=0.0) - 0.02) * 10) / 10))


def _scale(chart: Chart, box: tuple[int, int, int, int], low: float) -> None:
    left, top, right, bottom = box
    steps = 4 if low < 0.6 else 2
    for tick in range(steps + 1):
        value = low + (1 - low) * tick / steps
        y = bottom - (bottom - top) * tick / steps
        chart.line([(left, y), (right, y)], _GRID)
        chart.text(left - 8, y, f"{value:.2f}", anchor="end", fill=_SOFT, size=12)


def _key(chart: Chart, x: Number, entries: Sequence[tuple[str, str]], y: Number = 14) -> None:
    for name, colour in entries:
        chart.rect(x, y - 5, 14, 10, colour)
        chart.text(x + 20, y, name, fill=_INK)
        x += 46 + 7.5 * len(name)


# The page


def write_report(run: str | Path, out: str | Path, *, baseline: str | Path | None = None) -> Path:
    """Write a finished run as ``out/index.html`` and PNG files beside it.

    Args:
        run: Directory of the run.
        out: Directory for the report; made if missing.
        baseline: Directory of another run on the same videos to compare with.

    Returns:
        The page.

    Raises:
        DataError: A run is not finished, the two do not fit, or the data set has moved.
        OutputError: The report cannot be written.
    """
    run, out = Path(run), Path(out)
    directory = RunDirectory(run)
    result = directory.result()
    options = result["options"]
    dataset = open_dataset(options["data"], options["split"])
    comparison = None if baseline is None else compare(baseline, run)
    before = None if comparison is None else comparison["a"]
    sections = [_summary(result, comparison)]
    charts = {"classes": class_bars(result["iou"], None if before is None else before["iou"])}
    if result["miou_by_distance"]:
        charts["distance"] = distance_lines(
            result["miou_by_distance"], None if before is None else before["miou_by_distance"]
        )
    absent = [name for name, value in result["iou"].items() if value is None]
    note = f"Without true pixels here: {', '.join(absent)}." if absent else ""
    sections.append(_section("Classes", charts["classes"].svg(), note))
    if "distance" in charts:
        sections.append(_section("Distance to the key frame", charts["distance"].svg(), _distance_note(result)))
    lines, worst = _lines_to_show(directory)
    others = (
        {} if baseline is None else {line["clip"]: line["timeline"] for line in RunDirectory(Path(baseline)).lines()}
    )
    measure = "J" if "j" in result else "mIoU"
    drawn = []
    for number, line in enumerate(lines if dataset.protocol != "cityscapes" else [], 1):
        other = others.get(line["clip"])
        scores = line["timeline"]["score"]
        fits = other is not None and len(other["score"]) == len(scores)
        chart = time_line(
            line["clip"], scores, line["timeline"]["key"], other["score"] if other and fits else None, measure
        )
        charts[f"time-{number:02}"] = chart
        score = score_of(line)
        words = "" if score is None else f" <span>{measure} {score:.3f}</span>"
        drawn.append(f"<h3>{html.escape(line['clip'])}{words}</h3>{chart.svg()}")
    if drawn:
        more = result["videos"] - len(drawn)
        note = f"The {len(drawn)} videos with the lowest score of {result['videos']}." if more else ""
        sections.append(_section("Time lines", "".join(drawn), note))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, chart in charts.items():
            chart.picture().save(out / f"{name}.png")
        if worst:
            sections.append(_worst_section(dataset, run, worst, measure, out))
        page = out / "index.html"
        with atomic(page) as part:
            part.write_text(_page(f"{dataset.name}: {_described(options)}", sections), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot write the report: {error.strerror}") from error
    return page


def _lines_to_show(directory: RunDirectory) -> tuple[list[dict[str, Any]], list[tuple[float, str, int]]]:
    """The videos with the lowest scores, in their order, and the worst frames of all: score, clip, index."""
    order = {line["clip"]: (score_of(line), number) for number, line in enumerate(directory.lines())}
    lowest = sorted(order, key=lambda clip: (order[clip][0] is None, order[clip]))[:_TIMELINES_SHOWN]
    shown = set(lowest)
    lines: list[dict[str, Any]] = []
    worst: list[tuple[float, str, int]] = []
    for line in directory.lines():
        if line["clip"] in shown:
            lines.append({name: line[name] for name in ("clip", "timeline", "metrics")})
        worst = sorted([*worst, *((item["score"], line["clip"], item["index"]) for item in line["worst"])])[
            :_WORST_SHOWN
        ]
    return lines, worst


def _summary(result: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> str:
    cards = []
    for name, words in FIGURES.items():
        value = result.get(name)
        if value is None:
            continue
        note = ""
        if comparison is not None and comparison["a"].get(name) is not None:
            note = f"{value - comparison['a'][name]:+.4f}"
            interval = comparison["difference"].get(name)
            if interval is not None:
                note += f"<br>{interval_text(interval)}"
        cards.append(f"<div><dt>{words}</dt><dd>{value:.4f}<small>{note}</small></dd></div>")
    text = [f"{result['videos']} {'video' if result['videos'] == 1 else 'videos'}, {result['frames']} frames"]
    if result["key_frames"] is not None:
        text[0] += f", {result['key_frames']} of them key frames"
    if comparison is not None:
        what = "videos" if comparison["unit"] == "video" else f"windows of {WINDOW} frames"
        text.append(
            f"Small figures: the difference to the baseline ({html.escape(_described(comparison['a']['options']))}) "
            f"and its 95 % interval, from a paired bootstrap over {comparison['units']} {what}"
        )
        text += comparison_notes(comparison)
    return f"<section><dl>{''.join(cards)}</dl><p>{'. '.join(text)}.</p></section>"


def interval_text(interval: Mapping[str, Any]) -> str:
    """An interval for people, or why there is none."""
    if interval["low"] is None:
        return f"none: {interval['why']}"
    return f"{interval['low']:+.4f} to {interval['high']:+.4f}"


def comparison_notes(comparison: Mapping[str, Any]) -> list[str]:
    """What is to be said of the intervals of a comparison, for people."""
    why: dict[str, list[str]] = {}
    for name, interval in comparison["difference"].items():
        if interval["method"] == "percentile":
            why.setdefault(interval["why"], []).append(FIGURES[name])
    notes = [f"plain percentiles for {', '.join(names)} ({reason})" for reason, names in why.items()]
    if comparison["frames_left_out"]:
        notes.append(
            f"the last {comparison['frames_left_out']} frames fill no window of {WINDOW} and are in no interval"
        )
    return notes


def _distance_note(result: Mapping[str, Any]) -> str:
    if result["options"]["direction"] == "both":
        return "Counted from the key frame before, though the one after is used as well."
    return ""


def _section(title: str, content: str, note: str = "") -> str:
    words = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{words}{content}</section>"


def _described(options: Mapping[str, Any]) -> str:
    """The options of a run in a few words."""
    if options["predictions"] is not None:
        return f"label files in {Path(options['predictions']).name}"
    words = [options["model"] or "true labels at key frames"]
    if options["oracle"] and options["model"]:
        words.append("true labels at key frames")
    if options["propagator"] == "none":
        return f"{words[0]} on every frame"
    words.append(f"{options['propagator']} {options['motion']} {options['direction']}")
    words.append(f"interval {options['interval']}" + (" and cuts" if options["cuts"] else ""))
    return ", ".join(words)


def _worst_section(
    dataset: Dataset, run: Path, worst: Sequence[tuple[float, str, int]], measure: str, out: Path
) -> str:
    clips = {clip.name: clip for clip in dataset.clips}
    figures = []
    present: set[int] = set()
    for number, (score, name, index) in enumerate(worst, 1):
        if name not in clips:
            raise DataError(f"{run}: video {name} is not in the data set any more")
        panels, ids = _panels(clips[name], dataset, run, index)
        present |= ids
        image = Image.fromarray(np.concatenate(panels, axis=1))
        image.save(out / f"worst-{number}.png")
        data = io.BytesIO()
        image.save(data, "PNG")
        text = f"{html.escape(name)}, frame {index}: {measure} {score:.3f}"
        figures.append(
            f"<figure><figcaption>{text}</figcaption>"
            '<div class="heads"><span>image</span><span>truth</span><span>prediction</span><span>error</span></div>'
            f'<img alt="{text}; image, truth, prediction and error side by side" '
            f'src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></figure>'
        )
    swatches = "".join(
        f'<li><i style="background:rgb({r},{g},{b})"></i>{html.escape(dataset.class_names[id_])}</li>'
        for id_, (r, g, b) in enumerate(_colours(dataset).tolist())
        if id_ in present
    )
    legend = (
        f'<ul class="legend">{swatches}<li><i style="background:rgb{_VOID}"></i>no class</li>'
        f'<li><i style="background:rgb{_WRONG}"></i>wrong</li></ul>'
    )
    return _section("Worst frames", legend + "".join(figures))


_VOID, _WRONG = (40, 40, 44), (230, 60, 40)


def _colours(dataset: Dataset) -> UInt8[np.ndarray, "K 3"]:
    """The data set's palette; an object alone stands out better from grey than from another bright colour."""
    return np.array([(96, 100, 108), (250, 190, 60)], np.uint8) if dataset.protocol == "davis" else dataset.palette


def _panels(clip: Clip, dataset: Dataset, run: Path, index: int) -> tuple[list[Picture], set[int]]:
    """Image, truth, prediction and error, small, with white between them; and the ids that are seen."""
    rgb, truth, found = clip.load_image(index), clip.load_label(index), read_worst(run, clip.name, index)
    if truth is None or truth.shape != found.shape:
        raise DataError(f"{clip.frames[index].image_path}: its label is not the one that was scored")
    colours = np.full((65536, 3), _VOID, np.uint8)
    colours[: dataset.num_classes] = _colours(dataset)
    grey = (rgb.mean(2, keepdims=True) * 0.6 + 90).astype(np.uint8).repeat(3, 2)
    grey[truth == clip.ignore] = _VOID
    grey[(found != truth) & (truth != clip.ignore)] = _WRONG
    width = _PANEL
    size = (width, max(1, round(rgb.shape[0] * width / rgb.shape[1])))
    panels: list[Picture] = []
    for picture, way in (
        (rgb, Image.Resampling.BOX),
        (colours[truth], Image.Resampling.NEAREST),
        (colours[found], Image.Resampling.NEAREST),
        (grey, Image.Resampling.BOX),
    ):
        small = np.asarray(Image.fromarray(picture).resize(size, way))
        panels.append(np.pad(small, ((0, 0), (0, 4), (0, 0)), constant_values=255))
    return panels, set(np.unique(truth).tolist()) | set(np.unique(found).tolist())


_STYLE = """
body{margin:0;background:#f4f5f7;color:#1b1f24;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px}
h1{font-size:24px;line-height:1.3;margin:0 0 16px}h2{font-size:19px;margin:0 0 8px}
h3{font-size:15px;margin:18px 0 0}h3 span{font-weight:400;color:#59616b;margin-left:8px}
section{background:#fff;border:1px solid #dfe2e6;border-radius:8px;padding:20px 24px;margin:0 0 20px}
svg{width:100%;height:auto;display:block;font-family:inherit}
dl{display:flex;flex-wrap:wrap;gap:12px 32px;margin:0}dt{color:#59616b;font-size:14px}
dd{margin:0;font-size:24px;font-weight:600}
small{display:block;font-size:13px;font-weight:400;color:#59616b;min-height:1.2em}
p{margin:6px 0 10px;color:#40474f}
figure{margin:18px 0 0}figcaption{font-weight:600;font-size:15px}
figure img{width:100%;display:block}
.heads{display:grid;grid-template-columns:repeat(4,1fr);font-size:13px;color:#59616b}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:0;font-size:14px}
.legend i{display:inline-block;width:13px;height:13px;margin-right:6px;border:1px solid #0003;vertical-align:-1px}
"""


def _page(title: str, sections: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{''.join(sections)}</main></body></html>\n"
    )
