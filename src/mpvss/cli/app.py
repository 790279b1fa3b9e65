"""The ``mpvss`` program: the commands' parent, its exit codes, and what ends it from outside."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from mpvss._validate import printable, shown, without_secrets
from mpvss.cli import _console
from mpvss.cli._console import INTERRUPTED
from mpvss.errors import MpvssError

app = typer.Typer(
    help="Segment video: a class for every pixel of every frame, from an image segmentor run on few of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What typer raises for a command line it cannot parse; newer versions carry their own copy of click, so not click's.
_Misuse: type[Any] = typer.BadParameter.__mro__[2]

# Folders below one another: the standard library makes them by recursion.
_MOST_FOLDERS = 500
MOST_ECHOED = 200


def _print_version(asked: bool) -> bool:
    if asked:
        import mpvss

        print(mpvss.__version__)
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 success; 1 a problem was found; 2 an option or the outside world was wrong; 3 some videos of a batch failed; 130
    interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    refusal = _refusal(given)
    if refusal is not None:
        print(f"mpvss: {refusal}", file=sys.stderr)
        return 2
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="mpvss", standalone_mode=False)
    except _Misuse as error:
        error.message = _bounded(without_secrets(error.message), given)
        error.show()
        return 2
    except MpvssError as error:
        print(f"mpvss: {printable(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        from mpvss._extras import missing_module

        message = missing_module(error)
        if message is None:
            raise
        print(f"mpvss: {printable(str(message))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has enough of it
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  which Python flushes at its end
        return 1
    except OSError as error:  # of a path that was named: too long, not allowed, a full disk
        where = f": {shown(str(error.filename))}" if error.filename else ""
        print(f"mpvss: {printable(without_secrets((error.strerror or str(error)) + where))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # newer versions of typer turn the exception into the code themselves
        with suppress(OSError):  # the terminal may be gone
            print("mpvss: interrupted; nothing half-written was kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _refusal(given: Sequence[str]) -> str | None:
    """Say what no system takes as an argument."""
    if any("\0" in argument for argument in given):
        return "expected arguments of text, got one with a NUL byte"
    deepest = max((argument.count(os.sep) for argument in given), default=0)
    return f"expected paths of at most {_MOST_FOLDERS} folders, got {deepest}" if deepest > _MOST_FOLDERS else None


def _bounded(message: str, given: Sequence[str]) -> str:
    """Return a message that repeats no argument whole that is long."""
    for value in (part for argument in given for part in (argument, argument.partition("=")[2])):
        if len(value) > MOST_ECHOED:
            message = message.replace(value, f"{value[:MOST_ECHOED]}...")
    return printable(message)


def _interrupt(number: int, *_: Any) -> None:
    _console.interrupted.set()
    if number != signal.SIGINT:  # shells and the system both say that a terminal is gone; once is enough
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _share_one_heap() -> None:
    """Have all threads allocate from one heap.

    By default glibc gives each thread its own, freed images stay in each of them, and memory grows with the length of
    a video (docs/LOG.md).
    """
    import ctypes

    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-8, 1)  # M_ARENA_MAX


def main() -> None:
    """Entry point of the ``mpvss`` command."""
    # SIGINT as well: shells start background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    hang_up = getattr(signal, "SIGHUP", None)  # which Windows does not have, and nohup has ignored
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no letters for is not worth a failure
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _share_one_heap()
    sys.exit(run())
