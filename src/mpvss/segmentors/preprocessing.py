"""How a checkpoint wants its images prepared: its preprocessor's settings as an ``InputRule``."""

import logging
import math
import re
from pathlib import Path
from typing import Any

from mpvss._validate import read_json, shown
from mpvss.errors import ModelError
from mpvss.segmentors.families import FAMILIES, require_family
from mpvss.segmentors.family import Family
from mpvss.segmentors.protocol import InputRule
from mpvss.segmentors.untrusted import UNREADABLE, first_line

log = logging.getLogger(__name__)

_DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # EoMT's is that of its configuration
# Models saved without their image processor: the size of the paper's VSPW.
_NO_PREPROCESSOR = {"size": {"shortest_edge": 480}}
# What is read of the library's classes of image processors.
_SETTINGS = (
    "size", "default_to_square", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
    "do_flip_channel_order", "crop_pct", "keep_aspect_ratio", "ensure_multiple_of", "do_pad", "size_divisor",
)  # fmt: skip
# Of classes that cannot be imported without torchvision.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_STATED: dict[str, dict[str, Any]] = {
    "sam3": {"size": {"height": 1008, "width": 1008}, **_HALF},
    "sam3_video": {"size": {"height": 1008, "width": 1008}, **_HALF},
    "sapiens2": {"size": {"height": 1024, "width": 768}},
    "videomt": {"size": {"height": 640, "width": 640}},
    "tipsv2_dpt": {"size": {"height": 448, "width": 448}, "do_normalize": False},
    "rf_detr": {"size": _DEFAULT_SIZE},
}


def read_input_rule(model_id: str, folder: Path | None, config: Any) -> InputRule:
    """Read the rule of a checkpoint.

    Args:
        model_id: Its hub id or directory.
        folder: The directory, where it is one.
        config: The checkpoint's configuration.

    Raises:
        ModelError: The settings cannot be read or used.
    """
    try:
        if folder is not None and not has_preprocessor(folder):
            family = require_family(model_id, config)
            plain = family.keeps_ratio
            settings = (
                _NO_PREPROCESSOR if plain else {} if family.flexible else _own_size(family.network_config(config))
            )
            what = "a shorter side of 480 and ImageNet's colours" if plain else "the defaults of the library"
            log.warning("%s: no preprocessor_config.json; taking %s", model_id, what)
        else:
            settings = _read_settings(model_id)
        return input_rule(settings, config.model_type, config)
    except UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot use preprocessor_config.json: {first_line(error)}") from error


def _own_size(config: Any) -> dict[str, Any]:
    """The size that a configuration states, as a preprocessor would write it."""
    side = getattr(config, "image_size", None) or getattr(getattr(config, "backbone_config", None), "image_size", None)
    return {} if side is None else {"size": list(side) if isinstance(side, list | tuple) else [side, side]}


