"""Where videos come from and where results go: this machine's disks, or anything fsspec opens (s3, https and so on)."""

import codecs
import glob
import hashlib
import json
import logging
import mimetypes
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mpvss._files import IMAGE_SUFFIXES, install, output_errors
from mpvss._validate import parse_json, shown, shown_address
from mpvss.errors import ConfigError, DataError, MpvssError, OutputError, SourceError
from mpvss.outputs.sinks import ENDINGS
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
_OUTPUTS = tuple(ENDINGS[kind] for kind in ("overlay", "compare", "labels"))
_LISTS = (".txt", ".jsonl")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# FFmpeg draws any text as a picture.
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
_MOST_DOWNLOADED = 8 * 2**30
# A file of these appears at once, when all of it is there.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Job:
    """One video to segment.

    Attributes:
        name: What its outputs are called, with the folders below the output, without an ending.
        source: What is opened: an absolute path, a pattern of images, or a URL.
        shown: How the source was named; of an address without user name, password and query.
        given: Whether a list gave the name, so that it stays as it is.
    """

    name: str
    source: str
    shown: str
    given: bool = False


def is_remote(place: str) -> bool:
    """Whether a place is not on this machine's disks.

    Raises:
        DataError: It is an address that cannot be parsed.
    """
    if _URL.match(place) is None or place.startswith("file://"):
        return False
    try:
        urlsplit(place)
    except ValueError as error:
        raise DataError(
            f"expected an address such as https://host/path, found {shown(shown_address(place))} ({error})"
        ) from error
    return True


def local(place: str) -> str:
    """A place on this machine as a path."""
    return unquote(urlsplit(place).path) if place.startswith("file://") else place


def below(place: str, name: str) -> str:
    """The place of this name, which may hold slashes, below another."""
    return f"{place.rstrip('/')}/{name}" if is_remote(place) else str(Path(place) / name)


@contextmanager
def _remote_errors(place: str, kind: type[MpvssError]) -> Iterator[None]:
    """Every library behind fsspec raises errors of its own: all of them are the network's or the store's."""
    try:
        yield
    except MpvssError:
        raise
    except ImportError as error:
        scheme = place.partition("://")[0]
        extra = f"pip install 'mpvss[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "install it"
        raise ConfigError(f"{_shown(place)} needs a package that is not installed: {extra} ({error})") from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).replace(place, _shown(place))
        raise kind(f"{_shown(place)}: {reason}; check the address, the credentials and the network") from error


def _open(place: str) -> tuple[Any, str]:
    import fsspec

    found: tuple[Any, str] = fsspec.core.url_to_fs(place)
    found[0].invalidate_cache()  # other workers write there too
    return found


def _beating(beat: Callable[[int | None, int], None]) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"beat": lambda size, value, **_: beat(size, value)})


def _shown(place: str) -> str:
    return shown_address(place) if is_remote(place) else place


# --- reading


def expand(sources: Sequence[str]) -> list[Job]:
    """Turn what was named into videos, in the order of their names.

    Args:
        sources: Videos; patterns; folders, which stand for all videos below them or, if there are none, for one video
            of images (both without the overlays and labels that this program wrote); lists (``.txt``: a source a line;
            ``.jsonl``: objects with ``source`` and perhaps ``name``).

    Raises:
        SourceError: A pattern, folder or list names no video.
        ConfigError: Two videos would be written under one name, or a source is live.
    """
    unique = {(job.name, job.source): job for given in sources for job in _expand(given)}
    jobs: dict[str, Job] = {}
    for job in _with_endings(list(unique.values())):
        known = jobs.setdefault(job.name, job)
        if known.source != job.source:
            raise ConfigError(
                f"expected sources with different names, found {known.shown} and {job.shown}, which would both be "
                f"written as {job.name}.*: name the folder above both, or give them names in a .jsonl list"
            )
    for name in jobs:
        for parent in map(str, PurePosixPath(name).parents):
            for ending in ENDINGS.values():
                if parent.endswith(ending) and parent.removesuffix(ending) in jobs:
                    raise ConfigError(
                        f"expected names that can stand beside each other, found {name}, which lies below an output "
                        f"of {parent.removesuffix(ending)}: give them other names in a .jsonl list"
                    )
    return [jobs[name] for name in sorted(jobs)]


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
            len(changed), _some(f"{name}.*" for name in changed),
        )  # fmt: skip
    return jobs


