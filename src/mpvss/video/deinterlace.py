"""Interlaced frames made whole: FFmpeg's bwdif, one frame out for each frame in."""

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from av.filter import Graph

MODES = ("auto", "off")
# A deinterlaced frame depends on itself and on the frames before and after it.
FRAMES_BEFORE = 1

_Format = tuple[int, int, str]


def check_deinterlace(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        ValueError: It is not one of ``MODES``.
    """
    if mode not in MODES:
        raise ValueError(f"deinterlace must be one of {', '.join(MODES)}, got {mode!r}")


def deinterlaced(frames: Iterator[av.VideoFrame], note: Callable[[str], None]) -> Iterator[av.VideoFrame]:
    """Deinterlace the frames that are flagged as interlaced; all others pass as they are.

    What comes out of a frame depends on its neighbours only, so entering a video one frame earlier gives the same.

    Args:
        frames: Decoded frames.
        note: Called with one line when the first interlaced frame comes.
    """
    former: av.VideoFrame | None = None
    bwdif: _Bwdif | None = None
    for frame in frames:
        if bwdif is not None and bwdif.format != _format(frame):
            yield from bwdif.finish()
            bwdif, former = None, None
        if bwdif is None and frame.interlaced_frame:
            bwdif = _begin(frame, former, note)
        former = frame
        if bwdif is None:
            yield frame
        else:
            yield from bwdif.push(frame)
    if bwdif is not None:
        yield from bwdif.finish()


def _begin(frame: av.VideoFrame, former: av.VideoFrame | None, note: Callable[[str], None]) -> "_Bwdif | None":
    """A filter for the frames from this one on; ``None`` where FFmpeg has none for their format."""
    try:
        bwdif = _Bwdif(frame)
    except av.FFmpegError as error:
        note(f"interlaced frames are left as they are: {error.strerror}")
        return None
    note("interlaced video is deinterlaced (bwdif); --deinterlace off leaves it as it is")
    if former is not None and _format(former) == bwdif.format:
        bwdif.push(former)
        bwdif.skip()  # it has been handed on, and only helps the next one
    return bwdif


def _format(frame: av.VideoFrame) -> _Format:
    return frame.width, frame.height, frame.format.name


class _Bwdif:
    """A filter graph for frames of one format. Frames leave it in order, with their own times and tags."""

    def __init__(self, like: av.VideoFrame) -> None:
        self.format = _format(like)
        self._pushed = 0
        self._waiting: deque[av.VideoFrame | None] = deque()
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=Fraction(1, 1)
        )
        bwdif = self._graph.add("bwdif", mode="send_frame", parity="auto", deint="interlaced")
        self._graph.link_nodes(source, bwdif, self._graph.add("buffersink")).configure()

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        self._waiting.append(frame)
        tags = (frame.pts, frame.colorspace, frame.color_range)
        # The graph was made without tags, and a time that is missing would be computed with.
        frame.pts, frame.colorspace, frame.color_range = self._pushed, 2, 0
        self._graph.push(frame)
        frame.pts, frame.colorspace, frame.color_range = tags
        self._pushed += 1
        return self._finished()

    def skip(self) -> None:
        """Do not hand on the last frame that was pushed."""
        self._waiting[-1] = None

    def finish(self) -> Iterator[av.VideoFrame]:
        self._graph.push(None)
        return self._finished()

    def _finished(self) -> Iterator[av.VideoFrame]:
        while self._waiting:
            try:
                whole = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            frame = self._waiting.popleft()
            if frame is None:
                continue
            if not frame.interlaced_frame:  # passed untouched, unless its format had to be changed for the filter
                yield frame
                continue
            whole.pts, whole.time_base = frame.pts, frame.time_base
            whole.duration = frame.duration
            whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
            yield whole
