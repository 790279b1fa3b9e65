"""Errors that the outside world can cause.

Misuse of the API raises ``ValueError`` or ``TypeError``. Files, videos, checkpoints and data sets raise a subclass of
``MpvssError``: the message says what was expected, what it got and what to do. The command line prints it as one
line and exits with 2.
"""

from mpvss._validate import without_secrets

_LONGEST = 590
_KEPT_END = 200


class MpvssError(Exception):
    """Base of every error that a file, a video, a checkpoint or a data set can cause.

    Its message holds no password and no signature of an address, and less than 600 characters: the middle of a longer
    one is left out.
    """

    def __init__(self, message: str = "") -> None:
        text = without_secrets(message)
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - _KEPT_END - 5]} ... {text[-_KEPT_END:]}"
        super().__init__(text)


class SourceError(MpvssError):
    """A video, an image folder or a camera cannot be read."""


class OutputError(MpvssError):
    """An output cannot be written, or exists already."""


class ModelError(MpvssError):
    """A segmentor or a propagator cannot be loaded or does not fit."""


class DataError(MpvssError):
    """A data set or a label file does not follow its layout."""


class ConfigError(MpvssError):
    """A configuration file holds an unknown key or a value out of range."""


class OptionError(ValueError):
    """An option has a wrong value: misuse in Python, and one line on the command line.

    Attributes:
        name: The option, as Python calls it.
        reason: What is wrong with its value.
    """

    def __init__(self, name: str, reason: str, *, separator: str = " ") -> None:
        super().__init__(f"{name}{separator}{reason}")
        self.name, self.reason = name, f"{separator}{reason}"
