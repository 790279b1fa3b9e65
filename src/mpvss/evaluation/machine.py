"""What measured seconds depend on: the machine, its threads, the memory of a process, and a video to measure on."""

import platform
import subprocess
import sys
from fractions import Fraction
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

import mpvss
from mpvss._threads import cores, threads
from mpvss.outputs import Mp4Writer
from mpvss.types import IMAGE_RATE


def machine() -> dict[str, str | int | None]:
    """Return processor, cores, threads, versions, and the commit of a git checkout."""
    processor = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), processor)
    return {
        "processor": processor,
        "cores": cores(),
        "threads": threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "onnxruntime")},
        "mpvss": mpvss.__version__,
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not whatever repository an installation lies in
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_mib() -> float | None:
    """Peak memory of this process. Not ``ru_maxrss`` on Linux: that keeps what the parent had when it started this."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)
    if find_spec("resource") is None:
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def synthetic_video(path: Path, size: tuple[int, int], frames: int) -> None:
    """Write a video of a smooth texture that a camera moves over, with slight turns: no data needed.

    Raises:
        OutputError: It cannot be written.
    """
    height, width = size
    random = np.random.default_rng(0)
    texture = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = random.standard_normal((cells * height // width + 2, cells, 3)).astype(np.float32)
        texture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / (2 if cells == 64 else 1)
    image = np.clip(128 + 40 * texture, 0, 255).astype(np.uint8)
    with Mp4Writer(path, size, 1 / IMAGE_RATE) as writer:
        for index in range(frames):
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), 3 * float(np.sin(index / 12)), 1.0)
            turn[:, 2] += (0.004 * width * index, 0.02 * height * float(np.sin(index / 9)))
            seen = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            writer.append(seen, Fraction(index) / IMAGE_RATE)
