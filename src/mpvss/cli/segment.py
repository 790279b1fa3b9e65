"""``mpvss segment`` and ``mpvss batch``."""

import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpvss._extras import missing_module
from mpvss.cli._console import interruptible, log, print_json, print_run, print_table, set_up
from mpvss.cli._options import expand
from mpvss.cli.app import MOST_ECHOED, app
from mpvss.errors import ConfigError, MpvssError, OptionError, OutputError, SourceError
from mpvss.options import BatchOptions, ConsoleOptions, DrawOptions, OutputOptions, SegmentOptions
from mpvss.progress import progress

if TYPE_CHECKING:
    from mpvss.batch.tasks import BatchItem, BatchSummary
    from mpvss.segmenter import VideoSegmenter
    from mpvss.types import RunSummary, Segmentation
    from mpvss.video import VideoInfo

_SOME_FAILED = 3
# A table of more videos than this shows only those that failed.
_MOST_ROWS = 50

Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results; nothing in it is replaced unasked.")]


@app.command()
@expand
def segment(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Videos, image folders or globs, camera:0, RTSP or HTTP URLs."),
    ],
    options: SegmentOptions,
    output: OutputOptions,
    console: ConsoleOptions,
    out: Out = Path("out"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Keep what is finished of a long video in OUT/.NAME.parts, and go on from it after a kill."
        ),
    ] = False,
) -> None:
    """Segment videos: an overlay to look at, labels to work with, and a JSON description of both."""
    set_up(console)
    if output.name is not None and len(sources) > 1:
        raise ConfigError(f"--name goes with one source, got {len(sources)}")
    plain = options.fast and options.backend == "auto"
    if resume and (len(sources) > 1 or output.compare or output.overwrite or not plain):
        raise ConfigError("--resume goes with one video, and not with --compare, --overwrite, --no-fast or --backend")
    _check_classes(options)
    # What is there of a run that is continued may be replaced by it; it looks itself whether this is one.
    infos = _plan(sources, out, options, output.replace(overwrite=True) if resume else output)
    segmenter = _load(options)
    summaries = []
    for source, info in zip(sources, infos, strict=True):
        with progress(info.name, _expected_frames(info, options), quiet=console.quiet) as advance:
            step = interruptible(advance)
            if resume:
                summaries.append(_in_chunks(segmenter, source, out, output, step))
            else:
                summaries.append(segmenter.process(source, out, output, on_frame=step))
        if not console.as_json:
            print_run(summaries[-1])
    if console.as_json:
        print_json({"videos": [summary.to_dict() for summary in summaries]})


def _in_chunks(
    segmenter: "VideoSegmenter",
    source: str,
    out: Path,
    output: OutputOptions,
    on_frame: "Callable[[Segmentation], None]",
) -> "RunSummary":
    from mpvss._threads import threads
    from mpvss.batch.settings import Settings
    from mpvss.batch.single import process_in_chunks

    settings = Settings(segmenter.options.replace(threads=threads()), output)
    return process_in_chunks(segmenter, source, out, settings, on_frame=on_frame)


def _check_classes(options: SegmentOptions) -> None:
    """Refuse names of classes that a model whose classes are known has not, before it is loaded."""
    from mpvss._zoo import known_classes
    from mpvss.labels import resolve_classes

    if options.classes is not None and (known := known_classes(str(options.model))):
        resolve_classes([str(name) for name in options.classes], known)


def _load(options: SegmentOptions) -> "VideoSegmenter":
    from mpvss.labels import short_list

    log.info("loading %s", str(options.model)[:MOST_ECHOED])
    try:
        from mpvss.segmenter import VideoSegmenter
    except ImportError as error:
        broken = MpvssError(f"a package that models need does not work ({error}); mpvss doctor says which")
        raise missing_module(error) or broken from error
    try:
        segmenter = VideoSegmenter.from_pretrained(options.model, options=options)
    except OptionError as error:
        raise ConfigError(f"--{error.name.replace('_', '-')}{error.reason}") from error
    names = segmenter.class_names
    log.info("%s knows %d classes: %s", segmenter.segmentor.name, len(names), ", ".join(names))
    kept = segmenter.class_ids()
    if kept is not None:
        log.info("keeping %s", short_list([names[id_] for id_ in kept]))
    return segmenter


