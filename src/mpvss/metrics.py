"""How good a segmentation of video is: accuracy per pixel, consistency over time, and flicker.

Every metric is an accumulator: ``update`` frame by frame, read a property, ``merge`` another one into it, and carry the
totals through JSON with ``state`` and ``from_state``. Its size does not grow with the number of frames or videos. Label
maps are integer arrays; ids below 0 or from K upwards are not classes.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Integer, UInt8

from mpvss._validate import convert, shown

_M = TypeVar("_M", bound="_Metric")


class _Counts(TypedDict):
    index: list[int]
    count: list[int]


# Pixels a side below which there is no pyramid for optical flow to work on.
SMALLEST_FLOW = 16


def _require_integers(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"{name} must hold integer class ids, got dtype {array.dtype}")


def _require_same_shape(**arrays: np.ndarray) -> None:
    (first, one), (second, other) = arrays.items()
    if one.shape != other.shape:
        raise ValueError(f"{first} and {second} must have one shape, got {one.shape} and {other.shape}")


class _Metric:
    """Totals that can be merged and written down.

    A subclass names its constructor's arguments in ``_settings`` and its totals, numbers or integer arrays, in
    ``_totals``; both are attributes.
    """

    _settings: ClassVar[tuple[str, ...]]
    _totals: ClassVar[tuple[str, ...]]

    def _inside_video(self) -> bool:
        """Whether a video has begun and not ended, so that the totals are not the whole truth."""
        return False

    def _require_between_videos(self) -> None:
        if self._inside_video():
            raise ValueError(f"{type(self).__name__}: a video is still open; call end_video() first")

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._settings}

    def merge(self: _M, other: _M) -> None:
        """Take in what another metric of the same kind and settings has seen.

        Raises:
            ValueError: The settings differ, or one of the two is in the middle of a video.
        """
        if type(self) is not type(other) or self._arguments() != other._arguments():
            raise ValueError(
                f"only metrics of one kind and settings can be merged, got {type(self).__name__}"
                f"{self._arguments()} and {type(other).__name__}{other._arguments()}"
            )
        self._require_between_videos()
        other._require_between_videos()
        for name in self._totals:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def state(self) -> dict[str, Any]:
        """Settings and totals as JSON can hold them, exactly.

        Raises:
            ValueError: The metric is in the middle of a video.
        """
        self._require_between_videos()
        state = self._arguments()
        for name in self._totals:
            total = getattr(self, name)
            if isinstance(total, np.ndarray):  # mostly zeros: few classes meet in one video
                index = np.flatnonzero(total)
                total = {"index": index.tolist(), "count": total.ravel()[index].tolist()}
            state[name] = total
        return state

    @classmethod
    def from_state(cls: type[_M], state: dict[str, Any]) -> _M:
        """The metric that ``state`` was taken from.

        Raises:
            ValueError: The dictionary is not a state of this metric.
        """
        what = f"a state of {cls.__name__}"
        names = {*cls._settings, *cls._totals}
        if set(state) != names:
            raise ValueError(f"{what}: expected the keys {sorted(names)}, got {sorted(state)}")
        metric = cls(**{name: convert(state[name], bool | int, what=f"{what}: {name}") for name in cls._settings})
        for name in cls._totals:
            counts = getattr(metric, name)
            if isinstance(counts, np.ndarray):
                _fill(counts, convert(state[name], _Counts, what=f"{what}: {name}"), what)
                continue
            total = state[name]  # a whole number stays one
            convert(total, float, what=f"{what}: {name}")
            if not 0 <= total < 2**63:
                raise ValueError(f"{what}: {name}: expected a number from 0, got {shown(total)}")
            setattr(metric, name, total)
        return metric


def _fill(counts: Int64[np.ndarray, "..."], entries: _Counts, what: str) -> None:
    """Set the entries of a state that are not zero."""
    try:
        counts.reshape(-1)[entries["index"]] = entries["count"]
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"{what} contradicts its own settings: {error}") from error
    if counts.min(initial=0) < 0:
        raise ValueError(f"{what}: expected counts from 0, got {shown(int(counts.min()))}")


def _count_pairs(
    prediction: Integer[np.ndarray, "..."], target: Integer[np.ndarray, "..."], num_classes: int, ignore: int
) -> Int64[np.ndarray, "K K1"]:
    """Pixels per ground truth class (row) and predicted class (column); last, predictions that are no class."""
    _require_integers(prediction=prediction, target=target)
    _require_same_shape(prediction=prediction, target=target)
    counted = target != ignore
    rows = target[counted]
    for extreme in (rows.min(), rows.max()) if rows.size else ():
        if not 0 <= extreme < num_classes:
            raise ValueError(f"target holds {extreme}; expected classes 0..{num_classes - 1}, or {ignore} to ignore")
    columns = prediction[counted].astype(np.intp)
    columns[(columns < 0) | (columns >= num_classes)] = num_classes
    width = num_classes + 1
    pairs = np.bincount(rows.astype(np.intp) * width + columns, minlength=num_classes * width)
    return pairs.reshape(num_classes, width).astype(np.int64)


class ConfusionMatrix(_Metric):
    """Which class was predicted where which class is true, over all pixels of all frames of all videos together.

    Pixels whose ground truth is ``ignore`` do not count. A prediction outside the classes is wrong: it counts as a
    pixel of its ground truth class and as a prediction of no class.

    Args:
        num_classes: K, at least 1; classes are 0..K-1.
        ignore: Ground truth id that is left out. It may be one of the classes, which is then never scored.

    Raises:
        ValueError: ``num_classes`` is below 1.
    """

    _settings = ("num_classes", "ignore")
    _totals = ("_counts",)

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore = ignore
        self._counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, prediction: Integer[np.ndarray, "..."], target: Integer[np.ndarray, "..."]) -> None:
        """Count the pixels of one frame, or of any number of them.

        Args:
            prediction: Predicted ids, any shape.
            target: Ground truth ids, the same shape.

        Raises:
            ValueError: The shapes differ, or a target is neither a class nor ``ignore``; nothing is counted then.
            TypeError: An array does not hold integers.
        """
        self._counts += _count_pairs(prediction, target, self.num_classes, self.ignore)

    @property
    def matrix(self) -> Int64[np.ndarray, "K K"]:
        """Pixels by ground truth (row) and prediction (column); predictions outside the classes are in no column."""
        return self._counts[:, :-1].copy()

    @property
    def pixels(self) -> Int64[np.ndarray, " K"]:
        """Ground truth pixels of each class, whatever was predicted there."""
        total: np.ndarray = self._counts.sum(axis=1)
        return total

    @property
    def iou(self) -> Float64[np.ndarray, " K"]:
        """Intersection over union of each class, 0..1; NaN for a class without ground truth pixels."""
        hits = self._counts.diagonal()
        truth = self.pixels
        union = truth + self.matrix.sum(axis=0) - hits
        scores = np.full(self.num_classes, np.nan)
        np.divide(hits, union, out=scores, where=truth > 0)
        return scores

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that have ground truth pixels; NaN without any."""
        scores = self.iou[self.pixels > 0]
        return float(scores.mean()) if scores.size else math.nan

    @property
    def wiou(self) -> float:
        """IoU weighted by each class's share of the ground truth pixels; NaN without any."""
        truth = self.pixels
        present = truth > 0
        return float(truth[present] @ self.iou[present] / truth.sum()) if present.any() else math.nan


