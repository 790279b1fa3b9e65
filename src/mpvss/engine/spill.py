"""Arrays that wait: in memory up to a limit, and beyond it in a temporary file that has no name and goes by itself."""

import logging
import mmap
import tempfile
import threading
from dataclasses import replace
from typing import IO, TypeVar, cast

import numpy as np

from mpvss.errors import OutputError
from mpvss.types import Frame

log = logging.getLogger(__name__)

MOST_HELD = 2**30
"""Bytes of waiting arrays that stay in memory, of each kind of things that wait."""

_BLOCK, _ALIGNED = 2**26, 64
_Array = TypeVar("_Array", bound=np.ndarray)


class Spill:
    """Keeps arrays for a while. Any number of threads may use it.

    Attributes:
        what: What waits, for messages.
        held: Bytes of it that are in memory.
    """

    def __init__(self, what: str) -> None:
        """Begin empty.

        Args:
            what: What waits, for messages.
        """
        self.what = what
        self.held = 0
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._mapped_from = self._free = self._end = 0
        self._warned = False
        self._lock = threading.Lock()

    def keep(self, array: _Array) -> _Array:
        """Return the array itself, or beyond the limit an equal one that lies in a file.

        Raises:
            OutputError: The temporary folder is full or cannot be written.
        """
        with self._lock:
            if self.held + array.nbytes <= MOST_HELD:
                self.held += array.nbytes
                return array
            try:
                return self._write(array)
            except OSError as error:
                raise OutputError(
                    f"{self.what} no longer fit into memory, and the temporary folder {tempfile.gettempdir()} does not "
                    f"take them ({error.strerror or error}); set TMPDIR to a folder with room, or make the distance "
                    "between key frames or masks smaller, or use direction forward"
                ) from error

    def keep_frame(self, frame: Frame) -> Frame:
        """Do the same with a frame's image."""
        kept = self.keep(frame.rgb)
        return frame if kept is frame.rgb else replace(frame, rgb=kept)

    def clear(self) -> None:
        """Count from nothing again. What is still in use stays valid."""
        with self._lock:
            self.held = 0
            if self._file is not None:
                self._file.close()
                self._file = self._map = None

    def _write(self, array: _Array) -> _Array:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="mpvss-")  # noqa: SIM115 - closed by clear
            self._free = self._end = 0
        if not self._warned:
            self._warned = True
            log.warning(
                "%s take more than %d MiB until they can be finished; the rest waits in a temporary file in %s",
                self.what, MOST_HELD >> 20, tempfile.gettempdir(),
            )  # fmt: skip
        if self._free + array.nbytes > self._end:
            # A system maps some ten thousand pieces of files, not one for each array.
            size = max(_BLOCK, -(-array.nbytes // _BLOCK) * _BLOCK)
            self._free, self._end = self._end, self._end + size
            self._file.truncate(self._end)
            self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=self._free)
            self._mapped_from = self._free
        start = self._free
        self._free += -(-array.nbytes // _ALIGNED) * _ALIGNED
        # Written and not only mapped: so a full disk is an error here, and no crash where the array is read.
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        kept = np.ndarray(array.shape, array.dtype, self._map, start - self._mapped_from)
        return cast("_Array", kept)
