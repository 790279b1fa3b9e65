"""The families of the transformers library: how each is built, run and read, and ``find_family`` to find one.

The mask classifiers are here. Each keeps the query embeddings, which its class and mask logits are made from, in
another attribute; ``predict`` reads them there. The tests prove each by recomputing the model's own logits from them.
``pixel_families`` has those that answer with classes of pixels. A family that one of the library's auto classes knows
needs no line here; another one is a class and a line in ``FAMILIES``.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mpvss._validate import shown
from mpvss.errors import ModelError
from mpvss.segmentors import fast_mask2former
from mpvss.segmentors.family import Family, Layers
from mpvss.segmentors.pixel_families import InstanceFamily, PixelFamily, QueryFamily, Sam3, Videomt
from mpvss.segmentors.protocol import InputRule
from mpvss.segmentors.tensors import TensorPrediction
from mpvss.segmentors.untrusted import first_line

# Outside of its crop a query is absent: a logit whose sigmoid is zero, and small enough to interpolate.
_ABSENT = -1e4


class MaskClassifier(Family):
    """Queries with their classes, "no object" last, their masks and the embeddings that both were made from."""

    keeps_ratio = True

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> TensorPrediction:
        """See ``Family.predict``."""
        raise NotImplementedError

    def query_shape(self, config: Any) -> tuple[int, int]:
        """See ``Family.query_shape``."""
        return config.hidden_dim, config.num_queries


class Mask2Former(MaskClassifier):
    """Queries after the decoder's layer norm."""

    model_class = "Mask2FormerForUniversalSegmentation"

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> TensorPrediction:  # noqa: ARG002
        """See ``Family.predict``."""
        outputs = model(pixel_values=pixels)
        norm = model.model.transformer_module.decoder.layernorm
        queries = norm(outputs.transformer_decoder_last_hidden_state)
        return TensorPrediction(outputs.class_queries_logits, outputs.masks_queries_logits, queries)

    def fast_predict(self, model: Any) -> Callable[..., TensorPrediction] | None:
        """See ``fast_mask2former``."""
        if not fast_mask2former.supports(model):
            return None
        return lambda model, pixels, *_: TensorPrediction(*fast_mask2former.predict(model, pixels))

    def layers(self, model: Any, pixels: Tensor) -> tuple[Layers, Tensor]:
        """See ``Family.layers``."""
        outputs = model(pixel_values=pixels, output_auxiliary_logits=True)
        layers = [(aux["class_queries_logits"], aux["masks_queries_logits"]) for aux in outputs.auxiliary_logits]
        norm = model.model.transformer_module.decoder.layernorm
        queries = norm(outputs.transformer_decoder_last_hidden_state)
        return [*layers, (outputs.class_queries_logits, outputs.masks_queries_logits)], queries


class MaskFormer(MaskClassifier):
    """Queries as the decoder gives them, normalised already."""

    model_class = "MaskFormerForInstanceSegmentation"

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> TensorPrediction:  # noqa: ARG002
        """See ``Family.predict``."""
        outputs = model(pixel_values=pixels)
        queries = outputs.transformer_decoder_last_hidden_state
        return TensorPrediction(outputs.class_queries_logits, outputs.masks_queries_logits, queries)

    def layers(self, model: Any, pixels: Tensor) -> tuple[Layers, Tensor]:
        """See ``Family.layers``."""
        outputs = model.model(pixels, output_hidden_states=True)
        # The first state is the decoder's input; those between are not normalised yet, the last one is.
        norm = model.model.transformer_module.decoder.layernorm
        last = outputs.transformer_decoder_last_hidden_state
        states = torch.stack([*(norm(state) for state in outputs.transformer_decoder_hidden_states[1:-1]), last])
        classes = model.class_predictor(states)
        masks = torch.einsum("lbqc,bchw->lbqhw", model.mask_embedder(states), outputs.pixel_decoder_last_hidden_state)
        return list(zip(classes, masks, strict=True)), last

    def query_shape(self, config: Any) -> tuple[int, int]:
        """See ``Family.query_shape``."""
        return config.decoder_config.d_model, config.decoder_config.num_queries


