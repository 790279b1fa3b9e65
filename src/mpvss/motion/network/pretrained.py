"""Checkpoint directories of motion modules: ``config.json`` beside ``model.safetensors``, local or on the Hub."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from mpvss._files import atomic, output_errors
from mpvss._validate import shown
from mpvss.errors import ConfigError, ModelError
from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.directory import CONFIG_NAME, SCHEMA_VERSION, WEIGHTS_NAME, find_file, read_config

_Module = TypeVar("_Module", bound="Pretrained")  # not Self, which beartype refuses on a method


class Pretrained(nn.Module):
    """A module made from one configuration that is saved, loaded and published with it.

    Attributes:
        segmentor: The segmentor it was trained with: a Hub id, or a folder relative to the checkpoint directory;
            ``None`` where it is not known.
    """

    model_type: ClassVar[str]
    config: QueryFlowConfig
    segmentor: str | None = None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, each whole or not at all.

        Raises:
            OutputError: They cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        directory = Path(directory)
        header = {"model_type": self.model_type, "schema_version": SCHEMA_VERSION, "segmentor": self.segmentor}
        with output_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with atomic(directory / CONFIG_NAME) as text, atomic(directory / WEIGHTS_NAME) as weights:
            try:
                save_file({name: value.contiguous() for name, value in self.state_dict().items()}, weights)
            except SafetensorError as error:  # a full disk, as this library says it
                raise OSError(str(error)) from error
            text.write_text(json.dumps(header | asdict(self.config), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[_Module], name: str | Path, *, revision: str | None = None) -> _Module:
        """Load a module from a directory or from the Hub, in evaluation mode and in the dtype it was saved in.

        Args:
            name: A directory, or the id of a repository on the Hub.
            revision: Branch, tag or commit of the repository; unused for a directory.

        Raises:
            ModelError: Files are missing, the configuration has unknown keys or belongs to another kind of model, or
                the weights are not exactly the configuration's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        values = read_config(name, revision=revision)
        if values["model_type"] != cls.model_type:
            raise ModelError(f"{name}: expected a model of type {cls.model_type}, got {shown(values['model_type'])}")
        segmentor = values.pop("segmentor", None)
        if segmentor is not None and not isinstance(segmentor, str):
            raise ModelError(f"{name}: segmentor must be a name or null, got {shown(segmentor)}")
        try:
            config = QueryFlowConfig.from_dict(
                {key: value for key, value in values.items() if key not in ("model_type", "schema_version")}
            )
        except ConfigError as error:
            raise ModelError(f"{name}: {error}") from error
        try:
            state = load_file(find_file(name, WEIGHTS_NAME, revision))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ModelError(f"{name}: {WEIGHTS_NAME} cannot be read ({error})") from error
        # Without memory for its values at first: what a configuration asks for may be any size.
        try:
            with torch.device("meta"):
                problems = compare_state(state, cls(config))
        except (RuntimeError, TypeError) as error:  # numbers that are too large to multiply, or to pass on
            raise ModelError(f"{name}: {CONFIG_NAME} asks for a module of impossible size") from error
        if problems:
            raise ModelError(f"{name}: the weights do not fit {CONFIG_NAME}:\n" + "\n".join(problems))
        module: _Module = cls(config)
        dtypes = {value.dtype for value in state.values()}
        module.to(next(iter(dtypes)) if len(dtypes) == 1 else None).load_state_dict(state, strict=True)
        module.segmentor = segmentor
        return module.eval()

    def push_to_hub(self, repository: str, *, private: bool = False, revision: str | None = None) -> str:
        """Publish the checkpoint on the Hub and return its address.

        Args:
            repository: Id, ``owner/name``; made where it does not exist.
            private: Whether a new repository is private.
            revision: Branch to commit to.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        created = api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=created.repo_id, folder_path=folder, revision=revision)
        return str(created)


def compare_state(state: dict[str, Any], module: nn.Module) -> list[str]:
    """List, one line each, every parameter that is missing from a state dict, is too much, or has another shape."""
    expected = module.state_dict()
    lines = [f"  missing: {name} {tuple(value.shape)}" for name, value in expected.items() if name not in state]
    lines += [f"  unexpected: {name}" for name in state if name not in expected]
    lines += [
        f"  misshapen: {name}, expected {tuple(value.shape)}, got {tuple(state[name].shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return lines
