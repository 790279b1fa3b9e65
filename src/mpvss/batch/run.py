"""The driver: which video is whole, which task comes next, and what is tried again."""

import hashlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mpvss._files import output_errors
from mpvss._threads import cores
from mpvss.batch.local import ALIVE, LocalEngine
from mpvss.batch.manifest import SCHEMA, Manifest, lock, unlock
from mpvss.batch.storage import Job, below, exists, expand, is_remote, is_whole, local, refuse_link, remove, stored
from mpvss.batch.worker import Outcome, Settings, Setup, Task, parts_folder
from mpvss.errors import ConfigError, MpvssError, OutputError
from mpvss.options import BatchOptions
from mpvss.outputs.sinks import ENDINGS

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
WORK = ".mpvss-work"

_WAIT_SECONDS = 5.0
_ORPHAN_SECONDS = 60.0
# Workers that die one after the other before they have done anything: the machine is too small, or something is broken.
_MOST_EARLY_DEATHS = 5


@runtime_checkable
class Engine(Protocol):
    """Where workers run."""

    def idle(self) -> list[int]:
        """Workers that are ready for a task."""
        ...

    def submit(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker."""
        ...

    def wait(self, seconds: float) -> tuple[list[Outcome], int]:
        """Wait until something happens: what became of tasks, and how many workers died without one."""
        ...

    def close(self) -> None:
        """End the workers, with whatever they are doing."""
        ...


@dataclass(frozen=True)
class BatchSummary:
    """What became of a batch.

    Attributes:
        done: Videos that were segmented.
        failed: Videos that were given up.
        skipped: Videos that were whole already.
        seconds: How long it took.
        manifest: Path of the manifest.
        items: For each video its name, source, state and what the manifest says of it.
    """

    done: int
    failed: int
    skipped: int
    seconds: float
    manifest: Path
    items: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "manifest": str(self.manifest), "items": list(self.items)}


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether a video of this name belongs to a shard: each belongs to one, however many others there are."""
    value = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return value % shard[1] == shard[0] - 1


@dataclass
class _Item:
    """What the driver knows of a video that is not finished."""

    job: Job
    seconds: float = 0.0
    failures: int = 0
    waiting: int = 0
    over: bool = False
    tries: dict[tuple[str, int], int] = field(default_factory=dict)


def run_batch(
    sources: Sequence[str],
    out: str,
    settings: Settings,
    options: BatchOptions,
    *,
    on_item: Callable[[dict[str, Any], int, int], None] | None = None,
) -> BatchSummary:
    """Segment many videos, each exactly once.

    Args:
        sources: See ``places.expand``.
        out: Directory or URL for the results.
        settings: How each video is segmented.
        options: How the batch is run.
        on_item: Called with each video that is finished or given up, their number so far, and the number of all.

    Returns:
        How many videos are done, failed and skipped, and what became of each.

    Raises:
        ConfigError: Options exclude each other, or are not those of the run that is resumed.
        SourceError: Nothing to segment is found.
        OutputError: The manifest or the work folder cannot be written, or another driver writes there.
        ModelError: The model cannot be loaded.
    """
    began = time.monotonic()
    out = out if is_remote(out) else str(Path(local(out)).absolute())
    jobs = expand(sources)
    if options.shard is not None:
        jobs = [job for job in jobs if in_shard(job.name, options.shard)]
    manifest, work = _open_state(out, options)
    try:
        if manifest.run is not None:
            if not options.resume:
                raise OutputError(
                    f"{manifest.path} exists already: pass --resume to go on from it, --overwrite to start anew, or "
                    "choose another output"
                )
            changed = settings.difference(manifest.run["settings"])
            if changed is not None:
                raise ConfigError(
                    f"{manifest.path} was begun with other options: {changed}; give the same, or choose another output"
                )
        with _work_folder(work):
            results = _Driver(jobs, out, settings, options, manifest, work, on_item).run()
    finally:
        manifest.close()
    states = [result["state"] for result in results]
    return BatchSummary(
        done=states.count("done"),
        failed=states.count("failed"),
        skipped=states.count("skipped"),
        seconds=round(time.monotonic() - began, 3),
        manifest=manifest.path,
        items=tuple(results),
    )


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
        with suppress(OSError):  # segments are kept there, for --resume
            (work / "parts").rmdir()
        if not (work / "parts").exists():
            shutil.rmtree(work, ignore_errors=True)


class _Driver:
    """One run over the videos. It sees names, numbers and messages only: no frame comes here."""

    def __init__(
        self,
        jobs: Sequence[Job],
        out: str,
        settings: Settings,
        options: BatchOptions,
        manifest: Manifest,
        work: Path,
        on_item: Callable[[dict[str, Any], int, int], None] | None,
    ) -> None:
        self._jobs, self._out, self._settings, self._options = jobs, out, settings, options
        self._manifest, self._on_item = manifest, on_item
        # Workers on other machines reach the output, but not this machine's disk.
        self._elsewhere = options.engine == "ray" and is_remote(out)
        self._parts = below(below(out, WORK) if self._elsewhere else str(work), "parts")
        self._scratch = None if self._elsewhere else str(work / "tmp")
        self._stored = stored(out) if is_remote(out) else None  # one question instead of many for each video
        self._overwrite = options.overwrite or (manifest.run is not None and manifest.run["overwrite"] is True)
        self._items = {job.name: _Item(job) for job in jobs}
        self._results: dict[str, dict[str, Any]] = {}
        self._begun: deque[Task] = deque()  # of videos that are being worked on
        self._fresh: deque[Task] = deque()
        self._running = 0
        self._given: set[str] = set()

    def run(self) -> list[dict[str, Any]]:
        for job in self._jobs:
            event = self._manifest.items.get(job.name, {"event": None})
            if event["event"] == "done" and self._whole(job, event):
                self._finish(job, "skipped", {key: event[key] for key in ("frames", "outputs") if key in event})
            else:
                self._fresh.append(Task(job))
        self._forget_parts({parts_folder(task.job) for task in self._fresh})
        if self._fresh:
            self._work_off()
        return [self._results[job.name] for job in self._jobs]

    def _work_off(self) -> None:
        workers = self._options.workers or default_workers()
        if not self._settings.split:
            workers = min(workers, len(self._fresh))
        engine = self._engine(workers)
        early_deaths = 0
        try:
            self._manifest.add(
                "run", schema=SCHEMA, settings=self._settings.describe(), overwrite=self._overwrite,
                engine=self._options.engine, workers=workers, items=len(self._fresh),
            )  # fmt: skip
            while self._begun or self._fresh or self._running:
                given = []
                for worker in engine.idle():
                    task = self._next()
                    if task is None:
                        break
                    given.append((worker, task))
                self._manifest.sync()  # one wait for the disk, however many events
                for worker, task in given:
                    engine.submit(worker, task)
                self._running += len(given)
                if not self._running and not self._begun and not self._fresh:
                    break
                outcomes, deaths = engine.wait(_WAIT_SECONDS)
                for outcome in outcomes:
                    self._running -= 1
                    self._settle(outcome)
                early_deaths = 0 if outcomes else early_deaths + deaths
                if early_deaths >= max(_MOST_EARLY_DEATHS, 2 * workers):
                    raise MpvssError(
                        f"{early_deaths} workers died one after the other before they did anything: the machine may "
                        "have too little memory for so many; use fewer --workers"
                    )
            self._manifest.sync()
        finally:
            engine.close()

    def _engine(self, workers: int) -> Engine:
        setup = Setup(self._settings, self._out, self._parts, self._scratch, stall=self._options.stall)
        level = log.getEffectiveLevel()
        if self._options.engine == "local":
            return LocalEngine(setup, workers, level)
        from mpvss.batch.ray_engine import RayEngine

        return RayEngine(setup, workers, level, self._options.ray_address)

    # --- what comes next

    def _next(self) -> Task | None:
        """The next task: of a video that is begun if there is one, so that few are unfinished at any time."""
        if self._begun:
            return self._begun.popleft()
        while self._fresh:
            task = self._fresh.popleft()
            item = self._items[task.job.name]
            if task.job.name not in self._given:
                self._given.add(task.job.name)
                try:
                    self._refuse_existing(task.job)
                except MpvssError as error:
                    self._fail(item, str(error))
                    continue
                self._manifest.add("start", item=task.job.name, source=task.job.shown)
            return task
        return None

    def _refuse_existing(self, job: Job) -> None:
        """Outputs may be replaced that this batch began to write itself, or that the caller gave up."""
        if self._overwrite or job.name in self._manifest.started:
            return
        options = self._settings.output
        for kind in ("meta", *options.save, *(("compare",) if options.compare else ())):
            name = job.name + ENDINGS[kind]
            if exists(below(self._out, name)) if self._stored is None else name in self._stored:
                raise OutputError(f"{name} exists already; pass --overwrite to replace it, or choose another output")

    def _whole(self, job: Job, event: dict[str, Any]) -> bool:
        for kind, described in event["outputs"].items():
            name = job.name + ENDINGS.get(kind, kind)
            if self._stored is not None and self._stored.get(name) != described["bytes"]:
                return False
            if self._stored is not None and not self._options.verify:
                continue
            if not is_whole(below(self._out, name), described, verify=self._options.verify):
                return False
        return True

    # --- what happened

    def _settle(self, outcome: Outcome) -> None:
        task = outcome.task
        item = self._items[task.job.name]
        item.seconds += outcome.seconds
        if item.over:
            return
        if outcome.error is not None:
            self._retry(item, outcome)
        elif outcome.segments is not None:
            self._manifest.add("split", item=task.job.name, frames=outcome.frames, segments=outcome.segments)
            item.waiting = outcome.segments
            self._begun.extend(Task(task.job, "part", number) for number in range(outcome.segments))
        elif task.kind == "part":
            self._manifest.add("part", item=task.job.name, part=task.part, seconds=round(outcome.seconds, 3))
            item.waiting -= 1
            if not item.waiting:
                self._begun.appendleft(Task(task.job, "join"))
        else:
            assert outcome.summary is not None
            values = {"attempts": item.failures + 1, "seconds": round(item.seconds, 3), **outcome.summary}
            item.over = True
            self._manifest.add("done", item=task.job.name, **values)
            if task.kind == "join":
                self._manifest.sync()  # before the segments are gone
                self._remove_parts(parts_folder(task.job))
            self._finish(task.job, "done", values)

    def _retry(self, item: _Item, outcome: Outcome) -> None:
        task, error = outcome.task, outcome.error or ""
        key = (task.kind, task.part)
        if not outcome.preempted:
            item.failures += 1
            item.tries[key] = item.tries.get(key, 0) + 1
        if not outcome.again or item.tries.get(key, 0) > self._options.retries:
            self._fail(item, error)
            return
        log.warning("%s: %s; trying again", task.job.shown, error)
        self._manifest.add("retry", item=task.job.name, kind=task.kind, part=task.part, error=error)
        if outcome.anew:
            self._remove_parts(parts_folder(task.job))
            task = replace(task, kind="video")
        # Behind the others: what was wrong with a network or a store is perhaps over by then.
        (self._fresh if task.kind == "video" else self._begun).append(task)

    def _fail(self, item: _Item, error: str) -> None:
        item.over = True
        self._begun = deque(task for task in self._begun if task.job != item.job)
        values = {"attempts": item.failures, "seconds": round(item.seconds, 3), "error": error}
        self._manifest.add("failed", item=item.job.name, **values)
        self._finish(item.job, "failed", values)

    def _finish(self, job: Job, state: str, values: dict[str, Any]) -> None:
        self._results[job.name] = {"name": job.name, "source": job.shown, "state": state, **values}
        if self._on_item is not None:
            self._on_item(self._results[job.name], len(self._results), len(self._jobs))

    # --- segments

    def _remove_parts(self, name: str) -> None:
        try:
            remove(below(self._parts, name))
        except MpvssError as error:  # the result is whole, and the next run removes them
            log.warning("%s", error)

    def _forget_parts(self, wanted: set[str]) -> None:
        """Remove segments of videos that are finished, or no longer asked for."""
        if not self._elsewhere and Path(self._parts).is_dir():
            for folder in Path(self._parts).iterdir():
                if folder.name not in wanted:
                    self._remove_parts(folder.name)


def default_workers() -> int:
    """One worker for each GPU of this machine, or for every two of its cores."""
    import torch

    return torch.cuda.device_count() or max(1, cores() // 2)