class OneFormer(MaskClassifier):
    """Object queries after the decoder's norm; the network reads which task it is for."""

    model_class = "OneFormerForUniversalSegmentation"
    task = "the task is semantic"

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> TensorPrediction:  # noqa: ARG002
        """See ``Family.predict``."""
        assert task is not None
        outputs = model(pixel_values=pixels, task_inputs=task.to(pixels.device).expand(len(pixels), -1))
        norm = model.model.transformer_module.decoder.decoder_norm
        queries = norm(outputs.transformer_decoder_object_queries)
        return TensorPrediction(outputs.class_queries_logits, outputs.masks_queries_logits, queries)

    def task_tokens(self, model_id: str, config: Any, prompts: tuple[str, ...]) -> Tensor:  # noqa: ARG002
        """See ``Family.task_tokens``.

        Raises:
            ModelError: The checkpoint has no usable tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
            tokens = tokenizer(
                [self.task], padding="max_length", max_length=config.task_seq_len, truncation=True, return_tensors="pt"
            )
            decoded = tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True).strip()
        except Exception as error:  # the tokenizers library raises nothing more special
            raise ModelError(f"{model_id}: OneFormer needs its tokenizer files: {first_line(error)}") from error
        # Without files the library makes a tokenizer that knows no words, and says nothing.
        if decoded != self.task:
            raise ModelError(
                f"{model_id}: OneFormer needs its tokenizer files (vocab.json and merges.txt, or tokenizer.json); "
                f"what is here reads {self.task!r} as {decoded!r}"
            )
        ids: Tensor = tokens["input_ids"] * tokens["attention_mask"]
        return ids


class Eomt(MaskClassifier):
    """Square crops along the longer side, with queries of their own: there are Q times crops of them."""

    channels_last = False

    def __init__(self, model_class: str) -> None:
        """Name the class in the library: the encoders differ, the rest does not."""
        self.model_class = model_class

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> TensorPrediction:  # noqa: ARG002
        """See ``Family.predict``."""
        side = _side(model.config)
        stride = model.config.patch_size // 2**model.config.num_upscale_blocks
        batch, axis = len(pixels), -2 if size[0] > size[1] else -1
        starts = crop_starts(max(size), side, stride)
        crops = [pixels.narrow(axis, start, side) for start in starts]
        outputs = model(pixel_values=torch.cat([crop[..., :side, :side] for crop in crops]))

        def by_crop(tensor: Tensor) -> Tensor:
            """(crops * B, Q, ...) to (crops, B, Q, ...)."""
            return tensor.reshape(len(starts), batch, *tensor.shape[1:])

        def by_image(tensor: Float[Tensor, "crops B Q ..."]) -> Float[Tensor, "B crops*Q ..."]:
            return tensor.transpose(0, 1).flatten(1, 2)

        grid = (pixels.shape[-2] // stride, pixels.shape[-1] // stride)
        masks = place_crops(by_crop(outputs.masks_queries_logits), [start // stride for start in starts], grid, axis)
        queries = by_crop(outputs.last_hidden_state[:, : model.config.num_queries])
        return TensorPrediction(by_image(by_crop(outputs.class_queries_logits)), by_image(masks), by_image(queries))

    def query_shape(self, config: Any) -> tuple[int, int]:
        """See ``Family.query_shape``; of one crop."""
        return config.hidden_size, config.num_queries

    def adapt_rule(self, rule: InputRule, settings: dict[str, Any], config: Any) -> InputRule:
        """One fixed square: position embeddings have no other size.

        Semantic checkpoints cut it out several times along the longer side, the others pad to it.
        """
        side = _side(config)
        if settings.get("do_split_image", False):
            return replace(rule, short_side=side, long_side=None, fixed=True)
        return replace(rule, short_side=side, long_side=side, multiple=side, fixed=True)


def _side(config: Any) -> int:
    """The side of EoMT's square, which a configuration may write as height and width."""
    side = config.image_size
    both = (side, side) if isinstance(side, int) else tuple(side)
    if len(both) != 2 or both[0] != both[1]:
        raise ValueError(f"image_size must be one side of a square, got {shown(side)}")
    return int(both[0])


