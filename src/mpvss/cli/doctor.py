"""What ``mpvss doctor`` looks at: versions, devices, codecs, and packages known to break the program."""

import importlib.metadata
import platform
import re
from contextlib import suppress
from typing import Any

from mpvss import _opencv
from mpvss._extras import command, has
from mpvss._threads import cores, threads
from mpvss._zoo import list_models

_MAIN = ("mpvss", "torch", "transformers", "onnxruntime", "av", "numpy")  # and OpenCV, whichever of its packages
_CODECS = (("libx264", "w"), ("ffv1", "w"), ("h264", "r"), ("hevc", "r"), ("av1", "r"), ("ffv1", "r"))


def examine() -> dict[str, Any]:
    """Return versions, devices, codecs and extras, and a list of problems with what to do about each."""
    problems: list[str] = []
    base, extras = _requirements()
    return {
        "versions": _versions(base, problems),
        "devices": _devices(),
        "codecs": _codecs(problems),
        "extras": {extra: _state(extra, packages) for extra, packages in extras.items()},
        "models": _models(problems),
        "problems": problems + _torchvision(),
    }


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that every installation has, and those of each extra, as this one's description names them."""
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    with suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("mpvss") or ():
            name, _, marker = requirement.partition(";")
            match = re.search(r"extra == ['\"]([^'\"]+)", marker)
            (base if match is None else extras.setdefault(match[1], [])).append(name.strip())
    return [_package(each) for each in base], {extra: _packages(extra, extras) for extra in extras}


def _packages(extra: str, extras: dict[str, list[str]]) -> list[str]:
    """The packages of an extra, and of those that it brings."""
    packages: list[str] = []
    for requirement in extras.get(extra, ()):
        others = re.match(r"mpvss\[(.+)\]", requirement)
        for other in others[1].split(",") if others else ():
            packages += _packages(other.strip(), extras)
        packages += [] if others else [_package(requirement)]
    return list(dict.fromkeys(packages))


def _package(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[]", requirement, maxsplit=1)[0]


def _versions(base: list[str], problems: list[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in (*_MAIN, *_opencv.installed()):
        versions[name] = _version(name) or "missing"
    for name in base:
        if name not in _opencv.PACKAGES and _version(name) is None:
            problems.append(f"{name} is not installed: pip install mpvss again")
    problems += _opencv.problems()
    return versions


def _state(extra: str, packages: list[str]) -> str:
    missing = [package for package in packages if not _is_installed(package)]
    return f"missing {', '.join(missing)}: {command(extra)}" if missing else "installed"


def _is_installed(package: str) -> bool:
    return _version(package) is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose sums, flows and codecs decide results to the last bit."""
    names = ("torch", "transformers", *_opencv.installed(), "av", "onnxruntime")
    return {name: version for name in names if (version := _version(name)) is not None}


def _devices() -> dict[str, str]:
    report = {"cpu": f"{cores()} cores, {threads()} threads"}
    if has("onnxruntime"):
        import onnxruntime

        report["onnxruntime"] = ", ".join(onnxruntime.get_available_providers())
    if not has("torch"):
        report["torch"] = f"not installed: {command('torch')}"
        return report
    import torch

    report["cpu"] = f"{cores()} cores, {threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
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
    version = _version("torchvision")
    if version is None or not has("torch"):
        return []
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        return [f"torchvision {version} does not work with this torch ({error}): pip uninstall torchvision"]
    return []
