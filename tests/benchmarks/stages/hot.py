"""One client at ten times its limit, and one whose limit is used up; with the deny cache and without."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive

CONNECTIONS: Final = 64
_FLOODED: Final = 100
"""What a client that floods may ask in a minute."""
_COUNTED: Final = {
    "allowed": "stoplog_checks_allowed_total",
    "denied": "stoplog_checks_rejected_total",
    "let_through": "stoplog_checks_degraded_total",
}


def run(bench: Bench) -> None:
    """Flood with each gateway; then limit a client to a tenth of what it can ask, and have it ask.

    At ten times the limit a whole window is measured, once, of a client that has spent nothing: first all is
    allowed, then almost nothing is. Every case has a client of its own.
    """
    what = "HTTP, one client"
    if not bench.has_wrk("hot", what):
        return
    system = bench.stoplog.system
    system.add_gateway(deny_cache=0)
    system.wait_ready()
    limiter, window_s = system.gateways[0], bench.plan.hot_window_s
    for gateway, name, cache in ((0, "cached", "deny cache"), (1, "uncached", "no deny cache")):
        flood = _case(bench, gateway, f"flood-{name}", f"{what}, limit used up, {cache}", _FLOODED / 60)
        limiter.set_limits(_client(flood.key), f"{_FLOODED}/minute")
        flooded = bench.measure([flood])
        if not flooded or not (gateway == 0 or bench.plan.full):
            continue
        free = _case(bench, gateway, f"free-{name}", what, None).sample(0)
        denied_rate = flooded[0].median(lambda sample: sample.rate)
        assert denied_rate is not None
        most = tenth(free.rate, denied_rate, window_s)
        what_ten = f"{what} at 10 x its limit of {most:,} in {window_s} s, {cache}"
        ten = _case(bench, gateway, f"hot-{name}", what_ten, most / window_s, seconds=window_s)
        limiter.set_limits(_client(ten.key), f"{most}/{window_s}s")
        bench.measure([ten], rounds=1, warm=False)


def tenth(allowed_rate: float, denied_rate: float, window_s: float) -> int:
    """The limit a window that a client exceeds ten times who asks as fast as answers come.

    Args:
        allowed_rate: Checks a second while they are allowed, which takes a worker; until the limit is spent.
        denied_rate: The same while they are denied; for the rest of the window.
        window_s: Seconds.

    >>> tenth(1_000, 1_000, 60), tenth(1_000, 11_000, 60)  # 33 s of the second are allowed, 27 s are not
    (6000, 33000)
    """
    # limit = allowed_rate * t, and 10 * limit = allowed_rate * t + denied_rate * (window_s - t)
    return max(1, round(denied_rate * window_s / (9 + denied_rate / allowed_rate)))


def _client(key: str) -> str:
    return f"{key}-c00000000"


def _case(
    bench: Bench, gateway: int, key: str, what: str, allowed_a_second: float | None, *, seconds: int = 0
) -> Case:
    stoplog = bench.stoplog
    asked = stoplog.system.gateways[gateway]

    def counted() -> dict[str, int]:
        counts = {field: int(asked.metric(name)) for field, name in _COUNTED.items()}
        return {**counts, "denied_by_worker": stoplog.refused_by_workers()}

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        before = counted()
        figures = drive(
            f"{asked.url}/v1/check",
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

    return Case(key, "hot", what, CONNECTIONS, stoplog.pids(gateway), load)
