"""Families of the transformers library that answer with classes of pixels: per-pixel networks, instances, prompts.

Each gives the library's own semantic result where the library defines one. Its queries, where it has any, are not
propagated one by one: their masks become class scores on the grid of the masks.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mpvss.errors import ModelError
from mpvss.segmentors.family import Family
from mpvss.segmentors.protocol import InputRule
from mpvss.segmentors.tensors import PixelScores
from mpvss.segmentors.untrusted import first_line

# Scores no further apart than this count as a tie.
_TIE = 1e-6


class AutoFamily(Family):
    """A family that one of the library's auto classes knows by its configuration."""

    def __init__(self, mapping: str, *, flexible: bool | None = None) -> None:
        """Name the table of the auto class, such as ``MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING``."""
        self.mapping, self.flexible = mapping, flexible

    def table(self) -> Any:
        """Return the library's table of configurations and models."""
        from transformers.models.auto import modeling_auto

        return getattr(modeling_auto, self.mapping, {})

    def model_types(self) -> list[str]:
        """Return the model types that the library itself has in the table."""
        from transformers.models.auto import modeling_auto

        return list(getattr(modeling_auto, f"{self.mapping}_NAMES", ()))

    def network(self, config: Any) -> Any:
        """See ``Family.network``."""
        return self.table()[type(config)]

    def adapt_rule(self, rule: InputRule, settings: dict[str, Any], config: Any) -> InputRule:  # noqa: ARG002
        """A network with position embeddings of one size, which its configuration states, takes no other."""
        flexible = getattr(config, "image_size", None) is None if self.flexible is None else self.flexible
        return replace(rule, fixed=not flexible)


class PixelFamily(AutoFamily):
    """A class logit for each pixel: the library resizes them to the frame, and the largest wins."""

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> PixelScores:  # noqa: ARG002
        """See ``Family.predict``."""
        logits: Tensor = model(pixel_values=pixels).logits
        if logits.ndim != 4 or logits.shape[1] != model.config.num_labels:
            raise ValueError(
                f"expected logits of {model.config.num_labels} classes on a grid, got the shape {tuple(logits.shape)}"
            )
        return PixelScores(logits, "logits")


class QueryFamily(AutoFamily):
    """Queries with classes and masks, as class scores on the grid of the masks.

    Where one of the classes is "no object" the score is the library's semantic one: the sum over the queries of
    ``p(class) sigmoid(mask)``. Where the classes are sigmoids, it is the largest such product; as in the library, as
    many pairs of a query and a class are looked at as there are queries, those with the highest scores.

    Attributes:
        least: A pixel whose best class has a lower score belongs to no class.
    """

    least = 0.0

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> PixelScores:  # noqa: ARG002
        """See ``Family.predict``."""
        return query_scores(*_logits(model(pixel_values=pixels)), model.config.num_labels, self.least)


class InstanceFamily(QueryFamily):
    """Instances: a pixel that none of them covers belongs to no class."""

    # A score of .5 times a mask of .5: from there on the library keeps an instance, and a pixel of it.
    least = 0.25


class Videomt(QueryFamily):
    """An image model whose queries start, on every frame but the first, from those of the frame before."""

    channels_last = False

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> PixelScores:  # noqa: ARG002
        """See ``Family.predict``: each image is a video of its own."""
        return query_scores(*_logits(model(pixel_values_videos=pixels[:, None])), model.config.num_labels)

    def predict_next(self, model: Any, pixels: Tensor, carried: Tensor | None) -> tuple[PixelScores, Tensor]:
        """See ``Family.predict_next``; the same as the library's one pass over all the images."""
        first = len(model.layers) - model.config.num_blocks
        hidden = model.embeddings(pixels)
        for layer in model.layers[:first]:
            hidden = layer(hidden)
        answers = []
        for state in hidden.split(1):
            queries = model.query.weight[None]
            if carried is not None:
                queries = model.query_updater(carried) + queries
            tokens = torch.cat([queries.to(state.dtype), state], 1)
            for layer in model.layers[first:]:
                tokens = layer(tokens)
            answers.append(model.predict(model.layernorm(tokens)))
            carried = tokens[:, : model.config.num_queries]
        assert carried is not None
        masks, classes = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return query_scores(classes, masks, model.config.num_labels), carried


