"""Segmentation models of the transformers library with one interface; ``families`` says what differs between them."""

import logging
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss._hub import download_weights, quiet_library, require_hub
from mpvss._threads import tell_torch
from mpvss._validate import read_json, shown
from mpvss._zoo import nearest_model
from mpvss.errors import ModelError
from mpvss.segmentors.efficientnet import register
from mpvss.segmentors.families import mask_classifiers, require_family
from mpvss.segmentors.family import Family
from mpvss.segmentors.preprocessing import read_input_rule
from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction
from mpvss.segmentors.tensors import PixelScores, TensorPrediction, normalised
from mpvss.segmentors.untrusted import UNREADABLE, check_config, check_extent, first_line
from mpvss.types import shown_size

log = logging.getLogger(__name__)

tell_torch()

# Key frames that a GPU takes at once: enough to fill it, and memory for a large model's.
_KEY_BATCH = 4
# What a network raises whose configuration fits its weights in number but not in sense.
_DOES_NOT_RUN = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError)


class HuggingFaceSegmentor:
    """A segmentation model of the transformers library.

    Attributes:
        name: Hub id, directory name, or ``compact``.
        model: The library's model, in evaluation mode.
        class_names: Names in the order of their ids, as the model's configuration gives them; or the prompts.
        rule: Size and normalisation of its input.
        query_width: Width of its query embeddings; 0 where it answers with classes of pixels.
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
        prompts: tuple[str, ...] = (),
    ) -> None:
        """Wrap a model that is on its device already.

        Args:
            model: One of the families.
            rule: Size and normalisation of its input.
            name: What to call it in results.
            dtype: Below float32 the network runs under autocast.
            task: Token ids of the text that the network reads: (1, 77) of OneFormer's task, (2, P, n) of P prompts.
            fast: Whether a Mask2Former runs through ``fast_mask2former``, which gives the same to rounding; ``False``
                runs the library's own forward pass. The other families have no fast path.
            prompts: Names of the classes where ``task`` holds them.

        Raises:
            ModelError: The model is of another family.
        """
        family = require_family(name, model.config)
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.class_names = _class_names(name, family.class_names(model.config, prompts))
        self.rule = rule
        self._dtype = dtype
        self._task = task
        self._family = family
        self._predict = (family.fast_predict(model) if fast else None) or family.predict
        self._follows = False
        self._carried: Tensor | None = None
        self.query_width, self.num_queries = family.query_shape(model.config)
        self._device = next(model.parameters()).device

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._device
        return device

    @property
    def batch(self) -> int:
        """How many key frames of a file it takes at once."""
        return _KEY_BATCH if self._device.type == "cuda" else 1

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction | PixelPrediction:
        """Segment a batch; see ``Segmentor`` and ``predict``."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        found = self.predict(tensor)
        if isinstance(found, PixelScores):
            ids = None if found.ids is None else found.ids.cpu().numpy()
            return PixelPrediction(found.scores.cpu().numpy(), found.kind, ids)
        logits, masks, queries = (
            value.cpu().numpy() for value in (found.class_logits, found.mask_logits, found.queries)
        )
        return Prediction(logits, masks, queries)

    def predict(self, images: UInt8[Tensor, "B 3 H W"]) -> TensorPrediction | PixelScores:
        """Segment a batch of images, 0..255, not padded; results are float32 on the model's device.

        Raises:
            ModelError: The model does not run, or its answer is not finite somewhere.
        """
        pixels: Float[Tensor, "B 3 Hp Wp"] = normalised(self.rule, images.to(self._device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        reduced = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=reduced):
            try:
                prediction = self._run(pixels, (images.shape[-2], images.shape[-1]))
            except _DOES_NOT_RUN as error:
                own = getattr(self.model.config, "image_size", None)
                size = f", it is made for images of {shown(own)} pixels" if own else ""
                raise ModelError(
                    f"{self.name}: the model fails on an image of {shown_size(images.shape[-2:])} "
                    f"({first_line(error)}); its configuration does not fit its weights{size}, or memory is short"
                ) from error
        if not prediction.finite():
            raise ModelError(
                f"{self.name}: the model's answer is not finite; its weights are damaged, or the precision is too low "
                "for it: use float32"
            )
        return prediction.float()

    def _run(self, pixels: Float[Tensor, "B 3 Hp Wp"], size: tuple[int, int]) -> TensorPrediction | PixelScores:
        if self._follows:
            following = self._family.predict_next(self.model, pixels, self._carried)
            if following is not None:
                prediction, self._carried = following
                return prediction
        return self._predict(self.model, pixels, self._task, size)

    def for_video(self) -> "HuggingFaceSegmentor":
        """Return a segmentor of the same network for the key frames of one video, which it is called with in order.

        Where the network carries queries from one image to the next, they are its state; it is this one otherwise.
        """
        if type(self._family).predict_next is Family.predict_next:
            return self
        following = copy(self)
        following._follows, following._carried = True, None
        return following


def _class_names(model: str, names: dict[int, str]) -> tuple[str, ...]:
    """As in the library: the n-th class logit has id n, and there are as many as there are names."""
    beyond = sorted(id_ for id_ in names if not 0 <= id_ < len(names))
    if beyond:
        log.warning(
            "%s: id2label has %d names, so class ids are 0 to %d; the names of %s belong to none of them, and %d "
            "ids are called LABEL_n", model, len(names), len(names) - 1, shown(beyond), len(beyond),
        )  # fmt: skip
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(len(names)))


