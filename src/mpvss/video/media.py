"""What a source is: opened, described, and turned into pictures with their times."""

import glob
import hashlib
import http.client
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import unquote, urlsplit

import av
import numpy as np
from av.buffer import Buffer
from av.codec import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mpvss._files import IMAGE_SUFFIXES, natural_order
from mpvss._validate import shown, shown_address
from mpvss.errors import ConfigError, SourceError
from mpvss.types import IMAGE_RATE, shown_size
from mpvss.video.clock import Clock
from mpvss.video.colour import to_rgb
from mpvss.video.deinterlace import FRAMES_BEFORE, deinterlaced
from mpvss.video.file import Pipe, bound, is_pipe, limits, open_file, single_file_formats
from mpvss.video.images import (
    BROKEN_PICTURE,
    common_full_scale,
    evenly,
    image_size,
    open_image,
    pages,
    read_page,
    read_rgb,
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NETWORK_TIMEOUT_SECONDS = 10.0
_MOST_WARNINGS = 20
_MOST_ANAMORPHIC = 10
_LONGEST_NAME = 200
_SIZES_LOOKED_AT = 32
_SECONDS_BEFORE_TRIES = (0, 1, 4)
_MOST_DOWNLOADED = 8 * 2**30
_MOST_BEFORE_KEY = 300
# H.264's own limit.
_MOST_REORDERED = 16
_HEADER_BYTES = 4096
_OWN_TIMES = "expected --fps for raw streams and images only, which have no times of their own: {} has; leave --fps out"
_INDEX_AT_END = (
    "expected a video that can be read from the pipe {}, got an MP4 whose index is at its end: give the file itself or "
    "write it with -movflags +faststart"
)
# FFmpeg's flags of a container format.
_NO_TIMESTAMPS, _DISCONTINUOUS = 0x80, 0x200

if TYPE_CHECKING:  # generic only in its type stubs
    _PicturePacket = Packet[VideoStream]
else:
    _PicturePacket = Packet

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
        start: The source's own time of the first frame, in seconds. All times count from there.
        assumed_rate: Whether nothing says how fast the frames follow each other, so that ``frame_rate`` is assumed.
        video_streams: Each video stream of the source: codec, size in pixels and frame rate, for ``video_stream``.
        video_stream: Which of them this is, from 0.
        live: Whether frames arrive as they happen (a camera, a live stream), so that there is no end to look ahead to.
        sample_aspect_ratio: Width of a pixel by its height on a display, after rotation; 1 where unknown.
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
    start: Fraction = Fraction(0)
    assumed_rate: bool = False
    video_streams: tuple[str, ...] = ()
    video_stream: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)

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
            "start": _pair(self.start),
            "assumed_rate": self.assumed_rate,
            "video_streams": list(self.video_streams),
            "video_stream": self.video_stream,
            "sample_aspect_ratio": _pair(self.sample_aspect_ratio),
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


# What was described and can be opened only once, until it is read.
_KEPT: dict[tuple[str, Fraction | None, int | None], "VideoMedia"] = {}


def probe(source: str | Path, *, fps: Fraction | None = None, video_stream: int | None = None) -> VideoInfo:
    """Describe a source without reading more than its first frames.

    Args:
        source: A video or image file, a folder of images, a glob pattern, ``camera:0``, or a URL.
        fps: Frames per second of a raw stream or of images, which have no times of their own.
        video_stream: Which video stream of several, from 0; ``None`` for the best one.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
        ConfigError: The source has times of its own, or no such stream.
    """
    media = open_media(source, fps=fps, video_stream=video_stream)
    if isinstance(media, VideoMedia) and media.once:
        _KEPT[str(source), fps, video_stream] = media  # it cannot be opened again: it is for the reading that follows
    else:
        media.close()
    return media.info