def _read_settings(model_id: str) -> dict[str, Any]:
    """The settings of the image processor, or those of the video processor where there is no other."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(model_id)
    except OSError:
        from transformers.video_processing_utils import BaseVideoProcessor

        try:
            settings, _ = BaseVideoProcessor.get_video_processor_dict(model_id)
        except OSError:
            settings = {}
        if not settings:
            raise
    return dict(settings)


def has_preprocessor(folder: Path) -> bool:
    """Whether a directory says how its images are prepared, in a file of its own or in that of the processor."""
    if any((folder / name).is_file() for name in ("preprocessor_config.json", "video_preprocessor_config.json")):
        return True
    whole = folder / "processor_config.json"
    parts = read_json(whole) if whole.is_file() else {}
    return any(isinstance(parts.get(part), dict) for part in ("image_processor", "video_processor"))


def input_rule(settings: dict[str, Any], model_type: str, config: Any = None) -> InputRule:
    """Read size and normalisation from the settings of an image processor.

    What is absent is at the default of the library's image processors. For mask classifiers a fixed height and width
    becomes the shorter side: a video keeps its ratio. For the others it is what the library resizes to. A centre crop
    is left out: what lies outside of it is segmented as well, at the same scale.

    Raises:
        ValueError: A setting is out of range.
        TypeError: A setting is of another type.
    """
    family = FAMILIES[model_type] if config is None else require_family(model_type, config)
    stated = {key: value for key, value in settings.items() if value is not None or key.startswith("do_")}
    settings = _library_defaults(family, settings, model_type) | stated
    # The library multiplies by the factor, then subtracts the mean; we subtract from 0..255.
    factor = 1 / settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean = _three(settings.get("image_mean"), (0.485, 0.456, 0.406))
    std = _three(settings.get("image_std"), (0.229, 0.224, 0.225))
    if not settings.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"image_mean and image_std must have 3 values, got {mean} and {std}")
    rule = InputRule(
        mean=(mean[0] * factor, mean[1] * factor, mean[2] * factor),
        std=(std[0] * factor, std[1] * factor, std[2] * factor),
        **(_kept_ratio(settings) if family.keeps_ratio else _as_the_library(settings)),
    )
    return family.adapt_rule(rule, settings, config)


def _library_defaults(family: Family, settings: dict[str, Any], model_type: str) -> dict[str, Any]:
    """What the library's image processor does where its settings are silent."""
    if family.keeps_ratio or model_type in _STATED:
        return _STATED.get(model_type, {})
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES,
        get_image_processor_class_from_name,
    )

    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if name is None:
        name = next(iter((IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {"": ""}).values()))
    stem = re.sub("(FeatureExtractor|ImageProcessor)(Fast|Pil)?$", "", str(name))
    kind = get_image_processor_class_from_name(f"{stem}ImageProcessorPil")
    values = {key: getattr(kind, key, None) for key in _SETTINGS}
    return {key: value for key, value in values.items() if value is not None or key.startswith("do_")} if kind else {}


def _as_the_library(settings: dict[str, Any]) -> dict[str, Any]:
    """The library's own size, whatever becomes of the ratio, without padding."""
    rule: dict[str, Any] = {"multiple": 1, "bgr": bool(settings.get("do_flip_channel_order", False))}
    size, square = settings.get("size"), settings.get("default_to_square", True)
    if not settings.get("do_resize", True):
        return rule
    if size is None:
        raise ValueError('size is missing: give it in preprocessor_config.json, such as {"height": 512, "width": 512}')
    if isinstance(size, int) and square:
        size = {"height": size, "width": size}
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        if not all(isinstance(size[side], int) for side in ("height", "width")):
            raise TypeError(f"size must be whole numbers of pixels, got {shown(size)}")
        step = settings.get("ensure_multiple_of") or 1
        if settings.get("do_pad") and settings.get("size_divisor"):
            step = settings["size_divisor"]
        height, width = (round(size[side] / step) * step for side in ("height", "width"))
        return rule | {"exact": (height, width), "round_to": step if settings.get("keep_aspect_ratio") else 0}
    if short is not None and settings.get("crop_pct"):
        # As ConvNeXT's: larger ones are squeezed into a square, smaller ones cut out of a larger one.
        return rule | ({"exact": (short, short)} if short >= 384 else {"short_side": int(short / settings["crop_pct"])})
    short, long = _sides(size, settings.get("max_size"))
    return rule | {"short_side": short, "long_side": long}


def _kept_ratio(settings: dict[str, Any]) -> dict[str, Any]:
    """The shorter side, and the bound of the longer one."""
    max_size, size = settings.get("max_size"), settings.get("size")
    if size is None:
        size = _DEFAULT_SIZE | ({"longest_edge": max_size} if max_size else {})
    short, long = _sides(size, max_size) if settings.get("do_resize", True) else (None, None)
    return {"short_side": short, "long_side": long}


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
