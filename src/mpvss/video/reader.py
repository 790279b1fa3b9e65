"""One stream of frames from any source, decoded ahead in a thread: a bounded number of them, never the whole video."""

import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from mpvss.errors import SourceError
from mpvss.types import Frame
from mpvss.video.clock import Clock
from mpvss.video.deinterlace import check_deinterlace
from mpvss.video.image_media import ImageMedia
from mpvss.video.info import VideoInfo
from mpvss.video.media import VideoMedia
from mpvss.video.sources import open_media
from mpvss.video.times import Seconds, parse_rate, parse_time

_POLL_SECONDS = 0.1
# When a live source is given up that its reading thread does not give up itself, as it does on a network's time limit.
_CAMERA_SILENT_SECONDS, _STREAM_SILENT_SECONDS = 10, 60
_LONGEST_CLOSE_SECONDS = 5
_MOST_WAITING_BYTES = 2**28  # ten images of 4K


def read(  # noqa: PLR0913 - every way that a source can be read
    source: str | Path,
    *,
    start: Seconds | None = None,
    end: Seconds | None = None,
    stride: int = 1,
    read_ahead: int = 8,
    fps: Seconds | None = None,
    video_stream: int | None = None,
    deinterlace: str = "auto",
    vectors: bool = False,
) -> "Reader":
    """Read the frames of a source, in order.

    A frame's index is its position among all frames of the source that decode, so a selection is decoded from the
    beginning, and only the conversion to RGB is saved for frames that are left out. Frames are turned upright, have
    the size of the first one, and strictly increasing times.

    Args:
        source: A video file, a folder or glob pattern of images (natural order, 25 a second), ``camera:0``, or a URL.
        start: First time to read, in seconds from the first frame; included.
        end: Time to stop at, in seconds from the first frame; not included.
        stride: Take every n-th frame, beginning with the first selected one.
        read_ahead: Number of frames that may wait decoded; fewer where they would take more than 256 MiB.
        fps: Frames per second of a raw stream or of images, which have no times of their own.
        video_stream: Which video stream of several, from 0; ``None`` for the best one.
        deinterlace: ``auto`` deinterlaces the frames that are flagged as interlaced, ``off`` leaves them.
        vectors: Whether frames carry the stream's own motion vectors, where it has any (``MotionVectors``).

    Returns:
        An iterator of ``Frame`` and a context manager. Leaving it, exhausting it or dropping it ends the thread.

    Raises:
        SourceError: There is no such source, or nothing in it can be decoded. Raised while iterating: no frame is
            selected, or an image has another size than the first.
        ConfigError: ``fps`` was given and the source has times of its own, or it has no such video stream.
        ValueError: A time, the stride, the rate, the read-ahead or ``deinterlace`` is out of range.
    """
    first = None if start is None else parse_time(start)
    last = None if end is None else parse_time(end)
    if last is not None and last <= (first or 0):
        raise ValueError(f"expected an end after the start, got start {start or 0} and end {end}")
    if stride < 1:
        raise ValueError(f"expected a stride of 1 or more, got {stride}")
    if read_ahead < 1:
        raise ValueError(f"expected a read-ahead of 1 frame or more, got {read_ahead}")
    check_deinterlace(deinterlace)
    media = open_media(source, fps=parse_rate(fps), video_stream=video_stream, vectors=vectors)
    if isinstance(media, VideoMedia):
        media.deinterlace = deinterlace == "auto"
    return Reader(media, first, last, stride, read_ahead)


