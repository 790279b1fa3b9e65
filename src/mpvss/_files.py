"""Files of ours: whole or not there at all; and the names of images in the order of time.

Everything is written under a temporary name beside its final one and renamed when its bytes are on the disk. A lock
keeps other writers out meanwhile; the system releases it when the process ends, however it ends.
"""

import errno
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from mpvss.errors import OutputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

_TOKEN = 8
_MOST_SHOWN = 300
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{{_TOKEN}}}\.(?:part|former)", re.DOTALL)
# What file systems without locks say, besides ENOSYS, which the library knows.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals while writing into an OutputError that names the output."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"expected to be able to write {shown_path(path)}, got: {reason}; choose a writable folder with free space"
        ) from error


def shown_path(path: Path) -> str:
    """The path, of a very long one its end."""
    text = str(path)
    return text if len(text) <= _MOST_SHOWN else f"...{text[-_MOST_SHOWN:]}"


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Keep an output for this writer: others of this process, of this machine and of a shared disk are refused.

    The system releases the lock when the process ends, however it ends.

    Raises:
        OutputError: Another writer has it, or its folder cannot be written.
    """
    lock = _lock(path)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(path: Path) -> "BaseFileLock":
    from filelock import Timeout

    try:
        with output_errors(path):
            if not path.parent.is_dir():  # which the library would make
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return _acquired(path.with_name(f".{path.name}.lock"))
    except OutputError as error:
        if isinstance(error.__cause__, Timeout):
            raise OutputError(
                f"expected to be the only one that writes {path}, got another run at work; wait for it, or choose "
                "another output"
            ) from None
        raise


def _acquired(file: Path) -> "BaseFileLock":
    from filelock import FileLock, SoftFileLock, Timeout

    try:
        lock: BaseFileLock = FileLock(file, thread_local=False)
        lock.acquire(timeout=0)
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(file, thread_local=False)
        lock.acquire(timeout=0)
    return lock


def _unlock(lock: "BaseFileLock") -> None:
    if os.name != "nt":  # there the library does it
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for this file sees that it is gone, and makes one
    lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers left in a folder that were killed: those of which the lock is to be had."""
    for leftover in sorted(folder.glob(".*")):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or not (folder / f".{match[1]}.lock").is_file():
            continue
        with suppress(OutputError), owned(folder / match[1]):
            _remove(leftover)


