"""Every option, declared once: name, type, default, range and one line of help.

A new one is a field; one that ``stream`` takes is also a line of ``VideoOverrides``, which a test compares.

The command line, the manifest of a batch, NAME.json and docs/options.md are made from these declarations. A value out
of its range is refused where it is given: ``OptionError`` names the argument in Python and the flag on the command
line. Importing this module imports no network and no codec.
"""

import dataclasses
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from mpvss._validate import shown
from mpvss.errors import OptionError

PropagatorName = Literal["auto", "query", "flow", "dis", "codec", "hold", "none"]
MotionName = Literal["chain", "direct"]
DirectionName = Literal["both", "forward"]
BackendName = Literal["auto", "torch", "onnx"]
OutputKind = Literal["labels", "scores", "logits", "masks"]
DtypeName = Literal["float32", "bfloat16", "float16"]
DeinterlaceName = Literal["auto", "off"]
EngineName = Literal["local", "ray"]
Time = str | float | Fraction
"""Seconds, or text such as "1:02.5"."""

LARGEST_COUNT = 10**6
SHORTEST_SIDE, LONGEST_SIDE = 32, 8192
_LONGEST_NAME = 200
_T = TypeVar("_T")
_O = TypeVar("_O", bound="Options")


# --- what an option is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declaration:
    """What is known of an option besides its name, type and default.

    Attributes:
        help: One line.
        low: Smallest value, included.
        high: Largest value, included.
        flags: How the command line writes it, where not ``--name-with-dashes``.
        switch: A truth value that is only ever switched on, without a ``--no-`` form.
        metavar: What stands for the value in the help.
        parse: Makes the value from text; the command line has text only.
        python_only: Not on the command line.
        repeated: A tuple of which the command line takes one value each time the flag is given.
    """

    help: str
    low: float | None = None
    high: float | None = None
    flags: tuple[str, ...] = ()
    switch: bool = False
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    repeated: bool = False
    python_only: bool = False


def option(default: _T, help_: str, **rest: Any) -> _T:
    """Declare a field as an option; ``rest`` as in ``Declaration``."""
    declared: _T = field(default=default, metadata={"option": Declaration(help_, **rest)})
    return declared


def required(help_: str, **rest: Any) -> Any:
    """Declare a field as an option without a default; ``rest`` as in ``Declaration``."""
    return field(metadata={"option": Declaration(help_, **rest)})


def declaration(declared: "dataclasses.Field[Any]") -> Declaration:
    """Return what ``option`` said of a field."""
    known: Declaration = declared.metadata["option"]
    return known


def again(owner: type[Any], name: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field as the option of this name of another class, with another default if one is given."""
    other = next(each for each in fields(owner) if each.name == name)
    return field(default=other.default if default is dataclasses.MISSING else default, metadata=other.metadata)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the parts of a union, without ``None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for part in get_args(annotation) if part is not type(None))
    return (annotation,)


def is_optional(annotation: Any) -> bool:
    """Whether a type takes ``None``."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def choices(annotation: Any) -> tuple[str, ...] | None:
    """Return the values of a ``Literal``, also of an optional one; ``None`` for another type."""
    return next((get_args(part) for part in alternatives(annotation) if get_origin(part) is Literal), None)


@cache
def types_of(options: type[Any]) -> dict[str, Any]:
    """Return the types of a class's options, by name."""
    return get_type_hints(options)


@dataclass(frozen=True)
class Options:
    """Base of the option classes: frozen data classes that validate themselves."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            OptionError: A value is of the wrong type, unknown or out of range; a ValueError that names the option.
        """
        own: Any = type(self)
        for declared in fields(self):
            value = getattr(self, declared.name)
            checked = _checked(declared.name, value, types_of(own)[declared.name], declaration(declared))
            if checked is not value:
                object.__setattr__(self, declared.name, checked)

    def replace(self: _O, **changes: Any) -> _O:
        """Return the same options but for these.

        Raises:
            OptionError: There is no such option, or its value is out of range.
        """
        names = [declared.name for declared in fields(self)]
        unknown = next((name for name in changes if name not in names), None)
        if unknown is not None:
            raise OptionError(unknown, f"is no option here; expected one of {', '.join(names)}")
        return dataclasses.replace(self, **changes) if changes else self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; exact times as text."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_dict(cls: type[_O], values: Mapping[str, Any]) -> _O:
        """Return the options of ``to_dict``; names that this version does not know are left out.

        Raises:
            OptionError: A value is out of range.
        """
        known = {each.name for each in fields(cls)}
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Fraction | Path) else value


