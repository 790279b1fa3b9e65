"""An open video, camera or stream."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mpvss.errors import ConfigError, SourceError
from mpvss.types import IMAGE_RATE, MotionVectors, shown_size
from mpvss.video.clock import Clock
from mpvss.video.colour import to_rgb
from mpvss.video.decode import decode
from mpvss.video.deinterlace import FRAMES_BEFORE, deinterlaced
from mpvss.video.file import INDEX_AT_END, NETWORK_TIMEOUT_SECONDS, Address, Pipe, bound
from mpvss.video.header import names_sound
from mpvss.video.info import OWN_TIMES, Image, Trouble, VideoInfo
from mpvss.video.streams import choose_stream, describe_stream, orientation_of, sample_aspect_ratio_of, video_streams
from mpvss.video.vectors import StepVectors

_SECONDS_BEFORE_TRIES = (0, 1, 4)
# FFmpeg's flags of a container format.
_NO_TIMESTAMPS, _DISCONTINUOUS = 0x80, 0x200
_Stamp = tuple[Fraction, MotionVectors | None]


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
        self, address: Address, *, fps: Fraction | None = None, video_stream: int | None = None, vectors: bool = False
    ) -> None:
        """Open it, and decode what its description needs.

        Args:
            address: What to open.
            fps: Frames per second of a stream without times.
            video_stream: Which of several, from 0; ``None`` for the best one.
            vectors: Whether the decoder hands its motion vectors on.

        Raises:
            SourceError: It cannot be opened, or no frame in it can be decoded.
            ConfigError: It has times of its own, or no such stream.
        """
        self.deinterlace = True
        self.trouble = Trouble()
        self.once = address.temporary or isinstance(address.target, Pipe)
        self.end: Fraction | None = None
        self._address, self._number, self._vectors = address, video_stream, vectors
        self._stopped = False
        self._reformatter = VideoReformatter()
        self._container = address.open()
        try:
            self._begin(fps)
        except BaseException:
            self.close()
            raise

    def _begin(self, fps: Fraction | None) -> None:
        """Decode the first frame and those after it that its time needs, to be known from a wrong one."""
        source, kind = self._address.shown, self._address.kind
        self._stream = choose_stream(self._container, source, self._number)
        # Frame threads lose the last frames of a file that was cut off: 21 instead of 23 of a 24-packet H.264 file.
        self._stream.thread_type = "SLICE"
        try:
            self._prepare(self._stream)
        except ValueError as error:
            raise SourceError(f"expected a video that can be decoded in {source}, got one for which {error}") from error
        if not self._stream.time_base:
            raise SourceError(f"expected a video with times in {source}, got a clock that does not count")
        self._time_base: Fraction = self._stream.time_base
        self._live = kind == "camera" or (kind == "stream" and not self.once and self._declared_duration() is None)
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise SourceError(self._why_no_frame())
        self._frames = chain([first], self._frames)
        self._turn = orientation_of(first)
        rate, assumed = self._rate(fps, source)
        self.clock: Clock[av.VideoFrame] = self._new_clock(rate)
        self._timed = self._count(rate) if self._has_no_times else self._times(self.clock)
        timed = next(self._timed)
        self._timed = chain([timed], self._timed)
        self.info = self._describe(first, rate, assumed=assumed)
        if kind == "video" and not self.info.has_audio and names_sound(Path(str(self._address.target))):
            self.trouble.note("the file names sound that cannot be found in it: its header is damaged")

    def _prepare(self, stream: VideoStream) -> None:
        """Set what the decoder of a stream is asked for, before it is opened."""
        bound(stream)
        if self._vectors:
            stream.codec_context.options = {**stream.codec_context.options, "flags2": "+export_mvs"}

    def _why_no_frame(self) -> str:
        pipe = self._address.target
        if isinstance(pipe, Pipe) and pipe.head[4:8] == b"ftyp":
            return INDEX_AT_END.format(self._address.shown)
        reason = f" ({self.trouble.warnings[-1]})" if self.trouble.warnings else ""
        return f"expected a video with frames, got none that can be decoded in {self._address.shown}{reason}"

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
                container = self._address.open()
                stream = choose_stream(container, self._address.shown, self._number)
                self._prepare(stream)
            except (av.FFmpegError, ValueError, SourceError):
                continue
            self._container.close()
            self._container, self._stream = container, stream
            self.trouble.note(f"the stream fell silent ({reason}): connected again", damaged=1)
            return
        raise SourceError(
            f"expected more frames of the live source {self._address.shown}, got none for "
            f"{NETWORK_TIMEOUT_SECONDS:g} s ({reason}), nor a new connection in {len(_SECONDS_BEFORE_TRIES)} tries: "
            "check the source and the network"
        )

    def interrupt(self) -> None:
        """Have a reading in another thread end soon."""
        self._stopped = True
        if isinstance(self._address.target, Pipe):
            self._address.target.stopped = True

    @property
    def _has_no_times(self) -> bool:
        """Whether the container is a mere stream of images, whose times FFmpeg makes up at 25 a second."""
        return bool(self._container.format.flags & _NO_TIMESTAMPS)

    def _rate(self, fps: Fraction | None, source: str) -> tuple[Fraction | None, bool]:
        """Frames a second, where known, and whether that is a mere assumption."""
        stream = self._stream
        if not self._has_no_times:
            if fps is not None:
                raise ConfigError(OWN_TIMES.format(source))
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

    def _describe(self, first: av.VideoFrame, rate: Fraction | None, *, assumed: bool) -> VideoInfo:
        stream, container = self._stream, self._container
        transpose = self._turn[0]
        duration = None if self._has_no_times else self._declared_duration()
        # AVI declares how many slots there are, not how many of them have a frame.
        declared = len(stream.index_entries) if container.format.name == "avi" else stream.frames
        frames = declared or (round(duration * rate) if duration is not None and rate else None)
        return VideoInfo(
            source=self._address.shown,
            name=self._address.name,
            kind=self._address.kind,
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
            video_streams=tuple(describe_stream(one) for one in video_streams(container)),
            video_stream=video_streams(container).index(stream),
            sample_aspect_ratio=sample_aspect_ratio_of(stream, transposed=transpose),
        )

    def images(self) -> Iterator[tuple[Fraction, Callable[[], Image | None], MotionVectors | None]]:
        """All frames, once: time in seconds from the first frame, a function that makes the image, motion vectors.

        Times are the source's own less that of its first frame, as ``Clock`` makes them strictly increasing.
        """
        time, last = Fraction(0), None
        stamped = self._with_vectors()
        for (time, vectors), last in self._whole(stamped) if self.deinterlace else stamped:
            yield time, partial(self._image, last), vectors
        if last is not None:
            self.end = self._end_of(time, last)

    def _with_vectors(self) -> Iterator[tuple[_Stamp, av.VideoFrame]]:
        """Frames with their times, and with their motion vectors where they are asked for and shown as they are stored.

        Deinterlaced images are no longer what the vectors are of; so they are taken before.
        """
        steps = StepVectors(self.info.codec) if self._vectors and not any(self._turn) else None
        for moment, frame in self._timed:
            yield (moment, None if steps is None else steps.push(frame)), frame

    def _whole(self, frames: Iterator[tuple[_Stamp, av.VideoFrame]]) -> Iterator[tuple[_Stamp, av.VideoFrame]]:
        """Frames with what belongs to them, deinterlaced."""
        stamps: deque[_Stamp] = deque()

        def bare() -> Iterator[av.VideoFrame]:
            for stamp, frame in frames:
                stamps.append(stamp)
                yield frame

        for frame in deinterlaced(bare(), self.trouble.note):
            yield stamps.popleft(), frame

    def _end_of(self, time: Fraction, last: av.VideoFrame) -> Fraction | None:
        """When the last frame ends, in seconds from the first frame; ``None`` where the stream does not say."""
        if self._has_no_times:
            return time + self.info.time_base
        if last.duration:
            return time + last.duration * self._time_base
        declared = self._declared_duration()
        return declared if declared is not None and declared > time and not self.trouble.damaged else None

    def seek(self, pts: Fraction) -> None:
        """Have ``images`` begin at a frame that decodes on its own, before this time or at it.

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

    def _image(self, frame: av.VideoFrame) -> Image | None:
        try:
            image = to_rgb(frame, self._reformatter, self.trouble.note)
        except (av.FFmpegError, ValueError, OSError) as error:
            self.trouble.note(f"some frames have no colours that can be shown: {error}", damaged=1)
            return None
        transpose, flip_rows, flip_columns = self._turn
        if transpose:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        size = (image.shape[0], image.shape[1])
        if size != self.info.size:
            import cv2

            self.trouble.note(
                f"frames change size from {shown_size(self.info.size)} to {shown_size(size)}: "
                "scaled to the size of the first"
            )
            image = cv2.resize(image, self.info.size[::-1], interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image, dtype=np.uint8)

    def close(self) -> None:
        """Close the source; harmless when closed already."""
        self._container.close()
        if isinstance(self._address.target, Pipe):
            self._address.target.close()
        elif self._address.temporary:
            Path(self._address.target).unlink(missing_ok=True)
