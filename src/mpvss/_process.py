"""From one source to its files."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mpvss._validate import shown_address
from mpvss.engine.session import Session
from mpvss.engine.spill import Spill
from mpvss.errors import SourceError
from mpvss.options import OutputOptions
from mpvss.outputs.sinks import Sinks, output_paths
from mpvss.outputs.writer_thread import WriterThread
from mpvss.types import IMAGE_RATE, Comparison, Frame, RunSummary, Segmentation, Stop
from mpvss.video import Reader

if TYPE_CHECKING:
    from mpvss.segmenter import VideoSegmenter

log = logging.getLogger(__name__)

# Most results that wait to be written.
_WAITING = 4


class Process:
    """One run of ``VideoSegmenter.process``; see there for the arguments."""

    def __init__(
        self,
        segmenter: "VideoSegmenter",
        source: str | Path,
        out: Path,
        output: OutputOptions,
        named: str | None,
        on_frame: Callable[[Segmentation], None] | None,
        stop: Stop | None,
    ) -> None:
        """Begin nothing yet."""
        self._segmenter, self._source, self._out, self._output = segmenter, source, out, output
        self._named, self._on_frame, self._stop = named, on_frame, stop
        self._taken, self._stopped = 0, False
        self._last_pts = Fraction(0)
        self._others: deque[Segmentation] = deque()
        self._spill = Spill("results that wait to be compared")
        self._lost: list[SourceError] = []

    def run(self) -> RunSummary:
        """Segment all frames and write them; what came of a live source before it was lost is written as well."""
        began = time.perf_counter()
        segmenter, output = self._segmenter, self._output
        classes = segmenter.class_ids()  # or the error that one is unknown
        with segmenter.read(self._source) as reader:
            paths = output_paths(output.name or reader.info.name, self._out, output)
            direction = segmenter.options.direction or ("forward" if reader.info.live else "both")
            self._session = segmenter.session(direction=direction, key_batch=segmenter.key_batch(live=reader.info.live))
            self._alone = segmenter.per_frame().session(direction="forward")
            about = segmenter.describe(direction)
            about |= {} if self._named is None else {"source": self._named}
            first = next(reader)  # or the error that there is none, before any output is begun
            with ExitStack() as stack:
                stack.enter_context(self._session)
                stack.enter_context(self._alone)
                sinks = stack.enter_context(Sinks(reader, paths, output, segmenter.class_names, about, classes))
                self._write: Callable[..., None] = sinks.write
                if not output.compare:  # which times the two sides, and is not to be disturbed
                    self._write = partial(stack.enter_context(WriterThread(_WAITING)).call, sinks.write)
                self._segment(chain([first], self._until_lost(reader)))
                if self._stopped:  # sound goes on no longer than the frames
                    sinks.end = self._last_pts + 1 / (reader.info.frame_rate or IMAGE_RATE)
            self._warn(reader)
            summary = RunSummary(
                source=shown_address(str(self._source)),
                frames=sinks.frames,
                key_frames=sinks.key_frames,
                propagator=about["options"]["propagator"],
                damaged=reader.damaged,
                outputs=paths,
                seconds={
                    "read": reader.seconds,
                    **self._session.clock.seconds,
                    "write": sinks.seconds,
                    "total": time.perf_counter() - began,
                },
                compare=self._comparison(sinks) if output.compare else None,
                flows=self._session.flow_counts,
                stopped=self._stopped,
            )
            if self._lost:  # what came before is written
                raise self._lost[0]
            return summary

    def _segment(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._taken, self._last_pts = self._taken + 1, frame.pts
            if self._output.compare:
                other = self._alone.push(frame, copy=False)[0]
                self._others.append(replace(other, labels=self._spill.keep(other.labels)))
            self._deliver(self._session.push(frame, copy=False))
            if not self._others:
                self._spill.clear()
        self._deliver(self._session.finish())

    def _deliver(self, results: Iterable[Segmentation]) -> None:
        for result in results:
            other = self._others.popleft() if self._output.compare else None
            self._write(result, other, (self._seconds(self._alone), self._seconds(self._session)))
            if self._on_frame is not None:
                self._on_frame(result)

    def _seconds(self, session: Session) -> float:
        return session.clock.total / self._taken

    def _until_lost(self, reader: Reader) -> Iterator[Frame]:
        """The other frames; where a live source is lost, what came is to be written, and the error kept for later."""
        try:
            for frame in reader:
                if self._stop is not None and self._stop.is_set():
                    self._stopped = True
                    return
                yield frame
        except SourceError as error:
            if not reader.info.live:
                raise
            self._lost.append(error)

    def _warn(self, reader: Reader) -> None:
        for message in reader.warnings:
            log.warning("%s: %s", reader.info.source, message)
        if reader.damaged:
            log.warning("%s: %d frames or packets are damaged or lost", reader.info.source, reader.damaged)

    def _comparison(self, sinks: Sinks) -> Comparison:
        alone, ours = (None if math.isnan(value) else value for value in sinks.flicker)
        return Comparison(
            seconds_per_frame={"per_frame": self._seconds(self._alone), "propagated": self._seconds(self._session)},
            flicker={"per_frame": alone, "propagated": ours},
        )
