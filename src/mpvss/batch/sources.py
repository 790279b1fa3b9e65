"""What a batch is given, turned into videos with names: files, folders, patterns, addresses and lists of these."""

import codecs
import glob
import hashlib
import logging
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict
from urllib.parse import unquote, urlsplit

from mpvss._files import IMAGE_SUFFIXES
from mpvss._validate import convert, parse_json
from mpvss.batch.storage import below, is_address, is_remote, local, open_store, shown_location
from mpvss.errors import ConfigError, DataError, SourceError
from mpvss.outputs.sinks import ENDINGS, SINKS
from mpvss.video.info import output_name
from mpvss.video.sources import is_animated, probe

log = logging.getLogger(__name__)

# Taken without a look into them, so that a broken one is reported. Of other files on this machine FFmpeg is asked.
VIDEO_SUFFIXES = (
    ".264", ".265", ".266", ".3g2", ".3gp", ".apng", ".asf", ".avc", ".avi", ".divx", ".dv", ".evo", ".f4v", ".flv",
    ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg",
    ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv",
    ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
)  # fmt: skip

# What this program writes, which may lie beside what it reads.
_OUTPUTS = tuple(sink.ending for name, sink in SINKS.items() if name != "meta" and not sink.is_folder)
_FOLDERS = tuple(sink.ending for sink in SINKS.values() if sink.is_folder)
_LISTS = (".txt", ".jsonl")
# FFmpeg draws any text as an image.
_DRAWN_TEXT = {"ansi", "bintext", "idf", "xbin"}
_LIVE = re.compile(
    r"camera:|(mms|mmsh|mmst|rist|rtmp|rtmpe|rtmps|rtmpt|rtmpte|rtmpts|rtp|rtsp|rtsps|sctp|srt|srtp|tcp|udp|udplite)://",
    re.IGNORECASE,
)
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LONGEST_NAME, _LONGEST_PART = 1024, 200
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """One video to segment.

    Attributes:
        name: What its outputs are called, with the folders below the output, without an ending.
        source: What is opened: an absolute path, a pattern of images, or an address.
        shown: How the source was named; of an address without user name, password and query.
        given: Whether a list gave the name, so that it stays as it is.
    """

    name: str
    source: str
    shown: str
    given: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder with the chunks of the video: of one length, whatever the video is called."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def expand(sources: Sequence[str]) -> list[Job]:
    """Turn what was named into videos, in the order of their names.

    Args:
        sources: Videos; patterns; folders, which stand for all videos below them or, if there are none, for one video
            of images (without the overlays and labels that this program wrote); lists (``.txt``: a source a line;
            ``.jsonl``: objects with ``source`` and, if it is not the source's, ``name``).

    Raises:
        SourceError: A pattern, folder or list names no video.
        DataError: A list is malformed.
        ConfigError: Two videos would be written under one name, or a source is live.
    """
    unique = {(job.name, job.source): job for source in sources for job in _expand(source)}
    jobs: dict[str, Job] = {}
    for job in _with_endings(list(unique.values())):
        known = jobs.setdefault(job.name, job)
        if known.source != job.source:
            raise ConfigError(
                f"expected sources with different names, got {known.shown} and {job.shown}, which would both be "
                f"written as {job.name}.*: name the folder above both, or give them names in a .jsonl list"
            )
    for name in jobs:
        for parent in map(str, PurePosixPath(name).parents):
            owners = (parent.removesuffix(ending) for ending in ENDINGS.values() if parent.endswith(ending))
            owner = next((owner for owner in owners if owner in jobs), None)
            if owner is not None:
                raise ConfigError(
                    f"expected names that can stand beside each other, got {name}, which lies below an output of "
                    f"{owner}: give them other names in a .jsonl list"
                )
    return [jobs[name] for name in sorted(jobs)]


def _expand(source: str) -> Iterator[Job]:
    if _LIVE.match(source) and not os.path.lexists(source):
        raise ConfigError(f"expected recorded videos, got the live source {shown_location(source)}: use mpvss segment")
    path = urlsplit(source).path if is_remote(source) else source
    if PurePosixPath(path).suffix.lower() in _LISTS:
        yield from _listed(source)
    elif is_remote(source):
        yield from _in_store(source)
    else:
        yield from _on_disk(local(source))


# --- names


def _with_endings(jobs: list[Job]) -> list[Job]:
    """Have files that differ in their endings only, like IMG_1.MOV and IMG_1.mp4, keep these in their names."""
    changed: list[str] = []
    while True:
        users = Counter(job.name for job in jobs)
        renamed = [
            replace(job, name=_with_ending(job)) if users[job.name] > 1 and not job.given else job for job in jobs
        ]
        if renamed == jobs:
            break
        changed += [new.name for new, old in zip(renamed, jobs, strict=True) if new != old]
        jobs = renamed
    if changed:
        log.warning(
            "%d sources differ from another one in their ending only, and keep it in the names of their outputs: %s",
            len(changed), _first_few(f"{name}.*" for name in changed),
        )  # fmt: skip
    return jobs