def open_media(
    source: str | Path, *, fps: Fraction | None = None, video_stream: int | None = None
) -> "VideoMedia | ImageMedia":
    """Open a source and find out what it is.

    Args:
        source: As for ``probe``, like the others.
        fps: Of a source without times.
        video_stream: Which of several.

    Returns:
        An open source with ``info``, ``trouble``, ``pictures()`` and ``close()``.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
        ConfigError: The source has times of its own, or no such stream.
    """
    text = str(source)
    kept = _KEPT.pop((text, fps, video_stream), None)
    if kept is not None:
        return kept
    open_video = partial(VideoMedia, fps=fps, video_stream=video_stream)
    if text.startswith("camera:"):
        return _open_camera(text, open_video)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif _URL.match(text):
        return _open_url(text, open_video)
    try:
        if is_pipe(text):
            name = "stdin" if text in {"-", "/dev/stdin"} else _output_name(Path(text).stem)
            return open_video(Pipe(text), kind="stream", source=text, name=name)
        path = Path(text)
        if path.is_dir():
            return ImageMedia(_images_in(path), text, _output_name(path.resolve().name) or "images", fps)
        if path.exists():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                kind = AnimationMedia if _is_animated(path) else ImageMedia
                return kind([path], text, _output_name(path.stem), fps)
            try:
                return open_video(str(path), kind="video", source=text, name=_output_name(path.stem))
            except SourceError:
                if path.suffix.lower() != ".tga":  # which can be told by its name only
                    raise
                return ImageMedia([path], text, _output_name(path.stem), fps)
        if glob.has_magic(text):
            folder = path.parent.name
            name = folder if folder and not glob.has_magic(folder) else "images"
            return ImageMedia(_images_like(text), text, name, fps)
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
        clock: What its times are made with; also for its sound, as ``clock.follower``.
        end: When the last frame ends, in seconds; ``None`` before it was read, and where nothing says.
        deinterlace: Whether frames that are flagged as interlaced are deinterlaced.
    """

    def __init__(
        self,
        address: str | Pipe,
        *,
        kind: Kind,
        source: str,
        name: str,
        demuxer: str | None = None,
        options: dict[str, str] | None = None,
        fps: Fraction | None = None,
        video_stream: int | None = None,
        temporary: bool = False,
    ) -> None:
        self.deinterlace = True
        self.trouble = Trouble()
        self._pipe = address if isinstance(address, Pipe) else None
        self._temporary = Path(str(address)) if temporary else None
        self.once = temporary or self._pipe is not None
        self._stopped = False
        self._source, self._number = source, video_stream
        self.end: Fraction | None = None
        self._reformatter = VideoReformatter()
        if kind == "video" or temporary:
            self._open = partial(open_file, str(address))
        elif isinstance(address, Pipe):
            only = limits() | {"format_whitelist": single_file_formats()}
            self._open = partial(av.open, address, "r", options=only, metadata_errors="replace")
        else:
            timeout = _NETWORK_TIMEOUT_SECONDS if kind == "stream" else None
            self._open = partial(
                av.open, address, "r", format=demuxer, options=limits() | (options or {}), timeout=timeout,
                metadata_errors="replace",
            )  # fmt: skip
        try:
            self._container: InputContainer = self._open()
        except (av.FFmpegError, ValueError, OSError) as error:
            head = b"" if self._pipe is None else self._pipe.head
            if self._pipe is not None:
                self._pipe.close()
            raise SourceError(_why_not_opened(source, kind, error, head)) from error
        try:
            self._stream = _video_stream(self._container, source, video_stream)
            # Frame threads lose the last frames of a file that was cut off: 21 instead of 23 of a 24-packet H.264 file.
            self._stream.thread_type = "SLICE"
            try:
                bound(self._stream)
            except ValueError as error:
                raise SourceError(f"expected a video that can be decoded in {source}, found that {error}") from error
            if not self._stream.time_base:
                raise SourceError(f"expected a video with times in {source}, found a clock that does not count")
            self._time_base: Fraction = self._stream.time_base
            self._live = kind == "camera" or (kind == "stream" and not self.once and self._declared_duration() is None)
            self._frames = self._decoded()
            first = next(self._frames, None)
            if first is None and self._pipe is not None and self._pipe.head[4:8] == b"ftyp":
                raise SourceError(_INDEX_AT_END.format(source))
            if first is None:
                reason = f" ({self.trouble.warnings[-1]})" if self.trouble.warnings else ""
                raise SourceError(f"expected a video with frames, found none that can be decoded in {source}{reason}")
            self._frames = chain([first], self._frames)
            self._turn = _orientation(first)
            rate, assumed = self._rate(fps, source)
            self.clock: Clock[av.VideoFrame] = self._new_clock(rate)
            # The first time needs those that follow it, to be known from a wrong one.
            self._timed = self._count(rate) if self._has_no_times else self._times(self.clock)
            timed = next(self._timed)
            self._timed = chain([timed], self._timed)
            self.info = self._describe(first, kind, source, name, rate, assumed)
        except BaseException:
            self.close()
            raise

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame; a live source that falls silent is connected anew, or the end of it is an error."""
        while True:
            try:
                yield from decode(self._container, self._stream, self.trouble, live=self._live)
                return
            except av.FFmpegError as error:
                self._connect_again(error.strerror or str(error))

    def _connect_again(self, reason: str) -> None:
        for wait in _SECONDS_BEFORE_TRIES:
            if self._stopped:
                return
            time.sleep(wait)
            try:
                container = self._open()
                stream = _video_stream(container, self._source, self._number)
                bound(stream)
            except (av.FFmpegError, ValueError, OSError, SourceError):
                continue
            self._container.close()
            self._container, self._stream = container, stream
            self.trouble.note(f"the stream fell silent ({reason}): connected again", damaged=1)
            return
        raise SourceError(
            f"expected more frames of the live source {self._source}, got none for {_NETWORK_TIMEOUT_SECONDS:g} s "
            f"({reason}), nor a new connection in {len(_SECONDS_BEFORE_TRIES)} tries: check the source and the network"
        )

    def interrupt(self) -> None:
        """Have a reading in another thread end soon."""
        self._stopped = True
        if self._pipe is not None:
            self._pipe.stopped = True

    @property
    def _has_no_times(self) -> bool:
        """Whether the container is a mere stream of pictures, whose times FFmpeg makes up at 25 a second."""
        return bool(self._container.format.flags & _NO_TIMESTAMPS)

    def _rate(self, fps: Fraction | None, source: str) -> tuple[Fraction | None, bool]:
        """Frames a second, where known, and whether that is a mere assumption."""
        stream = self._stream
        if not self._has_no_times:
            if fps is not None:
                raise ConfigError(_OWN_TIMES.format(source))
            return stream.average_rate or stream.guessed_rate or None, False
        # The decoder has it from the stream itself; the container would only say FFmpeg's assumption.
        own = stream.codec_context.framerate
        if fps is not None or own:
            return fps or own, False
        self.trouble.note(f"nothing says how many frames a second there are: {IMAGE_RATE} assumed; --fps sets it")
        return IMAGE_RATE, True

    def _new_clock(self, rate: Fraction | None, start: int | None = None) -> Clock[av.VideoFrame]:
        jumps = bool(self._container.format.flags & _DISCONTINUOUS)
        return Clock(self._time_base, rate, jumps=jumps, live=self._live, start=start)

    def _times(self, clock: Clock[av.VideoFrame]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decoded frames with the times that the clock makes of theirs."""
        for frame in self._frames:
            yield from clock.push(frame.pts, frame)
        yield from clock.finish()

    def _count(self, rate: Fraction | None) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decoded frames at a constant rate, for streams without times."""
        for number, frame in enumerate(self._frames):
            yield number / (rate or IMAGE_RATE), frame

    def _declared_duration(self) -> Fraction | None:
        if self._stream.duration is not None:
            return self._stream.duration * self._time_base
        if self._container.duration is not None:
            return Fraction(self._container.duration, 1_000_000)
        return None

    def _describe(
        self, first: av.VideoFrame, kind: Kind, source: str, name: str, rate: Fraction | None, assumed: bool
    ) -> VideoInfo:
        stream, container = self._stream, self._container
        transpose = self._turn[0]
        duration = None if self._has_no_times else self._declared_duration()
        # AVI declares how many slots there are, not how many of them have a frame.
        declared = len(stream.index_entries) if container.format.name == "avi" else stream.frames
        frames = declared or (round(duration * rate) if duration is not None and rate else None)
        return VideoInfo(
            source=source,
            name=name,
            kind=kind,
            height=first.width if transpose else first.height,
            width=first.height if transpose else first.width,
            time_base=1 / (rate or IMAGE_RATE) if self._has_no_times else self._time_base,
            frame_rate=rate,
            frames=None if self._live else frames,
            duration=None if self._live else duration,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            rotation=first.rotation % 360,
            has_audio=bool(container.streams.audio),
            live=self._live,
            start=self.clock.start or Fraction(0),
            assumed_rate=assumed,
            video_streams=tuple(_stream_line(one) for one in _video_streams(container)),
            video_stream=_video_streams(container).index(stream),
            sample_aspect_ratio=_sample_aspect_ratio(stream, transposed=transpose),
        )

    def pictures(self) -> Iterator[tuple[Fraction, Callable[[], Picture | None]]]:
        """All frames, once: time in seconds from the first frame, and a function that makes the picture.

        Times are the source's own less that of its first frame, as ``Clock`` makes them strictly increasing.
        """
        time, last = Fraction(0), None
        for time, last in self._whole(self._timed) if self.deinterlace else self._timed:
            yield time, partial(self._picture, last)
        if last is not None:
            self.end = self._end_of(time, last)

    def _whole(self, timed: Iterator[tuple[Fraction, av.VideoFrame]]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Frames with their times, deinterlaced."""
        times: deque[Fraction] = deque()

        def frames() -> Iterator[av.VideoFrame]:
            for moment, frame in timed:
                times.append(moment)
                yield frame

        for frame in deinterlaced(frames(), self.trouble.note):
            yield times.popleft(), frame

    def _end_of(self, time: Fraction, last: av.VideoFrame) -> Fraction | None:
        """When the last frame ends, in seconds from the first frame; ``None`` where the stream does not say."""
        if self._has_no_times:
            return time + self.info.time_base
        if last.duration:
            return time + last.duration * self._time_base
        declared = self._declared_duration()
        return declared if declared is not None and declared > time and not self.trouble.damaged else None

    def seek(self, pts: Fraction) -> None:
        """Have ``pictures`` begin at a frame that decodes on its own, before this time or at it.

        A file's index may be wrong about that. Afterwards, the times of a clock that has started anew are others, and
        the count of damage means nothing.

        Args:
            pts: In seconds from the first frame.

        Raises:
            av.FFmpegError: The file cannot be entered there.
        """
        if self._has_no_times:  # which frame one comes to would be unknown
            return
        if self.deinterlace:
            pts = max(Fraction(0), pts - FRAMES_BEFORE / (self.info.frame_rate or IMAGE_RATE))
        self._container.seek(int((pts + self.info.start) / self._time_base), stream=self._stream)
        self._frames = self._decoded()
        self._timed = self._times(self._new_clock(self.info.frame_rate, int(self.info.start / self._time_base)))

    def _picture(self, frame: av.VideoFrame) -> Picture | None:
        try:
            picture = to_rgb(frame, self._reformatter, self.trouble.note)
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
        if self._pipe is not None:
            self._pipe.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


class ImageMedia:
    """Image files in order, as one source.

    Its size is the one that most images have, of up to 32 that are looked at; images of another size are scaled to it,
    and images that cannot be read are left out. Both are counted.

    Attributes:
        info: What it is.
        trouble: What went wrong so far.
        names: What the outputs of each image are called: its stem, or a longer name where two would be the same.
    """

    clock = None

    def __init__(self, files: list[Path], source: str, name: str, fps: Fraction | None = None) -> None:
        self.trouble = Trouble()
        self._rate = rate = fps or IMAGE_RATE
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
            time_base=1 / rate,
            frame_rate=rate,
            frames=len(files),
            duration=len(files) / rate,
            codec=codec,
            pixel_format=mode,
            rotation=0,
            has_audio=False,
            live=False,
            assumed_rate=fps is None,
        )

    @property
    def end(self) -> Fraction | None:
        """When the last image ends, in seconds."""
        return self.info.duration

    def pictures(self) -> Iterator[tuple[Fraction, Callable[[], Picture | None]]]:
        """All images, once: time in seconds, and a function that reads the picture, ``None`` where it is damaged."""
        for index, file in enumerate(self._files[self._begin :], self._begin):
            yield index / self._rate, partial(self._picture, file)

    def seek(self, pts: Fraction) -> None:
        """Have ``pictures`` begin at this time, in seconds."""
        self._begin = int(pts * self._rate)

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

    def interrupt(self) -> None:
        """An image does not keep anybody waiting."""

    def close(self) -> None:
        """Nothing stays open between images."""


class AnimationMedia(ImageMedia):
    """One file of several images (animated WebP, APNG, multi-page TIFF) as a video with the file's own times.

    Times are exact to a millisecond in a WebP and to 1/90,000 s in an APNG; a TIFF has 25 pages a second.
    """

    def __init__(self, files: list[Path], source: str, name: str, fps: Fraction | None = None) -> None:
        super().__init__(files, source, name, fps)
        (file,) = files
        with open_image(file) as image:
            self._pages = pages(image)
            base = {"TIFF": 1 / self._rate, "WEBP": Fraction(1, 1000)}.get(image.format or "", Fraction(1, 90000))
            try:
                _, delay = read_page(image, self._pages[0], file, self._full_scale, self._note)
            except BROKEN_PICTURE as error:
                raise SourceError(f"expected an image in {file}, found data that is none ({error})") from error
            tiff = image.format == "TIFF"
        if fps is not None and not tiff:
            raise ConfigError(_OWN_TIMES.format(source))
        self._tiff = tiff
        self._last_end: Fraction | None = None
        self.names = ()
        self.info = replace(
            self.info,
            time_base=base,
            frame_rate=self._rate if tiff else 1 / delay,
            frames=len(self._pages),
            duration=len(self._pages) / self._rate if tiff else None,
            assumed_rate=tiff and fps is None,
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
                time += base if self._tiff else delay
        self._last_end = round(time / base) * base

    @property
    def end(self) -> Fraction | None:
        """When the last image ends, in seconds."""
        return self._last_end

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


def decode(
    container: InputContainer, stream: VideoStream, trouble: Trouble, *, live: bool = False
) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded, in display order; damage is counted, not raised.

    Args:
        container: An open container.
        stream: One of its video streams.
        trouble: Where damage is counted: packets that do not decode, frames decoded with errors, those before the first
            key frame, and what the file itself proves to be cut off.
        live: Whether an end of the reading by an error is raised, not counted.

    Raises:
        av.FFmpegError: A live source cannot be read any more.
    """
    packets = _demux(container, stream)
    slots = _Slots(stream) if container.format.name == "avi" else None
    before = _BeforeKey(trouble)
    seen = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            if live:
                raise
            trouble.note(f"reading stopped before the end: {error.strerror}", damaged=1)
            break
        if packet.dts is not None or packet.size:
            seen += 1
            if slots is not None:
                slots.packet(packet)
            before.packet(packet)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            trouble.note(f"some frames do not decode: {error.strerror}", damaged=1)
            continue
        for frame in frames:
            before.frame(frame)
            if slots is not None:
                slots.frame(frame)
            if frame.is_corrupt:
                trouble.note("some frames were decoded with errors", damaged=1)
            yield frame
    before.settle()
    if seen:
        _note_cut_off(container, stream, seen, trouble)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[_PicturePacket]:
    return container.demux(stream)


class _BeforeKey:
    """Counts the frames at the beginning of a stream that refer to frames before it, which decoders drop unsaid."""

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self._missing: list[int | None] = []
        self._first: int | None = None
        self._packets = 0
        self._any_key = self._any_frame = self._settled = False

    def packet(self, packet: _PicturePacket) -> None:
        """Take a packet before it is decoded."""
        self._packets += 1
        if self._packets > _MOST_BEFORE_KEY and self._any_frame:
            self.settle()
        elif packet.is_discard:
            return
        elif packet.pts is None:
            self._any_key = self._any_key or packet.is_keyframe
            if not self._any_key:
                self._missing.append(None)
        elif self._first is None or packet.pts < self._first:
            self._missing.append(packet.pts)

    def frame(self, frame: av.VideoFrame) -> None:
        """Take a frame that was decoded."""
        if self._settled:
            return
        if not self._any_frame and not self._any_key:
            self._missing = [pts for pts in self._missing if pts is not None]  # these decode without a key frame
        self._any_frame = True
        if self._first is None and frame.pts is not None:
            first = self._first = frame.pts
            self._missing = [pts for pts in self._missing if pts is None or pts < first]
        elif frame.pts in self._missing and frame.pts is not None:
            self._missing.remove(frame.pts)

    def settle(self) -> None:
        """Say how many there were, once."""
        if not self._settled and self._any_frame and self._missing:
            lost = len(self._missing)
            self._trouble.note(f"{lost} frames before the first key frame cannot be decoded: left out", damaged=lost)
        self._settled = True


class _Slots:
    """The times of AVI, which has one slot for each packet in decoding order, and no display times.

    What FFmpeg makes up instead is wrong where frames are reordered. The frame that is shown n-th has the n-th slot of
    those whose packets become a frame.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._slots: list[int] = []
        self._hidden: set[int] = set()
        self._packets = 0
        self._newest = -1

    def packet(self, packet: _PicturePacket) -> None:
        """Take a packet before it is decoded; its times become its number, by which its frame is known."""
        heappush(self._slots, self._packets if packet.dts is None else packet.dts)
        self._hidden.add(self._packets)
        packet.pts = packet.dts = self._packets
        self._packets += 1

    def frame(self, frame: av.VideoFrame) -> None:
        """Give a frame its time; packets that are too old to become a frame give up one slot each."""
        if frame.pts is None or not self._slots:
            return
        self._newest = max(self._newest, frame.pts)
        self._hidden.discard(frame.pts)
        context = self._stream.codec_context
        longest = _MOST_REORDERED if context.has_b_frames else 0
        for number in [number for number in self._hidden if number < self._newest - longest]:
            self._hidden.discard(number)
            if len(self._slots) > 1:
                heappop(self._slots)
        frame.pts = heappop(self._slots)


def _note_cut_off(container: InputContainer, stream: VideoStream, seen: int, trouble: Trouble) -> None:
    """Say that a file is cut off, where it proves so itself: an index of all frames, or a length that is not there.

    Args:
        container: The container, read to its end.
        stream: The stream.
        seen: Number of its packets that were read.
        trouble: Where it is said.
    """
    if "mp4" in container.format.name:
        missing = len(stream.index_entries) - seen  # unlike stream.frames, without what an edit list leaves out
        if missing > 0:
            trouble.note(f"the file is cut off: {missing} of {missing + seen} frames are missing", damaged=missing)
        return
    path = Path(container.name.removeprefix("file:"))
    if not path.is_file():
        return
    with path.open("rb") as file:
        declared = _declared_bytes(file.read(_HEADER_BYTES))
    missing = declared - path.stat().st_size
    if missing > 0:
        written = next((stream.metadata[key] for key in stream.metadata if key.startswith("NUMBER_OF_FRAMES")), "")
        lost = max(1, int(written) - seen) if written.isdecimal() else 1
        trouble.note(f"the file is cut off: {missing} of {declared} bytes are missing", damaged=lost)


def _declared_bytes(header: bytes) -> int:
    """The length that a Matroska or RIFF file says it has, in bytes; 0 where it says nothing."""
    if header[:4] == b"RIFF":
        size = int.from_bytes(header[4:8], "little")
        return size + 8 if size < 0xFFFF_FFFF else 0
    if header[:4] != bytes.fromhex("1A45DFA3"):
        return 0
    begin, head = _vint(header, 4)
    if head is None or header[begin + head : begin + head + 4] != bytes.fromhex("18538067"):
        return 0
    begin, length = _vint(header, begin + head + 4)
    return 0 if length is None else begin + length


def _vint(data: bytes, at: int) -> tuple[int, int | None]:
    """Where a length of Matroska ends, and its value; ``None`` where it is unknown."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + length]) & ((1 << 7 * length) - 1)
    return at + length, None if first == 0 or value == (1 << 7 * length) - 1 else value


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


def _sample_aspect_ratio(stream: VideoStream, *, transposed: bool) -> Fraction:
    """Width of a pixel by its height as displayed; 1 where it is unknown or out of all proportion."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _MOST_ANAMORPHIC <= ratio <= _MOST_ANAMORPHIC:
        return Fraction(1)
    return 1 / ratio if transposed else ratio


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then to flip rows and columns, to show the frame as its display matrix asks."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(cast(Buffer, matrix)), dtype=np.int32)[:5].tolist()
    if a == d == 0 and b and c:
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover picture."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _video_stream(container: InputContainer, source: str, number: int | None) -> VideoStream:
    """The video stream of this number, or the best one."""
    streams = _video_streams(container)
    if not streams:
        types = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise SourceError(f"expected a video stream with frames in {source}, found {types}: give a video")
    if number is not None:
        if not 0 <= number < len(streams):
            raise ConfigError(
                f"expected --video-stream below {len(streams)}, the number of video streams of {source}, got {number}: "
                "mpvss inspect lists them"
            )
        return streams[number]
    best = container.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def _stream_line(stream: VideoStream) -> str:
    """One video stream in words: codec, size and frame rate."""
    context: CodecContext | None = stream.codec_context
    if context is None:
        return "unknown codec"
    rate = stream.average_rate or stream.guessed_rate
    pace = f", {float(rate):.6g} frames a second" if rate else ""
    return f"{context.name} {stream.codec_context.width}x{stream.codec_context.height} (width x height){pace}"


def _open_camera(source: str, open_video: Callable[..., VideoMedia]) -> VideoMedia:
    which = source.removeprefix("camera:")
    name = safe_name(source.replace(":", ""))
    if sys.platform == "darwin":
        options = {"framerate": "30"}
        return open_video(which, kind="camera", source=source, name=name, demuxer="avfoundation", options=options)
    if sys.platform == "win32":
        return open_video(f"video={which}", kind="camera", source=source, name=name, demuxer="dshow")
    if not which.isdecimal():
        raise SourceError(f"expected camera:N with the camera's number, such as camera:0, found {source}")
    return open_video(f"/dev/video{which}", kind="camera", source=source, name=name, demuxer="v4l2")


def _open_url(url: str, open_video: Callable[..., VideoMedia]) -> VideoMedia:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SourceError(
            f"expected an address such as https://host/path, found {shown(shown_address(url))} ({error})"
        ) from error
    name = safe_name("-".join(part for part in (parts.hostname, Path(unquote(parts.path)).stem) if part))
    options = {"rtsp_transport": "tcp"} if parts.scheme.lower().startswith("rtsp") else {}
    try:
        return open_video(url, kind="stream", source=shown_address(url), name=name, options=options)
    except SourceError:
        path = _downloaded(url) if parts.scheme.lower() in {"http", "https"} else None
        if path is None:
            raise
    try:
        return open_video(str(path), kind="stream", source=shown_address(url), name=name, temporary=True)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _downloaded(url: str) -> Path | None:
    """A temporary file with an MP4 whose index FFmpeg cannot reach: the server gives no parts of files.

    Returns:
        The file; ``None`` where the server gives parts, or the answer is no MP4.

    Raises:
        SourceError: It has more than 8 GiB, or more than there is room for, or does not come whole.
    """
    request = urllib.request.Request(url, headers={"Range": "bytes=0-"})
    target = None
    try:
        with urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT_SECONDS) as answer:
            head = answer.read(12)
            if answer.status == 206 or head[4:8] != b"ftyp":
                return None
            length = int(answer.headers.get("Content-Length") or 0)
            room = min(_MOST_DOWNLOADED, shutil.disk_usage(tempfile.gettempdir()).free)
            with tempfile.NamedTemporaryFile(prefix="mpvss-", suffix=".mp4", delete=False) as file:
                target = Path(file.name)
                while head and file.tell() + len(head) <= room:
                    file.write(head)
                    head = answer.read(2**20)
                written = file.tell()
        if head or (length and written != length):
            raise OSError(f"{written} of {length or 'more'} bytes came, at most {room} are taken")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if target is not None:
            target.unlink(missing_ok=True)
            raise SourceError(
                f"expected to download {shown_address(url)} first, an MP4 with its index at the end from a server that "
                f"gives no parts of files, got {error}: download it yourself"
            ) from error
        return None
    except BaseException:
        if target is not None:
            target.unlink(missing_ok=True)
        raise
    return target


def _why_not_opened(source: str, kind: Kind, error: Exception, head: bytes = b"") -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if head[4:8] == b"ftyp":
        return _INDEX_AT_END.format(source)
    if isinstance(error, TimeoutError) and kind == "stream":
        return f"expected somebody to write a video to {source}, got none: {reason}; start the writer first"
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
    return shown_size(size)


def _pair(value: Fraction | None) -> list[int] | None:
    return None if value is None else [value.numerator, value.denominator]
