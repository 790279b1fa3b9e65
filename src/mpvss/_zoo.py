"""Models worth starting from: the embedded one and some from the hub. Any other mask classifier loads as well."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from mpvss._validate import read_json


class ModelEntry(TypedDict):
    """One line of ``mpvss models``; megabytes are what is downloaded."""

    id: str
    classes: int
    data: str
    megabytes: float
    licence: str


# Sizes: parameters of the published configurations times four bytes; licences as their model cards say.
_MODELS: tuple[ModelEntry, ...] = (
    {"id": "compact", "classes": 11, "data": "CamVid", "megabytes": 8.6, "licence": "Apache-2.0 (embedded)"},
    {
        "id": "facebook/mask2former-swin-tiny-cityscapes-semantic",
        "classes": 19,
        "data": "Cityscapes",
        "megabytes": 190,
        "licence": "other, see its model card",
    },
    {
        "id": "facebook/mask2former-swin-large-cityscapes-semantic",
        "classes": 19,
        "data": "Cityscapes",
        "megabytes": 866,
        "licence": "other, see its model card",
    },
    {
        "id": "facebook/mask2former-swin-small-ade-semantic",
        "classes": 150,
        "data": "ADE20K",
        "megabytes": 276,
        "licence": "other, see its model card",
    },
    {
        "id": "facebook/maskformer-swin-tiny-ade",
        "classes": 150,
        "data": "ADE20K",
        "megabytes": 167,
        "licence": "other, see its model card",
    },
    {
        "id": "shi-labs/oneformer_ade20k_swin_tiny",
        "classes": 150,
        "data": "ADE20K",
        "megabytes": 203,
        "licence": "MIT",
    },
    {
        "id": "tue-mps/ade20k_semantic_eomt_large_512",
        "classes": 150,
        "data": "ADE20K",
        "megabytes": 1260,
        "licence": "MIT",
    },
)


def list_models() -> list[ModelEntry]:
    """Return the embedded model and the recommended ones."""
    return list(_MODELS)


def known_classes(model: str) -> tuple[str, ...] | None:
    """The class names of a model on this machine, without loading it; ``None`` where they are not known so easily."""
    folder = Path(str(files("mpvss") / "assets" / model)) if "/" not in model else Path(model)
    try:
        folder = folder if folder.is_dir() else Path(model)
        if not (folder / "config.json").is_file():
            return tuple(map(str, read_json(folder / "export.json")["class_names"]))
        names = read_json(folder / "config.json")["id2label"]
        return tuple(str(names[str(id_)]) for id_ in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError):  # whatever it is, loading says what is wrong with it
        return None


def nearest_model(name: str) -> str | None:
    """The known model that a mistyped name is nearest to."""
    near = difflib.get_close_matches(name[:200], [model["id"] for model in _MODELS], n=1, cutoff=0.6)
    return near[0] if near else None
