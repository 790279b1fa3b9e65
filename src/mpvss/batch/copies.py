"""Local copies of remote sources: one a machine, shared by its workers, however many chunks a video has."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from mpvss.batch.locks import lock, unlock
from mpvss.batch.sources import Job
from mpvss.batch.storage import Beat, fetch, stamp
from mpvss.errors import OutputError, SourceError

_PREFIX = "mpvss-sources-"
_POLL_SECONDS = 0.5


class SourceCopies:
    """The copies of one batch on one machine.

    A copy stays until its video is done. Where the disk has no room for another one, copies that no worker uses make
    way. What a killed run left is removed by the next one.

    Args:
        folder: Where copies go; cleared by the driver.
        identity: Of the worker.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity
        self._folder.mkdir(parents=True, exist_ok=True)
        self._in_use: FileLock | None = None

    def get(self, job: Job, beat: Beat) -> Path:
        """Return the copy of a source, downloaded if no worker did; it stays at least until ``release``.

        Args:
            job: The video.
            beat: Called while bytes come, and while another worker downloads.

        Raises:
            OutputError: It cannot be downloaded whole; trying again may help.
            SourceError: It is larger than the free space, or, from a web server, than 8 GiB.
        """
        self.release()
        try:
            version = stamp(job.source)
        except SourceError as error:  # which may be the network's
            raise OutputError(str(error)) from error
        copy = self._folder / f"{_key(job)}-{hashlib.sha256(version.encode()).hexdigest()[:8]}"
        held = None
        while held is None:
            beat()
            held = lock(copy.with_suffix(".lock"), seconds=_POLL_SECONDS)
        try:
            self._in_use = lock(copy.with_suffix(f".{self._identity}.use"))
            if not copy.is_dir():
                self._download(job, copy, beat)
        finally:
            held.release()  # and its file stays, as others may wait for it
        return next(copy.iterdir())

    def release(self) -> None:
        """Say that this worker uses no copy."""
        if self._in_use is not None:
            unlock(self._in_use)
            self._in_use = None

    def drop(self, job: Job) -> None:
        """Remove the copies of a video that is done."""
        self.release()
        for copy in self._folder.glob(f"{_key(job)}-*"):
            if copy.is_dir():
                shutil.rmtree(copy, ignore_errors=True)

    def _download(self, job: Job, copy: Path, beat: Beat) -> None:
        unfinished = copy.with_suffix(f".{self._identity}.part")
        try:
            try:
                fetch(job.source, unfinished, beat=beat)
            except (SourceError, OSError):
                if not self._make_room(copy):
                    raise
                shutil.rmtree(unfinished, ignore_errors=True)
                fetch(job.source, unfinished, beat=beat)
            unfinished.rename(copy)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _make_room(self, kept: Path) -> bool:
        """Remove every other copy that no worker uses; say whether there was one."""
        removed = False
        for copy in self._folder.glob("*-*"):
            if copy == kept or not copy.is_dir() or copy.suffix:
                continue
            held = lock(copy.with_suffix(".lock"))
            if held is None:
                continue
            if not any(_is_held(use) for use in self._folder.glob(f"{copy.name}.*.use")):
                shutil.rmtree(copy, ignore_errors=True)
                removed = True
            held.release()
        return removed


def machine_folder(work: str, identity: str) -> tuple[Path, FileLock | None]:
    """Return a folder for the copies of a batch on a machine that shares no disk with the driver.

    Folders of batches that no worker works for any more are removed.

    Args:
        work: What tells the batch from others.
        identity: Of the worker.

    Returns:
        The folder, and a lock that keeps it until the end of the process.
    """
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        if not any(_is_held(worker) for worker in folder.glob("*.worker")):
            shutil.rmtree(folder, ignore_errors=True)
    folder = root / f"{_PREFIX}{hashlib.sha256(work.encode()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    return folder, lock(folder / f"{identity}.worker")


def _key(job: Job) -> str:
    return hashlib.sha256(job.source.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _is_held(path: Path) -> bool:
    held = lock(path)
    if held is None:
        return True
    unlock(held)
    return False
