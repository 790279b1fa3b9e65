from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from mpvss.video.clock import Clock

MS = Fraction(1, 1000)
GOOD = [40 * i for i in range(40)]


def times(stamps, clock=None, **options):
    """What a clock makes of presentation times in milliseconds: its times in milliseconds, and the clock."""
    clock = clock or Clock(MS, Fraction(25), **options)
    settled = [pair for number, pts in enumerate(stamps) for pair in clock.push(pts, number)]
    settled += clock.finish()
    assert [number for _, number in settled] == list(range(len(stamps)))  # nothing is lost or changes places
    return [time * 1000 for time, _ in settled], clock


@pytest.mark.parametrize("start", [0, 5000, -80, 72_000_000])
def test_times_count_from_the_first_frame(start):
    result, clock = times([start + pts for pts in GOOD])
    assert result == GOOD
    assert clock.start == start * MS
    assert clock.warnings == []


@pytest.mark.parametrize("value", [-99_960, 0, 99_960, 10**12, None])
@pytest.mark.parametrize("position", [0, 1, 7, 20, 36])
@pytest.mark.parametrize("count", [1, 2])
def test_wrong_times_shift_nothing_after_them(value, position, count):
    if value == 0:
        position = max(position, 7)  # near the beginning, zero is no wrong time
    wrong = GOOD.copy()
    wrong[position : position + count] = [None if value is None else value + 40 * i for i in range(count)]
    result, clock = times(wrong)
    assert [time + 1000 * clock.start for time in result] == GOOD
    assert clock.replaced == (0 if value is None else count)


def test_any_one_wrong_time_leaves_all_others_as_they_are():
    random = np.random.default_rng(0)
    for _ in range(300):
        position, wrong = int(random.integers(2, 36)), GOOD.copy()
        wrong[position] = int(random.integers(-2000, 4000))
        result, _ = times(wrong)
        assert result[:position] + result[position + 1 :] == GOOD[:position] + GOOD[position + 1 :], wrong[position]
        assert result[position - 1] < result[position] < result[position + 1]


def test_every_other_time_is_wrong():
    assert times([pts + 100_000 * (i % 2) for i, pts in enumerate(GOOD[:-1])])[0] == GOOD[:-1]


@pytest.mark.parametrize("step", [40, 1000])
@pytest.mark.parametrize("again", [0, -3_600_000, 440])
def test_a_clock_that_starts_anew_goes_on_after_the_last_frame(step, again):
    first, second = [step * i for i in range(25)], [step * i + again for i in range(25)]
    result, clock = times(first + second)
    assert result == [step * i for i in range(50)]
    assert clock.warnings == ["timestamps start anew in the middle, once: counted on from there"]


def test_a_clock_that_starts_anew_again_and_again():
    result, clock = times(GOOD * 4)
    assert result == [40 * i for i in range(160)]
    assert len(clock.epochs) == 4


def test_ten_wrong_times_are_taken_for_a_new_start_and_the_old_clock_is_found_again():
    wrong = GOOD.copy()
    wrong[10:20] = [40 * i for i in range(10)]
    assert times(wrong)[0] == GOOD


def test_equal_times_are_spread_over_what_is_there():
    assert times([0, 40, 40, 120, 160, 200])[0] == [0, 40, 80, 120, 160, 200]
    assert times([0, 40, 80, 80])[0] == [0, 40, 80, 120]


def test_times_that_decrease_all_the_way():
    assert times([2000 - 40 * i for i in range(30)])[0] == [40 * i for i in range(30)]


def test_no_times_at_all():
    assert times([None] * 20)[0] == [40 * i for i in range(20)]
    assert times([0] * 20)[0] == [40 * i for i in range(20)]


@pytest.mark.parametrize(
    "stamps",
    [[0, 5000, 10000, 20000, 24000], [0, 33, 67, 100, 200, 201, 500], [0, 40, 80, 3_600_000, 3_600_040], [7], [0, 9]],
)
def test_variable_rates_and_gaps_are_kept(stamps):
    result, clock = times(stamps)
    assert result == [pts - stamps[0] for pts in stamps]
    assert clock.warnings == []


def test_random_times_come_out_increasing():
    random = np.random.default_rng(1)
    for _ in range(200):
        stamps = [None if pts < 5 else int(pts) for pts in random.integers(0, 400, 30)]
        result, _ = times(stamps)
        assert result[0] == 0
        assert all(before < after for before, after in pairwise(result)), stamps


def test_a_broadcast_clock_that_jumps_forward_starts_anew():
    jumping = GOOD + [72_000_000 + pts for pts in GOOD]
    assert times(jumping, jumps=True)[0] == [40 * i for i in range(80)]
    assert times(jumping)[0] == jumping
    slides = [0, 15_000, 30_000, 45_000, 60_000]
    assert times(slides, jumps=True)[0] == slides


def test_frames_that_fit_do_not_wait_and_few_wait_otherwise():
    clock = Clock(MS, Fraction(25))
    waiting = most = 0
    for pts in [*GOOD, 10**9, *GOOD]:
        waiting += 1 - len(clock.push(pts, None))
        most = max(most, waiting)
        assert pts == 10**9 or pts < 320 or waiting < 8
    assert most < 9
    live = Clock(MS, live=True)
    assert [[time for time, _ in live.push(pts, None)] for pts in (10**9, 10**9 + 60_000)] == [[0], [60]]


# --- the sound of the pictures


def sound(pictures, stamps, **options):
    leader = times(pictures)[1]
    clock = leader.follower(MS, Fraction(50))
    return times(stamps, clock, **options)[0]


def test_sound_has_the_zero_of_the_pictures():
    assert sound([5000 + pts for pts in GOOD], [4980 + 20 * i for i in range(80)]) == [20 * i - 20 for i in range(80)]


def test_sound_starts_anew_where_the_pictures_do():
    # The sound of the first part ends early; that of the second belongs to its pictures all the same.
    stamps = [20 * i for i in range(30)] + [20 * i for i in range(80)]
    assert sound(GOOD + GOOD, stamps) == [20 * i for i in range(30)] + [1600 + 20 * i for i in range(80)]


def test_a_wrong_time_of_the_pictures_does_not_move_the_sound():
    wrong = GOOD.copy()
    wrong[20] = 10**6
    assert sound(wrong, [20 * i for i in range(80)]) == [20 * i for i in range(80)]


def test_a_wrong_time_of_the_sound_is_put_right():
    stamps = [20 * i for i in range(80)]
    stamps[33] = 10**7
    assert sound(GOOD, stamps) == [20 * i for i in range(80)]


def test_sound_waits_for_pictures_that_have_not_come_to_the_new_start():
    leader = Clock(MS, Fraction(25))
    for pts in GOOD:
        leader.push(pts, None)
    clock = leader.follower(MS, Fraction(50))
    settled = [time for i in [*range(30), *range(20)] for time, _ in clock.push(20 * i, None)]
    assert clock.waiting
    assert settled == [20 * i * MS for i in range(30)]
    for pts in GOOD:
        leader.push(pts, None)
    settled = [time for time, _ in clock.push(400, None)]
    assert not clock.waiting
    assert settled == [(1600 + 20 * i) * MS for i in range(21)]


def test_sound_that_starts_anew_alone_goes_on_after_itself():
    assert sound(GOOD, [20 * i for i in range(30)] * 2) == [20 * i for i in range(60)]


def test_misuse():
    with pytest.raises(ValueError, match="time_base must be above 0 seconds, got 0"):
        Clock(Fraction(0))
    with pytest.raises(ValueError, match="before the first image"):
        Clock(MS).follower(MS)
