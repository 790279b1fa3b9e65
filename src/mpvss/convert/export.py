"""Export a model for ONNX Runtime, and hold the result against torch before it is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor, nn

from mpvss._extras import require
from mpvss._files import atomic, output_errors
from mpvss._validate import shown
from mpvss.convert.graph import trace
from mpvss.engine.activations import softmax
from mpvss.engine.decode import class_scores
from mpvss.engine.state import WarpedPrediction
from mpvss.errors import ModelError, OptionError, OutputError
from mpvss.motion import PixelFlow, QueryFlow
from mpvss.motion.arrays import warp_each
from mpvss.motion.learned import LearnedFlow
from mpvss.motion.network.directory import read_config
from mpvss.motion.network.encoder import shrink
from mpvss.motion.propagator import Propagator
from mpvss.options import SHORTEST_SIDE, PropagatorName
from mpvss.progress import progress
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import EMBEDDED, PixelPrediction, Segmentor
from mpvss.segmentors.huggingface import HuggingFaceSegmentor, library_prediction
from mpvss.segmentors.onnx import (
    EXPORT_NAME,
    KEY_NAME,
    MOTION_NAME,
    MOTION_RULE,
    ExportInfo,
    load_exported,
    require_runtime,
)
from mpvss.segmentors.pixel_families import PixelFamily
from mpvss.segmentors.tensors import PixelScores, normalised
from mpvss.types import Geometry, shown_size

_OUTPUTS = ("class_logits", "mask_logits", "queries")
# One wider and one higher, at which an export for any size is traced and compared. No grid in a network has a single
# row there: torch would take that for a constant.
TRIAL_SIZES = ((260, 390), (460, 250))
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


class _PixelNetwork(nn.Module):
    """A network of pixels: normalised pixels to class logits."""

    def __init__(self, segmentor: HuggingFaceSegmentor, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = segmentor.model
        self._segmentor, self._size = segmentor, size

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        prediction = self._segmentor._family.predict(self.model, pixels, None, self._size)
        assert isinstance(prediction, PixelScores)
        return (prediction.scores,)


class _MotionNetwork(nn.Module):
    """A motion module behind its input's normalisation and padding."""

    def __init__(self, module: QueryFlow | PixelFlow) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, current: Tensor, other: Tensor, queries: Tensor | None = None, active: Tensor | None = None
    ) -> Tensor:
        factor = self.module.config.downscale
        images = (shrink(current, factor), shrink(other, factor))
        if isinstance(self.module, PixelFlow):
            return self.module.flow_between(*images)
        assert queries is not None
        return self.module.flow_between(*images, queries, active)


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


def export(model: str, size: tuple[int, int] | None, out: str | Path, *, overwrite: bool = False) -> ExportSummary:
    """Write the networks of a model as ONNX files, for images of any size or of one.

    ``out`` gets its name when the exported networks have given the same labels as torch on test images, ties aside.

    Args:
        model: ``compact``, a hub id, a directory, or the directory of a motion module, which names its segmentor.
        size: Height and width of the images that the networks will see; ``None`` for any.
        out: Directory to make.
        overwrite: Whether a directory of that name is replaced.

    Raises:
        ModelError: A package is missing, the model cannot be loaded or exported, or the result differs from torch.
        OutputError: ``out`` exists, or cannot be written.
        OptionError: A side is too short, or the size is none.
    """
    if size is not None and (len(size) != 2 or any(not isinstance(side, int) or side < SHORTEST_SIDE for side in size)):
        raise OptionError("size", f"must be height and width of at least {SHORTEST_SIDE} pixels, got {shown(size)}")
    require_exporter()
    out = Path(out)
    with output_errors(out):
        exists = out.exists()
        out.parent.mkdir(parents=True, exist_ok=True)
    if exists and not (overwrite and (out / EXPORT_NAME).is_file()):
        raise OutputError(f"{out} exists already; pass --overwrite to replace an export, or choose another output")
    segmenter = load_for_export(model, size)
    if size is None and segmenter.rule.fixed:  # the network itself takes one size only
        size = segmenter.rule.exact
    try:
        with atomic(out, folder=True) as folder:
            return _write(segmenter, size, folder, out)
    except ModelError as error:
        if size is not None:
            raise
        raise ModelError(f"{error}; an export for one size may do: --size HEIGHTxWIDTH") from error


