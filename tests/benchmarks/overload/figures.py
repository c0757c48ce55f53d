"""What became of the requests of an attack, in figures."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from tests.benchmarks.cpu import rss_mb
from tests.benchmarks.overload.open_loop import Result

DECIDED: Final = "decided"
AT_ONCE: Final = "at once"
DEGRADED: Final = "degraded"
REFUSED_503: Final = "refused"
FAILED: Final = "failed"
OUTCOMES: Final = {
    DECIDED: "decided by the store",
    AT_ONCE: "failed open at once (`overload`)",
    DEGRADED: "failed open for another reason, such as the deadline",
    REFUSED_503: "refused with 503",
    FAILED: "without a response",
}
"""What becomes of a request. A list is decided if all its checks are."""

_SAMPLE_S: Final = 0.2


class Latency(msgspec.Struct, frozen=True):
    """Requests of one kind, and their latencies in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Flood(msgspec.Struct, frozen=True):
    """An attack.

    Attributes:
        seconds: From its first request to its last.
        sent: Requests.
        kinds: Requests and latencies by kind.
        checks: Checks decided by the store, and checks that failed open, as the responses say.
        errors: Texts of requests without a response, with their numbers.
        last_s: When the last request was sent, in seconds since the Unix epoch.
    """

    seconds: float
    sent: int
    kinds: dict[str, Latency]
    checks: tuple[int, int]
    errors: dict[str, int]
    last_s: float

    def rate(self, kind: str) -> float:
        """Return the requests per second of a *kind*."""
        return self.kinds[kind].count / self.seconds if kind in self.kinds else 0.0


def kind_of(result: Result) -> str:
    """Return what became of a request: a key of :data:`OUTCOMES`."""
    if result.status in (200, 429):
        if b'"degraded":true' not in result.body:
            return DECIDED
        return AT_ONCE if b'"reason":"overload"' in result.body else DEGRADED
    return REFUSED_503 if result.status == 503 else FAILED


def flood_of(results: Iterable[Result]) -> Flood:
    """Summarize *results*."""
    seconds: dict[str, list[float]] = {}
    errors: Counter[str] = Counter()
    decided = degraded = sent = 0
    first, last = float("inf"), 0.0
    for result in results:
        kind = kind_of(result)
        seconds.setdefault(kind, []).append(result.seconds)
        if kind == FAILED:
            errors[result.error or f"status {result.status}"] += 1
        without = result.body.count(b'"degraded":true')
        degraded += without
        decided += result.body.count(b'"allowed":') - without
        sent += 1
        first, last = min(first, result.at_s), max(last, result.at_s)
    kinds = {kind: latency_of(seconds[kind]) for kind in OUTCOMES if kind in seconds}
    return Flood(last - first, sent, kinds, (decided, degraded), dict(errors), last)


def latency_of(seconds: Sequence[float]) -> Latency:
    """Return the latencies of requests that took *seconds*.

    >>> latency_of([0.001] * 98 + [0.1, 0.2])
    Latency(count=100, p50_ms=1.0, p99_ms=100.0, max_ms=200.0)
    """
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3, 3)

    return Latency(len(ordered), at(0.5), at(0.98999), at(1))


class Memory:
    """Resident megabytes of a process, sampled while it is in use.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.samples: list[float] = []

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Take samples within ``with``."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(_SAMPLE_S):
                self.samples.append(rss_mb([self._pid]))

        self.samples.append(rss_mb([self._pid]))
        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.samples.append(rss_mb([self._pid]))
