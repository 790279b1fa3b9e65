"""Weight of a key frame at each pixel of another frame: by distance, and by how well colours agree."""

import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mpvss.engine.activations import sigmoid, softmax
from mpvss.motion.arrays import Flow, sampling_maps

# Grey levels of colour error at which the weight falls to 1/e, the blur of that error in pixels of the image, and the
# power of the distance (docs/LOG.md).
ERROR_SCALE = 4.0
BLUR = 3.0
DISTANCE_POWER = 0.5


WEIGHT_CELL = 4
"""Pixels of class scores per cell, a side, of the grid that weights are estimated on."""


def thumbnail(
    image: UInt8[np.ndarray, "H W 3"], padded: tuple[int, int], grid: tuple[int, int]
) -> Float32[np.ndarray, "h w 3"]:
    """Return the downsampled image, RGB 0..255: averages over each cell of the grid."""
    bottom, right = padded[0] - image.shape[0], padded[1] - image.shape[1]
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(image, grid[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _blur(error: Float32[np.ndarray, "h w"], sigma: float) -> Float32[np.ndarray, "h w"]:
    width = 2 * max(1, math.ceil(3 * sigma)) + 1
    return np.asarray(cv2.GaussianBlur(error, (width, width), sigma, borderType=cv2.BORDER_REPLICATE))


def blend_weight(
    current: Float32[np.ndarray, "h w 3"],
    key: Float32[np.ndarray, "h w 3"],
    flow: Float32[np.ndarray, "2 h w"],
    distance: int,
    gap: int,
    padded: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """Weight of one key frame at each pixel: ``sqrt(1 - distance / gap) * exp(-error / 4)``.

    The error is the mean absolute RGB difference between the frame and the key frame warped to it, blurred.

    Args:
        current: The thumbnail of the frame, RGB 0..255.
        key: The thumbnail of the key frame, same grid.
        flow: Backward flow from the frame to the key frame, pixels of that grid.
        distance: Frames between them, 1 to gap - 1.
        gap: Frames between the two key frames on either side.
        padded: Size that the grid covers, which gives the blur its unit.

    Returns:
        Weights in 0..1.
    """
    x, y = sampling_maps(flow)
    warped = cv2.remap(key, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = cv2.transform(cv2.absdiff(current, warped), np.full((1, 3), 1 / 3, np.float32))
    error = _blur(error, BLUR * current.shape[1] / padded[1])
    near = float((1 - distance / gap) ** DISTANCE_POWER)
    return np.asarray(near * cv2.exp(error * (-1 / ERROR_SCALE)), np.float32)


def visible_flow(
    flow: Flow, class_logits: Float32[np.ndarray, "Q K1"], warped_masks: Float32[np.ndarray, "Q h w"]
) -> Float32[np.ndarray, "2 h w"]:
    """Return, where every query has a flow of its own, the flow of the query that shows at each pixel.

    The query that shows is the one with the largest p(any class) sigmoid(mask).
    """
    if len(flow) == 1:
        return np.asarray(flow[0])
    present = 1 - softmax(class_logits, 1)[:, -1]
    winner = (present[:, None, None] * sigmoid(warped_masks)).argmax(0)
    return np.asarray(np.take_along_axis(flow, winner[None, None], 0)[0])
