"""What happened to each video of a batch: a file to which one line is added for each event, and nothing changed.

Every line is a JSON object with ``event`` and ``time`` (seconds since 1970):

    run      schema, settings, overwrite, engine, workers, items: a driver began
    start    item, source: a worker is about to be given the item; its outputs may be replaced from here on
    split    item, frames, segments: a long video was divided into so many chunks
    part     item, part, seconds: a chunk is finished
    retry    item, kind, part, error: it will be tried again
    done     item, attempts, seconds, frames, key_frames, damaged, outputs with bytes and sha256: all of it is in place
    failed   item, attempts, seconds, error: given up

Lines are on the disk before what they announce is begun, and after what they report is whole. A driver that was killed
while it wrote leaves a last line without an end, which is cut off when the next one opens the file.
"""

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypedDict

from mpvss._files import output_errors
from mpvss._validate import convert, parse_json
from mpvss.batch.locks import lock, unlock
from mpvss.errors import DataError, OutputError

SCHEMA = 1


class _Event(TypedDict):
    event: Literal["run", "start", "split", "part", "retry", "done", "failed"]


class _Run(TypedDict):
    schema: Literal[1]
    settings: dict[str, Any]
    overwrite: bool


class _OfItem(TypedDict):
    item: str


class _Output(TypedDict):
    bytes: int
    sha256: str


class _Done(_OfItem):
    outputs: dict[str, _Output]


_FORMS: dict[str, Any] = {"run": _Run, "start": _OfItem, "failed": _OfItem, "done": _Done}


class Manifest:
    """An open manifest; nobody else can open it meanwhile.

    Args:
        path: The file; made if missing, with its folder.
        anew: Whether what it holds is dropped.

    Attributes:
        path: The file.
        run: The first run in it, or ``None``.
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
        with ExitStack() as stack, output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = lock(path.with_name(f".{path.name}.lock"))
            if held is None:
                raise OutputError(f"{path}: another batch is writing there; wait for it, or choose another output")
            stack.callback(unlock, held)
            self._file = stack.enter_context(path.open("a+b"))
            if anew:
                self._file.truncate(0)
            self._read()
            self._open = stack.pop_all()

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
            except ValueError as error:
                raise DataError(
                    f"expected an event of schema {SCHEMA} in line {number} of {self.path}, got {line[:80]!r} "
                    f"({error}): move the file away to start anew"
                ) from error
            if kind == "run":
                self.run = self.run or event
            elif kind in _FORMS:
                self.items[event["item"]] = event
                if kind == "start":
                    self.started.add(event["item"])

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
        """Write what is left, and let others open it.

        Raises:
            OutputError: The disk is full.
        """
        with output_errors(self.path):
            self._open.close()
