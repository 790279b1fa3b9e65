"""The command line: parse, call, print. Results on stdout, everything else on stderr."""

import io
import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpvss._validate import PublicFormatter, printable, public, shown, without_secrets
from mpvss.errors import ConfigError, DataError, MpvssError, OutputError, SourceError
from mpvss.progress import progress

if TYPE_CHECKING:
    from mpvss.outputs.sinks import ProcessOptions
    from mpvss.segmenter import VideoSegmenter
    from mpvss.video import VideoInfo

app = typer.Typer(
    help="Segment video: a class for every pixel of every frame, from an image segmentor run on few of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
log = logging.getLogger("mpvss.cli")  # under ``python -m`` the module has another name

# What typer raises for a command line it cannot parse; newer versions carry their own copy of click, so not click's.
_Misuse: type[Any] = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130
_SOME_FAILED = 3
# A table of more videos than this shows only those that failed.
_MOST_ROWS = 50
_LEARNED = ("flow", "query")
# Of counts: more than any video has, and what every library takes.
_MOST = 10**6
_LONGEST_SIDE = 8192
# Folders below one another: the standard library makes them by recursion.
_MOST_FOLDERS = 500
_MOST_ECHOED = 200


class PropagatorName(StrEnum):
    """How masks reach the frames between key frames."""

    auto = "auto"
    query = "query"
    flow = "flow"
    dis = "dis"
    hold = "hold"
    none = "none"


class MotionName(StrEnum):
    """Whether flows between neighbours are composed, or each frame asks its key frame."""

    chain = "chain"
    direct = "direct"


class BackendName(StrEnum):
    """What runs the networks."""

    torch = "torch"
    onnx = "onnx"


class DirectionName(StrEnum):
    """Whether the key frame after a frame is used as well."""

    both = "both"
    forward = "forward"


class DeinterlaceName(StrEnum):
    """Whether frames that are flagged as interlaced are deinterlaced."""

    auto = "auto"
    off = "off"


class EngineName(StrEnum):
    """What runs the workers of a batch."""

    local = "local"
    ray = "ray"


def _count(words: str, *, least: int = 1, most: int = _MOST) -> Any:
    """An option that is a number of things."""
    return typer.Option(min=least, max=most, help=words)


Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results; nothing in it is replaced unasked.")]
Model = Annotated[
    str, typer.Option(help="compact, a hub id such as owner/name, a directory, or a motion module's directory.")
]
Propagator = Annotated[PropagatorName, typer.Option(help="How masks reach the frames between key frames.")]
MotionOption = Annotated[MotionName, typer.Option(help="chain composes flows between neighbours; direct is the paper.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Fast = Annotated[bool, typer.Option(help="Our own forward pass; --no-fast for the library's.")]
Backend = Annotated[BackendName, typer.Option(help="torch, or onnx for a directory made by export, on the CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only warnings on stderr.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
# Of segment and batch.
Direction = Annotated[DirectionName | None, typer.Option(help="Default: both for files, forward for live sources.")]
Interval = Annotated[
    int | None,
    _count("Frames from one key frame to the next. Default: 10 both, 5 forward."),
]
Cuts = Annotated[bool, typer.Option(help="Scene cuts are key frames too.")]
Save = Annotated[str, typer.Option(help="Any of overlay, labels, png, separated by commas.")]
Classes = Annotated[str | None, typer.Option(help="Only these classes, separated by commas.")]
Alpha = Annotated[float, typer.Option(min=0.0, max=1.0, help="Opacity of the classes over the picture.")]
Legend = Annotated[bool, typer.Option("--legend", help="Draw class names on the overlay.")]
MinScore = Annotated[
    float, typer.Option(min=0.0, help="Pixels whose best class score is lower get no class, such as .5; 0 for none.")
]
ShortSide = Annotated[int | None, _count("Pixels of the shorter side the networks see.", least=32, most=_LONGEST_SIDE)]
Compare = Annotated[bool, typer.Option("--compare", help="Also write per frame beside propagated.")]
Start = Annotated[str | None, typer.Option(help="First moment: seconds, or m:ss.")]
End = Annotated[str | None, typer.Option(help="Moment to stop before.")]
Name = Annotated[str | None, typer.Option(help="What the results are called. Default: as the source.")]
Stride = Annotated[int, _count("Take every so many frames.")]
Deinterlace = Annotated[
    DeinterlaceName, typer.Option(help="auto: frames that are flagged as interlaced are deinterlaced; off: never.")
]
Fps = Annotated[str | None, typer.Option(help="Frames a second of a raw stream or of images, which have no times.")]
VideoStream = Annotated[
    int | None, typer.Option(min=0, help="Which video stream of several, from 0; inspect lists them.")
]


def _print_version(wanted: bool) -> bool:
    if wanted:
        import mpvss

        print(mpvss.__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def segment(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Videos, image folders or globs, camera:0, RTSP or HTTP URLs."),
    ],
    out: Out = Path("out"),
    model: Model = "compact",
    propagator: Propagator = PropagatorName.auto,
    motion: MotionOption = MotionName.chain,
    direction: Direction = None,
    interval: Interval = None,
    cuts: Cuts = True,
    save: Save = "overlay,labels",
    classes: Classes = None,
    min_score: MinScore = 0.0,
    alpha: Alpha = 0.5,
    legend: Legend = False,
    short_side: ShortSide = None,
    compare: Compare = False,
    start: Start = None,
    end: End = None,
    stride: Stride = 1,
    deinterlace: Deinterlace = DeinterlaceName.auto,
    fps: Fps = None,
    video_stream: VideoStream = None,
    name: Name = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    fast: Fast = True,
    backend: Backend = BackendName.torch,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Keep what is finished of a long video in OUT/.NAME.parts, and go on from it after a kill."
        ),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment videos: an overlay to look at, labels to work with, and a JSON description of both."""
    _set_up(verbose, quiet)
    from mpvss._zoo import known_classes
    from mpvss.labels import resolve_classes, short_list
    from mpvss.outputs.sinks import ProcessOptions

    with _option_errors():
        if name is not None and len(sources) > 1:
            raise ValueError(f"--name goes with one source, found {len(sources)}")
        options = ProcessOptions(
            save=_split(save), alpha=alpha, classes=None if classes is None else _split(classes), legend=legend,
            compare=compare, overwrite=overwrite, start=start, end=end, stride=stride, name=name,
            deinterlace=deinterlace.value, min_score=min_score, fps=fps, video_stream=video_stream,
        )  # fmt: skip
    if resume:
        with _option_errors():
            if len(sources) > 1 or compare or overwrite or not fast or backend is BackendName.onnx:
                raise ValueError(
                    "--resume goes with one video, and not with --compare, --overwrite, --no-fast or --backend"
                )
        import torch

        from mpvss.batch.worker import Settings

        settings = Settings(
            model, propagator.value, motion.value, None if direction is None else direction.value, interval, cuts,
            short_side, device, dtype, options, threads=torch.get_num_threads(),
        )  # fmt: skip
    if options.classes is not None and (known := known_classes(model)):
        resolve_classes(options.classes, known)
    # What is there of a run that is continued may be replaced by it; it looks itself whether this is one.
    infos = _plan(sources, out, replace(options, overwrite=True) if resume else options)
    segmenter = _load(model, propagator, motion, interval, cuts, short_side, device, dtype, fast, backend)
    if options.classes is not None:
        names = segmenter.segmentor.class_names
        log.info("keeping %s", short_list([names[id_] for id_ in resolve_classes(options.classes, names)]))
    videos = []
    for source, info in zip(sources, infos, strict=True):
        with progress(info.name, _expected_frames(info, options), quiet=quiet) as advance:
            if resume:
                from mpvss.batch.single import process_in_segments

                video = process_in_segments(segmenter, source, out, settings, on_frame=_interruptible(advance))
            else:
                video = segmenter.process(
                    source,
                    out,
                    options,
                    direction=None if direction is None else direction.value,
                    on_frame=_interruptible(advance),
                )
            videos.append(video)
        if not as_json:
            _print_video(videos[-1])
    if as_json:
        _print_json({"videos": videos})


@app.command()
def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Videos, folders of them, patterns, lists (.txt, .jsonl); here or at s3:// or https://.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Directory for the results, or an s3:// address.")] = "out",
    engine: Annotated[EngineName, typer.Option(help="Processes of this machine, or a Ray cluster.")] = EngineName.local,
    workers: Annotated[int | None, _count("Default: one for each GPU, or for every two cores.", most=4096)] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of the cluster. Default: one on this machine.")] = None,
    retries: Annotated[int, _count("How often a video or a segment is tried again.", least=0)] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Do only what is not whole yet.")] = False,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only this part of the videos, such as 1/4.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the manifest. Default: --out, if that is a directory.")
    ] = None,
    split: Annotated[
        int,
        _count("Frames of the segments that longer videos are divided into; 0 for never.", least=0),
    ] = 1500,
    threads: Annotated[int, _count("Of each worker, on the CPU.", most=1024)] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --resume, compare checksums and not only sizes.")
    ] = False,
    stall: Annotated[int, _count("Seconds without a frame after which a worker is stuck.")] = 600,
    model: Model = "compact",
    propagator: Propagator = PropagatorName.auto,
    motion: MotionOption = MotionName.chain,
    direction: Direction = None,
    interval: Interval = None,
    cuts: Cuts = True,
    save: Save = "overlay,labels",
    classes: Classes = None,
    min_score: MinScore = 0.0,
    alpha: Alpha = 0.5,
    legend: Legend = False,
    short_side: ShortSide = None,
    compare: Compare = False,
    start: Start = None,
    end: End = None,
    stride: Stride = 1,
    deinterlace: Deinterlace = DeinterlaceName.auto,
    fps: Fps = None,
    video_stream: VideoStream = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment many videos with several workers; what is broken is reported, and what was killed goes on."""
    _set_up(verbose, quiet)
    from mpvss._zoo import known_classes
    from mpvss.batch.run import BatchOptions, run_batch
    from mpvss.batch.worker import Settings
    from mpvss.labels import resolve_classes
    from mpvss.outputs.sinks import ProcessOptions

    with _option_errors():
        options = ProcessOptions(
            save=_split(save), alpha=alpha, classes=None if classes is None else _split(classes), legend=legend,
            compare=compare, start=start, end=end, stride=stride,
            deinterlace=deinterlace.value, min_score=min_score, fps=fps, video_stream=video_stream,
        )  # fmt: skip
        if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device) is None:
            raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, found {shown(device)}")
        settings = Settings(
            model, propagator.value, motion.value, None if direction is None else direction.value, interval, cuts,
            short_side, device, dtype, options, split, threads,
        )  # fmt: skip
    if options.classes is not None and (known := known_classes(model)):
        resolve_classes(options.classes, known)
    with _option_errors():
        run_options = BatchOptions(
            engine.value, workers, ray_address, retries, resume, overwrite,
            None if shard is None else _parse_shard(shard), state, verify, stall,
        )  # fmt: skip

    try:
        # Videos, as only workers see frames; each that is finished has a line of its own.
        with progress("batch", None, unit="videos", quiet=quiet) as advance:

            def tell(item: dict[str, Any], done: int, total: int) -> None:
                log.info("%d/%d %s: %s", done, total, _printable(item["source"]), item["state"])
                advance(total=total)

            found = run_batch(sources, out, settings, run_options, on_item=tell)
    except KeyboardInterrupt:
        log.warning("--resume%s goes on from here", " instead of --overwrite" if overwrite else "")
        raise
    if as_json:
        _print_json(found)
    else:
        _print_batch(found)
    if found["failed"]:
        raise typer.Exit(_SOME_FAILED)


def _parse_shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and re.fullmatch("[0-9]{1,9}", first) and re.fullmatch("[0-9]{1,9}", second)):
        raise ValueError(f"expected a shard as I/N such as 1/4, found {shown(text)}")
    return int(first), int(second)


def _print_batch(found: dict[str, Any]) -> None:
    rows = []
    for item in found["items"]:
        if item["state"] == "failed" or len(found["items"]) <= _MOST_ROWS:
            frames, seconds = str(item.get("frames", "")), f"{item['seconds']:.1f}" if "seconds" in item else ""
            cells = (item["name"], item["state"], frames, str(item.get("attempts", "")), seconds, item.get("error", ""))
            rows.append([_printable(cell) for cell in cells])
    if rows:
        _print_table(("video", "state", "frames", "attempts", "seconds", "error"), rows)
    states = ", ".join(f"{found[state]} {state}" for state in ("done", "failed", "skipped"))
    print(f"{states}; {found['seconds']:.1f} s; {found['manifest']}")


def _printable(text: str) -> str:
    """A name as one line that every terminal takes: others may hold line breaks, or bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _plan(sources: Sequence[str], out: Path, options: "ProcessOptions") -> list["VideoInfo"]:
    """Describe the sources, and refuse what cannot be read or written before the model is loaded."""
    from mpvss.outputs.sinks import output_paths

    infos = [_probe_one(source, out, options) for source in sources]
    folders = {Path(source).parent for source, info in zip(sources, infos, strict=True) if info.kind == "images"}
    if len(infos) > 1 and len(folders) == 1 and all(info.kind == "images" and info.frames == 1 for info in infos):
        log.warning(
            "%d pictures of one folder are taken as so many videos; quote the pattern, or name the folder, for one",
            len(infos),
        )
    named: dict[str, str] = {}
    for source, info in zip(sources, infos, strict=True):
        if info.name in named:
            raise OutputError(
                f"expected sources with different names, found {named[info.name]} and {source}, which would both be "
                f"written as {out / info.name}.*: give each a command with its own --name or --out"
            )
        named[info.name] = source
    for info in infos:
        output_paths(options.name or info.name, out, options)
    return infos


def _probe_one(source: str, out: Path, options: "ProcessOptions") -> "VideoInfo":
    """Describe a source; of a folder of videos say the command that takes it."""
    from mpvss.batch.storage import VIDEO_SUFFIXES
    from mpvss.video import parse_rate, probe

    try:
        return probe(source, fps=parse_rate(options.fps), video_stream=options.video_stream)
    except SourceError as error:
        videos = 0
        with suppress(OSError, ValueError):
            # Only what lies directly in it: a folder may be a whole disk.
            videos = sum(entry.suffix.lower() in VIDEO_SUFFIXES for entry in Path(source).iterdir())
        if not videos:
            raise
        raise SourceError(
            f"expected one video, found a folder of {videos} in {source}: "
            f"mpvss batch {shlex.quote(source)} -o {shlex.quote(str(out))}"
        ) from error


def _expected_frames(info: "VideoInfo", options: "ProcessOptions") -> int | None:
    """About how many frames the options select, for the progress bar; ``None`` where nobody knows."""
    from mpvss.video import parse_time

    if info.frames is None or info.frame_rate is None:
        return info.frames
    first = 0 if options.start is None else math.ceil(parse_time(options.start) * info.frame_rate)
    last = info.frames if options.end is None else math.ceil(parse_time(options.end) * info.frame_rate)
    return max(0, math.ceil((min(last, info.frames) - first) / options.stride))


def _load(
    model: str,
    propagator: PropagatorName,
    motion: MotionName,
    interval: int | None,
    cuts: bool,
    short_side: int | None,
    device: str,
    dtype: str,
    fast: bool,
    backend: BackendName,
) -> "VideoSegmenter":
    log.info("loading %s", model[:_MOST_ECHOED])
    try:
        from mpvss.segmenter import VideoSegmenter, check_backend, choose_device, choose_dtype
    except ImportError as error:
        raise MpvssError(f"a package that models need does not work ({error}); mpvss doctor says which") from error
    with _option_errors():  # not around the loading: a ValueError in there is a bug
        choose_device(device)
        choose_dtype(dtype)
        check_backend(backend.value, device, dtype)
    segmenter = VideoSegmenter.from_pretrained(
        model,
        propagator=propagator.value,
        motion=motion.value,
        interval=interval,
        cuts=cuts,
        short_side=short_side,
        device=device,
        dtype=dtype,
        fast=fast,
        backend=backend.value,
    )
    names = segmenter.segmentor.class_names
    log.info("%s knows %d classes: %s", segmenter.segmentor.name, len(names), ", ".join(names))
    return segmenter


@app.command()
def models(as_json: Json = False) -> None:
    """List the embedded model and recommended ones from the hub."""
    from mpvss._zoo import list_models

    found = list_models()
    if as_json:
        _print_json({"models": found})
        return
    rows = [(m["id"], str(m["classes"]), m["data"], f"{m['megabytes']:.0f} MB", m["licence"]) for m in found]
    _print_table(("model", "classes", "data", "size", "licence"), rows)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Anything segment takes.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare NAME.json and NAME.labels.mkv, frame by frame, with their checksums."),
    ] = False,
    fps: Fps = None,
    video_stream: VideoStream = None,
    as_json: Json = False,
) -> None:
    """Describe a video without segmenting it, or verify labels that were written."""
    if verify:
        _verify(source, as_json)
        return
    from mpvss.types import shown_size
    from mpvss.video import parse_rate, probe

    with _option_errors():
        rate = parse_rate(fps)
    info = probe(source, fps=rate, video_stream=video_stream)
    if as_json:
        _print_json(info.to_dict())
        return
    readable = {
        "size": shown_size((info.height, info.width)),
        "time_base": f"{info.time_base} s",
        "frame_rate": "unknown"
        if info.frame_rate is None
        else f"{float(info.frame_rate):.6g} a second{' (assumed: --fps sets it)' if info.assumed_rate else ''}",
        "start": f"{float(info.start):.6g} s on the source's own clock",
        "assumed_rate": "yes" if info.assumed_rate else "no",
        "video_streams": "; ".join(f"{number}: {line}" for number, line in enumerate(info.video_streams)) or "none",
        "duration": "unknown" if info.duration is None else f"{float(info.duration):.6g} s",
        "frames": "unknown" if info.frames is None else str(info.frames),
        "has_audio": "yes" if info.has_audio else "no",
        "live": "yes" if info.live else "no",
        "sample_aspect_ratio": f"{info.sample_aspect_ratio.numerator}:{info.sample_aspect_ratio.denominator}",
    }
    for name, value in info.to_dict().items():
        print(f"{name:>19}  {printable(str(readable.get(name, value)))}")


def _verify(path: str, as_json: bool) -> None:
    from mpvss.outputs import LabelReader

    if not path.endswith((".json", ".mkv")):
        raise DataError(f"expected NAME.json or NAME.labels.mkv to verify, found {path}: name one of these two")
    reader = LabelReader(path)
    frames = sum(1 for _ in reader)
    if as_json:
        print(json.dumps({"source": path, "frames": frames, "verified": reader.verified}))
    elif reader.verified:
        print(f"{printable(path)}: verified, {frames} frames have the labels that were written")
    else:
        print(f"{printable(path)}: unverified, {frames} frames can be read, but there are no checksums to compare with")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, devices, codecs, and packages known to break it."""
    from mpvss.cli.doctor import examine

    found = examine()
    if as_json:
        _print_json(found)
    else:
        for group, values in found.items():
            if isinstance(values, dict):
                for name, value in values.items():
                    print(f"{group:>9}  {name}: {value}")
        for problem in found["problems"] or ["none found"]:
            print(f"{'problems':>9}  {problem}")
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def cost(
    arch: Annotated[str, typer.Option(help="r50, r101, swin-t, swin-s, swin-b or swin-l.")],
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "480x853",
    interval: Annotated[int, _count("Frames from one key frame to the next.")] = 5,
    classes: Annotated[int, _count("Classes: 124 for VSPW, 19 for Cityscapes.", most=65535)] = 124,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds of one of the paper's models, as the paper counts them."""
    with _option_errors():
        height, width = _parse_size(size)
        from mpvss.convert.cost import cost as count

        found = count(arch, (height, width), interval, classes)
    if as_json:
        _print_json(found)
        return
    for group, values in found.items():
        for name, value in values.items():
            print(f"{group:>9}  {name:10} {value:8.2f}")


@app.command()
def export(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the pictures that the networks will see.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to make; segment --backend onnx takes it.")],
    model: Model = "compact",
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export a model for ONNX Runtime, for pictures of one size; kept only if it gives the labels that torch gives."""
    _set_up(verbose, quiet)
    with _option_errors():
        chosen = _parse_size(size)
    from mpvss.convert.export import export as export_model

    found = export_model(model, chosen, out, overwrite=overwrite)
    if as_json:
        _print_json(found)
        return
    for name, megabytes in found["files"].items():
        print(f"{found['out']}/{name}  {megabytes:.1f} MB")
    differences = ", ".join(f"{name} {value:.1e}" for name, value in found["max_difference"].items())
    print(f"largest difference from torch: {differences}; labels equal, ties at {100 * found['ties']:.3g} % of pixels")


@app.command()
def bench(
    model: Annotated[
        str | None, typer.Option(help="compact, a hub id such as owner/name, or a directory. Default: compact.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Instead: r50, r101, swin-t, swin-s, swin-b or swin-l, with random weights.")
    ] = None,
    classes: Annotated[int | None, _count("Classes of an --arch. Default: 124.", most=65535)] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels. Default: 480x853 for an --arch, 360x480.")
    ] = None,
    propagator: Annotated[
        PropagatorName | None, typer.Option(help="Default: query for an --arch, or what segment takes.")
    ] = None,
    motion: Annotated[
        MotionName | None, typer.Option(help="Default: direct for an --arch, or what segment takes.")
    ] = None,
    direction: Annotated[DirectionName | None, typer.Option(help="Default: forward for an --arch, or both.")] = None,
    interval: Annotated[int | None, _count("Default: 5 forward, 10 both.")] = None,
    frames: Annotated[
        int | None,
        _count("Frames of a whole run. Default: one interval of an --arch, or five."),
    ] = None,
    repeats: Annotated[int, _count("Rounds of the segmentation alone, after one to warm up.")] = 3,
    runs: Annotated[
        int | None,
        typer.Option(
            min=0, max=_MOST, help="Whole runs from file to files; 0 for none. Default: 1 for an --arch, or 3."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="VIDEO", help="Measure on this; without it one is made.")
    ] = None,
    threads: Annotated[int | None, _count("Threads of torch and OpenCV.", most=1024)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory for BENCH.json and BENCH.png.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the seconds of a frame.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much faster than the library on every frame, in one run, taking turns; on the CPU."""
    _set_up(verbose, quiet)
    from mpvss.evaluation import benchmark
    from mpvss.evaluation.charts import require_matplotlib

    if out is not None or plot is not None:
        require_matplotlib()
    with _option_errors():
        options = benchmark.BenchOptions(
            model=model or ("compact" if arch is None else None), arch=arch, classes=classes,
            size=None if size is None else _parse_size(size),
            propagator=None if propagator is None else propagator.value,
            motion=None if motion is None else motion.value,
            direction=None if direction is None else direction.value,
            interval=interval, frames=frames, repeats=repeats, runs=runs, source=source, threads=threads,
        )  # fmt: skip
    result = benchmark.bench(options)
    if out is not None:
        benchmark.save(result, out)
    if plot is not None:
        benchmark.plot(result, plot)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_bench(result.to_dict())


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the published code, a .pth file.")],
    directory: Annotated[Path | None, typer.Argument(metavar="OUT", help="The same as --out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to make.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file with one class name a line, in id order.")] = None,
) -> None:
    """Turn a checkpoint of the published code into a directory that --model takes."""
    from mpvss.convert.checkpoint import convert_reference

    with _option_errors():
        if (directory is None) == (out is None):
            raise ValueError("expected one directory to make, as --out DIRECTORY")
    target = out or directory
    assert target is not None
    names = None
    if classes is not None:
        try:
            names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{classes}: cannot read class names: {error}") from error
    with _option_errors():
        convert_reference(checkpoint, target, names)
    print(target)


@app.command(name="eval")
def evaluate(
    data: Annotated[str, typer.Option(help="vspw:DIR, cityscapes:DIR, camvid:DIR, davis:DIR or folder:DIR.")],
    split: Annotated[str | None, typer.Option(help="Part of the data set. Default: the usual one for scoring.")] = None,
    model: Model = "compact",
    propagator: Annotated[str, typer.Option(help="auto (the best shipped), query, flow, dis, hold or none.")] = "auto",
    motion: MotionOption = MotionName.chain,
    direction: Annotated[DirectionName, typer.Option(help="both uses the next key frame too.")] = DirectionName.both,
    interval: Annotated[
        int | None,
        _count("Frames from one key frame to the next. Default: 10 both, 5 forward."),
    ] = None,
    cuts: Annotated[bool, typer.Option("--cuts", help="Scene cuts are key frames too.")] = False,
    oracle: Annotated[bool, typer.Option("--oracle", help="True labels at key frames; DAVIS always has them.")] = False,
    predictions: Annotated[Path | None, typer.Option(help="Score the label files in this directory instead.")] = None,
    save_predictions: Annotated[Path | None, typer.Option(help="Write all predictions to this directory.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run: resumed, reported on and compared.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with charts and the worst frames here.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Directory of a run that the report compares with.")] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    fast: Fast = True,
    backend: Backend = BackendName.torch,
    min_score: MinScore = 0.0,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a model, a propagator or label files on a data set."""
    _set_up(verbose, quiet)
    from tempfile import TemporaryDirectory

    from mpvss.evaluation.charts import require_matplotlib
    from mpvss.evaluation.report import write_report
    from mpvss.evaluation.run import EvalOptions
    from mpvss.evaluation.run import evaluate as score

    with _option_errors():
        if baseline is not None and report is None:
            raise ValueError("--baseline is for the report: give --report too, or use mpvss compare")
        if report is not None:
            require_matplotlib()
        options = EvalOptions(
            data, split, model, propagator, motion.value, direction.value, interval, cuts, oracle,
            None if predictions is None else str(predictions),
            None if save_predictions is None else str(save_predictions), device, dtype, fast, backend.value,
            min_score,
        )  # fmt: skip

    def say(video: str, done: int, total: int) -> None:
        log.info("%d/%d %s", done, total, video)

    with progress("eval", None, quiet=quiet) as advance, TemporaryDirectory(prefix="mpvss-") as temporary:
        run_directory = out or report or Path(temporary)
        result = score(
            options, run_directory, on_video=say, on_frame=lambda frames: _interruptible(advance)(total=frames)
        )
        if report is not None:
            page = write_report(run_directory, report, baseline=baseline)
            log.info("report: %s", page)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_result(result.to_dict())


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Directory of a run, as eval --out writes it.")],
    run_b: Annotated[Path, typer.Argument(help="Another run on the same videos.")],
    seed: Annotated[int, _count("Of the bootstrap's draws.", least=0, most=2**32 - 1)] = 0,
    as_json: Json = False,
) -> None:
    """Put two evaluations side by side, with 95 % intervals of their differences."""
    from mpvss.evaluation.compare import compare as compare_runs
    from mpvss.evaluation.results import FIGURES

    result = compare_runs(run_a, run_b, seed=seed)
    if as_json:
        _print_json(result.to_dict())
        return
    rows = []
    figures_a, figures_b = result.a.figures(), result.b.figures()
    for name in figures_a:
        if name in figures_b:
            a, b = figures_a[name], figures_b[name]
            interval = result.difference[name].interval if name in result.difference else ""
            rows.append((FIGURES[name], f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}", interval))
    _print_table(("", "A", "B", "B - A", "95 % interval"), rows)
    units = "videos" if result.unit == "video" else "windows of frames"
    print("; ".join([f"paired bootstrap: {result.samples} draws of {result.units} {units}", *result.notes()]))


@app.command()
def propagate(
    video: Annotated[str, typer.Argument(help="A video file, or a folder or glob of images.")],
    masks: Annotated[
        Path, typer.Option(help="Folder of PNG masks named as the images, or by frame number counted from 0.")
    ],
    out: Out = Path("out"),
    direction: Annotated[
        DirectionName, typer.Option(help="both fills a gap from the masks on both sides.")
    ] = DirectionName.both,
    propagator: Propagator = PropagatorName.auto,
    motion: MotionOption = MotionName.chain,
    model: Annotated[str | None, typer.Option(help="A motion module's directory, for query and flow.")] = None,
    save: Annotated[str, typer.Option(help="Any of labels, png, overlay, separated by commas.")] = "labels,png",
    overwrite: Overwrite = False,
    name: Name = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Carry masks drawn at some frames of a video to all the others."""
    _set_up(verbose, quiet)
    from mpvss.annotate import Filler
    from mpvss.annotate import propagate as fill
    from mpvss.outputs.sinks import ProcessOptions
    from mpvss.segmenter import VideoSegmenter, choose_device, make_propagator
    from mpvss.video import probe

    with _option_errors():
        if propagator is PropagatorName.none:
            raise ValueError("with propagator none no mask reaches another frame: choose another")
        ProcessOptions(save=_split(save), name=name)
        choose_device(device)
    info = probe(video)
    if model is None:
        moved_by, segmentor = make_propagator(propagator.value), None
    else:
        segmenter = VideoSegmenter.from_pretrained(model, propagator=propagator.value, device=device)
        moved_by, segmentor = segmenter.propagator, segmenter.segmentor
    assert moved_by is not None
    filler = Filler(moved_by, motion.value, direction.value, segmentor)
    with progress(info.name, info.frames, quiet=quiet) as advance:
        found = fill(
            video,
            masks,
            out,
            filler,
            save=_split(save),
            overwrite=overwrite,
            name=name,
            on_frame=_interruptible(advance),
        )
    if as_json:
        _print_json(found)
    else:
        _print_video(found)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in optim.lr=1e-4.")
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a segmentor per frame, or a motion module behind one, from a configuration file."""
    _set_up(verbose, quiet)
    from mpvss.training.config import load_config

    with _option_errors():
        chosen = load_config(config, settings or ())
    from mpvss.training.loop import train as run_training

    _print_training(run_training(chosen, resume=resume, quiet=quiet).to_dict(), as_json)


@app.command()
def distill(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO", help="Videos, image folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the run, which --model takes afterwards.")],
    model: Annotated[str, typer.Option(help="The segmentor: compact, a hub id such as owner/name, or a directory.")] = (
        "compact"
    ),
    propagator: Annotated[str, typer.Option(help="flow: one flow; query: one for each segment.")] = "flow",
    size: Annotated[str, typer.Option(help="light, or paper for the paper's motion module.")] = "light",
    max_distance: Annotated[int, _count("Most frames between the two of a pair. Small for --motion chain.")] = 2,
    simulate: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:DIR[@SPLIT]", help="Also simulate motion on this data set's labelled pictures."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Directory for the teacher's results. Default: in --out.")] = None,
    confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out pixels of which the teacher is less certain.")
    ] = 0.5,
    stride: Annotated[int, _count("Take every so many frames.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in optim.steps=2000.")
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a motion module on videos without labels; the segmentor itself is the teacher."""
    _set_up(verbose, quiet)
    from mpvss.training.distill import distill as run_distillation

    with _option_errors():
        if propagator not in _LEARNED:
            raise ValueError(f"--propagator must be one of {', '.join(_LEARNED)}, found {propagator!r}")
        found = run_distillation(
            videos, model=model, out=out, cache=cache, confidence=confidence, stride=stride, resume=resume,
            quiet=quiet, propagator=propagator, size=size, max_distance=max_distance, simulate=simulate or (),
            overrides=settings or (),
        )  # fmt: skip
    _print_training(found.to_dict(), as_json)


def _print_training(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    print(f"{printable(found['out'])}: {found['steps']} steps, {found['seconds']:.0f} s")
    for name in ("miou", "oracle_miou"):
        if name in found:
            print(f"  {name:12} {found[name]:.4f}")


def _parse_size(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    sides = [side for side in (height, width) if re.fullmatch("[0-9]{1,5}", side) and 0 < int(side) <= _LONGEST_SIDE]
    if not times or len(sides) < 2:
        raise ValueError(
            f"expected a size as HEIGHTxWIDTH such as 480x853, up to {_LONGEST_SIDE} a side, found {shown(text)}"
        )
    return int(height), int(width)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def _option_errors() -> Iterator[None]:
    """An option out of its range is the caller's mistake: one line, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _print_json(value: Any) -> None:
    print(json.dumps(public(value)))


def _print_video(video: dict[str, Any]) -> None:
    seconds, frames = video["seconds"], video["frames"]
    keys = f"{video['key_frames']} of them key frames"
    by = "" if video["key_frames"] == frames else f", the others by {video['propagator']}"
    print(f"{printable(video['source'])}: {frames} frames, {keys}{by}")
    for kind, path in video["outputs"].items():
        print(f"  {kind:9} {printable(path)}")
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    rate = f"{seconds['total']:.1f} ({frames / seconds['total']:.1f} frames/s)"
    print(f"  seconds   {stages} (side by side, so not a sum); total {rate}")
    if "compare" in video:
        cost, flicker = video["compare"]["seconds_per_frame"], video["compare"]["flicker"]
        print(
            f"  a frame   {1000 * cost['per_frame']:.0f} ms per frame, {1000 * cost['propagated']:.0f} ms propagated: "
            f"{cost['per_frame'] / cost['propagated']:.1f} times faster"
        )
        if flicker["per_frame"] is not None:
            alone, ours = 100 * flicker["per_frame"], 100 * flicker["propagated"]
            print(f"  flicker   {alone:.2f} % per frame, {ours:.2f} % propagated")


def _print_result(result: dict[str, Any]) -> None:
    from mpvss.evaluation.results import FIGURES

    print(f"videos {result['videos']}, frames {result['frames']}, key frames {result['key_frames'] or 'unknown'}")
    rows = [(words, f"{result[name]:.4f}") for name, words in FIGURES.items() if result.get(name) is not None]
    rows += [(f"  {name}", f"{value:.4f}") for name, value in result["iou"].items() if value is not None]
    if result["miou_by_distance"]:
        rows += [
            (f"mIoU, distance {distance}", "-" if value is None else f"{value:.4f}")
            for distance, value in enumerate(result["miou_by_distance"])
        ]
    _print_table(("figure", "value"), rows)
    seconds = result["seconds"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    print(f"seconds: {stages}; total {seconds['total']:.1f}")


def _print_bench(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    seconds, run, options = found["seconds"], found["seconds"]["run"], found["options"]
    between = f"{options['propagator']} {options['motion']} {options['direction']}"

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{1000 * value:.1f}"

    table = Table(box=box.SIMPLE, title=f"{options['arch'] or options['model']}: milliseconds a frame")
    for head in ("", "segmentation", "whole run"):
        table.add_column(head, justify="right" if head else "left")
    rows = (
        ("library, every frame", seconds["library_frame"], run["library"]),
        ("  of which decoding", seconds["library_decode"], None),
        ("SegFormer-B0, every frame", None, run["segformer_b0"]),
        ("ours, every frame", seconds["ours_frame"], run["ours_per_frame"]),
        (f"ours, interval {options['interval']} ({between})", seconds["ours_interval"], run["ours"]),
        ("  a key frame", seconds["ours_key"], None),
        ("  a frame between", seconds["ours_non_key"], None),
        *((f"  {stage}, mean of all", value, None) for stage, value in seconds["stages"].items()),
    )
    for name, alone, whole in rows:
        table.add_row(name, milliseconds(alone), milliseconds(whole))
    console.print(table)
    everything = (found["all_active"] or {"ratios": {}})["ratios"]
    table = Table("ratio", "", box=box.SIMPLE)
    if everything:
        table.add_column("all active")
    for name, value in found["ratios"].items():
        if value is not None:
            other = everything.get(name)
            table.add_row(name, f"{value:.3f}", *([] if not everything else ["" if other is None else f"{other:.3f}"]))
    console.print(table)
    shares = ", ".join(f"{name} {value:.2f}" for name, value in found["sgemm"]["share"].items() if value is not None)
    console.print(f"sgemm: {found['sgemm']['gmac_per_second']:.1f} GMAC/s; share of it: {shares}")
    counts = ", ".join(f"{name} {value:.2f}" for name, value in found["gmac"].items() if value is not None)
    console.print(f"GMAC: {counts}")
    if found["classical_flow"] is not None:
        flows, spent = (found["classical_flow"][name] for name in ("flows_per_frame", "seconds"))
        console.print(f"classical flow, which is no GMAC: {flows:.2f} a frame, {1000 * spent:.1f} ms each")
    if found["peak_mib"] is not None:
        console.print(f"peak memory of our whole run: {found['peak_mib']:.0f} MiB")
    if found["note"]:
        console.print(found["note"])
    machine = found["machine"]
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"commit {machine['commit'] or 'unknown'}"
    )


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(printable("  ".join(cells)).rstrip())


class _Stderr(logging.Handler):
    """Prints to what is standard error at that moment, which a progress bar takes over to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _set_up(verbose: bool, quiet: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = _Stderr()
    handler.setFormatter(PublicFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mpvss").setLevel(level)
    # The library's own progress bars and advice are about training.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "4")  # a hub that does not answer is said within seconds
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it retries without a network, and says so in ten lines


def _share_one_heap() -> None:
    """Have all threads allocate from one heap.

    By default glibc gives each thread its own, freed pictures stay behind in each of them, and memory creeps up with
    the length of a video: from 50 to 200 frames by 5 %, by 2 % with this, in the same time.
    """
    import ctypes

    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-8, 1)  # M_ARENA_MAX


def _bounded(message: str, given: Sequence[str]) -> str:
    """A message that repeats no argument whole that is long."""
    for value in (part for argument in given for part in (argument, argument.partition("=")[2])):
        if len(value) > _MOST_ECHOED:
            message = message.replace(value, f"{value[:_MOST_ECHOED]}...")
    return printable(message)


_interrupted = threading.Event()


def _interruptible(advance: Callable[..., object]) -> Callable[..., None]:
    """Return ``advance``, ending the run where an interrupt was lost: one raised in a destructor is ignored."""

    def step(*result: object, **known: Any) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        advance(*result, **known)

    return step


def _interrupt(number: int, *_: Any) -> None:
    _interrupted.set()
    if number != signal.SIGINT:  # shells and the system both say that a terminal is gone; once is enough
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 success; 1 a problem was found; 2 an option or the outside world was wrong; 3 some videos of a batch failed; 130
    interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if any("\0" in argument for argument in given):
        print("mpvss: expected arguments of text, found one with a NUL byte", file=sys.stderr)
        return 2
    if (deepest := max((argument.count(os.sep) for argument in given), default=0)) > _MOST_FOLDERS:
        print(f"mpvss: expected paths of at most {_MOST_FOLDERS} folders, found {deepest}", file=sys.stderr)
        return 2
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="mpvss", standalone_mode=False)
    except _Misuse as error:
        error.message = _bounded(without_secrets(error.message), given)
        error.show()
        return 2
    except MpvssError as error:
        print(f"mpvss: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has enough of it
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  which Python flushes at its end
        return 1
    except OSError as error:  # of a place that was named: too long, not allowed, a full disk
        where = f": {shown(str(error.filename))}" if error.filename else ""
        print(f"mpvss: {printable(without_secrets((error.strerror or str(error)) + where))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # newer versions of typer turn the exception into the code themselves
        with suppress(OSError):  # the terminal may be gone
            print("mpvss: interrupted; nothing half-written was kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the ``mpvss`` command."""
    # SIGINT as well: shells start background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    hang_up = getattr(signal, "SIGHUP", None)  # which Windows does not have, and nohup has ignored
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no letters for is not worth a failure
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _share_one_heap()
    sys.exit(run())


if __name__ == "__main__":
    main()
