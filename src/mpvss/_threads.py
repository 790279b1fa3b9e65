"""The one count of cores."""

import os


def cores() -> int:
    """Return how many cores this process may use: those that its affinity allows, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
