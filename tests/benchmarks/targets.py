"""Targets for the figures of a run, and ratios to the peers that were measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tests.benchmarks.plan import DISTRIBUTIONS, DOOR_CALLERS
from tests.benchmarks.samples import Result, Run, Sample, median_of, ratio

_VERDICT: Final = {True: "met", False: "MISSED", None: "not measured"}
_Figure = Callable[[Sample], float | None]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A bound for one figure.

    Attributes:
        key: Key of the case whose row shows the target.
        what: The figure, with its unit.
        bound: The largest allowed value, or the smallest.
        at_least: Whether *bound* is the smallest allowed value.
        stretch: A tighter bound that would be better still.
        measured: The measured value; ``None`` if it was not measured.
    """

    key: str
    what: str
    bound: float
    at_least: bool = False
    stretch: float | None = None
    measured: float | None = None

    @property
    def met(self) -> bool | None:
        """Return whether the figure is within its bound; ``None`` if it was not measured."""
        return self._within(self.bound)

    def _within(self, bound: float) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= bound if self.at_least else self.measured <= bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        measured = "" if self.measured is None else f"{short(self.measured)}, "
        text = f"{self.what} {sign} {short(self.bound)}: {measured}{_VERDICT[self.met]}"
        if self.stretch is None or self.measured is None:
            return text
        return f"{text} (stretch {short(self.stretch)}: {_VERDICT[self._within(self.stretch)]})"


def short(value: float) -> str:
    """Return *value* with three significant digits, or as a whole number from 100 on.

    >>> short(0.1234), short(12.34), short(98765.4)
    ('0.123', '12.3', '98,765')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def targets(run: Run) -> list[Target]:
    """Return all targets, with the values that *run* measured."""
    found = [_of(run, key, what, bound, figure) for key, what, bound, figure in _AT_MOST]
    found += [_of(run, key, what, bound, figure, at_least=True) for key, what, bound, figure in _AT_LEAST]
    for key, other, what, bound, figure in _RATIOS:
        value = ratio(run.find(key), run.find(other), figure)
        found.append(Target(key=key, what=what, bound=bound, measured=value))
    found += [
        Target(
            key=key,
            what=what,
            bound=bound,
            at_least=True,
            measured=ratio(run.find(key), run.find(other), rate),
        )
        for key, other, what, bound, rate in _RATIOS_AT_LEAST
    ]
    for clients, bound in _DISK_BYTES.items():
        key, size = f"clients-{clients}-uniform", run.disk_bytes.get(str(clients))
        found.append(Target(key=key, what="bytes per client on disk", bound=bound, measured=size))
    memory = "MB gateway of 100,000 leases"
    found.append(Target(key="leases-memory-on", what=memory, bound=40.0, measured=_lease_mb(run)))
    found.append(
        Target(key="workers-2", what="x 1 worker's CPU, less following", bound=1.1, measured=_flat(run))
    )
    return found


def against(run: Run, result: Result) -> list[str]:
    """Return the total CPU of *result* as a multiple of that of each peer with as many callers."""
    if beside := _BESIDE.get(result.key):
        return _multiples(run, result, beside)
    way, _, callers = result.key.partition("-")
    if way != "http" or not callers.isdecimal():
        return []
    names = {
        "limits": "limits + FastAPI + Redis",
        "ratelimit": "envoyproxy/ratelimit + Redis",
        "throttlecrab": "throttlecrab",
    }
    return _multiples(run, result, {f"{peer}-{callers}": name for peer, name in names.items()})


def _multiples(run: Run, result: Result, others: Mapping[str, str]) -> list[str]:
    found = ((name, ratio(result, run.find(key), _total_us)) for key, name in others.items())
    return [f"CPU {short(times)} x {name}" for name, times in found if times is not None]


def _of(run: Run, key: str, what: str, bound: float, figure: _Figure, *, at_least: bool = False) -> Target:
    result = run.find(key)
    return Target(
        key=key,
        what=what,
        bound=bound,
        at_least=at_least,
        stretch=_STRETCH.get((key, what)),
        measured=None if result is None else result.median(figure),
    )


def _flat(run: Run) -> float | None:
    """Return the worker CPU per check of two workers, less following, divided by that of one worker.

    The ratio is taken within each round. Following is the CPU by which a standby exceeds an idle standby. The
    cost of a second process is no cost of following, so it is not subtracted.
    """
    found = [run.find(key) for key in ("workers-1", "workers-2", "standby")]
    rounds = zip(*(result.samples if result else [] for result in found), strict=False)
    return median_of(_flat_in(*samples) for samples in rounds)


def _lease_mb(run: Run) -> float | None:
    """Return the memory that the gateway needs more with leases than without, for 100,000 of them."""
    on, off = run.find("leases-memory-on"), run.find("leases-memory-off")
    if on is None or off is None:
        return None
    pairs = zip(on.samples, off.samples, strict=False)
    return median_of(
        (a.rss_mb["gateway"] - b.rss_mb["gateway"]) / a.leases * 100_000 for a, b in pairs if a.leases
    )


def _flat_in(one: Sample, two: Sample, standby: Sample) -> float | None:
    alone, both, following = one.cpu_us("worker"), two.cpu_us("worker"), standby.following_us
    if not alone or both is None or following is None:
        return None
    return (both - following) / alone


def _total_us(sample: Sample) -> float | None:
    return sample.cpu_us("total")


def _gateway_us(sample: Sample) -> float | None:
    return sample.cpu_us("gateway")


def _worker_us(sample: Sample) -> float | None:
    return sample.cpu_us("worker")


def _own(sample: Sample) -> float | None:
    """Return the CPU microseconds per check of the worker, or of a peer's server."""
    return sample.cpu_us("worker") or sample.cpu_us("server")


