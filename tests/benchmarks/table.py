"""The table of all rows, for a terminal and as Markdown. No I/O."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from rich.table import Table

from tests.benchmarks.samples import Result, Run, median_of
from tests.benchmarks.stoplog_system import FLUSH_MS
from tests.benchmarks.targets import Target, against, short, targets

STAGES: Final = {
    "callers": "by callers",
    "leases": "with leases",
    "pace": "at a steady pace",
    "apps": "in applications",
    "proxies": "behind proxies",
    "release": "beside the last release",
    "hot": "one hot client",
    "clients": "by clients",
    "partitions": "by partitions",
    "http-partitions": "by partitions, beside a peer",
    "workers": "by workers",
    "recovery": "recovery",
}
COLUMNS: Final = (
    "what",
    "callers",
    "checks/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "gateway µs",
    "worker µs",
    "broker µs",
    "total µs",
    "load µs",
    "RSS MB",
    "targets, ratios to peers, notes",
)


def cells(run: Run, result: Result, goals: list[Target]) -> list[str]:
    """Return all columns of one row."""
    return [
        *_load_cells(result),
        _cell(result.median(lambda sample: sample.p999_ms)),
        *(_cell(result.cpu_us(part)) for part in ("gateway", "worker", "broker", "total")),
        _cell(result.median(lambda sample: sample.load_us)),
        _memory(result),
        "; ".join([*_goals(result, goals), *against(run, result), *_notes(result)]),
    ]


def rich_table(run: Run) -> Table:
    """Return the table for a terminal."""
    table = Table(title=title(run), caption=caption(run), title_justify="left", caption_justify="left")
    for column in COLUMNS:
        left = column in (COLUMNS[0], COLUMNS[-1])
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    goals = targets(run)
    for stage, name in STAGES.items():
        rows = [result for result in run.results if result.stage == stage]
        if rows:
            table.add_section()
            table.add_row(f"[bold]{name}")
        for result in rows:
            table.add_row(*cells(run, result, goals))
    return table


def markdown(run: Run) -> str:
    """Return all rows as Markdown, with the facts above and the notes below."""
    goals = targets(run)
    rows = _table(COLUMNS, (cells(run, result, goals) for result in run.results))
    notes = "\n\n".join(wrapped(note) for note in caption(run).splitlines())
    return f"{wrapped(title(run))}\n\n{rows}\n\n{notes}"


def wrapped(text: str) -> str:
    """Return *text* in lines of at most 100 columns, as the pages have."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def title(run: Run) -> str:
    """Return the machine and the versions that *run* was measured on."""
    return " · ".join(f"{name}: {value}" for name, value in run.facts.items())


def caption(run: Run) -> str:
    """Return how to read the table, and which cases could not be measured."""
    notes = [
        f"Figures are medians of {run.rounds} interleaved runs of {run.seconds:g} s each. The rows of a "
        "client above its limit, of memory and of recovery have one run. µs: CPU per check. RSS: resident "
        "memory. Servers keep running from row to row.",
        "Uniform rows spread the checks evenly over the clients; Zipf(1.0) rows send half of them for the "
        "first hundred of 10,000 clients, as real callers do. Only clients that are checked often get "
        "leases.",
        "In SDK and echo rows, the gateway is the process of the callers, so the total includes them. "
        "In HTTP rows and in the peers' rows it does not: load is the CPU of the load generator. "
        "The Redis rows have one client, redis-py, that waits for each answer.",
        f"Workers write a checkpoint every {FLUSH_MS / 1_000:g} s, or earlier under load. A shorter run sees "
        "only part of that cost.",
    ]
    notes += [
        f"{int(clients):,} clients: {short(size)} bytes each on a worker's disk, including RocksDB's files."
        for clients, size in run.disk_bytes.items()
    ]
    notes += [f"Not measured: {it.what}: {it.why}" for it in run.skipped]
    return "\n".join(notes)


def _load_cells(result: Result) -> list[str]:
    """Return label, callers, rate and latencies."""
    return [
        result.what,
        str(result.callers or ""),
        _cell(result.median(lambda sample: sample.rate)),
        _cell(result.median(lambda sample: sample.p50_ms)),
        _cell(result.median(lambda sample: sample.p99_ms)),
    ]


def _goals(result: Result, goals: list[Target]) -> list[str]:
    return [str(goal) for goal in goals if goal.key == result.key]


def _notes(result: Result) -> list[str]:
    """Return what a reader must know of the figures of one row."""
    median, notes = result.median, []
    if (proxy := median(lambda sample: sample.cpu_us("proxy"))) is not None:
        notes.append(f"the proxy takes {short(proxy)} µs of the total")
    if (times := median(lambda sample: sample.times_limit)) is not None:
        notes.append(f"the load is {short(times)} x the limit")
    if (reached := median(lambda sample: sample.reached_worker)) is not None:
        notes.append(f"the worker judged {short(reached)} % of all checks")
    if hits := median(lambda sample: sample.lease_hits and 100 * sample.lease_hits / sample.checks):
        notes.append(f"leases answered {short(hits)} %")
    if leases := median(lambda sample: sample.leases):
        notes.append(f"{leases:,.0f} leases are open at the end")
    if (following := median(lambda sample: sample.following_us)) is not None:
        idle = median(lambda s: None if s.idle_cpu_s is None else 100 * s.idle_cpu_s / s.seconds)
        notes.append(
            f"following costs {short(following)} µs; an idle standby takes {_cell(idle)} % of a core"
        )
    if result.failed_open:  # these checks cost less than others
        notes.append(f"{short(result.failed_open)} % failed open")
    return notes


def _cell(value: float | None) -> str:
    return "" if value is None else short(value)


def _memory(result: Result) -> str:
    """Return the resident memory of each part, with its name."""
    parts = result.samples[0].rss_mb
    medians = {part: median_of(sample.rss_mb[part] for sample in result.samples) for part in parts}
    return ", ".join(f"{part} {_cell(megabytes)}" for part, megabytes in medians.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = [":--", *["--:"] * (len(columns) - 2), ":--"]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *rows))
