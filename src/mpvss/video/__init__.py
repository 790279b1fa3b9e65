"""Video in and out: frames from any source, and the files that are written. The only code that touches PyAV."""

from mpvss.video.probe import VideoInfo, probe
from mpvss.video.read import Reader, parse_time, read
from mpvss.video.store import LabelReader, LabelWriter, MetaWriter, PngWriter, write_meta
from mpvss.video.write import OverlayWriter

__all__ = [
    "LabelReader",
    "LabelWriter",
    "MetaWriter",
    "OverlayWriter",
    "PngWriter",
    "Reader",
    "VideoInfo",
    "parse_time",
    "probe",
    "read",
    "write_meta",
]
