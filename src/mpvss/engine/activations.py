"""Softmax and sigmoid of arrays."""

import cv2
import numpy as np
from jaxtyping import Float32


def softmax(logits: Float32[np.ndarray, "*shape"], axis: int) -> Float32[np.ndarray, "*shape"]:
    """Exponentials that add up to one along an axis."""
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True), np.float32)


def sigmoid(logits: Float32[np.ndarray, "C h w"]) -> Float32[np.ndarray, "C h w"]:
    """``1 / (1 + exp(-x))``, by OpenCV, whose exponential takes half of numpy's time."""
    values = np.negative(logits, dtype=np.float32).reshape(1, -1)
    cv2.exp(values, dst=values)
    values += 1
    np.reciprocal(values, out=values)
    return np.asarray(values.reshape(logits.shape))
