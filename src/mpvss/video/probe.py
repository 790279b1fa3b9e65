"""What a source is: opened, described, and turned into pictures with their times."""

import glob
import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mpvss.errors import SourceError
from mpvss.images import (
    BROKEN_PICTURE,
    IMAGE_SUFFIXES,
    common_full_scale,
    evenly,
    image_size,
    natural_order,
    open_image,
    pages,
    read_page,
    read_rgb,
)
from mpvss.types import IMAGE_RATE
from mpvss.untrusted import shown_address
from mpvss.video.file import bound, limits, open_file

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NETWORK_TIMEOUT_SECONDS = 10.0
_MOST_WARNINGS = 20
_LONGEST_NAME = 200
_SIZES_LOOKED_AT = 32

Kind = Literal["video", "images", "camera", "stream"]
Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source before its frames are read.

    Attributes:
        source: The source as it was named; of an address without user name, password and query.
        name: A stem for output files.
        kind: A video file, image files, a camera, or a network stream.
        height: Height in pixels of the first frame as it is displayed (after rotation).
        width: Width in pixels, likewise.
        time_base: Every timestamp is a whole multiple of this, in seconds.
        frame_rate: Frames per second on average, where known.
        frames: Number of frames: declared or estimated; ``None`` where unknown.
        duration: Length in seconds, where known.
        codec: Name of the codec or image format.
        pixel_format: Name of the pixel format as stored.
        rotation: Degrees counter-clockwise that the stored pictures are turned for display: 0, 90, 180 or 270.
        has_audio: Whether there is a sound track.
        live: Whether frames arrive as they happen (a camera, a live stream), so that there is no end to look ahead to.
    """

    source: str
    name: str
    kind: Kind
    height: int
    width: int
    time_base: Fraction
    frame_rate: Fraction | None
    frames: int | None
    duration: Fraction | None
    codec: str
    pixel_format: str
    rotation: int
    has_audio: bool
    live: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def describe(self) -> dict[str, object]:
        """The same as plain values for JSON: rationals become [numerator, denominator]."""
        return {
            "source": self.source,
            "name": self.name,
            "kind": self.kind,
            "size": [self.height, self.width],
            "time_base": _pair(self.time_base),
            "frame_rate": _pair(self.frame_rate),
            "frames": self.frames,
            "duration": _pair(self.duration),
            "codec": self.codec,
            "pixel_format": self.pixel_format,
            "rotation": self.rotation,
            "has_audio": self.has_audio,
            "live": self.live,
        }


@dataclass
class Trouble:
    """What went wrong while reading, without being the end of it.

    Attributes:
        damaged: Frames and packets that were lost, or decoded with errors.
        warnings: The first few different things that happened, one line each.
    """

    damaged: int = 0
    warnings: list[str] = field(default_factory=list)

    _counted: dict[str, tuple[int, str]] = field(default_factory=dict)

    def count(self, what: str, example: str, damaged: int = 0) -> None:
        """Count images of which the same is to be said, in one warning with the first of them."""
        self.damaged += damaged
        number, first = self._counted.get(what, (0, example))
        self._counted[what] = number + 1, first
        before, now = (f"{n} of the images {what} (first: {first})" for n in (number, number + 1))
        if number:
            self.warnings[self.warnings.index(before)] = now
        else:
            self.warnings.append(now)

    def note(self, warning: str, damaged: int = 0) -> None:
        """Count damage and keep the warning unless it is known already or there are many."""
        self.damaged += damaged
        if warning not in self.warnings and len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(warning)


def probe(source: str | Path) -> VideoInfo:
    """Describe a source without reading more than its first frame.

    Args:
        source: A video or image file, a folder of images, a glob pattern, ``camera:0``, or a URL.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
    """
    media = open_media(source)
    media.close()
    return media.info


def open_media(source: str | Path) -> "VideoMedia | ImageMedia":
    """Open a source and find out what it is.

    Args:
        source: As for ``probe``.

    Returns:
        An open source with ``info``, ``trouble``, ``pictures()`` and ``close()``.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
    """
    text = str(source)
    if text.startswith("camera:"):
        return _open_camera(text)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif _URL.match(text):
        return _open_url(text)
    try:
        path = Path(text)
        if path.is_dir():
            return ImageMedia(_images_in(path), text, _output_name(path.resolve().name) or "images")
        if path.exists():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                kind = AnimationMedia if _is_animated(path) else ImageMedia
                return kind([path], text, _output_name(path.stem))
            return VideoMedia(str(path), kind="video", source=text, name=_output_name(path.stem))
        if glob.has_magic(text):
            folder = path.parent.name
            return ImageMedia(_images_like(text), text, folder if folder and not glob.has_magic(folder) else "images")
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a folder that may not be read
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"expected a source that can be read, found {reason}: {text}") from error
    raise SourceError(
        f"expected a video file, a folder or pattern of images, camera:N or a URL, found nothing at {text}: "
        "check the path"
    )


class VideoMedia:
    """An open video, camera or stream.

    Attributes:
        info: What it is.
        trouble: What went wrong so far.
    """

    def __init__(
        self,
        address: str,
        *,
        kind: Kind,
        source: str,
        name: str,
        demuxer: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        self.trouble = Trouble()
        self._reformatter = VideoReformatter()
        timeout = _NETWORK_TIMEOUT_SECONDS if kind == "stream" else None
        try:
            self._container: InputContainer = (
                open_file(address)
                if kind == "video"
                else av.open(
                    address,
                    "r",
                    format=demuxer,
                    options=limits() | (options or {}),
                    timeout=timeout,
                    metadata_errors="replace",
                )
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            raise SourceError(_why_not_opened(source, kind, error)) from error
        try:
            self._stream = _video_stream(self._container, source)
            # Frame threads lose the last frames of a file that was cut off: 21 instead of 23 of a 24-packet H.264 file.
            self._stream.thread_type = "SLICE"
            try:
                bound(self._stream)
            except ValueError as error:
                raise SourceError(f"expected a video that can be decoded in {source}, found that {error}") from error
            self._frames = decode(self._container, self._stream, self.trouble)
            first = next(self._frames, None)
            if first is None:
                reason = f" ({self.trouble.warnings[-1]})" if self.trouble.warnings else ""
                raise SourceError(f"expected a video with frames, found none that can be decoded in {source}{reason}")
            self._first: av.VideoFrame | None = first
            self._turn = _orientation(first)
            self.info = self._describe(first, kind, source, name)
        except BaseException:
            self._container.close()
            raise

    def _describe(self, first: av.VideoFrame, kind: Kind, source: str, name: str) -> VideoInfo:
        stream, container = self._stream, self._container
        transpose = self._turn[0]
        if not stream.time_base:
            raise SourceError(f"expected a video with times in {source}, found a clock that does not count")
        rate = stream.average_rate or stream.guessed_rate or None
        duration: Fraction | None = None
        if stream.duration is not None:
            duration = stream.duration * stream.time_base
        elif container.duration is not None:
            duration = Fraction(container.duration, 1_000_000)
        live = kind == "camera" or (kind == "stream" and duration is None)
        frames = stream.frames or (round(duration * rate) if duration is not None and rate else None)
        return VideoInfo(
            source=source,
            name=name,
            kind=kind,
            height=first.width if transpose else first.height,
            width=first.height if transpose else first.width,
            time_base=stream.time_base,
            frame_rate=rate,
            frames=None if live else frames,
            duration=None if live else duration,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            rotation=first.rotation % 360,
            has_audio=bool(container.streams.audio),
            live=live,
        )

    def pictures(self) -> Iterator[tuple[Fraction, Callable[[], Picture | None]]]:
        """All frames, once: time in seconds, and a function that makes the picture.

        Times are the source's own, made strictly increasing: a frame without a time comes one average frame after the
        one before; one that does not come after the one before is moved to one tick after it; where the clock jumps
        back by more than a second it is taken to have started anew, and goes on from there. A live source counts from
        its first frame.
        """
        clock = _Clock(self.info.time_base, self.info.frame_rate, self.trouble, from_zero=self.info.live)
        if self._first is not None:
            yield clock.time(self._first.pts), partial(self._picture, self._first)
            self._first = None
        for frame in self._frames:
            yield clock.time(frame.pts), partial(self._picture, frame)

    def seek(self, pts: Fraction) -> None:
        """Have ``pictures`` begin at a frame that decodes on its own, before this time or at it.

        A file's index may be wrong about that. Afterwards, times that needed the whole stream to be made increasing are
        others, and the count of damage means nothing.

        Args:
            pts: In seconds.

        Raises:
            av.FFmpegError: The file cannot be entered there.
        """
        self._container.seek(int(pts / self.info.time_base), stream=self._stream)
        self._frames, self._first = decode(self._container, self._stream, self.trouble), None

    def _picture(self, frame: av.VideoFrame) -> Picture | None:
        try:
            picture = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        except (av.FFmpegError, ValueError, OSError) as error:
            self.trouble.note(f"some frames have no colours that can be shown: {error}", damaged=1)
            return None
        transpose, flip_rows, flip_columns = self._turn
        if transpose:
            picture = picture.transpose(1, 0, 2)
        picture = picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        size = (picture.shape[0], picture.shape[1])
        if size != self.info.size:
            import cv2

            self.trouble.note(
                f"frames change size from {_by(self.info.size)} to {_by(size)}: scaled to the size of the first"
            )
            picture = cv2.resize(picture, self.info.size[::-1], interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(picture, dtype=np.uint8)

    def close(self) -> None:
        """Close the source; harmless when closed already."""
        self._container.close()


class ImageMedia:
    """Image files in order, as one source.

    Its size is the one that most images have, of up to 32 that are looked at; images of another size are scaled to it,
    and images that cannot be read are left out. Both are counted.

    Attributes:
        info: What it is.
        trouble: What went wrong so far.
        names: What the outputs of each image are called: its stem, or a longer name where two would be the same.
    """

    def __init__(self, files: list[Path], source: str, name: str) -> None:
        self.trouble = Trouble()
        self.names = unique_names(files)
        self._files = files
        self._begin = 0
        first, size = _most_common_size(files)
        codec, mode = _format(first)
        self._full_scale = lru_cache(1)(partial(common_full_scale, files))
        self.info = VideoInfo(
            source=source,
            name=name,
            kind="images",
            height=size[0],
            width=size[1],
            time_base=1 / IMAGE_RATE,
            frame_rate=IMAGE_RATE,
            frames=len(files),
            duration=len(files) / IMAGE_RATE,
            codec=codec,
            pixel_format=mode,
            rotation=0,
            has_audio=False,
            live=False,
        )

    def pictures(self) -> Iterator[tuple[Fraction, Callable[[], Picture | None]]]:
        """All images, once: time in seconds, and a function that reads the picture, ``None`` where it is damaged."""
        for index, file in enumerate(self._files[self._begin :], self._begin):
            yield index / IMAGE_RATE, partial(self._picture, file)

    def seek(self, pts: Fraction) -> None:
        """Have ``pictures`` begin at this time, in seconds."""
        self._begin = int(pts * IMAGE_RATE)

    def _picture(self, file: Path) -> Picture | None:
        try:
            return self._of_size(read_rgb(file, self._full_scale, self._note), file)
        except BROKEN_PICTURE as error:
            self.trouble.count("cannot be read and are left out", f"{file.name}: {error}", damaged=1)
            return None

    def _of_size(self, picture: UInt8[np.ndarray, "_ _ 3"], file: Path) -> Picture:
        size = (picture.shape[0], picture.shape[1])
        if size == self.info.size:
            return picture
        import cv2

        self.trouble.count(f"are scaled to {_by(self.info.size)}, the size of the others", f"{file.name}: {_by(size)}")
        return np.asarray(cv2.resize(picture, self.info.size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _note(self, what: str, file: Path) -> None:
        self.trouble.count(what, file.name)

    def close(self) -> None:
        """Nothing stays open between images."""


class AnimationMedia(ImageMedia):
    """One file of several images (animated WebP, APNG, multi-page TIFF) as a video with the file's own times.

    Times are exact to a millisecond in a WebP and to 1/90,000 s in an APNG; a TIFF has 25 pages a second.
    """

    def __init__(self, files: list[Path], source: str, name: str) -> None:
        super().__init__(files, source, name)
        (file,) = files
        with open_image(file) as image:
            self._pages = pages(image)
            base = {"TIFF": 1 / IMAGE_RATE, "WEBP": Fraction(1, 1000)}.get(image.format or "", Fraction(1, 90000))
            try:
                _, delay = read_page(image, self._pages[0], file, self._full_scale, self._note)
            except BROKEN_PICTURE as error:
                raise SourceError(f"expected an image in {file}, found data that is none ({error})") from error
        tiff = base == 1 / IMAGE_RATE
        self.names = ()
        self.info = replace(
            self.info,
            time_base=base,
            frame_rate=1 / delay,
            frames=len(self._pages),
            duration=len(self._pages) / IMAGE_RATE if tiff else None,
        )

    def pictures(self) -> Iterator[tuple[Fraction, Callable[[], Picture | None]]]:
        """All images, once, in order: time in seconds, and a function that gives the picture."""
        (file,) = self._files
        time, base = Fraction(0), self.info.time_base
        with open_image(file) as image:
            for done, page in enumerate(self._pages):
                try:
                    picture, delay = read_page(image, page, file, self._full_scale, self._note)
                except BROKEN_PICTURE as error:
                    lost = len(self._pages) - done
                    self.trouble.note(f"the last {lost} images of {file.name} cannot be read ({error})", damaged=lost)
                    return
                yield round(time / base) * base, partial(self._of_size, picture, file)
                time += delay

    def seek(self, pts: Fraction) -> None:
        """Begin at the first image, whatever the time: each is made from those before."""


def _most_common_size(files: Sequence[Path]) -> tuple[Path, tuple[int, int]]:
    """The size that most images of up to 32 have, the first of those as common, and the first file that has it."""
    sizes: dict[tuple[int, int], list[Path]] = {}
    reason: Exception | None = None
    looked_at = evenly(files, _SIZES_LOOKED_AT)
    for number, file in enumerate(chain(looked_at, files)):
        if sizes and number >= len(looked_at):  # more are tried only where none of these could be read
            break
        try:
            sizes.setdefault(image_size(file), []).append(file)
        except BROKEN_PICTURE as error:
            reason = reason or error
    if not sizes:
        raise SourceError(f"expected an image in {files[0]}, found data that is none ({reason})") from reason
    size, members = max(sizes.items(), key=lambda item: len(item[1]))
    return members[0], size


def _format(file: Path) -> tuple[str, str]:
    try:
        with open_image(file) as image:
            return (image.format or "image").lower(), image.mode
    except BROKEN_PICTURE:  # which FFmpeg knows
        return file.suffix[1:].lower(), "float"


def unique_names(files: Sequence[Path]) -> tuple[str, ...]:
    """A name for each file, other than all the others on every file system.

    Its stem; where two have the same, the name with its suffix (``a.jpg``, ``a.png``); where that is not enough, as
    with images of several folders, the position before the stem (``000012_a``).
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    stems = [_output_name(file.stem) for file in files]
    count = Counter(map(key, stems))
    names = [
        stem if count[key(stem)] == 1 else _output_name(file.name) for stem, file in zip(stems, files, strict=True)
    ]
    if len(set(map(key, names))) < len(names):
        names = [f"{index:06d}_{stem}" for index, stem in enumerate(stems)]
    return tuple(names)


