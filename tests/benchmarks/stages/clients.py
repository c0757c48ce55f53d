"""Few clients and many, uniform and by Zipf's law; what they take in memory and on disk."""

from __future__ import annotations

from typing import Final

from tests.benchmarks import cases_sluice
from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case

STAGE: Final = "clients"
_NAMES: Final = {"uniform": "uniform", "zipf": "Zipf(1.1)"}
_HTTP_CONNECTIONS: Final = 128
_MANY: Final = 100_000
"""Fewer take less on disk than RocksDB's own files."""


def run(bench: Bench) -> None:
    """For each number of clients: have all of them counted once, then measure."""
    for clients in bench.plan.clients:
        bench.say(f"clients: counting each of {clients:,} once")
        size = cases_sluice.fill(bench.sluice, bench.sdk, clients)
        if clients >= _MANY:
            bench.disk_bytes[str(clients)] = size
        cases = [_published(bench, clients, distribution) for distribution in _NAMES]
        if bench.plan.full and bench.has_wrk(f"clients-{clients}", f"HTTP, {clients:,} clients"):
            cases += [_http(bench, clients, distribution) for distribution in _NAMES]
        bench.measure(cases, warm=False)


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
