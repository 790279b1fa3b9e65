"""What is written: overlay, labels, PNG, NAME.json. The only code that writes media."""

from mpvss.outputs.labels import LabelReader, LabelWriter, MetaWriter, PngWriter
from mpvss.outputs.overlay import OverlayWriter

__all__ = ["LabelReader", "LabelWriter", "MetaWriter", "OverlayWriter", "PngWriter"]
