"""Efficient video segmentation: a query-based segmentor on key frames, its masks propagated to the frames between.

    from mpvss import VideoSegmenter

    segmenter = VideoSegmenter.from_pretrained("compact")
    for result in segmenter.stream("video.mp4"):
        print(result.index, result.is_key, result.labels.shape)

Names are imported when they are first used, so that ``import mpvss`` is quick.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpvss.convert.architectures import build
    from mpvss.engine.session import Session
    from mpvss.errors import ConfigError, DataError, ModelError, MpvssError, OptionError, OutputError, SourceError
    from mpvss.labels import palette_for
    from mpvss.motion.propagators import make_propagator
    from mpvss.options import OutputOptions, SegmentOptions
    from mpvss.outputs.draw import overlay
    from mpvss.outputs.labels import LabelReader
    from mpvss.segmenter import VideoSegmenter
    from mpvss.segmentors.protocol import InputRule, Prediction
    from mpvss.types import Frame, RunSummary, Segmentation
    from mpvss.video import probe, read

__all__ = [
    "ConfigError",
    "DataError",
    "Frame",
    "InputRule",
    "LabelReader",
    "ModelError",
    "MpvssError",
    "OptionError",
    "OutputError",
    "OutputOptions",
    "Prediction",
    "RunSummary",
    "SegmentOptions",
    "Segmentation",
    "Session",
    "SourceError",
    "VideoSegmenter",
    "__version__",
    "build",
    "make_propagator",
    "overlay",
    "palette_for",
    "probe",
    "read",
]

try:
    __version__ = version("mpvss")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_HOMES = {
    "ConfigError": "mpvss.errors",
    "DataError": "mpvss.errors",
    "Frame": "mpvss.types",
    "InputRule": "mpvss.segmentors.protocol",
    "LabelReader": "mpvss.outputs.labels",
    "ModelError": "mpvss.errors",
    "MpvssError": "mpvss.errors",
    "OptionError": "mpvss.errors",
    "OutputError": "mpvss.errors",
    "OutputOptions": "mpvss.options",
    "Prediction": "mpvss.segmentors.protocol",
    "RunSummary": "mpvss.types",
    "SegmentOptions": "mpvss.options",
    "Segmentation": "mpvss.types",
    "Session": "mpvss.engine.session",
    "SourceError": "mpvss.errors",
    "VideoSegmenter": "mpvss.segmenter",
    "build": "mpvss.convert.architectures",
    "make_propagator": "mpvss.motion.propagators",
    "overlay": "mpvss.outputs.draw",
    "palette_for": "mpvss.labels",
    "probe": "mpvss.video",
    "read": "mpvss.video",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mpvss' has no attribute {name!r}")