def _checked(name: str, value: Any, annotation: Any, known: Declaration) -> Any:
    """Return a value as its option holds it: lists become tuples, text becomes a path where only a path will do."""
    if value is None and is_optional(annotation):
        return value
    parts, allowed = alternatives(annotation), choices(annotation)
    listed = next((part for part in parts if get_origin(part) is tuple), None)
    if allowed is not None:
        if value not in allowed:
            raise OptionError(name, f"must be one of {', '.join(allowed)}, got {shown(value)}")
    elif listed is not None:
        value = _checked_list(name, value, get_args(listed), known)
    elif bool in parts:
        if not isinstance(value, bool):
            raise OptionError(name, f"must be true or false, got {shown(value)}")
    elif isinstance(value, numbers.Real) and {int, float} & set(parts):
        _check_number(name, value, known, whole=float not in parts)
    elif Path in parts and isinstance(value, str | Path):
        return value if str in parts else Path(value)
    elif not isinstance(value, tuple(part for part in parts if isinstance(part, type))):
        kinds = "text" if str in parts or Path in parts else "a whole number" if float not in parts else "a number"
        raise OptionError(name, f"must be {kinds}, got {shown(value)}")
    return value


def _checked_list(name: str, value: Any, members: tuple[Any, ...], known: Declaration) -> tuple[Any, ...]:
    if members[-1] is Ellipsis:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            example = f"({value!r:.40},)" if isinstance(value, str) else "('road',)"
            raise OptionError(name, f"must be a list of names such as {example}, got {shown(value)}")
        return tuple(_checked(name, each, members[0], known) for each in value)
    if not isinstance(value, tuple | list) or len(value) != len(members):
        raise OptionError(name, f"must be {len(members)} whole numbers, got {shown(value)}")
    return tuple(_checked(name, each, int, known) for each in value)


def _check_number(name: str, value: Any, known: Declaration, *, whole: bool) -> None:
    if isinstance(value, bool) or (whole and not isinstance(value, numbers.Integral)):
        raise OptionError(name, f"must be a {'whole ' if whole else ''}number, got {shown(value)}")
    low, high = known.low, known.high
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        if low is not None and high is not None:
            expected = f"from {low:g} to {high:g}" if high != LARGEST_COUNT else f"at least {low:g}"
        else:
            expected = f"at least {low:g} and finite" if low is not None else "finite"
        raise OptionError(name, f"must be {expected}, got {shown(value)}")


# --- text of the command line ----------------------------------------------------------------------------------------


