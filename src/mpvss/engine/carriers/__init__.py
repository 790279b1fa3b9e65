"""Carriers: what is kept of a key frame, and how it is propagated to the frames around it. One file a carrier."""

from collections.abc import Callable
from typing import Any

from mpvss.engine.carriers.carrier import Carrier, Inference
from mpvss.engine.carriers.class_scores import ClassScoreCarrier
from mpvss.engine.carriers.queries import QueryCarrier

__all__ = ["CARRIERS", "Carrier", "ClassScoreCarrier", "Inference", "QueryCarrier", "make_carrier"]


def _device_carrier(inference: Inference) -> Any:
    from mpvss.engine.carriers.device import DeviceCarrier  # imports torch

    return DeviceCarrier(inference)


CARRIERS: dict[str, Callable[[Inference], Any]] = {
    "class_scores": ClassScoreCarrier, "queries": QueryCarrier, "device": _device_carrier,
}  # fmt: skip


def make_carrier(inference: Inference, name: str | None = None) -> Carrier[Any]:
    """Return a carrier for one video.

    Args:
        inference: The networks and their options.
        name: One of ``CARRIERS``; ``None`` for ``device`` where a network answers there, and else for what the
            propagator's flows are made for: query masks where each query has a flow of its own, or class scores.
    """
    flows_for = "queries" if inference.propagator.per_query else "class_scores"
    carrier: Carrier[Any] = CARRIERS[name or (flows_for if inference.network is None else "device")](inference)
    return carrier
