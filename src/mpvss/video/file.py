"""Opening media that others made: one file and no other, a bounded number of streams, images of bounded size."""

import math
import os
import re
import select
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mpvss._validate import max_pixels
from mpvss.errors import SourceError
from mpvss.video.info import Kind

# Formats of video that read the one file they are given. Others are lists of files and addresses (hls, dash, concat,
# sdp), take the name for a pattern (image2), look for files beside it (vobsub, mlv), or are no files at all.
_ONE_FILE_NAMES = """
    3g2 3gp 4xm amv anm apng apv argo_asf asf asf_o av1 avi avs avs2 avs3 avif bethsoftvid bfi bink bmv c93 cavsvideo
    cdg cdxl cine dfa dhav dirac dnxhd dsicin dss dv dxa ea evc f4v film_cpk filmstrip fits flic flv frm gdv gif gxf
    h261 h263 h264 hevc hnm hxvs idcin iff ifv image2pipe ingenient ipmovie ipod ipu ismv iss iv8 ivf ivr jpegxl_anim jv
    kux live_flv lmlm4 luodat lvf lxf m4v m4a matroska webm mgsts mj2 mjpeg mjpeg_2000 mm mods moflex mov mp4 mpeg
    mpegts mpegtsraw mpegvideo mpjpeg msnwctcp mtv mv mvi mxf mxg nc nsv nut nuv obu ogg paf pmp psxstr pva r3d rawvideo
    rl2 rm roq rpl sdr2 ser sga siff simbiosis_imx smjpeg smk smush swf thp tiertexseq tmv txd ty usm v210 v210x vc1
    vc1test viv vivo vividas vmd vvc wc3movie wsvqa wtv xmv yop yuv4mpegpipe
"""
_ONE_FILE = set(_ONE_FILE_NAMES.split())
_MOST_STREAMS = 100
_SECONDS_WITHOUT_WRITER = 10.0
_POLL_SECONDS = 0.1
NETWORK_TIMEOUT_SECONDS = 10.0
INDEX_AT_END = (
    "expected a video that can be read from the pipe {}, got an MP4 whose index is at its end: give the file itself or "
    "write it with -movflags +faststart"
)


def _reads_one_file(name: str) -> bool:
    return name.endswith("_pipe") or any(part in _ONE_FILE for part in name.split(","))


class Pipe:
    """Standard input, a FIFO or another open descriptor as a file that is read once, for PyAV.

    Args:
        source: ``-``, or the path of what is no regular file.

    Attributes:
        name: As given.
        head: The first bytes that came.
        stopped: Set to have a read that waits end.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is a terminal or a device.
    """

    def __init__(self, source: str) -> None:
        self.name = source
        self.head = b""
        self.stopped = False
        self._came = False
        match = re.fullmatch(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)", "/dev/fd/0" if source in _STDIN else source)
        self._fifo = match is None
        if match is None:
            # Opened without waiting for a writer.
            self._descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        else:
            self._descriptor = os.dup(int(match[1] or match[2]))
        if os.isatty(self._descriptor):
            self.close()
            raise ValueError("a terminal, not a pipe")
        if stat.S_ISCHR(os.fstat(self._descriptor).st_mode) or stat.S_ISBLK(os.fstat(self._descriptor).st_mode):
            self.close()
            raise ValueError("a device, not a pipe")

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end.

        Raises:
            TimeoutError: Nobody has begun to write for ten seconds.
        """
        limit = time.monotonic() + _SECONDS_WITHOUT_WRITER
        while not self.stopped:
            ready = not hasattr(select, "poll") or self._poll()
            try:
                data = os.read(self._descriptor, size) if ready or self._fifo else None
            except BlockingIOError:  # somebody is there to write, and takes their time
                data, limit = None, math.inf
            if data or (data == b"" and (self._came or not self._fifo)):
                self._came = True
                self.head = self.head or data
                return data
            if self._fifo and not self._came and time.monotonic() > limit:
                raise TimeoutError(f"nobody has written to it for {_SECONDS_WITHOUT_WRITER:g} s")
            if not ready:
                continue
            time.sleep(_POLL_SECONDS)
        return b""

    def _poll(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(1000 * _POLL_SECONDS))

    def close(self) -> None:
        """Close the descriptor; harmless when closed already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_STDIN = {"-", "/dev/stdin"}


