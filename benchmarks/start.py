"""How long a command takes from its start to its files, in wall and CPU seconds: the median of several runs.

python benchmarks/start.py [--runs 5] [--model DIR]

``--help``; ``segment`` of five frames of 360x480 with ``compact``; and, where torch is installed, with a checkpoint of
transformers: a Mask2Former with few and random weights, or ``--model``. A run before them, which is not counted, has
the modules compiled and the files in memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from mpvss.evaluation.machine import machine, synthetic_video

SIZE, FRAMES = (360, 480), 5
TARGETS = {"help": (0.25, None), "compact": (2.5, 2.0), "checkpoint": (5.0, None)}  # wall and CPU seconds


def measured(command: list[str], runs: int) -> dict[str, float]:
    """Run a command and return the medians of its seconds."""
    wall, cpu = [], []
    for _ in range(runs + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        wall.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall": round(statistics.median(wall[1:]), 3), "cpu": round(statistics.median(cpu[1:]), 3)}


def make_checkpoint(folder: Path) -> None:
    """Save a small Mask2Former of random weights, as the library writes one."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = SwinConfig(embed_dim=24, depths=[1] * 4, num_heads=[1, 2, 4, 8], image_size=224, out_features=stages)
    widths = dict.fromkeys(
        ("hidden_dim", "feature_size", "mask_feature_size", "encoder_feedforward_dim", "dim_feedforward"), 32
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, num_queries=8, num_labels=3, encoder_layers=2, decoder_layers=3,
        num_attention_heads=4, **widths,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    rule = {"size": {"shortest_edge": 128, "longest_edge": 256}, "do_normalize": True, "do_resize": True}
    rule |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(rule))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", help="a checkpoint of transformers, instead of the small one")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as an installation is: compiled
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_video(folder / "clip.mp4", SIZE, FRAMES)
        mpvss = [sys.executable, "-m", "mpvss"]
        segment = [*mpvss, "segment", str(folder / "clip.mp4"), "-o", str(folder / "out"), "--overwrite"]
        commands = {"help": [*mpvss, "--help"], "compact": segment}
        if find_spec("torch") is not None:
            if arguments.model is None:
                make_checkpoint(folder / "checkpoint")
            commands["checkpoint"] = [*segment, "--model", arguments.model or str(folder / "checkpoint")]
        results = {what: measured(command, arguments.runs) for what, command in commands.items()}
    print(f"{'':12}{'wall s':>8}{'CPU s':>8}  targets")
    for what, seconds in results.items():
        targets = " and ".join("-" if target is None else f"{target:g}" for target in TARGETS[what])
        print(f"{what:12}{seconds['wall']:8.2f}{seconds['cpu']:8.2f}  {targets}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(json.dumps({"seconds": results, "load": round(load, 1), **machine()}))


if __name__ == "__main__":
    main()
