"""What the benchmark compares with, all of it in torch: the library's model, and a light model of another kind.

Also the paper's models with random weights, of which the library's and ours are the same.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.convert.architectures import build
from mpvss.evaluation.contest import Contest, Labeller
from mpvss.labels import label_dtype
from mpvss.motion import PixelFlow
from mpvss.motion.propagators import make_propagator
from mpvss.options import BenchOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.families import mask_classifiers
from mpvss.segmentors.huggingface import HuggingFaceSegmentor, library_prediction
from mpvss.segmentors.protocol import InputRule, Prediction, prepare, resize_frame
from mpvss.segmentors.tensors import TensorPrediction
from mpvss.types import Frame, Geometry

# What trained models show on street scenes: so many of the hundred queries are active, for so many classes.
ACTIVE_QUERIES = 20
PRESENT_CLASSES = 12
# Probability of an active query's class, and of any class at all for the others.
_SURE, _UNSURE = 0.95, 1e-6
# Side of the square matrices whose product tells the machine's rate.
MATRIX = 2048


def with_library(ours: VideoSegmenter, model: str) -> Contest:
    """Return the contest of a checkpoint.

    Raises:
        ModelError: It cannot be loaded.
    """
    alone = VideoSegmenter.from_pretrained(model, propagator="none", device="cpu", backend="torch", fast=False)
    network = alone.segmentor
    if not isinstance(network, HuggingFaceSegmentor) or network.model.config.model_type not in mask_classifiers():
        return Contest(None, ours, None)
    return Contest(Library(network, ours.rule), ours, None)


def with_random_weights(options: BenchOptions) -> Contest:
    """Build one of the paper's models. Options are resolved."""
    assert options.arch is not None and options.classes is not None
    built = build(options.arch, options.classes)
    library_model = copy.deepcopy(built.segmentor)
    propagator = options.propagator or "query"
    rule = InputRule(short_side=None if options.size is None else min(options.size))
    network = HuggingFaceSegmentor(built.segmentor.to(memory_format=torch.channels_last), rule, name=options.arch)
    fixed = FixedActivity(network)
    ours = VideoSegmenter(
        fixed,
        make_propagator(propagator, PixelFlow(built.motion.config) if propagator == "flow" else built.motion),
        motion=options.motion or "direct",
        interval=options.interval,
    )
    all_active = VideoSegmenter(network, ours.propagator, options=ours.options)
    return Contest(Library(HuggingFaceSegmentor(library_model, rule, fast=False), rule, fixed.finish), ours, all_active)


def counted(contest: Contest) -> VideoSegmenter:
    """Return ours with the library's network, of which multiply-adds can be counted whatever ours runs on."""
    ours, library = contest.ours, contest.library
    assert isinstance(library, Library)
    return VideoSegmenter(library.segmentor, ours.propagator, options=ours.options)


def matrix_product() -> Callable[[], object]:
    """Return a large product of matrices to time."""
    matrix = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0))
    return lambda: matrix @ matrix


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

    def timed(self, frame: Frame) -> dict[str, float]:
        """Return the seconds of a frame: ``library_forward``, ``library_decode`` and both as ``library_frame``."""
        began = time.perf_counter()
        prediction, geometry = self.forward(frame)
        forward = time.perf_counter()
        plain_decode(prediction.class_logits[0], prediction.mask_logits[0], geometry)
        end = time.perf_counter()
        return {"library_frame": end - began, "library_forward": forward - began, "library_decode": end - forward}


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
        assert isinstance(prediction, Prediction), "an architecture of the paper is a mask classifier"
        fixed = np.broadcast_to(self._logits.numpy(), prediction.class_logits.shape)
        return replace(prediction, class_logits=np.ascontiguousarray(fixed))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.segmentor.device

    @property
    def batch(self) -> int:
        """How many key frames of a file it takes at once."""
        return self.segmentor.batch

    def predict(self, images: UInt8[Tensor, "B 3 H W"]) -> TensorPrediction:
        """Segment a batch on its device."""
        prediction = self.segmentor.predict(images)
        assert isinstance(prediction, TensorPrediction)
        return self.finish(prediction)

    def finish(self, prediction: TensorPrediction) -> TensorPrediction:
        """Return a prediction with the fixed classes."""
        logits = self._logits.to(prediction.class_logits.device)
        return replace(prediction, class_logits=logits.expand_as(prediction.class_logits))


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
