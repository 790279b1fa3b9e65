"""One palette PNG per frame."""

import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mpvss._files import output_errors
from mpvss.labels import LabelMap, label_dtype
from mpvss.outputs.sink import Output, RunInfo
from mpvss.types import Segmentation


class PngWriter(Output):
    """Writes one PNG per label map into a new folder, called as its image was, or by frame index.

    Up to 255 classes a PNG holds ids and palette (8 bits); above, ids as 16-bit grey.

    Args:
        folder: Folder to write; replaced if it exists.
        palette: Colours in id order, RGB.

    Raises:
        OutputError: The folder cannot be written.
    """

    is_folder = True

    def __init__(self, folder: str | Path, palette: UInt8[np.ndarray, "K 3"]) -> None:
        self._dtype = label_dtype(len(palette))
        # All 256 colours: with fewer, Pillow writes fewer bits a pixel, and the ignore id does not fit.
        self._palette = palette.tobytes().ljust(3 * 256, b"\0")
        super().__init__(folder)

    def append(self, labels: LabelMap, index: int, name: str | None = None) -> None:
        """Write the label map of the frame at ``index``, or of the image of this name.

        Raises:
            OutputError: The file cannot be written.
            ValueError: The type of the labels does not fit the number of classes.
        """
        if labels.dtype != self._dtype:
            raise ValueError(f"expected labels of type {np.dtype(self._dtype)}, got {labels.dtype}")
        image = Image.fromarray(labels)
        if self._dtype is np.uint8:
            image.putpalette(self._palette)
        with output_errors(self._pending.path):
            path = self._pending.temporary / f"{f'{index:06d}' if name is None else name}.png"
            image.save(path, compress_type=zlib.Z_RLE)  # runs of one id: a third of the time, and smaller (docs/LOG.md)


class PngSink(PngWriter):
    """NAME.png, a folder."""

    ending = ".png"

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._names = info.reader.names
        super().__init__(path, info.palette)

    def write(self, result: Segmentation) -> None:
        """Write the frame's label map."""
        self.append(result.labels, result.index, self._names[result.index] if self._names else None)
