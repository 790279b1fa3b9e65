"""Seconds of one key frame, by part: the library's Mask2Former against our forward pass, interleaved in one run.

Random weights: the work does not depend on them. Medians over several frames, after one of each to warm up.
``--clock cpu`` counts the process's CPU seconds instead, which other processes disturb less; use it with one thread.
"""

import argparse
import json
import statistics
import time

import torch

from mpvss.convert.architectures import ARCHS, build
from mpvss.convert.cost import count_gmac
from mpvss.segmentors import fast_mask2former as fast

PAD = 32
PARTS = ("backbone", "pixel_decoder", "transformer_decoder", "heads")


def sgemm_gflops(now, side=2048):
    """The rate of a large float32 matrix product on this machine, now."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    began = now()
    a @ b
    return 2 * side**3 / (now() - began) / 1e9


def library(model, pixels, now):
    """Run the library's forward pass; return the seconds of each part and of the whole, and the mask logits."""
    modules = {
        "backbone": model.model.pixel_level_module.encoder,
        "pixel_decoder": model.model.pixel_level_module.decoder,
        "transformer_decoder": model.model.transformer_module,
    }
    moments, hooks = {}, []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: moments.update({name: now()})))
        hooks.append(module.register_forward_hook(lambda *_, name=name: moments.update({name: now() - moments[name]})))
    began = now()
    masks = model(pixel_values=pixels).masks_queries_logits
    total = now() - began
    for hook in hooks:
        hook.remove()
    # In the library the transformer decoder makes the masks, so that its heads are the classes only.
    return moments | {"heads": total - sum(moments.values()), "total": total}, masks


def ours(model, pixels, now):
    """The same, through the parts of ``fast_mask2former.predict``."""
    module, began = model.model, now()
    features = fast._backbone(module.pixel_level_module.encoder, pixels)
    backbone = now()
    levels, mask_features = fast._decode_pixels(module.pixel_level_module.decoder, features)
    pixel_decoder = now()
    queries = fast._decode_queries(module.transformer_module, levels, mask_features)
    decoder = now()
    _, masks = fast._heads(model, queries, mask_features)
    end = now()
    moments = (began, backbone, pixel_decoder, decoder, end)
    seconds = {name: b - a for name, a, b in zip(PARTS, moments, moments[1:], strict=False)}
    return seconds | {"total": end - began}, masks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="swin-t", choices=ARCHS)
    parser.add_argument("--size", default="480x853", help="HEIGHTxWIDTH")
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    now = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.manual_seed(0)
    height, width = (int(side) for side in arguments.size.split("x"))
    model = build(arguments.arch, arguments.classes).segmentor.requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)  # as a loaded checkpoint is
    pixels = torch.randn(1, 3, height + -height % PAD, width + -width % PAD)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    runs = {"library": [], "ours": []}
    rates, difference = [], 0.0
    with torch.inference_mode():
        for _ in range(arguments.frames + 1):
            rates.append(sgemm_gflops(now))
            theirs, expected = library(model, pixels, now)
            mine, masks = ours(model, pixels, now)
            runs["library"].append(theirs)
            runs["ours"].append(mine)
            difference = max(difference, float((masks - expected).abs().max()))
        gmac = {
            "library": count_gmac(lambda: library(model, pixels, now)),
            "ours": count_gmac(lambda: fast.predict(model, pixels)),
        }
    seconds = {
        who: {part: statistics.median(run[part] for run in rounds[1:]) for part in (*PARTS, "total")}
        for who, rounds in runs.items()
    }
    ratios = [a["total"] / b["total"] for a, b in zip(runs["library"], runs["ours"], strict=True)][1:]
    rate = statistics.median(rates[1:])
    result = {
        "arch": arguments.arch,
        "size": arguments.size,
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "seconds": {who: {part: round(value, 4) for part, value in parts.items()} for who, parts in seconds.items()},
        "gmac": {who: round(value, 2) for who, value in gmac.items()},
        "sgemm_gflops": round(rate, 1),
        "share_of_sgemm": {who: round(2 * gmac[who] / seconds[who]["total"] / rate, 3) for who in gmac},
        "ratios": {
            "library_key_over_ours_key": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        },
        "largest_difference_of_mask_logits": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
