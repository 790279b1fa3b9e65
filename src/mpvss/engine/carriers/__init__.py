"""Carriers: what is kept of a key frame, and how it is propagated to the frames around it. One file a carrier."""

from typing import Any

from mpvss.engine.carriers.carrier import Carrier, Inference
from mpvss.engine.carriers.class_scores import ClassScoreCarrier
from mpvss.engine.carriers.queries import QueryCarrier

__all__ = ["CARRIERS", "Carrier", "ClassScoreCarrier", "Inference", "QueryCarrier", "make_carrier"]

CARRIERS: dict[str, type[Any]] = {"class_scores": ClassScoreCarrier, "queries": QueryCarrier}


def make_carrier(inference: Inference, name: str | None = None) -> Carrier[Any]:
    """Return a carrier for one video.

    Args:
        inference: The networks and their options.
        name: One of ``CARRIERS``; ``None`` for what the propagator's flows are made for: query masks where each query
            has a flow of its own, class scores otherwise.
    """
    carrier: Carrier[Any] = CARRIERS[name or ("queries" if inference.propagator.per_query else "class_scores")](
        inference
    )
    return carrier