def crop_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the overlapping crops of EoMT begin along the longer side, in pixels, on multiples of ``stride``.

    Differs from the library: it rounds down to whole pixels; ours start on the mask grid, less than one cell further.
    """
    gaps = math.ceil(length / crop) - 1
    # Rounded up in whole numbers, so that the last crop reaches the end.
    return [-(-number * (length - crop) // (gaps * stride)) * stride if gaps else 0 for number in range(gaps + 1)]


def place_crops(
    masks: Float[Tensor, "crops B Q c c"], starts: list[int], grid: tuple[int, int], axis: int
) -> Float[Tensor, "crops B Q h w"]:
    """Put the masks of square crops, which begin at these cells along an axis, on the grid of the whole image."""
    side = masks.shape[-1]
    placed = masks.new_full((*masks.shape[:3], *grid), _ABSENT)
    for start, mask, target in zip(starts, masks, placed, strict=True):
        # Its last cell is repeated once on either side: interpolation between two crops must not meet the absence.
        for cell, source in ((start - 1, 0), (start + side, -1)):
            if 0 <= cell < grid[axis]:
                target.select(axis, cell)[..., :side] = mask.select(axis, source)
        target.narrow(axis, start, side)[..., :side, :side] = mask
    return placed


_SEMANTIC, _UNIVERSAL, _INSTANCE, _IMAGE = (
    f"MODEL_FOR_{task}_SEGMENTATION_MAPPING" for task in ("SEMANTIC", "UNIVERSAL", "INSTANCE", "IMAGE")
)

FAMILIES: dict[str, Family] = {
    "mask2former": Mask2Former(),
    "maskformer": MaskFormer(),
    "oneformer": OneFormer(),
    "eomt": Eomt("EomtForUniversalSegmentation"),
    "eomt_dinov3": Eomt("EomtDinov3ForUniversalSegmentation"),
    "videomt": Videomt(_UNIVERSAL, flexible=False),
    "sam3": Sam3(),
    "sam3_video": Sam3(),
    # Convolutional, though their configurations state a size.
    "mobilevit": PixelFamily(_SEMANTIC, flexible=True),
    "mobilevitv2": PixelFamily(_SEMANTIC, flexible=True),
    "mobilenet_v2": PixelFamily(_SEMANTIC, flexible=True),
    # Its windows divide the one size that its preprocessor states.
    "rf_detr": InstanceFamily(_INSTANCE, flexible=False),
}
"""The families of which more is known than their auto class, by the model type that a configuration names."""

_AUTOMATIC = (PixelFamily(_SEMANTIC), QueryFamily(_UNIVERSAL), InstanceFamily(_INSTANCE), QueryFamily(_IMAGE))


def find_family(config: Any) -> Family | None:
    """Return the family of a configuration: its own, or that of the auto class that knows it; ``None`` for neither."""
    named = FAMILIES.get(getattr(config, "model_type", None) or "")
    return named or next((family for family in _AUTOMATIC if type(config) in family.table()), None)


def require_family(name: str, config: Any) -> Family:
    """Return the family of a configuration; see ``find_family``.

    Raises:
        ModelError: There is none.
    """
    family = find_family(config)
    if family is None:
        raise ModelError(
            f"{name}: models of type {getattr(config, 'model_type', None)!r} cannot segment images here; supported are "
            f"{', '.join(supported())}; any other function is used through mpvss.wrap"
        )
    return family


def mask_classifiers() -> list[str]:
    """Return the model types that answer with queries."""
    return [kind for kind, family in FAMILIES.items() if isinstance(family, MaskClassifier)]


def supported() -> list[str]:
    """Return the model types that can be loaded, sorted."""
    return sorted(set(FAMILIES).union(*(family.model_types() for family in _AUTOMATIC)))
