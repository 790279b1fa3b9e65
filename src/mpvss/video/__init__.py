"""Video in and out: frames from any source, and the files that are written. The only code that touches PyAV."""

from mpvss.video.listed import FrameList, fingerprint, read_listed
from mpvss.video.probe import VideoInfo, probe
from mpvss.video.read import Reader, parse_rate, parse_time, read
from mpvss.video.store import LabelReader, LabelWriter, MetaWriter, PngWriter, write_meta
from mpvss.video.write import OverlayWriter

__all__ = [
    "FrameList",
    "LabelReader",
    "LabelWriter",
    "MetaWriter",
    "OverlayWriter",
    "PngWriter",
    "Reader",
    "VideoInfo",
    "fingerprint",
    "parse_rate",
    "parse_time",
    "probe",
    "read",
    "read_listed",
    "write_meta",
]
