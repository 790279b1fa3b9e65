"""How much faster: the library on every frame, ours on every frame, and ours at an interval, in one run.

All of them are warm and take turns, so that whatever else the machine does hits them alike; medians are reported, and
ratios of medians. On the CPU.
"""

import copy
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain, islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

import mpvss
from mpvss._files import output_errors, write_json
from mpvss._threads import cores
from mpvss.convert.architectures import Model, build
from mpvss.convert.cost import count_gmac
from mpvss.engine.clock import STAGES, StageClock
from mpvss.engine.decode import score_size
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.errors import MpvssError, SourceError
from mpvss.evaluation import charts
from mpvss.labels import label_dtype
from mpvss.motion import PixelFlow
from mpvss.motion.dis import Dis
from mpvss.motion.propagator import serves_both_ways
from mpvss.motion.warp import warp
from mpvss.outputs import OverlayWriter
from mpvss.outputs.sinks import ProcessOptions
from mpvss.segmenter import DEFAULT_INTERVAL, VideoSegmenter, make_propagator
from mpvss.segmentors.huggingface import HuggingFaceSegmentor, library_prediction
from mpvss.segmentors.protocol import InputRule, Prediction, Segmentor, prepare, resize_frame
from mpvss.types import IMAGE_RATE, Frame, Geometry, Segmentation
from mpvss.video import read

log = logging.getLogger(__name__)

# What trained models show on street scenes: so many queries of the hundred say something, about so many classes.
ACTIVE_QUERIES = 20
PRESENT_CLASSES = 12
# Chances of a sure query's class, and of any class at all for the others.
_SURE, _UNSURE = 0.95, 1e-6
_PAPER_SIZE, _PAPER_CLASSES = (480, 853), 124
_COMPACT_SIZE = (360, 480)
# Side of the square matrices whose product tells the machine's rate.
_MATRIX = 2048

