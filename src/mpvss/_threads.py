"""The one count of cores."""

import os


def cores() -> int:
    """Return how many cores this process may use: those that its affinity allows, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let the networks and OpenCV use this many threads, in the whole process."""
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)