class MiouByDistance(_Metric):
    """One confusion matrix for each distance between a frame and its key frame.

    Args:
        num_classes: K, at least 1.
        interval: Number of distances k, at least 1; distances are 0 (the key frame itself) .. k-1.
        ignore: Ground truth id that is left out.

    Raises:
        ValueError: ``num_classes`` or ``interval`` is below 1.
    """

    _settings = ("num_classes", "interval", "ignore")
    _totals = ("_counts",)

    def __init__(self, num_classes: int, interval: int, ignore: int = 255) -> None:
        if num_classes < 1 or interval < 1:
            raise ValueError(f"num_classes and interval must be at least 1, got {num_classes} and {interval}")
        self.num_classes = num_classes
        self.interval = interval
        self.ignore = ignore
        self._counts = np.zeros((interval, num_classes, num_classes + 1), np.int64)

    def update(self, prediction: Integer[np.ndarray, "..."], target: Integer[np.ndarray, "..."], distance: int) -> None:
        """Count the pixels of one frame.

        Args:
            prediction: Predicted ids, any shape.
            target: Ground truth ids, the same shape.
            distance: Frames between this frame and its key frame, 0..k-1.

        Raises:
            ValueError: As `ConfusionMatrix.update`, and where the distance is out of range.
            TypeError: An array does not hold integers.
        """
        self._require_distance(distance)
        self._counts[distance] += _count_pairs(prediction, target, self.num_classes, self.ignore)

    def _require_distance(self, distance: int) -> None:
        if not 0 <= distance < self.interval:
            raise ValueError(f"distance must be in 0..{self.interval - 1}, got {distance}")

    def at(self, distance: int) -> ConfusionMatrix:
        """The confusion matrix of one distance.

        Raises:
            ValueError: The distance is out of range.
        """
        self._require_distance(distance)
        matrix = ConfusionMatrix(self.num_classes, self.ignore)
        matrix._counts += self._counts[distance]
        return matrix

    @property
    def miou(self) -> list[float]:
        """The mIoU at each distance 0..k-1; NaN where no frame was seen."""
        return [self.at(distance).miou for distance in range(self.interval)]

    @property
    def mean(self) -> float:
        """Mean of the mIoU over the distances that were seen; NaN without any."""
        seen = [value for value in self.miou if not math.isnan(value)]
        return math.fsum(seen) / len(seen) if seen else math.nan


