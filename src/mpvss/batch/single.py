"""One long video on one machine, so that a run that is killed loses one chunk at most."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpvss._files import output_errors, owned
from mpvss._validate import shown_address
from mpvss.batch.chunks import FRAMES, ChunkedVideo, Plan, chunk_files, is_whole
from mpvss.batch.listed import Listing
from mpvss.batch.locks import lock, unlock
from mpvss.batch.settings import Settings
from mpvss.batch.storage import publish, refuse_link, stamp
from mpvss.batch.worker import publish_all
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
    on_frame: Callable[[Segmentation], None] = lambda _: None,
) -> RunSummary:
    """Segment a source as ``VideoSegmenter.process`` does, keeping what is finished in ``OUT/.NAME.parts`` meanwhile.

    Called again after a kill with the same settings it goes on after the last finished chunk. Labels and their
    description have the same bytes as those of ``process``. The folder is removed at the end.

    Args:
        segmenter: Loaded from the settings.
        source: A file, or a folder or pattern of images.
        out: Directory; made if missing.
        settings: What the segmenter was made from, what is written, and the length of a chunk.
        on_frame: Called with each frame that is joined.

    Returns:
        As ``process`` does; ``seconds`` has list, segment, join and total.

    Raises:
        SourceError: The source cannot be read, is live, or has changed since the run that is continued.
        ConfigError: The options are not those of the run that is continued.
        OutputError: An output exists or cannot be written, or another run writes there.
        ValueError: The settings ask for a comparison, or for no chunks.
    """
    laps = [time.perf_counter()]
    name = _checked_name(source, settings)
    folder = out / f".{name}.parts"
    refuse_link(folder)
    video = ChunkedVideo(settings.applied(segmenter), source)
    identity = {"source": shown_address(source), "stamp": stamp(source), **settings.describe()}
    _refuse_existing(folder, name, out, settings)
    with _work_folder(folder):
        plan = _plan_in(folder, identity, settings) or video.list_frames(folder, settings.split, identity)
        laps.append(time.perf_counter())
        _segment_missing(video, plan, folder)
        laps.append(time.perf_counter())
        chunks = (folder / chunk_files(number)[0] for number in range(plan.chunks))
        output = settings.output.replace(overwrite=True)
        summary = video.join(output, plan, chunks, folder / _STAGE, on_frame=on_frame)
        _publish(summary, folder, name, out, settings)
        laps.append(time.perf_counter())
    seconds = {stage: laps[i + 1] - laps[i] for i, stage in enumerate(("list", "segment", "join"))}
    outputs = {kind: out / f"{name}{ENDINGS[kind]}" for kind in summary.outputs}
    return replace(summary, outputs=outputs, seconds={**seconds, "total": time.perf_counter() - laps[0]})


def _publish(summary: RunSummary, folder: Path, name: str, out: Path, settings: Settings) -> None:
    with owned((out / f"{name}{ENDINGS['meta']}").absolute()):
        _refuse_existing(folder, name, out, settings)  # again, now that no other run can begin
        with output_errors(folder):
            (folder / _PUBLISHING).touch()
        publish_all(summary.outputs, str(out / name))


def _checked_name(source: str, settings: Settings) -> str:
    """What the outputs are called, of a source that can be divided."""
    if settings.output.compare or not settings.split:
        raise ValueError("a comparison cannot be made in chunks: leave --compare out, or --resume")
    info = probe(source, fps=parse_rate(settings.segment.fps), video_stream=settings.segment.video_stream)
    if info.kind not in {"video", "images"}:
        raise SourceError(f"expected a recorded video, got {source}, which cannot be read again: leave --resume out")
    return settings.output.name or info.name


def _refuse_existing(folder: Path, name: str, out: Path, settings: Settings) -> None:
    """Refuse outputs that exist, unless a run that was killed while they appeared made them."""
    if not (folder / _PUBLISHING).exists():
        output_paths(name, out, settings.output)


@contextmanager
def _work_folder(folder: Path) -> Iterator[None]:
    """Have the folder for one run, with nothing half-written in it; remove it when all is done."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / "lock")
    if held is None:
        raise OutputError(f"{folder}: another run is writing there; wait for it, or choose another output")
    try:
        shutil.rmtree(folder / _STAGE, ignore_errors=True)
        with output_errors(folder):
            (folder / _STAGE).mkdir()
        yield
        if os.name == "nt":  # which removes no open file
            unlock(held)
        shutil.rmtree(folder)
    finally:
        unlock(held)


def _plan_in(folder: Path, identity: dict[str, Any], settings: Settings) -> Plan | None:
    """The plan of the run that is continued, if there is one."""
    plan = Plan.read(folder)
    if plan is None:
        return None
    changed = settings.difference(plan.identity)
    if changed is not None:
        raise ConfigError(
            f"{folder} was begun with other options: {changed}; give the same, or remove it to start anew"
        )
    former = shown_address(str(plan.identity.get("source"))), plan.identity.get("stamp")
    if former != (identity["source"], identity["stamp"]):
        raise SourceError(f"{identity['source']} has changed since {folder} was begun: remove the folder to start anew")
    return plan


def _segment_missing(video: ChunkedVideo, plan: Plan, folder: Path) -> None:
    listing = Listing.read(folder / FRAMES)
    for number in range(plan.chunks):
        if not is_whole(folder, number):
            video.segment(plan, listing, number, folder / _STAGE)
            for file in chunk_files(number):
                publish(folder / _STAGE / file, str(folder / file))