def library_prediction(
    segmentor: HuggingFaceSegmentor, pixels: Float[Tensor, "B 3 Hp Wp"], size: tuple[int, int]
) -> TensorPrediction:
    """Run a segmentor's network as the library has it, with gradients and precision as the caller has set them.

    Args:
        segmentor: A mask classifier.
        pixels: Normalised and padded, on the model's device.
        size: Height and width of the image before padding.

    Raises:
        ModelError: It answers with classes of pixels.
    """
    prediction = segmentor._family.predict(segmentor.model, pixels, segmentor._task, size)
    if isinstance(prediction, PixelScores):
        raise ModelError(
            f"{segmentor.name}: expected a mask classifier ({', '.join(mask_classifiers())}), which answers with "
            f"queries, got model type {segmentor.model.config.model_type!r}"
        )
    return prediction


@quiet_library()
def load_huggingface(
    model_id: str | Path,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fast: bool = True,
    prompts: tuple[str, ...] = (),
) -> HuggingFaceSegmentor:
    """Load a checkpoint by hub id or from a directory; weights are tensors only, nothing is executed.

    Without ``fast`` a Mask2Former runs the library's own forward pass. ``prompts`` are the classes of a model that
    takes text.

    Raises:
        ModelError: No configuration, another family, weights missing or of other shapes, or no way to fetch them.
    """
    register()
    model_id = str(model_id)
    folder = _locate(model_id)
    config = _read_config(model_id, folder)
    family = require_family(model_id, config)
    if prompts and not family.promptable:
        raise ModelError(
            f"{model_id}: a model of type {config.model_type!r} has classes of its own and takes no --prompt; "
            "--classes keeps some of them"
        )
    rule = read_input_rule(model_id, folder, config)
    task = family.task_tokens(model_id, config, prompts)
    model = _read_weights(model_id, folder, config, family)
    if family.channels_last:
        model = model.to(memory_format=torch.channels_last)
    name = name or (folder.resolve().name if folder is not None else model_id)
    return HuggingFaceSegmentor(model.to(device), rule, name=name, dtype=dtype, task=task, fast=fast, prompts=prompts)


def _locate(model_id: str) -> Path | None:
    """The directory of a model; ``None`` where it is on the hub."""
    folder = Path(model_id)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: expected config.json and model.safetensors in this directory, got no config.json"
            )
        return folder
    if folder.is_absolute() or model_id.count("/") != 1 or folder.exists():
        near = nearest_model(model_id)
        raise ModelError(
            f"{model_id}: expected a model directory or a hub id such as owner/name, there is no such directory"
            + (f"; did you mean {near}?" if near else "; mpvss models lists some")
        )
    require_hub(model_id)
    download_weights(model_id)
    return None


def _read_config(model_id: str, folder: Path | None) -> Any:
    import transformers

    try:
        if folder is not None:
            check_config(read_json(folder / "config.json"))
        config = transformers.AutoConfig.from_pretrained(model_id, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot read the model's configuration: {first_line(error)}") from error
    return config


def _read_weights(model_id: str, folder: Path | None, config: Any, family: Family) -> Any:
    try:
        kind, config = family.network(config), family.network_config(config)
        if folder is not None:
            check_extent(kind, config, folder)
        model, report = kind.from_pretrained(
            model_id,
            config=config,
            dtype=torch.float32,
            weights_only=True,
            # Asked for so that they are in the report, which is judged below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (TypeError, AttributeError, LookupError) as error:
        raise ModelError(
            f"{model_id}: cannot load the weights: config.json lacks a setting of {config.model_type}, or contradicts "
            f"itself ({first_line(error)}); use the one that was saved with the weights"
        ) from error
    except UNREADABLE as error:
        raise ModelError(f"{model_id}: cannot load the weights: {first_line(error)}") from error
    # The loss is not needed here, and some checkpoints come without its constants and heads.
    wrong = sorted(key for key in report["missing_keys"] if not key.startswith(("criterion.", "auxiliary_head.")))
    wrong += sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:
        saved = next(iter(config.architectures or ()), kind.__name__)
        why = (
            "does not belong to its configuration" if saved == kind.__name__ else f"is a {saved}, not a {kind.__name__}"
        )
        raise ModelError(
            f"{model_id}: {len(wrong)} weights are missing or of another shape, among them {wrong[0]}; "
            f"the checkpoint {why}"
        )
    return model
