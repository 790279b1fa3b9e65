"""The chunks of one long video of a batch, where every worker reaches them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpvss.batch.chunks import FRAMES, PLAN, ChunkedVideo, Plan, chunk_files, is_whole
from mpvss.batch.listed import Listing
from mpvss.batch.sources import Job
from mpvss.batch.storage import Beat, below, exists, fetch, publish, remove
from mpvss.errors import DataError


class ChunkStore:
    """Plan, listing and finished chunks of a video.

    Args:
        work: The folder of the batch.
        job: The video.
        beat: Called as bytes come and go.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, work: str, job: Job, beat: Beat) -> None:
        self.folder = below(work, job.folder)
        self._job, self._beat = job, beat

    def clear(self) -> None:
        """Remove all of it."""
        remove(self.folder)

    def plan_of(self, identity: Mapping[str, Any], stage: Path) -> Plan | None:
        """The plan, if an earlier run made one from this; else everything is removed."""
        if exists(below(self.folder, PLAN)):
            plan = Plan.read(fetch(below(self.folder, PLAN), stage / "former").parent)
            if plan is not None and plan.identity == identity:
                return plan
        self.clear()
        return None

    def put_plan(self, video: ChunkedVideo, at_most: int, identity: Mapping[str, Any], stage: Path) -> Plan:
        """Divide a video, and keep how."""
        plan = video.list_frames(stage, at_most, identity)
        for name in (FRAMES, PLAN):
            publish(stage / name, below(self.folder, name), beat=self._beat)
        return plan

    def plan(self, stage: Path) -> tuple[Plan, Path]:
        """The plan, and the file of the listing.

        Raises:
            DataError: There is none.
        """
        plan = Plan.read(fetch(below(self.folder, PLAN), stage / "plan").parent)
        if plan is None:
            raise DataError(f"expected the plan of {self._job.shown} in {self.folder}, got none")
        return plan, fetch(below(self.folder, FRAMES), stage / "plan")

    def chunk(self, number: int, to: Path) -> Path | None:
        """The label file of a chunk that is finished and whole, fetched if it is not on this machine."""
        locations = [below(self.folder, name) for name in chunk_files(number)]
        if not all(exists(location) for location in reversed(locations)):  # the description is written last
            return None
        labels, _ = (fetch(location, to, beat=self._beat) for location in locations)
        return labels if is_whole(labels.parent, number) else None

    def put_chunk(self, video: ChunkedVideo, number: int, stage: Path) -> None:
        """Segment a chunk, and keep it."""
        plan, listing = self.plan(stage)
        video.segment(plan, Listing.read(listing), number, stage)
        for name in chunk_files(number):
            publish(stage / name, below(self.folder, name), beat=self._beat)
