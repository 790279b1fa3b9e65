"""The one count of cores, and of the threads that networks and OpenCV use."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_told: list[int] = []


def _one_thread_of_torch() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that OpenMP began before, and would wait for them for ever.
    os.register_at_fork(after_in_child=_one_thread_of_torch)


def cores() -> int:
    """Return how many cores this process may use: those that its affinity allows, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return how many threads a network uses: torch's, or those it was told, or OpenMP's, or one for each core."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    if _told:
        return _told[0]
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(named) if named.isdecimal() and int(named) > 0 else cores()


def use_threads(count: int) -> None:
    """Let the networks and OpenCV use this many threads, in the whole process."""
    import cv2

    _told[:] = [count]
    cv2.setNumThreads(count)
    if sys.modules.get("torch") is not None:
        tell_torch()


def tell_torch() -> None:
    """Let torch, which is loaded when a network needs it, use what ``use_threads`` was told."""
    import torch

    if _told:
        torch.set_num_threads(_told[0])


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let the networks and OpenCV use this many threads for a while; ``None`` leaves them."""
    if count is None:
        yield
        return
    import cv2

    before = threads(), cv2.getNumThreads()
    use_threads(count)
    try:
        yield
    finally:
        use_threads(before[0])
        cv2.setNumThreads(before[1])
