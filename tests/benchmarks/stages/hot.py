"""One client at ten times its limit, with the deny cache and without."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive

CONNECTIONS: Final = 64
_CLIENT: Final = "hot-c00000000"
_CHECK: Final = ('{"client_id":"hot-', '"}')


def run(bench: Bench) -> None:
    """Find out how much one client can ask, limit it to a tenth of that, and have it ask again.

    The window is a second, so that one run holds whole windows; a tick is 17 ms then, after each of which all
    connections ask the worker again. And once with a minute's limit that is used up: a flood.
    """
    what = "HTTP, one client"
    if not bench.has_wrk("hot", what):
        return
    system = bench.sluice.system
    system.add_gateway(deny_cache=0)
    system.wait_ready()
    limiter = system.gateways[0]
    for gateway, name, cache in ((0, "cached", "deny cache"), (1, "uncached", "no deny cache")):
        ten_times = _case(bench, gateway, f"hot-{name}", f"{what} at 10 x its limit, {cache}")
        limiter.set_limits(_CLIENT, "100/second")
        rate = ten_times.sample(0).rate
        limiter.set_limits(_CLIENT, f"{max(1, int(rate / 10))}/second")
        bench.measure([ten_times], warm=False)
        limiter.set_limits(_CLIENT, "100/minute")
        bench.measure([_case(bench, gateway, f"flood-{name}", f"{what}, limit used up, {cache}")], warm=False)


def _case(bench: Bench, gateway: int, key: str, what: str) -> Case:
    sluice = bench.sluice
    asked = sluice.system.gateways[gateway]

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        denied, by_worker = asked.metric("sluice_checks_rejected_total"), sluice.refused_by_workers()
        figures = drive(
            f"{asked.url}/v1/check",
            meter,
            connections=CONNECTIONS,
            seconds=bench.plan.seconds,
            seed=seed,
            clients=1,
            check=_CHECK,
        )
        return {
            **figures,
            "denied": int(asked.metric("sluice_checks_rejected_total") - denied),
            "denied_by_worker": sluice.refused_by_workers() - by_worker,
        }

    return Case(key, "hot", what, CONNECTIONS, sluice.pids(gateway), load)