def _with_ending(job: Job) -> str:
    if not is_remote(job.source) and not Path(job.source).is_file():  # a folder or a pattern has no ending
        return job.name
    path = unquote(urlsplit(job.source).path) if is_remote(job.source) else job.source
    return str(PurePosixPath(job.name).with_name(output_name(PurePosixPath(path).name)))


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many there are beside them."""
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    rest = len(shown) - _MOST_SHOWN
    return ", ".join(shown[:_MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _expand(given: str) -> Iterator[Job]:
    if _LIVE.match(given) and not os.path.lexists(given):
        raise ConfigError(f"expected recorded videos, found the live source {_shown(given)}: use mpvss segment")
    if PurePosixPath(urlsplit(given).path if is_remote(given) else given).suffix.lower() in _LISTS:
        yield from _listed(given)
    elif is_remote(given):
        yield from _remote(given)
    else:
        yield from _on_disk(local(given))


def _on_disk(given: str) -> Iterator[Job]:
    path = Path(given)
    try:
        if path.is_dir():
            found, left = _videos_in(path)
            if not found and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in path.iterdir()):
                yield Job(output_name(path.resolve().name) or "images", str(path.resolve()), given)
                return
            root = path
        elif not path.exists() and glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
            if matches and all(Path(match).suffix.lower() in IMAGE_SUFFIXES for match in matches):
                folder = path.parent.name
                yield Job(folder if folder and not glob.has_magic(folder) else "images", str(path.absolute()), given)
                return
            root = Path(*_before_magic(path.parts))
            found, left = [], []
            for match in map(Path, matches):
                if match.name.endswith(_OUTPUTS):
                    continue
                videos, others = _videos_in(match) if match.is_dir() else ([match], [])
                found += videos or [match]
                left += others
        else:
            yield Job(output_name(path.stem), str(path.absolute()), given)
            return
    except OSError as error:
        raise SourceError(f"expected sources that can be read, found {error.strerror}: {given}") from error
    _say_left_out(given, [str(file.relative_to(root)) for file in left])
    if not found:
        raise SourceError(f"expected videos in {given}, found none{_among(left)}: check the path")
    for file in found:
        relative = file.relative_to(root)
        name = relative.with_name(output_name(relative.name if file.is_dir() else relative.stem))
        yield Job(name.as_posix(), str(file.absolute()), str(file))


def _among(left: Sequence[Any]) -> str:
    return f" among {len(left)} files" if left else ""


def _say_left_out(given: str, names: list[str]) -> None:
    if names:
        log.warning("%s: %d files are no videos, and left out: %s", _shown(given), len(names), _some(names))


def _videos_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The videos below a folder, and the other files, both without hidden ones and what this program wrote."""
    videos: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.rglob("*")):
        if _is_ours(file.relative_to(folder).parts) or not file.is_file():
            continue
        (videos if file.suffix.lower() in VIDEO_SUFFIXES or _is_video(file) else others).append(file)
    return videos, others