class Sam3(Family):
    """Text prompts are the classes: for each the largest product of a query's score and its mask."""

    model_class = "Sam3Model"
    channels_last = False
    promptable = True
    # The library keeps an instance from .3 on, and a pixel of it from .5.
    least = 0.15

    def network_config(self, config: Any) -> Any:
        """See ``Family.network_config``: the published checkpoint is that of a tracker, which holds this one."""
        return getattr(config, "detector_config", None) or config

    def predict(self, model: Any, pixels: Tensor, task: Tensor | None, size: tuple[int, int]) -> PixelScores:  # noqa: ARG002
        """See ``Family.predict``. The image is encoded once for all prompts."""
        assert task is not None
        images = model.get_vision_features(pixel_values=pixels)
        planes = []
        for prompt in task.to(pixels.device).unbind(1):
            ids, mask = prompt[:, None].expand(-1, len(pixels), -1)
            outputs = model(vision_embeds=images, input_ids=ids, attention_mask=mask)
            score = outputs.pred_logits.float().sigmoid()
            if outputs.presence_logits is not None:
                score = score * outputs.presence_logits.float().sigmoid()
            planes.append((score[..., None, None] * outputs.pred_masks.float().sigmoid()).amax(1))
        return _won(torch.stack(planes, 1), self.least)

    def adapt_rule(self, rule: InputRule, settings: dict[str, Any], config: Any) -> InputRule:  # noqa: ARG002
        """See ``Family.adapt_rule``: its windows have one size."""
        return replace(rule, fixed=True)

    def task_tokens(self, model_id: str, config: Any, prompts: tuple[str, ...]) -> Int64[Tensor, "2 P n"]:
        """See ``Family.task_tokens``: of each prompt the ids and which of them count.

        Raises:
            ModelError: There is no prompt, or one is repeated or empty; or the checkpoint has no usable tokenizer.
        """
        from transformers import AutoTokenizer

        if not prompts:
            raise ModelError(f'{model_id}: its classes are texts: say which, such as --prompt "road" --prompt "car"')
        length = self.network_config(config).text_config.max_position_embeddings
        try:
            tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
            tokens = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            words = [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
        except Exception as error:  # the tokenizers library raises nothing more special
            raise ModelError(f"{model_id}: it needs its tokenizer files: {first_line(error)}") from error
        # Without files the library makes a tokenizer that knows no words, and says nothing.
        unread = next((prompt for prompt, word in zip(prompts, words, strict=True) if not word), None)
        if unread is not None:
            raise ModelError(
                f"{model_id}: its tokenizer knows no word of the prompt {unread!r}; are vocab.json and merges.txt, or "
                "tokenizer.json, of this checkpoint?"
            )
        return torch.stack([ids, mask])

    def class_names(self, config: Any, prompts: tuple[str, ...]) -> dict[int, str]:  # noqa: ARG002
        """See ``Family.class_names``."""
        return dict(enumerate(prompts))


def _logits(outputs: Any) -> tuple[Tensor, Tensor]:
    """The class and mask logits of queries, as the families of the library name them."""
    for classes, masks in (("class_queries_logits", "masks_queries_logits"), ("logits", "pred_masks")):
        if outputs.get(classes) is not None and outputs.get(masks) is not None:
            return outputs[classes], outputs[masks]
    raise ValueError(f"expected class and mask logits of queries, got {', '.join(outputs)}")


def query_scores(
    class_logits: Float[Tensor, "B Q K"], mask_logits: Float[Tensor, "B Q h w"], num_classes: int, least: float = 0.0
) -> PixelScores:
    """Return class scores from queries, of the classes that win somewhere.

    Args:
        class_logits: Of all classes, and of "no object" at the end where there is one more than ``num_classes``.
        mask_logits: One mask a query.
        num_classes: How many classes have names.
        least: Where no class has a higher score there is none.

    Raises:
        ValueError: There is another number of classes.
    """
    class_logits, masks = class_logits.float(), mask_logits.float().sigmoid()
    if class_logits.shape[-1] == num_classes + 1:
        with torch.autocast(masks.device.type, enabled=False):
            scores = torch.einsum("bqc,bqhw->bchw", class_logits.softmax(-1)[..., :-1], masks)
    elif class_logits.shape[-1] == num_classes:
        scores = torch.stack([_largest(*each) for each in zip(class_logits.sigmoid(), masks, strict=True)])
    else:
        raise ValueError(
            f"expected logits of {num_classes} classes, with or without no object, got {class_logits.shape[-1]}"
        )
    return _won(scores, least)


def _won(scores: Float[Tensor, "B K h w"], least: float) -> PixelScores:
    """The classes that win somewhere; and, where a score must be larger than ``least``, a map of no class."""
    if least:
        scores = torch.cat([scores, scores.new_full((len(scores), 1, *scores.shape[2:]), least)], 1)
    ids = winners(scores)
    return PixelScores(scores[:, ids], "scores", ids)


def _largest(probability: Float[Tensor, "Q K"], masks: Float[Tensor, "Q h w"]) -> Float[Tensor, "K h w"]:
    """The largest product of a class's probability and a mask, over the pairs with the highest probabilities."""
    queries, classes = probability.shape
    best, pairs = probability.flatten().topk(queries)
    scores = masks.new_zeros(classes, *masks.shape[1:])
    for pair, score in zip(pairs.tolist(), best, strict=True):
        plane = scores[pair % classes]
        torch.maximum(plane, score * masks[pair // classes], out=plane)
    return scores


def winners(scores: Float[Tensor, "B K h w"]) -> Int64[Tensor, " P"]:
    """Return the classes, ascending, that may win at some pixel after bilinear interpolation, ties aside.

    Between four cells no interpolated score is larger than the largest of them, nor smaller than the smallest.
    """
    kernel = (min(2, scores.shape[2]), min(2, scores.shape[3]))
    upper, lower = F.max_pool2d(scores, kernel, 1), -F.max_pool2d(-scores, kernel, 1)
    return (upper >= lower.amax(1, keepdim=True) - _TIE).any(3).any(2).any(0).nonzero()[:, 0]
