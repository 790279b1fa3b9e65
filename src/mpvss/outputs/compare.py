"""The comparison: the segmentor's own result on every frame beside the propagated one."""

import math
from pathlib import Path
from typing import Any

import cv2

from mpvss.metrics import SMALLEST_FLOW, Flicker, Matcher
from mpvss.outputs import draw
from mpvss.outputs.overlay import SourceVideo
from mpvss.outputs.planes import to_planes
from mpvss.outputs.sink import RunInfo
from mpvss.types import Segmentation


class CompareSink(SourceVideo):
    """NAME.compare.mp4; ``beside`` says what each result is compared with."""

    ending = ".compare.mp4"

    def __init__(self, path: Path, info: RunInfo) -> None:
        super().__init__(path, info, draw.side_by_side_size(info.reader.info.size))
        self._drawers = (draw.ResultDrawer(info), draw.ResultDrawer(info))
        self._flicker, self._matcher = (Flicker(), Flicker()), Matcher(quick=True)
        self._per_frame: Segmentation | None = None
        self._seconds = (0.0, 0.0)

    @property
    def flicker(self) -> tuple[float, float]:
        """Flicker so far, per frame and propagated, 0 to 1; NaN before the second frame."""
        return self._flicker[0].value, self._flicker[1].value

    def beside(self, per_frame: Segmentation, seconds: tuple[float, float]) -> None:
        """Say what the next result is compared with.

        Args:
            per_frame: The segmentor's own result on that frame.
            seconds: Mean seconds a frame so far, per frame and propagated.
        """
        self._per_frame, self._seconds = per_frame, seconds

    def write(self, result: Segmentation) -> None:
        """Append both results, each under its name, time and flicker."""
        if self._per_frame is None:
            raise ValueError("expected the segmentor's own result to compare with, got none")
        results, self._per_frame = (self._per_frame, result), None
        if min(result.frame.size) >= SMALLEST_FLOW:  # one flow serves both
            matches = self._matcher.next(result.frame.rgb, result.frame.size)
            for flicker, shown in zip(self._flicker, results, strict=True):
                flicker.compare(shown.labels, matches)
        captions, images = [], []
        size = draw.half_size(result.frame.size)
        frame = to_planes(_resized(result.frame.rgb, size, cv2.INTER_AREA))
        for name, flicker, drawer, shown, seconds in zip(
            ("per frame", "propagated"), self._flicker, self._drawers, results, self._seconds, strict=True
        ):
            share = "" if math.isnan(flicker.value) else f"   flicker {100 * flicker.value:.2f} %"
            captions.append(f"{name}   {1000 * seconds:.0f} ms{share}")
            images.append(frame.copy())
            drawer.draw(images[-1], _resized(shown.labels, size, cv2.INTER_NEAREST))
        keys = (results[0].is_key, result.is_key)
        self.append_planes(draw.side_by_side(images[0], images[1], (captions[0], captions[1]), keys), result.pts)


def _resized(image: Any, size: tuple[int, int], interpolation: int) -> Any:
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=interpolation)
