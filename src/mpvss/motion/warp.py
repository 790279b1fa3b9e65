"""The warp of tensors, and the one flow convention of the program; ``arrays.py`` does the same on a CPU with OpenCV.

A flow at a pixel of the current frame points to where that pixel's content was in the other frame (the key frame, or
the neighbour when flows are chained): backward warping. Units are pixels of the grid that the flow lives on, order
(x, y). Pixel centres are at integer coordinates. Sampling is bilinear; outside the grid the border repeats. Zero flow
is the identity to rounding.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mpvss.motion.arrays import INVERSIONS


@lru_cache(maxsize=8)
def _pixel_grid(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 h w"]:
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=dtype, device=device), torch.arange(width, dtype=dtype, device=device), indexing="ij"
    )
    return torch.stack([xs, ys])


def warp(values: Float[Tensor, "B C h w"], flow: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B C h w"]:
    """Warp values by a flow: sample, for every pixel, the value that the flow points to.

    To warp each query's mask by its own flow, fold the queries into the batch: masks (B*Q, 1, h, w) and flows
    (B*Q, 2, h, w). One flow for many masks is masks (B, Q, h, w) and one flow (B, 2, h, w).

    Args:
        values: Anything that lives on the grid of the other frame; logits, scores, colours, or another flow.
        flow: Backward flow in pixels of this grid, order (x, y).

    Returns:
        The values on the grid of the current frame: ``values[x + flow(x)]``, bilinear, border repeated.

    Raises:
        ValueError: The two grids differ.

    Paper: section 3.2, mask propagation. Differs from the paper: the published code drifts by up to a pixel at zero
    flow; this warp is exact to rounding.
    """
    height, width = values.shape[-2:]
    if flow.shape[-2:] != (height, width):
        raise ValueError(
            f"warp expects flow and values on one grid, got flow {tuple(flow.shape[-2:])} and values "
            f"{(height, width)}; use resize_flow first"
        )
    position = flow + _pixel_grid(height, width, flow.dtype, flow.device)
    # grid_sample expects -1..1 between the centres of the corner pixels; a grid of one pixel has only its centre.
    # Centred before scaling: subtracting 1 afterwards would lose bits.
    centre = flow.new_tensor([(width - 1) / 2, (height - 1) / 2])
    scale = flow.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    grid = (position.permute(0, 2, 3, 1) - centre) * scale
    return sample(values, grid.to(values.dtype), align_corners=True)


def sample(
    values: Float[Tensor, "B C h w"], grid: Float[Tensor, "B H W 2"], *, align_corners: bool
) -> Float[Tensor, "B C H W"]:
    """``grid_sample``, bilinear with the border repeated, also on Apple's devices, where torch lacks that padding."""
    padding = "border"
    if values.device.type == "mps":
        # A position that stays between the centres of the outermost pixels needs none.
        size = grid.new_tensor([values.shape[-1], values.shape[-2]])
        limit = torch.ones_like(size) if align_corners else 1 - 1 / size
        grid, padding = torch.minimum(torch.maximum(grid, -limit), limit), "zeros"
    return F.grid_sample(values, grid, mode="bilinear", padding_mode=padding, align_corners=align_corners)


def compose(step: Float[Tensor, "B 2 h w"], accumulated: Float[Tensor, "B 2 h w"] | None) -> Float[Tensor, "B 2 h w"]:
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
    return step + warp(accumulated, step)


def invert(flow: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B 2 h w"]:
    """Turn a flow from one frame to another into the flow back, on the same grid.

    The flow back satisfies ``b(x) = -f(x + b(x))``; a few rounds of that from ``-f`` come close wherever both frames
    show the same thing. What one of them hides has no flow back: there it is that of what hides it.

    Args:
        flow: Flow in pixels, small against what moves: between neighbouring frames.
    """
    back = -flow
    for _ in range(INVERSIONS):
        back = -warp(flow, back)
    return back


def resize_flow(flow: Float[Tensor, "B 2 h1 w1"], size: tuple[int, int]) -> Float[Tensor, "B 2 h2 w2"]:
    """Resample a flow to another grid, bilinear; its values are scaled by the ratio of the grids, per axis.

    Args:
        flow: Flow in pixels of its grid.
        size: Height and width of the new grid.
    """
    height, width = flow.shape[-2:]
    if (height, width) == tuple(size):
        return flow
    scale = flow.new_tensor([size[1] / width, size[0] / height])
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale[:, None, None]


def fit_flow(
    flow: Float[Tensor, "B 2 h1 w1"], covered: tuple[int, int], target: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B 2 h2 w2"]:
    """Resample a flow to a grid that covers a part of it, from the top left corner.

    Args:
        flow: Flow in pixels of its grid.
        covered: Height and width in pixels of the image that the flow covers.
        target: Height and width that the grid covers.
        grid: Height and width of the grid.

    Raises:
        ValueError: The flow covers less.
    """
    whole = [side * all_ / part for side, all_, part in zip(grid, covered, target, strict=True)]
    if whole[0] < grid[0] or whole[1] < grid[1]:
        raise ValueError(f"the motion module's flow covers {covered} pixels, the grid {grid} covers {target}")
    if all(side.is_integer() for side in whole):
        return resize_flow(flow, (int(whole[0]), int(whole[1])))[..., : grid[0], : grid[1]]
    # The flow ends between two pixels of the grid: the same interpolation, at the positions of the grid's pixels.
    ys, xs = (
        2 * (torch.arange(side, device=flow.device) + 0.5) / all_ - 1 for side, all_ in zip(grid, whole, strict=True)
    )
    centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).to(flow.dtype).expand(len(flow), -1, -1, -1)
    fitted = sample(flow, centres, align_corners=False)
    return fitted * flow.new_tensor([whole[1] / flow.shape[-1], whole[0] / flow.shape[-2]])[:, None, None]
