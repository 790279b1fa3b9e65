"""The video streams of a container: which one is read, and how its images are to be shown."""

from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.codec import CodecContext
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from mpvss.errors import ConfigError, SourceError

_MOST_ANAMORPHIC = 10


def sample_aspect_ratio_of(stream: VideoStream, *, transposed: bool) -> Fraction:
    """Width of a pixel by its height as displayed; 1 where it is unknown or out of all proportion."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _MOST_ANAMORPHIC <= ratio <= _MOST_ANAMORPHIC:
        return Fraction(1)
    return 1 / ratio if transposed else ratio


def orientation_of(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then to flip rows and columns, to show the frame as its display matrix asks."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(cast(Buffer, matrix)), dtype=np.int32)[:5].tolist()
    if a == d == 0 and b and c:
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover image."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def choose_stream(container: InputContainer, source: str, number: int | None) -> VideoStream:
    """The video stream of this number, or the best one."""
    streams = video_streams(container)
    if not streams:
        types = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise SourceError(f"expected a video stream with frames in {source}, got {types}: give a video")
    if number is not None:
        if not 0 <= number < len(streams):
            raise ConfigError(
                f"expected --video-stream below {len(streams)}, the number of video streams of {source}, got {number}: "
                "mpvss inspect lists them"
            )
        return streams[number]
    best = container.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def describe_stream(stream: VideoStream) -> str:
    """One video stream in words: codec, size and frame rate."""
    context: CodecContext | None = stream.codec_context
    if context is None:
        return "unknown codec"
    rate = stream.average_rate or stream.guessed_rate
    frame_rate = f", {float(rate):.6g} frames a second" if rate else ""
    return f"{context.name} {stream.codec_context.width}x{stream.codec_context.height} (width x height){frame_rate}"
