"""Seconds spent in each stage of a run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

STAGES = ("key", "propagate", "decode")


class StageClock:
    """Measures stages as context managers: ``with clock("propagate"):`` around the work.

    Attributes:
        seconds: Wall-clock seconds by stage: running the segmentor, propagating, decoding.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    @contextmanager
    def shared(self, clocks: Sequence["StageClock"]) -> Iterator[None]:
        """Divide the time that the block takes by what these clocks measured in it, in several threads at once."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        measured = sum(clock.total for clock in clocks)
        for stage in self.seconds if measured else ():
            self.seconds[stage] += spent * sum(clock.seconds[stage] for clock in clocks) / measured

    @property
    def total(self) -> float:
        """All stages together, in seconds."""
        return sum(self.seconds.values())
