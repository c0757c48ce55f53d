"""What one run of one case gave, and what several runs say together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what was done in the measured window, and what it took.

    ``cpu_s`` and ``rss_mb`` are by part: gateway, worker, broker; a peer's is server. ``load_cpu_s`` is the
    generator's own CPU, ``None`` where that is a part of what is measured (the SDK). Latencies are ``None``
    where nobody waits.
    """

    checks: int
    seconds: float
    cpu_s: dict[str, float]
    rss_mb: dict[str, float]
    load_cpu_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    let_through: int = 0
    allowed: int | None = None
    denied: int | None = None
    """Of checks that were allowed and denied, where any were denied, ..."""
    denied_by_worker: int | None = None
    """... these by the worker: the rest of the denials came from the deny cache."""
    times_limit: float | None = None
    """What was asked, as a multiple of what the limit allows in as long a time."""
    idle_cpu_s: float | None = None
    """What the same processes took in as long a time without load."""

    @property
    def rate(self) -> float:
        """Checks a second."""
        return self.checks / self.seconds

    def cpu_us(self, part: str) -> float | None:
        """CPU microseconds a check of *part*; ``together``: of all servers."""
        if part == "together":
            return sum(self.cpu_s.values()) / self.checks * 1e6
        return self.cpu_s[part] / self.checks * 1e6 if part in self.cpu_s else None

    @property
    def rate_per_core(self) -> float:
        """Checks that one core of the gateway does in a second."""
        return self.checks / self.cpu_s["gateway"]

    @property
    def worker_share(self) -> float | None:
        """Percent of the denials that the worker gave."""
        return None if not self.denied else 100 * (self.denied_by_worker or 0) / self.denied

    @property
    def reached_worker(self) -> float | None:
        """Percent of the checks that the worker judged: those that the limit allows, and its denials."""
        if self.allowed is None or not self.denied:
            return None
        return 100 * (self.allowed + (self.denied_by_worker or 0)) / (self.allowed + self.denied)

    @property
    def following_us(self) -> float | None:
        """CPU microseconds a check of a standby, less what it takes when there is nothing to follow."""
        if self.idle_cpu_s is None:
            return None
        return (self.cpu_s["worker"] - self.idle_cpu_s) / self.checks * 1e6

    @property
    def load_us(self) -> float | None:
        """CPU microseconds a check of the load generator."""
        return None if self.load_cpu_s is None else self.load_cpu_s / self.checks * 1e6


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A case and its samples, one a round."""

    key: str
    stage: str
    what: str
    callers: int
    samples: list[Sample]

    def median(self, of: Callable[[Sample], float | None]) -> float | None:
        """The median of a figure over the rounds; ``None`` if there is none in any."""
        return median_of(of(sample) for sample in self.samples)

    @property
    def undecided(self) -> float:
        """Percent of the checks that were let through without a decision."""
        let_through = sum(sample.let_through for sample in self.samples)
        return 100 * let_through / (sum(sample.checks for sample in self.samples) or 1)

    def cpu_us(self, part: str = "together") -> float | None:
        """Median CPU microseconds a check."""
        return self.median(lambda sample: sample.cpu_us(part))


class Skipped(msgspec.Struct, frozen=True):
    """A case that could not be measured, and why."""

    key: str
    what: str
    why: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All of one `make bench`: what is written as JSON."""

    facts: dict[str, str]
    rounds: int
    seconds: float
    results: list[Result]
    skipped: list[Skipped]
    disk_bytes: dict[str, float]
    """Bytes on disk a client, by number of clients."""

    def find(self, key: str) -> Result | None:
        """The case of that key, if it was measured."""
        return next((result for result in self.results if result.key == key), None)


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are there.

    >>> median_of([3.0, None, 1.0, 2.0])
    2.0
    """
    there = [value for value in values if value is not None]
    return median(there) if there else None


def ratio(one: Result | None, other: Result | None, of: Callable[[Sample], float | None]) -> float | None:
    """How many times *other*'s figure *one*'s is: the median over rounds of the ratio within a round.

    Both were measured within seconds of each other in each round, so what slows the machine slows both.
    """
    if one is None or other is None:
        return None
    pairs = [(of(a), of(b)) for a, b in zip(one.samples, other.samples, strict=False)]
    return median_of(a / b if a is not None and b else None for a, b in pairs)
