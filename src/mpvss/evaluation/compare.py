"""How two runs differ, with intervals from a paired bootstrap."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from mpvss._extras import command, has
from mpvss.errors import DataError
from mpvss.evaluation.results import WINDOW, CompareResult, Difference
from mpvss.evaluation.run_directory import RunDirectory
from mpvss.metrics import ConfusionMatrix, MiouByDistance, RegionSimilarity, VideoConsistency
from mpvss.progress import progress

LEAST_UNITS = 10
"""Units (videos, or windows of one video) that an interval needs; docs/evaluation.md has the coverage measured."""

_COMPARED = ("miou", "j", "vc8", "vc16", "correct_vc8", "correct_vc16")

_Statistic = Callable[..., Float64[np.ndarray, "..."]]


def compare(run_a: str | Path, run_b: str | Path, *, samples: int = 2000, seed: int = 0) -> CompareResult:
    """Put two finished runs on the same videos side by side.

    Differences are b - a, with a 95 % interval from a paired bootstrap: videos are drawn with replacement, the same for
    both runs, and every figure is computed from the pooled pixels of a draw. Where there is one video, windows of
    10 frames are drawn instead; frames after the last whole window count in ``value`` and not in the interval. The
    interval is bias-corrected and accelerated (BCa) where that is defined, otherwise plain percentiles. There is none
    with fewer than 10 units that have the figure, or without scipy.

    The interval says how much the choice of videos matters, no more; neighbouring windows resemble each other, so with
    one video it is too narrow rather than too wide.

    Args:
        run_a: Directory of a run, as ``evaluate`` writes it.
        run_b: Another.
        samples: Number of draws, at least 1.
        seed: Of the random draws.

    Raises:
        DataError: A run is not there or not finished, or the two are of other videos or classes.
        ValueError: ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    run_pair = RunDirectory(Path(run_a)), RunDirectory(Path(run_b))
    a, b = (run.result() for run in run_pair)
    frames = _frames_of_videos(*run_pair)
    unit = "window" if len(frames) == 1 else "video"
    units = [_window_units(run) if unit == "window" else _video_units(run) for run in run_pair]
    number = min(len(one.counts) for one in units)
    units_a, units_b = (one.first(number) for one in units)
    difference = {}
    with progress("compare", len(_COMPARED), unit="figures") as advance:
        for name in _COMPARED:
            value_a, value_b = getattr(a, name), getattr(b, name)
            if value_a is not None and value_b is not None:
                known = int((units_a.known(name) & units_b.known(name)).sum())
                statistic = _statistic(name, units_a, units_b)
                interval = _too_few(known, unit) or _bootstrap(statistic, number, samples, seed)
                difference[name] = Difference(value_b - value_a, *interval)
            advance()
    left_out = max(frames) - number * WINDOW if unit == "window" else 0
    return CompareResult(a, b, difference, unit, number, left_out, samples)


def _frames_of_videos(run_a: RunDirectory, run_b: RunDirectory) -> list[int]:
    """The number of frames of each video, after checking that both runs scored the same ones."""
    header_a, header_b = run_a.header(), run_b.header()
    pair = f"{run_a.path} and {run_b.path}"
    if header_a["classes"] != header_b["classes"] or header_a["protocol"] != header_b["protocol"]:
        raise DataError(f"{pair} are of different data sets; compare runs on the same videos")
    frames_a, frames_b = ({line["clip"]: line["frames"] for line in run.lines()} for run in (run_a, run_b))
    same = list(frames_a) == list(frames_b)
    if not same or (header_a["protocol"] != "cityscapes" and frames_a != frames_b):
        raise DataError(f"{pair} are of different videos; compare runs on the same ones")
    return list(frames_a.values())


# The bootstrap

_Interval = tuple[float | None, float | None, str | None, str | None]  # low, high, method, why


def _too_few(known: int, unit: str) -> _Interval | None:
    if known >= LEAST_UNITS:
        return None
    return None, None, None, f"{known} {unit}{'' if known == 1 else 's'}, needs {LEAST_UNITS}"


def _bootstrap(statistic: _Statistic, number: int, samples: int, seed: int) -> _Interval:
    """The 95 % interval of a statistic of ``number`` units."""
    if not has("scipy"):
        return None, None, None, f"intervals need scipy: {command('eval')}"
    from scipy.stats import bootstrap

    with warnings.catch_warnings():  # scipy's of what BCa cannot do, which is looked at below
        warnings.simplefilter("ignore")
        result = bootstrap(
            (np.arange(number),),
            statistic,
            n_resamples=samples,
            vectorized=True,
            batch=256,
            random_state=np.random.default_rng(seed),
        )
    low, high = (float(value) for value in result.confidence_interval)
    if math.isfinite(low) and math.isfinite(high):
        return low, high, "BCa", None
    values = result.bootstrap_distribution[~np.isnan(result.bootstrap_distribution)]
    if not values.size:
        return None, None, None, "no draw has a value"
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high, "percentile", "BCa is undefined here"


def _statistic(name: str, a: "_Units", b: "_Units") -> _Statistic:
    """The difference of a figure between the same units of two runs, as a function of which units are drawn."""

    def statistic(indices: np.ndarray, **_: object) -> np.ndarray:
        rows = indices.reshape(-1, indices.shape[-1])
        draws = np.zeros((len(rows), len(a.counts)))
        np.add.at(draws, (np.arange(len(rows))[:, None], rows), 1)
        differences: np.ndarray = b.values(name, draws) - a.values(name, draws)
        return differences.reshape(indices.shape[:-1])

    return statistic


# What is drawn


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
        """Which units have a value of a figure."""
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


def _video_units(run: RunDirectory) -> _Units:
    counts, sums = [], []
    cityscapes = run.header()["protocol"] == "cityscapes"
    for line in run.lines():
        metrics = line["metrics"]
        matrices = [ConfusionMatrix.from_state(metrics["confusion"])]
        if cityscapes and "by_distance" in metrics:
            by_distance = MiouByDistance.from_state(metrics["by_distance"])
            matrices = [by_distance.at(distance) for distance in range(by_distance.interval)]
        counts.append(np.stack([_pixels(matrix) for matrix in matrices]))
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
    # The last part is what remains of the video, down to a single frame: units are of one length.
    parts: list[Any] = line["parts"][: line["frames"] // WINDOW]
    counts = [_pixels(ConfusionMatrix.from_state(part["confusion"]))[None] for part in parts]
    return _units(counts, [{name: tuple(part[name]) for name in _COMPARED if name in part} for part in parts])


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
