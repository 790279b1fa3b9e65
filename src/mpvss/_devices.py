"""Devices and precisions of torch by their names. torch is imported when one is asked for."""

from typing import TYPE_CHECKING

from mpvss._extras import has, require
from mpvss._threads import tell_torch
from mpvss.errors import MpvssError
from mpvss.options import ModelOptions

if TYPE_CHECKING:
    import torch


def choose_device(name: str | int) -> "torch.device":
    """Return the device of this name; ``auto`` takes CUDA, then MPS, then the CPU. A number is that of a CUDA device.

    Raises:
        OptionError: There is no such kind of device.
        TypeError: It is neither text nor a number.
        MpvssError: The device is not there, or torch is not installed. Nothing falls back silently.
    """
    ModelOptions(device=name)
    name = f"cuda:{name}" if isinstance(name, int) else name
    require("torch", f"device {name} needs")
    import torch

    tell_torch()
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


def choose_dtype(name: str) -> "torch.dtype":
    """Return the precision of this name.

    Raises:
        OptionError: There is no such precision.
        MpvssError: torch is not installed.
    """
    ModelOptions(dtype=name)  # type: ignore[arg-type]
    require("torch", f"dtype {name} needs")
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def cuda_devices(name: str | int) -> int:
    """Return how many CUDA devices this name may mean: 0 for another kind, or where torch is not installed."""
    if name not in {"auto", "cuda"} or not has("torch"):
        return 0
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
