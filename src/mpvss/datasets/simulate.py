"""Training pairs made from single images, with the exact flow.

The image is taken for a scene of layers: segments that move on their own, in front of a background that is continued
behind them. A segment k lies at A_k(s) in the key frame for each of its places s in the scene, and at B_k(s) in the
scene that the camera sees later. The camera is a map C from pixels of the current frame to that scene. Then the layer k
that is in front at the pixel x of the current frame shows its place s = B_k^-1(C(x)), and the key frame shows the same
place at A_k(s), so that

    flow(x) = A_k(B_k^-1(C(x))) - x.

Only A and B have to be inverted, and they are affine: C may be any smooth map, and the flow is exact. The key frame is
taken without the camera's motion, so A and B of the background are the identity.

C is what a camera sees that turns and moves through a scene of smoothly changing depth. Pixels of the current frame
that the camera finds outside of the image show its reflection, have no label and are not visible.
"""

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8, UInt16
from scipy.special import ndtri

from mpvss.datasets.augment import Pair
from mpvss.labels import IGNORE

LabelMap = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
Affine = Float64[np.ndarray, "2 3"]

# Random magnitudes are normal and cut off here, so that no pair is torn apart.
_CUT_OFF = 2.0
# Label edges lie a little inside of the objects: what is continued behind a segment begins this far from it.
_MARGIN = 3
# Regions are searched for on every n-th pixel.
_STRIDE = 4
_NORMAL_QUANTILES = ndtri((np.arange(256) + 0.5) / 256).astype(np.float32)
_IMPURE = 255


@dataclass(frozen=True)
class SimulationConfig:
    """How much a simulated pair moves and changes.

    Magnitudes are standard deviations for each frame of time, cut off at twice their value; lengths are shares of the
    image's shorter side. The defaults resemble a street video of 15 frames a second: on 360x480 images, a mean
    displacement of about 2 pixels for each frame of time.

    Attributes:
        frames: Least and greatest number of frames of time that lie between the two; 1 to 1 for chained motion.
        zoom: Camera forward or backward, as the relative growth of things at mean depth.
        pan: Camera to the side, up or down, or turned that way: shift of things at mean depth.
        rotation: Camera rolled, in degrees.
        perspective: Change of the scale from the middle to a short side's length from it.
        parallax: Standard deviation of the logarithm of inverse depth; 0 is a scene of one depth.
        segments: Least and greatest number of segments that move on their own. With labels they are regions of one
            class that do not touch the border, larger ones more often (by the square root of their size), and there
            may be fewer; without, they are random blobs.
        segment_area: Least and greatest share of the image that a segment takes.
        own: Shift of a segment.
        own_zoom: Growth of a segment.
        own_rotation: Turn of a segment, in degrees.
        photometric: Strength of the change of brightness, sharpness and noise, made in each frame by itself; 0 for
            none.
    """

    frames: tuple[int, int] = (1, 10)
    zoom: float = 0.012
    pan: float = 0.004
    rotation: float = 0.1
    perspective: float = 0.004
    parallax: float = 0.5
    segments: tuple[int, int] = (0, 4)
    segment_area: tuple[float, float] = (0.001, 0.12)
    own: float = 0.008
    own_zoom: float = 0.008
    own_rotation: float = 0.3
    photometric: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.frames[0] <= self.frames[1]:
            raise ValueError(f"frames must be a least and a greatest number from 0 on, got {self.frames}")
        if not 0 <= self.segments[0] <= self.segments[1] < _IMPURE - 1:
            raise ValueError(f"segments must be a least and a greatest number from 0 to 253, got {self.segments}")
        if not 0 < self.segment_area[0] <= self.segment_area[1] <= 0.5:
            raise ValueError(f"segment_area must be two shares above 0 and up to 0.5, got {self.segment_area}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be 0 or more, got {value}")
        longest = self.frames[1] * _CUT_OFF
        if max(self.zoom, self.perspective, self.own_zoom) * longest > 1:
            raise ValueError(
                f"zoom, perspective and own_zoom must be at most {1 / longest:g} for {self.frames[1]} frames, got "
                f"{self.zoom}, {self.perspective} and {self.own_zoom}"
            )


@dataclass(eq=False)
class _Segment:
    """A layer in front of the background.

    Attributes:
        mask: 255 on its places in the scene, 0 elsewhere.
        to_key: A: from the scene to the key frame.
        to_seen: B: from the scene to the scene that the camera sees for the current frame.
    """

    mask: UInt8[np.ndarray, "H W"]
    to_key: Affine
    to_seen: Affine


