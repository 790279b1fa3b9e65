"""Video in: frames from any source. The only code that reads with PyAV."""

from mpvss import _opencv
from mpvss.video.info import VideoInfo
from mpvss.video.reader import Reader, read
from mpvss.video.sources import probe
from mpvss.video.times import parse_rate, parse_time

__all__ = ["Reader", "VideoInfo", "parse_rate", "parse_time", "probe", "read"]

_opencv.check()