def decode(container: InputContainer, stream: VideoStream, trouble: Trouble) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded; damage is counted, not raised.

    Args:
        container: An open container.
        stream: One of its video streams.
        trouble: Where damage is counted: packets that do not decode, frames decoded with errors, and frames that the
            file declares but does not hold because it was cut off.
    """
    packets = container.demux(stream)
    seen = 0
    end = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            trouble.note(f"reading stopped before the end: {error.strerror}", damaged=1)
            break
        if packet.dts is not None or packet.size:
            seen += 1
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            trouble.note(f"some frames do not decode: {error.strerror}", damaged=1)
            continue
        for frame in frames:
            if frame.is_corrupt:
                trouble.note("some frames were decoded with errors", damaged=1)
            yield frame
    missing = _declared(container, stream, end) - seen if seen else 0
    if missing > 0:
        trouble.note(f"the file is cut off: {missing} of {missing + seen} frames are missing", damaged=missing)


def _declared(container: InputContainer, stream: VideoStream, end: int) -> int:
    """Number of packets the file says it has; 0 where it says nothing.

    Args:
        container: The container, read to its end.
        stream: The stream.
        end: End of the last packet that was read, in the stream's time base.
    """
    container_format = container.format.name
    if "mp4" in container_format:
        return len(stream.index_entries)  # unlike stream.frames, without what an edit list leaves out
    if "matroska" in container_format and stream.time_base is not None and stream.average_rate:
        written = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)\s*", stream.metadata.get("DURATION", "").replace("\0", ""))
        if written is None:
            return 0
        hours, minutes, seconds = (Fraction(part) for part in written.groups())
        missing = (hours * 60 + minutes) * 60 + seconds - end * stream.time_base
        seen = round(end * stream.time_base * stream.average_rate)
        return seen + int(missing * stream.average_rate)
    return stream.frames


class _Clock:
    """Turns a stream's timestamps into strictly increasing times in seconds; see ``VideoMedia.pictures``."""

    def __init__(self, time_base: Fraction, rate: Fraction | None, trouble: Trouble, *, from_zero: bool) -> None:
        self._time_base = time_base
        self._step = max(1, round(1 / ((rate or IMAGE_RATE) * time_base)))
        self._second = max(1, round(1 / time_base))
        self._trouble = trouble
        self._from_zero = from_zero
        self._offset = 0
        self._last: int | None = None

    def time(self, pts: int | None) -> Fraction:
        if self._last is None:
            ticks = pts or 0
            if self._from_zero:
                self._offset, ticks = -ticks, 0
        elif pts is None:
            ticks = self._last + self._step
        else:
            ticks = pts + self._offset
            if ticks < self._last - self._second:
                self._offset += self._last + self._step - ticks
                ticks = self._last + self._step
                self._trouble.note("timestamps start anew in the middle: counted on from there")
            elif ticks <= self._last:
                ticks = self._last + 1
                self._trouble.note("some timestamps do not increase: moved by the least that makes them")
        self._last = ticks
        return ticks * self._time_base


