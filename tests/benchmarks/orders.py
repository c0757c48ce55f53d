"""The inside of a load process: it reads orders, one line of JSON each, and prints the figures of each.

Standard library only: the peers' environment imports it too. The process answers an order with three lines:
``begin`` and ``end``, when its window begins and ends, and the figures. At the first two, the process that
gave the order reads the servers' CPU time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, process_time, sleep
from typing import Any


class Stopwatch:
    """A warm-up, which is not counted, and a measured window.

    Args:
        warmup_s: Seconds before the window.
        seconds: Length of the window.
        checks: End the window after so many checks instead.
    """

    def __init__(self, warmup_s: float, seconds: float, checks: int | None = None) -> None:
        self._begin_at = perf_counter() + warmup_s
        self._seconds = seconds if checks is None else float("inf")
        self._enough = checks or float("inf")
        self._began: float | None = None
        self._ended: float | None = None
        self._cpu = 0.0
        self._latencies: list[float] = []
        self._checks = 0

    def done(self, checks: int, sent_at: float | None = None) -> bool:
        """Count *checks* answers to checks that were sent at *sent_at*; return whether to go on."""
        now = perf_counter()
        if self._ended is not None:
            return False
        if self._began is None:
            if now < self._begin_at:
                return True
            self._began = now
            self._cpu = process_time()
            say("begin")
            return True
        self._checks += checks
        if sent_at is not None:
            self._latencies.append(now - sent_at)
        if now - self._began < self._seconds and self._checks < self._enough:
            return True
        self._ended = now
        self._cpu = process_time() - self._cpu
        say("end")
        return False

    def figures(self) -> dict[str, Any]:
        """Return the figures of the window."""
        assert self._began is not None
        assert self._ended is not None
        figures = {"checks": self._checks, "seconds": self._ended - self._began, "load_cpu_s": self._cpu}
        return {**figures, **latency_figures(self._latencies)}


class Pace:
    """A steady pace.

    Args:
        rate: How often per second something is due; 0 if it is always due.
    """

    def __init__(self, rate: float) -> None:
        self._step_s = 1 / rate if rate else 0.0
        self._due = perf_counter()

    def wait(self) -> float:
        """Wait until something is due. Return when it was, or the present if that wait ended late.

        Latencies begin there: what is sent late because the answer before it came late has waited, too.
        """
        self._due += self._step_s
        left = self._due - perf_counter()
        if left <= 0:
            return self._due if self._step_s else perf_counter()
        sleep(left)
        return perf_counter()


def latency_figures(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles of latencies, in milliseconds; nothing if there are none."""
    ordered = sorted(seconds)
    names = (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))
    return {name: percentile(ordered, share) * 1e3 for name, share in names} if ordered else {}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least *share* (0 to 1) of *ordered* do not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def orders() -> Iterator[dict[str, Any]]:
    """Yield orders until standard input ends."""
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def carry_out_orders(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Carry out orders until standard input ends."""
    say("ready")
    for order in orders():
        say(json.dumps(run(order)))


def say(line: str) -> None:
    """Print one line for the process that gives the orders."""
    print(line, flush=True)