class VideoConsistency(_Metric):
    """How much of what stays the same in the ground truth also stays the same in the prediction: VC_n.

    A window is n consecutive frames. G are its pixels whose ground truth never changes, Q those whose prediction never
    changes; the window scores ``|G and Q| / |G|``. As in the official VSPW scripts, the last window that would fit
    into a video is left out, so a video of n frames or fewer has none; void pixels count like any label; and whether
    the prediction is right does not matter. Windows with an empty G are undefined and skipped. The value is the mean
    over the windows of all videos.

    Instead of n frames it keeps, per pixel, for how long the label has not changed, so a frame costs the same for
    every n.

    Args:
        n: Length of a window in frames, at least 1.
        correct: Score ``|G and Q and prediction = truth| / |G|`` with G without void pixels.
        ignore: Ground truth id of void pixels; matters only with ``correct``.

    Raises:
        ValueError: ``n`` is below 1.
    """

    _settings = ("n", "correct", "ignore")
    _totals = ("_score_sum", "windows")

    def __init__(self, n: int, correct: bool = False, ignore: int = 255) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n = n
        self.correct = correct
        self.ignore = ignore
        self.windows = 0  # how many windows were scored
        self._score_sum = 0.0
        self._target: np.ndarray | None = None
        self._prediction: np.ndarray | None = None
        self._target_run = np.empty(0)
        self._prediction_run = np.empty(0)
        self._pending: float | None = None

    def _inside_video(self) -> bool:
        return self._target is not None

    def update(self, target: Integer[np.ndarray, "..."], prediction: Integer[np.ndarray, "..."]) -> None:
        """Take the next frame of the current video.

        Args:
            target: Ground truth ids, the same shape for all frames of a video.
            prediction: Predicted ids, the same shape.

        Raises:
            ValueError: A shape differs from the other's or from the frame before.
            TypeError: An array does not hold integers.
        """
        _require_integers(target=target, prediction=prediction)
        _require_same_shape(target=target, prediction=prediction)
        if self._target is None or self._prediction is None:
            self._target_run = np.ones(target.shape, np.int32)
            self._prediction_run = np.ones(target.shape, np.int32)
        else:
            if target.shape != self._target.shape:
                raise ValueError(
                    f"frames of one video must have one shape, got {target.shape} after {self._target.shape}; "
                    "call end_video() between videos"
                )
            if self._pending is not None:  # another frame follows its window, so the window counts
                self._score_sum += self._pending
                self.windows += 1
            _extend_runs(self._target_run, target == self._target, self.n)
            _extend_runs(self._prediction_run, prediction == self._prediction, self.n)
        self._target = target.copy()  # the caller may use its buffer again
        self._prediction = prediction.copy()
        self._pending = self._score(self._target, self._prediction)

    def _score(self, target: np.ndarray, prediction: np.ndarray) -> float | None:
        """Score of the window that ends at this frame, ``None`` where it is undefined or not yet n frames long."""
        kept = self._target_run >= self.n
        if self.correct:
            kept &= target != self.ignore
        size = np.count_nonzero(kept)
        if size == 0:
            return None
        kept &= self._prediction_run >= self.n
        if self.correct:
            kept &= prediction == target
        return np.count_nonzero(kept) / size

    def end_video(self) -> None:
        """Say that the next frame belongs to another video; more than once does no harm."""
        self._target = self._prediction = self._pending = None

    @property
    def value(self) -> float:
        """Mean score of the windows so far, 0..1; NaN without a window."""
        return self._score_sum / self.windows if self.windows else math.nan


