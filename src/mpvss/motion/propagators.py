"""Propagators by their names."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mpvss.errors import ModelError, OptionError
from mpvss.motion.codec import Codec
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.network.directory import read_config
from mpvss.motion.propagator import Propagator
from mpvss.options import PropagatorName
from mpvss.segmentors import EMBEDDED, is_export

if TYPE_CHECKING:
    from mpvss.motion.network.query_flow import PixelFlow, QueryFlow

# What auto means, but for motion modules given as the model: the most accurate for its time (docs/LOG.md).
BEST_PROPAGATOR = "dis"
LEARNED = ("query", "flow")
PROPAGATORS = tuple(name for name in get_args(PropagatorName) if name != "auto")
_PLAIN = (bool, int, float, str, type(None), list, tuple)


def make_propagator(name: str, motion: "QueryFlow | PixelFlow | None" = None) -> Propagator | None:
    """Return a propagator by its name, or ``None`` for ``none``: the segmentor on every frame.

    Args:
        name: One of ``PROPAGATORS``, or ``auto`` for the best that needs no training.
        motion: The motion module that ``query`` and ``flow`` need, on its device.

    Raises:
        ModelError: The motion module is missing or of the other kind.
        OptionError: There is no such propagator.
    """
    name = BEST_PROPAGATOR if name == "auto" else name
    if name not in PROPAGATORS:
        raise OptionError("propagator", f"must be one of auto, {', '.join(PROPAGATORS)}, got {name!r}")
    if name in LEARNED:
        if motion is None:
            raise ModelError(
                f"propagator {name} needs a motion module, and this model has none; pass a checkpoint directory that "
                "holds one, or use propagator dis, which needs no training"
            )
        from mpvss.motion.learned import LearnedFlow

        learned = LearnedFlow(motion)
        if learned.name != name:
            raise ModelError(f"propagator {name} was asked for, the checkpoint has a motion module for {learned.name}")
        return learned
    makers: dict[str, Callable[[], Propagator | None]] = {
        "dis": Dis,
        "codec": Codec,
        "hold": Hold,
        "none": lambda: None,
    }
    return makers[name]()


def meant_propagator(model: str | Path, propagator: str) -> str:
    """Return what ``auto`` stands for: the model's own motion module, or else the best that needs no training.

    Raises:
        ModelError: The model's description cannot be read.
    """
    if propagator != "auto":
        return propagator
    own = None
    if is_export(model):
        from mpvss.segmentors.onnx import ExportInfo

        own = ExportInfo.read(model).motion
    elif model not in EMBEDDED and (Path(model) / "config.json").is_file():
        own = {"query_flow": "query", "pixel_flow": "flow"}.get(read_config(model)["model_type"])
    return own or BEST_PROPAGATOR


def find_motion(model: str | Path, propagator: str) -> tuple[str | Path, str, "QueryFlow | PixelFlow | None"]:
    """Return what to load the segmentor from, the propagator that is meant, and its motion module if it has one.

    The embedded model has its motion modules beside it.
    """
    name = meant_propagator(model, propagator)
    if model in EMBEDDED:
        beside = Path(str(files("mpvss") / "assets" / f"{model}-{name}"))
        if name not in LEARNED or not beside.is_dir():
            return model, name, None
    from mpvss.convert.checkpoint import MOTION_TYPES, load_motion, segmentor_of

    if model in EMBEDDED:
        return model, name, load_motion(beside).float()
    on_disk = (Path(model) / "config.json").is_file()
    if not (on_disk or name in LEARNED) or read_config(model)["model_type"] not in MOTION_TYPES:
        return model, name, None
    segmentor = segmentor_of(model)
    if segmentor is None:
        raise ModelError(f"{model}: this motion module does not say which segmentor it belongs to")
    return segmentor, name, load_motion(model) if name in LEARNED else None


def describe_propagator(propagator: Propagator | None) -> dict[str, Any]:
    """The settings of a propagator as plain values: those of its dataclass, or its motion module's configuration."""
    settings = getattr(getattr(propagator, "module", None), "config", propagator)
    if not is_dataclass(settings):
        return {}
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    return {name: value for name, value in values.items() if isinstance(value, _PLAIN)}
