"""Checkpoints of others: bounds on what their configuration asks for, and short reasons of the library's errors."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from mpvss._validate import convert, shown

# What the libraries raise at files that are not what their names say (corrupt, of another type, pickled code, numbers
# out of range) has no common base, and changes with their versions.
UNREADABLE = Exception

_COUNTED = re.compile("layer|depth|block|level|stage|scale|repeat|num_experts")
_MOST_LAYERS = 1000


def check_config(values: Any) -> None:
    """Refuse a configuration of more layers than any model has: building them would take for ever.

    Raises:
        ValueError: It asks for that, or is no object.
    """
    convert(values, dict, what="config.json")
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += ((key, inner) for key, inner in value.items() if key != "label2id")
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int | float) and _COUNTED.search(name) and not abs(value) <= _MOST_LAYERS:
            raise ValueError(f"{name} must be at most {_MOST_LAYERS}, got {shown(value)}")


def check_extent(kind: Any, config: Any, folder: Path) -> None:
    """Refuse a configuration of a model that its files of weights cannot hold, before memory is taken for it.

    Raises:
        ValueError: It has more values than the files have bytes.
    """
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    with torch.device("meta"):
        model = kind(config)
    # A little more is left for what is computed instead of stored.
    values = sum(value.numel() for value in (*model.parameters(), *model.buffers()))
    if size and values > size + 2**22:
        raise ValueError(f"config.json describes a model of {values} values, and the weights have {size} bytes")


def first_line(error: BaseException) -> str:
    """The reason that an error of the library gives, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle that holds more than tensors, or none at all; safetensors are expected"
    if isinstance(error, KeyError):
        return f"unknown name {error}"
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What is to be done stands in the line after some.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:500]