Labeller = Callable[[Frame], np.ndarray]


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often.

    Attributes:
        model: ``compact``, a hub id, or a directory; or
        arch: one of the paper's models with random weights. One of the two.
        classes: Classes of an ``arch``; ``None`` for 124.
        size: Height and width of the video that is made; ``None`` for 480x853 (``arch``) or 360x480. An ``arch`` sees
            that size, a checkpoint what it asks for.
        propagator: ``None`` for query (``arch``) or what is shipped.
        motion: ``None`` for direct (``arch``) or what is shipped.
        direction: ``None`` for forward (``arch``) or both, as files have it.
        interval: ``None`` for 5 (``arch``) or what is shipped.
        frames: Frames of a whole run from file to files; ``None`` for one interval (``arch``) or five.
        repeats: Rounds of the segmentation alone, after one to warm up.
        runs: Whole runs of each; 0 leaves them out; ``None`` for one (``arch``) or three.
        source: A video to measure on; ``None`` makes one.
        threads: Threads of torch and OpenCV; ``None`` leaves them as they are.

    Raises:
        ValueError: An option is out of range or does not go with another.
    """

    model: str | None = None
    arch: str | None = None
    classes: int | None = None
    size: tuple[int, int] | None = None
    propagator: str | None = None
    motion: str | None = None
    direction: str | None = None
    interval: int | None = None
    frames: int | None = None
    repeats: int = 3
    runs: int | None = None
    source: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.arch is None):
            raise ValueError(f"expected either a model or an arch, found {self.model or 'none'} and {self.arch}")
        if self.arch is None and self.classes is not None:
            raise ValueError("classes is for an arch with random weights; a checkpoint has its own")
        for name, least in (
            ("classes", 1),
            ("interval", 1),
            ("frames", 1),
            ("repeats", 1),
            ("runs", 0),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        if self.size is not None and min(self.size) < 32:
            raise ValueError(f"size must be at least 32x32, found {self.size[0]}x{self.size[1]}")

    def resolved(self) -> "BenchOptions":
        """Return the same options with the numbers that depend on the kind of model filled in."""
        random = self.arch is not None
        direction = self.direction or ("forward" if random else "both")
        interval = 1 if self.propagator == "none" else self.interval or DEFAULT_INTERVAL.get(direction, 1)
        return replace(
            self,
            classes=self.classes or (_PAPER_CLASSES if random else None),
            size=self.size or (_PAPER_SIZE if random else _COMPACT_SIZE if self.source is None else None),
            direction=direction,
            interval=interval,
            frames=self.frames or interval * (1 if random else 5),
            runs=(1 if random else 3) if self.runs is None else self.runs,
        )


# --- what is compared ----------------------------------------------------------------------------------------------


def plain_decode(
    class_logits: Float[Tensor, "Q K1"], mask_logits: Float[Tensor, "Q h w"], geometry: Geometry
) -> np.ndarray:
    """Return the label map by the plain definition in ``decode.py``, as it is written down, without any shortcut."""
    height, width = geometry.resized
    with torch.inference_mode():
        chance = class_logits.softmax(1)[:, :-1]
        full = F.interpolate(mask_logits[None], size=geometry.padded, mode="bilinear", align_corners=False)[0]
        scores = torch.einsum("qk,qhw->khw", chance, full[:, :height, :width].sigmoid())
        if geometry.source != geometry.resized:
            scores = F.interpolate(scores[None], size=geometry.source, mode="bilinear", align_corners=False)[0]
        return scores.argmax(0).numpy().astype(label_dtype(len(scores)))


class Library:
    """A model as users of the transformers library run it: on every frame, decoded plainly.

    Attributes:
        segmentor: The library's model, in the memory format that it comes in.
        rule: Size and normalisation of its input, the same as for ours.
        finish: Applied to its logits; see ``FixedActivity``.
    """

    def __init__(
        self,
        segmentor: HuggingFaceSegmentor,
        rule: InputRule,
        finish: Callable[[Prediction], Prediction] = lambda found: found,
    ) -> None:
        segmentor.model.to(memory_format=torch.contiguous_format)
        self.segmentor = segmentor
        self.rule = rule
        self.finish = finish

    def forward(self, frame: Frame) -> tuple[Prediction, Geometry]:
        """Run the network on a frame; returns its logits, and how the frame became its input."""
        image, geometry = prepare(frame, self.rule)
        with torch.inference_mode():
            found = library_prediction(self.segmentor, self.rule.normalise(image[None]), geometry.resized)
        return self.finish(found), geometry

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the labels of a frame."""
        found, geometry = self.forward(frame)
        return plain_decode(found.class_logits[0], found.mask_logits[0], geometry)


class FixedActivity:
    """A segmentor with random weights whose classes are as a trained one's: the whole network runs, then they replace
    its own.

    ``ACTIVE_QUERIES`` of its queries, evenly spread, are sure of one of ``PRESENT_CLASSES`` classes each, in turn; all
    others are "no object" but for a millionth.
    """

    def __init__(self, segmentor: HuggingFaceSegmentor) -> None:
        self.name, self.class_names, self.rule = segmentor.name, segmentor.class_names, segmentor.rule
        self.segmentor = segmentor
        self._logits = fixed_class_logits(segmentor.num_queries, len(segmentor.class_names))

    def __call__(self, images: UInt8[Tensor, "B 3 H W"]) -> Prediction:
        """Segment a batch; see ``Segmentor``."""
        return self.finish(self.segmentor(images))

    def finish(self, found: Prediction) -> Prediction:
        """Return a prediction with the fixed classes."""
        return replace(found, class_logits=self._logits.expand_as(found.class_logits))


