"""Packages that only a part of the program needs, and the extra of the installation that brings them."""

from importlib.util import find_spec

from mpvss.errors import MpvssError

_TORCH = ("torch", "transformers", "safetensors", "huggingface_hub", "scipy")
EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": _TORCH,
    "onnx": ("onnx", "onnxscript", *_TORCH),
    "eval": ("matplotlib",),
    "train": ("accelerate", "tensorboard", *_TORCH),
    "http": ("aiohttp",),
    "s3": ("s3fs",),
    "ray": ("ray",),
}
"""The modules that come with each extra."""


def require(extra: str, what: str, error: type[MpvssError] = MpvssError) -> None:
    """Refuse what needs an extra that is not installed, before anything of it is imported.

    Args:
        extra: A key of ``EXTRAS``.
        what: What needs it, with its verb: "training needs".
        error: What is raised.

    Raises:
        MpvssError: A module of the extra is missing; one line with the command that installs it.
    """
    missing = [name for name in EXTRAS[extra] if not has(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise error(f"{what} {_listed(missing)}, which {are} not installed: {command(extra)}")


def has(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ValueError, ImportError):  # a module without a spec, or one that is blocked
        return False


def command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'mpvss[{extra}]'"


def missing_module(error: ImportError) -> MpvssError | None:
    """Return what to say of OpenCV or a module of an extra that an import did not find; ``None`` of any other."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return None
    if name == "cv2":
        from mpvss import _opencv

        return MpvssError(_opencv.wrong() or str(error))
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return None if extra is None else MpvssError(f"this needs {name}, which is not installed: {command(extra)}")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
