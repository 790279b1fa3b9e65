"""The charts of reports and benchmarks, drawn by matplotlib: SVG for a page, PNG beside it."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpvss._extras import has, require
from mpvss.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart, dark enough on white.
_RUN, _BASE, _KEY = "#0b5cad", "#8a8f98", "#c2410c"
_SOFT, _GRID = "#59616b", "#e3e6ea"
_PARTS = {"network": "#4477aa", "propagate": "#ccbb44", "decode": "#ee6677"}
_INCHES = 11.4  # wide, as the page is
_DPI = 100
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mpvss",  # equal charts are equal text
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}


def installed() -> bool:
    """Whether charts can be drawn."""
    return has("matplotlib")


def require_matplotlib() -> None:
    """Refuse to begin what would end without its charts.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require("eval", "charts need", ConfigError)


def _figure(height: float, title: str, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure, its height in inches, and its axes from top to bottom."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, height), dpi=_DPI, layout="constrained")
    figure.set_label(title)
    all_axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in all_axes:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelcolor=_SOFT)
        axes.set_axisbelow(True)
    return figure, all_axes


def svg(figure: "Figure") -> str:
    """Return a chart as an element of a page; it shrinks with the page, and equal charts are equal text."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context(_SETTINGS):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    # Several charts share a page: ids that count groups would not be unique there.
    text = re.sub(r'<metadata>.*?</metadata>\s*| id="[\w.]+_\d+"', "", text[text.index("<svg") :], flags=re.DOTALL)
    title = html.escape(str(figure.get_label()))
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def save(figure: "Figure", path: Path) -> None:
    """Write a chart as PNG at twice its size.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        figure.savefig(path, format="png", dpi=2 * _DPI, metadata={"Software": None})


def class_bars(iou: Mapping[str, float | None], baseline: Mapping[str, float | None] | None) -> "Figure":
    """Draw the IoU of each class that has true pixels, with that of a baseline below."""
    names = [name for name, value in iou.items() if value is not None]
    row = 0.24 if baseline is None else 0.34
    figure, (axes,) = _figure(0.9 + row * max(len(names), 1), "IoU of each class")
    values = [iou[name] or 0.0 for name in names]
    rows = range(len(names))
    axes.barh([y - (0.15 if baseline else 0.0) for y in rows], values, 0.5, color=_RUN, label="this run")
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        former = None if baseline is None else baseline.get(name)
        change = "" if former is None else f" ({value - former:+.3f})"
        axes.text(value + 0.01, y - (0.15 if baseline else 0.0), f"{value:.3f}{change}", va="center")
    if baseline is not None:
        former_values = [baseline.get(name) or 0.0 for name in names]
        axes.barh([y + 0.28 for y in rows], former_values, 0.25, color=_BASE, label="baseline")
    axes.set(xlim=(0, 1.12), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], xlabel="IoU", ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(list(rows), [name[:28] for name in names])
    axes.grid(axis="x", color=_GRID)
    _legend(axes)
    return figure


def distance_lines(values: Sequence[float | None], baseline: Sequence[float | None] | None) -> "Figure":
    """Draw the mIoU by distance to the key frame."""
    figure, (axes,) = _figure(3.2, "mIoU by distance to the key frame")
    _series(axes, baseline, _BASE, "baseline", marker="o", markersize=3)
    _series(axes, values, _RUN, "this run", marker="o", markersize=4)
    if len(values) <= 20:
        for distance, value in enumerate(values):
            if value is not None:
                axes.annotate(f"{value:.3f}", (distance, value), (0, 7), textcoords="offset points", ha="center")
    axes.set(xlabel="frames from the key frame", ylabel="mIoU")
    _scale(axes, [*values, *(baseline or ())], max(len(values), len(baseline or ())))
    return figure


