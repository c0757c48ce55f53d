"""The figures of one run of a case, and medians and ratios of several runs. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one measured window.

    ``cpu_s`` and ``rss_mb`` are by part: gateway, worker and broker, or server for a peer. ``load_cpu_s`` is
    the load generator's own CPU time. It is ``None`` where the generator is a measured part (the SDK).
    Latencies are ``None`` where no caller waits.
    """

    checks: int
    seconds: float
    cpu_s: dict[str, float]
    rss_mb: dict[str, float]
    load_cpu_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    failed_open: int = msgspec.field(default=0, name="let_through")
    """Checks that failed open. The name in JSON is that of older runs."""
    allowed: int | None = None
    """Checks that were allowed; ``None`` where denials are not counted."""
    denied: int | None = None
    """Checks that were denied, by the worker or by the deny cache."""
    denied_by_worker: int | None = None
    """Checks that the worker denied."""
    times_limit: float | None = None
    """The checks as a multiple of those that the limit allows in the same time."""
    busiest_window: int | None = None
    """The most checks that were admitted within one window of the limit."""
    limit: int | None = None
    """Checks that the limit allows in a window."""
    records: int | None = None
    """Records that the gateway wrote to the log."""
    lease_hits: int | None = None
    """Checks that permits of a lease answered."""
    leases: int | None = None
    """Leases that were open at the end."""
    idle_cpu_s: float | None = None
    """CPU seconds of the same processes in the same time without load."""

    @property
    def rate(self) -> float:
        """Return the checks per second."""
        return self.checks / self.seconds

    def cpu_us(self, part: str) -> float | None:
        """Return the CPU microseconds per check of *part*, or of all servers if *part* is ``total``."""
        if part == "total":
            return sum(self.cpu_s.values()) / self.checks * 1e6
        return self.cpu_s[part] / self.checks * 1e6 if part in self.cpu_s else None

    @property
    def rate_per_core(self) -> float:
        """Return the checks per second of one core of the gateway."""
        return self.checks / self.cpu_s["gateway"]

    @property
    def worker_share(self) -> float | None:
        """Return the percentage of the denials that came from the worker."""
        return None if not self.denied else 100 * (self.denied_by_worker or 0) / self.denied

    @property
    def reached_worker(self) -> float | None:
        """Return the percentage of the checks that the worker judged: all allowed ones, and its denials."""
        if self.allowed is None or not self.denied or self.denied_by_worker is None:
            return None
        return 100 * (self.allowed + self.denied_by_worker) / (self.allowed + self.denied)

    @property
    def admitted_share(self) -> float | None:
        """Return the allowed checks relative to those that the limit allows in the same time."""
        if self.allowed is None or not self.times_limit:
            return None
        return self.allowed * self.times_limit / self.checks

    @property
    def busiest_share(self) -> float | None:
        """Return the most checks that were admitted within one window, relative to the limit."""
        if self.busiest_window is None or not self.limit:
            return None
        return self.busiest_window / self.limit

    @property
    def records_per_check(self) -> float | None:
        """Return how many records were written for each check."""
        return None if self.records is None else self.records / self.checks

    @property
    def following_us(self) -> float | None:
        """Return the CPU microseconds per check of a standby, less those of an idle standby."""
        if self.idle_cpu_s is None:
            return None
        return (self.cpu_s["worker"] - self.idle_cpu_s) / self.checks * 1e6

    @property
    def load_us(self) -> float | None:
        """Return the CPU microseconds per check of the load generator."""
        return None if self.load_cpu_s is None else self.load_cpu_s / self.checks * 1e6


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A case and its samples, one per round."""

    key: str
    stage: str
    what: str
    callers: int
    samples: list[Sample]

    def median(self, of: Callable[[Sample], float | None]) -> float | None:
        """Return the median of a figure over the rounds; ``None`` if no round has it."""
        return median_of(of(sample) for sample in self.samples)

    @property
    def failed_open(self) -> float:
        """Return the percentage of the checks that failed open."""
        failed_open = sum(sample.failed_open for sample in self.samples)
        return 100 * failed_open / (sum(sample.checks for sample in self.samples) or 1)

    def cpu_us(self, part: str = "total") -> float | None:
        """Return the median CPU microseconds per check."""
        return self.median(lambda sample: sample.cpu_us(part))


class Skipped(msgspec.Struct, frozen=True):
    """A case that could not be measured, and the reason."""

    key: str
    what: str
    why: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one `make bench`, as they are written as JSON."""

    facts: dict[str, str]
    rounds: int
    seconds: float
    results: list[Result]
    skipped: list[Skipped]
    disk_bytes: dict[str, float]
    """Bytes per client on disk, by number of clients."""

    def find(self, key: str) -> Result | None:
        """Return the result of the case *key*; ``None`` if it was not measured."""
        return next((result for result in self.results if result.key == key), None)


def median_of(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not ``None``.

    >>> median_of([3.0, None, 1.0, 2.0])
    2.0
    """
    known = [value for value in values if value is not None]
    return median(known) if known else None


def ratio(one: Result | None, other: Result | None, of: Callable[[Sample], float | None]) -> float | None:
    """Return the figure of *one* divided by that of *other*: the median of the ratios within each round.

    Both cases run within seconds of each other in each round, so a slow machine slows both.
    """
    if one is None or other is None:
        return None
    pairs = [(of(a), of(b)) for a, b in zip(one.samples, other.samples, strict=False)]
    return median_of(a / b if a is not None and b else None for a, b in pairs)
