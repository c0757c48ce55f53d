"""Numbers, times and other people's texts, as a terminal shows them; the console's page.js is like it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from math import ceil


def rate(per_s: float) -> str:
    """A rate, in checks a second.

    >>> [rate(value) for value in (0, 0.25, 7.5, 1234.4)]
    ['0', '0.2', '7.5', '1,234']
    """
    return f"{per_s:,.0f}" if per_s == 0 or per_s >= 100 else f"{per_s:.1f}"


def latency(ms: float) -> str:
    """Milliseconds, to about three places.

    >>> [latency(value) for value in (0.707, 12.3, 1500)]
    ['0.71 ms', '12 ms', '1.5 s']
    """
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def duration(ms: float) -> str:
    """How long, to the two largest units.

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
    """A moment, ms since the Unix epoch, as date and time here."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def ranges(numbers: Iterable[int]) -> str:
    """Partitions.

    >>> ranges([9, 0, 1, 2, 7, 10])
    '0-2, 7, 9-10'
    """
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def through(partitions: list[int], let_through: int, uncounted: int) -> str:
    """What degraded mode lets through now, and has so far.

    >>> print(through([0, 1, 3], 5_120, 7))
    let through now: partition 0-1, 3; so far 5,120 checks, 7 of them in no count
    >>> print(through([], 5_120, 0))
    every partition answers again; let through so far 5,120 checks, all will count
    """
    where = f"now: partition {ranges(partitions)}; " if partitions else ""
    again = "" if partitions else "every partition answers again; "
    lost = f"{uncounted:,} of them in no count" if uncounted else "all will count"
    return f"{again}let through {where}so far {let_through:,} checks, {lost}"


def printable(text: str) -> str:
    r"""*text*, whoever chose it, with what a terminal would obey or hide written as an escape.

    >>> print(printable("zoë \x1b[2J [red]\u202e"))
    zoë \x1b[2J [red]\u202e
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
