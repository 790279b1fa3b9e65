"""Query masks, each with a flow of its own: the paper's way (sections 3.2 and 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpvss.engine.carriers.carrier import NO_QUERIES, FlowCarrier, Image, Job
from mpvss.engine.decode import ClassScores
from mpvss.engine.fusion import blend_weight, thumbnail, visible_flow
from mpvss.engine.state import KeyState, PixelState, WarpedPrediction
from mpvss.engine.view import View
from mpvss.errors import ModelError
from mpvss.motion.arrays import Flow, warp_each
from mpvss.types import Frame, Geometry, Segmentation


@dataclass(frozen=True, eq=False)
class KeyQueries:
    """A key frame as the frames around it need it.

    Attributes:
        state: The active queries with their classes and masks.
        view: The frame as flows are estimated on it, of the network's size.
    """

    state: KeyState
    view: View

    @property
    def image(self) -> Image:
        """The image of the view."""
        return self.view.image


class QueryCarrier(FlowCarrier[KeyQueries]):
    """Propagates the masks of the active queries; see ``Carrier``."""

    def image_size(self, geometry: Geometry) -> tuple[int, int]:
        """Return the network's size."""
        return geometry.resized

    def kept(
        self,
        state: KeyState | PixelState,
        scores: ClassScores,  # noqa: ARG002
        view: View,
    ) -> KeyQueries:
        """Keep the active queries.

        Raises:
            ModelError: The segmentor has none.
        """
        if isinstance(state, PixelState):
            raise ModelError(NO_QUERIES)
        return KeyQueries(state.only_active(self.inference.tolerance), view)

    def estimate(self, current: View, other: View, key: KeyQueries) -> Flow:
        """Return one flow for each active query, on the mask grid."""
        state = key.state
        grid = (state.mask_logits.shape[-2], state.mask_logits.shape[-1])
        return self.inference.flow(current, other, state.geometry.padded, grid, state.queries[None], state.active)

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
