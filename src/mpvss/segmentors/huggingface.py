"""Mask classifiers of the transformers library behind one call: Mask2Former, MaskFormer, OneFormer and EoMT.

The query embedding that belongs to a model's class and mask logits is found in another place in each family; the four
functions below say where. Each is proven by recomputing the model's own logits from it.
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mpvss.errors import ModelError
from mpvss.segmentors.efficientnet import register
from mpvss.segmentors.protocol import InputRule, Prediction

log = logging.getLogger(__name__)

# Outside its crop a query has no opinion: a logit whose sigmoid is zero, and small enough to interpolate.
_ABSENT = -1e4
_ONEFORMER_TASK = "the task is semantic"


def _mask2former(model: Any, images: Tensor, _: Any) -> Prediction:
    outputs = model(pixel_values=images)
    norm = model.model.transformer_module.decoder.layernorm
    return Prediction(
        outputs.class_queries_logits,
        outputs.masks_queries_logits,
        norm(outputs.transformer_decoder_last_hidden_state),
    )


def _maskformer(model: Any, images: Tensor, _: Any) -> Prediction:
    outputs = model(pixel_values=images)
    return Prediction(
        outputs.class_queries_logits, outputs.masks_queries_logits, outputs.transformer_decoder_last_hidden_state
    )


def _oneformer(model: Any, images: Tensor, task: Tensor) -> Prediction:
    outputs = model(pixel_values=images, task_inputs=task.to(images.device).expand(len(images), -1))
    norm = model.model.transformer_module.decoder.decoder_norm
    return Prediction(
        outputs.class_queries_logits,
        outputs.masks_queries_logits,
        norm(outputs.transformer_decoder_object_queries),
    )


def crop_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the overlapping crops of EoMT begin along the longer side, in pixels, on multiples of ``stride``.

    Differs from the library: it rounds down to whole pixels; ours start on the mask grid, at most two pixels away.
    """
    count = math.ceil(length / crop)
    if count == 1:
        return [0]
    step = (length - crop) / (count - 1)
    return [round(number * step / stride) * stride for number in range(count)]


