"""``stoplog usage``: what a client has used of its limits, and what is held."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from rich.table import Column, Table

from stoplog_gateway.cli.check import Client, PlanOption, ResourceOption
from stoplog_gateway.cli.formatting import duration, printable
from stoplog_gateway.cli.gateway_options import calls_gateway
from stoplog_gateway.cli.http_client import DEFAULT_URL, Url, call, segment
from stoplog_gateway.cli.output import AsJson, examples, out, print_json


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=examples("stoplog usage alice", "stoplog usage bob --plan free --json | jq .holds"))(
        usage
    )


@calls_gateway
def usage(
    client: Client,
    plan: PlanOption = None,
    resource: ResourceOption = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what a client has used of each limit, and what is held. Charges nothing."""
    answer = call(url, "GET", f"/v1/clients/{segment(client)}/usage", plan=plan, resource=resource)
    if as_json:
        print_json(answer)
        return
    out.print(printable(f"{client}: {_source(answer['held_to'])}"))
    if answer["windows"]:
        numbers = (Column(name, justify="right") for name in ("left", "charged", "held", "all free in"))
        table = Table("limit", *numbers)
        for window in answer["windows"]:
            table.add_row(*_cells(window))
        out.print(table)
    else:
        out.print("unlimited: no check is counted")
    if "holds" in answer:  # a gateway of release 0.2.0 knows no holds
        out.print(held(answer["holds"]))


def _source(held_to: dict[str, Any] | None) -> str:
    """Return where the limits in effect are stored."""
    if held_to is None:
        return "the built-in default applies"
    what = {"client": "its own limits apply", "plan": f"the limits of plan {held_to['id']} apply"}
    text = what.get(held_to["kind"], "the default limits apply")
    return f"{text}, for resource {held_to['resource']}" if held_to["resource"] else text


def _cells(window: dict[str, Any]) -> Iterator[str]:
    """Return the cells of one limit: its maximum is the number with which its text begins."""
    used, held = window["used"], window.get("held", 0)
    left = max(0, int(re.split("[ /]", window["limit"])[0]) - used)
    yield window["limit"]
    yield from (f"{number:,}" for number in (left, used - held, held))
    yield duration(window["reset_after_ms"]) if window["reset_after_ms"] else "-"


def held(holds: dict[str, dict[str, Any]]) -> str:
    """Return what is held, in a sentence.

    >>> reserved, leased = {"open": 2, "units": 40, "next_end_ms": 12_000}, {"open": 0, "units": 0}
    >>> print(held({"reservations": reserved, "leases": leased}))
    held: 2 open reservations with 40 units, the next one ends in 12 s
    >>> print(held({"reservations": leased, "leases": leased}))
    held: nothing
    """
    parts = []
    for kind, name in (("reservations", "reservation"), ("leases", "lease")):
        found = holds[kind]
        if number := found["open"]:
            units = f"{found['units']:,} unit{'' if found['units'] == 1 else 's'}"
            next_end = "it ends" if number == 1 else "the next one ends"
            several = "" if number == 1 else "s"
            ends_in = duration(found["next_end_ms"])
            parts.append(f"{number:,} open {name}{several} with {units}, {next_end} in {ends_in}")
    return f"held: {'; '.join(parts) or 'nothing'}"