class _Progress:
    """What the thread tells the reader besides frames."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.end: Fraction | None = None


class Reader:
    """The frames of one source; made by ``read``.

    Attributes:
        info: What the source is.
        selected_end: Time to stop at, in seconds from the first frame; ``None`` for the end of the source.
    """

    def __init__(
        self,
        media: VideoMedia | ImageMedia,
        start: Fraction | None,
        end: Fraction | None,
        stride: int,
        read_ahead: int,
    ) -> None:
        self.info: VideoInfo = media.info
        self._media = media
        self.selected_end = end
        self._moved = start is not None
        self._origin: Fraction | None = None
        self._progress = _Progress()
        # Fewer where they are large: a file says itself how much memory its images take.
        room = _MOST_WAITING_BYTES // (3 * media.info.height * media.info.width)
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(max(1, min(read_ahead, room)))
        self._stop = threading.Event()
        self._done = False
        # The thread holds no reference to the reader, so that dropping the reader ends the thread.
        self._thread = threading.Thread(
            target=_pump,
            args=(media, _select(media, start, end, stride, self._progress), self._queue, self._stop, self._progress),
            name=f"mpvss-read-{media.info.name}",
            daemon=True,
        )
        self._thread.start()

    @property
    def damaged(self) -> int:
        """Frames or packets lost or decoded with errors so far; a file that was cut off has some at its end."""
        return self._media.trouble.damaged

    @property
    def warnings(self) -> list[str]:
        """What else was noticed so far, one line each; a bounded number."""
        clock = self._media.clock
        return [*self._media.trouble.warnings, *(() if clock is None else clock.warnings)]

    @property
    def clock(self) -> Clock[Any] | None:
        """What the times are made with, whose ``follower`` gives those of the sound; ``None`` for images."""
        return self._media.clock

    @property
    def end(self) -> Fraction | None:
        """When the last selected frame ends, in seconds; known after the last frame, where the source says."""
        return self._progress.end

    @property
    def names(self) -> Sequence[str]:
        """What the outputs of each frame of a folder of images are called, by index; none for a video."""
        return getattr(self._media, "names", ())

    @property
    def seconds(self) -> float:
        """Time spent decoding so far, in the reading thread."""
        return self._progress.seconds

    @property
    def origin(self) -> Fraction:
        """The time that should be the zero of a video made from these frames; known after the first frame.

        It is the first selected frame's time where ``start`` left out what came before, and zero otherwise.
        """
        if self._origin is None:
            raise ValueError("expected the origin to be asked for after the first frame was read")
        return self._origin

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        message: Frame | BaseException | None = None
        patience = _CAMERA_SILENT_SECONDS if self.info.kind == "camera" else _STREAM_SILENT_SECONDS
        silent_at = time.monotonic() + patience if self.info.live else math.inf
        while not self._done:
            if time.monotonic() > silent_at:
                self.close()
                raise SourceError(
                    f"expected more frames of {self.info.source}, got none for {patience} s: "
                    "check that it is connected and switched on"
                )
            try:
                message = self._queue.get(timeout=_POLL_SECONDS)  # short waits, so that Ctrl-C is handled everywhere
                break
            except queue.Empty:
                continue
        if message is None:
            self.close()
            raise StopIteration
        if isinstance(message, BaseException):
            self.close()
            raise message
        if self._origin is None:
            self._origin = message.pts if self._moved else Fraction(0)
        return message

    def close(self) -> None:
        """Stop reading and wait for the thread to end; harmless when closed already."""
        self._done = True
        self._stop.set()
        self._media.interrupt()
        # A camera or a server may keep its thread in a call that nothing can end.
        until = time.monotonic() + _LONGEST_CLOSE_SECONDS if self.info.live else math.inf
        while self._thread.is_alive() and time.monotonic() < until:
            while not self._queue.empty():  # a thread that waits for room finds it, and then sees the stop
                self._queue.get_nowait()
            self._thread.join(_POLL_SECONDS)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.close()


def _select(
    media: VideoMedia | ImageMedia,
    start: Fraction | None,
    end: Fraction | None,
    stride: int,
    progress: _Progress,
) -> Iterator[Frame]:
    """The frames of a range, every stride-th, with their positions in the source."""
    in_range = 0
    any_selected = False
    latest = Fraction(0)
    for index, (pts, make_image, vectors) in enumerate(media.images()):
        latest = pts
        if start is not None and pts < start:
            continue
        if end is not None and pts >= end:
            progress.end = end
            break
        if in_range % stride == 0:
            image = make_image()
            if image is not None:
                any_selected = True
                yield Frame(index, pts, image, vectors)
        in_range += 1
    else:
        progress.end = media.end if end is None or media.end is None else min(end, media.end)
    if not any_selected:
        if in_range:
            raise SourceError(f"expected readable frames in {media.info.source}: {media.trouble.warnings[-1]}")
        until = "the end" if end is None else f"{float(end):g} s"
        raise SourceError(
            f"expected frames from {float(start or 0):g} s to {until}, got none: {media.info.source} was read up to "
            f"{float(latest):g} s; choose a range within it"
        )


def _pump(
    media: VideoMedia | ImageMedia,
    frames: Iterator[Frame],
    out: "queue.Queue[Frame | BaseException | None]",
    stop: threading.Event,
    progress: _Progress,
) -> None:
    """Decode into the queue until the end, an error (handed on) or the stop; then close the source."""
    message: Frame | BaseException | None
    try:
        while not stop.is_set():
            began = time.perf_counter()
            try:
                message = next(frames, None)
            except BaseException as error:
                message = error
            progress.seconds += time.perf_counter() - began
            _hand_on(message, out, stop)
            if not isinstance(message, Frame):
                return
    finally:
        media.close()


def _hand_on(
    message: Frame | BaseException | None, out: "queue.Queue[Frame | BaseException | None]", stop: threading.Event
) -> None:
    """Put into the queue when there is room, or leave it at the stop."""
    while not stop.is_set():
        with suppress(queue.Full):
            out.put(message, timeout=_POLL_SECONDS)
            return
