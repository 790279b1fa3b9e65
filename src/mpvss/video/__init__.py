"""Video in: frames from any source. The only code that reads with PyAV."""

from mpvss.video.media import VideoInfo, probe
from mpvss.video.reader import Reader, parse_rate, parse_time, read

__all__ = ["Reader", "VideoInfo", "parse_rate", "parse_time", "probe", "read"]
