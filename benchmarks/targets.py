"""The table of speed: `mpvss bench` for each model of the table, and its figures beside the targets.

    python benchmarks/targets.py --out results [--data camvid:DIR --split clip]

Each row is a ratio of one run in which both sides take turns. Writes OUT/targets.md and OUT/targets.json; the runs are
in OUT/NAME/BENCH.json. It takes about 20 minutes on two idle cores.
"""

import argparse
import json
import subprocess
import sys
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
    parser.add_argument("--only", choices=[name for name, *_ in RUNS])
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
    lines = ["| figure | measured | target | mIoU, ours / compared |", "|---|---|---|---|"]
    for row in rows:
        value = "not measured" if row["value"] is None else f"{row['value']:.2f}"
        lines.append(f"| {row['figure']} | {value} | {row['target']} | {row['miou']} |")
    lines += ["", ", ".join(f"{key} {value}" for key, value in machine.items())]
    (arguments.out / "targets.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "targets.json").write_text(json.dumps({"rows": rows, "machine": machine}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