def fixed_class_logits(num_queries: int, num_classes: int) -> Float[Tensor, "Q K1"]:
    """Return the class logits of ``FixedActivity``; models with fewer queries or classes have all of them in use."""
    active, present = min(ACTIVE_QUERIES, num_queries), min(PRESENT_CLASSES, num_classes)
    chance = torch.full((num_queries, num_classes + 1), _UNSURE / num_classes, dtype=torch.float64)
    chance[:, -1] = 1 - _UNSURE
    for number in range(active):
        query = number * num_queries // active
        chance[query] = (1 - _SURE) / num_classes
        chance[query, number % present * num_classes // present] = _SURE
    return chance.log().float()


class _PlainCarrier:
    """Asks a function for the labels of every frame, each a key frame."""

    def __init__(self, label: Labeller) -> None:
        self._label, self.clock = label, StageClock()

    def keep(self, frame: Frame) -> tuple[None, Segmentation]:
        with self.clock("key"):
            labels = self._label(frame)
        return None, Segmentation(frame, labels, is_key=True)

    def geometry(self, frame: Frame) -> Geometry:
        return Geometry(frame.size, frame.size, frame.size)

    def next(self, kept: None, frame: Frame) -> Segmentation:  # noqa: ARG002 - a carrier's signature
        raise AssertionError("every frame is a key frame")

    def between(self, before: None, frames: Sequence[Frame], after: None) -> list[Segmentation]:  # noqa: ARG002
        raise AssertionError("every frame is a key frame")

    def close(self) -> None:
        """There is nothing to release."""


class _PlainRun(VideoSegmenter):
    """A function from frame to labels behind the same reading and writing as ours."""

    def __init__(self, segmentor: Segmentor, label: Labeller) -> None:
        super().__init__(segmentor, None)
        self._label = label

    def session(self, *_: Any, **__: Any) -> Session:
        """Begin a video."""
        return Session(_PlainCarrier(self._label), FixedInterval(1))


def segformer_b0(num_classes: int, rule: InputRule) -> Labeller:
    """Return the library's SegFormer-B0 with random weights: a light model run on every frame, of pixels alone.

    It sees the frames at their own size, or smaller where ours sees them smaller, without padding.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_classes)).eval().requires_grad_(False)
    rule = replace(rule, multiple=1)

    def label(frame: Frame) -> np.ndarray:
        geometry = rule.fit(frame.size)
        image = resize_frame(frame, min(geometry.source, geometry.resized))
        with torch.inference_mode():
            logits = model(pixel_values=rule.normalise(image[None])).logits
            full = F.interpolate(logits, size=geometry.source, mode="bilinear", align_corners=False)[0]
            return full.argmax(0).numpy().astype(label_dtype(num_classes))

    return label


@dataclass(frozen=True, eq=False)
class _Contest:
    """The library's model and ours, which are the same one.

    Attributes:
        library: Labels frames as users of the library do.
        ours: Our segmenter, with the activity of a trained model.
        all_active: Ours with whatever the random weights say, which is every query and every class; ``None`` where
            the weights are trained.
    """

    library: Library
    ours: VideoSegmenter
    all_active: VideoSegmenter | None


def _contest(options: BenchOptions) -> _Contest:
    """Load or build what is compared. Options are resolved."""
    if options.arch is None:
        ours = _trained(options)
        alone = VideoSegmenter.from_pretrained(
            str(options.model), propagator="none", device="cpu", fast=False
        ).segmentor
        assert isinstance(alone, HuggingFaceSegmentor)
        return _Contest(Library(alone, ours.rule), ours, None)
    assert options.classes is not None
    built = build(options.arch, options.classes)
    apart = copy.deepcopy(built.segmentor)
    ours = _random(options, built)
    fixed = ours.segmentor
    assert isinstance(fixed, FixedActivity)
    all_active = VideoSegmenter(fixed.segmentor, ours.propagator, motion=ours.motion, interval=ours.interval)
    return _Contest(Library(HuggingFaceSegmentor(apart, ours.rule), ours.rule, fixed.finish), ours, all_active)


def _ours(options: BenchOptions) -> VideoSegmenter:
    """Load or build ours alone."""
    if options.arch is None:
        return _trained(options)
    assert options.classes is not None
    return _random(options, build(options.arch, options.classes))


def _trained(options: BenchOptions) -> VideoSegmenter:
    chosen = {
        name: value for name in ("propagator", "motion", "interval") if (value := getattr(options, name)) is not None
    }
    return VideoSegmenter.from_pretrained(str(options.model), device="cpu", **chosen)


def _random(options: BenchOptions, built: Model) -> VideoSegmenter:
    """Put one of the paper's models behind ``FixedActivity``."""
    kind = options.propagator or "query"
    rule = InputRule(short_side=None if options.size is None else min(options.size))
    network = built.segmentor.to(memory_format=torch.channels_last)
    return VideoSegmenter(
        FixedActivity(HuggingFaceSegmentor(network, rule, name=str(options.arch))),
        make_propagator(kind, PixelFlow(built.motion.config) if kind == "flow" else built.motion),
        motion=options.motion or "direct",
        interval=options.interval,
    )


# --- pictures ------------------------------------------------------------------------------------------------------


def synthetic_video(path: Path, size: tuple[int, int], frames: int) -> None:
    """Write a video of a smooth texture that a camera moves over, with slight turns: no data needed.

    Raises:
        OutputError: It cannot be written.
    """
    height, width = size
    random = np.random.default_rng(0)
    texture = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = random.standard_normal((cells * height // width + 2, cells, 3)).astype(np.float32)
        texture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / (2 if cells == 64 else 1)
    picture = np.clip(128 + 40 * texture, 0, 255).astype(np.uint8)
    with OverlayWriter(path, size, 1 / IMAGE_RATE) as writer:
        for index in range(frames):
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), 3 * float(np.sin(index / 12)), 1.0)
            turn[:, 2] += (0.004 * width * index, 0.02 * height * float(np.sin(index / 9)))
            view = cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            writer.write(view, Fraction(index) / IMAGE_RATE)


def _first_frames(source: str, count: int) -> list[Frame]:
    with read(source) as reader:
        frames = list(islice(reader, count))
    if len(frames) < count:
        raise SourceError(
            f"{source}: expected at least {count} frames, one interval and the next key frame, found {len(frames)}; "
            "choose a longer video or a smaller interval"
        )
    return frames


def _back_and_forth(frames: list[Frame]) -> Iterator[Frame]:
    """Play frames forward and backward, again and again: no cut, and a key frame is always one of the two ends."""
    turns = chain.from_iterable(repeat(frames[1:] + frames[-2::-1]))
    for number, frame in enumerate(chain(frames[:1], turns)):
        yield replace(frame, pts=number / IMAGE_RATE)


# --- measuring -----------------------------------------------------------------------------------------------------


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class _Intervals:
    """A session that is pushed one interval at a time, each ending with a key frame."""

    def __init__(self, session: Session, frames: Iterable[Frame], interval: int) -> None:
        self.session, self.frames, self.interval = session, iter(frames), interval
        self.session.push(next(self.frames))

    def time_one(self) -> dict[str, float]:
        """Return seconds of a key frame, of a frame between (only where there are), and per frame, also by stage."""
        stages = self.session.clock.seconds
        before = dict(stages)
        began = time.perf_counter()
        keys = [[result.is_key for result in self.session.push(frame)] for frame in islice(self.frames, self.interval)]
        total = time.perf_counter() - began
        if sum(map(sum, keys)) != 1 or not any(keys[-1]):
            raise SourceError(
                f"expected a key frame every {self.interval} frames, found another one: the video cuts to another "
                "scene within its first interval; choose another video"
            )
        key, propagate, decode = (stages[stage] - before[stage] for stage in STAGES)
        number = self.interval
        found = {"ours_key": key + decode / number, "ours_interval": total / number}
        if number > 1:
            found["ours_non_key"] = (total - found["ours_key"]) / (number - 1)
        return found | {"key": key / number, "propagate": propagate / number, "decode": decode / number}


def ratios(seconds: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the ratios of a result's ``seconds``; ``None`` where one of the two was not measured."""

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above / below

    frame, run = seconds.get("library_frame"), seconds.get("run", {})
    mean, whole = seconds.get("ours_interval"), run.get("ours")
    return {
        "library_per_frame_over_ours": ratio(frame, mean),
        "library_key_over_ours_key": ratio(frame, seconds.get("ours_key")),
        "non_key_share_of_library_frame": ratio(seconds.get("ours_non_key"), frame),
        "ours_per_frame_over_ours": ratio(seconds.get("ours_frame"), mean),
        "library_run_over_ours": ratio(run.get("library"), whole),
        "ours_per_frame_run_over_ours": ratio(run.get("ours_per_frame"), whole),
        "segformer_b0_run_over_ours": ratio(run.get("segformer_b0"), whole),
    }


def bench(options: BenchOptions) -> dict[str, Any]:
    """Measure, taking turns.

    Returns:
        ``seconds``: per frame, medians. ``gmac``: thousand millions of multiply-adds of a key frame, of a frame between
        and on average, of networks on the padded image, all queries and classes decoded. ``classical_flow``: flows a
        frame without a network, which are not among them, and the ``seconds`` of one; null where there are none.
        ``sgemm``: the machine's rate, and the share of it that each path reaches by that count. ``peak_mib``: of a
        process that does nothing but our whole run. ``ratios``. ``all_active``: the same for every query and class,
        with random weights. ``options``, ``machine``, ``note``.

    Raises:
        ModelError: The model cannot be loaded.
        SourceError: The video cannot be read, is too short, or cuts to another scene within the first interval.
    """
    options = options.resolved()
    with TemporaryDirectory(prefix="mpvss-bench-") as folder, _threads(options.threads):
        return _bench(options, Path(folder))


def _bench(options: BenchOptions, folder: Path) -> dict[str, Any]:
    assert options.interval is not None and options.frames is not None and options.runs is not None
    interval, direction = options.interval, str(options.direction)
    source = options.source
    if source is None:
        assert options.size is not None
        source = str(folder / "bench.mp4")
        synthetic_video(Path(source), options.size, max(options.frames, interval + 1))
    frames = _first_frames(source, interval + 1)
    contest = _contest(options)
    library, ours = contest.library, contest.ours

    log.info("warming up")
    gmac = _count(contest, frames, direction, interval)
    alone = _Intervals(ours.per_frame().session("forward"), _back_and_forth(frames[:2]), 1)
    at_interval = _Intervals(ours.session(direction), _back_and_forth(frames), interval)
    everything = None
    if contest.all_active is not None:
        everything = _Intervals(contest.all_active.session(direction), _back_and_forth(frames), interval)
    matrix = torch.randn(_MATRIX, _MATRIX, generator=torch.Generator().manual_seed(0))
    rounds: list[dict[str, float]] = []
    active_rounds: list[dict[str, float]] = []
    matmul: list[float] = []
    for number in range(options.repeats + 1):
        if number:
            log.info("round %d of %d", number, options.repeats)
        product = _timed(lambda: matrix @ matrix)
        found = _time_library(library, frames[number % 2])
        frame = alone.time_one()
        found |= {"ours_frame": frame["ours_interval"], "ours_forward": frame["key"], "ours_decode": frame["decode"]}
        found |= at_interval.time_one()
        active = {} if everything is None else everything.time_one()
        if number:  # the first is to warm up
            matmul.append(product)
            rounds.append(found)
            active_rounds.append(active)

    medians = _medians(rounds)
    stages = {name: medians.pop(name) for name in ("key", "propagate", "decode")}
    run = _whole_runs(contest, options, source, folder) if options.runs else None
    seconds: dict[str, Any] = dict(medians)
    seconds.setdefault("ours_non_key", None)
    seconds["stages"] = stages | {name: None if run is None else run.pop(name) for name in ("read", "write")}
    seconds["run"] = dict.fromkeys(_RUNS) if run is None else run
    rate = _MATRIX**3 / 1e9 / statistics.median(matmul)
    result: dict[str, Any] = {
        "seconds": seconds,
        "gmac": gmac,
        "classical_flow": _classical_flow(ours, frames, direction, interval),
        "sgemm": {"gmac_per_second": rate, "share": _shares(gmac, seconds, rate)},
        "peak_mib": _peak_of_whole_run(options, source) if options.runs else None,
        "ratios": ratios(seconds),
        "all_active": None,
    }
    if everything is not None:
        times = {
            name: value for name, value in _medians(active_rounds).items() if name not in ("key", "propagate", "decode")
        }
        compared = ratios({**times, "library_frame": seconds["library_frame"]})
        result["all_active"] = {
            "seconds": times,
            "ratios": {name: value for name, value in compared.items() if "run" not in name},
        }
    result["note"] = _note(options)
    size, network = frames[0].size, ours.rule.fit(frames[0].size).resized
    result["options"] = {**asdict(options), **_shipped(ours), "size": list(size), "network": list(network)}
    result["machine"] = machine()
    return result


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def _time_library(library: Library, frame: Frame) -> dict[str, float]:
    began = time.perf_counter()
    found, geometry = library.forward(frame)
    forward = time.perf_counter()
    plain_decode(found.class_logits[0], found.mask_logits[0], geometry)
    end = time.perf_counter()
    return {
        "library_frame": end - began,
        "library_forward": forward - began,
        "library_decode": end - forward,
    }


def _count(contest: _Contest, frames: list[Frame], direction: str, interval: int) -> dict[str, float | None]:
    """Count multiply-adds by the rule in ``cost.py``; this also warms the library up."""
    ours = contest.ours
    key = count_gmac(lambda: contest.library(frames[0]))
    if ours.propagator is None:
        return {"key": key, "non_key": None, "per_frame": key}
    propagator = ours.propagator
    (then, geometry), (now, _) = (prepare(frame, ours.rule) for frame in frames[:2])
    state = ours.segment(frames[0], then, geometry)
    grid = (state.mask_logits.shape[-2], state.mask_logits.shape[-1])

    def estimate() -> Tensor:
        return propagator.estimate_flow(now[None], then[None], state.queries[None], geometry.padded, grid)[0]

    def move() -> None:
        if not propagator.per_query:  # nothing is decoded between key frames: the scores of all classes are warped
            classes = state.class_logits.shape[1] - 1
            warp(torch.zeros(1, classes, *score_size(geometry)), torch.zeros(1, 2, *score_size(geometry)))
            return
        masks = state.mask_logits[None] if len(flow) == 1 else state.mask_logits[:, None]
        plain_decode(state.class_logits, warp(masks, flow).reshape_as(state.mask_logits), geometry)

    # Each of the two sides has its own masks and its own part of the class scores.
    sides = 2 if direction == "both" else 1
    flow = estimate()
    non_key = _flows(ours, direction, interval) / (interval - 1) * count_gmac(estimate) + sides * count_gmac(move)
    return {"key": key, "non_key": non_key, "per_frame": (key + (interval - 1) * non_key) / interval}


def _flows(ours: VideoSegmenter, direction: str, interval: int) -> int:
    """Flows of an interval: of those that serve both sides there is one more than frames between."""
    if ours.propagator is not None and direction == "both" and serves_both_ways(ours.propagator, ours.motion):
        return interval
    return (interval - 1) * (2 if direction == "both" else 1)


def _classical_flow(
    ours: VideoSegmenter, frames: list[Frame], direction: str, interval: int
) -> dict[str, float] | None:
    """How many flows without a network a frame takes, and the seconds of one; multiply-adds say nothing of them."""
    dis = ours.propagator
    if not isinstance(dis, Dis):
        return None
    (then, geometry), (now, _) = (prepare(frame, ours.rule) for frame in frames[:2])
    grid = score_size(geometry)
    seconds = [_timed(lambda: dis.estimate_flow(now[None], then[None], None, geometry.padded, grid)) for _ in range(3)]
    return {
        "flows_per_frame": _flows(ours, direction, interval) / interval,
        "seconds": statistics.median(seconds),
    }


def _shares(gmac: Mapping[str, float | None], seconds: Mapping[str, Any], rate: float) -> dict[str, float | None]:
    pairs = {
        "library_frame": ("key", "library_frame"),
        "ours_key": ("key", "ours_key"),
        "ours_non_key": ("non_key", "ours_non_key"),
        "ours_interval": ("per_frame", "ours_interval"),
    }
    found: dict[str, float | None] = {}
    for name, (work, duration) in pairs.items():
        amount, time_taken = gmac[work], seconds[duration]
        found[name] = None if amount is None or time_taken is None else amount / (time_taken * rate)
    return found


_RUNS = ("library", "ours_per_frame", "ours", "segformer_b0")


def _whole_runs(contest: _Contest, options: BenchOptions, source: str, folder: Path) -> dict[str, float]:
    """Return seconds a frame of whole runs from file to files, by contestant, and of our reading and writing."""
    assert options.runs is not None
    ours = contest.ours
    peer = segformer_b0(len(ours.segmentor.class_names), ours.rule)
    peer(_first_frames(source, 1)[0])
    contestants = {
        "library": _PlainRun(ours.segmentor, contest.library),
        "ours_per_frame": ours.per_frame(),
        "ours": ours,
        "segformer_b0": _PlainRun(ours.segmentor, peer),
    }
    rounds: list[dict[str, float]] = []
    for number in range(options.runs):
        log.info("whole runs, %d of %d", number + 1, options.runs)
        found: dict[str, float] = {}
        for name, segmenter in contestants.items():
            result = _process(segmenter, options, source, folder / name)
            found[name] = result["seconds"]["total"] / result["frames"]
            if name == "ours":
                found |= {stage: result["seconds"][stage] / result["frames"] for stage in ("read", "write")}
        rounds.append(found)
    return _medians(rounds)


def _process(segmenter: VideoSegmenter, options: BenchOptions, source: str, out: Path) -> dict[str, Any]:
    """Run from file to files over the first ``options.frames`` frames."""
    assert options.frames is not None
    with read(source) as reader:
        ends = [frame.pts for frame in islice(reader, options.frames + 1)]
    end = ends[options.frames] if len(ends) > options.frames else None
    return segmenter.process(source, out, ProcessOptions(overwrite=True, end=end), direction=options.direction)


def _peak_of_whole_run(options: BenchOptions, source: str) -> float | None:
    """Return the peak memory, in MiB, of a process of its own that does nothing but our whole run."""
    log.info("measuring memory")
    program = "import sys; from mpvss.evaluation.benchmark import _run_and_print_peak as run; run(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(asdict(options)), source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MpvssError(f"the run that measures memory failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    found: float | None = json.loads(done.stdout)
    return found


def _run_and_print_peak(options_json: str, source: str) -> None:
    values = json.loads(options_json)
    values["size"] = None if values["size"] is None else tuple(values["size"])
    options = BenchOptions(**values)
    with TemporaryDirectory(prefix="mpvss-bench-") as folder, _threads(options.threads):
        _process(_ours(options), options, source, Path(folder))
    print(json.dumps(_peak_mib()))


def _peak_mib() -> float | None:
    """Peak of this process. Not ``ru_maxrss`` on Linux: that keeps what the parent had when it started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)
    if find_spec("resource") is None:
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the threads of torch and OpenCV for a while; ``None`` leaves them."""
    before = (torch.get_num_threads(), cv2.getNumThreads())
    if number is not None:
        torch.set_num_threads(number)
        cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


# --- saying it -----------------------------------------------------------------------------------------------------


def _shipped(ours: VideoSegmenter) -> dict[str, Any]:
    return {"propagator": "none" if ours.propagator is None else ours.propagator.name, "motion": ours.motion}


def _note(options: BenchOptions) -> str | None:
    if options.arch is None:
        return None
    return (
        f"random weights: {ACTIVE_QUERIES} queries are made sure of {PRESENT_CLASSES} classes, as in trained models, "
        "the others of no object; all_active is with what the random weights say"
    )


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, versions, and the commit of a git checkout."""
    processor = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mpvss": mpvss.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not whatever repository an installation lies in
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw seconds a frame of segmentation and of whole runs as bars, to a PNG file.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    seconds = result["seconds"]
    parts = {
        "library, every frame": {"network": seconds["library_forward"], "decode": seconds["library_decode"]},
        "ours, every frame": {"network": seconds["ours_forward"], "decode": seconds["ours_decode"]},
        f"ours, interval {result['options']['interval']}": seconds["stages"] | {"network": seconds["stages"]["key"]},
    }
    runs = {name.replace("_", " "): value for name, value in seconds["run"].items() if value is not None}
    with output_errors(path):
        charts.save(charts.seconds_bars(parts, runs), path)


def save(result: Mapping[str, Any], folder: Path) -> None:
    """Write ``BENCH.json`` and ``BENCH.png``.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: A file cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "BENCH.json", result)
    plot(result, folder / "BENCH.png")
