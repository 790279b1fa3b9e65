"""Class scores, all propagated by one flow: the default.

Masks that share a flow need not be warped one by one and scored again: the key frame's class scores are made once, and
sampled where the flow points. OpenCV does the work; its calls are too short to divide between cores, so frames are
divided between them instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpvss.engine.carriers.carrier import FlowCarrier, Image, Inference, Job
from mpvss.engine.decode import ClassScores, score_size
from mpvss.engine.fusion import blend_weight, thumbnail
from mpvss.engine.packed import Packed, blend, keep_classes, pack, union_of_classes, unpack, warp_packed
from mpvss.engine.stage_clock import StageClock
from mpvss.engine.state import KeyState, PixelState
from mpvss.motion.arrays import Flow, resize, resize_flow
from mpvss.motion.propagator import FLOW_GRID, serves_both_ways
from mpvss.types import Frame, Geometry, Segmentation

# Pixels of the class scores per cell, a side, of the grid that weights are estimated on.
_WEIGHT_CELL = 4
# Class scores are quantised to 8 bits if in no more than this share of the pixels the best one is below one in 32 of
# the largest: with few levels ties are made.
_WEAK, _MOST_WEAK = 32, 0.005


@dataclass(frozen=True, eq=False)
class KeyScores:
    """A key frame as the frames around it need it.

    Attributes:
        scores: Its class scores.
        image: The image that flows are estimated on, of the size of the class scores.
        geometry: How the frame became the network's input.
    """

    scores: ClassScores
    image: Image
    geometry: Geometry


class ClassScoreCarrier(FlowCarrier[KeyScores]):
    """Propagates class scores; see ``Carrier``."""

    def __init__(self, inference: Inference) -> None:
        """Begin a video."""
        super().__init__(inference, invertible=serves_both_ways(inference.propagator, inference.motion))
        self._packed: tuple[KeyScores, Packed] | None = None

    def image_size(self, geometry: Geometry) -> tuple[int, int]:
        """Return the size of the class scores."""
        return score_size(geometry)

    def kept(self, state: KeyState | PixelState, scores: ClassScores, image: Image) -> KeyScores:
        """Keep the classes that matter somewhere; all of them where shares are asked for."""
        return KeyScores(scores if self.inference.confidence else keep_classes(scores), image, state.geometry)

    def estimate(self, current: Image, other: Image, key: KeyScores) -> Flow:
        """Return one flow for all classes, on a coarser grid than the scores."""
        size = score_size(key.geometry)
        grid = (max(1, round(size[0] * FLOW_GRID)), max(1, round(size[1] * FLOW_GRID)))
        flow = self.inference.propagator.estimate_flow(current[None], other[None], None, size, grid, None)
        return np.asarray(flow[0], np.float32)

    def from_one(self, frame: Frame, key: KeyScores, flow: Flow) -> Segmentation:
        """Label a frame from the warped scores of one key frame, which are packed once for all of its frames."""
        with self.clock("propagate"):
            if self._packed is None or self._packed[0] is not key:
                self._packed = (key, pack(key.scores, top=self._top(key.scores)))
            warped = warp_packed(self._packed[1], flow[0])
        with self.clock("decode"):
            return self.inference.label(frame, unpack(warped), is_key=False)

    def _top(self, *scores: ClassScores) -> float | None:
        """Return the score that the largest of 8 bits stands for, or ``None`` where 8 bits will not do.

        They will not where a share of all scores or a least score is asked for, nor where the best score of many pixels
        is a few levels.
        """
        if self.inference.confidence or self.inference.min_score:
            return None
        best = [item.planes.max(0) for item in scores]
        top = max(float(plane.max()) for plane in best)
        weak = max(float(np.mean(plane * _WEAK < top)) for plane in best)
        return top if top > 0 and weak <= _MOST_WEAK else None

    def fuse(self, jobs: Sequence[Job], before: KeyScores, after: KeyScores) -> list[Segmentation]:
        """Blend the class scores of both key frames, each warped by its flow."""
        with self.clock("propagate"):
            size = score_size(before.geometry)
            grid = (-(-size[0] // _WEIGHT_CELL), -(-size[1] // _WEIGHT_CELL))
            ids, top = union_of_classes(before.scores, after.scores), self._top(before.scores, after.scores)
            sides = [(pack(key.scores, ids, top), thumbnail(key.image, size, grid)) for key in (before, after)]
        gap = len(jobs) + 1

        def fuse_one(job: tuple[int, Job, StageClock]) -> Segmentation:
            distance, (frame, image, *flows), clock = job
            with clock("propagate"):
                current = thumbnail(image, size, grid)
                weights, warped = [], []
                for (packed, small), flow, frames in zip(sides, flows, (distance, gap - distance), strict=True):
                    warped.append(warp_packed(packed, flow[0]))
                    weight = blend_weight(current, small, resize_flow(flow, grid)[0], frames, gap, size)
                    weights.append(resize(weight[None], size)[0])
                fused = blend((warped[0], warped[1]), (weights[0], weights[1]))
            with clock("decode"):
                return self.spilled(self.inference.label(frame, unpack(fused), is_key=False))

        clocks = [StageClock() for _ in jobs]
        with self.clock.shared(clocks):
            return self.map(fuse_one, zip(range(1, gap), jobs, clocks, strict=True))
