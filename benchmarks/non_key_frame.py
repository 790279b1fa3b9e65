"""Seconds of one frame between key frames, by part, and as a share of the library's frame, in one run.

Random weights. Of the queries 20 are active and 12 classes present, what trained models show; ``--active 100`` is the
dearest case. Medians over several frames, after one to warm up. ``--library 0`` leaves the library's frame out.
``--clock cpu`` counts the process's CPU seconds, which other processes disturb less; use it with one thread.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise

import numpy as np
import torch

from mpvss.convert.architectures import ARCHS, build
from mpvss.engine.decode import decode
from mpvss.engine.state import WarpedPrediction
from mpvss.motion.arrays import resize_flow, warp_each
from mpvss.segmentors import InputRule

STRIDE = 4


def timed_modules(motion, now):
    """Hooks that add up the seconds inside the motion module's parts."""
    spent, began = {}, {}
    parts = {"encoder": [motion.encoder], "token_layers": [*motion.layers], "pixel_flow": [motion.pixel_flow]}
    for name, modules in parts.items():
        for module in modules:
            module.register_forward_pre_hook(lambda *_, name=name: began.update({name: now()}))
            module.register_forward_hook(
                lambda *_, name=name: spent.update({name: spent.get(name, 0) + now() - began[name]})
            )
    return spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="swin-t", choices=ARCHS)
    parser.add_argument("--size", default="480x853", help="HEIGHTxWIDTH")
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--active", type=int, default=20, help="queries that are propagated")
    parser.add_argument("--present", type=int, default=12, help="classes that the active queries are of")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--library", type=int, default=2, help="how many of the frames the library runs on too")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    now = time.perf_counter if arguments.clock == "wall" else time.process_time
    height, width = (int(side) for side in arguments.size.split("x"))
    geometry = InputRule().fit((height, width))
    grid = (geometry.padded[0] // STRIDE, geometry.padded[1] // STRIDE)
    model = build(arguments.arch, arguments.classes)
    motion = model.motion.requires_grad_(False)
    segmentor = model.segmentor.requires_grad_(False).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    current, key = (torch.rand(1, 3, height, width, generator=generator) * 255 for _ in range(2))
    embeddings = torch.randn(1, motion.config.num_queries, motion.config.query_width, generator=generator)
    active = torch.linspace(0, motion.config.num_queries - 1, arguments.active).long()
    random = np.random.default_rng(0)
    masks = random.standard_normal((arguments.active, *grid), np.float32) * 5
    classes = random.standard_normal((arguments.active, arguments.classes + 1), np.float32)
    # Sure of their classes, as trained queries are, and few classes among them.
    classes[np.arange(arguments.active), np.arange(arguments.active) % arguments.present] += 12
    pixels = torch.randn(1, 3, *geometry.padded, generator=generator).contiguous(memory_format=torch.channels_last)
    spent, frames, library = timed_modules(motion, now), [], []
    with torch.inference_mode():
        for number in range(arguments.frames + 1):
            if number < (arguments.library + 1 if arguments.library else 0):
                began = now()
                segmentor(pixel_values=pixels)
                library.append(now() - began)
            spent.clear()
            moments = [now()]
            flow = motion(current, key, embeddings, active=active)[0]
            moments.append(now())
            warped = warp_each(masks, resize_flow(flow.numpy(), grid))
            moments.append(now())
            decode([WarpedPrediction(classes, warped)], geometry)
            moments.append(now())
            whole, moved, decoded = (b - a for a, b in pairwise(moments))
            rest = whole - sum(spent.values())
            frames.append(dict(spent) | {"maps_filters_fusion": rest, "warp": moved, "decode": decoded})
    seconds = {name: statistics.median(frame[name] for frame in frames[1:]) for name in frames[0]}
    seconds["total"] = statistics.median(sum(frame.values()) for frame in frames[1:])
    result = {
        "arch": arguments.arch,
        "size": arguments.size,
        "active": arguments.active,
        "present": arguments.present,
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    if library:
        frame = statistics.median(library[1:])
        result["seconds"]["library_frame_without_decoding"] = round(frame, 4)
        without = seconds["total"] - seconds["decode"]
        result["ratios"] = {
            "non_key_share_of_library_frame": round(seconds["total"] / frame, 4),
            "the_same_without_decoding": round(without / frame, 4),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
