"""Segmentors with one interface, and the one way to load one: ``load_segmentor``."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpvss._extras import has, require
from mpvss._zoo import nearest_model
from mpvss.errors import ModelError
from mpvss.options import ModelOptions
from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction, Segmentor, prepare, resize_frame

if TYPE_CHECKING:
    from mpvss.segmentors.huggingface import HuggingFaceSegmentor

__all__ = [
    "EMBEDDED",
    "HuggingFaceSegmentor",
    "InputRule",
    "PixelPrediction",
    "Prediction",
    "Segmentor",
    "choose_backend",
    "embedded_folder",
    "is_export",
    "is_onnx_file",
    "load_segmentor",
    "prepare",
    "require_torch",
    "resize_frame",
]

# Models that ship with the package: name and folder under assets/.
EMBEDDED = ("compact",)


def __getattr__(name: str) -> Any:
    """Import torch only where its segmentor is used."""
    if name != "HuggingFaceSegmentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpvss.segmentors.huggingface import HuggingFaceSegmentor

    return HuggingFaceSegmentor


def embedded_folder(model: str | Path) -> Path | None:
    """Return the directory of an embedded model; ``None`` for any other name."""
    return Path(str(files("mpvss") / "assets" / str(model))) if model in EMBEDDED else None


def is_export(model: str | Path) -> bool:
    """Whether a model is a directory that ``mpvss export`` made."""
    return (Path(model) / "export.json").is_file()


def is_onnx_file(model: str | Path) -> bool:
    """Whether a model is an ONNX file, whoever made it."""
    return str(model).lower().endswith(".onnx") and not Path(model).is_dir()


def choose_backend(options: ModelOptions) -> str:
    """Return what runs the model of these options, ``torch`` or ``onnx``.

    With ``auto`` ONNX Runtime runs what was exported, and the embedded model wherever torch has nothing more to offer:
    in float32, unless the library's own network or a device that torch knows is asked for.
    """
    if options.backend != "auto":
        return options.backend
    if is_export(options.model):
        return "onnx"
    if options.model not in EMBEDDED or not options.fast or options.dtype != "float32":
        return "torch"
    device = options.device
    elsewhere = _has_nvidia_driver() if device == "auto" else device != "cpu"
    return "torch" if elsewhere and has("torch") else "onnx"


def _has_nvidia_driver() -> bool:
    """Whether torch may find a CUDA device, as far as is known without importing it."""
    windows = sys.platform == "win32" and Path("C:/Windows/System32/nvcuda.dll").exists()
    return windows or Path("/proc/driver/nvidia/version").exists()


def require_torch(model: str | Path) -> None:
    """Refuse to go on without torch, or with a name that is not even that of a model.

    Raises:
        ModelError: torch is not installed.
    """
    near = None if "/" in str(model) or Path(model).exists() else nearest_model(str(model))
    require(
        "torch", f"{model}: {f'no such model; did you mean {near}? ' if near else ''}a checkpoint needs", ModelError
    )


def load_segmentor(
    model: str | Path, *, device: Any = "cpu", dtype: Any = None, fast: bool = True, prompts: tuple[str, ...] = ()
) -> "HuggingFaceSegmentor":
    """Load a segmentor by the name of an embedded model, a hub id (owner/name) or a local directory.

    Args:
        model: Which one.
        device: Where it runs, as torch names it.
        dtype: A type of torch; ``None`` for float32.
        fast: Without it a Mask2Former runs the library's own forward pass, which gives the same to rounding.
        prompts: The classes of a model that takes text.

    Raises:
        ModelError: There is no such model, or it segments no images, or its weights do not fit.
    """
    require_torch(model)
    import torch

    from mpvss.segmentors.huggingface import load_huggingface

    dtype = torch.float32 if dtype is None else dtype
    folder = embedded_folder(model)
    if folder is not None:
        return load_huggingface(folder, name=str(model), device=device, dtype=dtype, fast=fast, prompts=prompts)
    return load_huggingface(model, device=device, dtype=dtype, fast=fast, prompts=prompts)
