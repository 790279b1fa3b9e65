"""The command line."""

from mpvss.cli.commands import app, main, run

__all__ = ["app", "main", "run"]
