"""Mask classifiers of the transformers library behind one call: Mask2Former, MaskFormer, OneFormer and EoMT.

The query embedding that belongs to a model's class and mask logits is found in another place in each family; the four
functions below say where. Each is proven by recomputing the model's own logits from it.
"""

import logging
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss._hub import download_weights, quiet_library, require_hub
from mpvss._validate import convert, read_json, shown
from mpvss._zoo import nearest_model
from mpvss.errors import ModelError
from mpvss.segmentors import fast_mask2former
from mpvss.segmentors.efficientnet import register
from mpvss.segmentors.protocol import InputRule, Prediction
from mpvss.types import shown_size

log = logging.getLogger(__name__)

# Outside its crop a query has no opinion: a logit whose sigmoid is zero, and small enough to interpolate.
_ABSENT = -1e4
_ONEFORMER_TASK = "the task is semantic"
# Models saved without their image processor: the size of the paper's VSPW.
_NO_PREPROCESSOR = {"size": {"shortest_edge": 480}}


def _mask2former(model: Any, images: Tensor, *_: Any) -> Prediction:
    outputs = model(pixel_values=images)
    norm = model.model.transformer_module.decoder.layernorm
    return Prediction(
        outputs.class_queries_logits,
        outputs.masks_queries_logits,
        norm(outputs.transformer_decoder_last_hidden_state),
    )


def _fast_mask2former(model: Any, images: Tensor, *_: Any) -> Prediction:
    return Prediction(*fast_mask2former.predict(model, images))


def _maskformer(model: Any, images: Tensor, *_: Any) -> Prediction:
    outputs = model(pixel_values=images)
    return Prediction(
        outputs.class_queries_logits, outputs.masks_queries_logits, outputs.transformer_decoder_last_hidden_state
    )


def _oneformer(model: Any, images: Tensor, task: Tensor, *_: Any) -> Prediction:
    outputs = model(pixel_values=images, task_inputs=task.to(images.device).expand(len(images), -1))
    norm = model.model.transformer_module.decoder.decoder_norm
    return Prediction(
        outputs.class_queries_logits,
        outputs.masks_queries_logits,
        norm(outputs.transformer_decoder_object_queries),
    )


