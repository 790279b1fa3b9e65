"""Any ONNX file that segments images, whoever made it: ``--model file.onnx``.

What the file does not say itself is in a YAML or JSON file of the same name beside it, or in options.
"""

import ast
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss._validate import convert, parse_json, parse_yaml, read_json, shown
from mpvss.errors import ModelError
from mpvss.options import OutputKind
from mpvss.segmentors.onnx import open_session, run_session
from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction

log = logging.getLogger(__name__)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8
}  # fmt: skip
_SIDECARS = (".yaml", ".yml", ".json")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FileSettings:
    """What the file beside an ONNX file may say.

    Attributes:
        layout: Order of the input's axes.
        channels: Order of its colours.
        scale: What pixels 0..255 are multiplied with, before the mean is subtracted.
        mean: Of each colour, red first.
        std: What the difference is divided by.
        size: The shorter side in pixels that the network sees, or height and width; for a network of any size.
        multiple: What the sides are padded to; for a network of any size.
        output_kind: What the network gives.
        classes: Names of the classes.
    """

    layout: Literal["nchw", "nhwc"] | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size: int | tuple[int, int] | None = None
    multiple: int = 32
    output_kind: OutputKind | None = None
    classes: tuple[str, ...] | None = None


class OnnxFileSegmentor:
    """An ONNX file as a segmentor.

    Attributes:
        name: The file's name.
        class_names: Names in the order of their ids.
        rule: Size and normalisation of its input.
    """

    def __init__(
        self, path: Path, *, classes: Sequence[str] | None = None, output: OutputKind | None = None, device: str = "cpu"
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            classes: Names of the classes; ``None`` for those that the file or its neighbours name.
            output: ``labels``, ``scores``, ``logits`` or ``masks`` (classes and masks of queries); ``None`` to
                recognise it by types and shapes.
            device: As in ``mpvss.segmentors.onnx.open_session``.

        Raises:
            ModelError: The file cannot be loaded, or it is no segmentor of one image.
            MpvssError: ONNX Runtime has nothing for the device.
        """
        self.name = path.name
        if not path.is_file():
            raise ModelError(f"{path}: expected an ONNX file, there is none of this name")
        settings = _read_settings(path)
        try:
            self._session = open_session(path, device)
        except ModelError as error:
            raise ModelError(f"{path}: {_explained(str(error.__cause__ or error))}") from error
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self._input = _image_input(path, self._session.get_inputs())
        self._last = _channels_last(path, self._input.shape, settings)
        self.rule = _rule(path, settings, metadata, _sizes(self._input.shape, last=self._last), self._input.type)
        self.class_names = tuple(classes or settings.classes or _known_names(path, metadata))
        self._kind = output or settings.output_kind

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> PixelPrediction | Prediction:
        """Segment a batch, image by image; see ``Segmentor``.

        Raises:
            ModelError: It fails, or its outputs are none that can be used.
        """
        pixels = self.rule.normalise(images)
        pixels = pixels.transpose(0, 2, 3, 1) if self._last else pixels
        names = [output.name for output in self._session.get_outputs()]
        answers = []
        for image in pixels:
            value = np.ascontiguousarray(image[None], _TYPES[self._input.type])
            arrays = run_session(self._session, {self._input.name: value}, self.name)
            answers.append(dict(zip(names, arrays, strict=True)))
        kind, used = self._recognise(answers[0])
        chosen = [[answer[name] for name in used] for answer in answers]
        for each in chosen:
            if not all(np.isfinite(array).all() for array in each):
                raise ModelError(f"{self.name}: expected finite numbers from the network, got NaN or infinity")
        if kind == "masks":
            return self._queries(chosen)
        planes = [each[0] for each in chosen]
        return self._labels(planes) if kind == "labels" else self._maps(planes, kind)

    def _recognise(self, arrays: Arrays) -> tuple[OutputKind, list[str]]:
        """Return what the outputs are, and the names of those that are used."""
        count, kind = len(self.class_names), self._kind
        maps = [name for name, each in arrays.items() if each.ndim == 4 and each.dtype.kind == "f"]
        if kind in (None, "masks"):
            for classes in (name for name, each in arrays.items() if each.ndim == 3 and each.shape[2] == count + 1):
                masks = next((name for name in maps if arrays[name].shape[1] == arrays[classes].shape[1]), None)
                if masks is not None:
                    return "masks", [classes, masks, *(["queries"] if "queries" in arrays else [])]
        if kind in (None, "labels"):
            told = kind == "labels"
            ids = [name for name, each in arrays.items() if _is_labels(each, told=told)]
            if ids:
                return "labels", ids[:1]
        if kind in (None, "logits", "scores"):
            fitting = [name for name in maps if count in (arrays[name].shape[1], arrays[name].shape[3])]
            if fitting:
                self._kind = kind or _kind_of(arrays[fitting[0]])  # once: it is the same for all images
                return self._kind, fitting[:1]
        got = ", ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in arrays.items())
        raise ModelError(
            f"{self.name}: expected {kind or 'class scores or logits'} of {count} classes (1, {count}, h, w), class "
            f"ids (1, H, W), or classes (1, Q, {count + 1}) with masks (1, Q, h, w), got {got[:200]}; name as many "
            "classes as it has with --classes-file, or wrap a function around it (mpvss.wrap)"
        )

    def _maps(self, planes: list[np.ndarray], kind: OutputKind) -> PixelPrediction:
        count = len(self.class_names)
        first = [each if each.shape[1] == count else each.transpose(0, 3, 1, 2) for each in planes]
        scores: Float32[np.ndarray, "B P h w"] = np.concatenate(first).astype(np.float32)
        if kind == "scores" and scores.min() < 0:
            raise ModelError(
                f"{self.name}: expected class scores of 0 or more, got {float(scores.min()):.3g}; "
                "give --output-kind logits"
            )
        ids = None
        if count == 1:  # one class and everything else
            other = np.zeros_like(scores) if kind == "logits" else np.maximum(1 - scores, 0)
            scores, ids = np.concatenate([scores, other], axis=1), np.array([0, 1])
        return PixelPrediction(scores, "logits" if kind == "logits" else "scores", ids)

    def _labels(self, planes: list[np.ndarray]) -> PixelPrediction:
        count = len(self.class_names)
        numbers: Int64[np.ndarray, "B H W"] = np.concatenate([_flat(each) for each in planes])
        none = 255 if count <= 255 else 65535
        numbers = np.where((numbers == -1) | (numbers == none), count, numbers)
        if numbers.min() < 0 or numbers.max() > count:
            wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
            raise ModelError(
                f"{self.name}: expected class ids from 0 to {count - 1}, got {wrong}; "
                "name all classes with --classes-file"
            )
        ids = np.flatnonzero(np.bincount(numbers.ravel(), minlength=count + 1))
        return PixelPrediction((numbers[:, None] == ids[:, None, None]).astype(np.float32), "scores", ids)

    def _queries(self, chosen: list[list[np.ndarray]]) -> Prediction:
        class_logits, mask_logits, *rest = (
            np.concatenate(each).astype(np.float32) for each in zip(*chosen, strict=True)
        )
        # What the default propagators do not look at; a motion module belongs to one segmentor.
        return Prediction(class_logits, mask_logits, rest[0] if rest else class_logits)


def _explained(reason: str) -> str:
    """What ONNX Runtime's reason means, and what to do."""
    if "External data" in reason or "external data" in reason:
        why = (
            "its weights are in another file, which is missing or outside its folder: put that file beside it, or save"
        )
        return f"{why} the model as one file"
    if "is not a registered function" in reason:
        name = reason.partition("Fatal error: ")[2].partition("(")[0] or "an operator"
        return f"it uses the operator {name[:80]}, which ONNX Runtime does not have: export it with standard operators"
    if "ValidateOpset" in reason or "opset" in reason:
        return "its opset is newer than this ONNX Runtime: update onnxruntime, or export it for an older opset"
    if "Protobuf" in reason or "INVALID_PROTOBUF" in reason:
        return "expected an ONNX file, got something else or a part of one"
    return f"ONNX Runtime cannot load it ({reason.splitlines()[0][:300]})"


def _image_input(path: Path, inputs: Sequence[Any]) -> Any:
    listing = ", ".join(f"{each.name} {each.shape}" for each in inputs)[:200]
    if len(inputs) != 1:
        images = sum(len(each.shape) == 4 for each in inputs)
        which = f", {images} of them images" if images > 1 else ""
        raise ModelError(
            f"{path}: expected one input, an image, got {len(inputs)}{which} ({listing}); wrap a function around it "
            "that fills in the others (mpvss.wrap)"
        )
    image = inputs[0]
    if image.type not in _TYPES or len(image.shape) != 4:
        raise ModelError(
            f"{path}: expected an image as input, numbers of four dimensions, got {listing} of {image.type}; a graph "
            "whose input has no fixed rank must be exported again with a shape, in which sides may be free"
        )
    if isinstance(image.shape[0], int) and image.shape[0] > 1:
        raise ModelError(f"{path}: expected one image at a time, got a batch of {image.shape[0]}; export it for one")
    return image


def _channels_last(path: Path, shape: Sequence[Any], settings: FileSettings) -> bool:
    if settings.layout is not None:
        return settings.layout == "nhwc"
    if shape[1] == 3 or (shape[3] != 3 and not isinstance(shape[1], int)):
        return False
    if shape[3] == 3:
        return True
    raise ModelError(f"{path}: expected an input of 3 colours, [1, 3, H, W] or [1, H, W, 3], got {list(shape)}")


def _sizes(shape: Sequence[Any], *, last: bool) -> tuple[int | None, int | None]:
    """The height and the width that the network takes; ``None`` where it is free."""
    sides = shape[1:3] if last else shape[2:4]
    height, width = (side if isinstance(side, int) and side > 0 else None for side in sides)
    return height, width


def _rule(
    path: Path, settings: FileSettings, metadata: Mapping[str, str], sides: tuple[int | None, int | None], type_: str
) -> InputRule:
    """How large an image the network takes, and how its numbers are scaled."""
    scale, mean, std = _normalisation(path, settings, metadata, type_)
    size: dict[str, Any] = {"multiple": settings.multiple}
    if None not in sides:
        size = {"exact": sides, "multiple": 1, "fixed": True}
    elif sides != (None, None):
        raise ModelError(f"{path}: expected both sides of the input free or both fixed, got {shown(list(sides))}")
    elif isinstance(settings.size, int):
        size["short_side"] = settings.size
    elif settings.size is not None:
        size["exact"] = settings.size
    try:
        return InputRule(
            mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale),
            std=(std[0] / scale, std[1] / scale, std[2] / scale),
            bgr=settings.channels == "bgr",
            **size,
        )
    except (ValueError, ZeroDivisionError, IndexError) as error:
        raise ModelError(f"{path}: cannot use its settings ({error})") from error


