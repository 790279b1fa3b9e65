"""Where a motion module's files are, and what its ``config.json`` says. Without torch."""

from pathlib import Path
from typing import Any

from mpvss._hub import progress_bar, require_hub
from mpvss._validate import read_json, shown
from mpvss.errors import ModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
SCHEMA_VERSION = 1


def read_config(name: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """Return the contents of a checkpoint's ``config.json``.

    Raises:
        ModelError: It is missing, is not a JSON object with a ``model_type``, or was written by a newer version.
    """
    path = find_file(name, CONFIG_NAME, revision)
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ModelError(f"{path}: expected an object with a model_type")
    if values.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ModelError(
            f"{path}: schema version {shown(values['schema_version'])} is not {SCHEMA_VERSION}; update mpvss"
        )
    return values


def find_file(name: str | Path, file: str, revision: str | None) -> Path:
    """Return where a file of a checkpoint is, which is fetched from the Hub where it is not local.

    Raises:
        ModelError: There is none.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        if not path.is_file():
            raise ModelError(f"{name}: expected a checkpoint directory, {file} is missing")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    require_hub(str(name), file)
    try:
        return Path(hf_hub_download(str(name), file, revision=revision, tqdm_class=progress_bar(f"{name}/{file}")))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{name}: neither a directory nor a repository with {file} on the Hub ({error})") from error
