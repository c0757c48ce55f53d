"""``stoplog check``, ``reset`` and ``status``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stoplog.client.fail_open import OnUnavailable
from stoplog_gateway.cli import completion
from stoplog_gateway.cli.formatting import failed_open, printable
from stoplog_gateway.cli.gateway_options import calls_gateway
from stoplog_gateway.cli.http_client import DEFAULT_URL, Url, call, segment
from stoplog_gateway.cli.output import REFUSED, AsJson, examples, out, print_json

Client = Annotated[
    str,
    typer.Argument(
        help="Client id, such as an API key or a user id.",
        show_default=False,
        autocompletion=completion.clients,
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        help="Plan whose limits apply if the client has none of its own.",
        metavar="P",
        autocompletion=completion.plans,
    ),
]

ResourceOption = Annotated[
    str | None,
    typer.Option(
        "--resource",
        help="Resource with limits and counts of its own.",
        metavar="R",
        autocompletion=completion.resources,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command(
        epilog=examples(
            "stoplog check alice",
            "stoplog check alice --cost 0",
            "stoplog check bob --plan free",
            "stoplog check carol --resource login --on-unavailable deny",
        )
    )(check)
    app.command(epilog=examples("stoplog reset alice", "stoplog reset alice --resource login"))(reset)
    app.command(epilog=examples("stoplog status", "stoplog status --json | jq .mode"))(status)


@calls_gateway
def check(
    client: Client,
    cost: Annotated[int, typer.Option(help="Requests to count. 0 shows the state and counts nothing.")] = 1,
    plan: PlanOption = None,
    resource: ResourceOption = None,
    on_unavailable: Annotated[
        OnUnavailable | None,
        typer.Option(
            help="Answer if the store does not decide in time. By default, allow.", show_default=False
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Count one request, or more, against a client's limits. Exit status 1: denied."""
    body = {
        "client_id": client,
        "cost": cost,
        "plan": plan,
        "resource": resource,
        "on_unavailable": on_unavailable,
    }
    answer = call(url, "POST", "/v1/check", body={k: v for k, v in body.items() if v is not None})
    if as_json:
        print_json(answer)
    else:
        out.print(_sentence(answer))
    if not answer["allowed"]:
        raise typer.Exit(REFUSED)


def _sentence(answer: dict[str, Any]) -> Text:
    if answer.get("degraded"):
        why = " without the store (degraded): the limit is not known"
        return Text.assemble(("allowed" if answer["allowed"] else "denied", "yellow"), why)
    if answer["allowed"]:
        limited = answer.get("limit") is not None
        left = f"{answer['remaining']} of {answer['limit']} left" if limited else "unlimited"
        return Text.assemble(("allowed", "green"), f": {left}")
    if answer.get("retry_after_ms") is None:
        why = f"the limit is {answer['limit']}, and waiting cannot help"
    else:
        why = f"limit {answer['limit']}, try again in {answer['retry_after_ms'] / 1000:.1f} s"
    return Text.assemble(("denied", "red"), f": {why}")


@calls_gateway
def reset(
    client: Client, resource: ResourceOption = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Set the counters of a client to zero. Its limits stay."""
    answer = call(url, "POST", f"/v1/clients/{segment(client)}/reset", resource=resource)
    if as_json:
        print_json(answer)
    else:
        out.print(printable(f"{client}: " + applied("counters reset", answer, "nothing to reset")))


def applied(what: str, answer: dict[str, Any], nothing: str = "") -> str:
    """Return *what*, and a note if no worker has confirmed it yet; *nothing* if nothing existed."""
    if answer.get("existed") is False:
        return nothing
    return what if answer.get("applied", True) else f"{what}: stored, but no worker has confirmed it yet"


@calls_gateway
def status(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show whether workers answer the checks, and all gateways and workers."""
    answer = call(url, "GET", "/v1/status")
    if as_json:
        print_json(answer)
        return
    color = "green" if answer["mode"] == "normal" else "yellow"
    since = datetime.fromtimestamp(answer["since_ms"] / 1000, UTC).astimezone().isoformat(" ", "seconds")
    some = f" ({answer['degraded_processes']} of {answer['processes']} processes)"
    several = answer["mode"] != "normal" and answer.get("processes", 1) > 1
    mode = Text.assemble((answer["mode"], color), f" since {since}", some if several else "")
    out.print(Text.assemble("mode   ", mode, _because(answer["why"])))
    if answer["mode"] != "normal":
        counts = (answer["degraded_partitions"], answer["let_through"], answer["uncounted"])
        out.print(f"       {failed_open(*counts, answer.get('failed_closed', 0))}")
    out.print(printable(f"store  {answer['store']}") + _because(answer["store_why"]))
    table = Table("node", "role", "lane", "version", "partitions", "lag")
    for node in answer["nodes"]:
        held = node["partitions"]
        lag = str(sum(partition["lag"] for partition in held.values())) if held else "-"
        cells = (node["id"], node["role"], node["lane"] or "-", node["version"], _by_state(held), lag)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    out.print(table)


def _by_state(held: dict[str, dict[str, Any]]) -> str:
    """Return partitions by state: ``running 0, 1; standby 2``."""
    states: dict[str, list[str]] = {}
    for number, partition in held.items():
        states.setdefault(partition["state"], []).append(number)
    return "; ".join(f"{state} {', '.join(numbers)}" for state, numbers in states.items()) or "-"


def _because(why: str | None) -> str:
    return f": {printable(why)}" if why else ""