def parse_list(text: str) -> tuple[str, ...]:
    """Return the parts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width of "HEIGHTxWIDTH".

    Raises:
        ValueError: It is no size, or a side is not from 32 to 8192 pixels.
    """
    height, times, width = text.partition("x")
    sides = [side for side in (height, width) if re.fullmatch("[0-9]{1,5}", side) and 0 < int(side) <= LONGEST_SIDE]
    if not times or len(sides) < 2 or min(int(height), int(width)) < SHORTEST_SIDE:
        raise ValueError(
            f"expected a size as HEIGHTxWIDTH such as 480x853, from {SHORTEST_SIDE} to {LONGEST_SIDE} a side, "
            f"got {shown(text)}"
        )
    return int(height), int(width)


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and n of "I/N".

    Raises:
        ValueError: It is no shard.
    """
    first, slash, second = text.partition("/")
    if not (slash and re.fullmatch("[0-9]{1,9}", first) and re.fullmatch("[0-9]{1,9}", second)):
        raise ValueError(f"expected a shard as I/N such as 1/4, got {shown(text)}")
    return int(first), int(second)


def _count(default: _T, help_: str, low: int = 1, high: int = LARGEST_COUNT, **rest: Any) -> _T:
    return option(default, help_, low=low, high=high, **rest)


def _check_time(options: Any, name: str, parse: str) -> Any:
    value = getattr(options, name)
    if value is None:
        return None
    from mpvss import video

    try:
        return getattr(video, parse)(value)
    except ValueError as error:
        raise OptionError(name, f"{error}", separator=": ") from error


# --- how video is segmented ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions(Options):
    """Which networks, and what they run on."""

    model: str | Path = option(
        "compact",
        "compact, owner/name on the hub, a directory (or a motion module's), FILE.onnx or module:function.",
    )
    device: str | int = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: DtypeName = option("float32", "Precision of the networks.")
    backend: BackendName = option(
        "auto", "auto: onnx for compact and what export made, torch for the rest; torch; or onnx, without torch."
    )
    classes_file: str | Path | None = option(
        None, "Names of the classes, for a function or an ONNX file: one a line, or JSON or YAML.", metavar="FILE"
    )
    output_kind: OutputKind | None = option(
        None, "What a function gives (default: labels), or an ONNX file (default: recognised by shape)."
    )
    fast: bool = option(True, "Our own forward pass; --no-fast for the library's.")
    prompt: tuple[str, ...] = option(
        (), "A class as text, for models that take text. Repeatable.", metavar="TEXT", repeated=True
    )
    threads: int | None = _count(
        None, "Threads of the networks and of OpenCV. Default: all cores, or 1 in a batch.", high=1024
    )

    def __post_init__(self) -> None:
        """See ``Options``; and the backend must run in this precision."""
        if not isinstance(self.device, str) and (isinstance(self.device, bool) or not isinstance(self.device, int)):
            raise TypeError(f"device must be text such as cuda:0, or the number of a CUDA device, got {self.device!r}")
        super().__post_init__()
        device = self.device if isinstance(self.device, str) else f"cuda:{self.device}"
        if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device) is None:
            raise OptionError("device", f"must be auto, cpu, cuda, cuda:N or mps, got {shown(self.device)}")
        if self.backend == "onnx" and self.dtype != "float32":
            raise OptionError("backend", f"onnx runs in float32, got {self.dtype}; use backend torch")
        if any(not text.strip() for text in self.prompt) or len(set(self.prompt)) < len(self.prompt):
            raise OptionError("prompt", f"must be texts, each given once, got {shown(list(self.prompt))}")


@dataclass(frozen=True)
class PropagationOptions(Options):
    """Which frames are key frames, and how their results reach the others."""

    propagator: PropagatorName = option(
        "auto", "How masks reach the frames between key frames; codec: by the video's own motion vectors."
    )
    motion: MotionName = option("chain", "chain composes flows between neighbours; direct is the paper.")
    direction: DirectionName | None = option(None, "Default: both for files, forward for live sources.")
    schedule: str = option("interval", "What chooses key frames: interval.")
    interval: int | None = _count(None, "Frames from one key frame to the next. Default: 10 both, 5 forward.")
    cuts: bool = option(True, "Scene cuts are key frames too.")
    short_side: int | None = _count(
        None, "Pixels of the shorter side the networks see.", low=SHORTEST_SIDE, high=LONGEST_SIDE, metavar="PIXELS"
    )
    tolerance: float = option(
        1e-3, "By how much leaving queries out of propagation may change a class score.", low=0, high=1
    )
    min_score: float = option(
        0.0, "Pixels whose best class score is lower get no class, such as .5; 0 for none.", low=0
    )

    def __post_init__(self) -> None:
        """See ``Options``; and there must be such a schedule."""
        super().__post_init__()
        if self.schedule != "interval":
            from mpvss.engine.schedule import SCHEDULES

            if self.schedule not in SCHEDULES:
                raise OptionError("schedule", f"must be one of {', '.join(SCHEDULES)}, got {shown(self.schedule)}")


@dataclass(frozen=True)
class StreamOptions(Options):
    """Which stream of a file is read, and at what rate where it has none."""

    fps: Time | None = option(None, "Frames a second of a raw stream or of images, which have no times.")
    video_stream: int | None = _count(None, "Which video stream of several, from 0; inspect lists them.", low=0)

    def __post_init__(self) -> None:
        """See ``Options``; and the rate must be one."""
        super().__post_init__()
        _check_time(self, "fps", "parse_rate")


@dataclass(frozen=True)
class SourceOptions(StreamOptions):
    """What part of a source is read."""

    start: Time | None = option(None, "First moment, from the first frame: seconds, or m:ss.")
    end: Time | None = option(None, "Moment to stop before.")
    stride: int = _count(1, "Take every so many frames.")
    deinterlace: DeinterlaceName = option(
        "auto", "auto: frames that are flagged as interlaced are deinterlaced; off: never."
    )

    def __post_init__(self) -> None:
        """See ``Options``; and the range in time must not be empty."""
        super().__post_init__()
        start, end = (_check_time(self, name, "parse_time") for name in ("start", "end"))
        if end is not None and end <= (start or 0):
            raise OptionError("end", f"must be after start, got start {self.start or 0} and end {self.end}")

    def selection(self) -> dict[str, Any]:
        """Return what ``read`` takes."""
        return {each.name: getattr(self, each.name) for each in fields(SourceOptions)}


@dataclass(frozen=True)
class SegmentOptions(SourceOptions, PropagationOptions, ModelOptions):
    """How video is segmented: the model, how its results are propagated, and what part of the video is read."""

    classes: tuple[str | int, ...] | None = option(None, "Only these classes, separated by commas.", parse=parse_list)
    confidence: bool = option(False, "Results carry the winner's share of the scores.", switch=True, python_only=True)

    def __post_init__(self) -> None:
        """See ``Options``; and ``classes`` must name at least one."""
        super().__post_init__()
        if self.classes is not None and not self.classes:
            raise OptionError("classes", "must name at least one class, got none; leave it out for all")


class VideoOverrides(TypedDict, total=False):
    """The options that may differ from video to video, as keyword arguments."""

    motion: MotionName
    direction: DirectionName | None
    schedule: str
    interval: int | None
    cuts: bool
    short_side: int | None
    tolerance: float
    min_score: float
    classes: tuple[str | int, ...] | None
    confidence: bool
    start: Time | None
    end: Time | None
    stride: int
    deinterlace: DeinterlaceName
    fps: Time | None
    video_stream: int | None


class SegmentOverrides(VideoOverrides, total=False):
    """The options of a loaded segmenter as keyword arguments."""

    propagator: PropagatorName


class LoadOverrides(SegmentOverrides, total=False):
    """All of ``SegmentOptions`` but the model, as keyword arguments."""

    device: str | int
    dtype: DtypeName
    backend: BackendName
    classes_file: str | Path | None
    output_kind: OutputKind | None
    fast: bool
    prompt: tuple[str, ...]
    threads: int | None


# --- what is written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawOptions(Options):
    """What is written, and how it is drawn. NAME.json is always written."""

    save: tuple[str, ...] = option(
        ("overlay", "labels"), "Any of overlay, labels, png, separated by commas.", parse=parse_list
    )
    alpha: float = option(0.5, "Opacity of the classes over the image.", low=0, high=1)
    legend: bool = option(False, "Draw class names on the overlay.", switch=True)
    compare: bool = option(False, "Also write per frame beside propagated.", switch=True)

    def __post_init__(self) -> None:
        """See ``Options``; and every output must be known."""
        super().__post_init__()
        from mpvss.outputs.sinks import SAVEABLE

        unknown = next((name for name in self.save if name not in SAVEABLE), None)
        if unknown is not None:
            raise OptionError("save", f"takes {', '.join(SAVEABLE)}, got {shown(unknown)}")


@dataclass(frozen=True)
class OutputOptions(DrawOptions):
    """What is written of one source, and under which name."""

    overwrite: bool = option(False, "Replace outputs that exist.", switch=True)
    name: str | None = option(None, "What the results are called. Default: as the source.")

    def __post_init__(self) -> None:
        """See ``DrawOptions``; and the name must be a file's."""
        super().__post_init__()
        name = self.name
        if name is not None and (
            not name.strip()
            or name.startswith(".")
            or set(name) & set("/\\\0")
            or len(os.fsencode(name)) > _LONGEST_NAME
        ):
            raise OptionError(
                "name", f"must be a file's name without folders, of at most {_LONGEST_NAME} bytes, got {shown(name)}"
            )


