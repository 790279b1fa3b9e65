"""Rounds of a benchmark: a session that is timed one interval at a time, on frames that are played back and forth."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat

from mpvss.engine.session import Session
from mpvss.engine.stage_clock import STAGES
from mpvss.errors import SourceError
from mpvss.segmenter import VideoSegmenter
from mpvss.types import IMAGE_RATE, Frame
from mpvss.video import read


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in rounds[0]}


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Intervals:
    """A session that is pushed one interval at a time, each ending with a key frame."""

    def __init__(self, session: Session, frames: Iterable[Frame], interval: int) -> None:
        self.session, self.frames, self.interval = session, iter(frames), interval
        self.session.push(next(self.frames))

    def time_one(self) -> dict[str, float]:
        """Return seconds of a key frame, of a frame between (only where there are), and per frame, also by stage."""
        stages = self.session.clock.seconds
        before = dict(stages)
        began = time.perf_counter()
        keys = [[result.is_key for result in self.session.push(frame)] for frame in islice(self.frames, self.interval)]
        total = time.perf_counter() - began
        if sum(map(sum, keys)) != 1 or not any(keys[-1]):
            raise SourceError(
                f"expected a key frame every {self.interval} frames, got another one: the video cuts to another "
                "scene within its first interval; choose another video"
            )
        number = self.interval
        spent = {stage: (stages[stage] - before[stage]) / number for stage in STAGES}
        key = spent["key"] * number + spent["decode"]
        seconds = {"ours_key": key, "ours_interval": total / number}
        if number > 1:
            seconds["ours_non_key"] = (total - key) / (number - 1)
        return seconds | spent


class OwnRounds:
    """Ours on every frame and at an interval, taking turns."""

    def __init__(self, ours: VideoSegmenter, frames: list[Frame], direction: str, interval: int) -> None:
        self._per_frame = Intervals(ours.per_frame().session(direction="forward"), back_and_forth(frames[:2]), 1)
        self._at_interval = Intervals(
            ours.session(direction="both" if direction == "both" else "forward"), back_and_forth(frames), interval
        )

    def time_one(self) -> dict[str, float]:
        """Return the seconds of one round, by the names of ``BenchSeconds``."""
        own = self._per_frame.time_one()
        alone = {"ours_frame": own["ours_interval"], "ours_forward": own["key"], "ours_decode": own["decode"]}
        return alone | self._at_interval.time_one()


def first_frames(source: str, count: int) -> list[Frame]:
    """Return the first frames of a source.

    Raises:
        SourceError: It has fewer, or cannot be read.
    """
    with read(source, vectors=True) as reader:
        frames = list(islice(reader, count))
    if len(frames) < count:
        raise SourceError(
            f"{source}: expected at least {count} frames, one interval and the next key frame, got {len(frames)}; "
            "choose a longer video or a smaller interval"
        )
    return frames


def back_and_forth(frames: list[Frame]) -> Iterator[Frame]:
    """Play frames forward and backward, again and again: no cut, and a key frame is always one of the two ends."""
    turns = chain.from_iterable(repeat(frames[1:] + frames[-2::-1]))
    for number, frame in enumerate(chain(frames[:1], turns)):
        yield replace(frame, pts=number / IMAGE_RATE)
