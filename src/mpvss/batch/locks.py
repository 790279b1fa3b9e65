"""Locks of files that end with the process, however it ends."""

import errno
import logging
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}


def lock(path: Path, *, seconds: float = 0.0) -> FileLock | None:
    """Lock a file for this process until ``unlock`` or the end of the process, however it ends.

    Where a file system has no locks that is said, and nothing is locked.

    Args:
        path: The file; made if missing, in a folder that exists. Nothing else is written there.
        seconds: How long to wait for others.

    Returns:
        The lock, or ``None`` if another one is held.

    Raises:
        OSError: The file cannot be opened.
    """
    held = FileLock(str(path))
    try:
        held.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks (%s); have one run at a time write there", path.parent, error)
    return held


def unlock(held: FileLock) -> None:
    """Remove a locked file and give the lock up."""
    with suppress(OSError):  # Windows removes no open file
        Path(held.lock_file).unlink()
    with suppress(OSError):
        held.release()
