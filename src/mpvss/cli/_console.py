"""How commands speak: results on stdout, everything else on stderr."""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpvss._validate import PublicFormatter, printable, public

if TYPE_CHECKING:
    from mpvss.options import ConsoleOptions
    from mpvss.types import RunSummary

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""

log = logging.getLogger("mpvss.cli")
interrupted = threading.Event()


class _Stderr(logging.Handler):
    """Prints to what is standard error at that moment, which a progress bar takes over to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def set_up(console: "ConsoleOptions") -> None:
    """Send the log to stderr, and keep the libraries' own words out of it."""
    level = logging.DEBUG if console.verbose else logging.WARNING if console.quiet else logging.INFO
    handler = _Stderr()
    handler.setFormatter(PublicFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mpvss").setLevel(level)
    # The library's own progress bars and advice are about training.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "4")  # a hub that does not answer is said within seconds
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it retries without a network, and says so in ten lines


def interruptible(advance: Callable[..., object]) -> Callable[..., None]:
    """Return ``advance``, ending the run where an interrupt was lost: one raised in a destructor is ignored."""

    def step(*result: object, **known: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        advance(*result, **known)

    return step


def print_json(value: Any) -> None:
    """Print one JSON object, without secrets of addresses."""
    print(json.dumps(public(value)))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under their heads."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(printable("  ".join(cells)).rstrip())


def print_run(summary: "RunSummary") -> None:
    """Print what became of one source."""
    seconds, frames = summary.seconds, summary.frames
    keys = f"{summary.key_frames} of them key frames"
    by = "" if summary.key_frames == frames else f", the others by {summary.propagator}"
    print(f"{printable(summary.source)}: {frames} frames, {keys}{by}")
    for kind, path in summary.outputs.items():
        print(f"  {kind:9} {printable(str(path))}")
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    rate = f"{seconds['total']:.1f} ({frames / seconds['total']:.1f} frames/s)"
    print(f"  seconds   {stages} (side by side, so not a sum); total {rate}")
    if summary.compare is not None:
        cost, flicker = summary.compare.seconds_per_frame, summary.compare.flicker
        print(
            f"  a frame   {1000 * cost['per_frame']:.0f} ms per frame, {1000 * cost['propagated']:.0f} ms propagated: "
            f"{cost['per_frame'] / cost['propagated']:.1f} times faster"
        )
        alone, ours = flicker["per_frame"], flicker["propagated"]
        if alone is not None and ours is not None:
            print(f"  flicker   {100 * alone:.2f} % per frame, {100 * ours:.2f} % propagated")