def _is_ours(parts: Sequence[str]) -> bool:
    """Whether a file is hidden, or an output; a list of sources and a manifest are none either."""
    return (
        any(part.startswith(".") for part in parts)
        or parts[-1].endswith((*_OUTPUTS, ENDINGS["meta"]))
        or any(part.endswith(ENDINGS["png"]) for part in parts[:-1])
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


def _before_magic(parts: Sequence[str]) -> list[str]:
    fixed: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _remote(given: str) -> Iterator[Job]:
    scheme = given.partition("://")[0].lower()
    if scheme in {"http", "https"}:  # a folder or a pattern there is a page, not a list
        yield Job(_remote_name(unquote(urlsplit(given).path)), given, _shown(given))
        return
    left: list[str] = []
    with _remote_errors(given, SourceError):
        fs, path = _open(given)
        if glob.has_magic(path):
            root = "/".join(_before_magic(path.split("/")))
            found = [match for match in fs.glob(path) if not fs.isdir(match)]
        elif fs.isdir(path):
            root = path.rstrip("/")
            files = [file for file in fs.find(path) if not _is_ours(PurePosixPath(file).relative_to(root).parts)]
            found = [file for file in files if PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES]
            left = sorted(set(files) - set(found))
        else:
            yield Job(_remote_name(path), given, _shown(given))
            return
        found = [
            match
            for match in found
            if not match.endswith(_OUTPUTS)
            and not any(part.startswith(".") for part in PurePosixPath(match).relative_to(root).parts)
        ]
        _say_left_out(given, [str(PurePosixPath(file).relative_to(root)) for file in left])
        if not found:
            raise SourceError(f"expected videos at {_shown(given)}, found none{_among(left)}: check the address")
        for match in found:
            url = fs.unstrip_protocol(match)
            name = PurePosixPath(match).relative_to(root)
            yield Job(name.with_name(output_name(name.stem)).as_posix(), url, _shown(url))


def _remote_name(path: str) -> str:
    stem = output_name(PurePosixPath(path).stem.replace("\0", ""))
    return stem if stem.strip(".") else "video"


def _listed(given: str) -> Iterator[Job]:
    """The sources that a file lists; those without a scheme are relative to its folder."""
    try:
        if is_remote(given):
            with _remote_errors(given, SourceError):
                fs, path = _open(given)
                data = fs.cat_file(path)
        else:
            data = Path(local(given)).read_bytes()
        text = _decoded(data)
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"expected a list of sources in {_shown(given)}, found none that can be read: {error}"
        ) from error
    folder = given.rpartition("/")[0] if is_remote(given) else str(Path(local(given)).parent)
    empty = True
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"line {number} of {_shown(given)}"
        source, name = _entry(line, where) if given.lower().endswith(".jsonl") else (line.strip(), None)
        empty = False
        place = source if _URL.match(source) else below(folder, source)
        if PurePosixPath(place).suffix.lower() in _LISTS:
            raise DataError(f"expected videos in {_shown(given)}, found another list in line {number}: name it itself")
        jobs = list(_expand(place))
        if name is None:
            yield from jobs
        elif len(jobs) > 1:
            raise DataError(f"expected one video for the name {name[:80]!r} in {where}, found many")
        else:
            yield Job(_safe(name, where), jobs[0].source, jobs[0].shown, given=True)
    if empty:
        raise SourceError(f"expected sources in {_shown(given)}, found an empty list")


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
        entry = parse_json(line)
        source, name = entry["source"], entry.get("name")
        if not isinstance(source, str) or not isinstance(name, str | None):
            raise TypeError("source and name must be texts")
        if not source or b"\0" in os.fsencode(source):
            raise ValueError("the source is empty or has a NUL")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f'expected {{"source": ..., "name": ...}} in {where}, found {line[:80]!r} ({error})') from error
    return source, name


def _safe(name: str, where: str) -> str:
    """The name, if its outputs can lie below the output's folder without touching what is not theirs.

    Names with a dot in front are the program's own: unfinished work, locks and temporary files.
    """
    parts = re.split(r"[/\\]", name)
    if "\0" in name or any(part in {"", ".", ".."} for part in parts):
        raise DataError(f"expected a name relative to the output, without . and .., in {where}, found {name[:80]!r}")
    if any(part.strip().startswith(".") for part in parts):
        raise DataError(
            f"expected a name without a dot in front of a part, which is reserved for unfinished work, in {where}, "
            f"found {name[:80]!r}"
        )
    try:
        length = len(os.fsencode(name))
    except UnicodeError as error:
        raise DataError(f"expected a name that a file can have in {where}, found {name[:80]!r}") from error
    if length > _LONGEST_NAME or any(output_name(part) != part for part in parts):
        raise DataError(
            f"expected a name of at most {_LONGEST_NAME} bytes, and {_LONGEST_PART} between two slashes, in {where}, "
            f"found {length} bytes: {name[:80]!r}"
        )
    return name


