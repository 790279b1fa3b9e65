"""Published checkpoints, the paper's six models and their cost, and export to ONNX."""

from mpvss.convert.checkpoint import convert_reference
from mpvss.convert.names import convert_motion_state_dict, convert_segmentor_state_dict

__all__ = ["convert_motion_state_dict", "convert_reference", "convert_segmentor_state_dict"]
