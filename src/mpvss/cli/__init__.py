"""The command line."""

from mpvss.cli.app import main, run

__all__ = ["main", "run"]
