"""What the program asks of a segmentor, and how a frame becomes a network's input and its masks come back."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

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
        exact: Height and width in pixels to which every image is resized, whatever its ratio; it rules over the sides.
        round_to: With ``exact``: keep the ratio instead. The side that has to change least becomes that of ``exact``,
            and both are rounded to a multiple of this; 0 for the exact size.
        bgr: Whether the network wants blue first; ``mean`` and ``std`` are red first all the same.
    """

    short_side: int | None = None
    long_side: int | None = None
    multiple: int = 32
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    fixed: bool = False
    exact: tuple[int, int] | None = None
    round_to: int = 0
    bgr: bool = False

    def __post_init__(self) -> None:
        sides = {"short_side": self.short_side, "long_side": self.long_side}
        if self.exact is not None:
            sides |= dict(zip(("height", "width"), self.exact, strict=True))
        for name, value in sides.items():
            if value is not None and not 1 <= value <= _LONGEST_SIDE:
                raise ValueError(f"{name} must be from 1 to {_LONGEST_SIDE} pixels, got {shown(value)}")
        if not 1 <= self.multiple <= _LONGEST_SIDE or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"multiple and std must be positive, got {shown(self.multiple)} and {shown(self.std)}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {shown(self.mean)}")

    def fit(self, size: tuple[int, int]) -> Geometry:
        """Return the geometry of a frame of this (height, width)."""
        scale = 1.0
        if self.exact is not None:
            height, width = self._exact_size(size)
            padded = -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple
            return Geometry(source=size, resized=(height, width), padded=padded)
        if self.short_side is not None:
            scale = self.short_side / min(size)
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(size))
        height, width = (max(1, round(side * scale)) for side in size)
        padded = -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple
        return Geometry(source=size, resized=(height, width), padded=padded)

    def _exact_size(self, size: tuple[int, int]) -> tuple[int, int]:
        assert self.exact is not None
        if not self.round_to:
            return self.exact
        tall, wide = (side / own for side, own in zip(self.exact, size, strict=True))
        scale = wide if abs(1 - wide) < abs(1 - tall) else tall
        height, width = (max(1, round(scale * own / self.round_to)) * self.round_to for own in size)
        return height, width

    def with_short_side(self, short_side: int) -> "InputRule":
        """Return the same rule for another size of the shorter side, in pixels; the bound of the longer one follows.

        The ratio of the sides is kept then.

        Raises:
            ModelError: The network takes no other size.
        """
        own = self.short_side if self.exact is None else min(self.exact)
        if self.fixed and short_side != own:
            side = f"{own}" if self.exact is None else f"{self.exact[1]}x{self.exact[0]} (width x height)"
            raise ModelError(
                f"this model takes images of {side} pixels only, got a shorter side of {short_side}; "
                "leave the size out or choose another model"
            )
        if self.fixed:
            return self
        bound = self.long_side
        if bound is not None and self.short_side is not None:
            bound = max(short_side, round(bound * short_side / self.short_side))
        return replace(self, short_side=short_side, long_side=bound, exact=None, round_to=0)

    def normalise(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float32[np.ndarray, "B 3 Hp Wp"]:
        """Scale the numbers, then pad with zeros."""
        count, height, width = images.shape[:3]
        padded = -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple
        pixels = np.zeros((count, 3, *padded), np.float32)
        for image, planes in zip(images, pixels, strict=True):
            order = planes[::-1] if self.bgr else planes
            for plane, channel, mean, std in zip(order, cv2.split(image), self.mean, self.std, strict=True):
                plane[:height, :width] = (channel - np.float32(mean)) / np.float32(std)
        return pixels


def prepare(frame: Frame, rule: InputRule) -> tuple[UInt8[np.ndarray, "H W 3"], Geometry]:
    """Resize a frame to the network's size.

    Returns:
        The image, still 0..255 and not padded, and the geometry that leads back.
    """
    geometry = rule.fit(frame.size)
    return resize_frame(frame, geometry.resized), geometry


def resize_frame(frame: Frame, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the image at a height and width: area averages when it shrinks, bilinear when it grows.

    It is never the frame's own memory, which may be written over.
    """
    if size == frame.size:
        return np.array(frame.rgb, order="C")
    shrinks = size[0] < frame.size[0]
    return np.asarray(
        cv2.resize(frame.rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    )


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a mask classifier predicts for a batch of images.

    Attributes:
        class_logits: Logits of K classes and, last, "no object", for each query.
        mask_logits: One mask per query on the mask grid, which covers the padded image.
        queries: The embeddings that class and mask logits were made from, normalised as the decoder's heads take them.
    """

    class_logits: Float[np.ndarray, "B Q K1"]
    mask_logits: Float[np.ndarray, "B Q h w"]
    queries: Float[np.ndarray, "B Q D"]


@dataclass(frozen=True, eq=False)
class PixelPrediction:
    """What a segmentor without queries predicts for a batch of images.

    Attributes:
        scores: One map a class, on a grid that covers the padded image.
        kind: ``logits``, of which the softmax is propagated; or ``scores``, 0 or more. The largest wins.
        ids: The class of each map, ascending, where there are not all of them, in order; the number of classes itself
            stands for no class.
    """

    scores: Float[np.ndarray, "B P h w"]
    kind: Literal["logits", "scores"] = "logits"
    ids: Int64[np.ndarray, " P"] | None = None


@runtime_checkable
class Segmentor(Protocol):
    """Any model that segments images: into queries, their classes and their masks, or into classes of pixels."""

    name: str
    class_names: tuple[str, ...]
    rule: InputRule

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction | PixelPrediction:
        """Segment a batch of images, RGB 0..255, of the size that ``rule`` gives, not padded."""
        ...


class FunctionError(ModelError):
    """A function that was wrapped as a segmentor failed, or answered what cannot be used."""


def check_prediction(segmentor: Segmentor, prediction: Prediction | PixelPrediction) -> None:
    """Refuse an answer that is not of the shape that a segmentor's classes ask for.

    Raises:
        ModelError: It is so.
    """
    classes = len(segmentor.class_names)
    if isinstance(prediction, PixelPrediction):
        count = classes if prediction.ids is None else len(prediction.ids)
        if prediction.scores.shape[1] != count:
            raise ModelError(
                f"{segmentor.name}: expected scores of {count} classes, got {prediction.scores.shape[1]} maps; "
                "class_names has one name for each class"
            )
        return
    if prediction.class_logits.shape[-1] != classes + 1:
        raise ModelError(
            f"{segmentor.name}: expected class logits of {classes} classes and, last, no object, got "
            f"{prediction.class_logits.shape[-1]} columns; a segmentor without a no-object column adds one of -inf "
            "or -1e4, and class_names has one name for each class"
        )
    counts = [value.shape[1] for value in (prediction.class_logits, prediction.mask_logits, prediction.queries)]
    if len(set(counts)) > 1:
        raise ModelError(
            f"{segmentor.name}: expected one class, one mask and one embedding for each query, "
            f"got {counts[0]} classes, {counts[1]} masks and {counts[2]} embeddings"
        )