def _extend_runs(runs: np.ndarray, same: np.ndarray, limit: int) -> None:
    """Lengthen, in place, the run of each pixel that stayed the same, restart the others at 1; no run exceeds limit."""
    runs *= same
    runs += 1
    np.minimum(runs, limit, out=runs)


def video_consistency(
    targets: Integer[np.ndarray, "..."],
    predictions: Integer[np.ndarray, "..."],
    n: int,
    *,
    correct: bool = False,
    ignore: int = 255,
) -> float:
    """VC_n of one whole video.

    Args:
        targets: Ground truth ids (T, H, W).
        predictions: Predicted ids (T, H, W).
        n: Length of a window in frames, at least 1.
        correct: See `VideoConsistency`.
        ignore: See `VideoConsistency`.

    Returns:
        The mean over the windows, 0..1; NaN where there is none, as with T <= n.

    Raises:
        ValueError: The shapes differ or are not (T, H, W), or ``n`` is below 1.
        TypeError: An array does not hold integers.
    """
    metric = VideoConsistency(n, correct=correct, ignore=ignore)
    _require_integers(targets=targets, predictions=predictions)
    _require_same_shape(targets=targets, predictions=predictions)
    if targets.ndim != 3:
        raise ValueError(f"targets and predictions must be (T, H, W), got {targets.shape}")
    for target, prediction in zip(targets, predictions, strict=True):
        metric.update(target, prediction)
    return metric.value


