"""Any function from images to classes as a segmentor, so that it need not run on every frame."""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss._validate import shown
from mpvss.errors import ModelError, OptionError
from mpvss.options import OutputKind, SegmentOptions
from mpvss.segmentors.protocol import FunctionError, InputRule, PixelPrediction, Segmentor
from mpvss.types import shown_size

if TYPE_CHECKING:
    from mpvss.segmenter import VideoSegmenter

_ADDRESS = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<name>[A-Za-z_][\w.]*)")
_Image = UInt8[np.ndarray, "H W 3"]
_Maps = tuple[Int64[np.ndarray, " P"], Float32[np.ndarray, "P h w"]]


def wrap(
    fn: Callable[..., Any],
    classes: Sequence[str],
    *,
    output: OutputKind = "labels",
    batch: int = 1,
    options: SegmentOptions | None = None,
    **overrides: Any,
) -> "VideoSegmenter":
    """Return a video segmenter that runs a function on key frames, and propagates what it says to the others.

    Args:
        fn: Takes an RGB image (H, W, 3) of uint8, or a list of them where ``batch`` is above 1; returns for each what
            ``output`` says. Everything is copied: it may answer with one buffer again and again.
        classes: Names of the classes, in the order of their ids.
        output: ``labels``: class ids (H, W) of any whole type; -1 and the ignore id (255, or 65535 above 255 classes)
            stand for no class. ``scores``: (K, h, w) on any grid that covers the image, 0 or more. ``logits``:
            likewise, of any sign. ``masks``: a list of (mask (H, W), class id, score); the highest score times mask
            wins, and where there is none there is no class.
        batch: So many key frames are given at once, but for live sources.
        options: How video is segmented.
        overrides: Options that replace those; see ``SegmentOptions``.

    Raises:
        OptionError: An option is unknown or out of its range.

    Example:
        >>> segmenter = mpvss.wrap(model, classes=["road", "car"], interval=10)
        >>> segmenter.process("street.mp4", "out")
    """
    from mpvss.motion.propagators import make_propagator
    from mpvss.segmenter import VideoSegmenter

    segmentor = FunctionSegmentor(fn, classes, output=output, batch=batch)
    options = (options or SegmentOptions()).replace(**overrides)
    return VideoSegmenter(segmentor, make_propagator(options.propagator), options.replace(model=segmentor.name))