class OutputOverrides(TypedDict, total=False):
    """``OutputOptions`` as keyword arguments."""

    save: tuple[str, ...]
    alpha: float
    legend: bool
    compare: bool
    overwrite: bool
    name: str | None


class ProcessOverrides(SegmentOverrides, OutputOverrides, total=False):
    """The options of a loaded segmenter and of what it writes, as keyword arguments."""


# --- commands of their own -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchOptions(Options):
    """How a batch is run; nothing here changes a result."""

    engine: EngineName = option("local", "Processes of this machine, or a Ray cluster.")
    workers: int | None = _count(None, "Default: one for each GPU, or for every two cores.", high=4096)
    ray_address: str | None = option(None, "Of the cluster. Default: one on this machine.")
    retries: int = _count(2, "How often a video or a chunk is tried again.", low=0)
    resume: bool = option(False, "Do only what is not whole yet.", switch=True)
    overwrite: bool = again(OutputOptions, "overwrite")
    shard: tuple[int, int] | None = option(
        None, "Only this part of the videos, such as 1/4.", metavar="I/N", parse=parse_shard
    )
    state: Path | None = option(None, "Directory of the manifest. Default: --out, if that is a directory.")
    split: int = _count(1500, "Frames of the chunks that longer videos are divided into; 0 for never.", low=0)
    verify: bool = option(False, "With --resume, compare checksums and not only sizes.", switch=True)
    stall: int = _count(600, "Seconds without a frame after which a worker is stuck.")

    def __post_init__(self) -> None:
        """See ``Options``; and options that exclude each other."""
        super().__post_init__()
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError("ray_address", "goes with engine ray only")
        if self.ray_address is not None and self.workers is None:
            raise OptionError("ray_address", "names a cluster of any size: say how many workers it is to run")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise OptionError("shard", f"must be i/n with i from 1 to n, got {self.shard[0]}/{self.shard[1]}")
        if self.resume and self.overwrite:
            raise OptionError("resume", "keeps what is finished and overwrite replaces it: choose one")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(PropagationOptions, ModelOptions):
    """What is scored, and how. A run directory belongs to one set of these."""

    direction: DirectionName = option("both", "both uses the next key frame too.")
    cuts: bool = again(PropagationOptions, "cuts", False)
    data: str = required("vspw:DIR, cityscapes:DIR, camvid:DIR, davis:DIR or folder:DIR.")
    split: str | None = option(None, "Part of the data set. Default: the usual one for scoring.")
    oracle: bool = option(False, "True labels at key frames; DAVIS always has them.", switch=True)
    predictions: str | Path | None = option(None, "Score the label files in this directory instead.")
    save_predictions: str | Path | None = option(None, "Write all predictions to this directory.")

    def __post_init__(self) -> None:
        """See ``Options``; and options that exclude each other."""
        super().__post_init__()
        if self.predictions is not None and (self.oracle or self.save_predictions is not None):
            raise OptionError("predictions", "are only scored: neither true labels nor saving go with it")


