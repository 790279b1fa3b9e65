"""Frames that were listed by one reading of a source, read again from anywhere in it."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt32

from mpvss._files import atomic
from mpvss.errors import DataError, SourceError
from mpvss.types import Frame
from mpvss.video.image_media import ImageMedia
from mpvss.video.media import VideoMedia
from mpvss.video.sources import open_media

# Where a file's index is by decoding time, the first jump can land a little late.
_SECONDS_BEFORE = (0, 2)
_COLUMNS = {"index": np.int64, "ticks": np.int64, "prints": np.uint32, "keys": np.bool_, "cuts": np.bool_}


def fingerprint(rgb: UInt8[np.ndarray, "H W 3"]) -> int:
    """A checksum of every pixel: damaged files may decode to images that differ in a few, by where they are entered."""
    return zlib.crc32(np.ascontiguousarray(rgb).data)


@dataclass(frozen=True, eq=False)
class FrameList:
    """What one reading of a source gave: a row for each frame, in order.

    Attributes:
        index: Position in the source.
        ticks: Time in whole multiples of ``time_base``, increasing.
        prints: ``fingerprint`` of the image.
        time_base: In seconds.
    """

    index: Int64[np.ndarray, " N"]
    ticks: Int64[np.ndarray, " N"]
    prints: UInt32[np.ndarray, " N"]
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> "FrameList":
        return FrameList(self.index[rows], self.ticks[rows], self.prints[rows], self.time_base)

    def pts(self, row: int) -> Fraction:
        """Time of a row in seconds."""
        return int(self.ticks[row]) * self.time_base


@dataclass(frozen=True, eq=False)
class Listing:
    """The frames of a video, and which of them are key frames and begin another scene."""

    frames: FrameList
    keys: Bool[np.ndarray, " N"]
    cuts: Bool[np.ndarray, " N"]

    def write(self, path: Path) -> None:
        """Write the listing; the file appears when it is whole."""
        with atomic(path) as part, part.open("wb") as file:
            np.savez(
                file,
                index=self.frames.index,
                ticks=self.frames.ticks,
                prints=self.frames.prints,
                time_base=np.array([self.frames.time_base.numerator, self.frames.time_base.denominator]),
                keys=self.keys,
                cuts=self.cuts,
            )

    @classmethod
    def read(cls, path: Path) -> "Listing":
        """Read a listing.

        Raises:
            DataError: The file holds none.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                time_base = Fraction(*file["time_base"].tolist())
                columns: dict[str, np.ndarray] = {name: np.asarray(file[name], kind) for name, kind in _COLUMNS.items()}
                if len({column.shape for column in columns.values()}) != 1 or columns["index"].ndim != 1:
                    raise ValueError("columns of different lengths")
                frames = FrameList(columns["index"], columns["ticks"], columns["prints"], time_base)
                return cls(frames, columns["keys"], columns["cuts"])
        except Exception as error:  # what zipfile, zlib and numpy raise at damaged bytes has no common base
            raise DataError(f"expected a list of frames in {path}, got other data: remove {path.parent}") from error


def read_listed(
    source: str | Path,
    frames: FrameList,
    *,
    deinterlace: str = "auto",
    fps: Fraction | None = None,
    video_stream: int | None = None,
    vectors: bool = False,
) -> Iterator[Frame]:
    """Read these frames of a source, exactly as the reading that listed them did.

    A file is entered at its last key frame before the first of them, and every image's time and fingerprint is
    compared with the list. Where they differ (an index that points elsewhere, a stream whose images depend on what
    was decoded before), the source is decoded from its beginning instead, from the same frame on.

    Args:
        source: What was listed.
        frames: Some rows of its list, in order; not necessarily all between the first and the last.
        deinterlace: As when it was listed; see ``read``.
        fps: As for the listing.
        video_stream: As for the listing.
        vectors: Whether frames carry the stream's motion vectors; see ``read``.

    Raises:
        SourceError: The source holds other frames than were listed.
    """
    done = 0
    for seconds in (*_SECONDS_BEFORE, None):
        open_source = partial(open_media, source, fps=fps, video_stream=video_stream, vectors=vectors)
        for frame in _try(open_source, frames[done:], seconds, deinterlace):
            yield frame
            done += 1
        if done == len(frames):
            return
    raise SourceError(
        f"expected the frame at {float(frames.pts(done)):g} s of {source} as it was read before, got another or "
        "none: the source has changed meanwhile; start anew"
    )


def _try(
    open_source: Callable[[], VideoMedia | ImageMedia], frames: FrameList, seconds: int | None, deinterlace: str
) -> Iterator[Frame]:
    """The frames up to the first that is not as listed, entered so many seconds before the first of them."""
    media = open_source()
    try:
        if isinstance(media, VideoMedia):
            media.deinterlace = deinterlace == "auto"
        if seconds is not None:
            media.seek(max(Fraction(0), frames.pts(0) - seconds))
        row = 0
        for pts, make_image, step in media.images():
            if pts < frames.pts(row):
                continue
            image = make_image() if pts == frames.pts(row) else None
            if image is None or fingerprint(image) != int(frames.prints[row]):
                return
            yield Frame(int(frames.index[row]), pts, image, step)
            row += 1
            if row == len(frames):
                return
    except av.FFmpegError:  # this file cannot be entered there
        return
    finally:
        media.close()
