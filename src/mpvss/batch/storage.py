"""Where videos come from and where results go: this machine's disks, or anything fsspec opens (s3, https and so on).

A location is a path or an address. What goes wrong with one raises OutputError, or SourceError where it is a source's.
"""

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mpvss._files import install, output_errors
from mpvss._validate import shown, shown_address
from mpvss.errors import ConfigError, DataError, MpvssError, OutputError, SourceError
from mpvss.video.info import output_name

Beat = Callable[[], None]
"""Called as bytes come or go, so that nobody takes a slow connection for a worker that hangs."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MOST_DOWNLOADED = 8 * 2**30
# A file of these appears at once, when all of it is there.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_BLOCK = 1 << 20


def no_beat() -> None:
    """Tell nobody."""


def is_address(location: str) -> bool:
    """Whether a location begins with a scheme, as in ``file:///videos``."""
    return _ADDRESS.match(location) is not None


def is_remote(location: str) -> bool:
    """Whether a location is not on this machine's disks.

    Raises:
        DataError: It is an address that cannot be parsed.
    """
    if not is_address(location) or location.startswith("file://"):
        return False
    try:
        urlsplit(location)
    except ValueError as error:
        raise DataError(
            f"expected an address such as https://host/path, got {shown(shown_address(location))} ({error})"
        ) from error
    return True


def local(location: str) -> str:
    """A location on this machine as a path."""
    return unquote(urlsplit(location).path) if location.startswith("file://") else location


def below(location: str, name: str) -> str:
    """The location of this name, which may hold slashes, below another."""
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else str(Path(location) / name)


def shown_location(location: str) -> str:
    """A location without secrets."""
    return shown_address(location) if is_remote(location) else location


@contextmanager
def open_store(location: str, kind: type[MpvssError] = OutputError) -> Iterator[tuple[Any, str]]:
    """Give the fsspec file system of an address, and the path there.

    Every library behind fsspec raises errors of its own: all of them are the network's or the store's, and become
    ``kind``.
    """
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(location)
        fs.invalidate_cache()  # other workers write there too
        yield fs, path
    except MpvssError:
        raise
    except ImportError as error:
        scheme = location.partition("://")[0]
        extra = f"pip install 'mpvss[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "install it"
        raise ConfigError(
            f"{shown_location(location)} needs a package that is not installed: {extra} ({error})"
        ) from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).replace(location, shown_location(location))
        raise kind(
            f"{shown_location(location)}: {reason}; check the address, the credentials and the network"
        ) from error


# --- reading


def fetch(location: str, folder: Path, *, beat: Beat = no_beat) -> Path:
    """Return a local file with what lies at a location: itself if it is local, else a download into the folder.

    Raises:
        OutputError: It cannot be downloaded whole; trying again may help.
        SourceError: It is larger than the free space, or, from a web server, than 8 GiB.
    """
    if not is_remote(location):
        return Path(location)
    name = PurePosixPath(unquote(urlsplit(location).path).replace("\0", ""))
    # With its suffix, which says what some files hold.
    target = folder / f"{output_name(name.stem) or 'video'}{name.suffix[:16]}"
    with open_store(location) as (fs, path):
        size = fs.info(path).get("size")
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
        if location.startswith(("http://", "https://")):
            room = min(room, _MOST_DOWNLOADED)

        def within_room(known: int | None, come: int) -> None:
            if max(known or 0, come) > room:
                raise SourceError(
                    f"expected at most {room} bytes from {shown_location(location)}, got {max(known or 0, come)}: "
                    "download it yourself and give the file"
                )
            beat()

        within_room(size, 0)
        fs.get_file(path, str(target), callback=_callback(within_room))
        got = target.stat().st_size
        if size is not None and got != size:
            raise OutputError(
                f"expected {size} bytes from {shown_location(location)}, got {got}: the connection was lost"
            )
    return target


def _callback(beat: Callable[[int | None, int], None]) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"beat": lambda size, value, **_: beat(size, value)})


