"""The command line: parse, call, print. One file for each group of commands."""

from mpvss.cli.app import app, main, run

__all__ = ["app", "main", "run"]
