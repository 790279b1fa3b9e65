"""A segmentor and a propagator, ready for any number of videos."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mpvss._threads import threads, use_threads
from mpvss._validate import shown
from mpvss.engine.carriers import Inference, make_carrier
from mpvss.engine.schedule import SCHEDULES, CutDetector, Cuts, FixedInterval, Schedule
from mpvss.engine.session import Session
from mpvss.engine.state import KeyState, PixelState
from mpvss.errors import ModelError, OptionError
from mpvss.labels import palette_for, read_class_names, resolve_classes
from mpvss.motion.dis import Hold
from mpvss.motion.propagator import FollowsVectors, Propagator
from mpvss.motion.propagators import LEARNED, describe_propagator, find_motion, make_propagator, meant_propagator
from mpvss.options import (
    DirectionName,
    LoadOverrides,
    ModelOptions,
    OutputOptions,
    ProcessOverrides,
    SegmentOptions,
    SegmentOverrides,
    SourceOptions,
    VideoOverrides,
)
from mpvss.segmentors import (
    InputRule,
    PixelPrediction,
    Segmentor,
    choose_backend,
    is_export,
    is_onnx_file,
    load_segmentor,
    require_torch,
)
from mpvss.segmentors.protocol import FunctionError, check_prediction
from mpvss.segmentors.wrap import is_address, load_function
from mpvss.types import Frame, Geometry, RunSummary, Segmentation, Stop, until
from mpvss.video import Reader, parse_time, read

# Half as many key frames where the next one can be seen as well.
DEFAULT_INTERVAL: dict[str, int] = {"both": 10, "forward": 5}
# The segmentor on every frame: there is no frame between to bring masks to.
_NO_PROPAGATION: Propagator = Hold()
_OF_THE_MODEL = tuple(each.name for each in fields(ModelOptions))
_OF_THE_SOURCE = tuple(each.name for each in fields(SourceOptions))
_OF_THE_OUTPUT = tuple(each.name for each in fields(OutputOptions))


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
        raise ModelError(f"{shown(str(model))}: expected a model's name or directory, got: {reason}") from error


def _refuse(overrides: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    wrong = next((name for name in overrides if name in names), None)
    if wrong is not None:
        raise OptionError(wrong, why)


def _single(values: Float[np.ndarray, "B *shape"]) -> Float32[np.ndarray, "B *shape"]:
    """Return the same numbers in 32 bits: what OpenCV and the engine compute with."""
    return np.asarray(values, np.float32)


def _rule(segmentor: Segmentor, short_side: int | None) -> InputRule:
    return segmentor.rule if short_side is None else segmentor.rule.with_short_side(short_side)


class VideoSegmenter:
    """A segmentor and a propagator, ready for any number of videos. Holds no state of a video.

    Attributes:
        segmentor: Runs on key frames.
        propagator: Brings masks to the frames between; ``None`` runs the segmentor on every frame.
        options: How video is segmented, unless a call says otherwise.
        rule: Size of the images that the networks see.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        propagator: Propagator | None,
        options: SegmentOptions | None = None,
        **overrides: Unpack[VideoOverrides],
    ) -> None:
        """Put a video segmenter together.

        Args:
            segmentor: Runs on key frames.
            propagator: Brings masks to the frames between; ``None`` runs the segmentor on every frame.
            options: How video is segmented; those of the model are not looked at.
            overrides: Options that replace those; see ``SegmentOptions``.

        Raises:
            OptionError: An option is unknown or out of its range.
        """
        _refuse(overrides, _OF_THE_MODEL, "is for from_pretrained: this segmentor is loaded already")
        self.options = (options or SegmentOptions()).replace(**overrides)
        self.segmentor, self.propagator, self._own = segmentor, propagator, propagator
        # What ``from_pretrained`` decided about the networks; of a segmentor that was made otherwise nobody knows.
        self._runtime: dict[str, Any] = dict.fromkeys(("backend", "device", "dtype", "fast"))
        self.rule = _rule(segmentor, self.options.short_side)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "compact", *, options: SegmentOptions | None = None, **overrides: Unpack[LoadOverrides]
    ) -> "VideoSegmenter":
        """Load a segmentor, and the motion module of a checkpoint that has one.

        Args:
            model: ``compact``; a hub id or a directory of a segmentor; or the directory of a motion module, which
                names its segmentor.
            options: How video is segmented; its model makes way for ``model``.
            overrides: Options that replace those; see ``SegmentOptions``. With ``propagator="auto"`` it is the model's
                own motion module, or else ``dis``. With ``fast=False`` the networks are the library's as they are,
                which gives the same to rounding.

        Raises:
            ModelError: The model cannot be loaded.
            OptionError: An option is unknown or out of its range.
            MpvssError: The device is not there.
        """
        options = (options or SegmentOptions()).replace(model=model, **overrides)
        _check_name(model)
        if options.threads is not None:
            use_threads(options.threads)
        elsewhere = is_address(options.model) or is_onnx_file(options.model) or choose_backend(options) == "onnx"
        if options.prompt and elsewhere:
            raise OptionError("prompt", "is for models of transformers that take text, such as SAM 3; leave it out")
        if is_address(options.model):
            return cls._imported(options)
        if is_onnx_file(options.model):
            return cls._of_file(options)
        return cls._exported(options) if choose_backend(options) == "onnx" else cls._loaded(options)

    @classmethod
    def _imported(cls, options: SegmentOptions) -> "VideoSegmenter":
        names = None if options.classes_file is None else read_class_names(options.classes_file)
        segmentor = load_function(str(options.model), classes=names, output=options.output_kind)
        return cls(segmentor, make_propagator(options.propagator), options)

    @classmethod
    def _of_file(cls, options: SegmentOptions) -> "VideoSegmenter":
        from mpvss.segmentors.onnx import used_device
        from mpvss.segmentors.onnx_file import OnnxFileSegmentor

        names = None if options.classes_file is None else read_class_names(options.classes_file)
        device = str(options.device)
        segmentor = OnnxFileSegmentor(Path(options.model), classes=names, output=options.output_kind, device=device)
        segmenter = cls(segmentor, make_propagator(options.propagator), options)
        segmenter._runtime = {
            "backend": "onnx", "device": used_device(device), "dtype": options.dtype, "fast": None
        }  # fmt: skip
        return segmenter

    @classmethod
    def _exported(cls, options: SegmentOptions) -> "VideoSegmenter":
        from mpvss.segmentors.onnx import load_key, used_device

        device = str(options.device)
        segmentor = load_key(options.model, device)
        segmenter = cls(segmentor, cls._exported_propagator(options), options)
        segmenter._runtime = {
            "backend": "onnx", "device": used_device(device), "dtype": options.dtype, "fast": None
        }  # fmt: skip
        return segmenter

    @staticmethod
    def _exported_propagator(options: SegmentOptions) -> Propagator | None:
        from mpvss.segmentors.onnx import load_motion

        name = meant_propagator(options.model, options.propagator)
        own = load_motion(options.model, name, str(options.device)) if name in LEARNED else None
        return own or make_propagator(name)

    @classmethod
    def _loaded(cls, options: SegmentOptions) -> "VideoSegmenter":
        if is_export(options.model):
            raise ModelError(f"{options.model}: made by mpvss export: give --backend onnx or auto, not torch")
        require_torch(options.model)
        from mpvss._devices import choose_device, choose_dtype
        from mpvss.convert.checkpoint import check_fits
        from mpvss.motion.learned import LearnedFlow
        from mpvss.segmentors.efficientnet import fold_batch_norm

        device, dtype = choose_device(options.device), choose_dtype(options.dtype)
        source, propagator = cls._learned(options)
        segmentor = load_segmentor(source, device=device, dtype=dtype, fast=options.fast, prompts=options.prompt)
        if options.fast:
            fold_batch_norm(segmentor.model)
        if isinstance(propagator, LearnedFlow):
            check_fits(propagator.module, segmentor.query_width, segmentor.num_queries)
        segmenter = cls(segmentor, propagator, options)
        segmenter._runtime = {
            "backend": "torch", "device": str(device), "dtype": options.dtype, "fast": options.fast
        }  # fmt: skip
        return segmenter

    @staticmethod
    def _learned(options: SegmentOptions) -> tuple[str | Path, Propagator | None]:
        """Return what the segmentor is loaded from, and the propagator, on its device."""
        source, name, module = find_motion(options.model, options.propagator)
        if module is not None:
            import torch

            from mpvss._devices import choose_device

            # Before it gets there: some devices have no double.
            double = any(weight.dtype == torch.float64 for weight in module.parameters())
            module = (module.float() if double else module).to(choose_device(options.device))
        return source, make_propagator(name, module)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the class ids are called, in their order."""
        return self.segmentor.class_names

    @property
    def palette(self) -> UInt8[Any, "K 3"]:
        """Colours of the classes, RGB."""
        return palette_for(self.class_names)

    def class_ids(self) -> list[int] | None:
        """Return the ids of the classes that are kept; ``None`` for all.

        Raises:
            ConfigError: The model has no class of such a name.
            OptionError: The model has no class of such an id.
        """
        if self.options.classes is None:
            return None
        names, count = self.class_names, len(self.class_names)
        wrong = next((each for each in self.options.classes if isinstance(each, int) and not 0 <= each < count), None)
        if wrong is not None:
            raise OptionError("classes", f"must be names, or ids from 0 to {count - 1}, got {shown(wrong)}")
        ids = [[each] if isinstance(each, int) else resolve_classes([each], names) for each in self.options.classes]
        return list(dict.fromkeys(id_ for several in ids for id_ in several))

    def with_options(self, **overrides: Unpack[SegmentOverrides]) -> "VideoSegmenter":
        """Return the same networks with other options.

        Raises:
            OptionError: An option is unknown, out of its range, or decided when the model is loaded.
            ModelError: The propagator needs a motion module that was not loaded.
        """
        _refuse(overrides, _OF_THE_MODEL, "is decided when the model is loaded; load another segmenter for it")
        if not overrides:
            return self
        options = self.options.replace(**overrides)
        other = copy(self)
        other.options = options
        if "propagator" in overrides:
            other.propagator = self._propagator(options.propagator)
        if options.short_side != self.options.short_side:
            other.rule = _rule(self.segmentor, options.short_side)
        return other

    def _propagator(self, name: str) -> Propagator | None:
        own = self._own
        if name == "auto" or (own is not None and own.name == name):
            return own
        if name in LEARNED and self._runtime["device"] is not None:
            options = self.options.replace(propagator=name)
            onnx = self._runtime["backend"] == "onnx"
            return self._exported_propagator(options) if onnx else self._learned(options)[1]
        return make_propagator(name)

    def per_frame(self) -> "VideoSegmenter":
        """Return the same segmentor without propagation, at the same size: the baseline."""
        return self.with_options(propagator="none")

    def segment(
        self, frames: Sequence[Frame], images: Sequence[UInt8[np.ndarray, "H W 3"]], geometry: Geometry
    ) -> list[KeyState | PixelState]:
        """Run the segmentor on prepared frames of one geometry.

        Raises:
            ModelError: Its answer is not of the shape that its classes ask for; or it is a function that failed.
        """
        try:
            prediction = self.segmentor(np.stack(images))
        except FunctionError as error:
            first, last = frames[0], frames[-1]
            which = f"frame {first.index}" if len(frames) == 1 else f"frames {first.index} to {last.index}"
            message = f"{self.segmentor.name}, {which}, from {float(first.pts):g} s: {error}"
            raise FunctionError(message) from error.__cause__
        check_prediction(self.segmentor, prediction)
        classes = len(self.segmentor.class_names)
        if isinstance(prediction, PixelPrediction):
            ids = np.arange(classes) if prediction.ids is None else prediction.ids
            return [
                PixelState(frame, image, maps, prediction.kind, ids, classes, geometry)
                for frame, image, maps in zip(frames, images, _single(prediction.scores), strict=True)
            ]
        classes_of, masks, queries = map(_single, (prediction.class_logits, prediction.mask_logits, prediction.queries))
        answers = zip(classes_of, masks, queries, strict=True)
        return [
            KeyState(frame, image, *answer, geometry)
            for frame, image, answer in zip(frames, images, answers, strict=True)
        ]

    def schedule(self, direction: str) -> tuple[Schedule, Cuts | None]:
        """Return what decides which frames of one video are key frames, and what finds its cuts."""
        if self.propagator is None:
            return FixedInterval(1), None
        interval = self.options.interval or DEFAULT_INTERVAL.get(direction, 1)
        return SCHEDULES[self.options.schedule](interval), CutDetector() if self.options.cuts else None

    def session(
        self,
        *,
        key_frames: tuple[Schedule, Cuts | None] | None = None,
        key_batch: int = 1,
        **overrides: Unpack[SegmentOverrides],
    ) -> Session:
        """Begin a video of which the frames are pushed one by one.

        Args:
            key_frames: What decides on key frames, and finds cuts; ``None`` for what the options say.
            key_batch: So many key frames go through the segmentor at once, and what depends on them waits.
            overrides: See ``with_options``. With direction ``forward``, which is also the default, each frame is
                answered at once; ``both`` waits for the next key frame.
        """
        _refuse(overrides, _OF_THE_SOURCE, "is of a source: push the frames that you want, or use stream")
        segmenter = self.with_options(**overrides)
        options = segmenter.options
        direction = options.direction or "forward"
        following = segmenter._following()
        inference = Inference(
            following.segment,
            segmenter.rule,
            _NO_PROPAGATION if segmenter.propagator is None else segmenter.propagator,
            motion=options.motion,
            classes=segmenter.class_ids(),
            confidence=options.confidence,
            tolerance=options.tolerance,
            min_score=options.min_score,
            network=following.segmentor if segmenter._on_device() else None,
            class_names=segmenter.class_names,
        )
        schedule, cuts = key_frames or segmenter.schedule(direction)
        return Session(make_carrier(inference), schedule, direction=direction, cuts=cuts, key_batch=key_batch)

    def _on_device(self) -> bool:
        """Whether the segmentor answers with tensors on a device other than the CPU."""
        return getattr(getattr(self.segmentor, "device", None), "type", "cpu") != "cpu"

    def _following(self) -> "VideoSegmenter":
        """Return the same for one video, where the segmentor carries something from key frame to key frame."""
        for_video = getattr(self.segmentor, "for_video", None)
        if for_video is None:
            return self
        other = copy(self)
        other.segmentor = for_video()
        return other

    def stream(
        self, source: str | Path | Iterable[Frame], *, stop: Stop | None = None, **overrides: Unpack[SegmentOverrides]
    ) -> Iterator[Segmentation]:
        """Segment a source frame by frame, in order, with memory that does not grow with its length.

        Args:
            source: File, folder or glob of images, ``camera:0``, RTSP or HTTP address; or frames.
            stop: Ends the video before the next frame is read, once it is set; frames that wait are still answered.
            overrides: See ``with_options``. Without ``direction`` it is both on files, forward on live sources.

        Raises:
            SourceError: The source cannot be read.
            OptionError: An option is unknown or out of its range.
        """
        segmenter = self.with_options(**overrides)
        options = segmenter.options
        if isinstance(source, str | Path):
            with segmenter.read(source) as reader:
                direction: DirectionName = options.direction or ("forward" if reader.info.live else "both")
                session = segmenter.session(direction=direction, key_batch=segmenter.key_batch(live=reader.info.live))
                yield from _segmented(session, until(reader, stop))
        else:
            session = segmenter.session(direction=options.direction or "both", key_batch=segmenter.key_batch())
            yield from _segmented(session, until(_selected(source, options), stop))

    def read(self, source: str | Path) -> Reader:
        """Open what the options select of a source, with motion vectors where the propagator follows them.

        Raises:
            SourceError: The source cannot be read.
            ConfigError: It has times of its own and the options give a rate, or it has no such stream.
        """
        return read(source, **self.options.selection(), vectors=isinstance(self.propagator, FollowsVectors))

    def key_batch(self, *, live: bool = False) -> int:
        """Return how many key frames the segmentor takes at once; one where results are waited for."""
        return 1 if live else int(getattr(self.segmentor, "batch", 1))

    def describe(self, direction: str) -> dict[str, Any]:
        """Return what NAME.json says about how a source was segmented: the model and all that decides the labels."""
        alone = self.propagator is None
        options = self.options.to_dict() | {
            "propagator": "none" if self.propagator is None else self.propagator.name,
            "direction": direction,
            "interval": 1 if alone else self.options.interval or DEFAULT_INTERVAL[direction],
            "cuts": self.options.cuts and not alone,
            "short_side": self.rule.short_side,
            "long_side": self.rule.long_side,
            "multiple": self.rule.multiple,
            "exact": self.rule.exact and list(self.rule.exact),
            "flow": describe_propagator(self.propagator),
            "threads": threads(),
            **self._runtime,
        }
        del options["model"]  # which stands beside them
        revision = getattr(getattr(getattr(self.segmentor, "model", None), "config", None), "_commit_hash", None)
        return {"model": self.segmentor.name, "revision": revision, "options": options}

    def process(
        self,
        source: str | Path,
        out: str | Path,
        output: OutputOptions | None = None,
        *,
        named: str | None = None,
        on_frame: Callable[[Segmentation], None] | None = None,
        stop: Stop | None = None,
        **overrides: Unpack[ProcessOverrides],
    ) -> RunSummary:
        """Segment one source into files under ``out``.

        Args:
            source: What ``stream`` takes, but for frames.
            out: Directory; made if missing.
            output: What to write, and how.
            named: What NAME.json calls the source, where ``source`` is only a copy of it.
            on_frame: Called with each finished frame, for progress.
            stop: Ends the video before the next frame is read, once it is set; what was segmented is written.
            overrides: See ``with_options``; and those of ``output``.

        Raises:
            SourceError: The source cannot be read, or holds no frame.
            OutputError: An output exists, or cannot be written.
            OptionError: An option is unknown or out of its range.
        """
        from mpvss._process import Process

        values: dict[str, Any] = dict(overrides)
        written = {name: values.pop(name) for name in _OF_THE_OUTPUT if name in values}
        output = (output or OutputOptions()).replace(**written)
        return Process(self.with_options(**values), source, Path(out), output, named, on_frame, stop).run()


def _segmented(session: Session, frames: Iterable[Frame]) -> Iterator[Segmentation]:
    with session:
        for frame in frames:
            yield from session.push(frame, copy=False)
        yield from session.finish()


def _selected(frames: Iterable[Frame], options: SegmentOptions) -> Iterator[Frame]:
    """Yield what start, end and stride select of frames that are at hand; times count from the first one."""
    start = Fraction(0) if options.start is None else parse_time(options.start)
    end = None if options.end is None else parse_time(options.end)
    origin, selected = None, 0
    for frame in frames:
        origin = frame.pts if origin is None else origin
        if end is not None and frame.pts - origin >= end:
            return
        if frame.pts - origin >= start:
            if selected % options.stride == 0:
                yield frame
            selected += 1
