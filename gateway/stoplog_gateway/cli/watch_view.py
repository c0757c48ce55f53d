"""What ``stoplog watch`` shows, 80 columns wide: a function of what the gateway said.

Ids are anybody's texts: escaped, never markup, and a client's comes last in its row, so that one written from
right to left, or a long one, disturbs nothing but itself.
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
from stoplog_gateway.cli.formatting import duration, latency, moment, printable, ranges, rate, through
from stoplog_gateway.cli.rates import Rates

FEW: Final = 8
"""Rejected clients: with three nodes all fits 24 lines."""


class RejectedClients(msgspec.Struct, frozen=True):
    """What ``/v1/clients/rejected`` says."""

    gateway: str
    seconds: int
    items: list[Rejected]


class Told(msgspec.Struct, frozen=True):
    """What a gateway said at about one moment."""

    status: Status
    traffic: Traffic
    rejected: RejectedClients | None = None
    withheld: str | None = None
    """Why it does not say who is rejected."""


def view(url: str, told: Told | None, rates: Rates, *, silent: str | None = None) -> Group:
    """All of it.

    Args:
        url: Whose it is.
        told: What was last said; ``None``: nothing yet.
        rates: What is made of it and what was said before.
        silent: Why the gateway says nothing now.
    """
    head = [Text.assemble("stoplog watch ", (printable(url), "bold"))]
    if told is not None:
        gateway = f"  {printable(told.rejected.gateway)}" if told.rejected is not None else ""
        head[0].append(f"{gateway}  {moment(told.traffic.at_ms)}")
    if silent is not None:
        head.append(Text.assemble(("NO ANSWER", "bold red"), f", asked again: {printable(silent)}"))
    if told is None:
        return Group(*head)
    parts = (
        Text(),
        _counts(told.traffic, rates),
        _latency(told.traffic, rates),
        Text(),
        _nodes(told.status.nodes),
        Text(),
        _rejected(told.rejected)
        if told.rejected is not None
        else Text(printable(f"most rejected: {told.withheld}")),
    )
    if silent is not None:
        # As of the moment in the first line.
        return Group(*head, *(Styled(part, "dim") for part in parts))
    return Group(*head, *_mode(told), *parts)


def _mode(told: Told) -> list[Text]:
    status, normal = told.status, told.status.mode == "normal"
    lasting = duration(told.traffic.at_ms - status.since_ms)  # both by the gateway's clock
    first = Text.assemble(
        (printable(status.mode.upper()), "bold green" if normal else "bold yellow"),
        f" since {moment(status.since_ms)} ({lasting})",
        ": answered from the store" if normal else some_processes(status),
    )
    lines = [first]
    if status.why:
        lines.append(Text(f"because {printable(status.why)}"))
    if not normal:
        lines.append(Text(through(status.degraded_partitions, status.let_through, status.uncounted)))
    if status.store != OK and status.store_why != status.why:
        lines.append(Text(f"store {printable(status.store)}: {printable(status.store_why or '')}"))
    return lines


def some_processes(status: Status) -> str:
    """How many are degraded, of a gateway that has several processes."""
    if status.processes == 1:
        return ""
    return f": {status.degraded_processes} of {status.processes} processes"


def _counts(traffic: Traffic, rates: Rates) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", width=len("checks/s"))
    for kind in ("allowed", "rejected", "let through"):
        table.add_column(kind, justify="right", min_width=len("let through"))
    per_s = (rates.allowed_per_s, rates.rejected_per_s, rates.degraded_per_s)
    table.add_row("checks/s", *("-" if value is None else rate(value) for value in per_s))
    totals = (traffic.allowed, traffic.rejected, traffic.degraded)
    table.add_row("in all", *(f"{value:,}" for value in totals))
    return table


def _latency(traffic: Traffic, rates: Rates) -> Text:
    most = max((bucket.le_ms for bucket in traffic.latency if bucket.le_ms is not None), default=0.0)
    p50, p99 = (
        "-" if ms is None else f"{'over ' if ms >= most else ''}{latency(ms)}"
        for ms in (rates.p50_ms, rates.p99_ms)
    )
    return Text(f"latency    median {p50}, p99 {p99}; in flight {traffic.in_flight:,}")


def _nodes(nodes: list[Node]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("node", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("role", no_wrap=True, overflow="ellipsis", max_width=14)
    table.add_column("partitions")
    table.add_column("lag", justify="right", no_wrap=True)
    table.add_column("heard", justify="right", no_wrap=True)
    for node in nodes:
        held = node.partitions.values()
        role = f"worker, lane {node.lane or 'a'}" if node.role == "worker" else node.role
        lag = f"{sum(partition.lag for partition in held):,}" if held else "-"
        cells = (node.id, role, _by_state(node), lag)
        table.add_row(*(Text(printable(cell)) for cell in cells), _heard(node.age_ms / 1000))
    if not nodes:
        table.add_row("none")
    return table


def _heard(age_s: float) -> Text:
    return Text(f"silent {age_s:.0f} s", "bold yellow") if age_s >= LATE_S else Text(f"{age_s:.0f} s")


def _by_state(node: Node) -> str:
    """``running 0-3; standby 4``."""
    states = sorted((partition.state, number) for number, partition in node.partitions.items())
    told = [
        f"{state} {ranges(number for _, number in those)}"
        for state, those in groupby(states, key=lambda pair: pair[0])
    ]
    return "; ".join(told) or "-"


def _rejected(rejected: RejectedClients) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rejected", justify="right", no_wrap=True)
    table.add_column(f"client, most rejected in the last {duration(rejected.seconds * 1000)}")
    for item in rejected.items[:FEW]:
        low = f"{item.checks - item.surplus:,} to " if item.surplus else ""
        # Not the column but its cells are not to be wrapped: else the counts would give way to a long id.
        client = Text(printable(item.client_id), no_wrap=True, overflow="ellipsis")
        table.add_row(f"{low}{item.checks:,}", client)
    if not rejected.items:
        table.add_row("-", "nobody")
    return table
