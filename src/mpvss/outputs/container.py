"""Media files that are written: PyAV muxes, and the file is ours, so that it is closed whatever fails."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import OutputContainer

from mpvss.types import shown_size


class _File(io.FileIO):
    """A file that writes everything it is given, or raises: the muxer takes a short write for a whole one."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:]) or 0
        return written


@contextmanager
def open_output(path: Path, container_format: str, options: Mapping[str, str]) -> Iterator[OutputContainer]:
    """Open a container to write to; closed when the block ends, however it ends.

    PyAV leaves a file that it opened itself open for the life of the process when the header cannot be written.

    Args:
        path: File to write, replaced if it exists.
        container_format: FFmpeg's name of the format.
        options: Of the format.

    Raises:
        av.FFmpegError: It cannot be written, like an OSError.
    """
    with (
        _File(path, "w+") as file,
        av.open(file, "w", format=container_format, container_options=dict(options)) as container,
    ):
        yield container


def check_size(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Refuse an array of another height and width than the file's.

    Raises:
        ValueError: It is so.
    """
    if tuple(shape[:2]) != size:
        raise ValueError(f"expected a size of {shown_size(size)}, got {shown_size(shape)}")