def _normalisation(
    path: Path, settings: FileSettings, metadata: Mapping[str, str], type_: str
) -> tuple[float, Sequence[float], Sequence[float]]:
    """Scale, mean and deviation: as told, as an exporter's files say, or as the input's type suggests."""
    plain = ((0.0,) * 3, (1.0,) * 3)
    if settings.scale is not None or settings.mean is not None or settings.std is not None:
        scale = 1 / 255 if settings.scale is None else settings.scale
        return scale, settings.mean or plain[0], settings.std or plain[1]
    if type_ == "tensor(uint8)":
        return 1.0, *plain
    beside = _read_beside(path, "preprocessor_config.json")
    if beside:
        scale = float(beside.get("rescale_factor", 1 / 255)) if beside.get("do_rescale", True) else 1.0
        if not beside.get("do_normalize", True):
            return scale, *plain
        mean, std = beside.get("image_mean", _IMAGENET[0]), beside.get("image_std", _IMAGENET[1])
        return scale, convert(mean, list[float], what="image_mean"), convert(std, list[float], what="image_std")
    if "stride" in metadata and "names" in metadata:  # Ultralytics
        return 1 / 255, *plain
    log.warning(
        "%s does not say how its input is scaled; taking 0..1 with ImageNet's mean and deviation. Say otherwise in %s: "
        "scale, mean, std", path.name, path.with_suffix(".yaml").name,
    )  # fmt: skip
    return 1 / 255, *_IMAGENET