def _output_name(stem: str) -> str:
    """The name that outputs begin with; of a very long one the beginning and a checksum.

    The longest output and its temporary name add 55 bytes at most, and the name of a file has 255.
    """
    whole = os.fsencode(stem)
    if len(whole) <= _LONGEST_NAME:
        return stem
    kept = whole[: _LONGEST_NAME - 9].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(whole).hexdigest()[:8]}"


def safe_name(name: str) -> str:
    """The name with only letters, digits, dot, dash and underscore, never empty."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "video"


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then to flip rows and columns, to show the frame as its display matrix asks."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(cast(Buffer, matrix)), dtype=np.int32)[:5].tolist()
    if a == d == 0 and b and c:
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _video_stream(container: InputContainer, source: str) -> VideoStream:
    """The best video stream that is not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise SourceError(f"expected a video stream with frames in {source}, found {found}: give a video")
    best = container.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def _open_camera(source: str) -> VideoMedia:
    which = source.removeprefix("camera:")
    name = safe_name(source.replace(":", ""))
    if sys.platform == "darwin":
        options = {"framerate": "30"}
        return VideoMedia(which, kind="camera", source=source, name=name, demuxer="avfoundation", options=options)
    if sys.platform == "win32":
        return VideoMedia(f"video={which}", kind="camera", source=source, name=name, demuxer="dshow")
    if not which.isdecimal():
        raise SourceError(f"expected camera:N with the camera's number, such as camera:0, found {source}")
    return VideoMedia(f"/dev/video{which}", kind="camera", source=source, name=name, demuxer="v4l2")