@dataclass(frozen=True)
class BenchOptions(ModelOptions):
    """What is measured, and how often."""

    model: str | Path | None = option(  # type: ignore[assignment]
        None, "compact, a hub id such as owner/name, or a directory. Default: compact."
    )
    arch: str | None = option(None, "Instead: r50, r101, swin-t, swin-s, swin-b or swin-l, with random weights.")
    classes: int | None = _count(None, "Classes of an --arch. Default: 124.", high=65535)
    size: tuple[int, int] | None = option(
        None, "HEIGHTxWIDTH in pixels. Default: 480x853 for an --arch, 360x480.", parse=parse_size
    )
    propagator: PropagatorName | None = option(None, "Default: query for an --arch, or what segment takes.")
    motion: MotionName | None = option(None, "Default: direct for an --arch, or what segment takes.")
    direction: DirectionName | None = option(None, "Default: forward for an --arch, or both.")
    interval: int | None = _count(None, "Default: 5 forward, 10 both; on a VIDEO 5, 10 and 20.")
    short_side: int | None = again(PropagationOptions, "short_side")
    frames: int | None = _count(
        None, "Frames of a whole run. Default: one interval of an --arch, or five; 101 of a VIDEO."
    )
    repeats: int = _count(3, "Rounds of the segmentation alone, after one to warm up.")
    runs: int | None = _count(None, "Whole runs from file to files; 0 for none. Default: 1 for an --arch, or 3.", low=0)
    source: str | None = option(None, "Compare with the library on this; without it one is made.", metavar="FILE")
    data: str | None = again(EvalOptions, "data", None)
    split: str | None = again(EvalOptions, "split")

    def __post_init__(self) -> None:
        """See ``ModelOptions``; and options that do not go together."""
        super().__post_init__()
        if self.model is not None and self.arch is not None:
            raise OptionError("arch", f"goes without a model, got {shown(self.arch)} and {shown(self.model)}")
        if self.arch is None and self.classes is not None:
            raise OptionError("classes", "is for an arch with random weights; a checkpoint has its own")
        if self.arch is not None and self.data is not None:
            raise OptionError("data", "is for a checkpoint: random weights have no accuracy")
        if self.size is not None and min(self.size) < SHORTEST_SIDE:
            raise OptionError("size", f"must be at least 32x32, got {self.size[0]}x{self.size[1]}")


