"""The view of ``stoplog watch``, 80 columns wide, as a function of a gateway's answers.

Ids are untrusted texts: they are escaped and never markup. A client's id comes last in its row, so that a
long id, or one written from right to left, disturbs nothing else.
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

import msgspec
from rich.console import Group
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from stoplog.client.cluster_status import LATE_S, OK, Node, Status
from stoplog.client.top_rejected import Rejected
from stoplog.client.traffic import Traffic
from stoplog_gateway.cli.formatting import duration, failed_open, latency, moment, printable, ranges, rate
from stoplog_gateway.cli.rates import Rates

REJECTED_ROWS: Final = 8
"""Number of rejected clients to show: with three nodes, the view then fits 24 lines."""


class RejectedClients(msgspec.Struct, frozen=True):
    """The answer of ``/v1/clients/rejected``."""

    gateway: str
    seconds: int
    items: list[Rejected]


class Snapshot(msgspec.Struct, frozen=True):
    """The state of a gateway at about one moment."""

    status: Status
    traffic: Traffic
    rejected: RejectedClients


def view(url: str, snapshot: Snapshot | None, rates: Rates, *, error: str | None = None) -> Group:
    """Return the whole view.

    Args:
        url: URL of the gateway.
        snapshot: Its last known state; ``None`` if there is none yet.
        rates: Rates computed from the last states.
        error: Why the gateway does not answer now; ``None`` if it answers.
    """
    head = [Text.assemble("stoplog watch ", (printable(url), "bold"))]
    if snapshot is not None:
        head[0].append(f"  {printable(snapshot.rejected.gateway)}  {moment(snapshot.traffic.at_ms)}")
    if error is not None:
        head.append(Text.assemble(("NO ANSWER", "bold red"), f", trying again: {printable(error)}"))
    if snapshot is None:
        return Group(*head)
    parts = (
        Text(),
        _counts(snapshot.traffic, rates),
        _latency(snapshot.traffic, rates),
        Text(),
        _nodes(snapshot.status.nodes),
        Text(),
        _rejected(snapshot.rejected),
    )
    if error is not None:
        # The first line shows the time of this state.
        return Group(*head, *(Styled(part, "dim") for part in parts))
    return Group(*head, *_mode(snapshot), *parts)


def _mode(snapshot: Snapshot) -> list[Text]:
    status, normal = snapshot.status, snapshot.status.mode == "normal"
    elapsed = duration(snapshot.traffic.at_ms - status.since_ms)  # both by the gateway's clock
    first = Text.assemble(
        (printable(status.mode.upper()), "bold green" if normal else "bold yellow"),
        f" since {moment(status.since_ms)} ({elapsed})",
        ": workers answer the checks" if normal else some_processes(status),
    )
    lines = [first]
    if status.why:
        lines.append(Text(f"because {printable(status.why)}"))
    if not normal:
        counts = (status.let_through, status.uncounted, status.failed_closed)
        lines.append(Text(failed_open(status.degraded_partitions, *counts)))
    if status.store != OK and status.store_why != status.why:
        lines.append(Text(f"store {printable(status.store)}: {printable(status.store_why or '')}"))
    return lines


def some_processes(status: Status) -> str:
    """Return how many processes of a gateway with several are degraded."""
    if status.processes == 1:
        return ""
    return f": {status.degraded_processes} of {status.processes} processes"


def _counts(traffic: Traffic, rates: Rates) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", width=len("checks/s"))
    for kind in ("allowed", "rejected", "failed open"):
        table.add_column(kind, justify="right", min_width=len("failed open"))
    per_s = (rates.allowed_per_s, rates.rejected_per_s, rates.degraded_per_s)
    table.add_row("checks/s", *("-" if value is None else rate(value) for value in per_s))
    totals = (traffic.allowed, traffic.rejected, traffic.degraded)
    table.add_row("in all", *(f"{value:,}" for value in totals))
    return table


def _latency(traffic: Traffic, rates: Rates) -> Text:
    highest = max((bucket.le_ms for bucket in traffic.latency if bucket.le_ms is not None), default=0.0)
    p50, p99 = (
        "-" if ms is None else f"{'over ' if ms >= highest else ''}{latency(ms)}"
        for ms in (rates.p50_ms, rates.p99_ms)
    )
    return Text(f"latency    median {p50}, p99 {p99}; in flight {traffic.in_flight:,}")


def _nodes(nodes: list[Node]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("node", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("role", no_wrap=True, overflow="ellipsis", max_width=14)
    table.add_column("partitions")
    table.add_column("lag", justify="right", no_wrap=True)
    table.add_column("heartbeat", justify="right", no_wrap=True)
    for node in nodes:
        held = node.partitions.values()
        role = f"worker, lane {node.lane or 'a'}" if node.role == "worker" else node.role
        lag = f"{sum(partition.lag for partition in held):,}" if held else "-"
        cells = (node.id, role, _by_state(node), lag)
        table.add_row(*(Text(printable(cell)) for cell in cells), _heartbeat(node.age_ms / 1000))
    if not nodes:
        table.add_row("none")
    return table


def _heartbeat(age_s: float) -> Text:
    """Return the age of a node's last heartbeat, and mark it if heartbeats are missing."""
    return Text(f"silent {age_s:.0f} s", "bold yellow") if age_s >= LATE_S else Text(f"{age_s:.0f} s")


def _by_state(node: Node) -> str:
    """Return partitions by state: ``running 0-3; standby 4``."""
    states = sorted((partition.state, number) for number, partition in node.partitions.items())
    parts = [
        f"{state} {ranges(number for _, number in those)}"
        for state, those in groupby(states, key=lambda pair: pair[0])
    ]
    return "; ".join(parts) or "-"


def _rejected(rejected: RejectedClients) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rejected", justify="right", no_wrap=True)
    table.add_column(f"client, most rejected in the last {duration(rejected.seconds * 1000)}")
    for item in rejected.items[:REJECTED_ROWS]:
        low = f"{item.checks - item.surplus:,} to " if item.surplus else ""
        # no_wrap on the cell, not on the column: there, a long id would squeeze the counts.
        client = Text(printable(item.client_id), no_wrap=True, overflow="ellipsis")
        table.add_row(f"{low}{item.checks:,}", client)
    if not rejected.items:
        table.add_row("-", "nobody")
    return table