def fetch(place: str, folder: Path, *, beat: Callable[[], None] = lambda: None) -> Path:
    """Return a local file with what lies at a place: itself if it is local, else a download into the folder.

    Args:
        place: The place.
        folder: Made if missing.
        beat: Called as the bytes come.

    Raises:
        OutputError: It cannot be downloaded whole; trying again may help.
        SourceError: It is larger than the free space, or, from a web server, than 8 GiB.
    """
    if not is_remote(place):
        return Path(place)
    path_name = PurePosixPath(unquote(urlsplit(place).path).replace("\0", ""))
    # With its suffix, which says what some files hold.
    target = folder / f"{output_name(path_name.stem) or 'video'}{path_name.suffix[:16]}"
    with _remote_errors(place, OutputError):
        fs, path = _open(place)
        size = fs.info(path).get("size")
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
        if place.startswith(("http://", "https://")):
            room = min(room, _MOST_DOWNLOADED)

        def within_room(known: int | None, come: int) -> None:
            if max(known or 0, come) > room:
                raise SourceError(
                    f"expected at most {room} bytes from {_shown(place)}, got {max(known or 0, come)}: download it "
                    "yourself and give the file"
                )
            beat()

        within_room(size, 0)
        fs.get_file(path, str(target), callback=_beating(within_room))
        found = target.stat().st_size
        if size is not None and found != size:
            raise OutputError(f"expected {size} bytes from {_shown(place)}, found {found}: the connection was lost")
    return target


def stamp(place: str) -> str:
    """What changes when the content of a source changes: size and time, or what a store has for them.

    Raises:
        SourceError: There is nothing.
    """
    if is_remote(place):
        with _remote_errors(place, SourceError):
            fs, path = _open(place)
            info = fs.info(path)
        return json.dumps({key: str(info.get(key)) for key in ("size", "ETag", "mtime", "LastModified")})
    checksum = hashlib.sha256()
    try:
        for file in _files(Path(place)):
            status = file.stat()
            checksum.update(os.fsencode(file) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError as error:
        raise SourceError(f"expected a source that can be read, found {error.strerror}: {place}") from error
    return checksum.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.iterdir())
    if path.exists():
        return [path]
    return sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207


# --- writing


