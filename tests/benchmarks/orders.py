"""Inside a load process: it is told what to do, a line of JSON at a time, and says how it went.

Standard library only: peers' environments import it too. It answers an order by three lines: ``begin``
and ``end`` when its window does, so that whoever gave the order can read the servers' CPU, then the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, process_time
from typing import Any


class Stopwatch:
    """A warm-up, which is not counted, and a measured window.

    Args:
        warmup_s: Seconds before the window.
        seconds: Its length.
        checks: End it after so many checks instead.
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

    def done(self, checks: int, asked: float | None = None) -> bool:
        """*checks* are answered that were asked at *asked*; returns whether to go on."""
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
        if asked is not None:
            self._latencies.append(now - asked)
        if now - self._began < self._seconds and self._checks < self._enough:
            return True
        self._ended = now
        self._cpu = process_time() - self._cpu
        say("end")
        return False

    def figures(self) -> dict[str, Any]:
        """What the window gave."""
        assert self._began is not None
        assert self._ended is not None
        figures = {"checks": self._checks, "seconds": self._ended - self._began, "load_cpu_s": self._cpu}
        if self._latencies:
            ordered = sorted(self._latencies)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)):
                figures[name] = percentile(ordered, share) * 1e3
        return figures


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least *share* (0 to 1) of *ordered* do not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def orders() -> Iterator[dict[str, Any]]:
    """Orders, until standard input is closed."""
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def serve(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Carry out orders until there are no more."""
    say("ready")
    for order in orders():
        say(json.dumps(run(order)))


def say(line: str) -> None:
    """One line to whoever gives the orders."""
    print(line, flush=True)