def region_similarity(
    pred_mask: Bool[np.ndarray, "..."] | Integer[np.ndarray, "..."],
    true_mask: Bool[np.ndarray, "..."] | Integer[np.ndarray, "..."],
) -> float:
    """DAVIS region similarity J: intersection over union of two binary masks.

    Args:
        pred_mask: Predicted object, any shape; what is not 0 is the object.
        true_mask: True object, the same shape.

    Returns:
        0..1; 1 where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(pred_mask=pred_mask, true_mask=true_mask)
    predicted, true = pred_mask != 0, true_mask != 0
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


class RegionSimilarity(_Metric):
    """DAVIS J of a data set: the mean over the frames of each clip that are not key frames, then over the clips.

    Key frames are given in this protocol, so they are not scored. A clip without any other frame does not count.
    """

    _settings = ()
    _totals = ("_clip_sum", "clips")

    def __init__(self) -> None:
        self.clips = 0  # how many clips were scored
        self._clip_sum = 0.0
        self._frame_sum = 0.0
        self._frames = 0

    def _inside_video(self) -> bool:
        return self._frames > 0

    def update(
        self,
        prediction: Bool[np.ndarray, "..."] | Integer[np.ndarray, "..."],
        target: Bool[np.ndarray, "..."] | Integer[np.ndarray, "..."],
        is_key: bool,
    ) -> float | None:
        """Take the next frame of the current clip.

        Args:
            prediction: Predicted object, any shape; what is not 0 is the object.
            target: True object, the same shape.
            is_key: Whether the true mask of this frame was given.

        Returns:
            J of the frame; ``None`` for a key frame.

        Raises:
            ValueError: The shapes differ.
        """
        if is_key:
            return None
        score = region_similarity(prediction, target)
        self._frame_sum += score
        self._frames += 1
        return score

    def end_video(self) -> None:
        """Close the clip; more than once does no harm."""
        if self._frames:
            self._clip_sum += self._frame_sum / self._frames
            self.clips += 1
        self._frame_sum = 0.0
        self._frames = 0

    @property
    def value(self) -> float:
        """Mean J over the clips that have ended, 0..1; NaN without any."""
        return self._clip_sum / self.clips if self.clips else math.nan


@dataclass(frozen=True, eq=False)
class Matches:
    """Where the pixels of a frame were in the frame before.

    Attributes:
        consistent: Pixels whose flow, back and forth, leads to within one pixel; the others are not compared.
        before: Where each consistent pixel was: its row times the width, and its column.
    """

    consistent: Bool[np.ndarray, "h w"]
    before: Integer[np.ndarray, " n"]


class Matcher:
    """Matches each frame with the one before by optical flow, for any number of label maps.

    Args:
        quick: Search with fewer patches and without refinement, for figures that are shown: in less than half the time
            flicker comes out the same within 4 %, the ratio of two within 2 % (docs/LOG.md). Otherwise it is DIS's
            medium preset, as the definition of flicker says.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self._quick = quick
        self._before: np.ndarray | None = None

    def next(self, rgb: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Matches | None:
        """Take the next frame; return its matches, or ``None`` for the first one.

        Args:
            rgb: RGB image; resized to ``size`` where it has another.
            size: Height and width of the label maps, the same for every frame.
        """
        import cv2

        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        searched = size
        if self._quick and min(size) >= 4 * SMALLEST_FLOW:
            # The preset itself searches no further than half the size.
            searched = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            dis.setFinestScale(0)
            dis.setPatchStride(5)
            dis.setGradientDescentIterations(16)
            dis.setVariationalRefinementIterations(0)
        if grey.shape != searched:
            grey = cv2.resize(grey, searched[::-1], interpolation=cv2.INTER_AREA)
        before, self._before = self._before, grey
        if before is None:
            return None
        return _consistent(dis.calc(grey, before, None), dis.calc(before, grey, None), size)


def _consistent(
    backward: Float32[np.ndarray, "h1 w1 2"], forward: Float32[np.ndarray, "h1 w1 2"], size: tuple[int, int]
) -> Matches:
    """Where pixels came from, as far as the flow forward leads from there to within one pixel of where they are."""
    import cv2

    if backward.shape[:2] != size:
        ratio = np.array([size[1] / backward.shape[1], size[0] / backward.shape[0]], np.float32)
        backward, forward = (cv2.resize(flow, size[::-1]) * ratio for flow in (backward, forward))
    dx, dy = cv2.split(backward)
    x, y = dx + np.arange(size[1], dtype=np.float32), dy + np.arange(size[0], dtype=np.float32)[:, None]
    back = cv2.split(cv2.remap(forward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    consistent = cv2.magnitude(dx + back[0], dy + back[1]) < 1
    column, row = np.rint(x).astype(np.int32), np.rint(y).astype(np.int32)
    consistent &= (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    return Matches(consistent, (row * size[1] + column)[consistent])


class Flicker(_Metric):
    """Share of pixels whose label differs from the label that the same spot had in the previous frame; needs no truth.

    The previous frame's labels are warped, nearest pixel, by the optical flow from the current frame to the previous
    one (see ``Matcher``, at the size of the labels). Only pixels with a consistent flow count: the flow forward again,
    from where the pixel came, leads back to within one pixel. Pixels from outside the image do not count.
    """

    _settings = ()
    _totals = ("_changed", "_compared")

    def __init__(self) -> None:
        self._changed = 0
        self._compared = 0
        self._matcher = Matcher()
        self._labels: np.ndarray | None = None

    def update(self, rgb: UInt8[np.ndarray, "H W 3"], labels: Integer[np.ndarray, "h w"]) -> float:
        """Take the next frame.

        Args:
            rgb: RGB image; resized to the labels' size where it has another.
            labels: Class ids, at least 16 pixels a side, the same size as the frame before.

        Returns:
            The share of this frame alone, 0..1; NaN for the first frame and where no flow is consistent.

        Raises:
            ValueError: The labels are too small, or not of the size of the frame before.
            TypeError: The labels are not integers.
        """
        self._check(labels)
        return self.compare(labels, self._matcher.next(rgb, (labels.shape[0], labels.shape[1])))

    def compare(self, labels: Integer[np.ndarray, "h w"], matches: Matches | None) -> float:
        """Take the next frame where its matches are known, as those of several label maps of one video are.

        Args:
            labels: As for ``update``.
            matches: With the frame before; ``None`` for the first frame.
        """
        self._check(labels)
        before, self._labels = self._labels, labels.copy()
        if before is None or matches is None:
            return math.nan
        changed = int(np.count_nonzero(labels[matches.consistent] != before.ravel().take(matches.before)))
        compared = len(matches.before)
        self._changed += changed
        self._compared += compared
        return changed / compared if compared else math.nan

    def _check(self, labels: Integer[np.ndarray, "h w"]) -> None:
        _require_integers(labels=labels)
        height, width = labels.shape
        if min(height, width) < SMALLEST_FLOW:
            raise ValueError(
                f"optical flow needs labels of at least {SMALLEST_FLOW}x{SMALLEST_FLOW} pixels, got {height}x{width}"
            )
        if self._labels is not None and labels.shape != self._labels.shape:
            raise ValueError(
                f"labels must keep their size, got {labels.shape} after {self._labels.shape}; "
                "use one Flicker for each video, and merge them"
            )

    @property
    def value(self) -> float:
        """Share over all pixels compared so far, 0..1; NaN without any."""
        return self._changed / self._compared if self._compared else math.nan
