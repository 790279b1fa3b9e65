"""What is written: overlay, labels, PNG, NAME.json. The only code that writes media."""

from mpvss.outputs.labels import LabelReader, LabelWriter
from mpvss.outputs.mp4 import Mp4Writer
from mpvss.outputs.png import PngWriter
from mpvss.outputs.summary import MetaWriter

__all__ = ["LabelReader", "LabelWriter", "MetaWriter", "Mp4Writer", "PngWriter"]
