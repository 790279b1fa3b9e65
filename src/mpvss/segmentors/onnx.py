"""Exported networks in ONNX Runtime: a segmentor and a propagator like any other, on the CPU.

A directory made by ``mpvss export`` holds ``key.onnx``, ``motion.onnx`` where the checkpoint has a motion module, and
``export.json``, which says what they are. Its networks take images of one size.
"""

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mpvss._threads import threads
from mpvss._validate import convert, read_json, shown
from mpvss.errors import ModelError
from mpvss.motion.arrays import fit_flow
from mpvss.motion.network.config import PAD_MULTIPLE
from mpvss.segmentors.protocol import InputRule, Prediction
from mpvss.types import shown_size

EXPORT_NAME = "export.json"
KEY_NAME = "key.onnx"
MOTION_NAME = "motion.onnx"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ExportInfo:
    """What ``export.json`` says.

    Attributes:
        name: The segmentor's name.
        class_names: Names in the order of their ids.
        rule: Size and normalisation of the input; takes no other size.
        size: Height and width of the images that the networks take, before padding.
        motion: ``query`` or ``flow``, or ``None`` without a motion module.
        num_queries: Number of the segmentor's queries.
        max_difference: Largest absolute difference from torch that was seen at the export, by output.
    """

    name: str
    class_names: tuple[str, ...]
    rule: InputRule
    size: tuple[int, int]
    motion: str | None
    num_queries: int
    max_difference: dict[str, float]

    def to_json(self) -> str:
        """Return the text of ``export.json``."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, directory: str | Path) -> "ExportInfo":
        """Read ``export.json``.

        Raises:
            ModelError: It is missing, or was not written by this version's ``mpvss export``.
        """
        path = Path(directory) / EXPORT_NAME
        if not path.is_file():
            raise ModelError(
                f"{directory}: expected a directory made by mpvss export, got no {EXPORT_NAME}; run "
                f"mpvss export --model {directory} first, or use backend torch"
            )
        try:
            values = convert(read_json(path), dict, what=EXPORT_NAME)
            version = values.pop("schema_version", None)
            if version != SCHEMA_VERSION:
                raise ValueError(f"expected schema version {SCHEMA_VERSION}, got {shown(version)}")
            return convert(values, cls, what=EXPORT_NAME)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: not as this version of mpvss export writes it ({error}); export again"
            ) from error


class OnnxSegmentor:
    """An exported mask classifier.

    Attributes:
        name: Name of the model that was exported.
        class_names: Names in the order of their ids.
        rule: Size and normalisation of its input.
    """

    def __init__(self, info: ExportInfo, session: Any) -> None:
        """Wrap a session of ONNX Runtime that runs ``key.onnx``."""
        self.name, self.class_names, self.rule = info.name, info.class_names, info.rule
        self._size = info.size
        self._session = session

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Prediction:
        """Segment a batch, image by image; see ``Segmentor``.

        Raises:
            ModelError: The images are of another size than the networks were exported for.
        """
        check_size(self._size, (images.shape[1], images.shape[2]))
        pixels = self.rule.normalise(images)
        outputs = [self._session.run(None, {"pixels": one[None]}) for one in pixels]
        class_logits, mask_logits, queries = (np.concatenate(values) for values in zip(*outputs, strict=True))
        return Prediction(class_logits, mask_logits, queries)


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
            ModelError: The images are of another size than the networks were exported for.
            ValueError: Queries are missing.
        """
        check_size(self._size, (current.shape[1], current.shape[2]))
        covered = (-(-self._size[0] // PAD_MULTIPLE) * PAD_MULTIPLE, -(-self._size[1] // PAD_MULTIPLE) * PAD_MULTIPLE)
        shared = {}
        if self.name == "query":
            if queries is None:
                raise ValueError("the query propagator expects the key frame's queries, got none")
            shared["queries"] = np.ascontiguousarray(queries)
            shared["active"] = self._all if active is None else active
        flows = []
        for now, then in zip(current, np.broadcast_to(other, (len(current), *other.shape[1:])), strict=True):
            pair = {
                name: image.transpose(2, 0, 1)[None].astype(np.float32, order="C")
                for name, image in (("current", now), ("other", then))
            }
            flow = self._session.run(None, pair | shared)[0]
            flows.append(fit_flow(flow[0], covered, padded, grid))
        return np.stack(flows)


def check_size(expected: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse an image of another size than the networks were exported for.

    Raises:
        ModelError: The sizes differ.
    """
    if expected != size:
        raise ModelError(
            f"this model was exported for images of {shown_size(expected)}, got {shown_size(size)}: "
            f"export it again with --size {size[0]}x{size[1]} (HEIGHTxWIDTH), or use backend torch"
        )


def load_exported(directory: str | Path, *, with_motion: bool = True) -> tuple[OnnxSegmentor, OnnxFlow | None]:
    """Load what ``mpvss export`` made, to run on as many threads as torch does.

    Args:
        directory: Where it is.
        with_motion: Whether to load the motion module, too, if there is one.

    Raises:
        ModelError: onnxruntime is not installed, or the directory is not such a one.
    """
    require_runtime()
    info = ExportInfo.read(directory)
    segmentor = OnnxSegmentor(info, open_session(Path(directory) / KEY_NAME))
    if info.motion is None or not with_motion:
        return segmentor, None
    return segmentor, OnnxFlow(info, open_session(Path(directory) / MOTION_NAME))


def require_runtime() -> None:
    """Refuse to go on without ONNX Runtime.

    Raises:
        ModelError: onnxruntime is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise ModelError("backend onnx needs onnxruntime, which is not installed: pip install 'mpvss[onnx]'")


def open_session(path: Path) -> Any:
    """Return an ONNX Runtime session on the CPU.

    Raises:
        ModelError: The file is missing or damaged.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path}: the network is missing; export again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a dozen exception types without a common base of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: ONNX Runtime cannot load the network ({reason}); export again") from error
