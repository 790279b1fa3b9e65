"""From a source to segmentations, and from a source to files."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mpvss._validate import shown, shown_address
from mpvss.convert.checkpoint import MOTION_TYPES, check_fits, load_motion, segmentor_of
from mpvss.engine.carriers import Inference, make_carrier
from mpvss.engine.flows import check_motion
from mpvss.engine.schedule import CutDetector, Cuts, FixedInterval, Schedule
from mpvss.engine.session import Session
from mpvss.engine.spill import Spill
from mpvss.engine.state import KeyState
from mpvss.errors import ModelError, MpvssError, SourceError
from mpvss.labels import resolve_classes
from mpvss.motion import PixelFlow, QueryFlow
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.learned import LearnedFlow
from mpvss.motion.network.pretrained import read_config
from mpvss.motion.propagator import Propagator
from mpvss.outputs.sinks import ProcessOptions, Sinks, output_paths
from mpvss.outputs.writer_thread import Behind
from mpvss.segmentors import EMBEDDED, Segmentor, load_segmentor
from mpvss.segmentors.efficientnet import fold_batch_norm
from mpvss.types import Frame, Geometry, Segmentation
from mpvss.video import Reader, read

log = logging.getLogger(__name__)

# Half as many key frames where the next one can be seen as well.
DEFAULT_INTERVAL: dict[str, int] = {"both": 10, "forward": 5}
# Most results that wait to be written.
_WAITING = 4


PROPAGATORS = ("query", "flow", "dis", "hold", "none")
# What auto means, but for motion modules given as the model: the most accurate for its time (docs/LOG.md).
BEST_PROPAGATOR = "dis"
_LEARNED = ("query", "flow")
BACKENDS = ("torch", "onnx")
# The segmentor on every frame: there is no frame between to bring masks to.
_NO_PROPAGATION: Propagator = Hold()


def make_propagator(name: str, motion: QueryFlow | PixelFlow | None = None) -> Propagator | None:
    """Return a propagator by its name, or ``None`` for ``none``: the segmentor on every frame.

    Args:
        name: One of ``PROPAGATORS``, or ``auto`` for the best that needs no training.
        motion: The motion module that ``query`` and ``flow`` need, on its device.

    Raises:
        ModelError: The motion module is missing or of the other kind.
        ValueError: There is no such propagator.
    """
    name = BEST_PROPAGATOR if name == "auto" else name
    if name not in PROPAGATORS:
        raise ValueError(f"propagator must be one of auto, {', '.join(PROPAGATORS)}, found {name!r}")
    if name in _LEARNED:
        if motion is None:
            raise ModelError(
                f"propagator {name} needs a motion module, and this model has none; pass a checkpoint directory that "
                "holds one, or use propagator dis, which needs no training"
            )
        learned = LearnedFlow(motion)
        if learned.name != name:
            raise ModelError(f"propagator {name} was asked for, the checkpoint has a motion module for {learned.name}")
        return learned
    makers: dict[str, Callable[[], Propagator | None]] = {"dis": Dis, "hold": Hold, "none": lambda: None}
    return makers[name]()


def meant_propagator(model: str | Path, propagator: str, backend: str = "torch") -> str:
    """Return what ``auto`` stands for: the model's own motion module, or else the best that needs no training.

    Raises:
        ModelError: The model's description cannot be read.
    """
    if propagator != "auto":
        return propagator
    own = None
    if backend == "onnx":
        from mpvss.segmentors.onnx import ExportInfo

        own = ExportInfo.read(model).motion
    elif model not in EMBEDDED and (Path(model) / "config.json").is_file():
        own = {"query_flow": "query", "pixel_flow": "flow"}.get(read_config(model)["model_type"])
    return own or BEST_PROPAGATOR


def _find_motion(model: str | Path, propagator: str) -> tuple[str | Path, str, QueryFlow | PixelFlow | None]:
    """Return what to load the segmentor from, the propagator that is meant, and its motion module if it has one.

    The embedded model has its motion modules beside it.
    """
    wanted = meant_propagator(model, propagator)
    if model in EMBEDDED:
        beside = Path(str(files("mpvss") / "assets" / f"{model}-{wanted}"))
        shipped = wanted in _LEARNED and beside.is_dir()
        return model, wanted, load_motion(beside).float() if shipped else None
    on_disk = (Path(model) / "config.json").is_file()
    if not (on_disk or wanted in _LEARNED) or read_config(model)["model_type"] not in MOTION_TYPES:
        return model, wanted, None
    segmentor = segmentor_of(model)
    if segmentor is None:
        raise ModelError(f"{model}: this motion module does not say which segmentor it belongs to")
    return segmentor, wanted, load_motion(model) if wanted in _LEARNED else None


def describe_propagator(propagator: Propagator | None) -> dict[str, Any]:
    """The settings of a propagator as plain values: those of its dataclass, or its motion module's configuration."""
    settings = getattr(getattr(propagator, "module", None), "config", propagator)
    if not is_dataclass(settings):
        return {}
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    return {name: value for name, value in values.items() if isinstance(value, _PLAIN)}


