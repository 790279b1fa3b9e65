"""What a run keeps on disk, whole or not at all: its configuration, the last checkpoints and the exported model."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypedDict

import torch

from mpvss._files import atomic, install, scratch
from mpvss._validate import convert, parse_json, parse_yaml
from mpvss.convert.checkpoint import load_torch
from mpvss.errors import ConfigError, ModelError, OutputError
from mpvss.training.config import TrainConfig, as_values, differences

CONFIG_NAME = "train.yaml"
METRICS_NAME = "metrics.jsonl"
_FOLDER = "checkpoints"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden directory into one clear error; what was there before stays."""
    try:
        yield
    except (OSError, RuntimeError, OutputError) as error:
        # torch wraps the system's error when it writes a file, and raises another one while closing it.
        cause: BaseException = error
        while not isinstance(cause, OSError) and cause.__context__ is not None:
            cause = cause.__context__
        if (
            isinstance(error, RuntimeError)
            and not isinstance(cause, OSError)
            and "PytorchStreamWriter" not in str(error)
        ):
            raise
        reason = cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause).splitlines()[0]
        raise OutputError(
            f"{path}: cannot write: {reason}; earlier checkpoints are untouched, go on with --resume when there is room"
        ) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name when it is written, synced and closed, or not at all."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as part, part.open("wb") as file:
            yield file


def begin(out: Path, config: TrainConfig, *, resume: bool) -> Path | None:
    """Make the directory of a run, or check that a run may go on there.

    Returns:
        The last checkpoint to go on from, ``None`` where there is none.

    Raises:
        OutputError: There is a run already, or the directory cannot be written.
        ConfigError: The run was made with another configuration.
    """
    written = out / CONFIG_NAME
    if resume and written.is_file():
        try:
            before = convert(parse_yaml(written.read_text(encoding="utf-8")), dict, what="the file")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{written}: not the configuration of a run ({error})") from error
        changed = differences(before, as_values(config))
        if changed:
            raise ConfigError(
                f"{out}: the run was made with another configuration; undo the change or choose another run.out:\n  "
                + "\n  ".join(changed)
            )
        return last_checkpoint(out)
    if written.exists() or last_checkpoint(out) is not None:
        raise OutputError(f"{out}: holds a run already; go on with --resume, or choose another run.out")
    import yaml

    with whole_file(written) as file:
        file.write(yaml.safe_dump(as_values(config), sort_keys=False).encode())
    return None


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run."""
    checkpoints = _numbered(out)
    return checkpoints[-1] if checkpoints else None


def _numbered(out: Path) -> list[Path]:
    folder = out / _FOLDER
    return sorted(path for path in folder.glob("*.pt") if re.fullmatch(r"step-\d{8}", path.stem))


def save_checkpoint(out: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove all but the last ``keep``.

    Raises:
        OutputError: It cannot be written; the ones before are still there.
    """
    path = out / _FOLDER / f"step-{step:08}.pt"
    with whole_file(path) as file:
        torch.save(state, file)
    for old in _numbered(out)[:-keep]:
        old.unlink()
    return path


class _State(TypedDict):
    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any]
    best: dict[str, Any] | None


class _Line(TypedDict):
    step: int


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain values only, nothing is executed.

    Raises:
        ModelError: It is damaged, or no checkpoint of a training run.
    """
    state: dict[str, Any] = load_torch(path)
    try:
        convert(state, _State, what="the checkpoint")
    except ValueError as error:
        raise ModelError(
            f"{path}: no checkpoint of a training run ({error}); remove it to go on from the one before"
        ) from error
    return state


def export(out: Path, task: Any) -> None:
    """Write the model of a run, each file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with writing(out), scratch(out / "export") as part:
        task.export(part)
        for path in sorted(path for path in part.rglob("*") if path.is_file()):
            install(path, out / path.relative_to(part))


def cut_metrics(out: Path, step: int) -> None:
    """Forget the metrics of steps after ``step``, which are going to be made again."""
    path = out / METRICS_NAME
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # the last line of a killed run may be half of one
            if convert(parse_json(line), _Line, what="the line")["step"] <= step:
                kept.append(line if line.endswith(b"\n") else line + b"\n")
    with whole_file(path) as file:
        file.write(b"".join(kept))
