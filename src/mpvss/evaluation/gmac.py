"""Multiply-adds of the frames of a segmenter, counted in one place for evaluations and benchmarks."""

import math
from dataclasses import dataclass

from mpvss.engine.decode import score_size
from mpvss.engine.state import KeyState, PixelState
from mpvss.motion.propagator import serves_both_ways
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.protocol import prepare
from mpvss.types import Frame


@dataclass(frozen=True)
class FrameGmac:
    """Billions of multiply-adds (GMAC), by the rule of ``mpvss cost``.

    Attributes:
        key: Of a key frame, decoding included.
        flow: Of one flow.
        side: Of the rest of one side of a frame between: the warp, and decoding where the masks are warped.
    """

    key: float
    flow: float
    side: float

    def of_interval(self, interval: int, *, flows: int, sides: int) -> tuple[float | None, float]:
        """Return the GMAC of a frame between, ``None`` where there is none, and of a frame on average."""
        if interval == 1:
            return None, self.key
        non_key = flows / (interval - 1) * self.flow + sides * self.side
        return non_key, (self.key + (interval - 1) * non_key) / interval


def flows_of_interval(segmenter: VideoSegmenter, direction: str, interval: int) -> int:
    """Return the flows of an interval: of those that serve both sides there is one more than frames between."""
    shared = segmenter.propagator is not None and serves_both_ways(segmenter.propagator, segmenter.options.motion)
    if direction == "both" and shared and interval > 1:
        return interval
    return (interval - 1) * (2 if direction == "both" else 1)


def count_frame_gmac(segmenter: VideoSegmenter, frame: Frame) -> FrameGmac:
    """Count the multiply-adds of a segmenter whose networks run in torch.

    Networks are counted as they run, on the padded image, which is how the paper counts; a resized or warped value
    costs 4; decoding is that of all queries and classes at the size of the image. With one flow for all queries nothing
    is decoded between key frames: the scores of all classes are warped.

    Args:
        segmenter: A segmentor and its propagator.
        frame: An image of the size that counts.
    """
    from mpvss.convert.cost import count_gmac

    image, geometry = prepare(frame, segmenter.rule)
    states: list[KeyState | PixelState] = []
    key = count_gmac(lambda: states.extend(segmenter.segment([frame], [image], geometry)))
    state, propagator = states[0], segmenter.propagator
    if isinstance(state, PixelState):
        queries, grid, classes = None, score_size(geometry), len(state.maps)
        decoding = 4 * classes * math.prod(geometry.source) / 1e9
    else:
        queries, classes = state.queries[None], state.class_logits.shape[1] - 1
        grid = (state.mask_logits.shape[-2], state.mask_logits.shape[-1])
        decoding = len(state.queries) * (classes * math.prod(geometry.resized) + 4 * math.prod(geometry.padded)) / 1e9
    if propagator is None:
        return FrameGmac(key + decoding, 0.0, 0.0)
    estimate = propagator.estimate_flow
    flow = count_gmac(lambda: estimate(image[None], image[None], queries, geometry.padded, grid))
    if not propagator.per_query or isinstance(state, PixelState):
        return FrameGmac(key + decoding, flow, 4 * classes * math.prod(score_size(geometry)) / 1e9)
    return FrameGmac(key + decoding, flow, 4 * len(state.queries) * math.prod(grid) / 1e9 + decoding)