def stamp(location: str) -> str:
    """What changes when the content of a source changes: size and time, or what a store has for them.

    Raises:
        SourceError: There is nothing.
    """
    if is_remote(location):
        with open_store(location, SourceError) as (fs, path):
            info = fs.info(path)
        return json.dumps({key: str(info.get(key)) for key in ("size", "ETag", "mtime", "LastModified")})
    checksum = hashlib.sha256()
    source = Path(location)
    try:
        if source.is_dir():
            files = sorted(source.iterdir())
        else:
            files = [source] if source.exists() else sorted(map(Path, glob.glob(location, recursive=True)))  # noqa: PTH207
        for file in files:
            status = file.stat()
            checksum.update(os.fsencode(file) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError as error:
        raise SourceError(f"expected a source that can be read, got {error.strerror}: {location}") from error
    return checksum.hexdigest()


# --- writing


def publish(staged: Path, location: str, *, beat: Beat = no_beat) -> None:
    """Move a file, or a folder of files, to its final location, where a file appears only when all of it is there.

    What is there is replaced. Files of a store whose uploads do not appear at once get a temporary name first. A
    folder in a store is no unit: its files appear one by one.
    """
    if not is_remote(location):
        install(staged, Path(location))
        return
    with open_store(location) as (fs, path):
        if staged.is_dir():
            if fs.exists(path):
                fs.rm(path, recursive=True)
            for file in sorted(staged.iterdir()):
                fs.put_file(str(file), f"{path}/{file.name}")
                beat()
            shutil.rmtree(staged)
            return
        callback = _callback(lambda *_: beat())
        if location.partition("://")[0].lower() in _OBJECT_STORES:
            fs.put_file(str(staged), path, callback=callback)
        else:
            parent, _, name = path.rpartition("/")
            fs.makedirs(parent, exist_ok=True)
            fs.put_file(str(staged), f"{parent}/.{name}.part", callback=callback)
            fs.mv(f"{parent}/.{name}.part", path)
        staged.unlink()


def refuse_link(folder: Path) -> None:
    """Refuse a link as a folder of unfinished work: its files are removed, and those behind a link are somebody's.

    Raises:
        OutputError: It is a link.
    """
    if folder.is_symlink():
        raise OutputError(
            f"expected a folder of its own at {folder}, got a link: remove the link, or name another output"
        )


def remove(location: str) -> None:
    """Remove a file or a folder; harmless when there is none."""
    if is_remote(location):
        with open_store(location) as (fs, path):
            if fs.exists(path):
                fs.rm(path, recursive=True)
        return
    target = Path(location)
    with output_errors(target):
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def exists(location: str) -> bool:
    """Whether something lies at a location."""
    if is_remote(location):
        with open_store(location) as (fs, path):
            return bool(fs.exists(path))
    with output_errors(Path(location)):
        return os.path.lexists(location)


# --- what is there


def stored(location: str) -> dict[str, int]:
    """The bytes of everything below a location in a store, files and folders, by name: a thousand for each request."""
    sizes: dict[str, int] = {}
    with open_store(location) as (fs, path):
        files = fs.find(path, detail=True) if fs.exists(path) else {}
        for file, info in files.items():
            name = PurePosixPath(file).relative_to(path)
            for each in (name, *name.parents):
                sizes[str(each)] = sizes.get(str(each), 0) + info["size"]
    return sizes


def digest(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, or of all files of a folder with their names."""
    if path.is_dir():
        return _digest_of_folder((file.name, digest(file)) for file in sorted(path.iterdir()))
    with path.open("rb") as file:
        return _digest_of_file(file)


def _digest_of_file(file: Any) -> dict[str, Any]:
    size, checksum = 0, hashlib.sha256()
    while block := file.read(_BLOCK):
        size += len(block)
        checksum.update(block)
    return {"bytes": size, "sha256": checksum.hexdigest()}


def _digest_of_folder(files: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    size, checksum = 0, hashlib.sha256()
    for name, each in files:
        size += each["bytes"]
        checksum.update(f"{each['sha256']}  {name}\n".encode())
    return {"bytes": size, "sha256": checksum.hexdigest()}


def is_whole(location: str, described: dict[str, Any], *, verify: bool) -> bool:
    """Whether what lies at a location has the size, and if asked the checksum, that ``digest`` gave."""
    expected = {key: described[key] for key in ("bytes", "sha256")}
    if is_remote(location):
        with open_store(location) as (fs, path):
            return bool(fs.exists(path)) and _is_whole_in_store(fs, path, expected, verify)
    target = Path(location)
    try:
        if not target.exists():
            return False
        if verify:
            return digest(target) == expected
        inside = list(target.iterdir()) if target.is_dir() else [target]
        return bool(sum(file.stat().st_size for file in inside) == expected["bytes"])
    except OSError:
        return False


def _is_whole_in_store(fs: Any, path: str, expected: dict[str, Any], verify: bool) -> bool:
    folder = fs.isdir(path)
    files = sorted(fs.find(path)) if folder else [path]
    if sum(fs.info(file)["size"] for file in files) != expected["bytes"]:
        return False
    if not verify:
        return True

    def digest_of(file: str) -> dict[str, Any]:
        with fs.open(file, "rb") as opened:
            return _digest_of_file(opened)

    if folder:
        return _digest_of_folder((PurePosixPath(file).name, digest_of(file)) for file in files) == expected
    return digest_of(path) == expected
