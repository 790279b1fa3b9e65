"""Key frames in torch and in ONNX Runtime: seconds of CPU time of one thread, taking turns, medians."""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mpvss import VideoSegmenter
from mpvss._threads import use_threads
from mpvss.convert.export import export
from mpvss.segmentors import EMBEDDED
from mpvss.segmentors.onnx import load_key


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--sizes", nargs="+", default=["360x480", "480x640"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    use_threads(1)
    segmentor = VideoSegmenter.from_pretrained(
        arguments.model, propagator="none", device="cpu", backend="torch"
    ).segmentor
    if arguments.model in EMBEDDED:
        exported = load_key(arguments.model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            exported = load_key(export(arguments.model, None, Path(folder) / "exported").out)
    for text in arguments.sizes:
        size = tuple(int(side) for side in text.split("x"))
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        seconds = {"torch": [], "onnx": []}
        for number in range(arguments.rounds + 1):
            for name, run in (("torch", segmentor), ("onnx", exported)):
                began = time.process_time()
                run(image)
                if number:  # the first warms up
                    seconds[name].append(time.process_time() - began)
        medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
        ratio = round(medians["torch"] / medians["onnx"], 2)
        print(json.dumps({"model": arguments.model, "size": text, "cores": os.cpu_count(), **medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