def time_line(
    name: str,
    scores: Sequence[float | None],
    keys: Sequence[bool | None],
    baseline: Sequence[float | None] | None,
    measure: str,
) -> "Figure":
    """Draw the score of every frame of one video, its key frames marked."""
    figure, (axes,) = _figure(1.7, f"{measure} of each frame of {name}")
    _series(axes, baseline, _BASE, "baseline", linewidth=1.2)
    _series(axes, scores, _RUN, "this run", linewidth=1.6)
    marked = [(i, score) for i, (key, score) in enumerate(zip(keys, scores, strict=True)) if key and score is not None]
    if marked:
        axes.plot(
            *zip(*marked, strict=True),
            linestyle="none",
            marker="o",
            markersize=3.5,
            color=_KEY,
            label="key frame",
            clip_on=False,
        )
    axes.set(xlabel="frame", ylabel=measure)
    _scale(axes, [*scores, *(baseline or ())], len(scores))
    return figure


def _series(axes: "Axes", values: Sequence[float | None] | None, colour: str, label: str, **style: object) -> None:
    """Draw a line with gaps where there is no value; a value between two gaps is a dot."""
    if not values:
        return
    numbers = [math.nan if value is None else value for value in values]
    axes.plot(range(len(numbers)), numbers, color=colour, label=label, clip_on=False, **style)  # type: ignore[arg-type]
    padded = [math.nan, *numbers, math.nan]
    alone = [i for i, value in enumerate(numbers) if math.isnan(padded[i]) and math.isnan(padded[i + 2]) and value >= 0]
    if alone:  # a line without points would widen the margins
        axes.plot(alone, [numbers[index] for index in alone], linestyle="none", marker=".", color=colour, clip_on=False)


def _scale(axes: "Axes", values: Sequence[float | None], length: int) -> None:
    """Set a vertical scale from a round number below all values to 1, and whole numbers along the other one."""
    from matplotlib.ticker import MaxNLocator

    known = [value for value in values if value is not None]
    low = min(0.9, max(0.0, math.floor((min(known, default=0.0) - 0.02) * 10) / 10))
    axes.set(ylim=(low, 1.0), xlim=(-0.5, max(length, 1) - 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True))
    axes.grid(axis="y", color=_GRID)
    _legend(axes)


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1.02), ncols=3, frameon=False, borderaxespad=0, handlelength=1.2
        )


def seconds_bars(parts: Mapping[str, Mapping[str, float]], runs: Mapping[str, float]) -> "Figure":
    """Draw the seconds of a frame: above of segmentation by part (network, propagate, decode), below of whole runs."""
    figure, (above, below) = _figure(4.5, "milliseconds a frame", 2)
    left = np.zeros(len(parts))
    for part, colour in _PARTS.items():
        widths = [1000 * seconds.get(part, 0.0) for seconds in parts.values()]
        above.barh(list(parts), widths, left=left, color=colour, label=part)
        left += widths
    below.barh(list(runs), [1000 * seconds for seconds in runs.values()], color=_RUN)
    for axes, title in ((above, "segmentation"), (below, "whole run, from file to files")):
        axes.set_title(title, loc="left")
        axes.invert_yaxis()
        axes.grid(axis="x", color=_GRID)
    below.set_xlabel("milliseconds a frame")
    _legend(above)
    return figure


def bar_panels(title: str, names: Sequence[str], panels: Mapping[str, Sequence[float]]) -> "Figure":
    """Draw panels of bars side by side, one bar a name, each with its value; a panel's key is its axis's name."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, 1.2 + 0.42 * len(names)), dpi=_DPI, layout="constrained")
    figure.set_label(title)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for number, (label, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelcolor=_SOFT)
        axes.set_axisbelow(True)
        axes.barh(list(names), values, 0.62, color=[_BASE] + [_RUN] * (len(names) - 1))
        for y, value in enumerate(values):
            axes.annotate(f"{value:.3g}", (value, y), (4, 0), textcoords="offset points", va="center")
        axes.set(xlabel=label, xlim=(0, 1.18 * max([*values, 1e-9])), ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="x", color=_GRID)
        if number:
            axes.set_yticklabels([])
    return figure
