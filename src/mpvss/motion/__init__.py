"""Motion between frames: the warp, and the networks that estimate the flow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpvss.motion.network.config import QueryFlowConfig
    from mpvss.motion.network.query_flow import PixelFlow, QueryFlow
    from mpvss.motion.warp import compose, resize_flow, warp

__all__ = ["PixelFlow", "QueryFlow", "QueryFlowConfig", "compose", "resize_flow", "warp"]

_MODULES = {
    "PixelFlow": "network.query_flow", "QueryFlow": "network.query_flow", "QueryFlowConfig": "network.config",
    "compose": "warp", "resize_flow": "warp", "warp": "warp",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only where a name is used that needs it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mpvss.motion.{_MODULES[name]}"), name)
