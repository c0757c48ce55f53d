"""100 checks per second at a steady pace, one connection: what a single caller waits for the log.

The servers are idle between two checks, so caches are cold and processes have to be woken up. Leases are off,
and no client is checked often. The peers get the same pace.
"""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks import cases_peers
from tests.benchmarks.bench_case import BenchCase, Load
from tests.benchmarks.cases_stoplog import CHECK_DOOR, JSON_DOOR, Door
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.plan import CLIENT_COUNT

STAGE: Final = "pace"
RATE: Final = 100
_HEALTH_DOOR: Final = Door("/healthz", ("", ""), "GET")


def run(bench: BenchContext) -> None:
    """Measure the gateway, the echo through the same broker, and a peer in the same rounds."""
    gateway, pids = bench.stoplog.system.gateways[0], bench.stoplog.pids()
    health = {"server": pids["gateway"]}
    cases = [
        BenchCase(
            "pace-log", STAGE, "HTTP, single checks, 100/s", 1, pids, _paced(bench, gateway.port, CHECK_DOOR)
        ),
        cases_peers.echo(
            *bench.echo,
            bench.plan,
            key="pace-echo",
            partitions=1,
            size=1,
            stage=STAGE,
            rate=RATE,
            seconds=bench.plan.pace_s,
        ),
        BenchCase(
            "pace-health",
            STAGE,
            "HTTP, GET /healthz, 100/s",
            1,
            health,
            _paced(bench, gateway.port, _HEALTH_DOOR),
        ),
    ]
    what = "peer: envoyproxy/ratelimit + Redis, POST /json, 100/s"
    try:
        server = bench.ratelimit
    except PeerMissing as exc:
        bench.skip("pace-ratelimit", what, str(exc))
    else:
        parts = {"server": [server.pid, bench.redis.pid]}
        cases.append(
            BenchCase("pace-ratelimit", STAGE, what, 1, parts, _paced(bench, server.port, JSON_DOOR))
        )
    bench.measure(cases)


def _paced(bench: BenchContext, port: int, door: Door) -> Load:
    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return bench.paced.run(
            meter,
            port=port,
            **door._asdict(),
            clients=CLIENT_COUNT,
            seed=seed,
            rate=RATE,
            warmup=RATE // 2,
            checks=RATE * bench.plan.pace_s,
        )

    return load
