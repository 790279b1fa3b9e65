"""One long video on one machine, so that a run that is killed loses one segment at most."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from mpvss._files import output_errors, owned
from mpvss._validate import shown_address
from mpvss.batch.chunks import FRAMES, Listing, Plan, is_whole, join, list_frames, part_files, segment_part
from mpvss.batch.manifest import lock, unlock
from mpvss.batch.storage import publish, refuse_link, stamp
from mpvss.batch.worker import Settings, publish_all
from mpvss.errors import ConfigError, OutputError, SourceError
from mpvss.outputs.sinks import ENDINGS, output_paths
from mpvss.segmenter import VideoSegmenter
from mpvss.types import RunSummary, Segmentation
from mpvss.video import parse_rate, probe

_STAGE = "tmp"
_PUBLISHING = "publishing"


def process_in_chunks(
    segmenter: VideoSegmenter,
    source: str,
    out: Path,
    settings: Settings,
    *,
    on_frame: Callable[[Segmentation], None] | None = None,
) -> RunSummary:
    """Segment a source as ``VideoSegmenter.process`` does, keeping what is finished in ``OUT/.NAME.parts`` meanwhile.

    Called again after a kill with the same settings it goes on after the last finished segment. Labels and
    their description have the same bytes as those of ``process``. The folder is removed at the end.

    Args:
        segmenter: Loaded from the settings.
        source: A file, or a folder or pattern of images.
        out: Directory; made if missing.
        settings: What the segmenter was made from, what is written, and the length of a segment.
        on_frame: Called with each finished frame, those of earlier runs included.

    Returns:
        As ``process`` does; ``seconds`` has list, segment, join and total.

    Raises:
        SourceError: The source cannot be read, is live, or has changed since the run that is continued.
        ConfigError: The options are not those of the run that is continued.
        OutputError: An output exists or cannot be written, or another run writes there.
        ValueError: The settings ask for a comparison, or for no segments.
    """
    if settings.output.compare or not settings.split:
        raise ValueError("a comparison cannot be made in segments: leave --compare out, or --resume")
    began = time.perf_counter()
    segmenter = settings.applied(segmenter)
    info = probe(source, fps=parse_rate(settings.segment.fps), video_stream=settings.segment.video_stream)
    if info.kind not in {"video", "images"}:
        raise SourceError(f"expected a recorded video, found {source}, which cannot be read again: leave --resume out")
    name = settings.output.name or info.name
    folder = out / f".{name}.parts"
    refuse_link(folder)
    identity = {"source": shown_address(source), "stamp": stamp(source), **settings.describe()}
    if not (folder / _PUBLISHING).exists():  # after a kill while they appeared, they are this run's own
        output_paths(name, out, settings.output)  # or the error that they exist
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / "lock")
    if held is None:
        raise OutputError(f"{folder}: another run is writing there; wait for it, or choose another output")
    with ExitStack() as stack:
        stack.callback(unlock, held)
        stage = folder / _STAGE
        shutil.rmtree(stage, ignore_errors=True)
        with output_errors(stage):
            stage.mkdir()
        output = settings.output.replace(overwrite=True)
        seconds: dict[str, float] = {}

        def lap(stage_name: str) -> None:
            seconds[stage_name] = time.perf_counter() - began - sum(seconds.values())

        plan = Plan.read(folder)
        if plan is None:
            plan = list_frames(
                segmenter, source, folder, direction=settings.segment.direction, at_most=settings.split,
                identity=identity, beat=lambda: None,
            )  # fmt: skip
        else:
            changed = settings.difference(plan.identity)
            if changed is not None:
                raise ConfigError(
                    f"{folder} was begun with other options: {changed}; give the same, or remove it to start anew"
                )
            former = shown_address(str(plan.identity.get("source"))), plan.identity.get("stamp")
            if former != (identity["source"], identity["stamp"]):
                raise SourceError(f"{source} has changed since {folder} was begun: remove the folder to start anew")
        lap("list")
        listing = Listing.read(folder / FRAMES)
        for number in range(plan.segments):
            files = part_files(number)
            if not is_whole(folder, number):
                segment_part(segmenter, source, plan, listing, number, stage, beat=lambda: None)
                for file in files:
                    publish(stage / file, str(folder / file))
        lap("segment")

        def parts() -> Iterator[Path]:
            for number in range(plan.segments):
                yield folder / part_files(number)[0]

        summary = join(segmenter, source, output, plan, parts(), stage, on_frame=on_frame or (lambda _: None))
        outputs = {kind: out / f"{name}{ENDINGS[kind]}" for kind in summary.outputs}
        with owned((out / f"{name}{ENDINGS['meta']}").absolute()):
            if not (folder / _PUBLISHING).exists():
                output_paths(name, out, settings.output)  # again, now that no other run can begin
            with output_errors(folder):
                (folder / _PUBLISHING).touch()
            publish_all(summary.outputs, str(out / name))
        lap("join")
        if os.name == "nt":  # which removes no open file
            unlock(held)
        shutil.rmtree(folder)
    seconds["total"] = time.perf_counter() - began
    return replace(summary, outputs=outputs, seconds=seconds)
