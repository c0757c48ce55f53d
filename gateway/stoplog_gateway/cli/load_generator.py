"""A closed-loop load: each caller sends its next check as soon as the last one is answered."""

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

SendCheck = Callable[[str], Awaitable[Answer]]
"""Sends one check of a client id and returns its answer."""

CLIENTS: Final = 10_000
"""Enough that no client soon reaches the default limit: the deny cache would answer without a worker."""

MAX_CHECKS: Final = 1_000_000
"""Bounds memory (8 MB of latencies) and the log (200 MB at worst)."""


class LoadFailed(StoplogError):
    """A check got no valid answer; the text states what happened."""


@dataclass
class Tally:
    """The answers of all callers, and their latencies."""

    allowed: int = 0
    denied: int = 0
    degraded: int = 0
    seconds: float = 0.0
    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def checks(self) -> int:
        """The number of answered checks."""
        return len(self.latencies_ns)

    def add(self, answer: Answer, ns: int) -> None:
        """Add one answer that took *ns* nanoseconds."""
        self.latencies_ns.append(ns)
        if answer.degraded:
            self.degraded += 1
        elif answer.allowed:
            self.allowed += 1
        else:
            self.denied += 1

    def percentiles_ms(self, *percents: float) -> list[float]:
        """Return percentiles of the latency in milliseconds; 0 if there were no checks.

        >>> Tally(latencies_ns=array("Q", range(10**6, 101 * 10**6, 10**6))).percentiles_ms(50, 99, 99.9)
        [50.0, 99.0, 100.0]
        """
        ordered = sorted(self.latencies_ns) or [0]
        return [ordered[max(ceil(len(ordered) * p / 100), 1) - 1] / 1e6 for p in percents]


async def generate_load(
    callers: Sequence[SendCheck],
    tally: Tally,
    *,
    seconds: float,
    clients: int = CLIENTS,
    max_checks: int = MAX_CHECKS,
) -> None:
    """Let each of *callers* send one check after another.

    Args:
        callers: One function per caller.
        tally: Collects the answers; another task may read it meanwhile.
        seconds: Time in which new checks are sent.
        clients: Number of client ids that take turns: ``stoplog-bench-0`` and so on.
        max_checks: Number of checks after which no more are sent.

    Raises:
        LoadFailed: a check got no valid answer.
    """
    names = cycle([f"stoplog-bench-{number}" for number in range(clients)])
    started = perf_counter()
    sent = 0

    async def call(send_check: SendCheck) -> None:
        nonlocal sent
        while sent < max_checks and perf_counter() - started < seconds:
            sent += 1
            sent_ns = perf_counter_ns()
            answer = await send_check(next(names))
            tally.add(answer, perf_counter_ns() - sent_ns)

    try:
        async with asyncio.TaskGroup() as group:
            for send_check in callers:
                group.create_task(call(send_check))
    except ExceptionGroup as several:
        # Not `except*`: CPython 3.11 sometimes puts what it raises into a group again.
        raise several.exceptions[0] from None
    finally:
        tally.seconds = perf_counter() - started
