"""Numbers, times and untrusted texts for a terminal; the console formats them alike (page.js)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from math import ceil


def rate(per_s: float) -> str:
    """Return a rate in checks per second.

    >>> [rate(value) for value in (0, 0.25, 7.5, 1234.4)]
    ['0', '0.2', '7.5', '1,234']
    """
    return f"{per_s:,.0f}" if per_s == 0 or per_s >= 100 else f"{per_s:.1f}"


def latency(ms: float) -> str:
    """Return a latency to about three digits.

    >>> [latency(value) for value in (0.707, 12.3, 1500)]
    ['0.71 ms', '12 ms', '1.5 s']
    """
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def duration(ms: float) -> str:
    """Return a duration in its two largest units.

    >>> [duration(value) for value in (0, 43_000, 303_000, 7_500_000, 86_400_000 * 3)]
    ['0 s', '43 s', '5 min 3 s', '2 h 5 min', '3 d']
    """
    seconds = max(0, ceil(ms / 1000))
    units = (
        (seconds // 86_400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "min"),
        (seconds % 60, "s"),
    )
    first = next((place for place, (number, _) in enumerate(units) if number), len(units) - 1)
    several = [f"{number} {unit}" for number, unit in units[first : first + 2] if number]
    return " ".join(several) or "0 s"


def moment(ms: float) -> str:
    """Return the local date and time of *ms* milliseconds since the Unix epoch."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def ranges(numbers: Iterable[int]) -> str:
    """Return partition numbers as ranges.

    >>> ranges([9, 0, 1, 2, 7, 10])
    '0-2, 7, 9-10'
    """
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def failed_open(partitions: list[int], checks: int, uncounted: int, closed: int) -> str:
    """Return which partitions fail open now, and how many checks have failed open so far.

    >>> print(failed_open([0, 1, 3], 5_120, 7, 0))
    failing open: partitions 0-1, 3; so far 5,120 checks, 7 of them never counted
    >>> print(failed_open([], 120, 0, 3))
    every partition answers again; failed open so far: 120 checks, all of them counted later; 3 failed closed
    """
    lost = f"{uncounted:,} of them never counted" if uncounted else "all of them counted later"
    if closed:
        lost = f"{lost}; {closed:,} failed closed"
    if partitions:
        return f"failing open: partitions {ranges(partitions)}; so far {checks:,} checks, {lost}"
    return f"every partition answers again; failed open so far: {checks:,} checks, {lost}"


def printable(text: str) -> str:
    r"""Return untrusted *text* with all that a terminal would obey or hide written as escapes.

    >>> print(printable("zoë \x1b[2J [red]\u202e"))
    zoë \x1b[2J [red]\u202e
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
