"""What the pipeline asks of a propagator."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss.types import MotionVectors

FLOW_GRID = 2 / 3
"""A side of the grid on which flows that warp class scores are estimated and chained, as a share of the scores'."""


def flow_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of that grid, for class scores of this size."""
    return max(1, round(size[0] * FLOW_GRID)), max(1, round(size[1] * FLOW_GRID))


def serves_both_ways(propagator: "Propagator", motion: str) -> bool:
    """Whether a flow between neighbours is estimated once for both directions, and inverted for the other one.

    So it is where one flow warps everything and flows are chained; the flow of a query belongs to one key frame.
    """
    return motion == "chain" and not propagator.per_query


@runtime_checkable
class Propagator(Protocol):
    """Anything that estimates backward flow between two images of a video. Stateless.

    ``name`` is what the command line calls it. ``per_query`` says whether each query gets a flow of its own, on the
    grid of the masks; one flow for all of them is estimated at ``FLOW_GRID`` of the size of the class scores.

    A propagator is called by one thread at a time, unless it has an attribute ``thread_safe`` that is true.
    """

    name: str
    per_query: bool

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],
        queries: Float32[np.ndarray, "1 Q D"] | None,
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,
    ) -> Float32[np.ndarray, "B G 2 h w"]:
        """Estimate where the content of each pixel of ``current`` was in ``other``.

        Args:
            current: Images, RGB 0..255, not padded: of the network's size with ``per_query``, else of
                the size of the class scores.
            other: The key frame, or the neighbours when flows are chained: one for all (Bo = 1) or one each (Bo = B).
            queries: The key frame's query embeddings; propagators without queries ignore them.
            padded: Size that the grid covers: the image, padded at right and bottom where there are masks.
            grid: Size of the grid of the flow.
            active: Queries whose flow is estimated; ``None`` for all.

        Returns:
            Backward flow in pixels of that grid, order (x, y): one per active query (G = A) or one for all.
        """
        ...


@runtime_checkable
class FollowsVectors(Propagator, Protocol):
    """A propagator that makes a flow from a stream's own motion vectors where it can, and otherwise from the images."""

    @property
    def fallback(self) -> Propagator:
        """What estimates flows from the images."""
        ...

    def flow_along(
        self,
        vectors: MotionVectors,
        current: UInt8[np.ndarray, "H W 3"],
        other: UInt8[np.ndarray, "H W 3"],
        padded: tuple[int, int],
        grid: tuple[int, int],
    ) -> Float32[np.ndarray, "1 2 h w"] | None:
        """Return the flow from a frame to the one before it, or ``None`` where its vectors will not do.

        Args:
            vectors: Those of the current frame.
            current: Its image, RGB 0..255, not padded, of any size.
            other: The image of the frame before it.
            padded: Size that the grid covers, as for ``Propagator.estimate_flow``.
            grid: Size of the grid of the flow.
        """
        ...