def is_pipe(source: str) -> bool:
    """Whether a source is standard input or a path of what can be read only once."""
    try:
        status = os.fstat(0) if source in _STDIN else Path(source).stat()
    except (OSError, ValueError):
        return source == "-"
    if source in _STDIN and stat.S_ISREG(status.st_mode):
        return source == "-" and not Path("/dev/stdin").exists()
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def open_file(path: str | Path, formats: str | None = None) -> InputContainer:
    """Open a media file.

    Args:
        path: The file. Nothing else is opened, whatever is written in it.
        formats: Names of the container formats to try, separated by commas; ``None`` for all that read one file.

    Raises:
        av.FFmpegError: It cannot be read, or is of no such format.
    """
    options = limits() | {
        "protocol_whitelist": "file",
        "format_whitelist": formats or single_file_formats(),
    }
    # Titles may be in any encoding.
    try:
        return av.open(f"file:{Path(path).absolute()}", "r", options=options, metadata_errors="replace")
    except av.ArgumentError:
        # By its name, FFmpeg takes it for a pattern of images; without one, it looks at what is in it.
        del options["protocol_whitelist"]
        nameless = os.fdopen(os.open(path, os.O_RDONLY), "rb")
        return av.open(nameless, "r", options=options, metadata_errors="replace")


def single_file_formats() -> str:
    """Names of the formats of video that open one file and no other, separated by commas."""
    return ",".join(sorted(name for name in av.formats_available if _reads_one_file(name)))


def limits() -> dict[str, str]:
    """Options that bound what any container and the decoders that look into it may take."""
    return {"max_pixels": str(max_pixels()), "max_streams": str(_MOST_STREAMS)}


def bound(stream: VideoStream) -> None:
    """Have the decoder of a stream refuse images that are too large, before it takes memory for them.

    Raises:
        ValueError: There is no decoder.
    """
    if stream.codec_context is None:
        raise ValueError("its codec is unknown")
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(max_pixels())}


@dataclass(frozen=True, eq=False)
class Address:
    """What FFmpeg opens, and how.

    Attributes:
        target: A path, an address, or a pipe.
        kind: What it is.
        shown: How the source was named; of an address without user name, password and query.
        name: A stem for output files.
        demuxer: FFmpeg's name of the format, where it must be said.
        options: Of the format.
        temporary: Whether it is a download, which is removed when it is closed.
    """

    target: str | Pipe
    kind: Kind
    shown: str
    name: str
    demuxer: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    temporary: bool = False

    def open(self) -> InputContainer:
        """Open it.

        Raises:
            SourceError: It cannot be opened.
        """
        try:
            if isinstance(self.target, Pipe):
                only = limits() | {"format_whitelist": single_file_formats()}
                return av.open(self.target, "r", options=only, metadata_errors="replace")
            if self.kind == "video" or self.temporary:
                return open_file(self.target)
            return av.open(
                self.target, "r", format=self.demuxer, options={**limits(), **self.options}, metadata_errors="replace",
                timeout=NETWORK_TIMEOUT_SECONDS if self.kind == "stream" else None,
            )  # fmt: skip
        except (av.FFmpegError, ValueError, OSError) as error:
            head = b""
            if isinstance(self.target, Pipe):
                head = self.target.head
                self.target.close()
            raise SourceError(_why_not_opened(self.shown, self.kind, error, head)) from error


def _why_not_opened(source: str, kind: Kind, error: Exception, head: bytes = b"") -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if head[4:8] == b"ftyp":
        return INDEX_AT_END.format(source)
    if isinstance(error, TimeoutError) and kind == "stream":
        return f"expected somebody to write a video to {source}, got none: {reason}; start the writer first"
    if kind == "camera":
        return f"expected a camera at {source}, got none that opens ({reason}): check its number and permissions"
    if kind == "stream":
        return f"expected a video stream at {source}, got none that opens ({reason}): check the URL and the network"
    if isinstance(error, EOFError):
        return f"expected a video with frames in {source}, got none: give a video that plays"
    return (
        f"expected a video in {source}, got data that is no known video format ({reason}); a recording that was cut "
        "off before its index was written looks the same, and needs to be repaired or copied again"
    )
