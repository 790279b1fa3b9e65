"""What the benchmark compares: the library's model, ours, which is the same one, and a light model of another kind."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.convert.architectures import Model, build
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.stage_clock import StageClock
from mpvss.labels import label_dtype
from mpvss.motion import PixelFlow
from mpvss.motion.propagators import make_propagator
from mpvss.options import BenchOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.huggingface import HuggingFaceSegmentor, library_prediction
from mpvss.segmentors.protocol import InputRule, Prediction, Segmentor, prepare, resize_frame
from mpvss.segmentors.tensors import TensorPrediction
from mpvss.types import Frame, Geometry, Segmentation

# What trained models show on street scenes: so many of the hundred queries are active, for so many classes.
ACTIVE_QUERIES = 20
PRESENT_CLASSES = 12
# Probability of an active query's class, and of any class at all for the others.
_SURE, _UNSURE = 0.95, 1e-6
_OF_OURS = ("propagator", "motion", "interval", "backend", "fast")

Labeller = Callable[[Frame], np.ndarray]


@dataclass(frozen=True, eq=False)
class Contest:
    """The library's model and ours, which are the same one.

    Attributes:
        library: Labels frames as users of the library do.
        ours: Our segmenter, with the activity of a trained model.
        all_active: Ours with the classes of the random weights, which is every query and every class; ``None`` where
            the weights are trained.
    """

    library: "Library"
    ours: VideoSegmenter
    all_active: VideoSegmenter | None


def make_contest(options: BenchOptions) -> Contest:
    """Load or build what is compared. Options are resolved.

    Raises:
        ModelError: The model cannot be loaded.
    """
    if options.arch is None:
        ours = make_ours(options)
        alone = VideoSegmenter.from_pretrained(
            str(options.model), propagator="none", device="cpu", fast=False
        ).segmentor
        assert isinstance(alone, HuggingFaceSegmentor)
        return Contest(Library(alone, ours.rule), ours, None)
    assert options.classes is not None
    built = build(options.arch, options.classes)
    library_model = copy.deepcopy(built.segmentor)
    ours = _random_weights(options, built)
    fixed = ours.segmentor
    assert isinstance(fixed, FixedActivity)
    all_active = VideoSegmenter(fixed.segmentor, ours.propagator, options=ours.options)
    library = Library(HuggingFaceSegmentor(library_model, ours.rule), ours.rule, fixed.finish)
    return Contest(library, ours, all_active)


def make_ours(options: BenchOptions) -> VideoSegmenter:
    """Load or build ours alone. Options are resolved."""
    if options.arch is None:
        values = {name: getattr(options, name) for name in _OF_OURS}
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        return VideoSegmenter.from_pretrained(str(options.model), device="cpu", **given)
    assert options.classes is not None
    return _random_weights(options, build(options.arch, options.classes))


def _random_weights(options: BenchOptions, built: Model) -> VideoSegmenter:
    """Wrap one of the paper's models in ``FixedActivity``."""
    propagator = options.propagator or "query"
    rule = InputRule(short_side=None if options.size is None else min(options.size))
    network = built.segmentor.to(memory_format=torch.channels_last)
    return VideoSegmenter(
        FixedActivity(HuggingFaceSegmentor(network, rule, name=str(options.arch))),
        make_propagator(propagator, PixelFlow(built.motion.config) if propagator == "flow" else built.motion),
        motion=options.motion or "direct",
        interval=options.interval,
    )


def plain_decode(
    class_logits: Float[Tensor, "Q K1"], mask_logits: Float[Tensor, "Q h w"], geometry: Geometry
) -> np.ndarray:
    """Return the label map by the plain definition in ``decode.py``, as it is written down, without any shortcut."""
    height, width = geometry.resized
    with torch.inference_mode():
        probabilities = class_logits.softmax(1)[:, :-1]
        full = F.interpolate(mask_logits[None], size=geometry.padded, mode="bilinear", align_corners=False)[0]
        scores = torch.einsum("qk,qhw->khw", probabilities, full[:, :height, :width].sigmoid())
        if geometry.source != geometry.resized:
            scores = F.interpolate(scores[None], size=geometry.source, mode="bilinear", align_corners=False)[0]
        return scores.argmax(0).numpy().astype(label_dtype(len(scores)))


