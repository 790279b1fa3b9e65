"""Exported networks in ONNX Runtime: a segmentor and a propagator like any other, without torch.

A directory made by ``mpvss export`` holds ``key.onnx``, ``motion.onnx`` where the checkpoint has a motion module, and
``export.json``, which says what they are. The embedded model is such a directory, whose graphs read their weights from
the safetensors file beside them.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss._extras import has
from mpvss._threads import threads
from mpvss._validate import convert, read_json, shown
from mpvss.errors import ModelError, MpvssError
from mpvss.motion.arrays import fit_flow
from mpvss.segmentors import embedded_folder, is_export
from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction
from mpvss.types import shown_size

log = logging.getLogger(__name__)

EXPORT_NAME = "export.json"
KEY_NAME = "key.onnx"
MOTION_NAME = "motion.onnx"
# 1: one size only, and motion.onnx normalises its images itself. 2: also any size, and it takes them normalised.
SCHEMA_VERSION = 2
_FIXED_ONLY = 1
# How a motion module wants its images: the mean of each colour subtracted from 0..1, the sides multiples of 32.
MOTION_RULE = InputRule(multiple=32, mean=(0.411 * 255, 0.432 * 255, 0.450 * 255), std=(255.0, 255.0, 255.0))

_CPU = "CPUExecutionProvider"
# What serves a device, the first that is installed.
_PROVIDERS = {"cuda": ("CUDAExecutionProvider", "DmlExecutionProvider"), "mps": ("CoreMLExecutionProvider",)}


@dataclass(frozen=True)
class ExportInfo:
    """What ``export.json`` says.

    Attributes:
        name: The segmentor's name.
        class_names: Names in the order of their ids.
        rule: Size and normalisation of the input.
        size: Height and width of the images that the networks take, before padding; ``None`` for any.
        motion: ``query`` or ``flow``, or ``None`` without a motion module.
        num_queries: Number of the segmentor's queries; 0 for one that answers with logits of pixels.
        max_difference: Largest absolute difference from torch that was seen at the export, by output.
        schema_version: Of the directory.
    """

    name: str
    class_names: tuple[str, ...]
    rule: InputRule
    size: tuple[int, int] | None
    motion: str | None
    num_queries: int
    max_difference: dict[str, float]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the text of ``export.json``."""
        values = asdict(self)
        return json.dumps({"schema_version": values.pop("schema_version"), **values}, indent=2) + "\n"

    @classmethod
    def read(cls, directory: str | Path) -> "ExportInfo":
        """Read ``export.json``.

        Raises:
            ModelError: It is missing, or was not written by ``mpvss export`` of this version or of one before.
        """
        path = Path(directory) / EXPORT_NAME
        if not path.is_file():
            raise ModelError(
                f"{directory}: expected a directory made by mpvss export, got no {EXPORT_NAME}; run "
                f"mpvss export --model {directory} first, or use backend torch"
            )
        try:
            values = convert(read_json(path), dict, what=EXPORT_NAME)
            version = values.get("schema_version")
            if version not in (_FIXED_ONLY, SCHEMA_VERSION) or isinstance(version, bool):
                raise ValueError(f"expected schema version {_FIXED_ONLY} or {SCHEMA_VERSION}, got {shown(version)}")
            info = convert(values, cls, what=EXPORT_NAME)
            if info.size is None and version == _FIXED_ONLY:
                raise ValueError("expected a size, got null")
            return info
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: not as this version of mpvss export writes it ({error}); export again"
            ) from error


class OnnxSegmentor:
    """An exported segmentor: a mask classifier, or a network of pixels.

    Attributes:
        name: Name of the model that was exported.
        class_names: Names in the order of their ids.
        rule: Size and normalisation of its input.
    """

    def __init__(self, info: ExportInfo, session: Any) -> None:
        """Wrap a session of ONNX Runtime that runs ``key.onnx``."""
        self.name, self.class_names, self.rule = info.name, info.class_names, info.rule
        self._size, self._of_pixels = info.size, info.num_queries == 0
        self._session = session

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction | PixelPrediction:
        """Segment a batch, image by image; see ``Segmentor``.

        Raises:
            ModelError: The images are of another size than the networks were exported for, or the answer is not finite.
        """
        check_size(self._size, (images.shape[1], images.shape[2]))
        pixels = self.rule.normalise(images)
        outputs = [run_session(self._session, {"pixels": one[None]}, self.name) for one in pixels]
        values = [np.concatenate(each) for each in zip(*outputs, strict=True)]
        if not all(np.isfinite(value).all() for value in values):
            raise ModelError(f"{self.name}: the model's answer is not finite; its weights are damaged, export again")
        return PixelPrediction(values[0], "logits") if self._of_pixels else Prediction(*values)


