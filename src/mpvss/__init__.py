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
    from mpvss.errors import MpvssError
    from mpvss.segmenter import VideoSegmenter
    from mpvss.types import Frame, Segmentation

__all__ = ["Frame", "MpvssError", "Segmentation", "VideoSegmenter", "__version__", "build"]

try:
    __version__ = version("mpvss")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_HOMES = {
    "Frame": "mpvss.types",
    "MpvssError": "mpvss.errors",
    "Segmentation": "mpvss.types",
    "VideoSegmenter": "mpvss.segmenter",
    "build": "mpvss.convert.architectures",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mpvss' has no attribute {name!r}")