class FunctionSegmentor:
    """A function as a segmentor of pixels.

    Attributes:
        name: The function's name.
        class_names: Names in the order of their ids.
        rule: The image as it is, unless another size is asked for.
        batch: How many images the function takes at once.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        classes: Sequence[str],
        *,
        output: OutputKind = "labels",
        batch: int = 1,
        name: str | None = None,
    ) -> None:
        """Wrap a function; see ``wrap``."""
        if not callable(fn):
            raise TypeError(f"wrap expects a function from image to classes, got {type(fn).__name__}")
        if isinstance(classes, str) or not classes or not all(isinstance(each, str) for each in classes):
            raise OptionError("classes", f"must be the names of the classes in the order of ids, got {shown(classes)}")
        if output not in get_args(OutputKind):
            raise OptionError("output", f"must be one of {', '.join(get_args(OutputKind))}, got {shown(output)}")
        if not isinstance(batch, int) or batch < 1:
            raise OptionError("batch", f"must be at least 1 image, got {shown(batch)}")
        self.name: str = name or str(getattr(fn, "__name__", type(fn).__name__))
        self.class_names = tuple(classes)
        self.rule = InputRule(multiple=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.batch = batch
        self._fn = fn
        self._read: Callable[[Any, tuple[int, int]], _Maps] = {
            "labels": self._labels, "scores": self._scores, "logits": self._logits, "masks": self._masks,
        }[output]  # fmt: skip
        self._kind: Literal["logits", "scores"] = "logits" if output == "logits" else "scores"

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> PixelPrediction:
        """Call the function; see ``Segmentor``.

        Raises:
            FunctionError: It failed, or its answer is not what ``wrap`` asks for.
        """
        answers: list[Any] = []
        for first in range(0, len(images), self.batch):
            answers += self._call(list(images[first : first + self.batch]))
        read = [self._read(answer, images.shape[1:3]) for answer in answers]
        grids = {maps.shape[1:] for _, maps in read}
        if len(grids) > 1:
            raise FunctionError(f"expected one grid for all images of a batch, got {' and '.join(map(str, grids))}")
        union = np.unique(np.concatenate([ids for ids, _ in read]))
        scores = np.zeros((len(read), len(union), *grids.pop()), np.float32)
        for planes, (ids, maps) in zip(scores, read, strict=True):
            planes[np.searchsorted(union, ids)] = maps
        return PixelPrediction(scores, self._kind, union)

    def _call(self, images: list[_Image]) -> list[Any]:
        try:
            answer = self._fn(images[0] if self.batch == 1 else images)
        except Exception as error:  # whatever somebody's function raises
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            place = f"{Path(where.filename).name}, line {where.lineno}"
            raise FunctionError(f"the function raised {type(error).__name__}: {reason} ({place})") from error
        if self.batch == 1:
            return [_copied(answer)]
        if not isinstance(answer, list | tuple) or len(answer) != len(images):
            got = f"{len(answer)}" if isinstance(answer, list | tuple) else type(answer).__name__
            raise FunctionError(f"expected a list of {len(images)} results, one an image, got {got}")
        return [_copied(each) for each in answer]

    def _labels(self, answer: Any, size: tuple[int, int]) -> _Maps:
        labels = _array(answer, "class ids (H, W)")
        if labels.dtype.kind not in "iub":
            raise FunctionError(
                f"expected class ids as whole numbers, got {labels.dtype}; for scores or logits (K, h, w) give "
                "output='scores' or output='logits'"
            )
        if labels.shape != size:
            raise FunctionError(
                f"expected class ids of the image's size {shown_size(size)}, got an array of shape {labels.shape}; "
                "resize them to the image, nearest neighbour"
            )
        count = len(self.class_names)
        numbers = labels.astype(np.int64)
        numbers[(numbers == -1) | (numbers == (255 if count <= 255 else 65535))] = count
        if numbers.min() < 0 or numbers.max() > count:
            wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
            raise FunctionError(f"expected class ids from 0 to {count - 1}, got {wrong}; classes has {count} names")
        ids = np.flatnonzero(np.bincount(numbers.ravel(), minlength=count + 1))
        return ids, (numbers == ids[:, None, None]).astype(np.float32)

    def _scores(self, answer: Any, size: tuple[int, int]) -> _Maps:
        ids, maps = self._logits(answer, size)
        if maps.min() < 0:
            raise FunctionError(
                f"expected class scores of 0 or more, got {float(maps.min()):.3g}; for logits give output='logits'"
            )
        return ids, maps

    def _logits(self, answer: Any, size: tuple[int, int]) -> _Maps:  # noqa: ARG002 - any grid covers the image
        maps = _array(answer, "class scores (K, h, w)")
        count = len(self.class_names)
        if maps.ndim != 3 or len(maps) != count or not maps.size:
            raise FunctionError(
                f"expected class scores of shape ({count}, h, w), one map for each of the classes, got {maps.shape}"
                + ("; for class ids (H, W) give output='labels'" if maps.ndim == 2 else "")
            )
        maps = maps.astype(np.float32)
        if not np.isfinite(maps).all():
            raise FunctionError("expected finite class scores, got NaN or infinity")
        return np.arange(count), maps

    def _masks(self, answer: Any, size: tuple[int, int]) -> _Maps:
        if not isinstance(answer, list | tuple):
            raise FunctionError(f"expected a list of (mask, class id, score), got {type(answer).__name__}")
        count = len(self.class_names)
        best: dict[int, Float32[np.ndarray, "H W"]] = {}
        for each in answer:
            mask, number, score = self._mask(each, size)
            shown_there = mask * np.float32(score)
            best[number] = np.maximum(best[number], shown_there) if number in best else shown_there
        top = np.max([*best.values()], axis=0) if best else np.zeros(size, np.float32)
        none = np.where(top > 0, np.float32(0), np.float32(top.max() or 1))
        ids = np.array([*sorted(best), count])
        return ids, np.stack([*(best[number] for number in sorted(best)), none])

    def _mask(self, each: Any, size: tuple[int, int]) -> tuple[Float32[np.ndarray, "H W"], int, float]:
        if not isinstance(each, list | tuple) or len(each) != 3:
            raise FunctionError(f"expected each mask as (mask, class id, score), got {shown(type(each).__name__)}")
        mask, number, score = _array(each[0], "a mask (H, W)"), each[1], each[2]
        if mask.shape != size:
            raise FunctionError(
                f"expected masks of the image's size {shown_size(size)}, got an array of shape {mask.shape}"
            )
        try:
            number, score = int(number), float(score)
        except (TypeError, ValueError) as error:
            raise FunctionError(f"expected a class id and a score, got {shown(each[1:])}") from error
        if not 0 <= number < len(self.class_names):
            raise FunctionError(f"expected class ids from 0 to {len(self.class_names) - 1}, got {number}")
        mask = mask.astype(np.float32)
        if not (0 <= score < np.inf and np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise FunctionError("expected masks from 0 to 1 and scores of 0 or more, finite, got others")
        return mask, number, score


def _copied(answer: Any) -> Any:
    host = _host(answer)
    return np.array(host) if hasattr(host, "__array__") else host


def _host(value: Any) -> Any:
    """Tensors of torch, of any device and precision, with or without gradients, as arrays; anything else as it is."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return value
    tensor = value.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # numpy has no bfloat16
        return tensor.float().numpy()


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(_host(value))
    except (TypeError, ValueError) as error:
        raise FunctionError(f"expected {what} as an array, got {type(value).__name__}") from error
    if array.dtype.kind not in "iubf" or not array.size:
        got = "an empty one" if not array.size else f"{type(value).__name__} of {array.dtype}"
        raise FunctionError(f"expected {what} as an array of numbers, got {got}")
    return array


