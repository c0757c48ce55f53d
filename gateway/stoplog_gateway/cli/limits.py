"""``stoplog limits``: limits of a client, of a plan (``--plan``), and the default (``--default``)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from stoplog_gateway.cli import completion
from stoplog_gateway.cli.check import ResourceOption, applied
from stoplog_gateway.cli.formatting import printable
from stoplog_gateway.cli.gateway_options import calls_gateway
from stoplog_gateway.cli.http_client import DEFAULT_URL, Url, call, segment
from stoplog_gateway.cli.output import USAGE, AsJson, examples, fail, out, print_json

_PAGE: Final = 1_000
"""Changes that one page of the HTTP API has, at most."""

app = typer.Typer(
    name="limits",
    help="Set, show and delete limits in a running system, and show their history.",
    no_args_is_help=True,
    epilog=examples("stoplog limits set alice 100/minute 10/second", "stoplog limits list"),
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CLIENT] LIMIT",
        help="A client, then its limits: 100/minute, 40/2s, 1000/1h, 0/minute (blocks), '10 in flight', "
        "refundable or unlimited. With --plan or --default, only limits.",
        show_default=False,
        autocompletion=completion.client_then_limits,
    ),
]
OneClient = Annotated[
    str | None,
    typer.Argument(
        metavar="[CLIENT]",
        help="A client. Leave it out with --plan or --default.",
        show_default=False,
        autocompletion=completion.clients,
    ),
]
Plan = Annotated[
    str | None,
    typer.Option("--plan", help="A plan instead of a client.", metavar="P", autocompletion=completion.plans),
]
Default = Annotated[
    bool, typer.Option("--default", help="The default for clients without limits of their own.")
]


@app.command(
    "set",
    epilog=examples(
        "stoplog limits set alice 100/minute 10/second",
        "stoplog limits set alice 5/minute --resource login",
        "stoplog limits set --plan free 1000/day",
        "stoplog limits set --default unlimited",
    ),
)
@calls_gateway
def set_(
    words: Words = None,
    plan: Plan = None,
    default: Default = False,
    resource: ResourceOption = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Set limits, all of which a check must pass. Ends when every later check uses them."""
    given = list(words or ())
    client = None if plan is not None or default else (given.pop(0) if given else None)
    path = _path(client, plan, default)
    if not given:
        fail("no limit given: add one such as 100/minute, or unlimited", USAGE)
    limits = "unlimited" if given == ["unlimited"] else given
    answer = call(url, "PUT", path, body={"limits": limits}, resource=resource)
    _show(answer, applied(_written(answer["limits"]), answer), as_json)


@app.command(epilog=examples("stoplog limits get alice", "stoplog limits get --plan free"))
@calls_gateway
def get(
    client: OneClient = None,
    plan: Plan = None,
    default: Default = False,
    resource: ResourceOption = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the limits stored under exactly this name."""
    answer = call(url, "GET", _path(client, plan, default), resource=resource)
    _show(answer, _written(answer["limits"]), as_json)


@app.command(epilog=examples("stoplog limits delete alice", "stoplog limits delete alice --resource login"))
@calls_gateway
def delete(
    client: OneClient = None,
    plan: Plan = None,
    default: Default = False,
    resource: ResourceOption = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Delete limits. Afterwards, the limits of the plan or the default apply. Can be repeated."""
    answer = call(url, "DELETE", _path(client, plan, default), resource=resource)
    _show(answer, applied("deleted", answer, "nothing to delete"), as_json)


@app.command(epilog=examples("stoplog limits history alice", "stoplog limits history --plan free --json"))
@calls_gateway
def history(
    client: OneClient = None,
    plan: Plan = None,
    default: Default = False,
    resource: ResourceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Number of changes to show.")] = 100,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the changes of limits and the resets of counters, the newest first."""
    path = f"{_path(client, plan, default)}/history"
    found = list(islice(_changes(url, path, limit, resource), limit))
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no change is recorded")
    for change in found:  # no table: on a narrow terminal, its columns would be too narrow to read
        at = datetime.fromtimestamp(change["at_ms"] / 1000, UTC).astimezone().isoformat(" ", "seconds")
        what = " ".join(filter(None, (change["change"], change["resource"])))
        if change["change"] != "reset":
            limits, before = (_written(change[name] or "no limits") for name in ("limits", "previous_limits"))
            what += f": {limits}, before: {before}"
        source = f"{change['who']} from {change['address'] or '-'}, request {change['request_id'] or '-'}"
        lines = f"{at}  {what}", f"    by {source}, version {change['policy_version']}"
        for line in lines:
            out.print(Text(printable(line)), soft_wrap=True)


def _changes(url: str, path: str, limit: int, resource: str | None) -> Iterator[dict[str, Any]]:
    before, shown = None, set()
    while True:
        page = call(url, "GET", path, before=before, limit=str(min(limit, _PAGE)), resource=resource)
        for change in page["items"]:
            if change["position"] not in shown:  # a change can be on two pages
                shown.add(change["position"])
                yield change
        before = page["next"]
        if before is None:
            return


@app.command("list", epilog=examples("stoplog limits list", "stoplog limits list --json | jq length"))
@calls_gateway
def list_(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all stored limits."""
    # A key that changes meanwhile can be on two pages; the later one has the current limits.
    pages = {(item["kind"], item["id"], item["resource"]): item for item in _pages(url)}
    found = [item for item in pages.values() if item["limits"] is not None]
    if as_json:
        print_json(found)
        return
    table = Table("kind", "id", "resource", "limits")
    for item in found:
        cells = (item["kind"], item["id"] or "-", item["resource"] or "-", _written(item["limits"]))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    out.print(table)


def _pages(url: str) -> Iterator[dict[str, Any]]:
    after = None
    while True:
        page = call(url, "GET", "/v1/limits", after=after)
        yield from page["items"]
        after = page["next"]
        if after is None:
            return


def _path(client: str | None, plan: str | None, default: bool) -> str:
    """Return the path for the one of the three that is given; end the command unless it is exactly one."""
    if (client is not None) + (plan is not None) + default != 1:
        fail("give exactly one of: a client, --plan P, --default", USAGE)
    if plan is not None:
        return f"/v1/plans/{segment(plan)}"
    return f"/v1/limits/{segment(client)}" if client is not None else "/v1/default"


def _show(answer: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    name = " ".join(filter(None, (answer["kind"], answer["id"], answer["resource"])))
    out.print(printable(f"{name}: {what}"))


def _written(limits: list[str] | str) -> str:
    return limits if isinstance(limits, str) else ", ".join(limits)
