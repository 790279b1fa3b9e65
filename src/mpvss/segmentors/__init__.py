"""Mask classifiers with one interface, and the one way to load one: ``load_segmentor``."""

from importlib.resources import files
from pathlib import Path

import torch

from mpvss.segmentors.huggingface import HuggingFaceSegmentor, load_huggingface
from mpvss.segmentors.protocol import InputRule, Prediction, Segmentor, prepare, resize_frame

__all__ = [
    "EMBEDDED",
    "HuggingFaceSegmentor",
    "InputRule",
    "Prediction",
    "Segmentor",
    "load_segmentor",
    "prepare",
    "resize_frame",
]

# Models that ship with the package: name and folder under assets/.
EMBEDDED = ("compact",)


def load_segmentor(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fast: bool = True,
) -> HuggingFaceSegmentor:
    """Load a segmentor by the name of an embedded model, a hub id (owner/name) or a local directory.

    Without ``fast`` a Mask2Former runs the library's own forward pass, which gives the same to rounding.

    Raises:
        ModelError: There is no such model, or it is not a mask classifier, or its weights do not fit.
    """
    if model in EMBEDDED:
        folder = Path(str(files("mpvss") / "assets" / str(model)))
        return load_huggingface(folder, name=str(model), device=device, dtype=dtype, fast=fast)
    return load_huggingface(model, device=device, dtype=dtype, fast=fast)
