"""Motion between frames: the warp, and the networks that estimate the flow."""

from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.query_flow import PixelFlow, QueryFlow
from mpvss.motion.warp import compose, resize_flow, warp

__all__ = ["PixelFlow", "QueryFlow", "QueryFlowConfig", "compose", "resize_flow", "warp"]
