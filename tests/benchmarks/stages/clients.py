"""Few clients and many, uniform and by Zipf's law; what they take in memory and on disk."""

from __future__ import annotations

from typing import Final

from tests.benchmarks import cases_sluice
from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case

STAGE: Final = "clients"
_NAMES: Final = {"uniform": "uniform", "zipf": "Zipf(1.1)"}
_HTTP_CONNECTIONS: Final = 128


def run(bench: Bench) -> None:
    """For each number of clients: have all of them counted once, then measure.

    What the most of them take on disk shows when the worker has ended: RocksDB holds the newest in memory. So
    this is a run's last stage.
    """
    for clients in bench.plan.clients:
        bench.say(f"clients: counting each of {clients:,} once")
        cases_sluice.fill(bench.sluice, bench.sdk, clients)
        cases = [_published(bench, clients, distribution) for distribution in _NAMES]
        if bench.plan.full and bench.has_wrk(f"clients-{clients}", f"HTTP, {clients:,} clients"):
            cases += [_http(bench, clients, distribution) for distribution in _NAMES]
        bench.measure(cases, warm=False)
    for worker in bench.sluice.system.workers:
        worker.stop()
    most = max(bench.plan.clients)
    bench.disk_bytes[str(most)] = bench.sluice.disk_bytes() / most


def _published(bench: Bench, clients: int, distribution: str) -> Case:
    return cases_sluice.published(
        bench.sluice,
        bench.plan,
        bench.sdk,
        stage=STAGE,
        key=f"clients-{clients}-{distribution}",
        what=f"SDK, published, {clients:,} clients, {_NAMES[distribution]}",
        clients=clients,
        distribution=distribution,
    )


def _http(bench: Bench, clients: int, distribution: str) -> Case:
    return cases_sluice.http(
        bench.sluice,
        bench.plan,
        stage=STAGE,
        callers=_HTTP_CONNECTIONS,
        key=f"clients-{clients}-{distribution}-http",
        what=f"HTTP, one by one, {clients:,} clients, {_NAMES[distribution]}",
        clients=clients,
        distribution=distribution,
    )
