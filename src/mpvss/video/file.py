"""Opening media that others made: one file and no other, a bounded number of streams, pictures of bounded size."""

from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mpvss.untrusted import max_pixels

# A file of these formats is a list of other files and addresses, which would be opened in its place.
_LISTS = {"concat", "concatf", "dash", "hls", "imf", "sdp", "rtsp", "webm_dash_manifest"}
_MOST_STREAMS = 100


def open_file(path: str | Path, formats: str | None = None) -> InputContainer:
    """Open a media file.

    Args:
        path: The file. Nothing else is opened, whatever is written in it.
        formats: Names of the container formats to try, separated by commas; ``None`` for all but lists of files.

    Raises:
        av.FFmpegError: It cannot be read, or is of no such format.
    """
    options = limits() | {
        "protocol_whitelist": "file",
        "format_whitelist": formats or ",".join(sorted(av.formats_available - _LISTS)),
    }
    # Titles may be in any encoding.
    return av.open(f"file:{Path(path).resolve()}", "r", options=options, metadata_errors="replace")


def limits() -> dict[str, str]:
    """Options that bound what any container and the decoders that look into it may take."""
    return {"max_pixels": str(max_pixels()), "max_streams": str(_MOST_STREAMS)}


def bound(stream: VideoStream) -> None:
    """Have the decoder of a stream refuse pictures that are too large, before it takes memory for them.

    Raises:
        ValueError: There is no decoder.
    """
    if stream.codec_context is None:
        raise ValueError("its codec is unknown")
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(max_pixels())}