def _remove_of_dead(path: Path) -> None:
    """Remove what the version before, which had no locks, left of an output: those of processes that are gone."""
    for leftover in path.parent.glob(f".{escape(path.name)}.*.part"):
        number = leftover.name.removesuffix(".part").rpartition(".")[2]
        if os.name != "nt" and number.isdecimal() and len(number) < _TOKEN:
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                _remove(leftover)
            except (OSError, OverflowError):
                continue


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class Pending:
    """An output under its temporary name, next to its final one, which no other writer has meanwhile.

    What writers that were killed left in the folder is removed.

    Attributes:
        path: Final name.
        temporary: Hidden temporary name in the same folder, to write to.

    Raises:
        OutputError: Another writer has this output, or its folder cannot be written.
    """

    def __init__(self, path: str | Path, *, folder: bool = False) -> None:
        self.path = Path(path).absolute()
        self.temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(_TOKEN // 2)}.part")
        self._synced = False
        with output_errors(self.path):
            _remove_leftovers(self.path.parent)
            _remove_of_dead(self.path)
            self._lock: BaseFileLock | None = _lock(self.path)
            try:
                if folder:
                    self.temporary.mkdir()
                else:
                    self.temporary.touch(exist_ok=False)
            except BaseException:
                self.discard()
                raise

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        with output_errors(self.path):
            _sync_tree(self.temporary)
        self._synced = True

    def commit(self) -> None:
        """Give the output its final name, in place of what had it, once its bytes are on the disk."""
        if not self._synced:
            self.sync()
        with output_errors(self.path):
            _rename(self.temporary, self.path)
        self._release()

    def discard(self) -> None:
        """Remove what was written; harmless when committed or discarded already."""
        if self._lock is not None:
            _remove(self.temporary)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            _unlock(self._lock)
            self._lock = None


@contextmanager
def atomic(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary name to write a file to, or an empty folder; what lies there gets the final name at the end.

    Where the block raises, what was written is removed, and what had the name before keeps it.

    Raises:
        OutputError: Another writer has this output, or the system refuses anything that the block writes.
    """
    with output_errors(Path(path)):
        pending = Pending(path, folder=folder)
        try:
            yield pending.temporary
            pending.commit()
        finally:
            pending.discard()


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give an empty folder beside a path, for what is installed from there file by file; it is removed at the end.

    Raises:
        OutputError: Another writer has this path, or its folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pending = Pending(path, folder=True)
    try:
        yield pending.temporary
    finally:
        pending.discard()


def install(staged: Path, path: Path) -> None:
    """Move a whole file or folder to its final name on the same disk, in place of what has it.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync_tree(staged)
        _rename(staged, path)


def write_json(path: str | Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_first(path: Path) -> None:
    """Remove an output that is about to be replaced, so that it never stands beside parts of the new one."""
    with output_errors(path):
        path.unlink(missing_ok=True)
        _sync(path.absolute().parent)


def _rename(staged: Path, path: Path) -> None:
    """Rename in place of what has the name; a folder that has files cannot be replaced in one step."""
    former = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN // 2)}.former")
    if os.path.lexists(path) and (path.is_dir() or staged.is_dir()):
        path.rename(former)
    staged.replace(path)
    _remove(former)
    _sync(path.parent)


def _sync_tree(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else ():
        _sync(file)
    _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as a person would: numbers in them by value, letters without case.

    - A number is a run of digits, or two that a point joins (a decimal: ``t10.25`` before ``t10.4``); more points make
      a version, part by part (``1.2.9`` before ``1.2.10``). Leading zeros do not count.
    - A minus or plus is the number's sign at the beginning of a name and after anything but a letter or digit
      (``-2`` before ``-1``, ``t_-2`` before ``t_-1``); after a letter only where another of the names has a number
      there without it (``t-2``, ``t-1``, ``t0``). Otherwise it is a dash: ``shot-1`` before ``shot-2``.
    - Names that are equal so far are in the order of their characters: the order is total, and the same everywhere.

    Of paths each folder is compared in turn. The suffix of an image file counts last.
    """
    listed = list(names)
    signed = _signed_prefixes(listed)
    return sorted(listed, key=lambda name: _natural_key(name, signed))


_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<digits>\d+(?:\.\d+)*)")


def _tokens(name: str) -> list[tuple[str, str, str]]:
    """Text, sign and digits, again and again; the last has no digits."""
    tokens, at = [], 0
    for match in _NUMBER.finditer(name):
        tokens.append((name[at : match.start()], match["sign"], match["digits"]))
        at = match.end()
    return [*tokens, (name[at:], "", "")]


def _without_suffix(name: str) -> tuple[str, str]:
    path = Path(name)
    return (name[: -len(path.suffix)], path.suffix) if path.suffix.lower() in IMAGE_SUFFIXES else (name, "")


def _signed_prefixes(names: Iterable[str]) -> set[str]:
    """Beginnings of names that end in a letter and after which a number stands without a sign."""
    prefixes = set()
    for name in names:
        for part in _parts(name):
            before = ""
            for text, sign, digits in _tokens(part):
                before += text
                if digits and not sign and text[-1:].isalpha():
                    prefixes.add(before.casefold())
                before += sign + digits
    return prefixes


def _parts(name: str) -> list[str]:
    return re.split(r"[/\\]", _without_suffix(name)[0])


def _natural_key(name: str, signed: set[str]) -> tuple[Any, ...]:
    parts = []
    for part in _parts(name):
        key: list[Any] = []
        before = ""
        for text, sign, digits in _tokens(part):
            before += text
            dash = bool(key) and not text  # between two numbers, as in 2024-05
            is_sign = bool(sign) and not dash and (not text[-1:].isalnum() or before.casefold() in signed)
            key.append(unicodedata.normalize("NFC", text + ("" if is_sign else sign)).casefold())
            if digits:
                key.append(_value(digits, negative=is_sign and sign == "-"))
            before += sign + digits
        parts.append(key)
    return parts, _without_suffix(name)[1].casefold(), name


def _value(digits: str, *, negative: bool) -> list[Decimal]:
    whole = digits.split(".")
    numbers = [Decimal(digits)] if len(whole) < 3 else [Decimal(part) for part in whole]
    return [-number for number in numbers] if negative else numbers
