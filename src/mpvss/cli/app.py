"""The ``mpvss`` program: the commands' parent, its exit codes, and what ends it from outside."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mpvss._validate import printable, shown, without_secrets
from mpvss.cli import _console
from mpvss.cli._console import INTERRUPTED
from mpvss.errors import MpvssError

COMMANDS = {
    "segment": (
        "segment",
        "Segment videos: an overlay to look at, labels to work with, and a JSON description of both.",
    ),
    "batch": (
        "segment",
        "Segment many videos with several workers; what is broken is reported, and what was killed goes on.",
    ),
    "models": ("models", "List the embedded model and recommended ones from the hub."),
    "inspect": ("models", "Describe a video without segmenting it, or verify labels that were written."),
    "doctor": ("models", "Check the installation: versions, devices, codecs, and packages known to break it."),
    "cost": ("models", "Count parameters and multiply-adds of one of the paper's models, as the paper counts them."),
    "export": (
        "models",
        "Export a model for ONNX Runtime, without torch; kept only if it gives the labels that torch gives.",
    ),
    "convert": ("models", "Turn a checkpoint of the published code into a directory that --model takes."),
    "eval": ("evaluate", "Score a model, a propagator or label files on a data set."),
    "compare": ("evaluate", "Put two evaluations side by side, with 95 % intervals of their differences."),
    "bench": (
        "evaluate",
        "Measure what propagation saves, in one run: on your VIDEO, or against the library on every frame.",
    ),
    "propagate": ("annotate", "Propagate masks drawn at some frames of a video to all the others."),
    "train": ("training", "Train a segmentor per frame, or a motion module behind one, from a configuration file."),
    "distill": ("training", "Train a motion module on videos without labels; the segmentor itself is the teacher."),
}
"""The commands in the order of the help: the file of ``mpvss.cli`` that each is in, and the first line of its help."""


class _Commands(TyperGroup):
    """The commands by their names. A file of them is imported when one is called: ``mpvss --help`` imports none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # the nearest of these is what a mistyped one is told

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            import_module(f"mpvss.cli.{COMMANDS[cmd_name][0]}")
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            alone.registered_commands = [each for each in app.registered_commands if _name(each) == cmd_name]
            self.add_command(typer.main.get_command(alone), cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, says) in COMMANDS.items()])


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__)


app = typer.Typer(
    cls=_Commands,
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
