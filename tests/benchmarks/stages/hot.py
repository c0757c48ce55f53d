"""One client at ten times its limit, and one whose limit is used up, with the deny cache and without."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive

CONNECTIONS: Final = 64
_FLOODED: Final = 100
"""Limit per minute of a client whose limit is used up at once."""
_COUNTED: Final = {
    "allowed": "stoplog_checks_allowed_total",
    "denied": "stoplog_checks_rejected_total",
    "failed_open": "stoplog_checks_degraded_total",
}


def run(bench: BenchContext) -> None:
    """Measure a client whose limit is used up, at each gateway, and then one at ten times its limit.

    At ten times the limit, one whole window of a new client is measured: first all checks are allowed, then
    almost none. Every case has a client of its own.
    """
    what = "HTTP, one client"
    if not bench.has_wrk("hot", what):
        return
    system = bench.stoplog.system
    system.add_gateway(deny_cache=0, lease_max_ms=0)
    system.wait_ready()
    limiter, window_s = system.gateways[0], bench.plan.hot_window_s
    for gateway, name, cache in ((0, "cached", "deny cache"), (1, "uncached", "no deny cache")):
        flood = _case(bench, gateway, f"flood-{name}", f"{what}, limit used up, {cache}", _FLOODED / 60)
        limiter.set_limits(_client_of(flood.key), f"{_FLOODED}/minute")
        flooded = bench.measure([flood])
        if not flooded or not (gateway == 0 or bench.plan.full):
            continue
        free = _case(bench, gateway, f"free-{name}", what, None).sample(0)
        denied_rate = flooded[0].median(lambda sample: sample.rate)
        assert denied_rate is not None
        most = tenth(free.rate, denied_rate, window_s)
        what_ten = f"{what} at 10 x its limit of {most:,} in {window_s} s, {cache}"
        ten = _case(bench, gateway, f"hot-{name}", what_ten, most / window_s, seconds=window_s)
        limiter.set_limits(_client_of(ten.key), f"{most}/{window_s}s")
        bench.measure([ten], rounds=1)


def tenth(allowed_rate: float, denied_rate: float, window_s: float) -> int:
    """Return the limit per window at which a client that never pauses sends ten times its limit.

    Args:
        allowed_rate: Checks per second while they are allowed, until the limit is used up.
        denied_rate: Checks per second while they are denied, for the rest of the window.
        window_s: Seconds of the window.

    >>> tenth(1_000, 1_000, 60), tenth(1_000, 11_000, 60)  # 33 s of the second are allowed, 27 s are not
    (6000, 33000)
    """
    # limit = allowed_rate * t, and 10 * limit = allowed_rate * t + denied_rate * (window_s - t)
    return max(1, round(denied_rate * window_s / (9 + denied_rate / allowed_rate)))


def _client_of(key: str) -> str:
    return f"{key}-c00000000"


def _case(
    bench: BenchContext,
    gateway: int,
    key: str,
    what: str,
    allowed_a_second: float | None,
    *,
    seconds: int = 0,
) -> BenchCase:
    stoplog = bench.stoplog
    target = stoplog.system.gateways[gateway]

    def counted() -> dict[str, int]:
        counts = {field: int(target.metric(name)) for field, name in _COUNTED.items()}
        return {**counts, "denied_by_worker": stoplog.denied_by_workers()}

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        before = counted()
        figures = drive(
            f"{target.url}/v1/check",
            meter,
            connections=CONNECTIONS,
            seconds=seconds or bench.plan.seconds,
            seed=seed,
            clients=1,
            check=(f'{{"client_id":"{key}-', '"}'),
        )
        rate = figures["checks"] / figures["seconds"]
        return {
            **figures,
            **{field: count - before[field] for field, count in counted().items()},
            "times_limit": rate / allowed_a_second if allowed_a_second else None,
        }

    return BenchCase(key, "hot", what, CONNECTIONS, stoplog.pids(gateway), load)
