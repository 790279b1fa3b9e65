"""Devices and precisions by their names."""

import torch

from mpvss.errors import MpvssError
from mpvss.options import ModelOptions


def choose_device(name: str | int) -> torch.device:
    """Return the device of this name; ``auto`` takes CUDA, then MPS, then the CPU. A number is that of a CUDA device.

    Raises:
        OptionError: There is no such kind of device.
        TypeError: It is neither text nor a number.
        MpvssError: The device is not there. Nothing falls back silently.
    """
    ModelOptions(device=name)
    name = f"cuda:{name}" if isinstance(name, int) else name
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.split(":", maxsplit=1)[0]
    if not available[kind]:
        raise MpvssError(f"device {name} was asked for, but this machine or this build of torch has none; use cpu")
    device = torch.device(name)
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MpvssError(f"device {name} was asked for, but there are only {torch.cuda.device_count()}; use cuda:0")
    return device


def choose_dtype(name: str) -> torch.dtype:
    """Return the precision of this name.

    Raises:
        OptionError: There is no such precision.
    """
    ModelOptions(dtype=name)  # type: ignore[arg-type]
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
