"""The command line: parse, call, print. One file for each group of commands."""

from mpvss.cli import segment, models, evaluate, annotate, training  # noqa: F401, I001  in the order of the help
from mpvss.cli.app import app, main, run

__all__ = ["app", "main", "run"]