def _open_url(url: str) -> VideoMedia:
    parts = urlsplit(url)
    name = safe_name("-".join(part for part in (parts.hostname, Path(unquote(parts.path)).stem) if part))
    options = {"rtsp_transport": "tcp"} if parts.scheme.lower().startswith("rtsp") else {}
    return VideoMedia(url, kind="stream", source=shown_address(url), name=name, options=options)


def _why_not_opened(source: str, kind: Kind, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if kind == "camera":
        return f"expected a camera at {source}, found none that opens ({reason}): check its number and permissions"
    if kind == "stream":
        return f"expected a video stream at {source}, found none that opens ({reason}): check the URL and the network"
    if isinstance(error, EOFError):
        return f"expected a video with frames in {source}, found none: give a video that plays"
    return (
        f"expected a video in {source}, found data that is no known video format ({reason}); a recording that was cut "
        "off before its index was written looks the same, and needs to be repaired or copied again"
    )


def _images_in(folder: Path) -> list[Path]:
    entries = list(folder.iterdir())
    files = [entry for entry in entries if _is_image(entry)]
    if not files:
        raise SourceError(
            f"expected images ({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}) in the folder {folder}, "
            f"found none among {len(entries)} entries: give the folder that holds the images itself"
        )
    return _in_order(files)


def _images_like(pattern: str) -> list[Path]:
    entries = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (a pattern may be absolute)
    files = [entry for entry in entries if _is_image(entry)]
    if not files:
        raise SourceError(
            f"expected images that match {pattern}, found none among {len(entries)} matches: check the pattern"
        )
    return _in_order(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _in_order(files: Iterable[Path]) -> list[Path]:
    return [Path(name) for name in natural_order(map(str, files))]


def _is_animated(path: Path) -> bool:
    try:
        with open_image(path) as image:
            return len(pages(image)) > 1
    except BROKEN_PICTURE:  # said when it is opened as an image
        return False


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _pair(value: Fraction | None) -> list[int] | None:
    return None if value is None else [value.numerator, value.denominator]
