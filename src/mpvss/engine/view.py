"""Frames as flows are estimated on them, and what the flows of a video came from."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from mpvss.types import MotionVectors

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """A frame as flows are estimated on it.

    Attributes:
        image: Its image, of the size that the propagator is given.
        index: Position of the frame in the source.
        vectors: The stream's motion vectors from it to the frame with the index before.
    """

    image: UInt8[np.ndarray, "H W 3"]
    index: int
    vectors: MotionVectors | None = None


class FlowTally:
    """Counts what flows were made from, where a propagator falls back on another; several threads may count."""

    def __init__(self) -> None:
        """Begin a video."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._said = False

    @property
    def counts(self) -> Mapping[str, int]:
        """Flows by the propagator that made them; none where there is no other."""
        return dict(self._counts)

    def add(self, name: str) -> None:
        """Count a flow."""
        with self._lock:
            self._counts[name] += 1

    def report(self, propagator: str) -> None:
        """Say once how many flows another propagator had to make."""
        total, others = self._counts.total(), {name for name in self._counts if name != propagator}
        if others and not self._said:
            self._said = True
            log.warning(
                "propagator %s: %d of %d flows by %s: those frames have no motion vectors to the frame before, or too "
                "few that fit (H.264 and MPEG-4 without B frames have)",
                propagator, total - self._counts[propagator], total, ", ".join(sorted(others)),
            )  # fmt: skip