def is_address(model: str | Path) -> bool:
    """Whether a model's name is ``module:function`` or ``file.py:function``."""
    return isinstance(model, str) and _ADDRESS.fullmatch(model) is not None and not Path(model).exists()


def load_function(address: str, *, classes: Sequence[str] | None = None, output: OutputKind | None = None) -> Segmentor:
    """Import a segmentor: what ``wrap`` returned, anything with a segmentor's attributes, or a function.

    Args:
        address: ``module:name`` or ``file.py:name``; the current folder is looked in first.
        classes: Names of the classes, for a function.
        output: What a function gives; ``None`` for labels.

    Raises:
        ModelError: There is no such module or name, or it is none of those.
    """
    match = _ADDRESS.fullmatch(address)
    assert match is not None
    value: Any = _import(address, match["module"])
    for part in match["name"].split("."):
        if not hasattr(value, part):
            raise ModelError(f"{address}: {match['module']} has no {part}; expected a function, or what wrap returned")
        value = getattr(value, part)
    value = getattr(value, "segmentor", value)
    if isinstance(value, Segmentor) and hasattr(value, "class_names"):
        return value
    if not callable(value) or isinstance(value, type):
        raise ModelError(f"{address}: expected a function, or what mpvss.wrap returned, got {type(value).__name__}")
    if classes is None:
        raise ModelError(
            f"{address}: a function does not say what its classes are called; name them with --classes-file, or in the "
            f"module write segmenter = mpvss.wrap({match['name']}, classes=[...]) and give that name"
        )
    return FunctionSegmentor(value, classes, output=output or "labels", name=address)


def _import(address: str, name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            if str(Path.cwd()) not in sys.path and "" not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever somebody's module raises
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ModelError(f"{address}: cannot import {name} ({type(error).__name__}: {reason})") from error
