"""What the program asks of a segmentor, and how a frame becomes a network's input and its masks come back."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss._validate import shown
from mpvss.errors import ModelError
from mpvss.types import Frame, Geometry

_LONGEST_SIDE = 2**15


@dataclass(frozen=True)
class InputRule:
    """How large an image a network expects and how its numbers are scaled.

    Attributes:
        short_side: The shorter side is resized to this many pixels; ``None`` keeps the frame's size.
        long_side: Upper bound of the longer side in pixels, which then rules; ``None`` for no bound.
        multiple: Both sides are padded with zeros, at right and bottom, to a multiple of this.
        mean: Subtracted from RGB 0..255.
        std: What the difference is divided by.
        fixed: Whether the network takes no other size.
    """

    short_side: int | None = None
    long_side: int | None = None
    multiple: int = 32
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    fixed: bool = False

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _LONGEST_SIDE:
                raise ValueError(f"{name} must be from 1 to {_LONGEST_SIDE} pixels, got {shown(value)}")
        if not 1 <= self.multiple <= _LONGEST_SIDE or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"multiple and std must be positive, got {shown(self.multiple)} and {shown(self.std)}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {shown(self.mean)}")

    def fit(self, size: tuple[int, int]) -> Geometry:
        """Return the geometry of a frame of this (height, width)."""
        scale = 1.0
        if self.short_side is not None:
            scale = self.short_side / min(size)
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(size))
        height, width = (max(1, round(side * scale)) for side in size)
        padded = -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple
        return Geometry(source=size, resized=(height, width), padded=padded)

    def with_short_side(self, short_side: int) -> "InputRule":
        """Return the same rule for another size of the shorter side, in pixels; the bound of the longer one follows.

        Raises:
            ModelError: The network takes no other size.
        """
        if self.fixed and short_side != self.short_side:
            raise ModelError(
                f"this model takes images of {self.short_side} pixels only, got a shorter side of {short_side}; "
                "leave the size out or choose another model"
            )
        bound = self.long_side
        if bound is not None and self.short_side is not None:
            bound = max(short_side, round(bound * short_side / self.short_side))
        return replace(self, short_side=short_side, long_side=bound)

    def normalise(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 Hp Wp"]:
        """Scale the numbers, then pad with zeros."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        height, width = images.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return torch.nn.functional.pad((images.float() - mean) / std, padding)


def prepare(frame: Frame, rule: InputRule) -> tuple[UInt8[Tensor, "3 H W"], Geometry]:
    """Resize a frame to the network's size.

    Returns:
        The image, still 0..255 and not padded, and the geometry that leads back.
    """
    geometry = rule.fit(frame.size)
    return resize_frame(frame, geometry.resized), geometry


def resize_frame(frame: Frame, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Return the image at a height and width: area averages when it shrinks, bilinear when it grows.

    It is never the frame's own memory, which may be written over.
    """
    if size == frame.size:
        return torch.from_numpy(np.array(frame.rgb, order="C")).permute(2, 0, 1)
    shrinks = size[0] < frame.size[0]
    rgb = cv2.resize(frame.rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(rgb).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a mask classifier predicts for a batch of images.

    Attributes:
        class_logits: Logits of K classes and, last, "no object", for each query.
        mask_logits: One mask per query on the mask grid, which covers the padded image.
        queries: The embeddings that class and mask logits were made from, normalised as the decoder's heads take them.
    """

    class_logits: Float[Tensor, "B Q K1"]
    mask_logits: Float[Tensor, "B Q h w"]
    queries: Float[Tensor, "B Q D"]


@runtime_checkable
class Segmentor(Protocol):
    """A mask classifier: any model that answers with queries, their classes and their masks."""

    name: str
    class_names: tuple[str, ...]
    rule: InputRule

    def __call__(self, images: UInt8[Tensor, "B 3 H W"]) -> Prediction:
        """Segment a batch of images of the size that ``rule`` gives, 0..255, not padded."""
        ...