@dataclass(frozen=True)
class FillOptions(Options):
    """How masks at some frames are propagated to the others."""

    propagator: PropagatorName = again(PropagationOptions, "propagator")
    motion: MotionName = again(PropagationOptions, "motion")
    direction: DirectionName = option("both", "both fills a gap from the masks on both sides.")
    model: str | None = option(None, "A motion module's directory, for query and flow.")
    save: tuple[str, ...] = again(DrawOptions, "save", ("labels", "png"))
    overwrite: bool = again(OutputOptions, "overwrite")
    name: str | None = again(OutputOptions, "name")
    device: str | int = again(ModelOptions, "device")

    def __post_init__(self) -> None:
        """See ``Options``; and something must reach the other frames."""
        super().__post_init__()
        OutputOptions(save=self.save, name=self.name)
        ModelOptions(device=self.device)
        if self.propagator == "none":
            raise OptionError("propagator", "none brings no mask to another frame: choose another")


@dataclass(frozen=True)
class DistillOptions(Options):
    """How a motion module is trained from videos without labels."""

    model: str | Path = again(ModelOptions, "model")
    propagator: Literal["flow", "query"] = option("flow", "flow: one flow; query: one for each segment.")
    size: Literal["light", "paper"] = option("light", "light, or paper for the paper's motion module.")
    max_distance: int = _count(2, "Most frames between the two of a pair. Small for --motion chain.")
    simulate: tuple[str, ...] = option(
        (), "Also simulate motion on this data set's labelled images.", metavar="KIND:DIR[@SPLIT]", repeated=True
    )
    cache: Path | None = option(None, "Directory for the teacher's results. Default: in --out.")
    confidence: float = option(0.5, "Leave out pixels of which the teacher is less certain.", low=0, high=1)
    stride: int = again(SourceOptions, "stride")
    overrides: tuple[str, ...] = option(
        (), "Replace a value, as in optim.steps=2000.", metavar="KEY=VALUE", flags=("--set",), repeated=True
    )
    resume: bool = option(False, "Go on from the last checkpoint.", switch=True)


@dataclass(frozen=True)
class ConsoleOptions(Options):
    """How a command speaks."""

    as_json: bool = option(False, "Print one JSON object on stdout.", flags=("--json",), switch=True)
    verbose: bool = option(False, "Say more on stderr.", flags=("--verbose", "-v"), switch=True)
    quiet: bool = option(False, "Say only warnings on stderr.", flags=("--quiet", "-q"), switch=True)
