"""Video in: frames from any source. The only code that reads with PyAV."""

from mpvss.video.info import VideoInfo
from mpvss.video.reader import Reader, parse_rate, parse_time, read
from mpvss.video.sources import probe

__all__ = ["Reader", "VideoInfo", "parse_rate", "parse_time", "probe", "read"]
