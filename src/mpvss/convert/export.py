"""Export a model for ONNX Runtime, and hold the result against torch before it is kept."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn

from mpvss._extras import require
from mpvss._files import atomic, output_errors
from mpvss._validate import shown
from mpvss.engine.decode import class_scores
from mpvss.engine.state import WarpedPrediction
from mpvss.errors import ModelError, OptionError, OutputError
from mpvss.motion import QueryFlow
from mpvss.motion.arrays import warp_each
from mpvss.motion.learned import LearnedFlow
from mpvss.motion.network.directory import read_config
from mpvss.options import SHORTEST_SIDE, PropagatorName
from mpvss.progress import progress
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import EMBEDDED
from mpvss.segmentors.huggingface import HuggingFaceSegmentor, library_prediction
from mpvss.segmentors.onnx import EXPORT_NAME, KEY_NAME, MOTION_NAME, ExportInfo, load_exported, require_runtime
from mpvss.segmentors.tensors import normalised
from mpvss.types import Geometry, shown_size

# Two class scores that differ by less than this share of the larger one are a tie.
_TIE = 1e-4
_PROPAGATOR_OF: dict[str, PropagatorName] = {"query_flow": "query", "pixel_flow": "flow"}


class _KeyNetwork(nn.Module):
    """The segmentor as the library has it: pixels to class logits, mask logits and queries."""

    def __init__(self, segmentor: HuggingFaceSegmentor, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = segmentor.model
        self._segmentor, self._size = segmentor, size

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prediction = library_prediction(self._segmentor, pixels, self._size)
        return prediction.class_logits, prediction.mask_logits, prediction.queries


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        out: The directory.
        files: Megabytes of each file.
        max_difference: Largest absolute difference from torch, by output.
        ties: Share of pixels where two classes are so close that the backends may choose either.
    """

    out: Path
    files: Mapping[str, float]
    max_difference: Mapping[str, float]
    ties: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"out": str(self.out)}


def export(model: str, size: tuple[int, int], out: str | Path, *, overwrite: bool = False) -> ExportSummary:
    """Write the networks of a model as ONNX files, for images of one size.

    ``out`` gets its name when the exported networks have given the same labels as torch on a test image, ties aside.

    Args:
        model: ``compact``, a hub id, a directory, or the directory of a motion module, which names its segmentor.
        size: Height and width of the images that the networks will see.
        out: Directory to make.
        overwrite: Whether a directory of that name is replaced.

    Raises:
        ModelError: A package is missing, the model cannot be loaded or exported, or the result differs from torch.
        OutputError: ``out`` exists, or cannot be written.
        OptionError: A side is too short, or the size is none.
    """
    if len(size) != 2 or any(not isinstance(side, int) or side < SHORTEST_SIDE for side in size):
        raise OptionError("size", f"must be height and width of at least {SHORTEST_SIDE} pixels, got {shown(size)}")
    _require_exporter()
    out = Path(out)
    with output_errors(out):
        exists = out.exists()
        out.parent.mkdir(parents=True, exist_ok=True)
    if exists and not (overwrite and (out / EXPORT_NAME).is_file()):
        raise OutputError(f"{out} exists already; pass --overwrite to replace an export, or choose another output")
    segmenter = _load(model, size)
    info = _describe(segmenter, size)
    current, other = _test_images(size)
    with atomic(out, folder=True) as folder, progress("export", 3, unit="steps") as advance:
        expected = _write_segmentor(segmenter, other, folder / KEY_NAME)
        advance()
        if isinstance(segmenter.propagator, LearnedFlow):
            _write_motion(segmenter.propagator, current, other, expected[2], folder / MOTION_NAME)
        advance()
        (folder / EXPORT_NAME).write_text(info.to_json(), encoding="utf-8")
        difference, ties = _verify(folder, current, other, expected, segmenter.propagator, segmenter.rule.fit(size))
        (folder / EXPORT_NAME).write_text(replace(info, max_difference=difference).to_json(), encoding="utf-8")
        advance()
        files = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir())}
    return ExportSummary(out, files, difference, ties)


def _require_exporter() -> None:
    require_runtime()
    require("onnx", "exporting needs", ModelError)


def _load(model: str, size: tuple[int, int]) -> VideoSegmenter:
    """The model with its own motion module, if it sees images of this size as they are."""
    kind = None if model in EMBEDDED else read_config(model)["model_type"]
    propagator: PropagatorName = _PROPAGATOR_OF.get(str(kind), "none")
    segmenter = VideoSegmenter.from_pretrained(
        model, propagator=propagator, short_side=min(size), device="cpu", fast=False
    )
    resized = segmenter.rule.fit(size).resized
    if resized != size:
        raise ModelError(
            f"{model} sees images of {shown_size(size)} at {shown_size(resized)}: export it for "
            f"that size, with --size {resized[0]}x{resized[1]} (HEIGHTxWIDTH)"
        )
    return segmenter


def _describe(segmenter: VideoSegmenter, size: tuple[int, int]) -> ExportInfo:
    segmentor, learned = segmenter.segmentor, segmenter.propagator
    assert isinstance(segmentor, HuggingFaceSegmentor)
    return ExportInfo(
        name=segmentor.name,
        class_names=segmentor.class_names,
        rule=replace(segmenter.rule, fixed=True),
        size=size,
        motion=learned.name if isinstance(learned, LearnedFlow) else None,
        num_queries=segmentor.num_queries,
        max_difference={},
    )


