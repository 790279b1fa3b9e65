"""Query masks, each with a flow of its own: the paper's way (sections 3.2 and 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from mpvss.engine.carriers.carrier import FlowCarrier, Image, Job
from mpvss.engine.decode import ClassScores
from mpvss.engine.fusion import blend_weight, thumbnail, visible_flow
from mpvss.engine.state import KeyState, PixelState, WarpedPrediction
from mpvss.errors import ModelError
from mpvss.motion.arrays import Flow, warp_each
from mpvss.types import Frame, Geometry, Segmentation


@dataclass(frozen=True, eq=False)
class KeyQueries:
    """A key frame as the frames around it need it.

    Attributes:
        state: The active queries with their classes and masks.
        image: The image that flows are estimated on, of the network's size.
    """

    state: KeyState
    image: UInt8[np.ndarray, "H W 3"]


class QueryCarrier(FlowCarrier[KeyQueries]):
    """Propagates the masks of the active queries; see ``Carrier``."""

    def image_size(self, geometry: Geometry) -> tuple[int, int]:
        """Return the network's size."""
        return geometry.resized

    def kept(
        self,
        state: KeyState | PixelState,
        scores: ClassScores,  # noqa: ARG002
        image: UInt8[np.ndarray, "H W 3"],
    ) -> KeyQueries:
        """Keep the active queries.

        Raises:
            ModelError: The segmentor has none.
        """
        if isinstance(state, PixelState):
            raise ModelError(
                "this segmentor gives a class to each pixel and has no queries: use a propagator that moves all "
                "classes alike, such as dis, instead of query"
            )
        return KeyQueries(state.only_active(self.inference.tolerance), image)

    def estimate(self, current: Image, other: Image, key: KeyQueries) -> Flow:
        """Return one flow for each active query, on the mask grid."""
        state = key.state
        grid = (state.mask_logits.shape[-2], state.mask_logits.shape[-1])
        flow = self.inference.propagator.estimate_flow(
            current[None], other[None], state.queries[None], state.geometry.padded, grid, state.active
        )
        return np.asarray(flow[0], np.float32)

    def from_one(self, frame: Frame, key: KeyQueries, flow: Flow) -> Segmentation:
        """Label a frame from the warped masks of one key frame."""
        with self.clock("propagate"):
            prediction = WarpedPrediction(key.state.class_logits, warp_each(key.state.mask_logits, flow))
        with self.clock("decode"):
            return self.inference.label(frame, self.inference.score([prediction], key.state.geometry), is_key=False)

    def fuse(self, jobs: Sequence[Job], before: KeyQueries, after: KeyQueries) -> list[Segmentation]:
        """Blend the class scores of both key frames' masks, every mask warped by its own flow."""
        geometry = before.state.geometry
        grid = (before.state.mask_logits.shape[-2], before.state.mask_logits.shape[-1])
        gap = len(jobs) + 1
        with self.clock("propagate"):
            small = [thumbnail(key.image, geometry.padded, grid) for key in (before, after)]
        results = []
        for distance, (frame, image, *flows) in enumerate(jobs, 1):
            with self.clock("propagate"):
                current = thumbnail(image, geometry.padded, grid)
                predictions = []
                for key, other, flow, frames in zip(
                    (before.state, after.state), small, flows, (distance, gap - distance), strict=True
                ):
                    masks = warp_each(key.mask_logits, flow)
                    shown = visible_flow(flow, key.class_logits, masks)
                    weight = blend_weight(current, other, shown, frames, gap, geometry.padded)
                    predictions.append(WarpedPrediction(key.class_logits, masks, weight))
            with self.clock("decode"):
                scores = self.inference.score(predictions, geometry)
                results.append(self.spilled(self.inference.label(frame, scores, is_key=False)))
        return results
