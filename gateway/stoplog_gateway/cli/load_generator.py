"""A short load of checks, as so many callers put it that each asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import ceil
from time import perf_counter, perf_counter_ns
from typing import Final

from stoplog.client.answer import Answer
from stoplog.errors import StoplogError

Ask = Callable[[str], Awaitable[Answer]]
"""Asks for one check of a client."""

CLIENTS: Final = 10_000
"""So many that none reaches the built-in default limit soon: to be measured is asking, not the deny cache."""

MOST: Final = 1_000_000
"""Checks at most: 8 MB of latencies here, and 200 MB of log at worst."""


class LoadFailed(StoplogError):
    """A caller was not answered; the text says what it got."""


@dataclass
class Tally:
    """What the callers were answered, and how long that took."""

    allowed: int = 0
    denied: int = 0
    degraded: int = 0
    seconds: float = 0.0
    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def checks(self) -> int:
        """All that were answered."""
        return len(self.latencies_ns)

    def note(self, answer: Answer, ns: int) -> None:
        """Add one answer, which took *ns* nanoseconds."""
        self.latencies_ns.append(ns)
        if answer.degraded:
            self.degraded += 1
        elif answer.allowed:
            self.allowed += 1
        else:
            self.denied += 1

    def percentiles_ms(self, *percents: float) -> list[float]:
        """The latencies, in milliseconds, that so many percent of the checks did not exceed; 0 without any.

        >>> Tally(latencies_ns=array("Q", range(10**6, 101 * 10**6, 10**6))).percentiles_ms(50, 99, 99.9)
        [50.0, 99.0, 100.0]
        """
        ordered = sorted(self.latencies_ns) or [0]
        return [ordered[max(ceil(len(ordered) * p / 100), 1) - 1] / 1e6 for p in percents]


async def put_load(
    callers: Sequence[Ask], tally: Tally, *, seconds: float, clients: int = CLIENTS, most: int = MOST
) -> None:
    """Have every one of *callers* ask for one check after the other.

    Args:
        callers: How each of them asks.
        tally: Takes the answers; may be looked at meanwhile.
        seconds: How long new checks are begun.
        clients: So many take turns, ``stoplog-bench-0`` and on.
        most: Checks that are begun at most.

    Raises:
        LoadFailed: a caller was not answered.
    """
    names = cycle([f"stoplog-bench-{number}" for number in range(clients)])
    began = perf_counter()
    begun = 0

    async def call(ask: Ask) -> None:
        nonlocal begun
        while begun < most and perf_counter() - began < seconds:
            begun += 1
            asked = perf_counter_ns()
            answer = await ask(next(names))
            tally.note(answer, perf_counter_ns() - asked)

    try:
        async with asyncio.TaskGroup() as group:
            for ask in callers:
                group.create_task(call(ask))
    except ExceptionGroup as several:
        # Raised from an `except*`, it may be in a group again (CPython 3.11, now and then).
        raise several.exceptions[0] from None
    finally:
        tally.seconds = perf_counter() - began