def crop_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the overlapping crops of EoMT begin along the longer side, in pixels, on multiples of ``stride``.

    Differs from the library: it rounds down to whole pixels; ours start on the mask grid, less than one cell further.
    """
    gaps = math.ceil(length / crop) - 1
    # Rounded up in whole numbers, so that the last crop reaches the end.
    return [-(-number * (length - crop) // (gaps * stride)) * stride if gaps else 0 for number in range(gaps + 1)]


def _eomt(model: Any, images: Tensor, _: Any, size: tuple[int, int]) -> Prediction:
    """Run square crops along the longer side; each crop has queries of its own, so there are Q times crops of them."""
    side = model.config.image_size
    stride = model.config.patch_size // 2**model.config.num_upscale_blocks
    batch = len(images)
    along = -2 if size[0] > size[1] else -1
    starts = crop_starts(max(size), side, stride)
    crops = [images.narrow(along, start, side) for start in starts]
    outputs = model(pixel_values=torch.cat([crop[..., :side, :side] for crop in crops]))
    queries_per_crop = model.config.num_queries
    states = outputs.last_hidden_state[:, :queries_per_crop]

    def by_crop(tensor: Tensor) -> Tensor:
        """(crops * B, Q, ...) to (crops, B, Q, ...)."""
        return tensor.reshape(len(starts), batch, *tensor.shape[1:])

    def by_image(tensor: Tensor) -> Tensor:
        """(crops * B, Q, ...) to (B, crops * Q, ...)."""
        return by_crop(tensor).transpose(0, 1).flatten(1, 2)

    masks = by_crop(outputs.masks_queries_logits)
    grid = (images.shape[-2] // stride, images.shape[-1] // stride)
    placed = masks.new_full((len(starts), batch, queries_per_crop, *grid), _ABSENT)
    for start, mask, where in zip(starts, masks, placed, strict=True):
        # Its last cell is repeated once on either side: interpolation between two crops must not meet the absence.
        first, last = start // stride - 1, (start + side) // stride
        for cell, source in ((first, 0), (last, -1)):
            if 0 <= cell < grid[along]:
                where.select(along, cell)[..., : side // stride] = mask.select(along, source)
        where.narrow(along, first + 1, side // stride)[..., : side // stride, : side // stride] = mask
    return Prediction(by_image(outputs.class_queries_logits), by_image(placed.flatten(0, 1)), by_image(states))


_Adapter = Callable[[Any, Tensor, Any, tuple[int, int]], Prediction]
# model type: class in the transformers library, and how its outputs are read
_FAMILIES: dict[str, tuple[str, _Adapter]] = {
    "mask2former": ("Mask2FormerForUniversalSegmentation", _mask2former),
    "maskformer": ("MaskFormerForInstanceSegmentation", _maskformer),
    "oneformer": ("OneFormerForUniversalSegmentation", _oneformer),
    "eomt": ("EomtForUniversalSegmentation", _eomt),
}


# What a network raises whose configuration fits its weights in number but not in sense.
_DOES_NOT_RUN = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError)


class HuggingFaceSegmentor:
    """A mask classifier of the transformers library.

    Attributes:
        name: Hub id, directory name, or ``compact``.
        model: The library's model, in evaluation mode.
        class_names: Names in the order of their ids, as the model's configuration gives them.
        rule: Size and normalisation of its input.
        query_width: Width of its query embeddings.
        num_queries: Number of them (of one crop, for EoMT).
    """

    def __init__(
        self,
        model: Any,
        rule: InputRule,
        *,
        name: str = "model",
        dtype: torch.dtype = torch.float32,
        task: Tensor | None = None,
        fast: bool = True,
    ) -> None:
        """Wrap a model that is on its device already.

        Args:
            model: One of the four families.
            rule: Size and normalisation of its input.
            name: What to call it in results.
            dtype: Below float32 the network runs under autocast.
            task: Token ids (1, 77) of OneFormer's task text.
            fast: Whether a Mask2Former runs through ``fast_mask2former``, which gives the same to rounding; ``False``
                runs the library's own forward pass. The other families have no fast path.

        Raises:
            ModelError: The model is of another family, or a class has no name.
        """
        kind = getattr(model.config, "model_type", None)
        if kind not in _FAMILIES:
            raise ModelError(f"{name}: expected a mask classifier ({', '.join(_FAMILIES)}), found model type {kind!r}")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        names = model.config.id2label
        # As in the library: the n-th class logit has id n, and there are as many as there are names.
        beyond = sorted(id_ for id_ in names if not 0 <= id_ < len(names))
        if beyond:
            log.warning(
                "%s: id2label has %d names, so class ids are 0 to %d; the names of %s belong to none of them, and %d "
                "ids are called LABEL_n", name, len(names), len(names) - 1, shown(beyond), len(beyond),
            )  # fmt: skip
        self.class_names = tuple(str(names.get(index, f"LABEL_{index}")) for index in range(len(names)))
        self.rule = rule
        self._dtype = dtype
        self._task = task
        self._adapter = _fast_mask2former if fast and fast_mask2former.supports(model) else _FAMILIES[kind][1]
        self.query_width, self.num_queries = _query_shape(model.config)
        self._device = next(model.parameters()).device

    def __call__(self, images: UInt8[Tensor, "B 3 H W"]) -> Prediction:
        """Segment a batch; results are float32 on the model's device.

        Raises:
            ModelError: The model does not run, or its answer is no number somewhere.
        """
        pixels: Float[Tensor, "B 3 Hp Wp"] = self.rule.normalise(images.to(self._device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        reduced = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=reduced):
            try:
                found = self._adapter(self.model, pixels, self._task, (images.shape[-2], images.shape[-1]))
            except _DOES_NOT_RUN as error:
                raise ModelError(
                    f"{self.name}: the model fails at a picture of {shown_size(images.shape[-2:])} "
                    f"({_first_line(error)}); its configuration does not fit its weights, or memory is short"
                ) from error
        if not (found.class_logits.isfinite().all() and found.mask_logits.isfinite().all()):
            raise ModelError(
                f"{self.name}: the model's answer is not finite; its weights are damaged, or the precision is too low "
                "for it: use float32"
            )
        return Prediction(found.class_logits.float(), found.mask_logits.float(), found.queries.float())


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


_DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # EoMT's is that of its configuration


def _three(value: Any, default: tuple[float, float, float]) -> tuple[float, ...]:
    """A mean or deviation for each channel; one number stands for all three."""
    if value is None:
        return default
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))


def input_rule(settings: dict[str, Any], model_type: str, config: Any = None) -> InputRule:
    """Read size and normalisation from a checkpoint's ``preprocessor_config.json``.

    A fixed height and width becomes the shorter side: a video keeps its aspect. What is absent is at the default
    of the library's image processors.

    Raises:
        ValueError: A setting is out of range.
        TypeError: A setting is of another type.
    """
    max_size, size = settings.get("max_size"), settings.get("size")
    if size is None:
        size = _DEFAULT_SIZE | ({"longest_edge": max_size} if max_size else {})
    short, long = _sides(size, max_size)
    # The library multiplies by the factor, then subtracts the mean; we subtract from 0..255.
    factor = 1 / settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean = _three(settings.get("image_mean"), (0.485, 0.456, 0.406))
    std = _three(settings.get("image_std"), (0.229, 0.224, 0.225))
    if not settings.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"image_mean and image_std must have 3 values, found {mean} and {std}")
    multiple, fixed = 32, False
    if not settings.get("do_resize", True):
        short = long = None
    if model_type == "eomt":
        # One fixed square: position embeddings have no other size. Semantic checkpoints cut it out several times along
        # the longer side, the others pad to it.
        short, fixed = config.image_size, True
        long = None if settings.get("do_split_image", False) else config.image_size
        multiple = multiple if long is None else config.image_size
    return InputRule(
        short_side=short,
        long_side=long,
        multiple=multiple,
        mean=(mean[0] * factor, mean[1] * factor, mean[2] * factor),
        std=(std[0] * factor, std[1] * factor, std[2] * factor),
        fixed=fixed,
    )


@quiet_library()
def load_huggingface(
    model_id: str | Path,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fast: bool = True,
) -> HuggingFaceSegmentor:
    """Load a checkpoint by hub id or from a directory; weights are tensors only, nothing is executed.

    Without ``fast`` a Mask2Former runs the library's own forward pass.

    Raises:
        ModelError: No configuration, another family, weights missing or of other shapes, or no way to fetch them.
    """
    import transformers

    register()
    model_id = str(model_id)
    place = Path(model_id)
    if place.is_dir():
        _demand_file(place, "config.json")
        name = name or place.resolve().name
    elif place.is_absolute() or model_id.count("/") != 1 or place.exists():
        near = nearest_model(model_id)
        raise ModelError(
            f"{model_id}: expected a model directory or a hub id such as owner/name, found no such directory"
            + (f"; did you mean {near}?" if near else "; mpvss models lists some")
        )
    else:
        require_hub(model_id)
        download_weights(model_id)
    try:
        if place.is_dir():
            _check_config(read_json(place / "config.json"))
        config = transformers.AutoConfig.from_pretrained(model_id, trust_remote_code=False)
    except _UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot read the model's configuration: {_first_line(error)}") from error
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"{model_id}: expected a mask classifier ({', '.join(_FAMILIES)}), found model type {config.model_type!r}; "
            "models that classify pixels directly have no queries to propagate"
        )
    try:
        if place.is_dir() and not _has_preprocessor(place):
            settings = _NO_PREPROCESSOR
            log.warning(
                "%s: no preprocessor_config.json; taking a shorter side of 480 and ImageNet's colours", model_id
            )
        else:
            settings, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(model_id)
        rule = input_rule(settings, config.model_type, config)
    except _UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot use preprocessor_config.json: {_first_line(error)}") from error
    task = _task_tokens(model_id, config) if config.model_type == "oneformer" else None
    kind = getattr(transformers, _FAMILIES[config.model_type][0])
    try:
        if place.is_dir():
            _check_extent(kind, config, place)
        model, report = kind.from_pretrained(
            model_id,
            config=config,
            dtype=torch.float32,
            weights_only=True,
            # Asked for so that they are in the report, which is judged below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot load the weights: {_first_line(error)}") from error
    # The loss is not needed here, and some checkpoints come without its constants.
    wrong = sorted(key for key in report["missing_keys"] if not key.startswith("criterion."))
    wrong += sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{model_id}: {len(wrong)} weights are missing or of another shape, among them {wrong[0]}; "
            "the checkpoint does not belong to its configuration"
        )
    if config.model_type != "eomt":
        model = model.to(memory_format=torch.channels_last)
    return HuggingFaceSegmentor(model.to(device), rule, name=name or model_id, dtype=dtype, task=task, fast=fast)


def _has_preprocessor(place: Path) -> bool:
    """Whether a directory says how its pictures are prepared, in the file of its own or in that of the processor."""
    if (place / "preprocessor_config.json").is_file():
        return True
    whole = place / "processor_config.json"
    return whole.is_file() and isinstance(read_json(whole).get("image_processor"), dict)


def _demand_file(place: Path, needed: str) -> None:
    if not (place / needed).is_file():
        raise ModelError(f"{place}: expected config.json and model.safetensors in this directory, found no {needed}")


# What the libraries raise at files that are not what their names say (corrupt, of another type, pickled code, numbers
# that fit nothing) has no common base, and changes with their versions.
_UNREADABLE = Exception


def _check_config(values: Any) -> None:
    """Refuse a configuration of more layers than any model has: building them would take for ever.

    Raises:
        ValueError: It asks for that, or is no object.
    """
    convert(values, dict, what="config.json")
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += ((key, item) for key, item in value.items() if key != "label2id")
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int | float) and _COUNTED.search(name) and not abs(value) <= _MOST_LAYERS:
            raise ValueError(f"{name} must be at most {_MOST_LAYERS}, found {shown(value)}")


_COUNTED = re.compile("layer|depth|block|level|stage|scale|repeat|num_experts")
_MOST_LAYERS = 1000


def _check_extent(kind: Any, config: Any, place: Path) -> None:
    """Refuse a configuration of a model that its files of weights cannot hold, before memory is taken for it.

    Raises:
        ValueError: It has more values than the files have bytes.
    """
    size = sum(file.stat().st_size for file in place.iterdir() if file.suffix in (".safetensors", ".bin"))
    with torch.device("meta"):
        model = kind(config)
    # A little more is left for what is computed instead of stored.
    values = sum(value.numel() for value in (*model.parameters(), *model.buffers()))
    if size and values > size + 2**22:
        raise ValueError(f"config.json describes a model of {values} values, and the weights have {size} bytes")


def _task_tokens(model_id: str, config: Any) -> Tensor:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
        tokens = tokenizer(
            [_ONEFORMER_TASK],
            padding="max_length",
            max_length=config.task_seq_len,
            truncation=True,
            return_tensors="pt",
        )
        understood = tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True).strip()
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(f"{model_id}: OneFormer needs its tokenizer files: {_first_line(error)}") from error
    # Without files the library makes a tokenizer that knows no words, and says nothing.
    if understood != _ONEFORMER_TASK:
        raise ModelError(
            f"{model_id}: OneFormer needs its tokenizer files (vocab.json and merges.txt, or tokenizer.json); "
            f"what is here reads {_ONEFORMER_TASK!r} as {understood!r}"
        )
    ids: Tensor = tokens["input_ids"] * tokens["attention_mask"]
    return ids


def _first_line(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle that holds more than tensors, or none at all; safetensors are expected"
    if isinstance(error, KeyError):
        return f"unknown name {error}"
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def _query_shape(config: Any) -> tuple[int, int]:
    if config.model_type == "maskformer":
        return config.decoder_config.d_model, config.decoder_config.num_queries
    return getattr(config, "hidden_dim", None) or config.hidden_size, config.num_queries


def library_prediction(
    segmentor: HuggingFaceSegmentor, pixels: Float[Tensor, "B 3 Hp Wp"], size: tuple[int, int]
) -> Prediction:
    """Run a segmentor's network as the library has it, with gradients and precision as the caller has set them.

    Args:
        segmentor: Any of the families.
        pixels: Normalised and padded, on the model's device.
        size: Height and width of the picture before padding.
    """
    run = _FAMILIES[segmentor.model.config.model_type][1]
    return run(segmentor.model, pixels, segmentor._task, size)
