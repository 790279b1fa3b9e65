"""Label maps on disk: FFV1 in Matroska beside NAME.json, which says what the ids mean and when each frame is shown.

Matroska rounds times to milliseconds. The exact ones are in the JSON file, and frames are paired with them by order.
"""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import av
import numpy as np

from mpvss._files import output_errors
from mpvss._validate import convert, read_json, shown
from mpvss.errors import DataError
from mpvss.labels import LabelMap, label_dtype
from mpvss.outputs.container import check_size, open_output
from mpvss.outputs.sink import Output, RunInfo
from mpvss.outputs.summary import SCHEMA, content_crc, labels_crc, whole_ticks
from mpvss.types import Segmentation
from mpvss.video.file import bound, open_file

log = logging.getLogger(__name__)

_MICROSECOND = Fraction(1, 1_000_000)


class LabelWriter(Output):
    """Writes label maps losslessly: FFV1, 8 bits of grey up to 255 classes and 16 above, in Matroska.

    Args:
        path: File to write, ``NAME.labels.mkv``; replaced if it exists.
        size: Height and width of the label maps in pixels.
        num_classes: Number of classes, 1 to 65535.
        time_base: Every timestamp is a whole multiple of this, in seconds.

    Raises:
        OutputError: The file cannot be written.
        ValueError: Size or number of classes are out of range.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], num_classes: int, time_base: Fraction) -> None:
        if min(size) < 1:
            raise ValueError(f"expected a size of at least 1x1, got {size[0]}x{size[1]}")
        self._dtype = label_dtype(num_classes)
        self._format = "gray" if self._dtype is np.uint8 else "gray16le"
        self._size = size
        self._time_base = time_base
        # Matroska has whole milliseconds, and FFmpeg counts in 31 bits.
        is_exact = max(time_base.numerator, time_base.denominator) < 2**31
        self._written_base = time_base if is_exact else _MICROSECOND
        self._written = 0
        super().__init__(path)

    def _begin(self, temporary: Path) -> None:
        # Without random ids: equal labels are equal files.
        opened = open_output(temporary, "matroska", {"fflags": "+bitexact"})
        self._container = self._files.enter_context(opened)
        # Golomb-Rice codes runs of one id as such: half the time, no larger files, 8 bits only (docs/LOG.md).
        coder, context = ("0", "0") if self._dtype is np.uint8 else ("1", "1")
        options = {"level": "3", "coder": coder, "context": context, "g": "1", "slicecrc": "1"}
        self._stream = self._container.add_stream("ffv1", rate=25, options=options)  # the rate is a hint
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = self._format
        self._stream.codec_context.time_base = self._written_base

    def append(self, labels: LabelMap, pts: Fraction) -> None:
        """Append a label map.

        Args:
            labels: Class ids of the writer's size and type.
            pts: Time in seconds, a whole multiple of the time base; Matroska rounds it to the millisecond.

        Raises:
            OutputError: The file cannot be written.
            ValueError: Size, type or time do not fit.
        """
        check_size(labels.shape, self._size)
        if labels.dtype != self._dtype:
            raise ValueError(f"expected labels of type {np.dtype(self._dtype)}, got {labels.dtype}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(labels), self._format)
        ticks = whole_ticks(pts, self._time_base)
        frame.pts = ticks if self._written_base == self._time_base else round(pts / self._written_base)
        frame.time_base = self._written_base
        with output_errors(self._pending.path):
            self._container.mux(self._stream.encode(frame))
        self._written += 1

    def _finish(self) -> None:
        if not self._written:
            raise ValueError("expected at least one label map before the file is closed")
        self._container.mux(self._stream.encode(None))
        super()._finish()


class LabelSink(LabelWriter):
    """NAME.labels.mkv."""

    ending = ".labels.mkv"

    def __init__(self, path: Path, info: RunInfo) -> None:
        source = info.reader.info
        super().__init__(path, source.size, len(info.class_names), source.time_base)

    def write(self, result: Segmentation) -> None:
        """Append the frame's label map."""
        self.append(result.labels, result.pts)


class _Frame(TypedDict):
    index: int
    pts: int
    key: bool
    name: NotRequired[str]
    crc32: NotRequired[int]


class _Description(TypedDict):
    time_base: tuple[int, int]
    size: tuple[int, int]
    classes: list[str]
    frames: list[_Frame]


