"""What one worker does with one video, or with one segment of it. The same for every engine."""

import faulthandler
import hashlib
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpvss._validate import shown, without_secrets
from mpvss.batch.copies import SourceCopies, machine_folder
from mpvss.batch.storage import Job, below, digest, exists, fetch, is_remote, publish, remove, stamp
from mpvss.errors import ConfigError, DataError, MpvssError, OptionError, SourceError
from mpvss.options import OutputOptions, SegmentOptions
from mpvss.outputs.sinks import ENDINGS

if TYPE_CHECKING:
    from mpvss.batch.chunks import Plan
    from mpvss.segmenter import VideoSegmenter
    from mpvss.types import RunSummary, Segmentation

log = logging.getLogger(__name__)

Kind = Literal["video", "part", "join"]
_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Settings:
    """How every video of a batch is segmented, and what is written.

    Attributes:
        segment: As for ``VideoSegmenter.from_pretrained``. With direction ``None`` it is both. Sums of a network are
            rounded in another order with another number of threads, so that does not follow from how many workers there
            are: ``None`` is one.
        output: What is written.
        split: Most frames that are segmented in one piece; 0 never divides a video.
    """

    segment: SegmentOptions = field(default_factory=SegmentOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    split: int = 1500

    @property
    def threads(self) -> int:
        """Threads of torch and OpenCV in each worker."""
        return self.segment.threads or 1

    def describe(self) -> dict[str, Any]:
        """What decides the results, as plain values."""
        from mpvss import __version__

        output = {name: value for name, value in self.output.to_dict().items() if name not in ("overwrite", "name")}
        values = {**self.segment.to_dict(), **output, "threads": self.threads, "split": self.split}
        return {"mpvss": __version__, **values}

    def difference(self, former: Mapping[str, Any]) -> str | None:
        """Say what is not as in an earlier description, or ``None``.

        Options that the version which wrote it did not have yet are at their defaults there.
        """
        before, now = {**Settings().describe(), **_flat(former)}, self.describe()
        for name in [*now, *(before.keys() - now.keys() - {"source", "stamp"})]:
            if before[name] != now.get(name):
                return f"{name} was {shown(before[name])}, now {shown(now.get(name))}"
        return None

    def load(self, device: str | None = None) -> "VideoSegmenter":
        """Load the networks.

        Raises:
            ModelError: They cannot be loaded.
            ConfigError: An option is out of its range.
        """
        from mpvss.segmenter import VideoSegmenter

        options = self.segment.replace(device=device or self.segment.device)
        try:
            return VideoSegmenter.from_pretrained(options.model, options=options)
        except OptionError as error:
            raise ConfigError(str(error)) from error

    def applied(self, segmenter: "VideoSegmenter") -> "VideoSegmenter":
        """Return a segmenter that reads what these settings select, and keeps the classes that they keep."""
        kept = {name: getattr(self.segment, name) for name in ("classes", "min_score")}
        return segmenter.with_options(**self.segment.selection(), **kept)


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description as ``describe`` writes it: version 0.1 had some of the options one level below."""
    nested = described.get("options")
    if not isinstance(nested, dict):
        return dict(described)
    return {**{name: value for name, value in described.items() if name != "options"}, **nested}


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know before its first task.

    Attributes:
        settings: How to segment.
        out: Where results go: a directory or a URL.
        work: Where listings and segments of long videos go, which every worker must reach.
        scratch: Local directory for what is not whole yet, on the disk of ``out`` if that is local; ``None`` for the
            system's directory of temporary files.
        stall: Seconds without a finished frame after which the driver ends a worker.
    """

    settings: Settings
    out: str
    work: str
    scratch: str | None
    stall: int


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        job: The video.
        kind: ``video`` segments it, or divides it if it is long; ``part`` segments one segment; ``join`` puts the
            segments together.
        part: Which segment.
    """

    job: Job
    kind: Kind = "video"
    part: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: The task.
        seconds: How long it took.
        segments: Number of segments, where the video was divided.
        frames: Number of frames, where the video was divided.
        summary: frames, key_frames, damaged and outputs, where the video is finished.
        error: What went wrong.
        again: Whether another try may help.
        anew: Whether it has to begin with the whole video, because the segments are of no use.
        died: Whether the worker is gone.
        preempted: Whether its machine was taken away, which is no failed try.
    """

    task: Task
    seconds: float = 0.0
    segments: int | None = None
    frames: int | None = None
    summary: dict[str, Any] | None = None
    error: str | None = None
    again: bool = True
    anew: bool = False
    died: bool = False
    preempted: bool = False


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

    def __init__(
        self, setup: Setup, identity: str, device: str | None = None, on_beat: Callable[[], None] = lambda: None
    ) -> None:
        self._on_beat = on_beat
        self.setup = setup
        self.segmenter: VideoSegmenter = setup.settings.applied(setup.settings.load(device))
        if setup.scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="mpvss-"))
        else:
            self._scratch = Path(setup.scratch) / identity
            self._scratch.mkdir(parents=True)
        self._copies: SourceCopies | None = None
        self._name = identity
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
            outcome = {"video": self._video, "part": self._part, "join": self._join}[task.kind](task, stage)
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

    def _beat(self, _: "Segmentation | None" = None) -> None:
        """Say that something got done: the driver ends a worker that says nothing for long.

        The timer ends a worker that hangs in C when there is no driver any more.
        """
        now = time.monotonic()
        if now - self._beaten > 1 and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self.setup.stall + _GRACE_SECONDS, exit=True, file=sys.__stderr__)
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
        if self.setup.scratch is not None:
            return Path(self.setup.scratch) / "sources"
        folder, self._machine_lock = machine_folder(self.setup.work, self._name)
        return folder

    # --- whole videos

    def _video(self, task: Task, stage: Path) -> Outcome:
        from mpvss.video import parse_rate, probe

        job, settings = task.job, self.setup.settings
        output, segment = settings.output.replace(overwrite=True), settings.segment
        source = self._source(job)
        self._beat()
        info = probe(source, fps=parse_rate(segment.fps), video_stream=segment.video_stream)
        if info.live:
            raise SourceError(f"expected a recorded video, found the live source {job.shown}: use mpvss segment")
        if settings.split and not output.compare and (info.frames or 0) > settings.split:
            plan = self._divide(job, source, stage)
            if plan.segments > 1:
                return Outcome(task, segments=plan.segments, frames=plan.frames)
            remove(self._folder(job))
        summary = self.segmenter.process(
            source, stage, output, direction=segment.direction or "both", named=job.shown, on_frame=self._beat
        )
        return Outcome(task, summary=self._publish(job, summary))

    def _publish(self, job: Job, summary: "RunSummary") -> dict[str, Any]:
        """Move the outputs to their places, and describe them."""
        staged = summary.outputs
        outputs = {kind: {"path": job.name + ENDINGS[kind], **digest(path)} for kind, path in staged.items()}
        place = below(self.setup.out, job.name)
        with nullcontext() if is_remote(place) else _owned_output(place):
            publish_all(staged, place, beat=self._beat)
        return {key: getattr(summary, key) for key in ("frames", "key_frames", "damaged")} | {"outputs": outputs}

    # --- long videos

    def _folder(self, job: Job) -> str:
        """Where the segments of a video are kept."""
        return below(self.setup.work, parts_folder(job))

    def _identity(self, job: Job) -> dict[str, Any]:
        try:
            return {"source": job.shown, "stamp": stamp(job.source), **self.setup.settings.describe()}
        except SourceError as error:
            if is_remote(job.source):
                raise _LostError(str(error)) from error
            raise

    def _divide(self, job: Job, source: str, stage: Path) -> "Plan":
        """Find the plan of an earlier run, or make one."""
        from mpvss.batch.chunks import FRAMES, PLAN, Plan, list_frames

        folder, identity = self._folder(job), self._identity(job)
        if exists(below(folder, PLAN)):
            former = Plan.read(fetch(below(folder, PLAN), stage / "former").parent)
            if former is not None and former.identity == identity:
                return former
        remove(folder)
        settings = self.setup.settings
        plan = list_frames(
            self.segmenter, source, stage, direction=settings.segment.direction, at_most=settings.split,
            identity=identity, beat=self._beat,
        )  # fmt: skip
        for name in (FRAMES, PLAN):
            publish(stage / name, below(folder, name), beat=self._beat)
        return plan

    def _plan(self, job: Job, stage: Path) -> tuple["Plan", Path]:
        from mpvss.batch.chunks import FRAMES, PLAN, Plan

        folder = self._folder(job)
        found = fetch(below(folder, PLAN), stage / "plan")
        listing = fetch(below(folder, FRAMES), stage / "plan")
        plan = Plan.read(found.parent)
        if plan is None:
            raise DataError(f"expected the plan of {job.shown} in {folder}, found none")
        return plan, listing

    def _part(self, task: Task, stage: Path) -> Outcome:
        folder = self._folder(task.job)
        if self._fetched_part(folder, task.part, stage / "part"):  # finished by a run that was killed
            return Outcome(task)
        plan, listing = self._plan(task.job, stage)
        self._segment_part(task.job, plan, listing, task.part, stage)
        return Outcome(task)

    def _fetched_part(self, folder: str, number: int, to: Path) -> Path | None:
        """The label file of a chunk that is finished and whole, fetched if it is not on this machine."""
        from mpvss.batch.chunks import is_whole, part_files

        files = part_files(number)
        if not exists(below(folder, files[-1])):
            return None
        if not exists(below(folder, files[0])):  # a description without labels
            return None
        labels, _ = (fetch(below(folder, name), to, beat=self._beat) for name in files)
        return labels if is_whole(labels.parent, number) else None

    def _segment_part(self, job: Job, plan: "Plan", listing: Path, number: int, stage: Path) -> None:
        from mpvss.batch.chunks import Listing, part_files, segment_part

        source, folder = self._source(job), self._folder(job)
        segment_part(
            self.segmenter, source, plan, Listing.read(listing), number, stage,
            beat=self._beat,
        )  # fmt: skip
        for name in part_files(number):
            publish(stage / name, below(folder, name), beat=self._beat)

    def _join(self, task: Task, stage: Path) -> Outcome:
        from mpvss.batch.chunks import join

        job, folder = task.job, self._folder(task.job)
        output = self.setup.settings.output.replace(overwrite=True)
        source = self._source(job)
        plan, listing = self._plan(job, stage)

        def parts() -> Iterator[Path]:
            for number in range(plan.segments):
                labels = self._fetched_part(folder, number, stage / "part")
                if labels is None:
                    shutil.rmtree(stage / "part", ignore_errors=True)
                    self._segment_part(job, plan, listing, number, stage)
                    labels = self._fetched_part(folder, number, stage / "part")
                if labels is None:
                    raise DataError(f"expected chunk {number} of {job.shown} in {folder} to be whole, found damage")
                yield labels
                shutil.rmtree(stage / "part", ignore_errors=True)

        summary = join(self.segmenter, source, output, plan, parts(), stage, named=job.shown, on_frame=self._beat)
        for warning in plan.warnings:
            log.warning("%s: %s", job.shown, warning)
        return Outcome(task, summary=self._publish(job, summary))


def publish_all(staged: Mapping[str, Path], place: str, *, beat: Callable[[], None] = lambda: None) -> None:
    """Move the outputs of one video to their places; the description, without which the others say nothing, last.

    Args:
        staged: Finished files by kind.
        place: Where they go, but for their endings.
        beat: Called as they go.

    Raises:
        OutputError: One cannot be written.
    """
    remove(place + ENDINGS["meta"])  # and labels of an earlier run, which stay, do not pass the new one's checksums
    for kind in sorted(staged, key=lambda kind: kind == "meta"):
        publish(staged[kind], place + ENDINGS[kind], beat=beat)


def _owned_output(place: str) -> AbstractContextManager[None]:
    from mpvss._files import owned

    path = Path(place + ENDINGS["meta"]).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return owned(path)


def parts_folder(job: Job) -> str:
    """Name of the folder with the segments of a video: of one length, whatever the video is called."""
    return hashlib.sha256(job.name.encode("utf-8", "surrogateescape")).hexdigest()[:20]