def _plan(sources: Sequence[str], out: Path, options: SegmentOptions, output: OutputOptions) -> list["VideoInfo"]:
    """Describe the sources, and refuse what cannot be read or written before the model is loaded."""
    from mpvss.outputs.sinks import output_paths

    infos = [_probe_one(source, out, options) for source in sources]
    folders = {Path(source).parent for source, info in zip(sources, infos, strict=True) if info.kind == "images"}
    if len(infos) > 1 and len(folders) == 1 and all(info.kind == "images" and info.frames == 1 for info in infos):
        log.warning(
            "%d images of one folder are taken as so many videos; quote the pattern, or name the folder, for one",
            len(infos),
        )
    named: dict[str, str] = {}
    for source, info in zip(sources, infos, strict=True):
        if info.name in named:
            raise OutputError(
                f"expected sources with different names, got {named[info.name]} and {source}, which would both be "
                f"written as {out / info.name}.*: give each a command with its own --name or --out"
            )
        named[info.name] = source
    for info in infos:
        output_paths(output.name or info.name, out, output)
    return infos


def _probe_one(source: str, out: Path, options: SegmentOptions) -> "VideoInfo":
    """Describe a source; of a folder of videos say the command that takes it."""
    from mpvss.batch.sources import VIDEO_SUFFIXES
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
            f"expected one video, got a folder of {videos} in {source}: "
            f"mpvss batch {shlex.quote(source)} -o {shlex.quote(str(out))}"
        ) from error


def _expected_frames(info: "VideoInfo", options: SegmentOptions) -> int | None:
    """About how many frames the options select, for the progress bar; ``None`` where nobody knows."""
    from mpvss.video import parse_time

    if info.frames is None or info.frame_rate is None:
        return info.frames
    first = 0 if options.start is None else math.ceil(parse_time(options.start) * info.frame_rate)
    last = info.frames if options.end is None else math.ceil(parse_time(options.end) * info.frame_rate)
    return max(0, math.ceil((min(last, info.frames) - first) / options.stride))


@app.command()
@expand
def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Videos, folders of them, patterns, lists (.txt, .jsonl); here or at s3:// or https://.",
        ),
    ],
    run_options: BatchOptions,
    options: SegmentOptions,
    draw: DrawOptions,
    console: ConsoleOptions,
    out: Annotated[str, typer.Option("--out", "-o", help="Directory for the results, or an s3:// address.")] = "out",
) -> None:
    """Segment many videos with several workers; what is broken is reported, and what was killed goes on."""
    set_up(console)
    from mpvss.batch.run import run_batch
    from mpvss.batch.settings import Settings

    _check_classes(options)
    output = OutputOptions(**{each.name: getattr(draw, each.name) for each in fields(draw)})
    settings = Settings(options.replace(threads=options.threads or 1), output, run_options.split)
    try:
        # Videos, as only workers see frames; each that is finished has a line of its own.
        with progress("batch", None, unit="videos", quiet=console.quiet) as advance:

            def tell(item: "BatchItem", done: int, total: int) -> None:
                log.info("%d/%d %s: %s", done, total, _printable(item.source), item.state)
                advance(total=total)

            summary = run_batch(sources, out, settings, run_options, on_item=tell)
    except KeyboardInterrupt:
        log.warning("--resume%s goes on from here", " instead of --overwrite" if run_options.overwrite else "")
        raise
    if console.as_json:
        print_json(summary.to_dict())
    else:
        _print_batch(summary)
    if summary.failed:
        raise typer.Exit(_SOME_FAILED)


def _print_batch(summary: "BatchSummary") -> None:
    rows = []
    for item in summary.items:
        if item.state == "failed" or len(summary.items) <= _MOST_ROWS:
            numbers = ["" if number is None else str(number) for number in (item.frames, item.attempts)]
            seconds = "" if item.seconds is None else f"{item.seconds:.1f}"
            cells = (item.name, item.state, *numbers, seconds, item.error or "")
            rows.append([_printable(cell) for cell in cells])
    if rows:
        print_table(("video", "state", "frames", "attempts", "seconds", "error"), rows)
    states = f"{summary.done} done, {summary.failed} failed, {summary.skipped} skipped"
    print(f"{states}; {summary.seconds:.1f} s; {summary.manifest}")


def _printable(text: str) -> str:
    """Return a name as one line that every terminal takes: others may hold line breaks, or bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
