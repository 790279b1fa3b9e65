"""What ``mpvss doctor`` looks at: versions, devices, codecs, and packages known to break the program."""

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from typing import Any

from mpvss._zoo import list_models

_PACKAGES = (
    "mpvss",
    "torch",
    "transformers",
    "av",
    "opencv-python-headless",
    "numpy",
    "safetensors",
    "huggingface_hub",
)
_CODECS = (("libx264", "w"), ("ffv1", "w"), ("h264", "r"), ("hevc", "r"), ("av1", "r"), ("ffv1", "r"))


def examine() -> dict[str, Any]:
    """Return versions, devices and codecs, and a list of problems with what to do about each."""
    problems: list[str] = []
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
            if name not in ("mpvss", "opencv-python-headless"):
                problems.append(f"{name} is not installed: pip install mpvss again")
    return {
        "versions": versions,
        "devices": _devices(),
        "codecs": _codecs(problems),
        "extras": _extras(),
        "models": _models(problems),
        "problems": problems + _torchvision(),
    }


def _extras() -> dict[str, str]:
    """Whether what each extra needs is installed, or the command that installs it."""
    needs: dict[str, list[str]] = {}
    with suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("mpvss") or ():
            name, _, marker = requirement.partition(";")
            match = re.search(r"extra == ['\"]([^'\"]+)", marker)
            if match:
                needs.setdefault(match[1], []).append(re.split(r"[\s<>=!~\[]", name.strip(), maxsplit=1)[0])
    report = {}
    for extra, packages in needs.items():
        missing = [package for package in packages if not _is_installed(package)]
        command = f"missing {', '.join(missing)}: pip install 'mpvss[{extra}]'"
        report[extra] = command if missing else "installed"
    return report


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose sums, flows and codecs decide results to the last bit."""
    report = {}
    for name in ("torch", "transformers", "opencv-python-headless", "av", "onnxruntime"):
        try:
            report[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return report


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> dict[str, str]:
    import torch

    report = {"cpu": f"{cores()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    report["cuda"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    report["mps"] = "available" if torch.backends.mps.is_available() else "none"
    return report


def _codecs(problems: list[str]) -> dict[str, str]:
    import av

    report = {}
    for name, mode in _CODECS:
        task = "write" if mode == "w" else "read"
        try:
            av.Codec(name, "w" if mode == "w" else "r")
            report[f"{task} {name}"] = "yes"
        except av.FFmpegError:
            report[f"{task} {name}"] = "no"
            if mode == "w":
                problems.append(f"this build of PyAV cannot write {name}: install av from its own wheel")
    return report


def _models(problems: list[str]) -> dict[str, str]:
    from importlib.resources import files

    report = {}
    for name in (model["id"] for model in list_models() if "/" not in model["id"]):
        weights = files("mpvss") / "assets" / name / "model.safetensors"
        report[name] = "yes" if weights.is_file() else "missing"
        if not weights.is_file():
            problems.append(f"the weights of {name} are missing from the package: install it again")
    return report


def _torchvision() -> list[str]:
    """A torchvision built for another torch breaks the import of every model."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return []
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        return [f"torchvision {version} does not work with this torch ({error}): pip uninstall torchvision"]
    return []