class Library:
    """A model as users of the transformers library run it: on every frame, decoded plainly.

    Attributes:
        segmentor: The library's model, in the memory format that it comes in.
        rule: Size and normalisation of its input, the same as for ours.
        finish: Applied to its logits; see ``FixedActivity``.
    """

    def __init__(
        self,
        segmentor: HuggingFaceSegmentor,
        rule: InputRule,
        finish: Callable[[TensorPrediction], TensorPrediction] = lambda prediction: prediction,
    ) -> None:
        segmentor.model.to(memory_format=torch.contiguous_format)
        self.segmentor = segmentor
        self.rule = rule
        self.finish = finish

    def forward(self, frame: Frame) -> tuple[TensorPrediction, Geometry]:
        """Run the network on a frame; returns its logits, and how the frame became its input."""
        image, geometry = prepare(frame, self.rule)
        pixels = torch.from_numpy(self.rule.normalise(image[None]))
        with torch.inference_mode():
            prediction = library_prediction(self.segmentor, pixels, geometry.resized)
        return self.finish(prediction), geometry

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the labels of a frame."""
        prediction, geometry = self.forward(frame)
        return plain_decode(prediction.class_logits[0], prediction.mask_logits[0], geometry)


class FixedActivity:
    """A segmentor with random weights whose classes are as a trained one's: the whole network runs, then they replace
    its own.

    ``ACTIVE_QUERIES`` of its queries, evenly spread, are sure of one of ``PRESENT_CLASSES`` classes each, in turn; all
    others are "no object" but for a millionth.
    """

    def __init__(self, segmentor: HuggingFaceSegmentor) -> None:
        self.name, self.class_names, self.rule = segmentor.name, segmentor.class_names, segmentor.rule
        self.segmentor = segmentor
        self._logits = fixed_class_logits(segmentor.num_queries, len(segmentor.class_names))

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction:
        """Segment a batch; see ``Segmentor``."""
        prediction = self.segmentor(images)
        fixed = np.broadcast_to(self._logits.numpy(), prediction.class_logits.shape)
        return replace(prediction, class_logits=np.ascontiguousarray(fixed))

    def finish(self, prediction: TensorPrediction) -> TensorPrediction:
        """Return a prediction with the fixed classes."""
        return replace(prediction, class_logits=self._logits.expand_as(prediction.class_logits))


def fixed_class_logits(num_queries: int, num_classes: int) -> Float[Tensor, "Q K1"]:
    """Return the class logits of ``FixedActivity``; models with fewer queries or classes have all of them in use."""
    active, present = min(ACTIVE_QUERIES, num_queries), min(PRESENT_CLASSES, num_classes)
    probabilities = torch.full((num_queries, num_classes + 1), _UNSURE / num_classes, dtype=torch.float64)
    probabilities[:, -1] = 1 - _UNSURE
    for number in range(active):
        query = number * num_queries // active
        probabilities[query] = (1 - _SURE) / num_classes
        probabilities[query, number % present * num_classes // present] = _SURE
    return probabilities.log().float()


def segformer_b0(num_classes: int, rule: InputRule) -> Labeller:
    """Return the library's SegFormer-B0 with random weights: a light per-pixel model, run on every frame.

    It sees the frames at their own size, or smaller where ours sees them smaller, without padding.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_classes)).eval().requires_grad_(False)
    rule = replace(rule, multiple=1)

    def label(frame: Frame) -> np.ndarray:
        geometry = rule.fit(frame.size)
        image = resize_frame(frame, min(geometry.source, geometry.resized))
        with torch.inference_mode():
            logits = model(pixel_values=torch.from_numpy(rule.normalise(image[None]))).logits
            full = F.interpolate(logits, size=geometry.source, mode="bilinear", align_corners=False)[0]
            return full.argmax(0).numpy().astype(label_dtype(num_classes))

    return label


class _PlainCarrier:
    """Asks a function for the labels of every frame, each a key frame."""

    def __init__(self, label: Labeller) -> None:
        self._label, self.clock = label, StageClock()

    def predict(self, frames: Sequence[Frame]) -> list[np.ndarray]:
        with self.clock("key"):
            return [self._label(frame) for frame in frames]

    def keep(self, frame: Frame, predicted: np.ndarray) -> tuple[None, Segmentation]:
        return None, Segmentation(frame, predicted, is_key=True)

    def geometry(self, frame: Frame) -> Geometry:
        return Geometry(frame.size, frame.size, frame.size)

    def next(self, kept: None, frame: Frame) -> Segmentation:  # noqa: ARG002 - a carrier's signature
        raise AssertionError("every frame is a key frame")

    def between(self, before: None, frames: Sequence[Frame], after: None) -> list[Segmentation]:  # noqa: ARG002
        raise AssertionError("every frame is a key frame")

    def close(self) -> None:
        """There is nothing to release."""


class PlainRun(VideoSegmenter):
    """A function from frame to labels, with the same reading and writing as ours."""

    def __init__(self, segmentor: Segmentor, label: Labeller) -> None:
        super().__init__(segmentor, None)
        self._label = label

    def session(self, *_: Any, **__: Any) -> Session:
        """Begin a video."""
        return Session(_PlainCarrier(self._label), FixedInterval(1))
