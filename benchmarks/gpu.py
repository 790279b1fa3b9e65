"""Everything that a run on a GPU should show, with random weights on a video that is made.

    python benchmarks/gpu.py --list                       # packages that are missing, in a second
    python benchmarks/gpu.py --out results                # EoMT-L at 640 and Mask2Former Swin-T at 480x853, on cuda
    python benchmarks/gpu.py --device cpu --quick         # the same steps, tiny, to test this file

For each model and precision: seconds of a key frame by batch size; frames a second of segmentation per frame and at
k = 5, taking turns; memory; whole runs from file to files; labels against the CPU's, of trained weights. OUT/gpu.json
is written after each step, so that a run that is cut short keeps them.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Any

NEEDED = [
    *("torch", "transformers", "safetensors", "huggingface_hub", "scipy", "numpy", "cv2", "av", "onnxruntime"),
    *("PIL", "fsspec", "filelock", "msgspec", "yaml", "rich", "typer", "jaxtyping"),
]
TARGET = 133  # frames a second, end to end: EoMT-L at 640, k = 5, on an H100
INTERVAL = 5
# Which frames are propagated, and how: name, propagator, direction, interval
WAYS = [
    ("per frame", "none", "forward", 1),
    ("hold, forward", "hold", "forward", INTERVAL),  # what flows cost, by their absence
    ("dis, forward", "dis", "forward", INTERVAL),
    ("dis, both", "dis", "both", INTERVAL),
]


OWN_MOTION = ("query, forward", "query", "forward", INTERVAL)


def missing() -> list[str]:
    return [name for name in NEEDED if find_spec(name) is None]


def eomt(device: str, quick: bool) -> Any:
    """An EoMT-L for 133 classes, or a tiny one, with random weights."""
    import torch
    from transformers import EomtConfig, EomtForUniversalSegmentation

    size = {"image_size": 640}
    if quick:
        size = {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
    config = EomtConfig(num_queries=20 if quick else 200, id2label={n: f"class {n}" for n in range(133)}, **size)
    with torch.device(device):
        return EomtForUniversalSegmentation(config)


def make_models(device: str, dtype: Any, quick: bool) -> Iterator[tuple[str, Any, Any, tuple[int, int]]]:
    """Yield the name of each model, its segmentor, its motion module if it has one, and the size of the video.

    Their classes are as trained ones'.
    """
    from mpvss.convert.architectures import build
    from mpvss.evaluation.library import FixedActivity
    from mpvss.segmentors.huggingface import HuggingFaceSegmentor
    from mpvss.segmentors.protocol import InputRule

    side = 64 if quick else 640
    rule = InputRule(short_side=side, long_side=side, multiple=side, fixed=True)
    segmentor = HuggingFaceSegmentor(eomt(device, quick), rule, name=f"EoMT-L {side}", dtype=dtype)
    yield segmentor.name, FixedActivity(segmentor), None, (48, 64) if quick else (480, 854)
    size = (48, 64) if quick else (480, 853)
    built = build("swin-t", 124)
    rule = InputRule(short_side=size[0])
    segmentor = HuggingFaceSegmentor(built.segmentor.to(device), rule, name="Mask2Former Swin-T", dtype=dtype)
    yield segmentor.name, FixedActivity(segmentor), built.motion.to(device), size


class Run:
    """The steps, their results, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        self.device, self.quick, self.out = arguments.device, arguments.quick, arguments.out
        self.deadline = time.monotonic() + arguments.seconds
        self.cuda = torch.device(self.device).type == "cuda"
        self.batches = (1, 2) if self.quick else (1, 2, 4, 8, 16)
        self.repeats = 1 if self.quick else 5
        self.results: dict[str, Any] = {"device": self.device, "quick": self.quick, "steps": {}}

    def step(self, name: str, work: Callable[[], Any]) -> None:
        """Do one step, unless the time is over; one that fails is written as such."""
        began = time.monotonic()
        if began > self.deadline:
            found: Any = {"skipped": "no time left"}
        else:
            try:
                found = work()
            except Exception as error:  # the other steps are worth having
                found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.results["steps"][name] = found
        print(f"{name} [{time.monotonic() - began:.1f} s]: {json.dumps(found)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n")

    def wait(self) -> None:
        """Wait for the device, so that seconds are those of the work."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of work, the device's included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def peak_mib(self) -> float | None:
        """Peak memory of the device since this was last asked for."""
        if not self.cuda:
            return None
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return round(peak)

    def machine(self) -> dict[str, Any]:
        import torch
        import transformers

        from mpvss.evaluation.machine import machine

        found = {**machine(), "torch": torch.__version__, "transformers": transformers.__version__}
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "gpu": properties.name,
                "gpu_gib": round(properties.total_memory / 2**30),
                "cuda": torch.version.cuda,
            }
        return found

    def key_frames(self, segmentor: Any, images: Any) -> dict[str, Any]:
        """Milliseconds of a key frame's network, by how many go through it at once."""
        import torch

        found = {}
        for size in self.batches:
            batch = torch.from_numpy(images[:size]).permute(0, 3, 1, 2).contiguous()
            self.timed(partial(segmentor.predict, batch))
            self.peak_mib()
            seconds = [self.timed(partial(segmentor.predict, batch)) for _ in range(self.repeats)]
            found[f"batch {size}"] = {
                "ms a frame": round(1000 * statistics.median(seconds) / size, 2), "peak MiB": self.peak_mib()
            }  # fmt: skip
        return found

    def end_to_end(self, segmentor: Any, motion: Any, frames: list[Any]) -> dict[str, Any]:
        """Frames a second from decoded images to labels on the host, per frame and at an interval, taking turns."""
        from mpvss.motion.propagators import make_propagator
        from mpvss.segmenter import VideoSegmenter

        sides = {}
        for name, propagator, direction, interval in WAYS if motion is None else [*WAYS, OWN_MOTION]:
            flow = make_propagator(propagator, motion if propagator == "query" else None)
            whole = VideoSegmenter(segmentor, flow, interval=interval, cuts=False)
            session = whole.session(direction=direction, key_batch=whole.key_batch())
            sides[name] = (session, endless(frames), interval * whole.key_batch())
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.repeats + 1):
            for name, (session, source, step) in sides.items():
                images = list(islice(source, step * (1 if self.quick else 2)))
                seconds = self.timed(lambda s=session, i=images: [s.push(frame, copy=False) for frame in i])
                if number:  # the first round is to warm up
                    rates[name].append(len(images) / seconds)
        found: dict[str, Any] = {name: round(statistics.median(each), 2) for name, each in rates.items()}
        stages = {
            name: {stage: round(1000 * spent, 1) for stage, spent in session.clock.seconds.items()}
            for name, (session, _, _) in sides.items()
        }
        return {"frames a second": found, "ms by stage, all frames": stages, "peak MiB": self.peak_mib()}

    def whole_run(self, segmentor: Any, size: tuple[int, int]) -> dict[str, float]:
        """Frames a second from a file to overlay, labels and JSON."""
        from mpvss.evaluation.machine import synthetic_video
        from mpvss.motion.propagators import make_propagator
        from mpvss.segmenter import VideoSegmenter

        clip, found = self.out / "clip.mp4", {}
        synthetic_video(clip, size, 11 if self.quick else 201)
        for direction in ("forward", "both"):
            whole = VideoSegmenter(segmentor, make_propagator("dis"), interval=INTERVAL, direction=direction)
            summary = whole.process(clip, self.out / "run", overwrite=True)
            found[f"dis, {direction}"] = round(summary.frames / summary.seconds["total"], 2)
        return found

    def agreement(self) -> dict[str, float]:
        """Share of pixels with the CPU's label: the trained weights that are in the package, float32."""
        import numpy as np

        from mpvss.segmenter import VideoSegmenter

        frames = list(islice(made_frames((96, 128) if self.quick else (360, 480)), 11))
        found = {}
        for propagator in ("none", "dis"):
            labels = []
            for device in ("cpu", self.device):
                segmenter = VideoSegmenter.from_pretrained(
                    "compact", device=device, backend="torch", propagator=propagator, interval=INTERVAL, cuts=False
                )
                labels.append(np.stack([each.labels for each in segmenter.stream(frames)]))
            found[propagator] = float((labels[0] == labels[1]).mean())
        return found


