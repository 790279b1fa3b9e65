"""How a checkpoint wants its images prepared: its preprocessor's settings as an ``InputRule``."""

import logging
import math
from pathlib import Path
from typing import Any

from mpvss._validate import read_json, shown
from mpvss.errors import ModelError
from mpvss.segmentors.families import FAMILIES
from mpvss.segmentors.protocol import InputRule
from mpvss.segmentors.untrusted import UNREADABLE, first_line

log = logging.getLogger(__name__)

_DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # EoMT's is that of its configuration
# Models saved without their image processor: the size of the paper's VSPW.
_NO_PREPROCESSOR = {"size": {"shortest_edge": 480}}


def read_input_rule(model_id: str, folder: Path | None, config: Any) -> InputRule:
    """Read the rule of a checkpoint.

    Args:
        model_id: Its hub id or directory.
        folder: The directory, where it is one.
        config: The checkpoint's configuration.

    Raises:
        ModelError: The settings cannot be read or used.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        if folder is not None and not has_preprocessor(folder):
            settings = _NO_PREPROCESSOR
            log.warning(
                "%s: no preprocessor_config.json; taking a shorter side of 480 and ImageNet's colours", model_id
            )
        else:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(model_id)
        return input_rule(settings, config.model_type, config)
    except UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot use preprocessor_config.json: {first_line(error)}") from error


def has_preprocessor(folder: Path) -> bool:
    """Whether a directory says how its images are prepared, in a file of its own or in that of the processor."""
    if (folder / "preprocessor_config.json").is_file():
        return True
    whole = folder / "processor_config.json"
    return whole.is_file() and isinstance(read_json(whole).get("image_processor"), dict)


def input_rule(settings: dict[str, Any], model_type: str, config: Any = None) -> InputRule:
    """Read size and normalisation from the settings of an image processor.

    A fixed height and width becomes the shorter side: a video keeps its aspect. What is absent is at the default
    of the library's image processors.

    Raises:
        ValueError: A setting is out of range.
        TypeError: A setting is of another type.
    """
    max_size, size = settings.get("max_size"), settings.get("size")
    if size is None:
        size = _DEFAULT_SIZE | ({"longest_edge": max_size} if max_size else {})
    short, long = _sides(size, max_size) if settings.get("do_resize", True) else (None, None)
    # The library multiplies by the factor, then subtracts the mean; we subtract from 0..255.
    factor = 1 / settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean = _three(settings.get("image_mean"), (0.485, 0.456, 0.406))
    std = _three(settings.get("image_std"), (0.229, 0.224, 0.225))
    if not settings.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"image_mean and image_std must have 3 values, got {mean} and {std}")
    rule = InputRule(
        short_side=short,
        long_side=long,
        mean=(mean[0] * factor, mean[1] * factor, mean[2] * factor),
        std=(std[0] * factor, std[1] * factor, std[2] * factor),
    )
    return FAMILIES[model_type].adapt_rule(rule, settings, config)


def _sides(size: Any, max_size: int | None) -> tuple[int | None, int | None]:
    """The shorter side and the bound of the longer one, from each form in which the library writes a size."""
    if isinstance(size, list | tuple):
        if len(size) != 2:
            raise ValueError(f"size must be one number, or height and width, got {shown(size)}")
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict):
        return size, max_size
    if "max_height" in size or "max_width" in size:
        return None, min(size.get("max_height", math.inf), size.get("max_width", math.inf))
    if "shortest_edge" not in size and "longest_edge" in size:
        return None, size["longest_edge"]
    short = size.get("shortest_edge") or min(size.get("height", 512), size.get("width", 512))
    return short, size.get("longest_edge") or (max_size if "shortest_edge" in size else None)


def _three(value: Any, default: tuple[float, float, float]) -> tuple[float, ...]:
    """A mean or deviation for each channel; one number stands for all three."""
    if value is None:
        return default
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))