def _front(sample: Sample) -> float | None:
    """Return the CPU microseconds per check of the gateway, or of the server in its place."""
    return sample.cpu_us("gateway") or sample.cpu_us("server")


def _rate(sample: Sample) -> float:
    return sample.rate


def _p50(sample: Sample) -> float | None:
    return sample.p50_ms


def _p99(sample: Sample) -> float | None:
    return sample.p99_ms


_AT_MOST: Final = (
    ("http-32", "µs total", 160.0, _total_us),
    ("http-128", "µs total", 85.0, _total_us),
    ("http-512", "µs total", 65.0, _total_us),
    ("http-128", "µs gateway", 55.0, _gateway_us),
    ("http-list", "µs total", 12.0, _total_us),
    ("sdk-512", "p99 ms", 12.0, _p99),
    ("sdk-1", "p50 ms", 0.9, _p50),
    ("http-1", "p50 ms", 1.1, _p50),
    ("sdk-1", "p99 ms", 3.0, _p99),
    ("http-1", "p99 ms", 3.0, _p99),
    ("published", "µs worker", 3.0, _worker_us),
    ("clients-1000000-uniform", "µs worker", 12.0, _worker_us),
    ("clients-10000000-uniform", "µs worker", 12.0, _worker_us),
    ("clients-1000000-uniform", "MB worker", 600.0, lambda sample: sample.rss_mb["worker"]),
    ("clients-10000000-uniform", "MB worker", 600.0, lambda sample: sample.rss_mb["worker"]),
    ("leases-above", "most admitted in a window, x limit", 1.0, lambda sample: sample.busiest_share),
    ("leases-above", "records per check", 0.6, lambda sample: sample.records_per_check),
    ("pace-log", "p99.9 ms", 20.0, lambda sample: sample.p999_ms),
    # The worker must count the tenth that the limit allows. Of the denials it should judge at most 1 %.
    ("hot-cached", "% of the denials by the worker", 1.0, lambda sample: sample.worker_share),
    ("flood-cached", "% of the denials by the worker", 1.0, lambda sample: sample.worker_share),
)
_AT_LEAST: Final = (
    ("leases-above", "admitted, x limit", 0.99, lambda sample: sample.admitted_share),
    ("sdk-512", "checks/s", 100_000.0, _rate),
    ("recovery", "records/s", 50_000.0, _rate),
    ("catching-up", "records/s", 50_000.0, _rate),
    ("hot-cached", "req/s per gateway core", 20_000.0, lambda sample: sample.rate_per_core),
    ("flood-cached", "req/s per gateway core", 20_000.0, lambda sample: sample.rate_per_core),
)
_RATELIMIT: Final = "x envoyproxy/ratelimit + Redis, µs total"
_RATIOS: Final = (
    ("sdk-1", "echo-1", "x echo's p50", 1.3, _p50),
    ("http-1", "echo-1", "x echo's p50", 1.3, _p50),
    ("http-32-token", "http-32", "x without a token, µs gateway", 1.03, _gateway_us),
    ("http-128-token", "http-128", "x without a token, µs gateway", 1.03, _gateway_us),
    *((f"authorize-{n}", f"http-{n}", "x POST /v1/check", 1.15, _total_us) for n in DOOR_CALLERS),
    *((f"json-{n}", f"http-{n}", "x POST /v1/check", 1.3, _total_us) for n in DOOR_CALLERS),
    *((f"grpc-{n}", f"grpc-floor-{n}", "gateway x floor", 1.25, _front) for n in DOOR_CALLERS),
    *((f"leases-zipf-{n}", f"ratelimit-zipf-{n}", _RATELIMIT, 0.5, _total_us) for n in DOOR_CALLERS),
    ("leases-uniform-32", "ratelimit-uniform-32", _RATELIMIT, 1.5, _total_us),
    ("pace-log", "pace-echo", "x echo's p50", 1.3, _p50),
    ("release-present", "release-0.2.0", "x release 0.2.0, µs worker", 1.03, _worker_us),
    (
        "clients-1000000-uniform",
        "clients-1000000-uniform-0.2.0",
        "x release 0.2.0, µs worker",
        1.03,
        _worker_us,
    ),
    ("leases-hot-1", "http-floor-1", "x a constant answer's p50", 1.3, _p50),
    # A third of the script's CPU.
    ("published", "redis-50", "x Redis script pipelined", 1 / 3, _own),
)
_RATIOS_AT_LEAST: Final = (("leases-sdk-on", "leases-sdk-off", "x checks/s with leases off", 3.0, _rate),)
_APPS: Final = {
    "app-none": "no limiter",
    "app-slowapi": "slowapi + Redis",
    "app-fastapi_limiter": "fastapi-limiter + Redis",
}
_NGINX: Final = {"nginx-none": "nginx without a limiter"}
_ENVOY: Final = {
    "envoy-none": "Envoy without a limiter",
    "envoy-ratelimit": "Envoy with envoyproxy/ratelimit + Redis",
}
_BESIDE: Final = {
    **{f"nginx-{distribution}": _NGINX for distribution in DISTRIBUTIONS},
    **{f"envoy-{way}-{distribution}": _ENVOY for way in ("authz", "grpc") for distribution in DISTRIBUTIONS},
    "app-uniform": _APPS,
    "app-zipf": _APPS,
    "threads-uniform": {"threads-limits": "limits + Redis"},
    "threads-zipf": {"threads-limits": "limits + Redis"},
}
"""The rows beside which others are shown: their keys and names, by key."""
_STRETCH: Final = {
    ("http-32", "µs total"): 140.0,
    ("http-128", "µs total"): 75.0,
    ("http-512", "µs total"): 58.0,
}
_DISK_BYTES: Final = {1_000_000: 40.0, 10_000_000: 40.0}
"""Bytes per client on disk, by number of clients. With few clients, most bytes are RocksDB's own."""
