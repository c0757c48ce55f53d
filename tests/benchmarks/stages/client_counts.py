"""Few clients and many, uniform and by Zipf's law: cost, memory and disk."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from tests.benchmarks import cases_stoplog
from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.context import BenchContext
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import DISTRIBUTIONS
from tests.benchmarks.stages.last_release import RELEASE, released_worker
from tests.benchmarks.stoplog_system import Stoplog

STAGE: Final = "clients"
_HTTP_CONNECTIONS: Final = 128
_COMPARED_CLIENTS: Final = 1_000_000
"""Number of clients with which the worker of the last release is measured, too."""
_HOURLY_LIMIT: Final = "1000000/hour"
"""Storing 10,000,000 clients takes minutes. With a window of a minute the first would have expired."""


def run(bench: BenchContext) -> None:
    """For each number of clients, start a system, count each client once, then measure.

    The size on disk is read after the worker has ended, because RocksDB holds the newest states in memory.
    """
    for clients in bench.plan.clients:
        with ExitStack() as stack:
            bench.say(f"clients: counting each of {clients:,} once")
            stoplog, sdk = bench.start(stack, limits=_HOURLY_LIMIT, clients=clients)
            cases_stoplog.fill(stoplog, sdk, clients)
            cases = [_published(bench, stoplog, sdk, clients, distribution) for distribution in DISTRIBUTIONS]
            if bench.plan.full and bench.has_wrk(f"clients-{clients}", f"HTTP, {clients:,} clients"):
                cases += [_http(bench, stoplog, clients, distribution) for distribution in DISTRIBUTIONS]
            if bench.plan.full and clients == _COMPARED_CLIENTS:
                cases.append(_released(bench, stack))
            bench.measure(cases)
            for worker in stoplog.system.workers:
                worker.stop()
            bench.disk_bytes[str(clients)] = stoplog.disk_bytes() / clients


def _released(bench: BenchContext, stack: ExitStack) -> BenchCase:
    """Return the case of the last release's worker with as many clients."""
    bench.say(f"clients: counting each of {_COMPARED_CLIENTS:,} once, worker of release {RELEASE}")
    stoplog, sdk = bench.start(
        stack, limits=_HOURLY_LIMIT, clients=_COMPARED_CLIENTS, worker_env=released_worker(stack)
    )
    cases_stoplog.fill(stoplog, sdk, _COMPARED_CLIENTS)
    case = _published(bench, stoplog, sdk, _COMPARED_CLIENTS, "uniform")
    return replace(case, key=f"{case.key}-{RELEASE}", what=f"{case.what}, worker: {RELEASE}")


def _published(
    bench: BenchContext, stoplog: Stoplog, sdk: Loader, clients: int, distribution: str
) -> BenchCase:
    return cases_stoplog.published(
        stoplog,
        bench.plan,
        sdk,
        stage=STAGE,
        key=f"clients-{clients}-{distribution}",
        what=f"SDK, published, {clients:,} clients, {DISTRIBUTIONS[distribution]}",
        clients=clients,
        distribution=distribution,
    )


def _http(bench: BenchContext, stoplog: Stoplog, clients: int, distribution: str) -> BenchCase:
    return cases_stoplog.http(
        stoplog,
        bench.plan,
        stage=STAGE,
        callers=_HTTP_CONNECTIONS,
        key=f"clients-{clients}-{distribution}-http",
        what=f"HTTP, single checks, {clients:,} clients, {DISTRIBUTIONS[distribution]}",
        clients=clients,
        distribution=distribution,
    )
