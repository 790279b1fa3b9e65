"""What media files say of themselves that FFmpeg does not: their length, and sound that it cannot open."""

import re
from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

from mpvss.video.info import Trouble

_HEADER_BYTES = 4096
_SEARCHED_BYTES = 2**20
# The handler of sound in MP4 and its header; a codec of sound in Matroska, or the type of its track; that of AVI.
_SOUND = re.compile(
    rb"hdlr.{8}soun|smhd|\x86[\x81-\xa0]A_[A-Z]{3}|\x83\x81\x02.{0,400}A_[A-Z]{3}|strh.{4}auds", re.DOTALL
)


def note_cut_off(container: InputContainer, stream: VideoStream, seen: int, trouble: Trouble) -> None:
    """Say that a file is cut off, where it proves so itself: an index of all frames, or a length that is not there.

    Args:
        container: The container, read to its end.
        stream: The stream.
        seen: Number of its packets that were read.
        trouble: Where it is said.
    """
    if "mp4" in container.format.name:
        missing = len(stream.index_entries) - seen  # unlike stream.frames, without what an edit list leaves out
        if missing > 0:
            trouble.note(f"the file is cut off: {missing} of {missing + seen} frames are missing", damaged=missing)
        return
    path = Path(container.name.removeprefix("file:"))
    if not path.is_file():
        return
    with path.open("rb") as file:
        declared = _declared_bytes(file.read(_HEADER_BYTES))
    missing = declared - path.stat().st_size
    if missing > 0:
        written = next((stream.metadata[key] for key in stream.metadata if key.startswith("NUMBER_OF_FRAMES")), "")
        lost = max(1, int(written) - seen) if written.isdecimal() else 1
        trouble.note(f"the file is cut off: {missing} of {declared} bytes are missing", damaged=lost)


def _declared_bytes(header: bytes) -> int:
    """The length that a Matroska or RIFF file says it has, in bytes; 0 where it says nothing."""
    if header[:4] == b"RIFF":
        size = int.from_bytes(header[4:8], "little")
        return size + 8 if size < 0xFFFF_FFFF else 0
    if header[:4] != bytes.fromhex("1A45DFA3"):
        return 0
    begin, head = _vint(header, 4)
    if head is None or header[begin + head : begin + head + 4] != bytes.fromhex("18538067"):
        return 0
    begin, length = _vint(header, begin + head + 4)
    return 0 if length is None else begin + length


def _vint(data: bytes, at: int) -> tuple[int, int | None]:
    """Where a length of Matroska ends, and its value; ``None`` where it is unknown."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + length]) & ((1 << 7 * length) - 1)
    return at + length, None if first == 0 or value == (1 << 7 * length) - 1 else value


def names_sound(path: Path) -> bool:
    """Whether the header of an MP4, Matroska or AVI file names a track of sound, also one that FFmpeg does not see.

    Args:
        path: The file; the index of an MP4 may be at its end.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        if head[4:8] == b"ftyp":
            head += file.read(_SEARCHED_BYTES)
            file.seek(max(0, path.stat().st_size - _SEARCHED_BYTES))
            return any(b"moov" in data and _SOUND.search(data) for data in (head, file.read()))
    return head[:4] in (b"RIFF", bytes.fromhex("1A45DFA3")) and _SOUND.search(head) is not None