@dataclass(eq=False)
class _Canvas:
    """A frame that layers are put on, back to front."""

    picture: UInt8[np.ndarray, "H W 3"]
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
    grid = _grid(height, width)
    camera = _camera(grid, frames, random, config)
    masks = _choose_masks(label, (height, width), random, config)
    segments = [_move(mask, frames, random, config) for mask in masks]

    scene, scene_label = _continue_behind(image, label, masks)
    layer = np.zeros((height, width), np.uint8)
    current = _Canvas(
        cv2.remap(scene, camera, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101),
        None if scene_label is None else _fetch_label(scene_label, camera),
        layer.copy(),
    )
    key = _Canvas(scene.copy(), None if scene_label is None else scene_label.copy(), layer)
    flow = camera - grid
    for number, segment in enumerate(segments, 1):
        _place(key, number, segment.mask, segment.to_key, grid, image, label)
        own, box = _place(current, number, segment.mask, segment.to_seen, camera, image, label)
        seen_to_key = _after(segment.to_key, _inverse(segment.to_seen))
        moved = cv2.transform(np.ascontiguousarray(camera[box]), seen_to_key) - grid[box]
        flow[box][own] = moved[own]

    visible = _visible(flow + grid, current.layer, key.layer)
    pictures = [_photograph(canvas.picture, random, config.photometric) for canvas in (current, key)]
    return Pair(
        current=torch.from_numpy(pictures[0]).permute(2, 0, 1),
        key=torch.from_numpy(pictures[1]).permute(2, 0, 1),
        current_label=None if current.label is None else torch.from_numpy(current.label.astype(np.int64)),
        key_label=None if key.label is None else torch.from_numpy(key.label.astype(np.int64)),
        flow=torch.from_numpy(flow).permute(2, 0, 1),
        visible=torch.from_numpy(visible),
        distance=0,
    )


# Motion


def _normal(random: np.random.Generator, deviation: float, count: int) -> Float64[np.ndarray, " count"]:
    return deviation * random.standard_normal(count).clip(-_CUT_OFF, _CUT_OFF)


def _grid(height: int, width: int) -> Float32[np.ndarray, "H W 2"]:
    grid = np.empty((height, width, 2), np.float32)
    grid[..., 0] = np.arange(width)
    grid[..., 1] = np.arange(height)[:, None]
    return grid


