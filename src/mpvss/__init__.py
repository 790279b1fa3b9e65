"""Efficient video segmentation: a query-based segmentor on key frames, its masks propagated to the frames between.

    from mpvss import VideoSegmenter

    segmenter = VideoSegmenter.from_pretrained("compact")
    for result in segmenter.stream("video.mp4"):
        print(result.index, result.is_key, result.labels.shape)

Names are imported when they are first used, so that ``import mpvss`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from mpvss.annotate import FillSummary
    from mpvss.batch.tasks import BatchSummary
    from mpvss.convert.architectures import build
    from mpvss.convert.export import ExportSummary
    from mpvss.engine.carriers import Carrier
    from mpvss.engine.schedule import Schedule
    from mpvss.engine.session import Session
    from mpvss.errors import ConfigError, DataError, ModelError, MpvssError, OptionError, OutputError, SourceError
    from mpvss.evaluation.bench_results import BenchResult
    from mpvss.evaluation.results import CompareResult, EvalResult
    from mpvss.labels import palette_for
    from mpvss.motion.propagator import Propagator
    from mpvss.motion.propagators import make_propagator
    from mpvss.options import (
        BatchOptions,
        BenchOptions,
        DistillOptions,
        EvalOptions,
        FillOptions,
        OutputOptions,
        SegmentOptions,
    )
    from mpvss.outputs.draw import overlay
    from mpvss.outputs.labels import LabelReader
    from mpvss.outputs.sink import Sink
    from mpvss.segmenter import VideoSegmenter
    from mpvss.segmentors import Segmentor
    from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction
    from mpvss.segmentors.wrap import wrap
    from mpvss.training.loop import TrainSummary
    from mpvss.types import Comparison, Frame, RunSummary, Segmentation, Stop
    from mpvss.video import VideoInfo, probe, read

__all__ = [
    "BatchOptions",
    "BatchSummary",
    "BenchOptions",
    "BenchResult",
    "Carrier",
    "CompareResult",
    "Comparison",
    "ConfigError",
    "DataError",
    "DistillOptions",
    "EvalOptions",
    "EvalResult",
    "ExportSummary",
    "FillOptions",
    "FillSummary",
    "Frame",
    "InputRule",
    "LabelReader",
    "ModelError",
    "MpvssError",
    "OptionError",
    "OutputError",
    "OutputOptions",
    "PixelPrediction",
    "Prediction",
    "Propagator",
    "RunSummary",
    "Schedule",
    "SegmentOptions",
    "Segmentation",
    "Segmentor",
    "Session",
    "Sink",
    "SourceError",
    "Stop",
    "TrainSummary",
    "VideoInfo",
    "VideoSegmenter",
    "__version__",
    "build",
    "make_propagator",
    "overlay",
    "palette_for",
    "probe",
    "read",
    "wrap",
]

_HOMES = {
    "BatchOptions": "mpvss.options",
    "BatchSummary": "mpvss.batch.tasks",
    "BenchOptions": "mpvss.options",
    "BenchResult": "mpvss.evaluation.bench_results",
    "Carrier": "mpvss.engine.carriers",
    "CompareResult": "mpvss.evaluation.results",
    "Comparison": "mpvss.types",
    "ConfigError": "mpvss.errors",
    "DataError": "mpvss.errors",
    "DistillOptions": "mpvss.options",
    "EvalOptions": "mpvss.options",
    "EvalResult": "mpvss.evaluation.results",
    "ExportSummary": "mpvss.convert.export",
    "FillOptions": "mpvss.options",
    "FillSummary": "mpvss.annotate",
    "Frame": "mpvss.types",
    "InputRule": "mpvss.segmentors.protocol",
    "LabelReader": "mpvss.outputs.labels",
    "ModelError": "mpvss.errors",
    "MpvssError": "mpvss.errors",
    "OptionError": "mpvss.errors",
    "OutputError": "mpvss.errors",
    "OutputOptions": "mpvss.options",
    "PixelPrediction": "mpvss.segmentors.protocol",
    "Prediction": "mpvss.segmentors.protocol",
    "Propagator": "mpvss.motion.propagator",
    "RunSummary": "mpvss.types",
    "Schedule": "mpvss.engine.schedule",
    "SegmentOptions": "mpvss.options",
    "Segmentation": "mpvss.types",
    "Segmentor": "mpvss.segmentors",
    "Session": "mpvss.engine.session",
    "Sink": "mpvss.outputs.sink",
    "SourceError": "mpvss.errors",
    "Stop": "mpvss.types",
    "TrainSummary": "mpvss.training.loop",
    "VideoInfo": "mpvss.video",
    "VideoSegmenter": "mpvss.segmenter",
    "build": "mpvss.convert.architectures",
    "make_propagator": "mpvss.motion.propagators",
    "overlay": "mpvss.outputs.draw",
    "palette_for": "mpvss.labels",
    "probe": "mpvss.video",
    "read": "mpvss.video",
    "wrap": "mpvss.segmentors.wrap",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'mpvss' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from mpvss._extras import missing_module

        message = missing_module(error)
        if message is None:
            raise
        raise message from error


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # which takes a fifth of the time of --help

    try:
        return version("mpvss")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
