"""Accuracy against measured seconds: hold, DIS at several presets, learned flow, and the segmentor on every frame.

    python benchmarks/accuracy_time.py camvid:DIR --out docs/figures

Writes accuracy_time.json and accuracy_time.png: mIoU, VC8 and segmentation seconds a frame (decoding included, reading
not), all of them in one run on one machine. The default propagator is a point of this curve. ``--clock cpu`` counts CPU
seconds over all threads, which other programs on the machine disturb less.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import torch

from mpvss.datasets import Clip, open_dataset
from mpvss.metrics import ConfusionMatrix, VideoConsistency
from mpvss.motion.dis import Dis, Hold
from mpvss.segmenter import VideoSegmenter
from mpvss.types import Frame

# name, propagator, motion, direction, intervals
RUNS: list[tuple[str, Any, str, str, tuple[int, ...]]] = [
    ("per frame", None, "chain", "forward", (1,)),
    ("hold, forward", Hold(), "chain", "forward", (5, 10)),
    ("dis ultrafast, chain, both", Dis("ultrafast"), "chain", "both", (5, 10, 20)),
    ("dis fast, chain, both", Dis("fast"), "chain", "both", (5, 10, 20)),
    ("dis lean, chain, both", Dis(), "chain", "both", (5, 10, 20)),
    ("dis medium, chain, both", Dis("medium"), "chain", "both", (5, 10, 20)),
    ("dis fine, chain, both", Dis("fine"), "chain", "both", (5, 10, 20)),
    ("dis lean, chain, forward", Dis(), "chain", "forward", (2, 5, 10)),
    ("dis lean, direct, forward", Dis(), "direct", "forward", (2, 5, 10)),
    ("flow, chain, both", "flow", "chain", "both", (10,)),
    ("query, chain, both", "query", "chain", "both", (10,)),
    ("query, direct, forward", "query", "direct", "forward", (5,)),
]


def measure(
    segmenter: VideoSegmenter,
    clips: list[Clip],
    direction: str,
    classes: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Score one setting, and time it: the median over some passes."""
    seconds = []
    for number in range(repeats):
        matrix, consistency = ConfusionMatrix(classes), VideoConsistency(8)
        spent, count = 0.0, 0
        for clip in clips:
            frames = [Frame(i, Fraction(i) / clip.fps, clip.load_image(i)) for i in range(len(clip))]
            session = segmenter.session(direction=direction)
            began = clock()
            results = [result for frame in frames for result in session.push(frame)] + session.finish()
            spent, count = spent + clock() - began, count + len(frames)
            if number == 0:
                for result in results:
                    truth = clip.load_label(result.index)
                    assert truth is not None
                    matrix.update(result.labels, truth)
                    consistency.update(truth, result.labels)
                consistency.end_video()
                scores = {"miou": matrix.miou, "vc8": consistency.value}
        seconds.append(spent / count)
    return scores | {"seconds": sorted(seconds)[len(seconds) // 2]}


def draw(rows: list[dict[str, Any]], path: Path, unit: str) -> None:
    """One line a propagator, one point an interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors[::2] + pyplot.get_cmap("tab20").colors[1::2])
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [row for row in rows if row["name"] == name]
        axes.plot([1000 * p["seconds"] for p in points], [p["miou"] for p in points], marker="o", label=name)
        for point in points:
            position = (1000 * point["seconds"], point["miou"])
            axes.annotate(str(point["interval"]), position, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.FixedLocator([10, 15, 20, 30, 40, 60, 80, 100, 150, 200]))
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel(f"{unit} a frame, segmentation and decoding")
    axes.set_ylabel("mIoU")
    axes.set_title("numbers: frames from one key frame to the next")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data set as KIND:DIR; its first clips with labels on every frame are used")
    parser.add_argument("--split", default="clip")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data, arguments.split)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows: list[dict[str, Any]] = []
    for name, propagator, motion, direction, intervals in RUNS:
        for interval in intervals:
            if isinstance(propagator, str):
                segmenter = VideoSegmenter.from_pretrained(
                    arguments.model, propagator=propagator, motion=motion, interval=interval, cuts=False
                )
            else:
                segmentor = VideoSegmenter.from_pretrained(arguments.model, propagator="none").segmentor
                segmenter = VideoSegmenter(segmentor, propagator, motion=motion, interval=interval, cuts=False)
            figures = measure(segmenter, dataset.clips, direction, dataset.num_classes, arguments.repeats, clock)
            rows.append({"name": name, "interval": interval} | figures)
            print(json.dumps(rows[-1]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": torch.get_num_threads(), "cpu": platform.processor() or platform.machine(),
               "torch": torch.__version__, "opencv": cv2.__version__}  # fmt: skip
    report = {"data": arguments.data.partition(":")[0], "split": arguments.split, "clock": arguments.clock,
              "machine": machine, "rows": rows}  # fmt: skip
    (arguments.out / "accuracy_time.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, arguments.out / "accuracy_time.png", "milliseconds" if arguments.clock == "wall" else "CPU milliseconds")


if __name__ == "__main__":
    main()
