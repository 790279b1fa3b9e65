"""Propagators that need no training: hold, and OpenCV's DIS optical flow.

Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (ECCV 2016).
"""

import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss.motion.arrays import Flow, resize_flow
from mpvss.motion.propagator import FLOW_GRID

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
# Our own: the share of the image's size, and the pixels from one patch to the next.
_OWN = {"lean": (FLOW_GRID, 6), "fine": (1.0, 7)}
# Square roots of brightness, 0..255: what moves in the dark counts as much as what moves in the light.
_ROOTS = np.sqrt(np.arange(256) * 255).round().astype(np.uint8)
# Below this side DIS has no pyramid level to work on.
_SMALLEST = 16


class Hold:
    """Zero flow: every frame repeats its key frame's masks."""

    name = "hold"
    per_query = False
    thread_safe = True

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],  # noqa: ARG002 - a propagator's signature
        queries: Float32[np.ndarray, "1 Q D"] | None,  # noqa: ARG002
        padded: tuple[int, int],  # noqa: ARG002
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,  # noqa: ARG002
    ) -> Float32[np.ndarray, "B 1 2 h w"]:
        """Return zeros; see ``Propagator.estimate_flow``."""
        return np.zeros((len(current), 1, 2, *grid), np.float32)


@dataclass
class Dis:
    """One DIS flow for all masks, on square roots of the brightness of the images.

    Attributes:
        preset: ``ultrafast``, ``fast`` or ``medium`` of OpenCV; or, more accurate in less time (docs/LOG.md), ``lean``
            at two thirds of the size and ``fine`` at the full size: searched to the last pyramid level, patches that
            hardly overlap, and no variational refinement.
        scale: The images are resized by this factor first; half the size costs about a tenth.
        finest_scale: Pyramid level at which the search stops, 0 the size searched in; ``None`` for the preset's own.
    """

    preset: str = "lean"
    scale: float = 1.0
    finest_scale: int | None = None
    name: str = field(default="dis", init=False)
    per_query: bool = field(default=False, init=False)
    thread_safe: ClassVar[bool] = True
    _local: threading.local = field(default_factory=threading.local, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.preset not in _PRESETS | _OWN:
            raise ValueError(f"preset must be one of {', '.join(_PRESETS | _OWN)}, got {self.preset!r}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, got {self.scale}")
        if self.finest_scale is not None and self.finest_scale < 0:
            raise ValueError(f"finest_scale must be at least 0, got {self.finest_scale}")

    def _share(self) -> float:
        return self.scale * (_OWN[self.preset][0] if self.preset in _OWN else 1.0)

    def _engine(self) -> Any:
        # The search object keeps buffers of one image size and is not safe to share between threads.
        engine = getattr(self._local, "engine", None)
        if engine is None:
            engine = cv2.DISOpticalFlow.create(_PRESETS.get(self.preset, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM))
            if self.preset in _OWN:
                engine.setFinestScale(0)
                engine.setPatchStride(_OWN[self.preset][1])
                engine.setGradientDescentIterations(24)
                engine.setVariationalRefinementIterations(0)
                # Patches by their own mean stop short of large motions; the whole images share one mean instead.
                engine.setUseMeanNormalization(False)
            if self.finest_scale is not None:
                engine.setFinestScale(self.finest_scale)
            self._local.engine = engine
        return engine

    def _grey(self, image: UInt8[np.ndarray, "H W 3"], padded: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        bottom, right = padded[0] - grey.shape[0], padded[1] - grey.shape[1]
        if bottom or right:
            # Pad before scaling, so that the flow's grid covers exactly what the masks' grid covers.
            grey = cv2.copyMakeBorder(grey, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        share = self._share()
        if share < 1:
            size = (max(_SMALLEST, round(padded[1] * share)), max(_SMALLEST, round(padded[0] * share)))
            # Averaging over cells of one and a half pixels would take five times as long, for the same flow.
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if share <= 0.5 else cv2.INTER_LINEAR)
        return np.asarray(cv2.LUT(grey, _ROOTS))

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],
        queries: Float32[np.ndarray, "1 Q D"] | None,  # noqa: ARG002 - a propagator's signature
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,  # noqa: ARG002
    ) -> Float32[np.ndarray, "B 1 2 h w"]:
        """Return one flow for all masks; see ``Propagator.estimate_flow``."""
        if min(padded) * self._share() < _SMALLEST:
            return np.zeros((len(current), 1, 2, *grid), np.float32)
        flows = []
        for now, then in zip(current, np.broadcast_to(other, (len(current), *other.shape[1:])), strict=True):
            here, there = self._grey(now, padded), self._grey(then, padded)
            flow = self._engine().calc(here, _exposed_alike(here, there), None)
            planes = np.empty((1, 2, *flow.shape[:2]), np.float32)
            cv2.mixChannels([flow], list(planes[0]), [0, 0, 1, 1])
            flows.append(_to_grid(planes, grid))
        return np.stack(flows) if len(flows) > 1 else flows[0][None]


def _exposed_alike(here: UInt8[np.ndarray, "h w"], there: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Shift ``there`` to the mean of ``here`` if that brings them closer: an exposure that changes is no motion.

    Something bright that comes in changes the mean, too, but then the rest of the images is alike as it is.
    """
    scaled = cv2.convertScaleAbs(there, alpha=max(1.0, cv2.mean(here)[0]) / max(1.0, cv2.mean(there)[0]))
    closer = cv2.norm(here, scaled, cv2.NORM_L1) < cv2.norm(here, there, cv2.NORM_L1)
    return np.asarray(scaled if closer else there)


def _to_grid(flow: Flow, grid: tuple[int, int]) -> Float32[np.ndarray, "1 2 H W"]:
    """Average the flow over each cell of a coarser grid, so that the cell follows most of its pixels."""
    height, width = flow.shape[-2:]
    if grid[0] >= height or grid[1] >= width:
        return resize_flow(flow, grid)
    planes = [cv2.resize(plane, grid[::-1], interpolation=cv2.INTER_AREA) for plane in flow[0]]
    ratio = np.array([grid[1] / width, grid[0] / height], np.float32)
    return np.stack(planes)[None] * ratio[:, None, None]