def made_frames(size: tuple[int, int]) -> Iterator[Any]:
    """A texture that a camera moves over, without end."""
    import cv2
    import numpy as np

    from mpvss.types import IMAGE_RATE, Frame

    height, width = size
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, random.integers(0, 32, image.shape, dtype=np.uint8))
    for number in count():
        x, y = abs((number * 2) % (2 * width // 2) - width // 2), abs(number % height - height // 2)
        yield Frame(number, number / IMAGE_RATE, np.ascontiguousarray(image[y : y + height, x : x + width]))


def endless(frames: list[Any]) -> Iterator[Any]:
    """Play frames forward and backward without end: no cut."""
    from dataclasses import replace

    from mpvss.types import IMAGE_RATE

    turn = frames + frames[-2:0:-1]
    for number in count():
        yield replace(turn[number % len(turn)], index=number, pts=number / IMAGE_RATE)


def measure(run: Run, dtypes: list[str]) -> None:
    """Do all steps."""
    import numpy as np
    import torch

    from mpvss.segmentors.protocol import resize_frame

    run.step("machine", run.machine)
    for dtype in dtypes:
        for name, segmentor, motion, size in make_models(run.device, getattr(torch, dtype), run.quick):
            title = f"{name}, {dtype}"
            frames = list(islice(made_frames(size), 41))
            seen = np.stack([resize_frame(frame, segmentor.rule.fit(size).resized) for frame in frames[:16]])
            run.step(f"{title}: key frame", partial(run.key_frames, segmentor, seen))
            run.step(f"{title}: segmentation, {size[1]}x{size[0]}", partial(run.end_to_end, segmentor, motion, frames))
            run.step(f"{title}: file to files, {size[1]}x{size[0]}", partial(run.whole_run, segmentor, size))
    run.step("labels as on the CPU", run.agreement)
    steps = run.results["steps"].items()
    rates = [found.get("frames a second", {}) for title, found in steps if "EoMT" in title and "segmentation" in title]
    best = max((rate for each in rates for name, rate in each.items() if name.startswith("dis")), default=None)
    run.step("target", lambda: {"EoMT-L at 640, k = 5, frames a second": best, "wanted": TARGET})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="say which packages are missing, and do nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--quick", action="store_true", help="tiny models, to test this file")
    parser.add_argument("--seconds", type=float, default=420, help="no step begins later")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    arguments = parser.parse_args()
    absent = missing()
    print("missing:", " ".join(absent) or "nothing", flush=True)
    if absent or arguments.list:
        return 2 if absent else 0
    run = Run(arguments)
    measure(run, arguments.dtypes.split(","))
    failed = [name for name, found in run.results["steps"].items() if isinstance(found, dict) and "failed" in found]
    print("failed:", "; ".join(failed) or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
