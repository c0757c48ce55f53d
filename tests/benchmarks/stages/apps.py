"""Limiters in applications: middleware of FastAPI, and threads that call a limiter, beside peers."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, Final

import httpx

from tests.benchmarks.bench_case import BenchCase, Load
from tests.benchmarks.cases_stoplog import AUTHORIZE_DOOR
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.peers.environment import PeerMissing, peers_python
from tests.benchmarks.peers.servers import PeerServer, peer_app, stoplog_app
from tests.benchmarks.plan import CLIENT_COUNT, DISTRIBUTIONS
from tests.benchmarks.stoplog_system import LEASE_MAX_MS

STAGE: Final = "apps"
CALLERS_OF_APPS: Final = 32
_PEERS: Final = {
    "slowapi": "peer: slowapi 0.1.10 + FastAPI + Redis",
    "fastapi_limiter": "peer: fastapi-limiter 0.1.6 + FastAPI + Redis",
}
"""Peers that limit a FastAPI application: module of the application, and label of the row."""


def run(bench: BenchContext) -> None:
    """Measure all applications and threads in the same rounds. No process outlives the stage."""
    with ExitStack() as stack:
        bench.measure([*_apps(bench, stack), *_threads(bench, stack)])


def _apps(bench: BenchContext, stack: ExitStack) -> list[BenchCase]:
    if not bench.has_wrk(STAGE, "a FastAPI application behind the middleware"):
        return []
    stoplog = bench.stoplog
    settings = {
        "STOPLOG_KAFKA": stoplog.system.bootstrap,
        "STOPLOG_TOPICS": str(stoplog.topics),
        "STOPLOG_LEASE_MAX_MS": str(LEASE_MAX_MS),
    }
    bare, limited = (
        stack.enter_context(stoplog_app(bench.folder, name, settings)) for name in ("unlimited", "limited")
    )
    parts = {"gateway": [limited.pid], **stoplog.pids(None)}
    what = "a FastAPI application"
    cases = [
        BenchCase(
            "app-none",
            STAGE,
            f"{what}, no limiter",
            CALLERS_OF_APPS,
            {"server": [bare.pid]},
            _wrk(bench, bare),
        )
    ]
    for distribution, name in DISTRIBUTIONS.items():
        load = _wrk(bench, limited, distribution, counted=True)
        label = f"{what}, middleware, {name}, leases on"
        cases.append(BenchCase(f"app-{distribution}", STAGE, label, CALLERS_OF_APPS, parts, load))
    for module, label in _PEERS.items():
        try:
            server = stack.enter_context(peer_app(bench.folder, module, bench.redis.port))
        except PeerMissing as exc:
            bench.skip(f"app-{module}", label, str(exc))
            continue
        both = {"server": [server.pid, bench.redis.pid]}
        cases.append(BenchCase(f"app-{module}", STAGE, label, CALLERS_OF_APPS, both, _wrk(bench, server)))
    return cases


def _wrk(
    bench: BenchContext, server: PeerServer, distribution: str = "uniform", *, counted: bool = False
) -> Load:
    url, door = f"http://127.0.0.1:{server.port}/", AUTHORIZE_DOOR

    def counts() -> dict[str, int]:
        return dict(httpx.get(f"{url}counts", trust_env=False).json()) if counted else {}

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        def drive_for(meter: Meter, seconds: int) -> dict[str, Any]:
            return drive(
                url,
                meter,
                connections=CALLERS_OF_APPS,
                seconds=seconds,
                seed=seed,
                clients=CLIENT_COUNT,
                distribution=distribution,
                check=door.check,
                method=door.method,
            )

        if counted:
            drive_for(Meter({}), bench.plan.lease_warmup_s)
        before = counts()
        figures = drive_for(meter, bench.plan.seconds)
        return {**figures, **{field: count - before[field] for field, count in counts().items()}}

    return load


def _threads(bench: BenchContext, stack: ExitStack) -> list[BenchCase]:
    stoplog = bench.stoplog
    command = [sys.executable, "-m", "tests.benchmarks.load_threads", stoplog.system.bootstrap]
    loader = bench.loader("load-threads", [*command, str(stoplog.topics), str(LEASE_MAX_MS)])
    ours = stack.enter_context(loader)
    parts = {"gateway": [ours.pid], **stoplog.pids(None)}
    cases = [
        _calls(
            bench, ours, f"threads-{distribution}", f"BlockingLimiter, {name}, leases on", parts, distribution
        )
        for distribution, name in DISTRIBUTIONS.items()
    ]
    what = "peer: limits 5.8 + Redis, threads, no HTTP"
    try:
        script = [peers_python(), "-m", "tests.benchmarks.peers.limits_threads", str(bench.redis.port)]
    except PeerMissing as exc:
        bench.skip("threads-limits", what, str(exc))
        return cases
    theirs = stack.enter_context(bench.loader("limits-threads", script))
    server = {"server": [theirs.pid, bench.redis.pid]}
    return [*cases, _calls(bench, theirs, "threads-limits", what, server, "uniform")]


def _calls(
    bench: BenchContext, loader: Loader, key: str, what: str, parts: dict[str, list[int]], distribution: str
) -> BenchCase:
    """Return the case of threads in the process of *loader*, whose CPU is part of the figures."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = loader.run(
            meter,
            callers=CALLERS_OF_APPS,
            clients=CLIENT_COUNT,
            distribution=distribution,
            seed=seed,
            warmup_s=bench.plan.lease_warmup_s,
            seconds=bench.plan.seconds,
        )
        return {**figures, "load_cpu_s": None}

    return BenchCase(key, STAGE, what, CALLERS_OF_APPS, parts, load)
