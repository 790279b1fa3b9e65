"""Segmentors with one interface, and the one way to load one: ``load_segmentor``."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "load_segmentor",
    "prepare",
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
    import torch

    from mpvss.segmentors.huggingface import load_huggingface

    dtype = torch.float32 if dtype is None else dtype
    if model in EMBEDDED:
        folder = Path(str(files("mpvss") / "assets" / str(model)))
        return load_huggingface(folder, name=str(model), device=device, dtype=dtype, fast=fast)
    return load_huggingface(model, device=device, dtype=dtype, fast=fast, prompts=prompts)
