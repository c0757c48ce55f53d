"""The tables of how the cost of a check grows with callers, clients, partitions and workers. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tests.benchmarks.plan import CALLERS, FULL, PARTITION_CALLERS, PARTITIONS
from tests.benchmarks.samples import Run, Sample
from tests.benchmarks.table import wrapped
from tests.benchmarks.targets import short

_Figure = Callable[[Sample], float | None]

_WAYS: Final = {
    "HTTP, single checks": "http-{}",
    "HTTP, lists of 100": "http-list-{}",
    "SDK": "sdk-{}",
    "SDK, published": "published-{}",
}

MOST_FAILED_OPEN: Final = 0.1
"""Percent of the checks. A case in which more failed open is left out of the tables."""


def total_us(sample: Sample) -> float | None:
    """Return the CPU microseconds per check of gateway, worker and broker."""
    return sample.cpu_us("total")


def worker_us(sample: Sample) -> float | None:
    """Return the CPU microseconds per check of the workers."""
    return sample.cpu_us("worker")


def growth_markdown(run: Run) -> str:
    """Return one table for each quantity, and how many cores a million checks per second would take."""
    callers = {name: _row(run, key, CALLERS, total_us) for name, key in _WAYS.items()}
    workers = {
        "published: µs worker, following included": _row(run, "workers-{}", (1, 2), worker_us),
    }
    tables = [
        _table("by callers: CPU µs per check, total", CALLERS, callers),
        _clients(run),
        _partitions(run),
        _table("by workers", (1, 2), workers),
    ]
    return "\n\n".join(part for part in (*tables, _million(callers)) if part)


def _partitions(run: Run) -> str:
    rows = {}
    for callers in PARTITION_CALLERS:
        key = f"partitions-{{}}-{callers}"
        rows[f"SDK, {callers} callers: µs total"] = _row(run, key, PARTITIONS, total_us)
        rows[f"SDK, {callers} callers: p50 ms"] = _row(run, key, PARTITIONS, lambda sample: sample.p50_ms)
    return _table("by partitions", PARTITIONS, rows)


def _clients(run: Run) -> str:
    numbers = FULL.clients
    rows = {
        "published, uniform: µs worker": _row(run, "clients-{}-uniform", numbers, worker_us),
        "published, Zipf: µs worker": _row(run, "clients-{}-zipf", numbers, worker_us),
        "HTTP, 128 connections, uniform: µs total": _row(run, "clients-{}-uniform-http", numbers, total_us),
        "HTTP, 128 connections, Zipf: µs total": _row(run, "clients-{}-zipf-http", numbers, total_us),
        "worker, resident MB": _row(run, "clients-{}-uniform", numbers, lambda s: s.rss_mb.get("worker")),
        "bytes per client on disk": [run.disk_bytes.get(str(number)) for number in numbers],
    }
    return _table("by clients", numbers, rows)


def _million(callers: dict[str, list[float | None]]) -> str:
    """Return how many cores a million checks a second would take."""
    found = {name: [value for value in row if value is not None] for name, row in callers.items()}
    cores = ", ".join(f"{name} {short(min(values))}" for name, values in found.items() if values)
    return wrapped(
        "At 1,000,000 checks/s, one microsecond per check is one CPU core. At the cheapest point of each row "
        f"that would take this many cores, callers of the SDK included: {cores or 'not measured'}."
    )


def _row(run: Run, key: str, numbers: Sequence[int], figure: _Figure) -> list[float | None]:
    """Return *figure* of the case of each number. *key* has ``{}`` in the number's place."""
    results = [run.find(key.format(number)) for number in numbers]
    return [
        result.median(figure) if result and result.failed_open <= MOST_FAILED_OPEN else None
        for result in results
    ]


def _table(name: str, numbers: Sequence[int], rows: dict[str, list[float | None]]) -> str:
    """Return a table of the rows that have any figure, or an empty string."""
    measured = {what: values for what, values in rows.items() if any(value is not None for value in values)}
    if not measured:
        return ""
    lines = [[name, *(f"{number:,}" for number in numbers)], [":--", *["--:"] * len(numbers)]]
    lines += [[what, *("" if v is None else short(v) for v in values)] for what, values in measured.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