def _read_settings(path: Path) -> FileSettings:
    beside = next((file for file in (path.with_suffix(end) for end in _SIDECARS) if file.is_file()), None)
    if beside is None:
        return FileSettings()
    try:
        text = beside.read_text(encoding="utf-8-sig")
        values = parse_json(text) if beside.suffix == ".json" else parse_yaml(text)
        return convert(values, FileSettings, what=beside.name)
    except (OSError, ValueError) as error:
        raise ModelError(f"{beside}: expected settings of {path.name}, which cannot be used ({error})") from error


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    """A JSON object that an exporter wrote beside the file, or nothing."""
    try:
        return convert(read_json(path.with_name(name)), dict, what=name)
    except (OSError, ValueError):
        return {}


def _known_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names that exporters write: in the file's metadata, or in a config.json beside it."""
    for key in ("names", "id2label", "classes", "class_names"):
        names = _listed(_parsed(metadata.get(key, "")))
        if names:
            return names
    names = _listed(_read_beside(path, "config.json").get("id2label"))
    if names:
        return names
    raise ModelError(
        f"{path}: expected the names of its classes, which neither its metadata nor config.json beside it has: give "
        "them with --classes-file, one a line in the order of ids"
    )


def _parsed(text: str) -> Any:
    """JSON, a literal of Python (as Ultralytics writes it), or names between commas."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text) if len(text) < 2**20 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return [name.strip() for name in text.split(",") if name.strip()]


def _listed(names: Any) -> tuple[str, ...]:
    """Names in the order of their ids, or nothing."""
    if isinstance(names, Mapping):
        by_id = {str(id_): name for id_, name in names.items()}
        names = [by_id.get(str(id_)) for id_ in range(len(by_id))]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        return ()
    return tuple(names)


def _is_labels(array: np.ndarray, *, told: bool) -> bool:
    """Whether an output may be class ids: whole numbers; any, if that is what was told."""
    flat = array.ndim == 3 or (array.ndim == 4 and 1 in (array.shape[1], array.shape[3]))
    return flat and (told or array.dtype.kind in "iu")


def _flat(array: np.ndarray) -> Int64[np.ndarray, "1 H W"]:
    if array.ndim == 4:
        array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
    return np.asarray(np.rint(array), np.int64)


def _kind_of(maps: np.ndarray) -> OutputKind:
    """Scores where all values are shares of one; logits otherwise."""
    axis = 1 if maps.shape[1] <= maps.shape[3] else 3
    shares = maps.min() >= 0 and maps.max() <= 1
    summed = maps.shape[axis] == 1 or np.allclose(maps.sum(axis), 1, atol=1e-2)
    return "scores" if shares and summed else "logits"