def _with_ending(job: Job) -> str:
    if not is_remote(job.source) and not Path(job.source).is_file():  # a folder or a pattern has no ending
        return job.name
    path = unquote(urlsplit(job.source).path) if is_remote(job.source) else job.source
    return str(PurePosixPath(job.name).with_name(output_name(PurePosixPath(path).name)))


def _name_below(root: PurePosixPath | Path | str, file: PurePosixPath | Path) -> str:
    """The name of a file's outputs below a folder."""
    relative = file.relative_to(root)
    is_folder = isinstance(file, Path) and file.is_dir()
    return relative.with_name(output_name(relative.name if is_folder else relative.stem)).as_posix()


def _before_magic(parts: Sequence[str]) -> list[str]:
    """The folders of a pattern that are none themselves."""
    return list(takewhile(lambda part: not glob.has_magic(part), parts[:-1]))


def _first_few(names: Iterable[str]) -> str:
    """The first few names, and how many there are beside them."""
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    rest = len(shown) - _MOST_SHOWN
    return ", ".join(shown[:_MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# --- folders and patterns


def _on_disk(source: str) -> Iterator[Job]:
    path = Path(source)
    left_out: list[Path] = []
    try:
        if path.is_dir():
            root = path
            videos, left_out = _videos_in(path)
            if not videos and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in path.iterdir()):
                yield Job(output_name(path.resolve().name) or "images", str(path.resolve()), source)
                return
        elif not path.exists() and glob.has_magic(source):
            root = Path(*_before_magic(path.parts))
            matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207 (absolute)
            if matches and all(match.suffix.lower() in IMAGE_SUFFIXES for match in matches):
                folder = path.parent.name
                yield Job(folder if folder and not glob.has_magic(folder) else "images", str(path.absolute()), source)
                return
            videos, left_out = _videos_among(matches)
        else:
            yield Job(output_name(path.stem), str(path.absolute()), source)
            return
    except OSError as error:
        raise SourceError(f"expected sources that can be read, got {error.strerror}: {source}") from error
    _check_videos(source, videos, [str(file.relative_to(root)) for file in left_out])
    for file in videos:
        yield Job(_name_below(root, file), str(file.absolute()), str(file))


def _videos_among(matches: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The videos that a pattern matches, those below folders included, and the other files in these."""
    videos, others = [], []
    for match in matches:
        if match.name.endswith(_OUTPUTS) or (match.is_dir() and match.name.endswith(_FOLDERS)):
            continue
        inside, left_out = _videos_in(match) if match.is_dir() else ([match], [])
        videos += inside or [match]
        others += left_out
    return videos, others


def _videos_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The videos below a folder, and the other files, without hidden ones and what this program wrote."""
    videos: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.rglob("*")):
        if _is_ours(file.relative_to(folder).parts) or not file.is_file():
            continue
        (videos if file.suffix.lower() in VIDEO_SUFFIXES or _is_video(file) else others).append(file)
    return videos, others


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _is_ours(parts: Sequence[str]) -> bool:
    """Whether a file is hidden, an output, a list of sources or a manifest."""
    return (
        _is_hidden(parts)
        or parts[-1].endswith((*_OUTPUTS, ENDINGS["meta"]))
        or any(part.endswith(_FOLDERS) for part in parts[:-1])
        or PurePosixPath(parts[-1]).suffix.lower() in _LISTS
    )


def _is_video(file: Path) -> bool:
    """Whether FFmpeg finds frames in a file that is not called like a video, and ``mpvss segment`` would take it."""
    if (mimetypes.guess_type(file.name)[0] or "").startswith("text/"):
        return False
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return is_animated(file)
    try:
        info = probe(file)
    except SourceError:
        return False
    return info.kind == "video" and info.codec not in _DRAWN_TEXT


def _check_videos(source: str, videos: Sequence[object], left_out: Sequence[str]) -> None:
    """Say what is left out, and refuse a source without videos."""
    if left_out:
        log.warning(
            "%s: %d files are no videos, and left out: %s",
            shown_location(source), len(left_out), _first_few(left_out),
        )  # fmt: skip
    if not videos:
        among = f" among {len(left_out)} files" if left_out else ""
        raise SourceError(f"expected videos in {shown_location(source)}, got none{among}: check the path")


# --- addresses


def _in_store(source: str) -> Iterator[Job]:
    scheme = source.partition("://")[0].lower()
    if scheme in {"http", "https"}:  # a folder or a pattern there is a page, not a list
        yield Job(_remote_name(unquote(urlsplit(source).path)), source, shown_location(source))
        return
    left_out: set[str] = set()
    with open_store(source, SourceError) as (fs, path):
        if glob.has_magic(path):
            root = "/".join(_before_magic(path.split("/")))
            matches = [match for match in fs.glob(path) if not fs.isdir(match) and not match.endswith(_OUTPUTS)]
            videos = [match for match in matches if not _is_hidden(_parts(match, root))]
        elif fs.isdir(path):
            root = path.rstrip("/")
            files = [file for file in fs.find(path) if not _is_ours(_parts(file, root))]
            videos = [file for file in files if PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES]
            left_out = set(files) - set(videos)
        else:
            yield Job(_remote_name(path), source, shown_location(source))
            return
        _check_videos(source, videos, ["/".join(_parts(file, root)) for file in sorted(left_out)])
        for file in videos:
            address = fs.unstrip_protocol(file)
            yield Job(_name_below(root, PurePosixPath(file)), address, shown_location(address))


def _parts(file: str, root: str) -> tuple[str, ...]:
    return PurePosixPath(file).relative_to(root).parts


def _remote_name(path: str) -> str:
    stem = output_name(PurePosixPath(path).stem.replace("\0", ""))
    return stem if stem.strip(".") else "video"


# --- lists


class _Entry(TypedDict):
    source: str
    name: NotRequired[str | None]


def _listed(source: str) -> Iterator[Job]:
    """The sources that a file lists; those without a scheme are relative to its folder."""
    try:
        if is_remote(source):
            with open_store(source, SourceError) as (fs, path):
                text = _decoded(fs.cat_file(path))
        else:
            text = _decoded(Path(local(source)).read_bytes())
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"expected a list of sources in {shown_location(source)}, got none that can be read: {error}"
        ) from error
    lines = [
        (number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)
        if line.strip() and not line.startswith("#")
    ]  # fmt: skip
    if not lines:
        raise SourceError(f"expected sources in {shown_location(source)}, got an empty list")
    folder = source.rpartition("/")[0] if is_remote(source) else str(Path(local(source)).parent)
    for number, line in lines:
        where = f"line {number} of {shown_location(source)}"
        yield from _jobs_of_line(line, where, folder, as_json=source.lower().endswith(".jsonl"))


