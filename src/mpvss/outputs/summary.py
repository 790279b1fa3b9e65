"""NAME.json: what the ids of the labels mean, when each frame is shown, and how it was all made.

It holds a checksum of each frame's labels and one of itself, by which damage and files of different runs are noticed.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mpvss import __version__
from mpvss._files import output_errors
from mpvss.cli.doctor import library_versions
from mpvss.labels import LabelMap, ignore_id
from mpvss.outputs.sink import Output, RunInfo
from mpvss.types import Segmentation

SCHEMA = 1


class MetaWriter(Output):
    """Writes NAME.json as the frames come, one line each, so that a long video takes no memory.

    Args:
        path: File to write; replaced if it exists.
        header: What stands before the frames: source, size, classes, palette, ignore, model, options.
        time_base: Every timestamp is a whole multiple of this, in seconds.

    Raises:
        OutputError: The file cannot be written.
        ValueError: The header names something that the writer adds itself.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], time_base: Fraction) -> None:
        own = {"schema", "time_base", "frames", "crc32"} & header.keys()
        if own:
            raise ValueError(f"expected a header without {', '.join(sorted(own))}, which the writer adds")
        self._time_base = time_base
        self._separator = "\n"
        whole = {"schema": SCHEMA, **header, "time_base": [time_base.numerator, time_base.denominator]}
        text = json.dumps(whole)
        self._crc = content_crc(json.loads(text))
        self._header = f'{text[:-1]}, "frames": ['
        super().__init__(path)

    def _begin(self, temporary: Path) -> None:
        self._file = self._files.enter_context(temporary.open("w", encoding="utf-8"))
        self._file.write(self._header)

    def add(
        self, index: int, pts: Fraction, key: bool, name: str | None = None, labels: LabelMap | None = None
    ) -> None:
        """Append a frame.

        Args:
            index: Position in the source.
            pts: Time in seconds, a whole multiple of the time base.
            key: Whether the segmentor ran on it.
            name: What the outputs of an image of a folder are called.
            labels: Its labels, of which the checksum is kept; without them they cannot be verified.

        Raises:
            OutputError: The file cannot be written.
            ValueError: The time is no multiple of the time base.
        """
        entry: dict[str, Any] = {"index": index, "pts": whole_ticks(pts, self._time_base), "key": key}
        if name is not None:
            entry["name"] = name
        if labels is not None:
            entry["crc32"] = labels_crc(labels)
        self._crc = content_crc(entry, self._crc)
        with output_errors(self._pending.path):
            self._file.write(f"{self._separator}{json.dumps(entry)}")
        self._separator = ",\n"

    def _finish(self) -> None:
        self._file.write(f'\n], "crc32": {self._crc}}}\n')
        super()._finish()


class SummarySink(MetaWriter):
    """NAME.json."""

    ending = ".json"

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._names = info.reader.names
        source = info.reader.info
        header = {
            "version": __version__,
            "libraries": library_versions(),
            "source": source.source,
            "size": list(source.size),
            "start": [source.start.numerator, source.start.denominator],
            "sample_aspect_ratio": list(source.sample_aspect_ratio.as_integer_ratio()),
            "classes": list(info.class_names),
            "palette": info.palette.tolist(),
            "ignore": ignore_id(len(info.class_names)),
            **info.about,
        }
        super().__init__(path, header, source.time_base)

    def write(self, result: Segmentation) -> None:
        """Append the frame's entry."""
        name = self._names[result.index] if self._names else None
        self.add(result.index, result.pts, result.is_key, name, result.labels)


def labels_crc(labels: LabelMap) -> int:
    """CRC-32 of the bytes of a label map, in rows from the top, 16 bits with the lower byte first."""
    ordered = labels if sys.byteorder == "little" else labels.astype(f"<u{labels.itemsize}")
    return zlib.crc32(np.ascontiguousarray(ordered).data)


def content_crc(value: Any, before: int = 0) -> int:
    """CRC-32 of a JSON value, however it is laid out, after what came before."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode(), before)


def whole_ticks(pts: Fraction, time_base: Fraction) -> int:
    """A time in ticks.

    Raises:
        ValueError: It is no whole multiple of the time base.
    """
    ticks = pts / time_base
    if ticks.denominator != 1:
        raise ValueError(f"expected a time in whole multiples of {time_base} s, got {pts} s")
    return ticks.numerator
