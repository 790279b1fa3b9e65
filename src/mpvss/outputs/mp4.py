"""H.264 video with the source's timestamps and sound."""

from contextlib import AbstractContextManager
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from jaxtyping import UInt8

from mpvss._files import output_errors
from mpvss.outputs.audio import Audio, add_sound
from mpvss.outputs.container import check_size, open_output
from mpvss.outputs.planes import Planes, to_planes
from mpvss.outputs.sink import Output

if TYPE_CHECKING:  # generic only in its type stubs
    _AnyPacket = Packet[Stream]
else:
    _AnyPacket = Packet

# With the search of sub-pixels and partitions cut short, half the time; with a crf of 21, files as large as with 20
# before, .6 dB less (docs/LOG.md).
_QUICK = "subme=1:partitions=i8x8:weightp=0"
_FINEST_TICKS = 1_000_000
_FINEST_ASPECT = 255  # of the two 16-bit numbers that H.264 has, far below a pixel
_BT709 = 1  # colour matrix, primaries and transfer have the same number in FFmpeg
_LIMITED_RANGE = 1


class Mp4Writer(Output):
    """Writes H.264 mp4 (yuv420p, BT.709, fast start) with the source's timestamps and sound.

    Timestamps are exact for time bases down to a microsecond; finer ones are rounded to that, and those that would
    become one are a microsecond apart. H.264 with 4:2:0 chroma holds only even sizes: the last row or column of an odd
    one is repeated once. There are no B-frames: without them, decoding order is display order and no player needs an
    edit list to get the times right.

    Args:
        path: File to write; replaced if it exists.
        size: Height and width of the images in pixels.
        time_base: Every timestamp is a whole multiple of this, in seconds.
        audio: The sound that goes with the images.
        origin: The source's time that becomes zero here, for images and sound; ``Reader.origin``.
        crf: Quality of x264, 0 to 51, less is better.
        sample_aspect_ratio: Width of a pixel by its height on a display.

    The last image is shown until ``until``, or for as long as the one before. ``warnings`` say what happened to the
    sound.

    Raises:
        OutputError: The file cannot be written.
        ValueError: Size or quality are out of range.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        time_base: Fraction,
        *,
        audio: Audio | None = None,
        origin: Fraction = Fraction(0),
        crf: int = 21,
        sample_aspect_ratio: Fraction = Fraction(1),
    ) -> None:
        if min(size) < 1:
            raise ValueError(f"expected a size of at least 1x1, got {size[0]}x{size[1]}")
        if not 0 <= crf <= 51:
            raise ValueError(f"expected a crf of 0 to 51, got {crf}")
        self._size = size
        self._origin = origin
        self._audio = audio
        self._crf = crf
        self._aspect = sample_aspect_ratio
        # mp4 counts in whole parts of a second, and places the start of a track in parts that are its own setting.
        self._ticks = min(time_base.denominator, _FINEST_TICKS)
        if self._ticks < 1000:
            self._ticks = lcm(self._ticks, 1000)
        self._last: int | None = None
        self._last_pts: Fraction | None = None
        self._last_duration = 0
        super().__init__(path)

    def _begin(self, temporary: Path) -> None:
        self._container = self._files.enter_context(self._mp4(temporary))
        options = {"crf": str(self._crf), "preset": "veryfast", "bf": "0", "x264-params": _QUICK}
        self._stream = self._container.add_stream("libx264", rate=25, options=options)  # the rate is a hint
        self._stream.height, self._stream.width = (side + side % 2 for side in self._size)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, self._ticks)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        if self._aspect != 1:  # an output of square pixels says nothing of them
            context.sample_aspect_ratio = self._aspect.limit_denominator(_FINEST_ASPECT)

    def append(self, rgb: UInt8[np.ndarray, "H W 3"], pts: Fraction) -> None:
        """Append an image.

        Args:
            rgb: Image of the writer's size.
            pts: The source's time of the image in seconds, later than the one before.

        Raises:
            OutputError: The file cannot be written.
            ValueError: Size or time is out of range.
        """
        check_size(rgb.shape, self._size)
        self.append_planes(to_planes(rgb), pts)

    def append_planes(self, planes: Planes, pts: Fraction) -> None:
        """Append an image of luma and chroma; see ``append``."""
        check_size(planes.y.shape, self._size)
        ticks = round((pts - self._origin) * self._ticks)
        if self._last is not None and self._last_pts is not None:
            if pts <= self._last_pts:
                raise ValueError(f"expected a time after the image before, got {float(pts):g} s")
            ticks = max(ticks, self._last + 1)  # times that differ by less than can be written stay apart
            self._last_duration = ticks - self._last
        self._last, self._last_pts = ticks, pts
        frame = _video_frame(planes)
        frame.pts = ticks
        frame.time_base = Fraction(1, self._ticks)
        with output_errors(self._pending.path):
            self._mux(self._stream.encode(frame))

    def _mp4(self, path: Path) -> AbstractContextManager[OutputContainer]:
        return open_output(path, "mp4", {"movflags": "+faststart", "movie_timescale": str(self._ticks)})

    def _finish(self) -> None:
        if self._last is None:
            raise ValueError("expected at least one image before the video is closed")
        if self.until is not None:
            self._last_duration = max(1, round((self.until - self._origin) * self._ticks) - self._last)
        self._mux(self._stream.encode(None))
        self._files.close()
        if self._audio is not None:
            temporary = self._pending.temporary
            self.warnings += add_sound(temporary, self._audio, self._origin, self._pending.path, self._mp4)

    def _mux(self, packets: list[_AnyPacket]) -> None:
        for packet in packets:
            if packet.pts == self._last and self._last_duration:
                packet.duration = self._last_duration
            self._container.mux(packet)


def _video_frame(planes: Planes) -> av.VideoFrame:
    """Return an image as FFmpeg takes it; the last row and column of an odd size are repeated."""
    (height, width), (rows, columns) = planes.y.shape, planes.u.shape
    frame = av.VideoFrame(2 * columns, 2 * rows, "yuv420p")
    images = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    for image, plane in zip(images, (planes.y, planes.u, planes.v), strict=True):
        image[: plane.shape[0], : plane.shape[1]] = plane
    images[0][height : 2 * rows] = images[0][height - 1]
    images[0][:, width : 2 * columns] = images[0][:, width - 1 : width]
    frame.colorspace = frame.color_primaries = frame.color_trc = _BT709
    frame.color_range = _LIMITED_RANGE
    return frame