class OnnxFlow:
    """An exported motion module as a propagator.

    Attributes:
        name: ``query`` or ``flow``.
        per_query: Whether it is ``query``.
    """

    def __init__(self, info: ExportInfo, session: Any) -> None:
        """Wrap a session of ONNX Runtime that runs ``motion.onnx``."""
        assert info.motion is not None
        self.name = info.motion
        self.per_query = self.name == "query"
        self._size = info.size
        self._normalised = info.schema_version != _FIXED_ONLY
        self._all = np.arange(info.num_queries)
        self._session = session

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],
        queries: Float32[np.ndarray, "1 Q D"] | None,
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,
    ) -> Float32[np.ndarray, "B G 2 h w"]:
        """Return one flow per query, or one for all; see ``Propagator.estimate_flow``.

        Raises:
            ModelError: The images are of another size than the networks were exported for, or the flow is not finite.
            ValueError: Queries are missing.
        """
        check_size(self._size, (current.shape[1], current.shape[2]))
        covered = MOTION_RULE.fit((current.shape[1], current.shape[2])).padded
        shared = {}
        if self.per_query:
            if queries is None:
                raise ValueError("the query propagator expects the key frame's queries, got none")
            shared["queries"] = np.ascontiguousarray(queries)
            shared["active"] = self._all if active is None else active
        now, then = self._inputs(current), self._inputs(other)
        flows = []
        for number in range(len(now)):
            key = number if len(then) > 1 else 0
            pair = {"current": now[number : number + 1], "other": then[key : key + 1]}
            flow = run_session(self._session, pair | shared, self.name)[0]
            if not np.isfinite(flow).all():
                raise ModelError("the motion module's flow is not finite; its weights are damaged")
            flows.append(fit_flow(flow[0], covered, padded, grid))
        return np.stack(flows)

    def _inputs(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float32[np.ndarray, "B 3 Hp Wp"]:
        if self._normalised:
            return MOTION_RULE.normalise(images)
        return images.transpose(0, 3, 1, 2).astype(np.float32, order="C")


def check_size(expected: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """Refuse an image of another size than the networks were exported for.

    Raises:
        ModelError: The sizes differ.
    """
    if expected is not None and expected != size:
        raise ModelError(
            f"this model was exported for images of {shown_size(expected)}, got {shown_size(size)}: "
            "export it again without --size, for any, or use backend torch"
        )


def load_exported(
    directory: str | Path, *, with_motion: bool = True, device: str = "cpu"
) -> tuple[OnnxSegmentor, OnnxFlow | None]:
    """Load what ``mpvss export`` made, to run on as many threads as the process may use.

    Args:
        directory: Where it is.
        with_motion: Whether to load the motion module, too, if there is one.
        device: As in ``open_session``.

    Raises:
        ModelError: onnxruntime is not installed, or the directory is not such a one.
        MpvssError: ONNX Runtime has nothing for the device.
    """
    require_runtime()
    info = ExportInfo.read(directory)
    segmentor = OnnxSegmentor(info, open_session(Path(directory) / KEY_NAME, device))
    if info.motion is None or not with_motion:
        return segmentor, None
    return segmentor, OnnxFlow(info, open_session(Path(directory) / MOTION_NAME, device))


def load_key(model: str | Path, device: str = "cpu") -> OnnxSegmentor:
    """Load the segmentor of an embedded model or of what ``mpvss export`` made; as ``load_exported``.

    Raises:
        ModelError: onnxruntime is not installed, or the model is no such one.
        MpvssError: ONNX Runtime has nothing for the device.
    """
    return load_exported(embedded_folder(model) or model, with_motion=False, device=device)[0]


def load_motion(model: str | Path, motion: str, device: str = "cpu") -> OnnxFlow | None:
    """Load the motion module ``query`` or ``flow`` of such a model; ``None`` where it has none of this kind.

    That of an embedded model lies in ``NAME-query`` or ``NAME-flow`` beside it.

    Raises:
        ModelError: onnxruntime is not installed, or a file is damaged.
        MpvssError: ONNX Runtime has nothing for the device.
    """
    require_runtime()
    embedded = embedded_folder(model)
    if embedded is None and not is_export(model):
        return None
    if embedded is None:
        info, folder = ExportInfo.read(model), Path(model)
        if info.motion != motion:
            return None
    else:
        info, folder = replace(ExportInfo.read(embedded), motion=motion), embedded.with_name(f"{model}-{motion}")
        if not folder.is_dir():
            return None
    return OnnxFlow(info, open_session(folder / MOTION_NAME, device))


def used_device(device: str) -> str:
    """What a device's name comes to: ``cpu``, ``cuda:N`` or ``mps``."""
    provider, number = choose_provider(device)
    return "cpu" if provider == _CPU else "mps" if provider in _PROVIDERS["mps"] else f"cuda:{number}"


def require_runtime() -> None:
    """Refuse to go on without ONNX Runtime.

    Raises:
        ModelError: onnxruntime is not installed.
    """
    if not has("onnxruntime"):
        raise ModelError("backend onnx needs onnxruntime, which is not installed: pip install onnxruntime")


def open_session(path: Path, device: str = "cpu") -> Any:
    """Return an ONNX Runtime session.

    Args:
        path: The graph.
        device: ``cpu``; ``cuda`` or ``cuda:N`` for CUDA or DirectML; ``mps`` for CoreML; or ``auto`` for CUDA where
            ONNX Runtime has it, else the CPU.

    Raises:
        ModelError: The file is missing or damaged.
        MpvssError: ONNX Runtime has nothing for the device.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path}: the network is missing; export again")
    provider, number = choose_provider(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3  # its warnings are about its own optimisers
    # Between two key frames other threads work, which those of the session would keep from the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "DmlExecutionProvider":
        options.enable_mem_pattern = False
    chain: list[Any] = [_CPU] if provider == _CPU else [(provider, {"device_id": number} if number else {}), _CPU]
    try:
        # Where links lead to: the weights beside a graph must be in the same directory.
        session = onnxruntime.InferenceSession(str(path.resolve()), options, providers=chain)
    except Exception as error:  # it has a dozen exception types without a common base of its own
        raise ModelError(f"{path}: ONNX Runtime cannot load the network ({_reason(error)}); export again") from error
    if session.get_providers()[0] != provider:
        message = f"ONNX Runtime has {provider}, but it does not start on this machine"
        if device != "auto":
            raise MpvssError(f"device {device} was asked for, and {message}; use cpu")
        log.warning("%s; the networks run on the CPU", message)
    return session


def choose_provider(device: str) -> tuple[str, int]:
    """Return the execution provider of ONNX Runtime for a device, and the number of the device.

    Raises:
        MpvssError: There is none. Nothing falls back silently.
    """
    import onnxruntime

    if device == "cpu":
        return _CPU, 0
    device = f"cuda:{device}" if device.isdecimal() else device
    available = onnxruntime.get_available_providers()
    if device == "auto":
        cuda = _PROVIDERS["cuda"][0]
        return (cuda if cuda in available else _CPU), 0
    kind, _, number = device.partition(":")
    provider = next((name for name in _PROVIDERS[kind] if name in available), None)
    if provider is None:
        raise MpvssError(
            f"device {device} was asked for, but this ONNX Runtime has no provider for it and torch is not in use: "
            f"pip install 'mpvss[torch]'{' or onnxruntime-gpu' if kind == 'cuda' else ''}, or use cpu"
        )
    return provider, int(number or 0)


def run_session(session: Any, inputs: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Run a session.

    Raises:
        ModelError: It fails on these inputs.
    """
    try:
        outputs: list[np.ndarray] = session.run(None, inputs)
    except Exception as error:  # as above
        sizes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
        raise ModelError(f"{name}: ONNX Runtime fails on {sizes} ({_reason(error)})") from error
    return outputs


def _reason(error: Exception) -> str:
    """The first line of what ONNX Runtime says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
