"""Few clients and many, uniform and by Zipf's law; what they take in memory and on disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from tests.benchmarks import cases_stoplog
from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case
from tests.benchmarks.loader import Loader
from tests.benchmarks.stoplog_system import Stoplog

STAGE: Final = "clients"
_NAMES: Final = {"uniform": "uniform", "zipf": "Zipf(1.1)"}
_HTTP_CONNECTIONS: Final = 128
_LIMITS: Final = "1000000/hour"
"""Filling 10,000,000 clients takes minutes: with a window of a minute the first would have left the disk."""


def run(bench: Bench) -> None:
    """For each number of clients: a system of its own, each of them counted once, then measured.

    What they take on disk shows when the worker has ended: RocksDB holds the newest in memory.
    """
    for clients in bench.plan.clients:
        with ExitStack() as stack:
            bench.say(f"clients: counting each of {clients:,} once")
            stoplog, sdk = bench.start(stack, limits=_LIMITS, clients=clients)
            cases_stoplog.fill(stoplog, sdk, clients)
            cases = [_published(bench, stoplog, sdk, clients, distribution) for distribution in _NAMES]
            if bench.plan.full and bench.has_wrk(f"clients-{clients}", f"HTTP, {clients:,} clients"):
                cases += [_http(bench, stoplog, clients, distribution) for distribution in _NAMES]
            bench.measure(cases, warm=False)
            for worker in stoplog.system.workers:
                worker.stop()
            bench.disk_bytes[str(clients)] = stoplog.disk_bytes() / clients


def _published(bench: Bench, stoplog: Stoplog, sdk: Loader, clients: int, distribution: str) -> Case:
    return cases_stoplog.published(
        stoplog,
        bench.plan,
        sdk,
        stage=STAGE,
        key=f"clients-{clients}-{distribution}",
        what=f"SDK, published, {clients:,} clients, {_NAMES[distribution]}",
        clients=clients,
        distribution=distribution,
    )


def _http(bench: Bench, stoplog: Stoplog, clients: int, distribution: str) -> Case:
    return cases_stoplog.http(
        stoplog,
        bench.plan,
        stage=STAGE,
        callers=_HTTP_CONNECTIONS,
        key=f"clients-{clients}-{distribution}-http",
        what=f"HTTP, one by one, {clients:,} clients, {_NAMES[distribution]}",
        clients=clients,
        distribution=distribution,
    )
