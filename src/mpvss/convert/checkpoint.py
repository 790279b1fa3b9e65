"""Published checkpoints become ours, and directories of config.json and model.safetensors are loaded.

A published checkpoint is one file with a Mask2Former in its original naming and, below ``motion.``, the motion module.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpvss._files import atomic
from mpvss._hub import quiet_library
from mpvss._validate import shown
from mpvss.convert.names import (
    MOTION_PREFIX,
    convert_motion_state_dict,
    convert_segmentor_state_dict,
    infer_segmentor_config,
)
from mpvss.errors import ModelError, OutputError
from mpvss.motion.network.directory import read_config
from mpvss.motion.network.query_flow import PixelFlow, QueryFlow

SEGMENTOR_FOLDER = "segmentor"


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion wrote.

    Attributes:
        out: The directory, which ``--model`` takes.
        num_classes: Classes without "no object".
        num_queries: Queries of the segmentor and of the motion module.
    """

    out: Path
    num_classes: int
    num_queries: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"out": str(self.out), "num_classes": self.num_classes, "num_queries": self.num_queries}


def convert_reference(path: str | Path, out: str | Path, class_names: Sequence[str] | None = None) -> ConvertSummary:
    """Turn a checkpoint of the published code into a checkpoint directory of ours.

    ``out`` then holds the motion module, and ``out/segmentor`` the segmentor as the transformers library loads it. Only
    tensors are unpickled. Nothing is written unless everything fits.

    Args:
        path: The published file; its state dict may be below ``model``.
        out: Directory to make; it must not exist or be empty.
        class_names: Names of the classes in the order of their ids; ``LABEL_0`` and so on by default.

    Raises:
        ModelError: The file cannot be read, holds more than tensors, or its parameters are not as published.
        OutputError: ``out`` has files in it, or cannot be written.
        ValueError: The number of class names is not the number of classes.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists already; name a new directory")
    published = _load_tensors(Path(path))
    motion_state = convert_motion_state_dict({k: v for k, v in published.items() if k.startswith(MOTION_PREFIX)})
    rest = {k: v for k, v in published.items() if not k.startswith(MOTION_PREFIX)}
    config = infer_segmentor_config(rest)
    segmentor_state = convert_segmentor_state_dict(rest, config)
    if class_names is not None:
        if len(class_names) != config.num_labels:
            raise ValueError(f"expected {config.num_labels} class names, got {len(class_names)}")
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}

    motion = QueryFlow(num_queries=motion_state["query_embedding"].shape[0])
    motion.to(motion_state["query_embedding"].dtype).load_state_dict(motion_state, strict=True)
    motion.segmentor = SEGMENTOR_FOLDER
    check_fits(motion, config.hidden_dim, config.num_queries)
    segmentor = Mask2FormerForUniversalSegmentation(config).to(segmentor_state["class_predictor.bias"].dtype)
    segmentor.load_state_dict(segmentor_state, strict=False)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(out, folder=True) as part:
            motion.save_pretrained(part)
            with quiet_library():
                segmentor.save_pretrained(part / SEGMENTOR_FOLDER)
            preprocessor = part / SEGMENTOR_FOLDER / "preprocessor_config.json"
            preprocessor.write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error})") from error
    return ConvertSummary(out, config.num_labels, config.num_queries)


# How the published models see an image: RGB, the usual ImageNet statistics, sides a multiple of 32.
_PREPROCESSOR = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_resize": True,
    "size": {"shortest_edge": 480, "longest_edge": 2048},
    "size_divisor": 32,
    "ignore_index": 255,
}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    loaded = load_torch(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path}: expected a state dict, alone or below 'model'")
    for name, value in loaded.items():
        # Views of one value can have any shape, and would have to be written out.
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(f"{path}: {shown(name)} has more values than the file holds")
    return {str(name): value for name, value in loaded.items()}


def load_torch(path: Path) -> Any:
    """Read a file of PyTorch: tensors and plain values, nothing is executed.

    Raises:
        ModelError: There is none, it is damaged or compressed, or it holds other objects.
    """
    if not path.is_file():
        raise ModelError(f"{path}: expected a checkpoint file, got none")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, as PyTorch never writes it")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: no PyTorch checkpoint of tensors only. Loading other objects could run code, so they are "
            f"refused; save the state dict alone ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # at damaged bytes the unpickler raises whatever its instructions meet with
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: not a PyTorch checkpoint ({reason[:500]})") from error


def check_fits(motion: QueryFlow | PixelFlow, query_width: int, num_queries: int) -> None:
    """Refuse a motion module whose segmentor has other queries.

    Args:
        motion: The motion module; a ``PixelFlow`` fits every segmentor.
        query_width: Width of the segmentor's query embeddings.
        num_queries: Number of the segmentor's queries.

    Raises:
        ModelError: Number or width differs.
    """
    config = motion.config
    if isinstance(motion, QueryFlow) and (config.num_queries, config.query_width) != (num_queries, query_width):
        raise ModelError(
            f"the motion module is for {config.num_queries} queries of width {config.query_width}, the segmentor has "
            f"{num_queries} of width {query_width}; use the segmentor it was trained with, or train it for this one"
        )


MOTION_TYPES: dict[str, type[QueryFlow] | type[PixelFlow]] = {"query_flow": QueryFlow, "pixel_flow": PixelFlow}


def load_motion(name: str | Path, *, revision: str | None = None) -> QueryFlow | PixelFlow:
    """Load whichever motion module a checkpoint directory, or a repository on the Hub, holds.

    Args:
        name: A directory, or the id of a repository.
        revision: Branch, tag or commit of the repository.

    Raises:
        ModelError: It holds none, or one that does not fit its configuration.
    """
    kind = read_config(name, revision=revision)["model_type"]
    if kind not in MOTION_TYPES:
        raise ModelError(f"{name}: expected a model of type {' or '.join(MOTION_TYPES)}, got {shown(kind)}")
    return MOTION_TYPES[kind].from_pretrained(name, revision=revision)


def segmentor_of(name: str | Path) -> str | None:
    """Return what to load the segmentor of a checkpoint from: a directory inside it, a Hub id, or what the user says.

    A checkpoint of others may not point at other directories of this machine. The environment's ``MPVSS_SEGMENTOR``
    replaces what it says.

    Args:
        name: A checkpoint directory, or the id of a repository on the Hub.

    Raises:
        ModelError: The checkpoint has no configuration, or names a local directory that is not below its own.
    """
    from mpvss.segmentors import EMBEDDED

    if os.environ.get("MPVSS_SEGMENTOR"):
        return os.environ["MPVSS_SEGMENTOR"]
    segmentor = read_config(name).get("segmentor")
    if segmentor is None or segmentor in EMBEDDED:
        return segmentor
    inside = Path(name) / str(segmentor)
    if inside.is_dir() and inside.resolve().is_relative_to(Path(name).resolve()):
        return str(inside)
    if inside.exists() or Path(str(segmentor)).exists() or not _HUB_ID.fullmatch(str(segmentor)):
        raise ModelError(
            f"{name}: expected a segmentor below this directory or a hub id such as owner/name in config.json, got "
            f"{shown(segmentor)}; if you trust it, say so: MPVSS_SEGMENTOR={shown(str(segmentor))}"
        )
    return str(segmentor)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
