"""A scene for simulated pairs: what the camera does, which segments move on their own, and what is behind them."""

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt16

from mpvss.labels import IGNORE

LabelMap = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
Affine = Float64[np.ndarray, "2 3"]

# Random magnitudes are normal and cut off here, so that no pair is torn apart.
_CUT_OFF = 2.0
# Label edges lie a little inside of the objects: what is continued behind a segment begins this far from it.
_MARGIN = 3
# Regions are searched for on every n-th pixel.
_STRIDE = 4
IMPURE = 255


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
        if not 0 <= self.segments[0] <= self.segments[1] < IMPURE - 1:
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
class Segment:
    """A layer in front of the background.

    Attributes:
        mask: 255 on its positions in the scene, 0 elsewhere.
        to_key: A: from the scene to the key frame.
        to_seen: B: from the scene to the scene that the camera sees for the current frame.
    """

    mask: UInt8[np.ndarray, "H W"]
    to_key: Affine
    to_seen: Affine


# Motion


def normal(random: np.random.Generator, deviation: float, count: int) -> Float64[np.ndarray, " count"]:
    """Draw normal numbers, cut off so that no pair is torn apart."""
    return deviation * random.standard_normal(count).clip(-_CUT_OFF, _CUT_OFF)


def pixel_grid(height: int, width: int) -> Float32[np.ndarray, "H W 2"]:
    """Return x and y of every pixel."""
    ys, xs = np.indices((height, width), np.float32)
    return np.stack([xs, ys], 2)


def camera_map(
    grid: Float32[np.ndarray, "H W 2"], frames: int, random: np.random.Generator, config: SimulationConfig
) -> Float32[np.ndarray, "H W 2"]:
    """C: for each pixel of the current frame, its position in the scene.

    The camera turns (a projective map), then moves: a shift and a growth about a point of the image, both in
    proportion to inverse depth. Inverse depth is positive, smooth and 1 in the mean; nearer towards the bottom.
    """
    height, width = grid.shape[:2]
    unit = min(height, width)
    turn = math.radians(normal(random, config.rotation * frames, 1)[0])
    lean_x, lean_y = normal(random, config.perspective * frames, 2)
    pan_x, pan_y = normal(random, config.pan * frames, 2)
    zoom = normal(random, config.zoom * frames, 1)[0]
    focus_x, focus_y = normal(random, 0.1, 2)
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
    position = np.empty_like(grid)
    for axis, (turned, pan, focus) in enumerate(
        (
            (np.float32(cosine) * x - np.float32(sine) * y, pan_x, focus_x),
            (np.float32(sine) * x + np.float32(cosine) * y, pan_y, focus_y),
        )
    ):
        seen = turned * shrink
        shift = seen - (x, y)[axis] + near * (np.float32(zoom) * seen + np.float32(pan - zoom * focus))
        position[..., axis] = shift * np.float32(unit)
    position += grid
    return position


def move_segment(
    mask: UInt8[np.ndarray, "H W"], frames: int, random: np.random.Generator, config: SimulationConfig
) -> Segment:
    """Give a segment its own motion about its middle, a random share of it in the key frame and the rest opposite."""
    left, top, width, height = cv2.boundingRect(mask)
    middle = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
    shift = normal(random, config.own * frames * min(mask.shape), 2)
    growth = normal(random, config.own_zoom * frames, 1)[0]
    turn = math.radians(normal(random, config.own_rotation * frames, 1)[0])
    share = random.random()

    def part(amount: float) -> Affine:
        scale = math.exp(amount * growth)
        cosine, sine = scale * math.cos(amount * turn), scale * math.sin(amount * turn)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        return np.column_stack([linear, middle + amount * shift - linear @ middle])

    return Segment(mask, part(-share), part(1 - share))


def inverse(affine: Affine) -> Affine:
    """Return the affine map back."""
    return np.asarray(cv2.invertAffineTransform(affine), np.float64)


def after(last: Affine, first: Affine) -> Affine:
    """The affine map that applies ``first`` and then ``last``."""
    linear = last[:, :2] @ first[:, :2]
    return np.column_stack([linear, last[:, :2] @ first[:, 2] + last[:, 2]])


# Segments


def choose_masks(
    label: LabelMap | None, size: tuple[int, int], random: np.random.Generator, config: SimulationConfig
) -> list[UInt8[np.ndarray, "H W"]]:
    """Return the masks of the segments that move on their own: regions of the label, or blobs without one."""
    count = int(random.integers(config.segments[0], config.segments[1], endpoint=True))
    if label is None:
        return [_blob(size, random, config.segment_area) for _ in range(count)]
    regions = _regions(label, config.segment_area) if count else {}
    # The Gumbel trick: draws without replacement; streets have many small signs for each car.
    scores = random.gumbel(size=len(regions)) + [math.log(pixels) / 2 for pixels in regions.values()]
    filled = np.ascontiguousarray(label if label.dtype == np.uint8 else label.astype(np.float32))
    flags = 4 | (255 << 8) | cv2.FLOODFILL_MASK_ONLY
    masks = []
    for number in np.argsort(-scores)[:count]:
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


def continue_behind(
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
    source_of = np.zeros(int(nearest.max()) + 1, np.int64)
    source_of[nearest.ravel()[around]] = around
    outline = source_of[nearest.ravel()[inside]]
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
