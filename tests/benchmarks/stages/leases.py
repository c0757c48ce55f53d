"""With leases: clients that are checked often are answered in the gateway, or in the process of the SDK.

All rows of HTTP have 10,000 clients. *Uniform* spreads the checks evenly over them, so that each client sends
about one check per second, and leases gain nothing. *Zipf(1.0)* sends half of the checks for the first
hundred clients, as real callers do. Each peer gets the same requests in the same rounds.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from stoplog.client.lease_table import MAX_ENTRIES
from tests.benchmarks import cases_peers, cases_stoplog
from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.peers.servers import PeerServer, http_floor
from tests.benchmarks.plan import DISTRIBUTIONS, DOOR_CALLERS
from tests.benchmarks.stoplog_system import LEASE_MAX_MS, Stoplog

STAGE: Final = "leases"
_SDK_CALLERS: Final = 512
_LIMIT: Final = 1_000
"""Limit of the client that is offered more."""

_LONG_PLAN: Final = "long"
_LONG_LIMIT: Final = "1000000/hour"
"""A limit whose leases last as long as leases can."""

_OPENING_S: Final = 9
"""Seconds of load that opens many leases. They last 10 s."""


def run(bench: BenchContext) -> None:
    """Measure a system with leases, beside peers and beside the system without leases."""
    with ExitStack() as stack:
        stoplog, sdk = bench.start(stack, lease_max_ms=LEASE_MAX_MS)
        cases = [*_http(bench, stoplog), *_one_connection(bench, stoplog, stack), *_sdk(bench, stoplog, sdk)]
        bench.measure(cases)
        bench.measure([_above_limit(bench, stoplog)], rounds=1)
        if bench.plan.full and bench.has_wrk("leases-memory", "memory of 100,000 leases"):
            bench.measure([_memory(bench, stoplog, name) for name in ("on", "off")], rounds=1)


def _http(bench: BenchContext, stoplog: Stoplog) -> list[BenchCase]:
    """Return the cases of single checks, and those of envoyproxy/ratelimit with the same requests."""
    if not bench.has_wrk(STAGE, "HTTP, single checks, leases on"):
        return []
    cases = [
        cases_stoplog.http(
            stoplog,
            bench.plan,
            stage=STAGE,
            callers=n,
            key=f"leases-{distribution}-{n}",
            what=f"HTTP, single checks, {name}, leases on",
            distribution=distribution,
            warmup_s=bench.plan.lease_warmup_s,
        )
        for n in DOOR_CALLERS
        for distribution, name in DISTRIBUTIONS.items()
    ]
    try:
        server = bench.ratelimit
    except PeerMissing as exc:
        bench.skip("leases-ratelimit", "peer: envoyproxy/ratelimit + Redis", str(exc))
        return cases
    pids = [server.pid, bench.redis.pid]
    for n in DOOR_CALLERS:
        for distribution, name in DISTRIBUTIONS.items():
            case = cases_peers.envoy_ratelimit_http(server.port, pids, bench.plan, n, distribution)
            key, what = f"ratelimit-{distribution}-{n}", f"{case.what}, {name}"
            cases.append(replace(case, key=key, stage=STAGE, what=what))
    return cases


def _one_connection(bench: BenchContext, stoplog: Stoplog, stack: ExitStack) -> list[BenchCase]:
    """Return the cases of one hot client on one connection, and of a server that only answers."""
    if not bench.has_wrk(STAGE, "HTTP, one hot client, one connection"):
        return []
    floor = stack.enter_context(http_floor(bench.folder))
    return [
        cases_stoplog.http(
            stoplog,
            bench.plan,
            stage=STAGE,
            callers=1,
            key="leases-hot-1",
            what="HTTP, one hot client, leases on",
            clients=1,
            warmup_s=1,
        ),
        _constant(bench, floor),
    ]


def _constant(bench: BenchContext, floor: PeerServer) -> BenchCase:
    def load(meter: Meter, seed: int) -> dict[str, Any]:
        url, seconds = f"http://127.0.0.1:{floor.port}/v1/check", bench.plan.seconds
        return drive(url, meter, connections=1, seconds=seconds, seed=seed, clients=1)

    what = "floor: the gateway's HTTP server, constant answer"
    return BenchCase("http-floor-1", STAGE, what, 1, {"server": [floor.pid]}, load)


def _sdk(bench: BenchContext, stoplog: Stoplog, sdk: Loader) -> list[BenchCase]:
    """Return the cases of one process with many callers, with leases and without."""
    return [
        cases_stoplog.sdk(
            system,
            bench.plan,
            loader,
            stage=STAGE,
            callers=_SDK_CALLERS,
            key=f"leases-sdk-{name}",
            what=f"SDK, Zipf(1.0), leases {name}",
            distribution="zipf",
            warmup_s=bench.plan.lease_warmup_s,
        )
        for name, system, loader in (("on", stoplog, sdk), ("off", bench.stoplog, bench.sdk))
    ]


def _above_limit(bench: BenchContext, stoplog: Stoplog) -> BenchCase:
    """Return the case of one client that is offered at a steady pace, for two windows of its limit."""
    window_s, times = bench.plan.hot_window_s, 1.5
    gateway = stoplog.system.gateways[0]

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        gateway.set_limits("above-c00000000", f"{_LIMIT}/{window_s}s")
        before = stoplog.records_of_checks()
        figures = bench.paced.run(
            meter,
            port=gateway.port,
            path="/v1/check",
            method="POST",
            check=['{"client_id":"above-', '"}'],
            clients=1,
            seed=seed,
            rate=times * _LIMIT / window_s,
            warmup=0,
            checks=int(2 * times * _LIMIT),
            window_s=window_s,
        )
        records = stoplog.records_of_checks() - before
        return {**figures, "records": records, "limit": _LIMIT, "times_limit": times}

    what = f"HTTP, one client at 1.5 x its limit of {_LIMIT:,} in {window_s} s, leases on"
    return BenchCase("leases-above", STAGE, what, 1, stoplog.pids(), load)


def _memory(bench: BenchContext, stoplog: Stoplog, name: str) -> BenchCase:
    """Return the case of a new gateway whose clients all get a lease, if leases are *name* (on or off).

    Each client is checked several times in a row. Leases last 10 s at most, so that is the time to open them.
    """
    system = stoplog.system
    gateway = system.add_gateway(lease_max_ms=LEASE_MAX_MS if name == "on" else 0)
    system.wait_ready()
    system.gateways[0].http.put(f"/v1/plans/{_LONG_PLAN}", json={"limits": [_LONG_LIMIT]}).raise_for_status()

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = drive(
            f"{gateway.url}/v1/checks",
            meter,
            connections=cases_stoplog.LIST_CONNECTIONS,
            seconds=_OPENING_S,
            seed=seed,
            clients=MAX_ENTRIES,
            distribution="repeated",
            size=cases_stoplog.LIST_SIZE,
            check=('{"client_id":"', f'","plan":"{_LONG_PLAN}"}}'),
        )
        return {**figures, "leases": int(gateway.metric("stoplog_leases"))}

    what = f"HTTP, lists of {cases_stoplog.LIST_SIZE}, {MAX_ENTRIES:,} clients, leases {name}, new gateway"
    parts = {**stoplog.pids(), "gateway": stoplog.pids(len(system.gateways) - 1)["gateway"]}
    return BenchCase(f"leases-memory-{name}", STAGE, what, cases_stoplog.LIST_CONNECTIONS, parts, load)
