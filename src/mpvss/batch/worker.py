"""What one worker does with one video, or with one chunk of it. The same for every engine."""

import faulthandler
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpvss._files import owned
from mpvss._validate import without_secrets
from mpvss.batch.chunk_store import ChunkStore
from mpvss.batch.chunks import ChunkedVideo
from mpvss.batch.copies import SourceCopies, machine_folder
from mpvss.batch.sources import Job
from mpvss.batch.storage import Beat, below, digest, is_remote, no_beat, publish, remove, stamp
from mpvss.batch.tasks import Outcome, Setup, Task
from mpvss.errors import ConfigError, DataError, MpvssError, SourceError
from mpvss.outputs.sinks import ENDINGS
from mpvss.types import RunSummary, Segmentation
from mpvss.video import parse_rate, probe

log = logging.getLogger(__name__)

_GRACE_SECONDS = 60


class _LostError(Exception):
    """A source could not be had, which says nothing about the source."""


class Worker:
    """Holds the networks, and takes one task after the other.

    Args:
        setup: What all workers share.
        identity: A name that no other worker has.
        device: Instead of the settings' own.
        on_beat: Called when something got done, once a second at most.

    Raises:
        ModelError: The networks cannot be loaded.
    """

    def __init__(self, setup: Setup, identity: str, device: str | None = None, on_beat: Beat = no_beat) -> None:
        self._setup, self._name, self._on_beat = setup, identity, on_beat
        self._segmenter = setup.settings.load(device)
        if setup.scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="mpvss-"))
        else:
            self._scratch = Path(setup.scratch) / identity
            self._scratch.mkdir(parents=True)
        self._copies: SourceCopies | None = None
        self._beaten = 0.0

    def close(self) -> None:
        """Remove what is not finished."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, task: Task) -> Outcome:
        """Do a task. Whatever goes wrong with it is in the outcome, and the worker is good for the next one."""
        began = time.monotonic()
        stage = self._scratch / "stage"
        try:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            self._beat()
            outcome = {"video": self._video, "chunk": self._chunk, "join": self._join}[task.kind](task, stage)
        except _LostError as error:
            outcome = Outcome(task, error=str(error))
        except MpvssError as error:
            # The bytes are here: what cannot be decoded now cannot be decoded later either.
            final = isinstance(error, SourceError | ConfigError)
            broken = isinstance(error, DataError) and task.kind == "join"
            outcome = Outcome(task, error=str(error), again=not final, anew=broken)
        except Exception as error:
            log.exception("%s", task.job.shown)
            outcome = Outcome(task, error=without_secrets(f"{type(error).__name__}: {error}"))
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._beaten = 0.0
            shutil.rmtree(stage, ignore_errors=True)
            if self._copies is not None:
                self._copies.release()
        if self._copies is not None and (outcome.summary is not None or not outcome.again):
            self._copies.drop(task.job)
        return replace(outcome, seconds=time.monotonic() - began)

    def _beat(self, _: Segmentation | None = None) -> None:
        """Say that something got done: the driver ends a worker that says nothing for long.

        The timer ends a worker that hangs in C when there is no driver any more.
        """
        now = time.monotonic()
        if now - self._beaten > 1 and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._setup.stall + _GRACE_SECONDS, exit=True, file=sys.__stderr__)
            self._beaten = now
            self._on_beat()

    def _source(self, job: Job) -> str:
        """The source as something to open here; a remote one is downloaded once for all workers of a machine."""
        if not is_remote(job.source):
            return job.source
        if self._copies is None:
            self._copies = SourceCopies(self._copies_folder(), self._name)
        try:
            return str(self._copies.get(job, self._beat))
        except (ConfigError, SourceError):
            raise
        except MpvssError as error:
            raise _LostError(str(error)) from error

    def _copies_folder(self) -> Path:
        if self._setup.scratch is not None:
            return Path(self._setup.scratch) / "sources"
        folder, self._machine_lock = machine_folder(self._setup.work, self._name)
        return folder

    # --- whole videos

    def _video(self, task: Task, stage: Path) -> Outcome:
        job, settings = task.job, self._setup.settings
        source = self._source(job)
        self._beat()
        info = probe(source, fps=parse_rate(settings.segment.fps), video_stream=settings.segment.video_stream)
        if info.live:
            raise SourceError(f"expected a recorded video, got the live source {job.shown}: use mpvss segment")
        if settings.split and not settings.output.compare and (info.frames or 0) > settings.split:
            store = self._store(job)
            plan = store.plan_of(self._identity(job), stage) or store.put_plan(
                self._chunked(source), settings.split, self._identity(job), stage
            )
            if plan.chunks > 1:
                return Outcome(task, chunks=plan.chunks, frames=plan.frames)
            store.clear()
        output, direction = settings.output.replace(overwrite=True), settings.segment.direction or "both"
        summary = self._segmenter.process(
            source, stage, output, named=job.shown, on_frame=self._beat, direction=direction
        )
        return Outcome(task, summary=self._publish(job, summary))

    def _publish(self, job: Job, summary: RunSummary) -> dict[str, Any]:
        """Move the outputs to their locations, and describe them."""
        outputs = {kind: {"path": job.name + ENDINGS[kind], **digest(path)} for kind, path in summary.outputs.items()}
        location = below(self._setup.out, job.name)
        with nullcontext() if is_remote(location) else _owned_output(location):
            publish_all(summary.outputs, location, beat=self._beat)
        counts = {"frames": summary.frames, "key_frames": summary.key_frames, "damaged": summary.damaged}
        return counts | {"outputs": outputs}

    # --- long videos

    def _store(self, job: Job) -> ChunkStore:
        return ChunkStore(self._setup.work, job, self._beat)

    def _chunked(self, source: str) -> ChunkedVideo:
        return ChunkedVideo(self._segmenter, source, self._beat)

    def _identity(self, job: Job) -> dict[str, Any]:
        try:
            return {"source": job.shown, "stamp": stamp(job.source), **self._setup.settings.describe()}
        except SourceError as error:
            if is_remote(job.source):
                raise _LostError(str(error)) from error
            raise

    def _chunk(self, task: Task, stage: Path) -> Outcome:
        store = self._store(task.job)
        if store.chunk(task.chunk, stage / "chunk") is None:  # not finished by a run that was killed
            store.put_chunk(self._chunked(self._source(task.job)), task.chunk, stage)
        return Outcome(task)

    def _join(self, task: Task, stage: Path) -> Outcome:
        job, store = task.job, self._store(task.job)
        video = self._chunked(self._source(job))
        plan, _ = store.plan(stage)

        def chunks() -> Iterator[Path]:
            for number in range(plan.chunks):
                labels = store.chunk(number, stage / "chunk")
                if labels is None:  # damaged, or gone
                    shutil.rmtree(stage / "chunk", ignore_errors=True)
                    store.put_chunk(video, number, stage)
                    labels = store.chunk(number, stage / "chunk")
                if labels is None:
                    raise DataError(f"expected chunk {number} of {job.shown} in {store.folder} to be whole, got damage")
                yield labels
                shutil.rmtree(stage / "chunk", ignore_errors=True)

        output = self._setup.settings.output.replace(overwrite=True)
        summary = video.join(output, plan, chunks(), stage, named=job.shown)
        for warning in plan.warnings:
            log.warning("%s: %s", job.shown, warning)
        return Outcome(task, summary=self._publish(job, summary))


def publish_all(staged: Mapping[str, Path], location: str, *, beat: Callable[[], None] = no_beat) -> None:
    """Move the outputs of one video to their locations; the description, without which the others say nothing, last.

    Args:
        staged: Finished files by kind.
        location: Where they go, but for their endings.
        beat: Called as they go.

    Raises:
        OutputError: One cannot be written.
    """
    remove(location + ENDINGS["meta"])  # and labels of an earlier run, which stay, do not pass the new one's checksums
    for kind in sorted(staged, key=lambda kind: kind == "meta"):
        publish(staged[kind], location + ENDINGS[kind], beat=beat)


def _owned_output(location: str) -> AbstractContextManager[None]:
    path = Path(location + ENDINGS["meta"]).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return owned(path)
