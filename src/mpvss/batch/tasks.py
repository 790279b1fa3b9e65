"""What the driver and its workers say to each other, and what becomes of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mpvss.batch.settings import Settings
from mpvss.batch.sources import Job


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know before its first task.

    Attributes:
        settings: How to segment.
        out: Where results go: a directory or an address.
        work: Where listings and chunks of long videos go, which every worker must reach.
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
        kind: ``video`` segments it, or divides it if it is long; ``chunk`` segments one chunk; ``join`` puts the chunks
            together.
        chunk: Which chunk.
    """

    job: Job
    kind: Literal["video", "chunk", "join"] = "video"
    chunk: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: The task.
        seconds: How long it took.
        chunks: Number of chunks, where the video was divided.
        frames: Number of frames, where the video was divided.
        summary: frames, key_frames, damaged and outputs, where the video is finished.
        error: What went wrong.
        again: Whether another try may help.
        anew: Whether it has to begin with the whole video, because the chunks are of no use.
        died: Whether the worker is gone.
        preempted: Whether its machine was taken away, which is no failed try.
    """

    task: Task
    seconds: float = 0.0
    chunks: int | None = None
    frames: int | None = None
    summary: dict[str, Any] | None = None
    error: str | None = None
    again: bool = True
    anew: bool = False
    died: bool = False
    preempted: bool = False


@dataclass(frozen=True)
class BatchItem:
    """What became of one video of a batch. What is not known of its state is ``None``.

    Attributes:
        name: What its outputs are called.
        source: How it was named, without secrets.
        state: ``skipped`` was whole already.
        attempts: Tries, the last one included.
        seconds: What workers spent on it.
        frames: Frames written.
        key_frames: How many of them are key frames.
        damaged: Frames or packets lost.
        outputs: By kind: path below the output, bytes and sha256.
        error: Why it was given up.
    """

    name: str
    source: str
    state: Literal["done", "failed", "skipped"]
    attempts: int | None = None
    seconds: float | None = None
    frames: int | None = None
    key_frames: int | None = None
    damaged: int | None = None
    outputs: Mapping[str, Mapping[str, Any]] | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, of what is known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class BatchSummary:
    """What became of a batch.

    Attributes:
        done: Videos that were segmented.
        failed: Videos that were given up.
        skipped: Videos that were whole already.
        seconds: How long it took.
        manifest: Path of the manifest.
        items: The videos, by name.
    """

    done: int
    failed: int
    skipped: int
    seconds: float
    manifest: Path
    items: tuple[BatchItem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **vars(self), "manifest": str(self.manifest), "items": [item.to_dict() for item in self.items]
        }  # fmt: skip