def digest(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, or of all files of a folder with their names."""
    if path.is_dir():
        return _digest_of_folder((file.name, digest(file)) for file in sorted(path.iterdir()))
    with path.open("rb") as file:
        return _digest_of_file(file)


def _digest_of_file(file: Any) -> dict[str, Any]:
    size, checksum = 0, hashlib.sha256()
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        checksum.update(chunk)
    return {"bytes": size, "sha256": checksum.hexdigest()}


def _digest_of_folder(files: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    size, checksum = 0, hashlib.sha256()
    for name, one in files:
        size += one["bytes"]
        checksum.update(f"{one['sha256']}  {name}\n".encode())
    return {"bytes": size, "sha256": checksum.hexdigest()}


def publish(staged: Path, place: str, *, beat: Callable[[], None] = lambda: None) -> None:
    """Move a file, or a folder of files, to its final place, where a file appears only when all of it is there.

    Files of a store whose uploads do not appear at once get a temporary name first. A folder in a store is no unit:
    its files appear one by one.

    Args:
        staged: The file or folder, which is gone afterwards.
        place: Where it goes; what is there is replaced.
        beat: Called as the bytes go.

    Raises:
        OutputError: It cannot be written.
    """
    if is_remote(place):
        _upload(staged, place, beat)
        return
    install(staged, Path(place))


def _upload(staged: Path, place: str, beat: Callable[[], None]) -> None:
    scheme = place.partition("://")[0].lower()
    with _remote_errors(place, OutputError):
        fs, path = _open(place)
        if staged.is_dir():
            if fs.exists(path):
                fs.rm(path, recursive=True)
            for file in sorted(staged.iterdir()):
                fs.put_file(str(file), f"{path}/{file.name}")
                beat()
        elif scheme in _OBJECT_STORES:
            fs.put_file(str(staged), path, callback=_beating(lambda *_: beat()))
        else:
            parent, _, name = path.rpartition("/")
            fs.makedirs(parent, exist_ok=True)
            fs.put_file(str(staged), f"{parent}/.{name}.part", callback=_beating(lambda *_: beat()))
            fs.mv(f"{parent}/.{name}.part", path)
        if staged.is_dir():
            shutil.rmtree(staged)
        else:
            staged.unlink()


def refuse_link(folder: Path) -> None:
    """Have a folder of unfinished work be one: its files are removed, and those behind a link are somebody's.

    Raises:
        OutputError: It is a link.
    """
    if folder.is_symlink():
        raise OutputError(
            f"expected a folder of its own at {folder}, found a link: remove the link, or name another output"
        )


def remove(place: str) -> None:
    """Remove a file or a folder; harmless when there is none.

    Raises:
        OutputError: It cannot be removed.
    """
    if is_remote(place):
        with _remote_errors(place, OutputError):
            fs, path = _open(place)
            if fs.exists(path):
                fs.rm(path, recursive=True)
        return
    target = Path(place)
    with output_errors(target):
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def exists(place: str) -> bool:
    """Whether something lies at a place.

    Raises:
        OutputError: The store does not answer.
    """
    if not is_remote(place):
        with output_errors(Path(place)):
            return os.path.lexists(place)
    with _remote_errors(place, OutputError):
        fs, path = _open(place)
        return bool(fs.exists(path))


def stored(place: str) -> dict[str, int]:
    """The bytes of everything below a place in a store, files and folders, by name: a thousand for each request.

    Raises:
        OutputError: The store does not answer.
    """
    sizes: dict[str, int] = {}
    with _remote_errors(place, OutputError):
        fs, path = _open(place)
        found = fs.find(path, detail=True) if fs.exists(path) else {}
        for file, info in found.items():
            name = PurePosixPath(file).relative_to(path)
            for one in (name, *name.parents):
                sizes[str(one)] = sizes.get(str(one), 0) + info["size"]
    return sizes


def is_whole(place: str, described: dict[str, Any], *, verify: bool) -> bool:
    """Whether what lies at a place has the size, and if asked the checksum, that ``digest`` gave.

    Raises:
        OutputError: The store does not answer.
    """
    wanted = {key: described[key] for key in ("bytes", "sha256")}
    if is_remote(place):
        with _remote_errors(place, OutputError):
            fs, path = _open(place)
            if not fs.exists(path):
                return False
            folder = fs.isdir(path)
            files = sorted(fs.find(path)) if folder else [path]
            if sum(fs.info(file)["size"] for file in files) != wanted["bytes"]:
                return False
            if not verify:
                return True

            def one(file: str) -> dict[str, Any]:
                with fs.open(file, "rb") as opened:
                    return _digest_of_file(opened)

            if folder:
                found = _digest_of_folder((PurePosixPath(file).name, one(file)) for file in files)
            else:
                found = one(path)
            return found == wanted
    target = Path(place)
    try:
        if not target.exists():
            return False
        if verify:
            return digest(target) == wanted
        inside = list(target.iterdir()) if target.is_dir() else [target]
        return bool(sum(file.stat().st_size for file in inside) == wanted["bytes"])
    except OSError:
        return False