_PLAIN = (bool, int, float, str, type(None), list, tuple)


def choose_device(name: str | int) -> torch.device:
    """Return the device of this name; ``auto`` takes CUDA, then MPS, then the CPU. A number is that of a CUDA device.

    Raises:
        ValueError: There is no such kind of device.
        TypeError: It is neither text nor a number.
        MpvssError: The device is not there. Nothing falls back silently.
    """
    if isinstance(name, int) and not isinstance(name, bool):
        name = f"cuda:{name}"
    if not isinstance(name, str):
        raise TypeError(f"device must be text such as cuda:0, or the number of a CUDA device, got {name!r}")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.split(":", maxsplit=1)[0]
    if kind not in available:
        raise ValueError(f"device must be auto, cpu, cuda or mps, found {name!r}")
    if not available[kind]:
        raise MpvssError(f"device {name} was asked for, but this machine or this build of torch has none; use cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MpvssError(f"device {name} was asked for, but there are only {torch.cuda.device_count()}; use cuda:0")
    return device


def _check_name(model: str | Path) -> None:
    """Refuse a model's name that no system takes as a path: too long, or with a NUL byte.

    Raises:
        ModelError: It is so.
    """
    try:
        Path(model).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{shown(str(model))}: expected a model's name or directory, found: {reason}") from error


def choose_dtype(name: str) -> torch.dtype:
    """Return the precision of this name.

    Raises:
        ValueError: There is no such precision.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"dtype must be one of {', '.join(dtypes)}, found {name!r}")
    return dtypes[name]


def check_backend(backend: str, device: str, dtype: str) -> None:
    """Refuse a backend that there is not, or that does not run on this device in this precision.

    Raises:
        ValueError: It is so.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "onnx" and (device not in ("auto", "cpu") or dtype != "float32"):
        raise ValueError(f"backend onnx runs on the CPU in float32, found {device} and {dtype}; use backend torch")


def _until_lost(reader: Reader, lost: list[SourceError]) -> Iterator[Frame]:
    """The frames of a reader; where a live source is lost, what came is to be written, and the error kept for later."""
    try:
        yield from reader
    except SourceError as error:
        if not reader.info.live:
            raise
        lost.append(error)


class VideoSegmenter:
    """A segmentor and a propagator, ready for any number of videos. Holds no state of a video."""

    def __init__(
        self,
        segmentor: Segmentor,
        propagator: Propagator | None,
        *,
        motion: str = "chain",
        interval: int | None = None,
        cuts: bool = True,
        short_side: int | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        """Put a video segmenter together.

        Args:
            segmentor: Runs on key frames.
            propagator: Brings masks to the frames between; ``None`` runs the segmentor on every frame.
            motion: ``chain`` or ``direct``; see ``Session``.
            interval: Frames from one key frame to the next; ``None`` for 10 with both directions, 5 forward.
            cuts: Whether scene cuts are key frames too.
            short_side: Pixels of the shorter side that the networks see; ``None`` for the segmentor's own.
            tolerance: By how much, of at most 1, leaving queries out of propagation may change a class score; 0 leaves
                out none that changes any.

        Raises:
            ValueError: An interval or a size below 1, no such motion, or a tolerance out of range.
        """
        if interval is not None and interval < 1:
            raise ValueError(f"interval must be at least 1 frame, found {interval}")
        check_motion(motion)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance must be from 0 to 1, found {tolerance}")
        self.segmentor = segmentor
        self.propagator = propagator
        self.motion: str = motion
        self.interval = interval
        self.cuts = cuts
        self.tolerance = tolerance
        # What ``from_pretrained`` decided about the networks; of a segmentor that was made otherwise nobody knows.
        self.runtime: dict[str, Any] = dict.fromkeys(("backend", "device", "dtype", "fast"))
        self.rule = segmentor.rule if short_side is None else segmentor.rule.with_short_side(short_side)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "compact",
        *,
        propagator: str = "auto",
        motion: str = "chain",
        interval: int | None = None,
        cuts: bool = True,
        short_side: int | None = None,
        tolerance: float = 1e-3,
        device: str | int = "auto",
        dtype: str = "float32",
        fast: bool = True,
        backend: str = "torch",
    ) -> "VideoSegmenter":
        """Load a segmentor, and the motion module of a checkpoint that has one; see ``__init__`` for the rest.

        Args:
            model: ``compact``; a hub id or a directory of a segmentor; or the directory of a motion module, which
                names its segmentor.
            propagator: ``query``, ``flow``, ``dis``, ``hold``, ``none``, or ``auto``: the model's own if it is a motion
                module, or else ``dis``.
            motion: ``chain`` or ``direct``.
            interval: Frames from one key frame to the next.
            cuts: Whether scene cuts are key frames too.
            short_side: Pixels of the shorter side that the networks see.
            tolerance: By how much leaving queries out of propagation may change a class score.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            dtype: ``float32``, ``bfloat16`` or ``float16``.
            fast: Whether a Mask2Former runs through our own forward pass and the batch norms of ``compact`` are folded;
                ``False`` for the library's network as it is, which gives the same to rounding.
            backend: ``torch``; or ``onnx`` for a directory made by ``mpvss export``, on the CPU in float32.

        Raises:
            ModelError: The model cannot be loaded.
            ValueError: An option is out of its range.
        """
        _check_name(model)
        check_backend(backend, str(device), dtype)
        check_motion(motion)
        if backend == "onnx":
            from mpvss.segmentors.onnx import load_exported

            exported, flow = load_exported(model, with_motion=propagator in ("auto", *_LEARNED))
            own = flow is not None and propagator in ("auto", flow.name)
            moved_by = flow if own else make_propagator(propagator)
            segmenter = cls(
                exported, moved_by, motion=motion, interval=interval, cuts=cuts, short_side=short_side,
                tolerance=tolerance,
            )  # fmt: skip
            segmenter.runtime = {"backend": backend, "device": "cpu", "dtype": dtype, "fast": None}
            return segmenter
        if (Path(model) / "export.json").is_file():
            raise ModelError(f"{model}: made by mpvss export: give --backend onnx, or the model that was exported")
        place, precision = choose_device(device), choose_dtype(dtype)
        source, meant, module = _find_motion(model, propagator)
        if module is not None:
            # Before it gets there: some devices have no double.
            double = any(weight.dtype == torch.float64 for weight in module.parameters())
            module = (module.float() if double else module).to(place)
        chosen = make_propagator(meant, module)
        segmentor = load_segmentor(source, device=place, dtype=precision, fast=fast)
        if fast:
            fold_batch_norm(segmentor.model)
        if isinstance(chosen, LearnedFlow):
            check_fits(chosen.module, segmentor.query_width, segmentor.num_queries)
        segmenter = cls(
            segmentor, chosen, motion=motion, interval=interval, cuts=cuts, short_side=short_side, tolerance=tolerance
        )
        segmenter.runtime = {"backend": backend, "device": str(place), "dtype": dtype, "fast": fast}
        return segmenter

    def per_frame(self) -> "VideoSegmenter":
        """Return the same segmentor without propagation, at the same size: the baseline."""
        baseline = VideoSegmenter(self.segmentor, None)
        baseline.rule = self.rule
        return baseline

    def segment(self, frame: Frame, image: UInt8[Tensor, "3 H W"], geometry: Geometry) -> KeyState:
        """Run the segmentor on one prepared frame.

        Raises:
            ModelError: Its answer is not of the shape that its classes ask for.
        """
        found = self.segmentor(image[None])
        classes = len(self.segmentor.class_names)
        if found.class_logits.shape[-1] != classes + 1:
            raise ModelError(
                f"{self.segmentor.name}: expected class logits of {classes} classes and, last, no object, got "
                f"{found.class_logits.shape[-1]} columns; a segmentor without a no-object column adds one of -inf or "
                "-1e4, and class_names has one name for each class"
            )
        if not found.class_logits.shape[1] == found.mask_logits.shape[1] == found.queries.shape[1]:
            counts = (found.class_logits.shape[1], found.mask_logits.shape[1], found.queries.shape[1])
            raise ModelError(
                f"{self.segmentor.name}: expected one class, one mask and one embedding for each query, "
                f"got {counts[0]} classes, {counts[1]} masks and {counts[2]} embeddings"
            )
        return KeyState(frame, image, found.class_logits[0], found.mask_logits[0], found.queries[0], geometry)

    def schedule(self, direction: str) -> tuple[Schedule, Cuts | None]:
        """Return what decides which frames of one video are key frames, and what finds its cuts."""
        if self.propagator is None:
            return FixedInterval(1), None
        return FixedInterval(self.interval or DEFAULT_INTERVAL.get(direction, 1)), CutDetector() if self.cuts else None

    def session(
        self,
        direction: str = "forward",
        *,
        classes: Sequence[int] | None = None,
        confidence: bool = False,
        min_score: float = 0.0,
        schedule: tuple[Schedule, Cuts | None] | None = None,
    ) -> Session:
        """Begin a video of which the frames are pushed one by one.

        Args:
            direction: ``forward`` answers each frame at once; ``both`` waits for the next key frame.
            classes: Only these class ids are kept; other pixels get the ignore id.
            confidence: Whether results carry the winner's share of the scores.
            min_score: Pixels whose best class score is lower get the ignore id; see ``Session``.
            schedule: What decides on key frames, and finds cuts; ``None`` for the segmenter's own.
        """
        inference = Inference(
            self.segment,
            self.rule,
            _NO_PROPAGATION if self.propagator is None else self.propagator,
            motion=self.motion,
            classes=classes,
            confidence=confidence,
            tolerance=self.tolerance,
            min_score=min_score,
            class_names=self.segmentor.class_names,
        )
        keys, cuts = schedule or self.schedule(direction)
        return Session(make_carrier(inference), keys, direction=direction, cuts=cuts)

    def stream(
        self,
        source: str | Path | Iterable[Frame],
        *,
        direction: str | None = None,
        classes: Sequence[int] | None = None,
        confidence: bool = False,
        deinterlace: str = "auto",
        min_score: float = 0.0,
    ) -> Iterator[Segmentation]:
        """Segment a source frame by frame, in order, with memory that does not grow with its length.

        Args:
            source: File, folder or glob of images, ``camera:0``, RTSP or HTTP address; or frames.
            direction: ``None`` for both on files, forward on live sources.
            classes: Only these class ids are kept; other pixels get the ignore id.
            confidence: Whether results carry the winner's share of the scores.
            deinterlace: ``auto`` deinterlaces the frames of a file that are flagged as interlaced, ``off`` leaves them.
            min_score: Pixels whose best class score is lower get the ignore id; see ``Session``.

        Raises:
            SourceError: The source cannot be read.
            ValueError: ``deinterlace`` is neither.
        """
        begin = partial(self.session, classes=classes, confidence=confidence, min_score=min_score)
        if isinstance(source, str | Path):
            with read(source, deinterlace=deinterlace) as reader:
                yield from self._run(reader, begin(direction or ("forward" if reader.info.live else "both")))
        else:
            yield from self._run(source, begin(direction or "both"))

    @staticmethod
    def _run(frames: Iterable[Frame], session: Session) -> Iterator[Segmentation]:
        with session:
            for frame in frames:
                yield from session.push(frame, copy=False)
            yield from session.finish()

    def describe(self, options: ProcessOptions, direction: str) -> dict[str, Any]:
        """Return what NAME.json says about how a source was segmented: the model and all that decides the labels."""
        return {
            "model": self.segmentor.name,
            "revision": getattr(getattr(getattr(self.segmentor, "model", None), "config", None), "_commit_hash", None),
            "options": {
                "propagator": "none" if self.propagator is None else self.propagator.name,
                "motion": self.motion,
                "direction": direction,
                "interval": 1 if self.propagator is None else self.interval or DEFAULT_INTERVAL[direction],
                "cuts": self.cuts and self.propagator is not None,
                "short_side": self.rule.short_side,
                "long_side": self.rule.long_side,
                "multiple": self.rule.multiple,
                "classes": options.classes,
                "start": None if options.start is None else str(options.start),
                "end": None if options.end is None else str(options.end),
                "stride": options.stride,
                "fps": None if options.fps is None else str(options.fps),
                "video_stream": options.video_stream,
                "tolerance": self.tolerance,
                "flow": describe_propagator(self.propagator),
                **self.runtime,
                "threads": torch.get_num_threads(),
                "deinterlace": options.deinterlace,
                "min_score": options.min_score,
            },
        }

    def process(
        self,
        source: str | Path,
        out: str | Path,
        options: ProcessOptions | None = None,
        *,
        direction: str | None = None,
        named: str | None = None,
        on_frame: Callable[[Segmentation], None] | None = None,
    ) -> dict[str, Any]:
        """Segment one source into files under ``out``.

        Args:
            source: What ``stream`` takes, but for frames.
            out: Directory; made if missing.
            options: What to write, and how.
            direction: ``None`` for both on files, forward on live sources.
            named: What NAME.json calls the source, where ``source`` is only a copy of it.
            on_frame: Called with each finished frame, for progress.

        Returns:
            source, frames, key_frames, propagator, damaged (frames or packets lost), outputs (paths by kind) and
            seconds (by stage; reading, segmenting and writing overlap, so they add up to more than the total); with
            ``compare``, where nothing overlaps, also seconds per frame and flicker of both sides.

        Raises:
            SourceError: The source cannot be read, or holds no frame.
            OutputError: An output exists, or cannot be written.
        """
        options = options or ProcessOptions()
        began = time.perf_counter()
        names = self.segmentor.class_names
        wanted = None if options.classes is None else resolve_classes(options.classes, names)
        with read(source, **options.selection()) as reader:
            paths = output_paths(options.name or reader.info.name, Path(out), options)
            direction = direction or ("forward" if reader.info.live else "both")
            session = self.session(direction, classes=wanted, min_score=options.min_score)
            alone = self.per_frame().session("forward", classes=wanted, min_score=options.min_score)
            about = self.describe(options, direction) | ({} if named is None else {"source": named})
            taken = 0
            first = next(reader)  # or the error that there is none, before any output is begun
            with ExitStack() as stack:
                sinks = stack.enter_context(Sinks(reader, paths, options, names, about, wanted))
                write: Callable[..., None] = sinks.write
                if not options.compare:  # which times the two sides, and is not to be disturbed
                    write = partial(stack.enter_context(Behind(_WAITING)).call, sinks.write)
                others: deque[Segmentation] = deque()
                spill = Spill("results that wait to be compared")

                def deliver(results: Iterable[Segmentation]) -> None:
                    for result in results:
                        costs = (alone.clock.total / taken, session.clock.total / taken)
                        write(result, others.popleft() if options.compare else None, costs)
                        if on_frame is not None:
                            on_frame(result)

                lost: list[SourceError] = []
                for frame in chain([first], _until_lost(reader, lost)):
                    taken += 1
                    if options.compare:
                        other = alone.push(frame, copy=False)[0]
                        others.append(replace(other, labels=spill.keep(other.labels)))
                    deliver(session.push(frame, copy=False))
                    if not others:
                        spill.clear()
                deliver(session.finish())
            for message in reader.warnings:
                log.warning("%s: %s", reader.info.source, message)
            if reader.damaged:
                log.warning("%s: %d frames or packets are damaged or lost", reader.info.source, reader.damaged)
            summary: dict[str, Any] = {
                "source": shown_address(str(source)),
                "frames": sinks.frames,
                "key_frames": sinks.key_frames,
                "propagator": about["options"]["propagator"],
                "damaged": reader.damaged,
                "outputs": {kind: str(path) for kind, path in paths.items()},
                "seconds": {
                    "read": reader.seconds,
                    **session.clock.seconds,
                    "write": sinks.seconds,
                    "total": time.perf_counter() - began,
                },
            }
            if options.compare:
                flicker = [None if math.isnan(value) else value for value in sinks.flicker]
                per_frame, propagated = alone.clock.total / taken, session.clock.total / taken
                summary["compare"] = {
                    "seconds_per_frame": {"per_frame": per_frame, "propagated": propagated},
                    "flicker": {"per_frame": flicker[0], "propagated": flicker[1]},
                }
            if lost:  # what came before is written
                raise lost[0]
            return summary
