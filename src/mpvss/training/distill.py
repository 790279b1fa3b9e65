"""Training a motion module from videos alone: the segmentor's own results on each frame are the labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpvss._devices import choose_device
from mpvss.options import DistillOptions
from mpvss.segmentors import load_segmentor
from mpvss.training.config import TrainConfig, make_config
from mpvss.training.loop import TrainSummary, train
from mpvss.training.teacher import SPLIT, teach
from mpvss.types import Stop

# 0.59 M parameters for one flow and 1.01 M for one a query of ``compact``, at stride 4.
LIGHT: dict[str, Any] = {
    "encoder_channels": [24, 32, 48, 64, 96, 128],
    "encoder_kernels": [7, 5, 3, 3, 3, 3],
    "encoder_depths": [1, 2, 2, 1, 1, 1],
    "flow_stage": 1,
    "levels": 3,
    "upsampled_channels": [32, 32, 32, 24, 16],
    "layers": 3,
    "heads": 4,
    "ffn_width": 256,
    "mlp_width": 32,
}


def distill_config(taught: str, out: Path, options: DistillOptions) -> TrainConfig:
    """Return the configuration of a distillation.

    Args:
        taught: The data set that ``teach`` made.
        out: Directory of the run.
        options: What is trained.

    Raises:
        ConfigError: An override is unknown or out of range.
    """
    sources: list[dict[str, Any]] = [{"data": taught, "split": SPLIT, "kind": kind} for kind in ("video", "simulated")]
    for spec in options.simulate:
        data, _, split = spec.partition("@")
        sources.append({"data": data, "split": split or None, "kind": "simulated"})
    with_queries = options.propagator == "query"
    values: dict[str, Any] = {
        "stage": "motion",
        "model": {
            "segmentor": str(options.model),
            "propagator": options.propagator,
            "motion": LIGHT if options.size == "light" else {},
        },
        "data": {
            "sources": sources,
            "max_distance": options.max_distance,
            "crop": [192, 256],
            "scale": [0.7, 1.6],
            "pseudo_flow": 1,
            "motion": "chain",
        },
        "loss": {
            "sets": 0.0,
            "points": 0,
            "every_layer": False,
            # The segmentor runs for its queries anyway; for one flow its labels are enough, and much quicker.
            "scores": 1.0 if with_queries else 0.0,
            "labels": 1.0,
            "flow": 1.0,
            "coarse": 0.5,
            "photometric": 0.5,
        },
        "optim": {
            "steps": 20_000,
            "batch": 8,
            "lr": 2e-3,
            "weight_decay": 0.01,
            "warmup": 100,
            "clip_norm": 1.0,
            "ema": 0.999,
        },
        "run": {"out": str(out), "workers": 1},
    }
    return make_config(values, options.overrides)


def distill(
    videos: Sequence[str],
    out: str | Path,
    options: DistillOptions | None = None,
    *,
    quiet: bool = False,
    stop: Stop | None = None,
) -> TrainSummary:
    """Teach a motion module on unlabelled videos.

    Args:
        videos: Anything that ``mpvss.read`` opens and that ends.
        out: Directory of the run, which ``--model`` takes afterwards.
        options: What is trained; its model is the teacher, and what the motion module is for.
        quiet: No progress bar.
        stop: Ends the training after a step, once it is set, with a checkpoint to go on from.
    """
    options, out = options or DistillOptions(), Path(out)
    cache = options.cache or out / "teacher"
    config = distill_config(f"folder:{cache}", out, options)
    segmentor = load_segmentor(options.model, device=choose_device(config.run.device))
    teach(videos, segmentor, cache, confidence=options.confidence, stride=options.stride)
    return train(config, resume=options.resume, quiet=quiet, stop=stop)
