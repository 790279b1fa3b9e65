"""What a run looks like: one HTML page, which needs no network, fonts or scripts, and its charts as PNG files."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mpvss._files import atomic, output_errors
from mpvss.datasets import Clip, Dataset, open_dataset
from mpvss.errors import DataError
from mpvss.evaluation import charts
from mpvss.evaluation.compare import compare
from mpvss.evaluation.results import FIGURES, WINDOW, CompareResult, EvalResult
from mpvss.evaluation.run_directory import RunDirectory
from mpvss.evaluation.scores import Line, read_worst, score_of

_WORST_SHOWN = 6
_TIME_LINES_SHOWN = 24
_PANEL_WIDTH = 300

Image8 = UInt8[np.ndarray, "H W 3"]


class _WorstFrame(NamedTuple):
    score: float
    clip: str
    frame: int


def write_report(run: str | Path, out: str | Path, *, baseline: str | Path | None = None) -> Path:
    """Write a finished run as ``out/index.html`` and PNG files beside it.

    Args:
        run: Directory of the run.
        out: Directory for the report; made if missing.
        baseline: Directory of another run on the same videos to compare with.

    Returns:
        The page.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: A run is not finished, the two do not fit, or the data set has moved.
        OutputError: The report cannot be written.
    """
    charts.require_matplotlib()
    out, directory = Path(out), RunDirectory(Path(run))
    result = directory.result()
    dataset = open_dataset(result.options["data"], result.options["split"])
    comparison = None if baseline is None else compare(baseline, run)
    measure = "J" if dataset.protocol == "davis" else "mIoU"
    lines, worst = _lines_to_show(directory)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        sections = [_summary(result, comparison), _classes(result, comparison, out)]
        if result.miou_by_distance:
            sections.append(_distances(result, comparison, out))
        if dataset.protocol != "cityscapes":
            others = {} if baseline is None else _scores_by_clip(Path(baseline))
            sections.append(_time_lines(lines, others, measure, result.videos, out))
        if worst:
            sections.append(_worst_frames(dataset, directory.path, worst, measure, out))
        page = out / "index.html"
        with atomic(page) as part:
            part.write_text(_page(f"{dataset.name}: {_described(result.options)}", sections), encoding="utf-8")
    return page


def _lines_to_show(directory: RunDirectory) -> tuple[list[Line], list[_WorstFrame]]:
    """The videos with the lowest scores, in their order, and the worst frames of all."""
    order = {line["clip"]: (score_of(line), number) for number, line in enumerate(directory.lines())}
    lowest = set(sorted(order, key=lambda clip: (order[clip][0] is None, order[clip]))[:_TIME_LINES_SHOWN])
    lines: list[Line] = []
    worst: list[_WorstFrame] = []
    for line in directory.lines():
        if line["clip"] in lowest:
            lines.append({**line, "parts": [], "worst": []})
        frames = (_WorstFrame(frame["score"], line["clip"], frame["index"]) for frame in line["worst"])
        worst = sorted([*worst, *frames])[:_WORST_SHOWN]
    return lines, worst


# Sections


def _summary(result: EvalResult, comparison: CompareResult | None) -> str:
    cards = []
    former = {} if comparison is None else comparison.a.figures()
    for name, value in result.figures().items():
        note = ""
        if comparison is not None and name in former:
            note = f"{value - former[name]:+.4f}"
            if name in comparison.difference:
                note += f"<br>{html.escape(comparison.difference[name].interval)}"
        cards.append(f"<div><dt>{FIGURES[name]}</dt><dd>{value:.4f}<small>{note}</small></dd></div>")
    text = [f"{result.videos} {'video' if result.videos == 1 else 'videos'}, {result.frames} frames"]
    if result.key_frames is not None:
        text[0] += f", {result.key_frames} of them key frames"
    if comparison is not None:
        units = "videos" if comparison.unit == "video" else f"windows of {WINDOW} frames"
        text.append(
            f"Small figures: the difference to the baseline ({html.escape(_described(comparison.a.options))}) "
            f"and its 95 % interval, from a paired bootstrap over {comparison.units} {units}"
        )
        text += comparison.notes()
    return f"<section><dl>{''.join(cards)}</dl><p>{'. '.join(text)}.</p></section>"


def _classes(result: EvalResult, comparison: CompareResult | None, out: Path) -> str:
    figure = charts.class_bars(result.iou, None if comparison is None else comparison.a.iou)
    charts.save(figure, out / "classes.png")
    absent = [name for name, value in result.iou.items() if value is None]
    note = f"Without true pixels here: {', '.join(absent)}." if absent else ""
    return _section("Classes", charts.svg(figure), note)


def _distances(result: EvalResult, comparison: CompareResult | None, out: Path) -> str:
    figure = charts.distance_lines(
        result.miou_by_distance or (), None if comparison is None else comparison.a.miou_by_distance
    )
    charts.save(figure, out / "distance.png")
    counted = "Counted from the key frame before, though the one after is used as well."
    return _section(
        "Distance to the key frame", charts.svg(figure), counted if result.options["direction"] == "both" else ""
    )


def _scores_by_clip(run: Path) -> dict[str, list[float | None]]:
    return {line["clip"]: line["timeline"]["score"] for line in RunDirectory(run).lines()}


def _time_lines(
    lines: Sequence[Line],
    baseline: Mapping[str, Sequence[float | None]],
    measure: str,
    videos: int,
    out: Path,
) -> str:
    parts = []
    for number, line in enumerate(lines, 1):
        scores, other = line["timeline"]["score"], baseline.get(line["clip"], ())
        figure = charts.time_line(
            line["clip"], scores, line["timeline"]["key"], other if len(other) == len(scores) else None, measure
        )
        charts.save(figure, out / f"time-{number:02}.png")
        score = score_of(line)
        value = "" if score is None else f" <span>{measure} {score:.3f}</span>"
        parts.append(f"<h3>{html.escape(line['clip'])}{value}</h3>{charts.svg(figure)}")
    note = f"The {len(lines)} videos with the lowest score of {videos}." if videos > len(lines) else ""
    return _section("Time lines", "".join(parts), note)


def _worst_frames(dataset: Dataset, run: Path, worst: Sequence[_WorstFrame], measure: str, out: Path) -> str:
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
    return _section("Worst frames", _legend(dataset, present) + "".join(figures))


def _legend(dataset: Dataset, present: set[int]) -> str:
    colours = [
        (tuple(colour), html.escape(dataset.class_names[id_]))
        for id_, colour in enumerate(_colours(dataset).tolist())
        if id_ in present
    ]
    swatches = (
        f'<li><i style="background:rgb{colour}"></i>{name}</li>'
        for colour, name in [*colours, (_VOID, "no class"), (_WRONG, "wrong")]
    )
    return f'<ul class="legend">{"".join(swatches)}</ul>'


def _section(title: str, content: str, note: str = "") -> str:
    paragraph = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{paragraph}{content}</section>"


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


# Images


_VOID, _WRONG = (40, 40, 44), (230, 60, 40)


def _colours(dataset: Dataset) -> UInt8[np.ndarray, "K 3"]:
    """The data set's palette; an object alone stands out better from grey than from another bright colour."""
    return np.array([(96, 100, 108), (250, 190, 60)], np.uint8) if dataset.protocol == "davis" else dataset.palette