def _eomt(model: Any, images: Tensor, _: Any) -> Prediction:
    """Run square crops along the longer side; each crop has queries of its own, so there are Q times crops of them."""
    side = model.config.image_size
    stride = model.config.patch_size // 2**model.config.num_upscale_blocks
    batch, _, height, width = images.shape
    tall = height > width
    starts = crop_starts(max(height, width), side, stride)
    crops = [images[:, :, s : s + side] if tall else images[:, :, :, s : s + side] for s in starts]
    outputs = model(pixel_values=torch.cat(crops))
    queries_per_crop = model.config.num_queries
    states = outputs.last_hidden_state[:, :queries_per_crop]

    def by_image(tensor: Tensor) -> Tensor:
        """(crops * B, Q, ...) to (B, crops * Q, ...)."""
        return tensor.unflatten(0, (len(starts), batch)).transpose(0, 1).flatten(1, 2)

    masks = outputs.masks_queries_logits
    grid = (height // stride, width // stride)
    placed = masks.new_full((len(starts), batch, queries_per_crop, *grid), _ABSENT)
    for number, (start, mask) in enumerate(zip(starts, masks.unflatten(0, (len(starts), batch)), strict=True)):
        at = slice(start // stride, (start + side) // stride)
        if tall:
            placed[number, :, :, at] = mask
        else:
            placed[number, :, :, :, at] = mask
    return Prediction(by_image(outputs.class_queries_logits), by_image(placed.flatten(0, 1)), by_image(states))


_Adapter = Callable[[Any, Tensor, Any], Prediction]
# model type: class in the transformers library, and how its outputs are read
_FAMILIES: dict[str, tuple[str, _Adapter]] = {
    "mask2former": ("Mask2FormerForUniversalSegmentation", _mask2former),
    "maskformer": ("MaskFormerForInstanceSegmentation", _maskformer),
    "oneformer": ("OneFormerForUniversalSegmentation", _oneformer),
    "eomt": ("EomtForUniversalSegmentation", _eomt),
}


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
    ) -> None:
        """Wrap a model that is on its device already.

        Args:
            model: One of the four families.
            rule: Size and normalisation of its input.
            name: What to call it in results.
            dtype: Below float32 the network runs under autocast.
            task: Token ids (1, 77) of OneFormer's task text.

        Raises:
            ModelError: The model is of another family.
        """
        kind = getattr(model.config, "model_type", None)
        if kind not in _FAMILIES:
            raise ModelError(f"{name}: expected a mask classifier ({', '.join(_FAMILIES)}), found model type {kind!r}")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.class_names = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
        self.rule = rule
        self._dtype = dtype
        self._task = task
        self._adapter = _FAMILIES[kind][1]
        self.query_width, self.num_queries = _query_shape(model.config)
        self._device = next(model.parameters()).device

    def __call__(self, images: UInt8[Tensor, "B 3 H W"]) -> Prediction:
        """Segment a batch; results are float32 on the model's device."""
        pixels: Float[Tensor, "B 3 Hp Wp"] = self.rule.normalise(images.to(self._device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        reduced = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=reduced):
            found = self._adapter(self.model, pixels, self._task)
        return Prediction(found.class_logits.float(), found.mask_logits.float(), found.queries.float())


def input_rule(settings: dict[str, Any], model_type: str, config: Any = None) -> InputRule:
    """Read size and normalisation from a checkpoint's ``preprocessor_config.json``.

    A fixed height and width becomes the shorter side: a video keeps its aspect.
    """
    size = settings.get("size", 512)
    if isinstance(size, dict):
        short = size.get("shortest_edge") or min(size.get("height", 512), size.get("width", 512))
        long = size.get("longest_edge")
    else:
        short, long = size, settings.get("max_size")
    factor = 255.0 if settings.get("do_rescale", True) else 1.0
    mean = settings.get("image_mean", (0.485, 0.456, 0.406))
    std = settings.get("image_std", (0.229, 0.224, 0.225))
    multiple = 32
    if model_type == "eomt":
        # One fixed square: position embeddings have no other size. Semantic checkpoints cut it out several times.
        short, multiple = config.image_size, config.patch_size
        long = None if settings.get("do_split_image", True) else config.image_size
    return InputRule(
        short_side=short if settings.get("do_resize", True) else None,
        long_side=long,
        multiple=multiple,
        mean=tuple(value * factor for value in mean),
        std=tuple(value * factor for value in std),
    )


def load_huggingface(
    model_id: str | Path,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HuggingFaceSegmentor:
    """Load a checkpoint by hub id or from a directory; weights are tensors only, nothing is executed.

    Raises:
        ModelError: No configuration, another family, weights missing or of other shapes, or no way to fetch them.
    """
    import transformers

    register()
    model_id = str(model_id)
    place = Path(model_id)
    if place.is_dir() and not (place / "config.json").is_file():
        raise ModelError(
            f"{model_id}: expected config.json and model.safetensors in this directory, found no config.json"
        )
    if not place.is_dir() and (place.is_absolute() or model_id.count("/") > 1 or place.exists()):
        raise ModelError(
            f"{model_id}: expected a model directory or a hub id such as owner/name, found no such directory"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(model_id)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_id}: cannot read the model's configuration: {_first_line(error)}") from error
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"{model_id}: expected a mask classifier ({', '.join(_FAMILIES)}), found model type {config.model_type!r}; "
            "models that classify pixels directly have no queries to propagate"
        )
    kind = getattr(transformers, _FAMILIES[config.model_type][0])
    try:
        model, report = kind.from_pretrained(model_id, config=config, dtype=torch.float32, output_loading_info=True)
        settings, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(model_id)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{model_id}: cannot load the model: {_first_line(error)}") from error
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{model_id}: {len(wrong)} weights are missing or of another shape, among them {wrong[0]}; "
            "the checkpoint does not belong to its configuration"
        )
    task = None
    if config.model_type == "oneformer":
        task = _task_tokens(model_id, config)
    if config.model_type != "eomt":
        model = model.to(memory_format=torch.channels_last)
    return HuggingFaceSegmentor(
        model.to(device),
        input_rule(settings, config.model_type, config),
        name=name or place.name if place.is_dir() else name or model_id,
        dtype=dtype,
        task=task,
    )


def _task_tokens(model_id: str, config: Any) -> Tensor:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_id}: OneFormer needs its tokenizer files: {_first_line(error)}") from error
    tokens = tokenizer(
        [_ONEFORMER_TASK], padding="max_length", max_length=config.task_seq_len, truncation=True, return_tensors="pt"
    )
    return tokens["input_ids"] * tokens["attention_mask"]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _query_shape(config: Any) -> tuple[int, int]:
    if config.model_type == "maskformer":
        return config.decoder_config.d_model, config.decoder_config.num_queries
    return getattr(config, "hidden_dim", None) or config.hidden_size, config.num_queries
