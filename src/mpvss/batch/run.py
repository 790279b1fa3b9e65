"""A batch, from what it is given to its summary: many videos, each segmented exactly once."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mpvss._files import output_errors
from mpvss.batch.driver import Driver
from mpvss.batch.local import ALIVE
from mpvss.batch.locks import lock, unlock
from mpvss.batch.manifest import Manifest
from mpvss.batch.settings import Settings
from mpvss.batch.sources import expand
from mpvss.batch.storage import below, is_remote, local, refuse_link
from mpvss.batch.tasks import BatchItem, BatchSummary, Setup
from mpvss.errors import ConfigError, OutputError
from mpvss.options import BatchOptions
from mpvss.types import Stop

MANIFEST = "manifest.jsonl"
WORK = ".mpvss-work"

_ORPHAN_SECONDS = 60.0


def run_batch(
    sources: Sequence[str],
    out: str | Path,
    settings: Settings,
    options: BatchOptions,
    *,
    on_item: Callable[[BatchItem, int, int], None] = lambda *_: None,
    stop: Stop | None = None,
) -> BatchSummary:
    """Segment many videos, each exactly once.

    Args:
        sources: See ``sources.expand``.
        out: Directory or address for the results.
        settings: How each video is segmented.
        options: How the batch is run.
        on_item: Called with each video that is finished or given up, their number so far, and the number of all.
        stop: Ends the batch within seconds, once it is set, whatever its workers are doing; ``resume`` goes on from
            there.

    Returns:
        How many videos are done, failed and skipped, and what became of each.

    Raises:
        ConfigError: Options exclude each other, or are not those of the run that is resumed.
        SourceError: There is nothing to segment.
        OutputError: The manifest or the work folder cannot be written, or another driver writes there.
        ModelError: The model cannot be loaded.
    """
    began = time.monotonic()
    out = str(out)
    out = out if is_remote(out) else str(Path(local(out)).absolute())
    jobs = [job for job in expand(sources) if options.shard is None or in_shard(job.name, options.shard)]
    manifest, work = _open_state(out, options)
    try:
        _check_resumed(manifest, settings, options)
        with _work_folder(work):
            setup = _setup(out, work, settings, options)
            items = Driver(jobs, setup, options, manifest, on_item, stop).run()
    finally:
        manifest.close()
    states = [item.state for item in items]
    return BatchSummary(
        done=states.count("done"),
        failed=states.count("failed"),
        skipped=states.count("skipped"),
        seconds=round(time.monotonic() - began, 3),
        manifest=manifest.path,
        items=tuple(items),
    )


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether a video of this name belongs to a shard: each belongs to one, however many others there are."""
    value = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return value % shard[1] == shard[0] - 1


def _open_state(out: str, options: BatchOptions) -> tuple[Manifest, Path]:
    """Open the manifest, and name the folder for what is not finished."""
    if options.state is None and is_remote(out):
        raise ConfigError(
            f"{out} is not on this machine, and a manifest cannot be added to there: give --state a directory that "
            "outlives this run"
        )
    suffix = "" if options.shard is None else "-{}-of-{}".format(*options.shard)
    state = (options.state or Path(out)).absolute()
    stem, ending = MANIFEST.split(".")
    manifest = Manifest(state / f"{stem}{suffix}.{ending}", anew=options.overwrite)
    return manifest, (state if is_remote(out) else Path(out)) / f"{WORK}{suffix}"


def _check_resumed(manifest: Manifest, settings: Settings, options: BatchOptions) -> None:
    if manifest.run is None:
        return
    if not options.resume:
        raise OutputError(
            f"{manifest.path} exists already: pass --resume to go on from it, --overwrite to start anew, or choose "
            "another output"
        )
    changed = settings.difference(manifest.run["settings"])
    if changed is not None:
        raise ConfigError(
            f"{manifest.path} was begun with other options: {changed}; give the same, or choose another output"
        )


def _setup(out: str, work: Path, settings: Settings, options: BatchOptions) -> Setup:
    # Workers on other machines reach the output, but not this machine's disk.
    elsewhere = options.engine == "ray" and is_remote(out)
    chunks = below(below(out, WORK) if elsewhere else str(work), "parts")
    return Setup(settings, out, chunks, None if elsewhere else str(work / "tmp"), options.stall)


@contextmanager
def _work_folder(work: Path) -> Iterator[None]:
    """Have a folder without anything half-written in it, before and after."""
    scratch = work / "tmp"
    refuse_link(work)
    with output_errors(work):
        scratch.mkdir(parents=True, exist_ok=True)
        # Workers of a driver that was killed end by themselves, but not at once.
        deadline = time.monotonic() + _ORPHAN_SECONDS
        for alive in work.glob(f"{ALIVE}*"):
            held = lock(alive, seconds=max(0.0, deadline - time.monotonic()))
            if held is None:
                raise OutputError(f"{work}: workers of another batch are still writing there; wait for them")
            unlock(held)
        refuse_link(scratch)
        shutil.rmtree(scratch)
        scratch.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # chunks are kept there, for --resume
            (work / "parts").rmdir()
        if not (work / "parts").exists():
            shutil.rmtree(work, ignore_errors=True)
