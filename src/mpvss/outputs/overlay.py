"""The overlay video, and how every output gets its final name: only when it is whole."""

import errno
import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from math import lcm
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from mpvss._files import Pending, output_errors
from mpvss.outputs.container import open_output
from mpvss.video.clock import Clock
from mpvss.video.file import open_file

if TYPE_CHECKING:  # generic only in its type stubs
    _AnyPacket = Packet[Stream]
    _SoundPacket = Packet[AudioStream]
else:
    _AnyPacket = _SoundPacket = Packet

_AnyOutput = TypeVar("_AnyOutput", bound="Output")

_FINEST_TICKS = 1_000_000
_OVERLAP_SECONDS = Fraction(1, 200)
_FINEST_ASPECT = 255  # of the two 16-bit numbers that H.264 has, far below a pixel
_TOKEN = 8
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{{_TOKEN}}}\.(?:part|former)", re.DOTALL)
# What file systems without locks say, besides ENOSYS, which the library knows.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_BT709 = 1  # colour matrix, primaries and transfer have the same number in FFmpeg
_LIMITED_RANGE = 1
_AUDIO_IN_MP4 = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "flac"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
# What the system refuses, whatever is written. All else that the sound raises is the sound's own fault.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_TRIED_PACKETS = 32


class Output:
    """A file or folder that gets its name when it is whole, and is removed when something goes wrong before.

    A context manager: closed when the block ends without an exception, aborted otherwise (Ctrl-C included).
    """

    def __init__(self, path: str | Path, *, folder: bool = False) -> None:
        self._pending = Pending(path, folder=folder)
        self._open = True
        self._whole = False

    def finish(self) -> None:
        """Write what is left; the output keeps its temporary name until it is closed.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._open or self._whole:
            return
        try:
            with output_errors(self._pending.path):
                self._finish()
            self._pending.sync()
        except BaseException:
            self.abort()
            raise
        self._whole = True

    def close(self) -> None:
        """Finish the output and give it its name; harmless when closed or aborted already.

        Raises:
            OutputError: It cannot be written.
        """
        self.finish()
        if not self._open:
            return
        try:
            self._pending.commit()
        except BaseException:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Remove what was written; harmless when closed or aborted already."""
        if self._open:
            self._open = False
            try:
                with suppress(Exception):  # what is being let go may be the reason for stopping
                    self._release()
            finally:  # also where a second Ctrl-C comes meanwhile
                self._pending.discard()

    def _finish(self) -> None:
        """Write what is left, and let go of the file."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of the file, whatever its state."""
        raise NotImplementedError

    def __enter__(self: _AnyOutput) -> _AnyOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class OverlayWriter(Output):
    """Writes H.264 mp4 (yuv420p, BT.709, fast start) with the source's timestamps and sound.

    Timestamps are exact for time bases down to a microsecond; finer ones are rounded to that, and those that
    would become one are a microsecond apart. H.264 with 4:2:0 chroma
    holds only even sizes: the last row or column of an odd one is repeated once. There are no B-frames: without them,
    decoding order is display order and no player needs an edit list to get the times right.

    Args:
        path: File to write; replaced if it exists.
        size: Height and width of the pictures in pixels.
        time_base: Every timestamp is a whole multiple of this, in seconds.
        audio_from: A video file whose sound is copied; sound that mp4 cannot hold becomes AAC.
        origin: The source's time that becomes zero here, for pictures and sound; ``Reader.origin``.
        end: The source's time at which the sound ends; ``None`` for all of it.
        crf: Quality of x264, 0 to 51, less is better.
        clock: What the times of the pictures were made with; ``None`` if the sound's own times count.
        sample_aspect_ratio: Width of a pixel by its height on a display.

    Attributes:
        until: When the last picture ends; ``None`` to show it for as long as the one before. To be set before the end.
        warnings: What happened to the sound, one line each.

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
        audio_from: str | Path | None = None,
        origin: Fraction = Fraction(0),
        end: Fraction | None = None,
        crf: int = 20,
        clock: Clock[Any] | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
    ) -> None:
        if min(size) < 1:
            raise ValueError(f"expected a size of at least 1x1, found {size[0]}x{size[1]}")
        if not 0 <= crf <= 51:
            raise ValueError(f"expected a crf of 0 to 51, found {crf}")
        self.warnings: list[str] = []
        self._size = size
        self._origin = origin
        self._audio = None if audio_from is None else (Path(audio_from), end, clock)
        # mp4 counts in whole parts of a second, and places the start of a track in parts that are its own setting.
        self._ticks = min(time_base.denominator, _FINEST_TICKS)
        if self._ticks < 1000:
            self._ticks = lcm(self._ticks, 1000)
        self._last: int | None = None
        self._last_pts: Fraction | None = None
        self._last_duration = 0
        self.until: Fraction | None = None
        self._reformatter = VideoReformatter()
        self._files = ExitStack()
        super().__init__(path)
        try:
            with output_errors(self._pending.path):
                self._container = self._files.enter_context(self._mp4(self._pending.temporary))
                options = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
                self._stream = self._container.add_stream("libx264", rate=25, options=options)  # the rate is a hint
                self._stream.height, self._stream.width = (side + side % 2 for side in size)
                self._stream.pix_fmt = "yuv420p"
                context = self._stream.codec_context
                context.time_base = Fraction(1, self._ticks)
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _LIMITED_RANGE
                if sample_aspect_ratio != 1:  # an output of square pixels says nothing of them
                    context.sample_aspect_ratio = sample_aspect_ratio.limit_denominator(_FINEST_ASPECT)
        except BaseException:
            self.abort()
            raise

    def write(self, rgb: UInt8[np.ndarray, "H W 3"], pts: Fraction) -> None:
        """Append a picture.

        Args:
            rgb: Picture of the writer's size.
            pts: The source's time of the picture in seconds, later than the one before.

        Raises:
            OutputError: The file cannot be written.
            ValueError: Size or time do not fit.
        """
        check_picture(rgb.shape, self._size)
        ticks = round((pts - self._origin) * self._ticks)
        if self._last is not None and self._last_pts is not None:
            if pts <= self._last_pts:
                raise ValueError(f"expected a time after the picture before, found {float(pts):g} s")
            ticks = max(ticks, self._last + 1)  # times that differ by less than can be written stay apart
            self._last_duration = ticks - self._last
        self._last, self._last_pts = ticks, pts
        bottom, right = rgb.shape[0] % 2, rgb.shape[1] % 2
        if bottom or right:
            rgb = np.pad(rgb, ((0, bottom), (0, right), (0, 0)), mode="edge")
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24"),
            format="yuv420p",
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED_RANGE,
        )
        frame.pts = ticks
        frame.time_base = Fraction(1, self._ticks)
        with output_errors(self._pending.path):
            self._mux(self._stream.encode(frame))

    def _mp4(self, path: Path) -> AbstractContextManager[OutputContainer]:
        return open_output(path, "mp4", {"movflags": "+faststart", "movie_timescale": str(self._ticks)})

    def _finish(self) -> None:
        if self._last is None:
            raise ValueError("expected at least one picture before the overlay is closed")
        if self.until is not None:
            self._last_duration = max(1, round((self.until - self._origin) * self._ticks) - self._last)
        self._mux(self._stream.encode(None))
        self._files.close()
        if self._audio is not None:
            self._add_sound(*self._audio)

    def _release(self) -> None:
        self._files.close()

    def _mux(self, packets: list[_AnyPacket]) -> None:
        for packet in packets:
            if packet.pts == self._last and self._last_duration:
                packet.duration = self._last_duration
            self._container.mux(packet)

    def _add_sound(self, source: Path, end: Fraction | None, clock: Clock[Any] | None) -> None:
        """Put the sound beside the pictures, which are whole already, so that nothing about it can cost them.

        Sound that does not go in as it is becomes AAC, and is left out where that fails, too.
        """
        warnings: list[str] = []
        for encode in (False, True):
            both = Pending(f"{self._pending.path}.sound")
            warnings.clear()
            try:
                with (
                    av.open(str(self._pending.temporary)) as pictures,
                    self._mp4(both.temporary) as target,
                    closing(_Sound(source, target, self._origin, end, warnings, clock, encode=encode)) as sound,
                ):
                    wanted = pictures.streams.video[0].frames
                    _merge(pictures, target, sound)
                if _frames_in(both.temporary) != wanted:
                    raise ValueError("it does not fit beside the pictures")
                self.warnings += warnings
                if sound.written:
                    both.temporary.replace(self._pending.temporary)
                return
            except Exception as error:  # a damaged file may raise anything, and is not worth a run
                if getattr(error, "errno", None) in _REFUSALS:
                    raise
                reason = _reason(error)
            finally:
                both.discard()
        self.warnings += [*warnings, f"the sound of {source.name} is left out: {reason}"]


def _merge(pictures: InputContainer, target: OutputContainer, sound: "_Sound") -> None:
    """Write the pictures and the sound in the order of their times."""
    stream = pictures.streams.video[0]
    copy = target.add_stream_from_template(stream)
    for packet in pictures.demux(stream):
        if packet.size and packet.pts is not None and stream.time_base is not None:
            sound.copy(until=packet.pts * stream.time_base)
            packet.stream = copy
            with sound.forgiven():  # the muxer may be about to write a packet of the sound that it was given before
                target.mux(packet)
    sound.copy(until=None)
    sound.finish()


def _frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


class _Sound:
    """The sound track of one file, carried over to another beside its pictures.

    Attributes:
        written: Number of packets so far.

    Packets that overlap the origin are kept whole: players cut them there, and codecs need the one before it.
    """

    def __init__(
        self,
        source: Path,
        target: OutputContainer,
        origin: Fraction,
        end: Fraction | None,
        warnings: list[str],
        clock: Clock[Any] | None,
        *,
        encode: bool,
    ) -> None:
        self.written = 0
        self._clock = clock
        self._target = target
        self._origin = origin
        self._end = end
        self._warnings = warnings
        self._name = source.name
        self._container: InputContainer | None = None
        self._encoder: AudioStream | None = None
        self._packets: Iterator[tuple[Fraction, list[_SoundPacket]]] = iter(())
        self._waiting: tuple[Fraction, list[_SoundPacket]] | None = None
        try:
            self._container = container = open_file(source)
            stream = next((one for one in container.streams.audio if one.codec_context is not None), None)
            if stream is None:
                raise ValueError("its codec is unknown" if container.streams.audio else "no sound is found in it")
            if not encode and stream.codec_context.name in _AUDIO_IN_MP4 and _can_be_copied(source, stream.index):
                self._packets = self._copied(container, stream, target.add_stream_from_template(stream))
            else:
                rate = stream.rate if stream.rate in _AAC_RATES else 48000
                self._encoder = target.add_stream("aac", rate=rate)
                self._encoder.layout = "mono" if stream.channels == 1 else "stereo"
                self._packets = self._encoded(container, stream, self._encoder)
        except Exception as error:  # a damaged header may raise anything, and is not worth a run
            warnings.append(f"the sound of {source.name} is left out: {_reason(error)}")

    def copy(self, until: Fraction | None) -> None:
        """Write the packets before a time of the target; ``None`` for all that are wanted."""
        limit = None if until is None else until + self._origin
        if self._end is not None:
            limit = self._end if limit is None else min(limit, self._end)
        while True:
            with self.forgiven():
                self._waiting = self._waiting or next(self._packets, None)
                if self._waiting is None or (limit is not None and self._waiting[0] >= limit):
                    return
                self._target.mux(self._waiting[1])
                self.written += 1
            self._waiting = None

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._encoder is not None:
            with self.forgiven():
                self._target.mux(self._encoder.encode(None))
        if not self.written and not self._warnings:
            self._warn(f"the sound of {self._name} is left out: none of it that decodes belongs to these pictures")

    @contextmanager
    def forgiven(self) -> Iterator[None]:
        """End the sound with a warning where anything fails that the system does not refuse."""
        try:
            yield
        except Exception as error:
            if getattr(error, "errno", None) in _REFUSALS:
                raise
            self._warn(f"the sound ends early: {_reason(error)}")
            self._packets, self._waiting = iter(()), None

    def close(self) -> None:
        """Close the source."""
        self._packets = iter(())
        if self._container is not None:
            self._container.close()

    def _copied(
        self, container: InputContainer, stream: AudioStream, copy: AudioStream
    ) -> Iterator[tuple[Fraction, list[_SoundPacket]]]:
        first_kind, differs = "", False
        for packet in self._timed(container, stream):
            time_base = packet.time_base
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None or (pts + (packet.duration or 0)) * time_base < self._origin:
                continue
            kind = self._kind(packet) or first_kind
            first_kind = first_kind or kind
            if kind != first_kind:  # one track of an MP4 has one description
                if not differs:
                    self._warn(f"the sound changes from {first_kind} to {kind}: what differs is left out")
                differs = True
                continue
            shift = round(self._origin / time_base)
            packet.pts = pts - shift
            packet.dts = (packet.dts if packet.dts is not None else pts) - shift
            packet.stream = copy
            yield pts * time_base, [packet]

    @staticmethod
    def _kind(packet: _SoundPacket) -> str:
        """Rate and channels of what a packet holds; nothing where it holds no whole frame, or a damaged one."""
        try:
            frame = next(iter(packet.decode()), None)
        except av.FFmpegError:
            return ""
        return "" if frame is None else f"{frame.sample_rate} Hz {frame.layout.name}"

    def _encoded(
        self, container: InputContainer, stream: AudioStream, encoder: AudioStream
    ) -> Iterator[tuple[Fraction, list[_SoundPacket]]]:
        resampler, kind = None, None
        for packet in self._timed(container, stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._warn(f"some sound does not decode: {error.strerror}")
                continue
            for frame in frames:
                if frame.pts is None or frame.time_base is None:
                    continue
                time = frame.pts * frame.time_base
                if time + Fraction(frame.samples, frame.sample_rate) < self._origin:
                    continue
                frame.pts -= round(self._origin / frame.time_base)
                if resampler is None or kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                    resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.rate)
                yield time, [one for like in resampler.resample(frame) for one in encoder.encode(like)]

    def _timed(self, container: InputContainer, stream: AudioStream) -> Iterator[_SoundPacket]:
        """Packets with the times that belong to the pictures'."""
        if self._clock is None or stream.time_base is None:
            yield from self._demuxed(container, stream)
            return
        time_base = stream.time_base
        clock = self._clock.follower(time_base, Fraction(stream.rate or 48000, stream.codec_context.frame_size or 1024))
        end: int | None = None
        for packet in chain(self._demuxed(container, stream), (None,)):
            if packet is None:
                settled = clock.finish()
            else:
                settled = clock.push(packet.pts if packet.pts is not None else packet.dts, packet)
            for time, one in settled:
                ticks = round(time / time_base)
                if end is not None and ticks < end - round(_OVERLAP_SECONDS / time_base):
                    continue  # sound that was longer than its pictures, before the clock started anew
                one.pts = one.dts = ticks if end is None else max(end, ticks)
                end = ticks + (one.duration or 0)
                yield one
            if clock.waiting:  # for pictures that were not wanted
                return

    def _demuxed(self, container: InputContainer, stream: AudioStream) -> Iterator[_SoundPacket]:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            self._warn(f"the sound ends early: {error.strerror}")

    def _warn(self, warning: str) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)


def _can_be_copied(source: Path, index: int) -> bool:
    """Whether MP4 takes a sound track as it is and it plays, tried in memory: a failed header is a lost file."""
    decoded = 0
    try:
        with open_file(source) as container, av.open(io.BytesIO(), "w", format="mp4") as trial:
            stream = container.streams[index]
            copy = trial.add_stream_from_template(stream)
            trial.start_encoding()
            for packet in islice(container.demux(stream), _TRIED_PACKETS):
                if packet.size and packet.dts is not None:
                    decoded += len(packet.decode())
                    packet.stream = copy
                    trial.mux(packet)
    except Exception:
        return False
    return decoded > 0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_picture(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Refuse a picture of another size than the writer's."""
    if tuple(shape[:2]) != size:
        raise ValueError(f"expected a picture of {size[0]}x{size[1]}, found {shape[0]}x{shape[1]}")
