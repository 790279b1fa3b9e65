"""The warp and the resampling of flows on a CPU: numpy arrays, sampled by OpenCV.

The convention is that of ``warp.py``, which does the same with tensors, on any device and with gradients: a flow at a
pixel of the current frame points to where that pixel's content was in the other frame, in pixels of its own grid, order
(x, y), pixel centres at integer coordinates; sampling is bilinear and the border repeats.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

# Rounds of the fixed point that inverts a flow: more change nothing (docs/LOG.md).
INVERSIONS = 2

Maps = Float32[np.ndarray, "C h w"] | UInt8[np.ndarray, "C h w"]
Flow = Float32[np.ndarray, "G 2 h w"]
_Resized = Float32[np.ndarray, "C H W"] | UInt8[np.ndarray, "C H W"]
_ResizedFlow = Float32[np.ndarray, "G 2 H W"]


def sampling_maps(
    flow: Float32[np.ndarray, "2 h w"],
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """The x and y that a flow points to at each pixel, as OpenCV's remap takes them."""
    dx, dy = flow
    height, width = dx.shape
    return dx + np.arange(width, dtype=np.float32), dy + np.arange(height, dtype=np.float32)[:, None]


def warp(values: Float32[np.ndarray, "C h w"], flow: Float32[np.ndarray, "2 h w"]) -> Float32[np.ndarray, "C h w"]:
    """Sample values where a flow points.

    Args:
        values: On the grid of the other frame.
        flow: Backward flow in pixels of this grid.

    Returns:
        The values on the grid of the current frame: ``values[x + flow(x)]``.

    Raises:
        ValueError: The two grids differ.

    Paper: section 3.2, mask propagation.
    """
    if values.shape[1:] != flow.shape[1:]:
        raise ValueError(
            f"warp expects flow and values on one grid, got flow {flow.shape[1:]} and values {values.shape[1:]}; "
            "use resize_flow first"
        )
    x, y = sampling_maps(flow)
    warped = np.empty(values.shape, np.float32)
    # One channel after the other: OpenCV rounds positions where there are two.
    for plane, out in zip(np.ascontiguousarray(values, np.float32), warped, strict=True):
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)
    return warped


def warp_each(values: Float32[np.ndarray, "Q h w"], flows: Flow) -> Float32[np.ndarray, "Q h w"]:
    """Warp maps by a flow of their own each, or all by the only one."""
    if len(flows) == 1:
        return warp(values, flows[0])
    return np.concatenate([warp(plane[None], flow) for plane, flow in zip(values, flows, strict=True)])


def compose(step: Flow, accumulated: Flow | None) -> Flow:
    """Chain a flow between neighbouring frames with the flow from there to the key frame.

    Per pixel: ``f_t(x) = s_t(x) + f_{t-1}(x + s_t(x))``.

    Args:
        step: Flow from the current frame to its neighbour, in pixels.
        accumulated: Flow from that neighbour to the key frame, same grid; ``None`` where it is the key frame.

    Returns:
        The flow from the current frame to the key frame.
    """
    if accumulated is None:
        return step
    chained = np.empty(step.shape, np.float32)
    for one, before, out in zip(step, accumulated, chained, strict=True):
        np.add(one, warp(before, one), out=out)
    return chained


def invert(flow: Flow) -> Flow:
    """Turn a flow from one frame to another into the flow back, on the same grid.

    The flow back satisfies ``b(x) = -f(x + b(x))``; a few rounds of that from ``-f`` come close wherever both frames
    show the same thing. What one of them hides has no flow back: there it is that of what hides it.

    Args:
        flow: Flow in pixels, small against what moves: between neighbouring frames.
    """
    back = -flow
    for _ in range(INVERSIONS):
        for one, guess in zip(flow, back, strict=True):
            np.negative(warp(one, guess), out=guess)
    return back


def resize(maps: Maps, size: tuple[int, int]) -> _Resized:
    """Bilinear, pixel centres at halves, the border repeated."""
    resized = np.empty((len(maps), *size), maps.dtype)
    for source, target in zip(np.ascontiguousarray(maps), resized, strict=True):
        cv2.resize(source, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def resize_flow(flow: Flow, size: tuple[int, int]) -> _ResizedFlow:
    """Resample a flow to another grid, bilinear; its values are scaled by the ratio of the grids, per axis.

    Args:
        flow: Flow in pixels of its grid.
        size: Height and width of the new grid.
    """
    height, width = flow.shape[-2:]
    if (height, width) == tuple(size):
        return flow
    resized = resize(flow.reshape(-1, height, width), size).reshape(*flow.shape[:2], *size)
    resized *= np.array([size[1] / width, size[0] / height], np.float32)[:, None, None]
    return resized


def spread(maps: Float32[np.ndarray, "C h w"], whole: tuple[float, float], size: tuple[int, int]) -> _Resized:
    """Interpolate maps whose grid spans ``whole`` pixels, at the pixels of the top left ``size`` of them.

    Args:
        maps: Any maps.
        whole: Height and width in pixels that the grid covers; they may end within a pixel.
        size: Height and width in whole pixels, no more than that.
    """
    if all(float(side).is_integer() for side in whole):
        return resize(maps, (int(whole[0]), int(whole[1])))[:, : size[0], : size[1]]
    y, x = (
        ((np.arange(side) + 0.5) * (cells / all_) - 0.5).astype(np.float32)
        for side, cells, all_ in zip(size, maps.shape[1:], whole, strict=True)
    )
    columns, rows = np.meshgrid(x, y)
    sampled = np.empty((len(maps), *size), np.float32)
    for plane, out in zip(np.ascontiguousarray(maps, np.float32), sampled, strict=True):
        cv2.remap(plane, columns, rows, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)
    return sampled


def fit_flow(flow: Flow, covered: tuple[int, int], target: tuple[int, int], grid: tuple[int, int]) -> _ResizedFlow:
    """Resample a flow to a grid that covers a part of it, from the top left corner.

    Args:
        flow: Flow in pixels of its grid.
        covered: Height and width in pixels of the image that the flow covers.
        target: Height and width that the grid covers.
        grid: Height and width of the grid.

    Raises:
        ValueError: The flow covers less.
    """
    whole = (grid[0] * covered[0] / target[0], grid[1] * covered[1] / target[1])
    if whole[0] < grid[0] or whole[1] < grid[1]:
        raise ValueError(f"the motion module's flow covers {covered} pixels, the grid {grid} covers {target}")
    scale = np.array([whole[1] / flow.shape[-1], whole[0] / flow.shape[-2]], np.float32)[:, None, None]
    fitted = spread(flow.reshape(-1, *flow.shape[-2:]), whole, grid)
    return fitted.reshape(*flow.shape[:2], *grid) * scale
