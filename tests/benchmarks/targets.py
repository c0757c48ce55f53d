"""What the figures were meant to be, and ratios to what was measured beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tests.benchmarks.samples import Result, Run, Sample, ratio

_Figure = Callable[[Sample], float | None]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A bound for one figure.

    Attributes:
        key: The case whose row shows it.
        what: The figure, with its unit.
        bound: What it may be at most, or must be at least.
        at_least: Which of these.
        measured: ``None``: it was not.
    """

    key: str
    what: str
    bound: float
    at_least: bool = False
    measured: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is within its bound; ``None``: not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        measured = "" if self.measured is None else f"{short(self.measured)}, "
        return f"{self.what} {sign} {short(self.bound)}: {measured}{verdict}"


def short(value: float) -> str:
    """Three digits that matter, no more.

    >>> short(0.1234), short(12.34), short(98765.4)
    ('0.123', '12.3', '98,765')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def targets(run: Run) -> list[Target]:
    """All of them, with what *run* measured."""
    found = [_of(run, key, what, bound, figure) for key, what, bound, figure in _AT_MOST]
    found += [_of(run, key, what, bound, figure, at_least=True) for key, what, bound, figure in _AT_LEAST]
    for key, other, what, bound, figure in _RATIOS:
        value = ratio(run.find(key), run.find(other), figure)
        found.append(Target(key=key, what=what, bound=bound, measured=value))
    for clients, size in run.disk_bytes.items():
        key = f"clients-{clients}-uniform"
        found.append(Target(key=key, what="bytes a client on disk", bound=40, measured=size))
    found.append(
        Target(key="workers-2", what="x 1 worker's CPU, less standbys", bound=1.1, measured=_flat(run))
    )
    return found


def against(run: Run, result: Result) -> list[str]:
    """What *result* costs in all, as a multiple of each peer's cost at as many callers."""
    way, _, callers = result.key.partition("-")
    if way != "http" or not callers.isdecimal():
        return []
    names = {"limits": "limits + FastAPI + Redis", "throttlecrab": "throttlecrab"}
    found = ((name, ratio(result, run.find(f"{peer}-{callers}"), _together)) for peer, name in names.items())
    return [f"CPU {short(times)} x {name}" for name, times in found if times is not None]


def _of(run: Run, key: str, what: str, bound: float, figure: _Figure, *, at_least: bool = False) -> Target:
    result = run.find(key)
    value = None if result is None else result.median(figure)
    return Target(key=key, what=what, bound=bound, at_least=at_least, measured=value)


def _flat(run: Run) -> float | None:
    """Worker CPU a check of two workers, less what their standbys took, over that of one."""
    one, two, standby = (run.find(key) for key in ("workers-1", "workers-2", "standby"))
    if one is None or two is None or standby is None:
        return None
    figures = [result.cpu_us("worker") for result in (one, two, standby)]
    return (figures[1] - figures[2]) / figures[0] if None not in figures else None  # type: ignore[operator]


def _together(sample: Sample) -> float | None:
    return sample.cpu_us("together")


def _gateway(sample: Sample) -> float | None:
    return sample.cpu_us("gateway")


def _worker(sample: Sample) -> float | None:
    return sample.cpu_us("worker")


def _own(sample: Sample) -> float | None:
    """The worker's CPU a check; a peer's server's."""
    return sample.cpu_us("worker") or sample.cpu_us("server")


def _p50(sample: Sample) -> float | None:
    return sample.p50_ms


def _p99(sample: Sample) -> float | None:
    return sample.p99_ms


_AT_MOST: Final = (
    ("http-32", "µs together", 160.0, _together),
    ("http-128", "µs together", 85.0, _together),
    ("http-512", "µs together", 65.0, _together),
    ("http-128", "µs gateway", 55.0, _gateway),
    ("http-list", "µs together", 12.0, _together),
    ("sdk-512", "p99 ms", 12.0, _p99),
    ("sdk-1", "p50 ms", 0.9, _p50),
    ("http-1", "p50 ms", 1.1, _p50),
    ("sdk-1", "p99 ms", 3.0, _p99),
    ("http-1", "p99 ms", 3.0, _p99),
    ("published", "µs worker", 3.0, _worker),
    ("clients-1000000-uniform", "µs worker", 12.0, _worker),
    ("clients-10000000-uniform", "µs worker", 12.0, _worker),
    ("clients-1000000-uniform", "MB worker", 600.0, lambda sample: sample.rss_mb["worker"]),
    ("clients-10000000-uniform", "MB worker", 600.0, lambda sample: sample.rss_mb["worker"]),
    ("hot-cached", "% of the denials by the worker", 1.0, lambda sample: sample.worker_share),
    ("flood-cached", "% of the denials by the worker", 1.0, lambda sample: sample.worker_share),
)
_AT_LEAST: Final = (
    ("sdk-512", "checks/s", 100_000.0, lambda sample: sample.rate),
    ("hot-cached", "req/s a gateway core", 20_000.0, lambda sample: sample.rate_per_core),
    ("flood-cached", "req/s a gateway core", 20_000.0, lambda sample: sample.rate_per_core),
)
_RATIOS: Final = (
    ("sdk-1", "echo-1", "x echo's p50", 1.3, _p50),
    ("http-1", "echo-1", "x echo's p50", 1.3, _p50),
    # Three times cheaper than the script.
    ("published", "redis-50", "x Redis script pipelined", 1 / 3, _own),
)
