"""The sound track of one file, copied into another beside its frames."""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from mpvss._files import Pending
from mpvss.video.clock import Clock
from mpvss.video.file import open_file

if TYPE_CHECKING:  # generic only in its type stubs
    _AudioPacket = Packet[AudioStream]
else:
    _AudioPacket = Packet

_OVERLAP_SECONDS = Fraction(1, 200)
_AUDIO_IN_MP4 = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "flac"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
# What the system refuses, whatever is written. All else that the sound raises is the sound's own fault.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_TRIED_PACKETS = 32


@dataclass(frozen=True)
class Audio:
    """Which sound is copied.

    Attributes:
        source: A video file; sound that mp4 cannot hold becomes AAC.
        end: The source's time at which the sound ends; ``None`` for all of it.
        clock: What the times of the frames were made with; ``None`` if the sound's own times count.
    """

    source: Path
    end: Fraction | None = None
    clock: Clock[Any] | None = None


def add_sound(
    video: Path,
    audio: Audio,
    origin: Fraction,
    final: Path,
    open_mp4: Callable[[Path], AbstractContextManager[OutputContainer]],
) -> list[str]:
    """Put sound beside the frames of a video, which is whole already, so that nothing about the sound can cost them.

    Sound that does not go in as it is becomes AAC, and is left out where that fails, too.

    Args:
        video: The file without sound, which is replaced.
        audio: Which sound.
        origin: The source's time that is zero in the video.
        final: The video's name in the end.
        open_mp4: Opens the file that replaces it.

    Returns:
        What happened to the sound, one line each.

    Raises:
        OSError: The system refuses to write.
    """
    warnings: list[str] = []
    for encode in (False, True):
        pending = Pending(f"{final}.sound")
        warnings.clear()
        try:
            with (
                av.open(str(video)) as frames,
                open_mp4(pending.temporary) as target,
                closing(Sound(audio, origin, target, warnings, encode=encode)) as sound,
            ):
                expected = frames.streams.video[0].frames
                _merge(frames, target, sound)
            if _frames_in(pending.temporary) != expected:
                raise ValueError("frames are lost when it is added")
            if sound.written:
                pending.temporary.replace(video)
            return warnings
        except Exception as error:  # a damaged file may raise anything, and is not worth a run
            if getattr(error, "errno", None) in _REFUSALS:
                raise
            reason = _reason(error)
        finally:
            pending.discard()
    return [*warnings, f"the sound of {audio.source.name} is left out: {reason}"]


def _merge(frames: InputContainer, target: OutputContainer, sound: "Sound") -> None:
    """Write the frames and the sound in the order of their times."""
    stream = frames.streams.video[0]
    copy = target.add_stream_from_template(stream)
    for packet in frames.demux(stream):
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


class Sound:
    """The sound track of one file, copied to another beside its frames.

    Attributes:
        written: Number of packets so far.

    Packets that overlap the origin are kept whole: players cut them there, and codecs need the one before it.
    """

    def __init__(
        self,
        audio: Audio,
        origin: Fraction,
        target: OutputContainer,
        warnings: list[str],
        *,
        encode: bool,
    ) -> None:
        self.written = 0
        self._end, self._clock = audio.end, audio.clock
        self._origin, self._target, self._warnings = origin, target, warnings
        source = audio.source
        self._name = source.name
        self._container: InputContainer | None = None
        self._encoder: AudioStream | None = None
        self._packets: Iterator[tuple[Fraction, list[_AudioPacket]]] = iter(())
        self._waiting: tuple[Fraction, list[_AudioPacket]] | None = None
        try:
            self._container = container = open_file(source)
            stream = next((each for each in container.streams.audio if each.codec_context is not None), None)
            if stream is None:
                raise ValueError("its codec is unknown" if container.streams.audio else "it has no sound")
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
        """Write the packets before a time of the target; ``None`` for all up to the end."""
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
            self._warn(f"the sound of {self._name} is left out: none of it that decodes belongs to these frames")

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
    ) -> Iterator[tuple[Fraction, list[_AudioPacket]]]:
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
    def _kind(packet: _AudioPacket) -> str:
        """Rate and channels of what a packet holds; nothing where it holds no whole frame, or a damaged one."""
        try:
            frame = next(iter(packet.decode()), None)
        except av.FFmpegError:
            return ""
        return "" if frame is None else f"{frame.sample_rate} Hz {frame.layout.name}"

    def _encoded(
        self, container: InputContainer, stream: AudioStream, encoder: AudioStream
    ) -> Iterator[tuple[Fraction, list[_AudioPacket]]]:
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
                yield time, [packet for part in resampler.resample(frame) for packet in encoder.encode(part)]

    def _timed(self, container: InputContainer, stream: AudioStream) -> Iterator[_AudioPacket]:
        """Packets with the times that belong to the frames'."""
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
            for time, timed in settled:
                ticks = round(time / time_base)
                if end is not None and ticks < end - round(_OVERLAP_SECONDS / time_base):
                    continue  # sound that was longer than its frames, before the clock started anew
                timed.pts = timed.dts = ticks if end is None else max(end, ticks)
                end = ticks + (timed.duration or 0)
                yield timed
            if clock.waiting:  # for frames that were not selected
                return

    def _demuxed(self, container: InputContainer, stream: AudioStream) -> Iterator[_AudioPacket]:
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
