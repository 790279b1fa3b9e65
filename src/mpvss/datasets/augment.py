"""A training pair of frames, and the one augmentation that both frames go through together."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mpvss.labels import IGNORE

_PADDING_GREY = 127
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class Pair:
    """One training sample: a current frame and the key frame whose masks are to reach it.

    Attributes:
        current: The frame to segment, RGB.
        key: The frame to propagate from, RGB, same size.
        current_label: Class ids, 255 where ignored; ``None`` where the frame is not labelled.
        key_label: The same for the key frame.
        flow: Exact backward flow from current to key in pixels, order (x, y), as ``motion/warp.py`` has it; ``None``
            where it is not known.
        visible: Where the flow's target is the same surface: inside the key frame and hidden behind nothing.
        distance: Frames between the two; 0 for a simulated pair.
    """

    current: UInt8[Tensor, "3 H W"]
    key: UInt8[Tensor, "3 H W"]
    current_label: Int64[Tensor, "H W"] | None
    key_label: Int64[Tensor, "H W"] | None
    flow: Float[Tensor, "2 H W"] | None
    visible: Bool[Tensor, "H W"] | None
    distance: int


@dataclass(frozen=True)
class Augmentation:
    """One random scale, crop, flip and recolouring for both frames of a pair, their labels and their flow.

    Attributes:
        crop: Height and width of the result, in pixels. An image that is smaller, after scaling, is padded: grey,
            without a label, not visible.
        scale: Lowest and highest factor of size, drawn evenly in the logarithm.
        flip: Whether every second pair is mirrored left to right.
        colour: Strength of the recolouring, 0 to 1; 0 leaves the colours as they are. Brightness and contrast change
            by up to a factor of exp(colour), saturation by twice and single channels by a quarter of that in the
            logarithm. Both frames change together, apart from a tenth of it in brightness and channels, as between
            two exposures of one camera.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    colour: float = 0.3

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop must be a height and a width of at least 1 pixel, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be a lowest and a highest factor above 0, got {self.scale}")
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour must be 0 to 1, got {self.colour}")

    def __call__(self, pair: Pair, random: np.random.Generator) -> Pair:
        """Draw one augmentation and apply it.

        Args:
            pair: Frames of any size.
            random: The only source of randomness.

        Returns:
            The pair at the size of the crop. ``visible`` also leaves out what the crop left out of the key frame.
        """
        factor = math.exp(random.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        height, width = (max(1, round(side / factor)) for side in self.crop)
        top = _offset(pair.current.shape[-2], height, random)
        left = _offset(pair.current.shape[-1], width, random)
        pair = resample(pair, (top, left, height, width), self.crop)
        # Drawn whatever the options are, so that an option does not change the other choices.
        if random.random() < 0.5 and self.flip:
            pair = flip(pair)
        draws = random.uniform(-1, 1, 10)
        return _recolour(pair, self.colour, draws) if self.colour > 0 else pair


def _offset(whole: int, part: int, random: np.random.Generator) -> int:
    """Where the window begins: within the image, or before it where the window is larger."""
    offset = int(random.integers(abs(whole - part) + 1))
    return offset if part <= whole else -offset


def resample(pair: Pair, window: tuple[int, int, int, int], size: tuple[int, int]) -> Pair:
    """Cut a window out of both frames and resample it to a size.

    Args:
        pair: The frames.
        window: Top, left, height and width in pixels; it may reach beyond the image.
        size: Height and width of the result.

    Returns:
        Images averaged or interpolated, labels nearest, the flow in pixels of the result. Outside of the image:
        grey, 255, zero flow, not visible.
    """
    top, left, height, width = window
    rows, row_inside = _nearest(top, height, size[0], pair.current.shape[-2])
    columns, column_inside = _nearest(left, width, size[1], pair.current.shape[-1])
    inside = row_inside[:, None] & column_inside
    whole = bool(inside.all())

    def image(values: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 h w"]:
        cut = _cut(values.permute(1, 2, 0).numpy(), window, _PADDING_GREY)
        mode = cv2.INTER_AREA if height > size[0] or width > size[1] else cv2.INTER_LINEAR
        resized = cut if cut.shape[:2] == size else cv2.resize(cut, (size[1], size[0]), interpolation=mode)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def label(values: Int64[Tensor, "H W"] | None) -> Int64[Tensor, "h w"] | None:
        if values is None:
            return None
        nearest = values.numpy()[np.ix_(rows, columns)]
        return torch.from_numpy(nearest if whole else np.where(inside, nearest, IGNORE))

    flow, visible = pair.flow, pair.visible
    if flow is not None:
        resized = _cut(flow.permute(1, 2, 0).numpy(), window, 0)
        if resized.shape[:2] != size:
            resized = cv2.resize(resized, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        scaled = resized.transpose(2, 0, 1) * np.array([size[1] / width, size[0] / height], np.float32)[:, None, None]
        flow = torch.from_numpy(np.ascontiguousarray(scaled))
    if visible is not None:
        # A pixel made from visible and hidden ones has a flow that belongs to neither.
        share = _cut(visible.numpy().view(np.uint8) * np.uint8(255), window, 0)
        if share.shape[:2] != size:
            share = cv2.resize(share, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        visible = torch.from_numpy((share == 255) & inside)
        visible = visible & inside_image(flow) if flow is not None else visible
    return replace(
        pair,
        current=image(pair.current),
        key=image(pair.key),
        current_label=label(pair.current_label),
        key_label=label(pair.key_label),
        flow=flow,
        visible=visible,
    )


def inside_image(flow: Float[Tensor, "2 H W"]) -> Bool[Tensor, "H W"]:
    """Where a flow points to a position between the centres of the outermost pixels."""
    height, width = flow.shape[-2:]
    x = flow[0] + torch.arange(width)
    y = flow[1] + torch.arange(height)[:, None]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _nearest(begin: int, length: int, size: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The source row of every row of the result, and whether the image has it."""
    indices = begin + ((np.arange(size) + 0.5) * length / size).astype(np.int64)
    return indices.clip(0, limit - 1), (indices >= 0) & (indices < limit)


def _cut(values: np.ndarray, window: tuple[int, int, int, int], fill: int) -> np.ndarray:
    top, left, height, width = window
    rows, columns = values.shape[:2]
    inner = values[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    edges = (max(-top, 0), max(top + height - rows, 0), max(-left, 0), max(left + width - columns, 0))
    if not any(edges):
        return inner
    channels = 1 if values.ndim == 2 else values.shape[2]
    return np.asarray(cv2.copyMakeBorder(inner, *edges, cv2.BORDER_CONSTANT, value=(fill,) * channels))


def flip(pair: Pair) -> Pair:
    """Mirror a pair left to right: everything reversed in x, and the flow's x with the other sign."""

    def mirrored(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.flip(-1)

    flow = None if pair.flow is None else pair.flow.flip(-1) * pair.flow.new_tensor([-1.0, 1.0])[:, None, None]
    return replace(
        pair,
        current=pair.current.flip(-1),
        key=pair.key.flip(-1),
        current_label=mirrored(pair.current_label),
        key_label=mirrored(pair.key_label),
        flow=flow,
        visible=mirrored(pair.visible),
    )


def _recolour(pair: Pair, strength: float, draws: Float[np.ndarray, "10"]) -> Pair:
    """Brightness, contrast, saturation and channels as one affine map of the colours for each frame."""
    contrast, saturation = math.exp(strength * draws[0]), math.exp(2 * strength * draws[1])
    mean = (float(pair.current.float().mean()) + float(pair.key.float().mean())) / 2
    blend = saturation * np.eye(3) + (1 - saturation) * _LUMA

    def changed(values: UInt8[Tensor, "3 H W"], own: Float[np.ndarray, "4"]) -> UInt8[Tensor, "3 H W"]:
        brightness = strength * (draws[2] + own[0] / 10)
        gains = np.exp(brightness + strength / 4 * (draws[3:6] + own[1:] / 10))
        matrix = np.column_stack([contrast * gains[:, None] * blend, np.full(3, (1 - contrast) * mean)])
        # The result is rounded and kept within 0..255.
        pixels = cv2.transform(np.ascontiguousarray(values.permute(1, 2, 0).numpy()), matrix)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    return replace(pair, current=changed(pair.current, np.zeros(4)), key=changed(pair.key, draws[6:]))