def _jobs_of_line(line: str, where: str, folder: str, *, as_json: bool) -> Iterator[Job]:
    source, name = _entry(line, where) if as_json else (line.strip(), None)
    location = source if is_address(source) else below(folder, source)
    if PurePosixPath(location).suffix.lower() in _LISTS:
        raise DataError(f"expected videos, got another list in {where}: name it itself")
    jobs = list(_expand(location))
    if name is None:
        yield from jobs
    elif len(jobs) > 1:
        raise DataError(f"expected one video for the name {name[:80]!r} in {where}, got many")
    else:
        yield Job(_checked(name, where), jobs[0].source, jobs[0].shown, given=True)


def _decoded(data: bytes) -> str:
    """The text of a list, which other programs begin with a byte order mark or write in UTF-16.

    Names of files need not be text, so other bytes of a list in UTF-8 are kept as the system keeps them in names.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    if b"\0" in data:
        return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le")
    return data.decode("utf-8", "surrogateescape")


def _entry(line: str, where: str) -> tuple[str, str | None]:
    """Source and name of a line of a ``.jsonl`` list."""
    try:
        entry = convert(parse_json(line), _Entry, what="it")
        if not entry["source"] or b"\0" in os.fsencode(entry["source"]):
            raise ValueError("the source is empty or has a NUL")
    except ValueError as error:
        raise DataError(f'expected {{"source": ..., "name": ...}} in {where}, got {line[:80]!r} ({error})') from error
    return entry["source"], entry.get("name")


def _checked(name: str, where: str) -> str:
    """The name, if its outputs can lie below the output's folder without touching what is not theirs.

    Names with a dot in front are the program's own: unfinished work, locks and temporary files.
    """
    parts = re.split(r"[/\\]", name)
    if "\0" in name or any(part in {"", ".", ".."} for part in parts):
        raise DataError(f"expected a name relative to the output, without . and .., in {where}, got {name[:80]!r}")
    if any(part.strip().startswith(".") for part in parts):
        raise DataError(
            f"expected a name without a dot in front of a part, which is reserved for unfinished work, in {where}, "
            f"got {name[:80]!r}"
        )
    try:
        length = len(os.fsencode(name))
    except UnicodeError as error:
        raise DataError(f"expected a name that a file can have in {where}, got {name[:80]!r}") from error
    if length > _LONGEST_NAME or any(output_name(part) != part for part in parts):
        raise DataError(
            f"expected a name of at most {_LONGEST_NAME} bytes, and {_LONGEST_PART} between two slashes, in {where}, "
            f"got {length} bytes: {name[:80]!r}"
        )
    return name
