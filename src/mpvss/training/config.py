"""The configuration of a training run: frozen dataclasses, read from YAML, every key and value checked."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from mpvss._validate import convert, parse_yaml, shown
from mpvss.convert.architectures import ARCHS
from mpvss.errors import ConfigError

_LARGEST = 1e100  # no infinity
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0, le=_LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
Side = Annotated[int, Meta(ge=32)]

# What may differ when a run goes on: where and how fast it runs, not what it computes.
_FREE_ON_RESUME = ("run.device", "run.workers", "run.keep", "run.log_every", "run.save_every", "run.pictures_every")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        segmentor: What ``--model`` takes: where the segmentor's weights come from. ``None`` with ``arch``.
        arch: One of the paper's architectures, from random weights, for the classes of the data.
        backbone: A backbone of the transformers library, hub id or directory, whose weights ``arch`` starts from.
        new_classes: Replace the segmentor's classes by those of the data; the class layer starts anew.
        propagator: ``query`` or ``flow``; stage motion.
        heads: Parts of the segmentor that stage motion trains along, by the names of its modules.
        motion: Shape of the motion module: fields of ``QueryFlowConfig``. Number and width of the queries are the
            segmentor's.
        start_from: Directory of a motion module to start from.
        gradient_checkpointing: Save memory in the segmentor by computing activations twice; stage segmentor.
    """

    segmentor: str | None = "compact"
    arch: str | None = None
    backbone: str | None = None
    new_classes: bool = False
    propagator: Literal["query", "flow"] = "query"
    heads: tuple[str, ...] = ()
    motion: dict[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if (self.segmentor is None) == (self.arch is None):
            raise ConfigError("model: give either segmentor or arch (and set the other one to null)")
        if self.arch is not None and self.arch not in ARCHS:
            raise ConfigError(f"model.arch: expected one of {', '.join(ARCHS)}, got {shown(self.arch)}")
        if self.backbone is not None and self.arch is None:
            raise ConfigError("model.backbone goes with model.arch; a segmentor brings its own backbone")


@dataclass(frozen=True)
class SourceConfig:
    """One source of pairs.

    Attributes:
        data: Kind and directory, as for ``mpvss eval``.
        split: Part of the data set.
        kind: ``video``: two frames of a clip. ``simulated``: two views of one labelled image, with the exact flow.
        weight: How often it is drawn, relative to the others.
    """

    data: str
    split: str | None = None
    kind: Literal["video", "simulated"] = "video"
    weight: Positive = 1.0


@dataclass(frozen=True)
class DataConfig:
    """Which pairs are seen, and how they are varied.

    Attributes:
        sources: At least one.
        max_distance: Largest number of frames between the two frames of a pair; 1 trains for chaining.
        crop: Height and width in pixels; multiples of 32 waste nothing.
        scale: Range of the factor that images are resized by before the crop.
        flip: Whether every second sample is mirrored left to right.
        colour: Strength of the recolouring, 0 to 1.
        pseudo_flow: Pairs without an exact flow get that of OpenCV's DIS where it is consistent both ways, searched
            down to this pyramid level: 0 the full size and slowest, 1 four times faster; ``None`` for none.
        validation: Data set of which ``validation_clips`` clips are scored; ``None`` for no validation.
        validation_split: Part of it.
        validation_clips: How many of its clips, the first ones.
        validation_frames: At most so many frames of each.
        interval: Frames from one key frame to the next in validation.
        motion: ``chain`` or ``direct`` in validation.
    """

    sources: tuple[SourceConfig, ...] = ()
    max_distance: Count = 10
    crop: tuple[Side, Side] = (480, 480)
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    flip: bool = True
    colour: Annotated[float, Meta(ge=0, le=1)] = 0.3
    pseudo_flow: Natural | None = None
    validation: str | None = None
    validation_split: str | None = None
    validation_clips: Count = 10
    validation_frames: Count = 60
    interval: Count = 5
    motion: Literal["chain", "direct"] = "direct"

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"data.scale: expected a lowest and a highest factor, got {shown(self.scale)}")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: a weighted sum; a weight of 0 leaves a term out.

    Attributes:
        sets: Mask2Former's set loss, of every decoder layer.
        classification: Cross entropy of the classes, inside the set loss and its matching.
        mask: Binary cross entropy of the masks, likewise.
        dice: Dice loss of the masks, likewise.
        no_object: Weight of queries that are matched to nothing.
        points: Random points at which masks are compared; 0 for all pixels of the mask grid.
        every_layer: Whether all decoder layers count, or the last one alone.
        scores: Negative log-likelihood of the class scores that inference takes the maximum of.
        labels: The same with the key frame's labels in place of the segmentor's masks: what ``mpvss eval --oracle``
            scores. With ``propagator: flow`` and no other mask loss the segmentor does not run, ten times faster.
        flow: Distance to the exact flow, or to DIS, in pixels.
        coarse: The same for the flow that the motion module makes on each coarser grid; learns sooner.
        photometric: Difference between the image and the warped key frame.
    """

    sets: Weight = 1.0
    classification: Weight = 2.0
    mask: Weight = 5.0
    dice: Weight = 5.0
    no_object: Weight = 0.1
    points: Natural = 12544
    every_layer: bool = True
    scores: Weight = 0.0
    labels: Weight = 0.0
    flow: Weight = 0.0
    coarse: Weight = 0.0
    photometric: Weight = 0.0

    def __post_init__(self) -> None:
        if self.sets + self.scores + self.labels + self.flow + self.photometric == 0:
            raise ConfigError("loss: expected a weight above 0, got all 0")


@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised: AdamW.

    Attributes:
        steps: Updates of the weights.
        batch: Samples a step and process before ``accumulate``.
        accumulate: Batches whose gradients are added up for one step.
        lr: Peak learning rate.
        backbone_lr: Factor on it for the segmentor's backbone.
        weight_decay: Of weights; biases, norms and embeddings have none.
        warmup: Steps from zero to the peak.
        power: Of the polynomial from the peak to zero.
        clip_norm: Gradients are scaled to at most this norm.
        ema: Share that the averaged weights keep at each step; 0 for no average. The average is what is validated and
            exported.
        frozen: Parts of the segmentor that are not trained, by the beginnings of their parameters' names.
    """

    steps: Count = 90_000
    batch: Count = 16
    accumulate: Count = 1
    lr: Positive = 5e-5
    backbone_lr: Weight = 0.1
    weight_decay: Weight = 0.05
    warmup: Natural = 0
    power: Positive = 0.9
    clip_norm: Positive = 0.01
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """Where it runs and what it writes.

    Attributes:
        out: Directory of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``no`` (float32), ``bf16`` or ``fp16``.
        workers: Processes that prepare samples; 0 prepares them in the training process. They do not change the data.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints.
        keep: The last so many checkpoints are kept; the weights of the best validation always.
        log_every: Steps between lines of metrics.
        pictures_every: Steps between images in TensorBoard; 0 for none.
    """

    out: str = "runs/train"
    device: str = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: Natural = 2
    validate_every: Count = 1000
    save_every: Count = 500
    keep: Count = 2
    log_every: Count = 20
    pictures_every: Natural = 500


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        stage: ``segmentor`` trains it per frame; ``motion`` trains the motion module for a frozen segmentor.
        seed: Of everything random.
        model: What is trained.
        data: On what.
        loss: Towards what.
        optim: How.
        run: Where.
    """

    stage: Literal["segmentor", "motion"]
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.data.sources:
            raise ConfigError("data.sources: name at least one data set to train on")
        if self.stage == "motion" and self.model.arch is not None:
            raise ConfigError("stage motion needs a trained segmentor: set model.segmentor instead of model.arch")


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration.

    Args:
        path: A YAML file.
        overrides: ``key=value`` with dots between sections and a YAML value, as in ``optim.lr=1e-4``.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}")
    return make_config(values, overrides)


def make_config(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Make a configuration from parsed values; see ``load_config``."""
    tree = _plain(values)
    for override in overrides:
        _override(tree, override)
    run = tree.get("run")
    if isinstance(run, dict) and run.get("precision") is False:  # YAML reads a bare no as false
        run["precision"] = "no"
    return convert(tree, TrainConfig, what="the configuration", error=ConfigError)


def _override(tree: dict[str, Any], override: str) -> None:
    """Put one ``key=value`` into parsed values."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set expects key=value such as optim.lr=1e-4, got {override!r}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
    tree[last] = _plain(value)


_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _plain(value: Any) -> Any:
    """A copy in dictionaries and lists; numbers such as 1e-4, which YAML reads as text, become numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def as_values(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain values that ``make_config`` takes."""
    values: dict[str, Any] = _plain(dataclasses.asdict(config))
    return values


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List, one line each, what differs between two configurations of one run, but for what may differ."""
    one, other = _flat(before), _flat(now)
    return [
        f"{key}: {shown(one.get(key))} in the run, {shown(other.get(key))} now"
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key) and key not in (*_FREE_ON_RESUME, "run.out")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
