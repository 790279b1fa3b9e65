"""How far to trust a key frame's masks at each pixel of another frame: by distance, and by how well colours agree."""

import math

import cv2
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.motion.warp import warp

# Grey levels of colour error at which trust falls to 1/e, the blur of that error in pixels of the picture, and the
# power of the distance. Chosen coarsely on the development clip (docs/LOG.md): half a point better than 8, 2 and 1.
_ERROR_SCALE = 4.0
_BLUR = 3.0
_DISTANCE_POWER = 0.5


def thumbnail(
    image: UInt8[Tensor, "3 H W"], padded: tuple[int, int], grid: tuple[int, int], device: torch.device
) -> Float[Tensor, "3 h w"]:
    """Return the picture on a coarser grid, RGB 0..255: averages over each cell."""
    picture = image.permute(1, 2, 0).to("cpu", torch.float32).contiguous().numpy()
    bottom, right = padded[0] - picture.shape[0], padded[1] - picture.shape[1]
    if bottom or right:
        picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    small = cv2.resize(picture, (grid[1], grid[0]), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1).to(device)


def _blur(error: Float[Tensor, "h w"], sigma: float) -> Float[Tensor, "h w"]:
    radius = max(1, math.ceil(3 * sigma))
    taps = torch.arange(-radius, radius + 1, dtype=error.dtype, device=error.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    blurred = F.pad(error[None, None], (radius, radius, radius, radius), mode="replicate")
    blurred = F.conv2d(F.conv2d(blurred, kernel[None, None, None, :]), kernel[None, None, :, None])
    return blurred[0, 0]


def trust(
    current: Float[Tensor, "3 h w"],
    key: Float[Tensor, "3 h w"],
    flow: Float[Tensor, "2 h w"],
    distance: int,
    gap: int,
    padded: tuple[int, int],
) -> Float[Tensor, "h w"]:
    """Weight of one key frame at each pixel: ``sqrt(1 - distance / gap) * exp(-error / 4)``.

    The error is the mean absolute RGB difference between the frame and the key frame warped to it, blurred.

    Args:
        current: The frame on a coarser grid, RGB 0..255.
        key: The key frame on that grid.
        flow: Backward flow from the frame to the key frame, pixels of that grid.
        distance: Frames between them, 1 to gap - 1.
        gap: Frames between the two key frames on either side.
        padded: Size that the grid covers, which gives the blur its unit.

    Returns:
        Weights in 0..1.
    """
    warped = warp(key[None], flow[None])[0]
    error = _blur((current - warped).abs().mean(0), _BLUR * current.shape[-1] / padded[1])
    return float((1 - distance / gap) ** _DISTANCE_POWER) * torch.exp(-error / _ERROR_SCALE)


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
