"""Training pairs made from single images, with the exact flow.

The image is taken for a scene of layers: segments that move on their own, in front of a background that is continued
behind them. A segment k lies at A_k(s) in the key frame for each of its positions s in the scene, and at B_k(s) in the
scene that the camera sees later. The camera is a map C from pixels of the current frame to that scene. Then the layer k
that is in front at the pixel x of the current frame shows its position s = B_k^-1(C(x)), and the key frame shows it at
A_k(s), so that

    flow(x) = A_k(B_k^-1(C(x))) - x.

Only A and B have to be inverted, and they are affine: C may be any smooth map, and the flow is exact. The key frame is
taken without the camera's motion, so A and B of the background are the identity.

C is what a camera sees that turns and moves through a scene of smoothly changing depth. Pixels of the current frame
that the camera finds outside of the image show its reflection, have no label and are not visible.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from scipy.special import ndtri

from mpvss.datasets.augment import Pair
from mpvss.datasets.scene import (
    IMPURE,
    Affine,
    LabelMap,
    SimulationConfig,
    after,
    camera_map,
    choose_masks,
    continue_behind,
    inverse,
    move_segment,
    normal,
    pixel_grid,
)
from mpvss.labels import IGNORE

__all__ = ["SimulationConfig", "simulate"]

_NORMAL_QUANTILES = ndtri((np.arange(256) + 0.5) / 256).astype(np.float32)


@dataclass(eq=False)
class _Canvas:
    """A frame that layers are put on, back to front."""

    image: UInt8[np.ndarray, "H W 3"]
    label: LabelMap | None
    layer: UInt8[np.ndarray, "H W"]


def simulate(
    image: UInt8[np.ndarray, "H W 3"], label: LabelMap | None, random: np.random.Generator, config: SimulationConfig
) -> Pair:
    """Make a training pair from one image; see the head of this module for how.

    Args:
        image: The image, RGB, of at least 16x16 pixels.
        label: Its class ids, 255 where there is none; ``None`` without labels.
        random: The only source of randomness.
        config: How much moves.

    Returns:
        A pair of the image's size and distance 0. What a segment uncovers is the background's reflection at the
        segment's outline, with its label. It is visible only where the other frame shows it, too. Pixels at an
        outline that mix two layers are not visible.

    Raises:
        ValueError: The image is too small, or the label has another size.
    """
    height, width = image.shape[:2]
    if min(height, width) < 16:
        raise ValueError(f"expected an image of at least 16x16 pixels, got {height}x{width}")
    if label is not None and label.shape != (height, width):
        raise ValueError(f"expected a label of the image's size {height}x{width}, got {label.shape}")
    image = np.ascontiguousarray(image)
    frames = int(random.integers(config.frames[0], config.frames[1], endpoint=True))
    grid = pixel_grid(height, width)
    camera = camera_map(grid, frames, random, config)
    masks = choose_masks(label, (height, width), random, config)
    segments = [move_segment(mask, frames, random, config) for mask in masks]

    scene, scene_label = continue_behind(image, label, masks)
    layer = np.zeros((height, width), np.uint8)
    current = _Canvas(
        cv2.remap(scene, camera, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101),
        None if scene_label is None else _warp_label(scene_label, camera),
        layer.copy(),
    )
    key = _Canvas(scene.copy(), None if scene_label is None else scene_label.copy(), layer)
    flow = camera - grid
    for number, segment in enumerate(segments, 1):
        _draw(key, number, segment.mask, segment.to_key, grid, image, label)
        own, box = _draw(current, number, segment.mask, segment.to_seen, camera, image, label)
        seen_to_key = after(segment.to_key, inverse(segment.to_seen))
        moved = cv2.transform(np.ascontiguousarray(camera[box]), seen_to_key) - grid[box]
        flow[box][own] = moved[own]

    visible = _visible(flow + grid, current.layer, key.layer)
    images = [_photograph(canvas.image, random, config.photometric) for canvas in (current, key)]
    return Pair(
        current=torch.from_numpy(images[0]).permute(2, 0, 1),
        key=torch.from_numpy(images[1]).permute(2, 0, 1),
        current_label=None if current.label is None else torch.from_numpy(current.label.astype(np.int64)),
        key_label=None if key.label is None else torch.from_numpy(key.label.astype(np.int64)),
        flow=torch.from_numpy(flow).permute(2, 0, 1),
        visible=torch.from_numpy(visible),
        distance=0,
    )


# Drawing


def _warp_label(label: LabelMap, positions: Float32[np.ndarray, "h w 2"]) -> np.ndarray:
    warped = cv2.remap(label, positions, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE)
    return np.asarray(warped)


def _draw(
    canvas: _Canvas,
    number: int,
    mask: UInt8[np.ndarray, "H W"],
    affine: Affine,
    base: Float32[np.ndarray, "H W 2"],
    image: UInt8[np.ndarray, "H W 3"],
    label: LabelMap | None,
) -> tuple[Bool[np.ndarray, "h w"], tuple[slice, slice]]:
    """Put a segment on a frame.

    Args:
        canvas: The frame; changed.
        number: The segment's number, counted from 1.
        mask: Its positions in the scene.
        affine: From the scene to where the segment is.
        base: For each pixel of the frame, the position that ``affine`` has to reach to be seen there.
        image: The scene's image.
        label: Its class ids.

    Returns:
        Which pixels the segment has taken, within a box of the frame; and the box.
    """
    left, top, wide, high = cv2.boundingRect(mask)
    corners = np.array([[[x, y] for x in (left - 1, left + wide) for y in (top - 1, top + high)]], np.float64)
    reached = cv2.transform(corners, affine)[0]
    near = cv2.inRange(base, reached.min(0), reached.max(0))
    x, y, columns, rows = cv2.boundingRect(near)
    box = (slice(y, y + rows), slice(x, x + columns))
    if not columns or not rows:
        return np.zeros((0, 0), np.bool_), (slice(0, 0), slice(0, 0))
    positions = cv2.transform(np.ascontiguousarray(base[box]), inverse(affine))
    cover = cv2.remap(mask, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    content = cv2.remap(image, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    weight = cover.astype(np.float32) / np.float32(255)
    behind = np.ascontiguousarray(canvas.image[box])
    canvas.image[box] = cv2.blendLinear(content, behind, weight, 1 - weight)
    own = cover > 127
    canvas.layer[box][own] = number
    if canvas.label is not None and label is not None:
        canvas.label[box][own] = _warp_label(label, positions)[own]
    return own, box


def _visible(
    target: Float32[np.ndarray, "H W 2"], current_layer: UInt8[np.ndarray, "H W"], key_layer: UInt8[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """Where the target is inside the key frame and both frames show the same layer there, not mixed with another."""
    height, width = current_layer.shape
    inside = np.asarray(cv2.inRange(target, (0.0, 0.0), (width - 1.0, height - 1.0)) > 0)
    if not current_layer.any() and not key_layer.any():
        return inside
    around = np.ones((3, 3), np.uint8)
    pure = [cv2.erode(layer, around) == cv2.dilate(layer, around) for layer in (current_layer, key_layer)]
    unmixed = np.where(pure[1], key_layer, np.uint8(IMPURE))
    key_layer_at_target = cv2.remap(unmixed, target, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(inside & pure[0] & (key_layer_at_target == current_layer))


def _photograph(
    image: UInt8[np.ndarray, "H W 3"], random: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Another exposure of the same view: brightness, white balance, sharpness, noise."""
    gain = np.exp(normal(random, 0.03, 1) + normal(random, 0.01, 3)) ** strength
    offset = normal(random, 2.0 * strength, 1)[0]
    blur = random.uniform(-1.0, 0.9) * strength
    noise = abs(normal(random, 1.5 * strength, 1)[0])
    if strength == 0:
        return image
    levels = np.arange(256)[:, None] * gain + offset
    changed = cv2.LUT(image, levels.round().clip(0, 255).astype(np.uint8)[None])
    if blur > 0.3:
        changed = cv2.GaussianBlur(changed, (0, 0), blur)
    # A byte chooses one of 256 quantiles: much cheaper than normal numbers, and as good here.
    dice = np.frombuffer(random.bytes(image.size), np.uint8).reshape(image.shape)
    table = (noise * _NORMAL_QUANTILES).round().astype(np.int16)
    return np.asarray(cv2.add(changed, table[dice], dtype=cv2.CV_8U))