def _camera(
    grid: Float32[np.ndarray, "H W 2"], frames: int, random: np.random.Generator, config: SimulationConfig
) -> Float32[np.ndarray, "H W 2"]:
    """C: for each pixel of the current frame, its place in the scene.

    The camera turns (a projective map), then moves: a shift and a growth about a point of the image, both in
    proportion to inverse depth. Inverse depth is positive, smooth and 1 in the mean; nearer towards the bottom.
    """
    height, width = grid.shape[:2]
    unit = min(height, width)
    turn = math.radians(_normal(random, config.rotation * frames, 1)[0])
    lean_x, lean_y = _normal(random, config.perspective * frames, 2)
    pan_x, pan_y = _normal(random, config.pan * frames, 2)
    zoom = _normal(random, config.zoom * frames, 1)[0]
    focus_x, focus_y = _normal(random, 0.1, 2)
    knots = config.parallax * (
        0.7 * random.standard_normal((4, 5)).clip(-_CUT_OFF, _CUT_OFF)
        + random.uniform(0, 2) * np.linspace(-1, 1, 4)[:, None]
    )
    # Capped: what is nearer than half of the mean distance would be torn apart in ten frames.
    nearness = np.exp(knots.clip(None, math.log(2))).astype(np.float32)
    near = cv2.resize(nearness, (width, height), interpolation=cv2.INTER_LINEAR)
    # Twice as smooth as straight pieces between knots.
    box = 2 * max(height // 8, 1) + 1
    near = cv2.blur(near, (box, box), borderType=cv2.BORDER_REFLECT_101)
    near /= near.mean()

    x = ((np.arange(width) - (width - 1) / 2) / unit).astype(np.float32)
    y = ((np.arange(height) - (height - 1) / 2) / unit).astype(np.float32)[:, None]
    sine, cosine = math.sin(turn), math.cos(turn)
    shrink = 1 / (1 + np.float32(lean_x) * x + np.float32(lean_y) * y)
    place = np.empty_like(grid)
    for axis, (turned, pan, focus) in enumerate(
        (
            (np.float32(cosine) * x - np.float32(sine) * y, pan_x, focus_x),
            (np.float32(sine) * x + np.float32(cosine) * y, pan_y, focus_y),
        )
    ):
        seen = turned * shrink
        shift = seen - (x, y)[axis] + near * (np.float32(zoom) * seen + np.float32(pan - zoom * focus))
        place[..., axis] = shift * np.float32(unit)
    place += grid
    return place


def _move(
    mask: UInt8[np.ndarray, "H W"], frames: int, random: np.random.Generator, config: SimulationConfig
) -> _Segment:
    """Give a segment its own motion about its middle, a random share of it in the key frame and the rest opposite."""
    left, top, width, height = cv2.boundingRect(mask)
    middle = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
    shift = _normal(random, config.own * frames * min(mask.shape), 2)
    growth = _normal(random, config.own_zoom * frames, 1)[0]
    turn = math.radians(_normal(random, config.own_rotation * frames, 1)[0])
    share = random.random()

    def part(amount: float) -> Affine:
        scale = math.exp(amount * growth)
        cosine, sine = scale * math.cos(amount * turn), scale * math.sin(amount * turn)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        return np.column_stack([linear, middle + amount * shift - linear @ middle])

    return _Segment(mask, part(-share), part(1 - share))


def _inverse(affine: Affine) -> Affine:
    return np.asarray(cv2.invertAffineTransform(affine), np.float64)


def _after(last: Affine, first: Affine) -> Affine:
    """The affine map that applies ``first`` and then ``last``."""
    linear = last[:, :2] @ first[:, :2]
    return np.column_stack([linear, last[:, :2] @ first[:, 2] + last[:, 2]])


# Segments


def _choose_masks(
    label: LabelMap | None, size: tuple[int, int], random: np.random.Generator, config: SimulationConfig
) -> list[UInt8[np.ndarray, "H W"]]:
    count = int(random.integers(config.segments[0], config.segments[1], endpoint=True))
    if label is None:
        return [_blob(size, random, config.segment_area) for _ in range(count)]
    regions = _regions(label, config.segment_area) if count else {}
    # The Gumbel trick: draws without replacement; streets have many small signs for each car.
    chance = random.gumbel(size=len(regions)) + [math.log(pixels) / 2 for pixels in regions.values()]
    filled = np.ascontiguousarray(label if label.dtype == np.uint8 else label.astype(np.float32))
    flags = 4 | (255 << 8) | cv2.FLOODFILL_MASK_ONLY
    masks = []
    for number in np.argsort(-chance)[:count]:
        mask = np.zeros((size[0] + 2, size[1] + 2), np.uint8)
        cv2.floodFill(filled, mask, list(regions)[number], 0, 0, 0, flags)
        masks.append(np.ascontiguousarray(mask[1:-1, 1:-1]))
    return masks


def _regions(label: LabelMap, area: tuple[float, float]) -> dict[tuple[int, int], int]:
    """One pixel (x, y) of each connected region of one class, of the right size, away from the border; and its size."""
    few = np.ascontiguousarray(label[::_STRIDE, ::_STRIDE])
    height, width = few.shape
    regions = {}
    for class_id in np.unique(few):
        if class_id == IGNORE:
            continue
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats((few == class_id).astype(np.uint8), connectivity=4)
        for number in range(1, count):
            left, top, wide, high, pixels = (int(value) for value in boxes[number])
            inner = left > 0 and top > 0 and left + wide < width and top + high < height
            if inner and area[0] <= pixels / few.size <= area[1]:
                column = left + int(np.argmax(numbers[top, left : left + wide] == number))
                regions[column * _STRIDE, top * _STRIDE] = pixels
    return regions


def _blob(size: tuple[int, int], random: np.random.Generator, area: tuple[float, float]) -> UInt8[np.ndarray, "H W"]:
    """A smooth random outline inside the image."""
    share = math.exp(random.uniform(math.log(area[0]), math.log(area[1])))
    radius = math.sqrt(share * size[0] * size[1] / math.pi)
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    waves = random.normal(0, [[0.25], [0.12], [0.06]], (3, 2))
    orders = np.arange(2, 5)[:, None] * angles
    outline = radius * (1 + waves[:, 0] @ np.cos(orders) + waves[:, 1] @ np.sin(orders)).clip(0.3, 2)
    middle = random.uniform(0.15, 0.85, 2) * (size[1], size[0])
    points = middle + outline[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 255)
    # A segment that the border cuts off would show a straight edge where it moves inwards.
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    return mask


def _continue_behind(
    image: UInt8[np.ndarray, "H W 3"], label: LabelMap | None, masks: list[UInt8[np.ndarray, "H W"]]
) -> tuple[UInt8[np.ndarray, "H W 3"], LabelMap | None]:
    """The background: where segments were, the reflection of what is around them."""
    if not masks:
        return image, label
    hole = np.bitwise_or.reduce(masks)
    hole = cv2.dilate(hole, np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8))
    # Never the whole image: neither regions nor blobs touch the border, but the margin may.
    hole[[0, -1]] = 0
    hole[:, [0, -1]] = 0
    _, nearest = cv2.distanceTransformWithLabels(hole, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    around = np.flatnonzero(hole == 0)
    inside = np.flatnonzero(hole)
    place_of = np.zeros(int(nearest.max()) + 1, np.int64)
    place_of[nearest.ravel()[around]] = around
    outline = place_of[nearest.ravel()[inside]]
    height, width = hole.shape
    rows, columns = np.divmod(inside, width)
    outline_rows, outline_columns = np.divmod(outline, width)
    reflected_rows = (2 * outline_rows - rows).clip(0, height - 1)
    reflected_columns = (2 * outline_columns - columns).clip(0, width - 1)
    reflected = reflected_rows * width + reflected_columns
    source = np.where(hole.ravel()[reflected] == 0, reflected, outline)

    scene = image.copy()
    scene.reshape(-1, 3)[inside] = image.reshape(-1, 3)[source]
    # Reflections at different sides of the outline meet in seams.
    scene[hole > 0] = cv2.GaussianBlur(scene, (0, 0), 1.5)[hole > 0]
    if label is None:
        return scene, None
    scene_label = label.copy()
    scene_label.ravel()[inside] = label.ravel()[source]
    return scene, scene_label


# Drawing


def _fetch_label(label: LabelMap, places: Float32[np.ndarray, "h w 2"]) -> np.ndarray:
    fetched = cv2.remap(label, places, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE)
    return np.asarray(fetched)


def _place(
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
        mask: Its places in the scene.
        affine: From the scene to where the segment is.
        base: For each pixel of the frame, the place that ``affine`` has to reach to be seen there.
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
    places = cv2.transform(np.ascontiguousarray(base[box]), _inverse(affine))
    cover = cv2.remap(mask, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    content = cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    weight = cover.astype(np.float32) / np.float32(255)
    behind = np.ascontiguousarray(canvas.picture[box])
    canvas.picture[box] = cv2.blendLinear(content, behind, weight, 1 - weight)
    own = cover > 127
    canvas.layer[box][own] = number
    if canvas.label is not None and label is not None:
        canvas.label[box][own] = _fetch_label(label, places)[own]
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
    unmixed = np.where(pure[1], key_layer, np.uint8(_IMPURE))
    found = cv2.remap(unmixed, target, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(inside & pure[0] & (found == current_layer))


def _photograph(
    picture: UInt8[np.ndarray, "H W 3"], random: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Another exposure of the same view: brightness, white balance, sharpness, noise."""
    gain = np.exp(_normal(random, 0.03, 1) + _normal(random, 0.01, 3)) ** strength
    offset = _normal(random, 2.0 * strength, 1)[0]
    blur = random.uniform(-1.0, 0.9) * strength
    noise = abs(_normal(random, 1.5 * strength, 1)[0])
    if strength == 0:
        return picture
    levels = np.arange(256)[:, None] * gain + offset
    changed = cv2.LUT(picture, levels.round().clip(0, 255).astype(np.uint8)[None])
    if blur > 0.3:
        changed = cv2.GaussianBlur(changed, (0, 0), blur)
    # A byte chooses one of 256 quantiles: much cheaper than normal numbers, and as good here.
    dice = np.frombuffer(random.bytes(picture.size), np.uint8).reshape(picture.shape)
    table = (noise * _NORMAL_QUANTILES).round().astype(np.int16)
    return np.asarray(cv2.add(changed, table[dice], dtype=cv2.CV_8U))
