"""Seconds of one frame between key frames, by part, for one of the paper's models, with random weights.

All queries are active, which is the dearest case. Medians over several frames, after one to warm up.
"""

import argparse
import json
import os
import statistics
import time

import torch

from mpvss.decode import decode
from mpvss.models import build
from mpvss.motion.encoder import prepare_image
from mpvss.motion.warp import resize_flow, warp
from mpvss.state import View
from mpvss.types import Geometry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="swin-t")
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--frames", type=int, default=5)
    arguments = parser.parse_args()
    height, width, padded = 480, 853, (480, 864)
    grid = (padded[0] // 4, padded[1] // 4)
    model = build(arguments.arch, arguments.classes)
    queries = model.motion.config.num_queries
    generator = torch.Generator().manual_seed(0)
    current, key = (torch.rand(1, 3, height, width, generator=generator) * 255 for _ in range(2))
    embeddings = torch.randn(1, queries, model.motion.config.query_width, generator=generator)
    masks = torch.randn(queries, *grid, generator=generator) * 5
    classes = torch.randn(queries, arguments.classes + 1, generator=generator)
    geometry = Geometry((height, width), (height, width), padded)
    seconds = {"encoder": [], "decoder": [], "warp": [], "decode": []}
    with torch.inference_mode():
        for _ in range(arguments.frames + 1):
            pair = [prepare_image(picture, model.motion.config.downscale) for picture in (current, key)]
            began = time.perf_counter()
            model.motion.encoder(*pair)
            encoder = time.perf_counter() - began
            began = time.perf_counter()
            flow = model.motion(current, key, embeddings)
            motion = time.perf_counter() - began
            began = time.perf_counter()
            warped = warp(masks[:, None], resize_flow(flow[0], grid))[:, 0]
            moved = time.perf_counter() - began
            began = time.perf_counter()
            decode([View(classes, warped)], geometry)
            decoded = time.perf_counter() - began
            for name, value in zip(seconds, (encoder, motion - encoder, moved, decoded), strict=True):
                seconds[name].append(value)
    medians = {name: round(statistics.median(values[1:]), 4) for name, values in seconds.items()}
    medians["total"] = round(sum(medians.values()), 4)
    print(json.dumps({"arch": arguments.arch, "size": "480x853", "cores": os.cpu_count(), "seconds": medians}))


if __name__ == "__main__":
    main()
