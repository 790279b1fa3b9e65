"""Weight of a key frame at each pixel of another frame: by distance, and by how well colours agree."""

import math

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mpvss.motion.warp import sampling_maps

# Grey levels of colour error at which the weight falls to 1/e, the blur of that error in pixels of the image, and the
# power of the distance (docs/LOG.md).
_ERROR_SCALE = 4.0
_BLUR = 3.0
_DISTANCE_POWER = 0.5


def thumbnail(
    image: UInt8[Tensor, "3 H W"], padded: tuple[int, int], grid: tuple[int, int]
) -> Float32[np.ndarray, "h w 3"]:
    """Return the downsampled image, RGB 0..255: averages over each cell of the grid."""
    pixels = image.permute(1, 2, 0).numpy()
    bottom, right = padded[0] - pixels.shape[0], padded[1] - pixels.shape[1]
    if bottom or right:
        pixels = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(pixels, grid[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _blur(error: Float32[np.ndarray, "h w"], sigma: float) -> Float32[np.ndarray, "h w"]:
    width = 2 * max(1, math.ceil(3 * sigma)) + 1
    return np.asarray(cv2.GaussianBlur(error, (width, width), sigma, borderType=cv2.BORDER_REPLICATE))


def blend_weight(
    current: Float32[np.ndarray, "h w 3"],
    key: Float32[np.ndarray, "h w 3"],
    flow: Float[Tensor, "2 h w"],
    distance: int,
    gap: int,
    padded: tuple[int, int],
) -> Float[Tensor, "h w"]:
    """Weight of one key frame at each pixel: ``sqrt(1 - distance / gap) * exp(-error / 4)``.

    The error is the mean absolute RGB difference between the frame and the key frame warped to it, blurred. It is
    judged on the CPU, where the images are; so few numbers are sooner there than on another device.

    Args:
        current: The thumbnail of the frame, RGB 0..255.
        key: The thumbnail of the key frame, same grid.
        flow: Backward flow from the frame to the key frame, pixels of that grid; on the CPU.
        distance: Frames between them, 1 to gap - 1.
        gap: Frames between the two key frames on either side.
        padded: Size that the grid covers, which gives the blur its unit.

    Returns:
        Weights in 0..1.
    """
    x, y = sampling_maps(flow)
    warped = cv2.remap(key, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = cv2.transform(cv2.absdiff(current, warped), np.full((1, 3), 1 / 3, np.float32))
    error = _blur(error, _BLUR * current.shape[1] / padded[1])
    return torch.from_numpy(float((1 - distance / gap) ** _DISTANCE_POWER) * cv2.exp(error * (-1 / _ERROR_SCALE)))


def visible_flow(
    flow: Float[Tensor, "G 2 h w"], class_logits: Float[Tensor, "Q K1"], warped_masks: Float[Tensor, "Q h w"]
) -> Float[Tensor, "2 h w"]:
    """Return, where every query has a flow of its own, the flow of the query that shows at each pixel.

    The query that shows is the one with the largest p(any class) sigmoid(mask).
    """
    if len(flow) == 1:
        return flow[0]
    present = 1 - class_logits.softmax(1)[:, -1]
    winner = (present[:, None, None] * warped_masks.sigmoid()).argmax(0)
    return flow.gather(0, winner[None, None].expand(1, 2, -1, -1))[0]
