"""How far a long command is: a bar in a terminal or a notebook, a line every half minute elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, Protocol

from mpvss._validate import printable

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """What a command calls after each step."""

    def __call__(self, *result: object, total: int | None = None, steps: int = 1) -> None:
        """Count steps; what they were does not matter. ``total`` says how many there are, once that is known."""
        ...


@contextmanager
def progress(
    name: str,
    total: int | None,
    *,
    unit: str = "frames",
    done: int = 0,
    quiet: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show progress on standard error while the block runs.

    Args:
        name: What is worked on.
        total: Number of steps; ``None`` where nobody knows.
        unit: What a step is.
        done: Steps that an earlier run did.
        quiet: Show nothing; ``None`` for whatever mpvss logs at level INFO or below.
        clock: Gives seconds; decides when a line is due.
    """
    from rich.console import Console

    if quiet or (quiet is None and not log.isEnabledFor(logging.INFO)):
        yield lambda *_, **__: None
        return
    console = Console(stderr=True)
    if not (console.is_terminal or (console.is_jupyter and find_spec("ipywidgets"))):  # which its bar needs there
        yield _Lines(name, total, unit, done, clock)
        return
    with nullcontext(_bars[-1]) if _bars else _bar(console) as bar:  # a terminal shows one at a time
        _bars.append(bar)
        task = bar.add_task(printable(name), total=total, completed=done, unit=unit)

        def advance(*_: object, total: int | None = None, steps: int = 1) -> None:
            bar.update(task, advance=steps, **({} if total is None else {"total": total}))

        try:
            yield advance
        finally:
            _bars.pop()
            bar.refresh()  # a notebook would stay at the last but one
            if _bars:
                bar.remove_task(task)


_bars: list[Any] = []


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:.1f} {task.fields['unit']}/s")

    name = TextColumn("{task.description}", markup=False)
    return Progress(name, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), console=console)


class _Lines:
    """A line in the log whenever half a minute has passed since the last one."""

    def __init__(self, name: str, total: int | None, unit: str, done: int, clock: Callable[[], float]) -> None:
        self._name, self._total, self._unit, self._clock = name, total, unit, clock
        self._first = self._done = done
        self._began = self._last = clock()

    def __call__(self, *_: object, total: int | None = None, steps: int = 1) -> None:
        self._done += steps
        self._total = self._total if total is None else total
        now = self._clock()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = (self._done - self._first) / (now - self._began)
        share = f"{self._done} {self._unit}"
        left = ""
        if self._total:
            share = f"{self._done} of {self._total} {self._unit} ({min(100, 100 * self._done // self._total)} %)"
            left = f", {max(0, self._total - self._done) / rate:.0f} s left" if rate else ""
        log.info("%s: %s, %.1f %s/s%s", self._name, share, rate, self._unit, left)