def _write_segmentor(
    segmenter: VideoSegmenter, image: UInt8[Tensor, "1 3 H W"], path: Path
) -> tuple[Float[Tensor, "1 Q K1"], Float[Tensor, "1 Q h w"], Float[Tensor, "1 Q D"]]:
    """Export the segmentor; return what torch gives for an image: class logits, mask logits, queries."""
    assert isinstance(segmenter.segmentor, HuggingFaceSegmentor)
    network = _KeyNetwork(segmenter.segmentor, (image.shape[-2], image.shape[-1]))
    pixels = normalised(segmenter.rule, image)
    _export(network, {"pixels": pixels}, ("class_logits", "mask_logits", "queries"), path)
    with torch.inference_mode():
        outputs: tuple[Tensor, Tensor, Tensor] = network(pixels)
    return outputs


def _write_motion(
    learned: LearnedFlow,
    current: UInt8[Tensor, "1 3 H W"],
    other: UInt8[Tensor, "1 3 H W"],
    queries: Float[Tensor, "1 Q D"],
    path: Path,
) -> None:
    inputs: dict[str, Tensor] = {"current": current.float(), "other": other.float()}
    if isinstance(learned.module, QueryFlow):
        inputs |= {"queries": queries.clone(), "active": torch.arange(queries.shape[1])}
    _export(learned.module, inputs, ("flow",), path)


def _test_images(size: tuple[int, int]) -> tuple[UInt8[Tensor, "1 3 H W"], UInt8[Tensor, "1 3 H W"]]:
    """Return a smooth random image, and the same moved by two pixels."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    wide = F.interpolate(coarse, size=(height, width + 2), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    return wide[..., 2:].contiguous(), wide[..., :-2].contiguous()


def _export(network: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    """Trace a network to a file; only the number of active queries stays open."""
    shapes = tuple(
        {0: torch.export.Dim(name, min=1, max=len(value))} if name == "active" and len(value) > 1 else None
        for name, value in inputs.items()
    )
    try:
        with _quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                network.eval(),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of every kind: the exporter runs the model's own code symbolically
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"torch cannot export this network to ONNX: {reason}") from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's advice, which is about its own future and its optimiser."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _verify(
    folder: Path,
    current: UInt8[Tensor, "1 3 H W"],
    other: UInt8[Tensor, "1 3 H W"],
    expected: tuple[Tensor, Tensor, Tensor],
    learned: object,
    geometry: Geometry,
) -> tuple[dict[str, float], float]:
    """Run the exported networks and compare; returns differences by output, and the share of tied pixels."""
    segmentor, flow = load_exported(folder)
    now, then = (np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy()) for image in (current, other))
    exported = segmentor(then)
    values = (exported.class_logits, exported.mask_logits, exported.queries)
    class_logits, mask_logits, queries = (value.numpy() for value in expected)
    difference = {
        name: float(np.abs(ours - torchs).max())
        for name, ours, torchs in zip(
            ("class_logits", "mask_logits", "queries"), values, (class_logits, mask_logits, queries), strict=True
        )
    }
    tied = _require_equal_labels(
        WarpedPrediction(class_logits[0], mask_logits[0]),
        WarpedPrediction(exported.class_logits[0], exported.mask_logits[0]),
        geometry,
        KEY_NAME,
    )
    if flow is None:
        return difference, tied
    assert isinstance(learned, LearnedFlow)
    grid = (mask_logits.shape[-2], mask_logits.shape[-1])
    half = None if flow.name == "flow" else np.arange(0, queries.shape[1], 2)
    largest = 0.0
    for active in (None, half):
        flows = [by.estimate_flow(now, then, queries, geometry.padded, grid, active)[0] for by in (learned, flow)]
        largest = max(largest, float(np.abs(flows[0] - flows[1]).max()))
        kept = slice(None) if active is None else active
        masks, classes = mask_logits[0][kept], class_logits[0][kept]
        warped = [warp_each(masks, one) for one in flows]
        tied = max(
            tied,
            _require_equal_labels(
                WarpedPrediction(classes, warped[0]), WarpedPrediction(classes, warped[1]), geometry, MOTION_NAME
            ),
        )
    return difference | {"flow": largest}, tied


def _require_equal_labels(
    expected: WarpedPrediction, exported: WarpedPrediction, geometry: Geometry, name: str
) -> float:
    """Return the share of tied pixels; refuse labels that differ anywhere else."""
    scores = class_scores([expected], geometry)
    labels, others = (class_scores([prediction], geometry).argmax(0) for prediction in (expected, exported))
    different = (labels != others) & ~_tied(scores)
    if different.any() or not all(np.isfinite(t).all() for t in (exported.class_logits, exported.mask_logits)):
        share = 100 * float(different.mean())
        raise ModelError(
            f"{name}: the exported network gives other labels than torch at {share:.3g} % of the pixels; it was not "
            "kept, use backend torch"
        )
    return float(_tied(scores).mean())


def _tied(scores: Float32[np.ndarray, "K H W"]) -> Bool[np.ndarray, "H W"]:
    if len(scores) == 1:
        return np.zeros(scores.shape[1:], bool)
    second, best = np.partition(scores, -2, axis=0)[-2:]
    return np.asarray(best - second <= _TIE * best)
