"""What happened to each video of a batch: a file to which one line is added for each event, and nothing changed.

Every line is a JSON object with ``event`` and ``time`` (seconds since 1970):

    run      schema, settings, overwrite, engine, workers, items: a driver began
    start    item, source: a worker is about to be given the item; its outputs may be replaced from here on
    split    item, frames, segments: a long video was divided
    part     item, part, seconds: a segment is finished
    retry    item, kind, part, error: it will be tried again
    done     item, attempts, seconds, frames, key_frames, damaged, outputs with bytes and sha256: all of it is in place
    failed   item, attempts, seconds, error: given up

Lines are on the disk before what they announce is begun, and after what they report is whole. A driver that was killed
while it wrote leaves a last line without an end, which is cut off when the next one opens the file.
"""

import errno
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypedDict

from filelock import FileLock, Timeout

from mpvss._files import output_errors
from mpvss._validate import convert, parse_json
from mpvss.errors import DataError, OutputError

log = logging.getLogger(__name__)

SCHEMA = 1
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}


class _Event(TypedDict):
    event: Literal["run", "start", "split", "part", "retry", "done", "failed"]


class _Run(TypedDict):
    schema: Literal[1]
    settings: dict[str, Any]
    overwrite: bool


class _OfItem(TypedDict):
    item: str


class _Done(_OfItem):
    outputs: dict[str, Any]


_FORMS: dict[str, Any] = {"run": _Run, "start": _OfItem, "failed": _OfItem, "done": _Done}


class Manifest:
    """An open manifest; nobody else can open it meanwhile.

    Args:
        path: The file; made if missing, with its folder.
        anew: Whether what it holds is dropped.

    Attributes:
        path: The file.
        run: The settings of the first run in it, or ``None``.
        items: For each item its last event of start, done or failed.
        started: Items that some run has begun.

    Raises:
        OutputError: It cannot be written, or another driver has it open.
        DataError: A line that was written whole is no event.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        self.path = path
        self.run: dict[str, Any] | None = None
        self.items: dict[str, dict[str, Any]] = {}
        self.started: set[str] = set()
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = lock(path.with_name(f".{path.name}.lock"))
        if held is None:
            raise OutputError(f"{path}: another batch is writing there; wait for it, or choose another output")
        self._lock = held
        try:
            with output_errors(path):
                self._file = path.open("a+b")
        except BaseException:
            unlock(held)
            raise
        try:
            with output_errors(path):
                if anew:
                    self._file.truncate(0)
                self._read()
        except BaseException:
            self._file.close()
            unlock(held)
            raise

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                break
            whole += len(line)
            try:
                event = parse_json(line)
                kind = convert(event, _Event, what="the event")["event"]
                convert(event, _FORMS.get(kind, _Event), what="the event")
                if kind == "run":
                    self.run = self.run or event
                elif kind in {"start", "done", "failed"}:
                    if kind == "done":
                        _check_outputs(event["outputs"])
                    self.items[event["item"]] = event
                    if kind == "start":
                        self.started.add(event["item"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"expected an event of schema {SCHEMA} in line {number} of {self.path}, found {line[:80]!r} "
                    f"({error}): move the file away to start anew"
                ) from error

    def add(self, event: str, **values: Any) -> None:
        """Append an event; it is not sure to be on the disk before ``sync``.

        Raises:
            OutputError: The disk is full.
        """
        line = {"event": event, "time": round(time.time(), 3), **values}
        with output_errors(self.path):
            self._file.write(json.dumps(line).encode() + b"\n")

    def sync(self) -> None:
        """Return when all events so far are on the disk.

        Raises:
            OutputError: The disk is full.
        """
        with output_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is left, and let others open it."""
        try:
            with output_errors(self.path):
                self._file.close()
        finally:
            unlock(self._lock)


def _check_outputs(outputs: dict[str, Any]) -> None:
    for described in outputs.values():
        if not isinstance(described["bytes"], int) or not isinstance(described["sha256"], str):
            raise TypeError("outputs need bytes and sha256")


def lock(path: Path, *, seconds: float = 0.0) -> FileLock | None:
    """Lock a file for this process until ``unlock`` or the end of the process, however it ends.

    Where a file system has no locks that is said, and nothing is locked.

    Args:
        path: The file; made if missing, in a folder that exists. Nothing else is written there.
        seconds: How long to wait for others.

    Returns:
        The lock, or ``None`` if another one is held.

    Raises:
        OSError: The file cannot be opened.
    """
    held = FileLock(str(path))
    try:
        held.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks (%s); have one run at a time write there", path.parent, error)
    return held


def unlock(held: FileLock) -> None:
    """Remove a locked file and give the lock up."""
    with suppress(OSError):  # Windows removes no open file
        Path(held.lock_file).unlink()
    with suppress(OSError):
        held.release()
