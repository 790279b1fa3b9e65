"""Small worlds for tests: random models, moving pictures, true labels as key states."""

from dataclasses import fields
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mpvss.batch.settings import Settings
from mpvss.options import OutputOptions
from mpvss.segmentors.protocol import InputRule, Prediction
from mpvss.types import Frame


def moving_frames(count: int, size: tuple[int, int] = (64, 96), speed: int = 2, seed: int = 0) -> list[Frame]:
    """A textured scene that moves to the left by ``speed`` pixels a frame."""
    random = np.random.default_rng(seed)
    height, width = size
    coarse = random.integers(0, 256, (height // 16 + 2, (width + count * speed) // 16 + 2, 3))
    fine = random.integers(-20, 21, (height, width + count * speed, 3))
    wide = np.kron(coarse, np.ones((16, 16, 1)))[:height, : width + count * speed]
    wide = cv2.GaussianBlur(np.clip(wide + fine, 0, 255).astype(np.uint8), (0, 0), 1.5)
    return [
        Frame(i, Fraction(i, 15), np.ascontiguousarray(wide[:, i * speed : i * speed + width])) for i in range(count)
    ]


class ColourSegmentor:
    """A mask classifier without weights: query q's mask is large where colour channel q rules.

    It has one query more, which says "no object". Its masks are at stride 4.
    """

    name = "colour"
    class_names = ("red", "green", "blue")

    def __init__(self, short_side: int | None = None, device: str = "cpu") -> None:
        self.rule = InputRule(short_side=short_side, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
        self.device = device
        self.calls = 0

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction:
        self.calls += len(images)
        pixels = self.rule.normalise(images)
        count, _, height, width = pixels.shape
        small = pixels.reshape(count, 3, height // 4, 4, width // 4, 4).mean((3, 5), dtype=np.float32)
        masks = np.concatenate([(small - small.mean(1, keepdims=True)) * 20, small[:, :1]], 1)
        classes = np.tile(np.eye(4, dtype=np.float32) * 9, (count, 1, 1))
        return Prediction(classes, masks, np.zeros((count, 4, 8), np.float32))


def batch_settings(split: int = 1500, **options: Any) -> Settings:
    """Settings of a batch from options of either class by their names."""
    return changed(Settings(split=split), **options)


def changed(settings: Settings, **options: Any) -> Settings:
    """The same settings but for these options of either class, or ``split``."""
    split = options.pop("split", settings.split)
    of_output = {each.name for each in fields(OutputOptions)}
    output = settings.output.replace(**{name: value for name, value in options.items() if name in of_output})
    segment = settings.segment.replace(**{name: value for name, value in options.items() if name not in of_output})
    return Settings(segment, output, split)