def _panels(clip: Clip, dataset: Dataset, run: Path, index: int) -> tuple[list[Image8], set[int]]:
    """Image, truth, prediction and error, small, with white between them; and the ids that are seen."""
    rgb, truth, prediction = clip.load_image(index), clip.load_label(index), read_worst(run, clip.name, index)
    if truth is None or truth.shape != prediction.shape:
        raise DataError(f"{clip.frames[index].image_path}: its label is not the one that was scored")
    colours = np.full((65536, 3), _VOID, np.uint8)
    colours[: dataset.num_classes] = _colours(dataset)
    grey = (rgb.mean(2, keepdims=True) * 0.6 + 90).astype(np.uint8).repeat(3, 2)
    grey[truth == clip.ignore] = _VOID
    grey[(prediction != truth) & (truth != clip.ignore)] = _WRONG
    size = (_PANEL_WIDTH, max(1, round(rgb.shape[0] * _PANEL_WIDTH / rgb.shape[1])))
    panels: list[Image8] = []
    for image, resampling in (
        (rgb, Image.Resampling.BOX),
        (colours[truth], Image.Resampling.NEAREST),
        (colours[prediction], Image.Resampling.NEAREST),
        (grey, Image.Resampling.BOX),
    ):
        small = np.asarray(Image.fromarray(image).resize(size, resampling))
        panels.append(np.pad(small, ((0, 0), (0, 4), (0, 0)), constant_values=255))
    return panels, set(np.unique(truth).tolist()) | set(np.unique(prediction).tolist())


_STYLE = """
body{margin:0;background:#f4f5f7;color:#1b1f24;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px}
h1{font-size:24px;line-height:1.3;margin:0 0 16px}h2{font-size:19px;margin:0 0 8px}
h3{font-size:15px;margin:18px 0 0}h3 span{font-weight:400;color:#59616b;margin-left:8px}
section{background:#fff;border:1px solid #dfe2e6;border-radius:8px;padding:20px 24px;margin:0 0 20px}
svg{width:100%;height:auto;display:block}
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
