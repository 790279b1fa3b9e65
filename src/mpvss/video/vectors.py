"""What a video stream says itself of the motion in it: the vectors its decoder copied blocks of pixels by."""

from typing import Any, cast

import av
import numpy as np
from av.video.frame import PictureType
from jaxtyping import Float32

from mpvss.types import BLOCK, MotionVectors

CODECS = ("h264", "mpeg4")
"""Codecs whose decoders tell their vectors, and whose vectors were measured (docs/LOG.md)."""


class StepVectors:
    """Takes decoded frames in display order, and gives the vectors that point to the frame displayed before.

    A frame has none where a decoder gives none (another codec, nothing but intra blocks), where it may be predicted
    from another frame than the one before (frames of type B, and those after them), where its vectors are those of
    fields, and where the size changes.
    """

    def __init__(self, codec: str) -> None:
        self._known = codec in CODECS
        self._former: tuple[int, int, bool] | None = None

    def push(self, frame: av.VideoFrame) -> MotionVectors | None:
        """Return the vectors of the next frame, if it has any that can be used."""
        size, former = (frame.height, frame.width), self._former
        reference = frame.pict_type in (PictureType.I, PictureType.P)
        self._former = (*size, reference)
        if former != (*size, True) or frame.pict_type != PictureType.P or not self._known:
            return None
        if frame.interlaced_frame or frame.is_corrupt:
            return None
        data = cast(Any, frame.side_data.get("MOTION_VECTORS"))
        table = None if data is None else data.to_ndarray()
        if table is None or not len(table) or (table["source"] > 0).any():
            return None
        return MotionVectors(_blocks(table, size), size)


def _blocks(table: np.ndarray, size: tuple[int, int]) -> Float32[np.ndarray, "2 h w"]:
    """Sort FFmpeg's table of blocks of 8 or 16 pixels a side into a grid of blocks of 8; NaN where there is none.

    The table gives the centre of each block, and its vector in fractions of a pixel. The grid covers whole macroblocks,
    as the decoder does, and ends with the image.
    """
    rows, columns = (-(-side // BLOCK) for side in size)
    grid = np.full((rows + 2, columns + 2, 2), np.nan, np.float32)
    steps = np.stack([table["motion_x"], table["motion_y"]], 1) / np.maximum(table["motion_scale"], 1)[:, None]
    width, height = table["w"].astype(np.int32), table["h"].astype(np.int32)
    left, top = (table["dst_x"] - width // 2) // BLOCK, (table["dst_y"] - height // 2) // BLOCK
    inside = (left >= 0) & (left < columns) & (top >= 0) & (top < rows)
    if not inside.all():
        steps, width, height, left, top = (each[inside] for each in (steps, width, height, left, top))
    wide, high = width > BLOCK, height > BLOCK
    grid[top, left] = steps
    grid[top[wide], left[wide] + 1] = steps[wide]
    grid[top[high] + 1, left[high]] = steps[high]
    large = wide & high
    grid[top[large] + 1, left[large] + 1] = steps[large]
    return np.ascontiguousarray(grid[:rows, :columns].transpose(2, 0, 1))
