"""Times and frame rates as a person writes them, as exact rationals."""

import re
from contextlib import suppress
from fractions import Fraction

from mpvss._validate import shown

Seconds = Fraction | float | int | str
# Seconds as a decimal or a ratio, after minutes and hours; with a bound on digits, as millions of them take hours.
_TIME = re.compile(r"(([0-9]{1,6}:)?[0-9]{1,6}:)?([0-9]{1,12}(\.[0-9]{0,18})?|\.[0-9]{1,18}|[0-9]{1,12}/[0-9]{1,12})")
_LONGEST_SECONDS = 10**9


def parse_time(value: Seconds) -> Fraction:
    """Seconds as an exact rational.

    Args:
        value: A number of seconds, or text: seconds ("12.5"), minutes ("1:02.5") or hours ("1:00:02.5").

    Raises:
        ValueError: The text is no time, or has 60 or more after a colon; the time is negative, or beyond 30 years.
    """
    text = value.strip() if isinstance(value, str) else None
    parts: list[Fraction] = []
    with suppress(ValueError, ZeroDivisionError, OverflowError):
        if text is None:
            parts = [Fraction(value)]
        elif _TIME.fullmatch(text):
            parts = [Fraction(part) for part in text.split(":")]
    seconds = sum((part * 60**power for power, part in enumerate(reversed(parts))), Fraction(0))
    if not parts or not 0 <= seconds <= _LONGEST_SECONDS or any(part >= 60 for part in parts[1:]):
        raise ValueError(
            "expected a time in seconds such as 12.5 or 1:02.5, with less than 60 after a colon, got " + shown(value)
        )
    return seconds


def parse_rate(value: Seconds | None) -> Fraction | None:
    """Frames per second as an exact rational; a decimal within 0.01 % of an NTSC rate is that rate.

    Args:
        value: A number, or text such as "25", "29.97" or "30000/1001"; ``None`` stays.

    Raises:
        ValueError: It is no rate, or not between 0.001 and 1000.
    """
    if value is None:
        return None
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        rate = Fraction(0)
    if not Fraction(1, 1000) <= rate <= 1000:
        raise ValueError(f"expected a frame rate such as 25, 29.97 or 30000/1001, up to 1000, got {value!r}")
    ntsc = Fraction(round(rate * Fraction(1001, 1000)) * 1000, 1001)
    return ntsc if rate.denominator > 1 and ntsc and abs(rate / ntsc - 1) < Fraction(1, 10_000) else rate
