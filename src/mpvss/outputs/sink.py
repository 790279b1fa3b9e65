"""What an output is: a file or folder that is there when it is whole, and a sink that writes results into one.

A format is one file beside this one, with a class like ``labels.LabelSink``, and one line in ``sinks.SINKS``.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8

from mpvss._files import Pending, output_errors
from mpvss.labels import palette_for
from mpvss.types import Segmentation
from mpvss.video import Reader

_Any = TypeVar("_Any", bound="Output")


@dataclass(frozen=True, eq=False)
class RunInfo:
    """What sinks know of a run before its first result.

    Attributes:
        reader: Of the source; ``reader.info`` has its size and time base, ``reader.names`` those of images of a folder.
        class_names: In the order of their ids.
        about: What NAME.json says of the model and its options.
        drawn: Ids of the classes that are drawn; ``None`` for all.
        alpha: Opacity of the classes over the image, 0 to 1.
        legend: Whether class names are drawn.
    """

    reader: Reader
    class_names: tuple[str, ...]
    about: Mapping[str, Any]
    drawn: Sequence[int] | None = None
    alpha: float = 0.5
    legend: bool = False

    @cached_property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The colour of each class, RGB."""
        return palette_for(self.class_names)


class Sink(Protocol):
    """One output of one run: given each result in order, finished, and closed or aborted. Most are an ``Output``.

    Attributes:
        ending: What follows the run's name in the name of the file or folder.
        is_folder: Whether it is a folder.
        until: When the last frame ends, in seconds; ``None`` where nobody knows. To be set before it is finished.
        warnings: What to say when it is finished, one line each.
    """

    ending: str
    is_folder: bool
    until: Fraction | None
    warnings: list[str]

    def __init__(self, path: Path, info: RunInfo) -> None:
        """Begin under a temporary name."""

    def write(self, result: Segmentation) -> None:
        """Append a result."""

    def finish(self) -> None:
        """Write what is left, still under the temporary name, as the others of the run may fail."""

    def close(self) -> None:
        """Give the output its name."""

    def abort(self) -> None:
        """Remove what was written; harmless when closed already."""


class Output:
    """A file or folder that gets its name when it is whole, and is removed when something fails before.

    A context manager: closed when the block ends without an exception, aborted otherwise (Ctrl-C included).
    """

    is_folder = False

    def __init__(self, path: str | Path) -> None:
        """Open it under a temporary name; a subclass sets what ``_begin`` needs before.

        Raises:
            OutputError: Another writer has it, or it cannot be written.
        """
        self.until: Fraction | None = None
        self.warnings: list[str] = []
        self._pending = Pending(path, folder=self.is_folder)
        self._open = True
        self._whole = False
        self._files = ExitStack()  # what is open; closed at the end, whatever comes
        try:
            with output_errors(self._pending.path):
                self._begin(self._pending.temporary)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> None:
        """Write what is left; the output keeps its temporary name until it is closed.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._open or self._whole:
            return
        try:
            with output_errors(self._pending.path):
                self._finish()
            self._pending.sync()
        except BaseException:
            self.abort()
            raise
        self._whole = True

    def close(self) -> None:
        """Finish the output and give it its name; harmless when closed or aborted already.

        Raises:
            OutputError: It cannot be written.
        """
        self.finish()
        if not self._open:
            return
        try:
            self._pending.commit()
        except BaseException:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Remove what was written; harmless when closed or aborted already."""
        if self._open:
            self._open = False
            try:
                with suppress(Exception):  # what is being closed may be the reason for stopping
                    self._release()
            finally:  # also where a second Ctrl-C comes meanwhile
                self._pending.discard()

    def _begin(self, temporary: Path) -> None:
        """Open the file."""

    def _finish(self) -> None:
        """Write what is left, and close the file."""
        self._release()

    def _release(self) -> None:
        """Close the file, whatever its state."""
        self._files.close()

    def __enter__(self: _Any) -> _Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
