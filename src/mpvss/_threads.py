"""The one count of cores."""

import os
import sys

_told: list[int] = []


def cores() -> int:
    """Return how many cores this process may use: those that its affinity allows, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return how many threads this process uses: what it was told, torch's count where that is loaded, or all cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return _told[0] if _told else int(asked) if asked.isdigit() and int(asked) else cores()


def use_threads(count: int) -> None:
    """Let the networks and OpenCV use this many threads, in the whole process."""
    import cv2

    _told[:] = [count]
    cv2.setNumThreads(count)
    if "torch" in sys.modules:
        tell_torch()


def tell_torch() -> None:
    """Let torch, which is loaded when a network needs it, use what ``use_threads`` was told."""
    import torch

    if _told:
        torch.set_num_threads(_told[0])