class LabelReader:
    """Reads label maps back, bit for bit, with their exact times.

    Iterating gives (index, pts in seconds, labels, is_key) for each frame, and can be repeated. Both files are verified
    by their checksums; those of an earlier version, which have none, are read with a warning.

    Args:
        path: ``NAME.labels.mkv`` or ``NAME.json``; the other one lies beside it.

    Attributes:
        meta: What the JSON file says, without the list of frames and the checksums.
        verified: Whether there are checksums, which every frame that is given has passed.
        names: What the images of a folder were called, frame by frame; empty for a video.

    Raises:
        DataError: A file is missing, damaged, or not what the other one says.
    """

    def __init__(self, path: str | Path) -> None:
        given = Path(path)
        name = given.name.removesuffix(".labels.mkv").removesuffix(".mkv").removesuffix(".json")
        self._video = given if given.suffix == ".mkv" else given.with_name(f"{name}.labels.mkv")
        self._json = given if given.suffix == ".json" else given.with_name(f"{name}.json")
        for file, what in ((self._video, "label video"), (self._json, "description of the labels")):
            if not file.is_file():
                raise DataError(f"expected the {what} {file}, got no such file: keep both files in one folder")
        self.meta = _read_meta(self._json)
        try:
            about = convert(self.meta, _Description, what="the description")
            self._time_base = Fraction(*about["time_base"])
            self._dtype = label_dtype(len(about["classes"]))
            self._index = np.array([frame["index"] for frame in about["frames"]], dtype=np.int64)
            self._pts = np.array([frame["pts"] for frame in about["frames"]], dtype=np.int64)
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            raise DataError(
                f"expected schema {SCHEMA} of label descriptions in {self._json}, got a malformed one: {error}"
            ) from error
        self._size = about["size"]
        self._key = np.array([frame["key"] for frame in about["frames"]], dtype=bool)
        self._crc = [frame.get("crc32") for frame in about["frames"]]
        names = [frame["name"] for frame in about["frames"] if "name" in frame]
        self.names: tuple[str, ...] = tuple(names) if len(names) == len(self) else ()
        stated, frames = self.meta.pop("crc32", None), self.meta.pop("frames")
        self.verified = self._check_description(stated, frames)

    def _check_description(self, stated: object, frames: list[dict[str, Any]]) -> bool:
        """Compare the JSON file with its checksum, and say whether all can be verified."""
        if stated is None and all(crc is None for crc in self._crc):
            log.warning(
                "%s: it has no checksums, like those of earlier versions: labels are read unverified", self._json
            )
            return False
        computed = content_crc(self.meta)
        for frame in frames:
            computed = content_crc(frame, computed)
        if stated != computed:
            raise DataError(
                f"expected the checksum {computed} in {self._json}, got {shown(stated)}: the file is damaged or was "
                "edited; segment the video again"
            )
        return None not in self._crc

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[tuple[int, Fraction, LabelMap, bool]]:
        count = 0
        with closing(self._decoded()) as label_maps:
            for labels in label_maps:
                if count < len(self):
                    self._verify(count, labels)
                    pts = int(self._pts[count]) * self._time_base
                    yield int(self._index[count]), pts, labels, bool(self._key[count])
                count += 1
        if count != len(self):
            raise DataError(
                f"expected {len(self)} frames in {self._video}, as {self._json.name} lists, got {count}: "
                "the two files belong to different runs, or one was cut off"
            )

    def _decoded(self) -> Generator[LabelMap, None, None]:
        count = 0
        try:
            with open_file(self._video, formats="matroska") as container:
                stream = container.streams.video[0]
                bound(stream)
                if stream.codec_context.name != "ffv1":
                    raise DataError(f"expected labels as FFV1 in {self._video}, got {stream.codec_context.name}")
                for frame in container.decode(stream):
                    yield frame.to_ndarray()
                    count += 1
        except (av.FFmpegError, IndexError, ValueError, OverflowError, MemoryError, NotImplementedError) as error:
            where = f" at frame {self._index[count]}" if 0 < count < len(self) else ""
            raise DataError(
                f"expected a label video in {self._video}, got data that is none{where} ({error})"
            ) from error

    def _verify(self, count: int, labels: LabelMap) -> None:
        if labels.dtype != self._dtype or labels.shape != self._size:
            raise DataError(
                f"expected labels of {self._size} and type {np.dtype(self._dtype)} in {self._video}, got "
                f"{labels.shape} and {labels.dtype}: the two files belong to different runs"
            )
        if self._crc[count] not in (None, labels_crc(labels)):
            raise DataError(
                f"expected the labels of frame {self._index[count]} in {self._video} to have the checksum of "
                f"{self._json.name}, got another: the file is damaged, or the two are of different runs; segment the "
                "video again"
            )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON in {path}, got text that is none ({error})") from error
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or schema != SCHEMA:
        raise DataError(f"expected schema {SCHEMA} of label descriptions in {path}, got {shown(schema)}")
    return meta
