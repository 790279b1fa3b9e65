"""From the presentation times that a file gives to times that can be relied on: from zero, exact, strictly increasing.

A wrong time and a clock that starts anew look the same at first. What follows tells them apart, so a few times are
looked at before one that does not fit is judged. Times that fit are given back at once.
"""

from collections import deque
from fractions import Fraction
from itertools import accumulate
from statistics import median_low
from typing import Any, Generic, TypeVar

Payload = TypeVar("Payload")

# Most frames that wait while one is judged. Up to four wrong times in a row are known from a clock that starts anew.
_AHEAD = 8
# What it costs to take a time for wrong, also one that is where it should be by the times before, to assume a gap,
# and to assume a new start.
_WRONG, _WRONG_IN_PLACE, _GAP, _ANEW = 2, 4, 1, 9
# At the end of a source less is needed for it: there is nothing that could be shifted.
_ANEW_AT_END = 4
# The first frame of all is not assumed to stand so far before the second.
_GAP_AT_BEGIN = 5
# A step of so many usual ones is no gap.
_USUAL = Fraction(3, 2)
_STEPS = 9
# FFmpeg's own limit for a forward jump in a broadcast recording.
_LONGEST_JUMP_SECONDS = 10


class Clock(Generic[Payload]):
    """Turns the presentation times of one stream into times from its first frame.

    Args:
        time_base: Of the times, in seconds.
        rate: Frames per second, where known, for frames without a time of their own.
        jumps: Whether a jump forward by more than ten seconds is a new start as well, as in broadcast recordings.
        live: Whether a jump forward is believed at once, for sources whose next frame may be long in coming.
        start: Where zero is, in ticks; ``None`` for the first frame.
        leader: The clock of the images, for sound: zero and new starts are the leader's.

    Attributes:
        start: The source's time of the first frame in seconds; ``None`` before it is known.
        epochs: Each start of the clock so far: the source's time, and what is added to the source's times from there,
            in seconds.
        replaced: Number of wrong times so far.
        finished: Whether all of the stream has been seen.
        waiting: Whether a new start waits for the leader to come to it.
    """

    def __init__(
        self,
        time_base: Fraction,
        rate: Fraction | None = None,
        *,
        jumps: bool = False,
        live: bool = False,
        start: int | None = None,
        leader: "Clock[Any] | None" = None,
    ) -> None:
        if time_base <= 0:
            raise ValueError(f"time_base must be above 0 seconds, got {time_base}")
        self._time_base = time_base
        self._first_step = max(1, round(1 / ((rate or Fraction(25)) * time_base)))
        self._steps: deque[int] = deque(maxlen=_STEPS)
        self._longest = round(_LONGEST_JUMP_SECONDS / time_base)
        self._jumps = jumps
        self._live = live
        self._leader = leader
        self._epoch = 0
        self._zero = start
        self._offset = 0
        self._former: int | None = None
        self._last: int | None = None
        self._pending: deque[tuple[int | None, Payload]] = deque()
        self.start: Fraction | None = None if start is None else start * time_base
        self.epochs: list[tuple[Fraction, Fraction]] = []
        self.replaced = 0
        self.finished = False
        self.waiting = False
        if start is not None:
            self.epochs.append((start * time_base, -start * time_base))

    def follower(self, time_base: Fraction, rate: Fraction | None = None) -> "Clock[Any]":
        """The clock of the sound that belongs to these images; ask after the first image.

        Sound that goes on for longer than its images overlaps what follows a new start: its times go back there, and
        what comes before the end of the sound so far is to be left out.

        Args:
            time_base: Of the sound's times, in seconds.
            rate: Packets per second, where known.
        """
        if self.start is None:
            raise ValueError("the sound's clock was asked for before the first image")
        return Clock(
            time_base, rate, jumps=self._jumps, start=round(self.start / time_base), leader=self
        )  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        """What was put right so far, one line each."""
        lines = []
        if len(self.epochs) > 1:
            anew = len(self.epochs) - 1
            lines.append(f"timestamps start anew in the middle, {_times(anew)}: counted on from there")
        if self.replaced:
            lines.append(
                f"timestamps that do not fit their neighbours: {self.replaced}, replaced by times between them"
            )
        return lines

    def push(self, pts: int | None, payload: Payload) -> list[tuple[Fraction, Payload]]:
        """Take the next frame in display order, and return the frames that are settled, with their times in seconds.

        Args:
            pts: Its presentation time in ticks; ``None`` where it has none.
            payload: The frame, or whatever belongs to the time.
        """
        self._pending.append((pts, payload))
        return self._settle(final=False)

    def finish(self) -> list[tuple[Fraction, Payload]]:
        """Return the frames that were still waiting; nothing follows them."""
        self.finished = True
        return self.settle()

    def settle(self) -> list[tuple[Fraction, Payload]]:
        """Return the frames that can be settled by now; needed only after ``waiting``."""
        return self._settle(final=self.finished)

    @property
    def _step(self) -> int:
        return median_low(self._steps) if len(self._steps) > 2 else self._first_step

    def _settle(self, *, final: bool) -> list[tuple[Fraction, Payload]]:
        settled: list[tuple[Fraction, Payload]] = []
        self.waiting = False
        while self._pending and not self.waiting:
            pts = self._pending[0][0]
            if pts is not None and self._fits(pts):
                settled += self._emit(0, pts + self._offset)
            elif final or len(self._pending) >= _AHEAD:
                settled += self._judge(final=final)
            else:
                break
        return settled

    def _fits(self, pts: int) -> bool:
        """Whether a time follows the last one as usual, so that nothing needs to be judged."""
        if self._last is None:
            return self._live
        step = pts + self._offset - self._last
        return step > 0 and (self._live or step <= self._step * _USUAL)

    def _judge(self, *, final: bool) -> list[tuple[Fraction, Payload]]:
        """Settle the frames up to the first whose time is right, or one of them if there is none."""
        kept = self._first_kept(_ANEW_AT_END if final else _ANEW)
        if kept is None:
            return self._emit(0, 0 if self._last is None else self._last + self._step)
        pts = self._pending[kept][0]
        assert pts is not None
        if self._last is None:
            return self._emit(kept, pts + self._offset)
        following = [(n, later) for n, (later, _) in enumerate(self._pending) if later is not None and n > kept]
        cost = self._cost(self._last - self._offset, pts, kept, _ANEW, following[:1])
        if cost == _ANEW and not self._begin_anew(pts, kept):
            self.waiting = True
            return []
        if cost == _GAP and self._former is not None and 0 < pts + self._former - self._last <= _AHEAD * self._step:
            self._offset, self._former = self._former, None  # what looked like a new start was many wrong times
            self._note_epoch(pts)
        return self._emit(kept, pts + self._offset)

    def _first_kept(self, anew: int) -> int | None:
        """The first waiting frame whose time is kept, where the least has to be assumed to explain all of them."""
        known = [(position, pts) for position, (pts, _) in enumerate(self._pending) if pts is not None]
        total = len(known)
        # What it costs to take the first so many for wrong; and, for each kept time, what follows it.
        wrong = [0, *accumulate(_WRONG_IN_PLACE if self._in_place(*one) else _WRONG for one in known)]
        cost_after = [0] * total
        for a in reversed(range(total)):
            costs = [wrong[total] - wrong[a + 1]]
            for b in range(a + 1, total):
                way = self._cost(known[a][1], known[b][1], known[b][0] - known[a][0] - 1, anew, known[b + 1 : b + 2])
                if self._last is None and way == _GAP and self._is_jump(known[a][1], known[b][1], known[b + 1 : b + 2]):
                    way = _GAP_AT_BEGIN
                costs.append(wrong[b] - wrong[a + 1] + way + cost_after[b])
            cost_after[a] = min(costs)
        best: int | None = None
        best_cost, best_way = wrong[total], anew
        for b, (position, pts) in enumerate(known):
            way = 0
            if self._last is not None:
                way = self._cost(self._last - self._offset, pts, position, anew, known[b + 1 : b + 2])
            cost = wrong[b] + way + cost_after[b]
            if cost < best_cost or (cost == best_cost and way < anew == best_way):
                best, best_cost, best_way = position, cost, way
        return best

    def _in_place(self, position: int, pts: int) -> bool:
        """Whether a waiting frame's time is where it should be if all frames since the last one took a usual step."""
        if self._last is None:
            return False
        return 2 * abs(pts + self._offset - self._last - (position + 1) * self._step) < self._step

    def _cost(self, before: int, after: int, between: int, anew: int, following: list[tuple[int, int]]) -> int:
        """What it costs to assume that one time follows another with so many frames between them."""
        step = after - before
        if step <= 0:
            return anew
        if step <= (between + 1) * self._step * _USUAL:
            return 0
        return anew if self._jumps and self._is_jump(before, after, following) else _GAP

    def _is_jump(self, before: int, after: int, following: list[tuple[int, int]]) -> bool:
        """Whether a gap is too long for one: in a slide show the image before or after it stays for long as well."""
        slow = max(self._steps, default=0)
        if following:
            slow = max(slow, following[0][1] - after)
        return after - before > max(self._longest, 10 * slow)

    def _begin_anew(self, pts: int, between: int) -> bool:
        """Go on from the last frame with a clock that starts anew; whether it is known how."""
        assert self._last is not None
        offset = self._last + (between + 1) * self._step - pts
        if self._leader is not None:
            later = self._leader.epochs[self._epoch + 1 :]
            if later:
                time = pts * self._time_base
                number = min(range(len(later)), key=lambda n: abs(later[n][0] - time))
                self._epoch += number + 1
                offset = round(later[number][1] / self._time_base) + (self._zero or 0)
            elif not self._leader.finished:
                return False
        self._former, self._offset = self._offset, offset
        self._note_epoch(pts)
        return True

    def _note_epoch(self, pts: int) -> None:
        self.epochs.append((pts * self._time_base, (self._offset - (self._zero or 0)) * self._time_base))

    def _emit(self, kept: int, ticks: int) -> list[tuple[Fraction, Payload]]:
        """Give the frame at this position its time, and those before it times between."""
        if self._last is None:
            times = [ticks - (kept - position) * self._step for position in range(kept + 1)]
        else:
            if self._leader is None:
                ticks = max(ticks, self._last + kept + 1)
            width = ticks - self._last
            times = [self._last + width * (position + 1) // (kept + 1) for position in range(kept + 1)]
            if width > 0:
                self._steps.append(max(1, width // (kept + 1)))
        if self._zero is None:
            self._zero = times[0]
            self.start = times[0] * self._time_base
            self.epochs.append((self.start, -self.start))
        self._last = ticks
        settled = []
        for time in times:
            pts, payload = self._pending.popleft()
            self.replaced += pts is not None and pts + self._offset != time
            settled.append(((time - self._zero) * self._time_base, payload))
        return settled


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