def _write(segmenter: VideoSegmenter, size: tuple[int, int] | None, folder: Path, out: Path) -> ExportSummary:
    """Export into a folder, and compare."""
    info = describe(segmenter, size)
    fixed = size is not None
    sizes = list(TRIAL_SIZES) if size is None else [size]
    with progress("export", 3, unit="steps") as advance:
        onnx_save(trace_segmentor(segmenter, sizes[0], fixed=fixed), folder / KEY_NAME)
        advance()
        if isinstance(segmenter.propagator, LearnedFlow):
            onnx_save(trace_motion(segmenter, sizes[0], fixed=fixed), folder / MOTION_NAME)
        advance()
        (folder / EXPORT_NAME).write_text(info.to_json(), encoding="utf-8")
        difference, ties = _verify(folder, segmenter, sizes)
        (folder / EXPORT_NAME).write_text(replace(info, max_difference=difference).to_json(), encoding="utf-8")
        advance()
    files = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir())}
    return ExportSummary(out, files, difference, ties)


def require_exporter() -> None:
    """Refuse to go on without what exporting needs.

    Raises:
        ModelError: A package is missing.
    """
    require_runtime()
    require("onnx", "exporting needs", ModelError)


def load_for_export(model: str, size: tuple[int, int] | None) -> VideoSegmenter:
    """Load the library's network, with the model's own motion module, if it sees images of this size as they are.

    Raises:
        ModelError: It sees them at another size.
    """
    kind = None if model in EMBEDDED else read_config(model)["model_type"]
    propagator: PropagatorName = _PROPAGATOR_OF.get(str(kind), "none")
    segmenter = VideoSegmenter.from_pretrained(
        model,
        propagator=propagator,
        short_side=None if size is None else min(size),
        device="cpu",
        backend="torch",
        fast=False,
    )
    resized = size if size is None else segmenter.rule.fit(size).resized
    if resized != size:
        assert size is not None and resized is not None
        raise ModelError(
            f"{model} sees images of {shown_size(size)} at {shown_size(resized)}: export it for "
            f"that size, with --size {resized[0]}x{resized[1]} (HEIGHTxWIDTH)"
        )
    return segmenter


def describe(segmenter: VideoSegmenter, size: tuple[int, int] | None) -> ExportInfo:
    """Return what ``export.json`` says of a model's export."""
    segmentor, learned = segmenter.segmentor, segmenter.propagator
    assert isinstance(segmentor, HuggingFaceSegmentor)
    return ExportInfo(
        name=segmentor.name,
        class_names=segmentor.class_names,
        rule=replace(segmenter.rule, fixed=size is not None),
        size=size,
        motion=learned.name if isinstance(learned, LearnedFlow) else None,
        num_queries=0 if _is_of_pixels(segmentor) else segmentor.num_queries,
        max_difference={},
    )


def trace_segmentor(
    segmenter: VideoSegmenter, size: tuple[int, int], *, fixed: bool, weights_outside: bool = False
) -> Any:
    """Return the segmentor's network as a graph, from normalised pixels to what ``outputs_of`` names.

    Raises:
        ModelError: torch cannot export it.
    """
    network = key_network(segmenter, size)
    inputs = {"pixels": normalised(segmenter.rule, _test_images(size)[1])}
    multiple = None if fixed else segmenter.rule.multiple
    return trace(network, inputs, outputs_of(segmenter.segmentor), multiple=multiple, weights_outside=weights_outside)


def key_network(segmenter: VideoSegmenter, size: tuple[int, int]) -> nn.Module:
    """Return what is traced of a segmentor."""
    segmentor = segmenter.segmentor
    assert isinstance(segmentor, HuggingFaceSegmentor)
    kind = _PixelNetwork if _is_of_pixels(segmentor) else _KeyNetwork
    return kind(segmentor, size).eval()


def outputs_of(segmentor: Segmentor) -> tuple[str, ...]:
    """The outputs of a segmentor's graph: class logits, mask logits and queries; or scores, the logits of pixels."""
    return ("scores",) if _is_of_pixels(segmentor) else _OUTPUTS


def _is_of_pixels(segmentor: Segmentor) -> bool:
    return isinstance(segmentor, HuggingFaceSegmentor) and isinstance(segmentor._family, PixelFamily)


def trace_motion(
    segmenter: VideoSegmenter, size: tuple[int, int], *, fixed: bool, weights_outside: bool = False
) -> Any:
    """Return the motion module as a graph from two normalised images, queries and the active ones to flow.

    Raises:
        ModelError: torch cannot export it.
    """
    network = motion_network(segmenter)
    current, other = (normalised(MOTION_RULE, image) for image in _test_images(size))
    inputs = {"current": current, "other": other}
    config = network.module.config
    if isinstance(network.module, QueryFlow):
        inputs["queries"] = torch.zeros(1, config.num_queries, config.query_width)
        inputs["active"] = torch.arange(config.num_queries)
    multiple = None if fixed else MOTION_RULE.multiple
    return trace(network, inputs, ("flow",), multiple=multiple, weights_outside=weights_outside)


