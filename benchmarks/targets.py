"""The table of speed: `mpvss bench` for each model of the table, and its figures beside the targets.

    python benchmarks/targets.py --out results [--data camvid:DIR --split clip]

Each row is a ratio of one run in which both sides take turns. Writes OUT/targets.md and OUT/targets.json; the runs are
in OUT/NAME/BENCH.json. It takes about 20 minutes on two idle cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

OWN, FLOOR = "own per frame / propagated", "whole run: ours / decoding and encoding alone"
DIS = ["--propagator", "dis", "--motion", "chain", "--direction", "both", "--interval", "10"]
# Name, arguments of mpvss bench, and its figures that are rows: how each begins and ends, and the target.
RUNS: list[tuple[str, list[str], list[tuple[str, str, float]]]] = [
    (
        "compact",
        [],
        [
            ("library's compact per frame / ours", "480x360", 13),
            ("whole run: SegFormer-B0 per frame", "480x360", 9),
            (OWN, "480x360", 5.5),
            (OWN, "960x540", 5.5),
            (OWN, "1920x1080", 5.5),
            (FLOOR, "1920x1080", 2.5),
        ],
    ),
    (
        "swin-t-query",
        ["--arch", "swin-t", "--runs", "0"],
        [("library's swin-t per frame / ours", "", 7.5), ("library's swin-t per frame / our key frame", "", 2.3)],
    ),
    ("swin-t-dis", ["--arch", "swin-t", "--runs", "0", *DIS], [("library's swin-t per frame / ours", "", 18)]),
]


def run(name: str, arguments: list[str], out: Path) -> dict[str, Any]:
    """Run the command; return what it writes."""
    command = [sys.executable, "-m", "mpvss", "bench", *arguments, "--out", str(out / name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    values: dict[str, Any] = json.loads((out / name / "BENCH.json").read_text())
    return values


def codec(out: Path, data: str | None, split: str | None) -> list[dict[str, Any]]:
    """Own per frame over propagated at k=5 forward, by dis and by the motion vectors of H.264 without B frames.

    On the first clip of a data set, which is encoded for it, or on a video that is made. All take turns on each frame.
    """
    from mpvss.datasets import open_dataset
    from mpvss.evaluation.machine import synthetic_video
    from mpvss.metrics import ConfusionMatrix
    from mpvss.motion.propagators import make_propagator
    from mpvss.outputs import Mp4Writer
    from mpvss.segmenter import VideoSegmenter
    from mpvss.video import read

    dataset = None if data is None else open_dataset(data, split)
    clip = None if dataset is None else dataset.clips[0]
    path = out / "no-b-frames.mp4"
    out.mkdir(parents=True, exist_ok=True)
    if clip is None:
        synthetic_video(path, (360, 480), 101)
    else:
        with Mp4Writer(path, clip.load_image(0).shape[:2], 1 / clip.fps) as writer:  # which writes no B frames
            for index in range(len(clip)):
                writer.append(clip.load_image(index), Fraction(index) / clip.fps)
    segmentor = VideoSegmenter.from_pretrained("compact", device="cpu").segmentor
    sides = {"per frame": None, "dis": make_propagator("dis"), "codec": make_propagator("codec")}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    matrices = {name: ConfusionMatrix(0 if dataset is None else dataset.num_classes) for name in sides if dataset}
    for number in range(4):  # the first pass is to warm up
        sessions = {
            name: VideoSegmenter(segmentor, flow, interval=5, cuts=False).session() for name, flow in sides.items()
        }
        spent = dict.fromkeys(sides, 0.0)
        with read(path, vectors=True) as reader:
            for frame in reader:
                for name, session in sessions.items():
                    began = time.perf_counter()
                    (result,) = session.push(frame, copy=False)
                    spent[name] += time.perf_counter() - began
                    truth = None if clip is None or number else clip.load_label(result.index)
                    if truth is not None:
                        matrices[name].update(result.labels, truth)
        if number:
            for name, each in spent.items():
                seconds[name].append(each / (frame.index + 1))
    alone, dis, vectors = (statistics.median(each) for each in seconds.values())
    scores = "" if dataset is None else f"{matrices['codec'].miou:.4f} / {matrices['dis'].miou:.4f}"
    print(json.dumps({"seconds a frame": {"per frame": alone, "dis": dis, "codec": vectors}, "miou": scores}))
    return [
        {"figure": f"{OWN}, codec k=5 forward", "value": alone / vectors, "target": None, "miou": scores},
        {"figure": f"{OWN}, dis k=5 forward", "value": alone / dis, "target": None, "miou": ""},
        {"figure": "dis / codec, k=5 forward", "value": dis / vectors, "target": 1.3, "miou": scores},
    ]


def accuracy(result: dict[str, Any], figure: str) -> str:
    """Return the mIoU on the data set, of ours against what it is compared with, where the row is of such a size."""
    scores = result["accuracy"]
    if scores is None or "480x360" not in figure or "SegFormer" in figure:
        return ""
    other = scores["ours_per_frame" if figure.startswith("own") else "library"]["miou"]
    return f"{scores['ours']['miou']:.4f} / {other:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="data set as KIND:DIR, for the accuracy of compact")
    parser.add_argument("--split")
    parser.add_argument("--only", choices=[*(name for name, *_ in RUNS), "codec"])
    parser.add_argument("--bench", default="", help="more arguments of mpvss bench, in quotes")
    arguments = parser.parse_args()
    data = [] if arguments.data is None else ["--data", arguments.data]
    data += [] if arguments.split is None else ["--split", arguments.split]
    rows, machine = [], {}
    for name, flags, figures in RUNS:
        if arguments.only not in (None, name):
            continue
        given = flags + (data if name == "compact" else []) + arguments.bench.split()
        result = run(name, given, arguments.out)
        machine = result["machine"]
        for begin, end, target in figures:
            named = [each for each in result["figures"] if each.startswith(begin) and each.endswith(end)]
            figure = named[0] if named else f"{begin}, {end}"
            value = result["figures"].get(figure)
            rows.append({"figure": figure, "value": value, "target": target, "miou": accuracy(result, figure)})
    if arguments.only in (None, "codec"):
        rows += codec(arguments.out, arguments.data, arguments.split)
    lines = ["| figure | measured | target | mIoU, ours / compared |", "|---|---|---|---|"]
    for row in rows:
        value = "not measured" if row["value"] is None else f"{row['value']:.2f}"
        lines.append(f"| {row['figure']} | {value} | {row['target'] or ''} | {row['miou']} |")
    lines += ["", ", ".join(f"{key} {value}" for key, value in machine.items())]
    (arguments.out / "targets.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "targets.json").write_text(json.dumps({"rows": rows, "machine": machine}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
