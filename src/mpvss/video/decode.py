"""Every frame of a video stream, in display order; damage is counted, not raised."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mpvss.video.header import note_cut_off
from mpvss.video.info import Trouble

_MOST_BEFORE_KEY = 300
# H.264's own limit.
_MOST_REORDERED = 16
if TYPE_CHECKING:  # generic only in its type stubs
    _VideoPacket = Packet[VideoStream]
else:
    _VideoPacket = Packet


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
        note_cut_off(container, stream, seen, trouble)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[_VideoPacket]:
    return container.demux(stream)


class _BeforeKey:
    """Counts the frames at the beginning of a stream that refer to frames before it, which decoders drop unsaid."""

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self._missing: list[int | None] = []
        self._first: int | None = None
        self._packets = 0
        self._any_key = self._any_frame = self._settled = False

    def packet(self, packet: _VideoPacket) -> None:
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

    def packet(self, packet: _VideoPacket) -> None:
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
