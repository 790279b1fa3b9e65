"""Class scores, all propagated by one flow: the default.

Masks that share a flow need not be warped one by one and scored again: the key frame's class scores are made once, and
sampled where the flow points, and that only where the winner is in doubt (``doubt.py``). OpenCV does the work; its
calls are too short to divide between cores, so frames are divided between them instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from mpvss.engine.carriers.carrier import FlowCarrier, Image, Inference, Job
from mpvss.engine.decode import ClassScores, kept_ids, numbered, score_size
from mpvss.engine.doubt import MOST_PLANES, Sampled, Side
from mpvss.engine.enlarge import enlarged_winner
from mpvss.engine.fusion import WEIGHT_CELL, blend_weight, thumbnail
from mpvss.engine.packed import Packed, blend, keep_classes, pack, union_of_classes, unpack, warp_packed
from mpvss.engine.stage_clock import StageClock
from mpvss.engine.state import KeyState, PixelState
from mpvss.engine.view import View
from mpvss.motion.arrays import Flow, resize, resize_flow
from mpvss.motion.propagator import flow_grid, serves_both_ways
from mpvss.types import Frame, Geometry, Segmentation

# Class scores are quantised to 8 bits if in no more than this share of the pixels the best one is below one in 32 of
# the largest: with few levels ties are made.
_WEAK, _MOST_WEAK = 32, 0.005


@dataclass(frozen=True, eq=False)
class KeyScores:
    """A key frame as the frames around it need it.

    Attributes:
        scores: Its class scores.
        view: The frame as flows are estimated on it, of the size of the class scores.
        geometry: How the frame became the network's input.
    """

    scores: ClassScores
    view: View
    geometry: Geometry

    @property
    def image(self) -> Image:
        """The image of the view."""
        return self.view.image


class ClassScoreCarrier(FlowCarrier[KeyScores]):
    """Propagates class scores; see ``Carrier``."""

    def __init__(self, inference: Inference) -> None:
        """Begin a video."""
        super().__init__(inference, invertible=serves_both_ways(inference.propagator, inference.motion))
        self._ready: tuple[KeyScores, Packed | Side] | None = None

    def image_size(self, geometry: Geometry) -> tuple[int, int]:
        """Return the size of the class scores."""
        return score_size(geometry)

    def kept(self, state: KeyState | PixelState, scores: ClassScores, view: View) -> KeyScores:
        """Keep the classes that matter somewhere; all of them where shares are asked for."""
        return KeyScores(scores if self.inference.confidence else keep_classes(scores), view, state.geometry)

    def estimate(self, current: View, other: View, key: KeyScores) -> Flow:
        """Return one flow for all classes, on a coarser grid than the scores."""
        size = score_size(key.geometry)
        grid = flow_grid(size)
        return self.inference.flow(current, other, size, grid)

    def from_one(self, frame: Frame, key: KeyScores, flow: Flow) -> Segmentation:
        """Label a frame from the scores of one key frame, which are made ready once for all of its frames."""
        if self._ready is None or self._ready[0] is not key:
            with self.clock("propagate"):
                self._ready = (key, self._made_ready(pack(key.scores, top=self._top(key.scores))))
        return self._label(frame, [self._ready[1]], [flow[0]], [], self.clock)

    def _made_ready(self, packed: Packed) -> Packed | Side:
        """Find where there is no doubt, unless all scores are asked for, or classes are too many."""
        whole = self.inference.confidence or self.inference.min_score or len(packed.ids) > MOST_PLANES
        return packed if whole else Side.of(packed)

    def _label(
        self,
        frame: Frame,
        sides: Sequence[Packed | Side],
        flows: Sequence[Float32[np.ndarray, "2 h w"]],
        weights: Sequence[Float32[np.ndarray, "H W"]],
        clock: StageClock,
    ) -> Segmentation:
        """Label a frame from one key frame, or from two with weights."""
        certain = [side for side in sides if isinstance(side, Side)]
        with clock("propagate"):
            if certain:
                sampled = Sampled(certain, flows, weights)
            else:
                warped = [warp_packed(side, flow) for side, flow in zip(sides, flows, strict=True)]  # type: ignore[arg-type]
                scores = unpack(blend((warped[0], warped[1]), (weights[0], weights[1])) if weights else warped[0])
        with clock("decode"):
            if not certain:
                return self.inference.label(frame, scores, is_key=False)
            winner, packed = sampled.winner, certain[0].packed
            if winner.shape != frame.size:
                winner = enlarged_winner(sampled.planes(), frame.size, winner)
            labels = numbered(winner, kept_ids(packed.ids, packed.num_classes, self.inference.classes))
            return Segmentation(frame, labels, False, class_names=self.inference.class_names)

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
            grid = (-(-size[0] // WEIGHT_CELL), -(-size[1] // WEIGHT_CELL))
            ids, top = union_of_classes(before.scores, after.scores), self._top(before.scores, after.scores)
            ready = [self._made_ready(pack(key.scores, ids, top)) for key in (before, after)]
            small = [thumbnail(key.image, size, grid) for key in (before, after)]
        gap = len(jobs) + 1

        def fuse_one(job: tuple[int, Job, StageClock]) -> Segmentation:
            distance, (frame, image, *flows), clock = job
            with clock("propagate"):
                current = thumbnail(image, size, grid)
                weights = []
                for other, flow, frames in zip(small, flows, (distance, gap - distance), strict=True):
                    weight = blend_weight(current, other, resize_flow(flow, grid)[0], frames, gap, size)
                    weights.append(resize(weight[None], size)[0])
            return self.spilled(self._label(frame, ready, [flow[0] for flow in flows], weights, clock))

        clocks = [StageClock() for _ in jobs]
        with self.clock.shared(clocks):
            return self.map(fuse_one, zip(range(1, gap), jobs, clocks, strict=True))
