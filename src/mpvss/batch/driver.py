"""The driver: which video is whole, which task comes next, and what is tried again."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mpvss._devices import cuda_devices
from mpvss._threads import cores
from mpvss.batch.local import LocalEngine
from mpvss.batch.manifest import SCHEMA, Manifest
from mpvss.batch.sources import Job
from mpvss.batch.storage import below, exists, is_remote, is_whole, remove, stored
from mpvss.batch.tasks import BatchItem, Outcome, Setup, Task
from mpvss.errors import MpvssError, OutputError
from mpvss.options import BatchOptions
from mpvss.outputs.sinks import ENDINGS
from mpvss.types import Stop

log = logging.getLogger(__name__)

_WAIT_SECONDS = 5.0
# Workers that crash in a row before they have done anything: the machine is too small, or something is broken.
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
        """Wait until something happens: what became of tasks, and how many workers crashed without one."""
        ...

    def close(self) -> None:
        """End the workers, with whatever they are doing."""
        ...


@dataclass
class _Video:
    """What the driver knows of a video that is not finished."""

    job: Job
    seconds: float = 0.0
    failures: int = 0
    waiting: int = 0
    over: bool = False
    tries: dict[tuple[str, int], int] = field(default_factory=dict)


class Driver:
    """One run over the videos. It sees names, numbers and messages only: no frame comes here.

    Args:
        jobs: The videos, in order.
        setup: What all workers share.
        options: How the batch is run.
        manifest: Open.
        on_item: See ``run_batch``.
        stop: See ``run_batch``.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        setup: Setup,
        options: BatchOptions,
        manifest: Manifest,
        on_item: Callable[[BatchItem, int, int], None],
        stop: Stop | None = None,
    ) -> None:
        self._jobs, self._setup, self._options = jobs, setup, options
        self._manifest, self._on_item, self._stop = manifest, on_item, stop
        # One question instead of many for each video.
        self._stored = stored(setup.out) if is_remote(setup.out) else None
        self._overwrite = options.overwrite or (manifest.run is not None and manifest.run["overwrite"])
        self._unfinished = {job.name: _Video(job) for job in jobs}
        self._results: dict[str, BatchItem] = {}
        self._begun: deque[Task] = deque()  # of videos that are being worked on
        self._fresh: deque[Task] = deque()
        self._running = 0
        self._announced: set[str] = set()

    def run(self) -> list[BatchItem]:
        """Do what is not whole; return what became of each video, or, where that was stopped, of those that are over.

        Raises:
            MpvssError: Workers crash before they do anything, or cannot load the model.
        """
        for job in self._jobs:
            event = self._manifest.items.get(job.name, {"event": None})
            if event["event"] == "done" and self._whole(job, event):
                self._finish(job, "skipped", frames=event.get("frames"), outputs=event["outputs"])
            else:
                self._fresh.append(Task(job))
        self._forget_chunks({task.job.folder for task in self._fresh})
        if self._fresh:
            self._work_off()
        return [self._results[job.name] for job in self._jobs if job.name in self._results]

    def _work_off(self) -> None:
        workers = self._options.workers or default_workers(self._setup.settings.segment.device)
        if not self._setup.settings.split:
            workers = min(workers, len(self._fresh))
        engine = self._engine(workers)
        early_deaths = 0
        try:
            self._manifest.add(
                "run", schema=SCHEMA, settings=self._setup.settings.describe(), overwrite=self._overwrite,
                engine=self._options.engine, workers=workers, items=len(self._fresh),
            )  # fmt: skip
            while not (self._stop is not None and self._stop.is_set()) and self._submit(engine):
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
        finally:
            engine.close()

    def _engine(self, workers: int) -> Engine:
        level = log.getEffectiveLevel()
        if self._options.engine == "local":
            return LocalEngine(self._setup, workers, level)
        from mpvss.batch.ray_engine import RayEngine

        return RayEngine(self._setup, workers, level, self._options.ray_address)

    # --- what comes next

    def _submit(self, engine: Engine) -> bool:
        """Give tasks to idle workers; return whether anything is left to wait for."""
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
        return bool(self._running or self._begun or self._fresh)

    def _next(self) -> Task | None:
        """The next task: of a video that is begun if there is one, so that few are unfinished at any time."""
        if self._begun:
            return self._begun.popleft()
        while self._fresh:
            task = self._fresh.popleft()
            if task.job.name not in self._announced:
                self._announced.add(task.job.name)
                try:
                    self._refuse_existing(task.job)
                except MpvssError as error:
                    self._fail(self._unfinished[task.job.name], str(error))
                    continue
                self._manifest.add("start", item=task.job.name, source=task.job.shown)
            return task
        return None

    def _refuse_existing(self, job: Job) -> None:
        """Outputs may be replaced that this batch began to write itself, or that the caller gave up."""
        if self._overwrite or job.name in self._manifest.started:
            return
        output = self._setup.settings.output
        for kind in ("meta", *output.save, *(("compare",) if output.compare else ())):
            name = job.name + ENDINGS[kind]
            if exists(below(self._setup.out, name)) if self._stored is None else name in self._stored:
                raise OutputError(f"{name} exists already; pass --overwrite to replace it, or choose another output")

    def _whole(self, job: Job, event: dict[str, Any]) -> bool:
        for kind, described in event["outputs"].items():
            name = job.name + ENDINGS.get(kind, kind)
            if self._stored is not None and self._stored.get(name) != described["bytes"]:
                return False
            if self._stored is not None and not self._options.verify:
                continue
            if not is_whole(below(self._setup.out, name), described, verify=self._options.verify):
                return False
        return True

    # --- what happened

    def _settle(self, outcome: Outcome) -> None:
        task = outcome.task
        video = self._unfinished[task.job.name]
        video.seconds += outcome.seconds
        if video.over:
            return
        if outcome.error is not None:
            self._retry(video, outcome)
        elif outcome.chunks is not None:
            self._manifest.add("split", item=task.job.name, frames=outcome.frames, segments=outcome.chunks)
            video.waiting = outcome.chunks
            self._begun.extend(Task(task.job, "chunk", number) for number in range(outcome.chunks))
        elif task.kind == "chunk":
            self._manifest.add("part", item=task.job.name, part=task.chunk, seconds=round(outcome.seconds, 3))
            video.waiting -= 1
            if not video.waiting:
                self._begun.appendleft(Task(task.job, "join"))
        else:
            assert outcome.summary is not None
            values = {"attempts": video.failures + 1, "seconds": round(video.seconds, 3), **outcome.summary}
            video.over = True
            self._manifest.add("done", item=task.job.name, **values)
            if task.kind == "join":
                self._manifest.sync()  # before the chunks are gone
                self._remove_chunks(task.job.folder)
            self._finish(task.job, "done", **values)

    def _retry(self, video: _Video, outcome: Outcome) -> None:
        task, error = outcome.task, outcome.error or ""
        key = (task.kind, task.chunk)
        if not outcome.preempted:
            video.failures += 1
            video.tries[key] = video.tries.get(key, 0) + 1
        if not outcome.again or video.tries.get(key, 0) > self._options.retries:
            self._fail(video, error)
            return
        log.warning("%s: %s; trying again", task.job.shown, error)
        self._manifest.add("retry", item=task.job.name, kind=task.kind, part=task.chunk, error=error)
        if outcome.anew:
            self._remove_chunks(task.job.folder)
            task = replace(task, kind="video")
        # Retried after the other tasks, which gives a failing network or store time to recover.
        (self._fresh if task.kind == "video" else self._begun).append(task)

    def _fail(self, video: _Video, error: str) -> None:
        video.over = True
        self._begun = deque(task for task in self._begun if task.job != video.job)
        values = {"attempts": video.failures, "seconds": round(video.seconds, 3), "error": error}
        self._manifest.add("failed", item=video.job.name, **values)
        self._finish(video.job, "failed", **values)

    def _finish(self, job: Job, state: Literal["done", "failed", "skipped"], **values: Any) -> None:
        self._results[job.name] = BatchItem(job.name, job.shown, state, **values)
        self._on_item(self._results[job.name], len(self._results), len(self._jobs))

    # --- chunks

    def _remove_chunks(self, name: str) -> None:
        try:
            remove(below(self._setup.work, name))
        except MpvssError as error:  # the result is whole, and the next run removes them
            log.warning("%s", error)

    def _forget_chunks(self, needed: set[str]) -> None:
        """Remove chunks of videos that are finished, or no longer asked for."""
        work = self._setup.work
        if not is_remote(work) and Path(work).is_dir():
            for folder in Path(work).iterdir():
                if folder.name not in needed:
                    self._remove_chunks(folder.name)


def default_workers(device: str | int = "auto") -> int:
    """One worker for each GPU of this machine that the device may mean, or for every two of its cores."""
    return cuda_devices(device) or max(1, cores() // 2)
