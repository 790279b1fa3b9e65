"""Errors that the outside world can cause.

Misuse of the API raises ``ValueError`` or ``TypeError``. Files, videos, checkpoints and data sets raise a subclass of
``MpvssError``: the message says what was expected, what was found and what to do. The command line prints it as one
line and exits with 2.
"""


class MpvssError(Exception):
    """Base of every error that a file, a video, a checkpoint or a data set can cause."""


class SourceError(MpvssError):
    """A video, an image folder or a camera cannot be read."""


class OutputError(MpvssError):
    """An output cannot be written, or exists already."""


class ModelError(MpvssError):
    """A segmentor or a propagator cannot be loaded or does not fit."""


class DataError(MpvssError):
    """A data set or a label file is not as its layout demands."""


class ConfigError(MpvssError):
    """A configuration file holds an unknown key or a value out of range."""