def motion_network(segmenter: VideoSegmenter) -> "_MotionNetwork":
    """Return what is traced of a motion module."""
    assert isinstance(segmenter.propagator, LearnedFlow)
    return _MotionNetwork(segmenter.propagator.module).eval()


def onnx_save(model: Any, path: Path) -> None:
    """Write a graph; the same graph gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def _test_images(size: tuple[int, int]) -> tuple[UInt8[Tensor, "1 3 H W"], UInt8[Tensor, "1 3 H W"]]:
    """Return a smooth random image, and the same moved by two pixels."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    wide = F.interpolate(coarse, size=(height, width + 2), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    return wide[..., 2:].contiguous(), wide[..., :-2].contiguous()


def _verify(
    folder: Path, segmenter: VideoSegmenter, sizes: Sequence[tuple[int, int]]
) -> tuple[dict[str, float], float]:
    """Run the exported networks and compare; returns differences by output, and the share of tied pixels."""
    exported, flow = load_exported(folder)
    difference: dict[str, float] = {}
    ties = 0.0
    for size in sizes:
        for values, tied in _compare(exported, flow, segmenter, size):
            ties = max(ties, tied)
            difference |= {name: max(value, difference.get(name, 0.0)) for name, value in values.items()}
    return difference, ties


def _compare(
    exported: Segmentor, flow: Propagator | None, segmenter: VideoSegmenter, size: tuple[int, int]
) -> Iterator[tuple[dict[str, float], float]]:
    """Compare an image's prediction, then its propagation with all queries active and with half of them."""
    geometry = replace(segmenter.rule, short_side=None, long_side=None, exact=None).fit(size)
    images = _test_images(size)
    now, then = (np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy()) for image in images)
    with torch.inference_mode():
        expected = key_network(segmenter, size)(normalised(segmenter.rule, images[1]))
    arrays = [value.numpy() for value in expected]
    found = exported(then)
    names = outputs_of(segmenter.segmentor)
    difference = {
        name: float(np.abs(getattr(found, name) - array).max()) for name, array in zip(names, arrays, strict=True)
    }
    if isinstance(found, PixelPrediction):
        shares = [softmax(logits, axis=0) for logits in (arrays[0][0], found.scores[0])]
        yield difference, _require_equal_scores(shares[0], shares[1], KEY_NAME)
        return
    class_logits, mask_logits, queries = arrays
    yield (
        difference,
        _require_equal_labels(
            WarpedPrediction(class_logits[0], mask_logits[0]),
            WarpedPrediction(found.class_logits[0], found.mask_logits[0]),
            geometry,
            KEY_NAME,
        ),
    )
    if flow is None:
        return
    learned = segmenter.propagator
    assert isinstance(learned, LearnedFlow)
    grid = (mask_logits.shape[-2], mask_logits.shape[-1])
    half = None if flow.name == "flow" else np.arange(0, queries.shape[1], 2)
    for active in (None, half):
        flows = [by.estimate_flow(now, then, queries, geometry.padded, grid, active)[0] for by in (learned, flow)]
        kept = slice(None) if active is None else active
        torchs, ours = (WarpedPrediction(class_logits[0][kept], warp_each(mask_logits[0][kept], one)) for one in flows)
        yield (
            {"flow": float(np.abs(flows[0] - flows[1]).max())},
            _require_equal_labels(torchs, ours, geometry, MOTION_NAME),
        )


def _require_equal_labels(
    expected: WarpedPrediction, exported: WarpedPrediction, geometry: Geometry, name: str
) -> float:
    """Return the share of tied pixels; refuse labels that differ anywhere else."""
    scores, others = (class_scores([prediction], geometry) for prediction in (expected, exported))
    if not all(np.isfinite(value).all() for value in (exported.class_logits, exported.mask_logits)):
        others = np.full_like(scores, np.nan)
    return _require_equal_scores(scores, others, name)


def _require_equal_scores(
    scores: Float32[np.ndarray, "K h w"], others: Float32[np.ndarray, "K h w"], name: str
) -> float:
    different = (scores.argmax(0) != others.argmax(0)) & ~_tied(scores)
    if different.any() or not np.isfinite(others).all():
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
