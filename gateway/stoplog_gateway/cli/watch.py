"""``stoplog watch``: show the state of a running gateway, refreshed every second."""

from __future__ import annotations

import sys
from contextlib import suppress
from time import monotonic, sleep
from typing import Annotated, Any, Final

import httpx
import msgspec
import typer
from rich.console import Console
from rich.live import Live

from stoplog_gateway.cli.gateway_options import calls_gateway
from stoplog_gateway.cli.http_client import DEFAULT_URL, CallFailed, Url, connection, request
from stoplog_gateway.cli.output import UNREACHABLE, AsJson, examples, fail, print_json
from stoplog_gateway.cli.rates import Rates, RecentSamples
from stoplog_gateway.cli.up import stopped_by_signals
from stoplog_gateway.cli.watch_view import Snapshot, view

_TIMEOUT_S: Final = 3.0
"""Short, so that the view soon shows that the gateway does not answer."""

# Unlike the console of the other commands, this one wraps and cuts at the width of the terminal.
_screen: Final = Console(highlight=False, markup=False, emoji=False)


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=examples("stoplog watch", "stoplog watch --once", "stoplog watch --json | jq .rates"))(
        watch
    )


@calls_gateway
def watch(
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two requests.")] = 1.0,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Show the state once and end. This is the default if the output is a pipe."
        ),
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Watch a gateway: mode, checks per second, latency, nodes, most rejected clients. Ctrl-C ends it."""
    # With FORCE_COLOR, Rich takes a pipe for a terminal.
    live = sys.stdout.isatty() and not _screen.is_dumb_terminal
    with connection(url, _TIMEOUT_S) as client:
        if as_json or once or not live:
            _show_once(client, url, interval, as_json)
        else:
            with suppress(KeyboardInterrupt), stopped_by_signals():
                _show_repeatedly(client, url, interval)


def _show_once(client: httpx.Client, url: str, interval: float, as_json: bool) -> None:
    samples = RecentSamples()
    try:
        samples.add(_fetch(client, url).traffic)
        sleep(interval)
        snapshot = _fetch(client, url)
    except CallFailed as exc:
        fail(str(exc), exc.status)
    rates = samples.add(snapshot.traffic)
    if as_json:
        shown = {"rates": rates, **msgspec.structs.asdict(snapshot)}
        print_json(msgspec.to_builtins(shown, str_keys=True))
    else:
        _screen.print(view(url, snapshot, rates))


def _show_repeatedly(client: httpx.Client, url: str, interval: float) -> None:
    samples, rates, snapshot = RecentSamples(), Rates(), None
    with Live(view(url, snapshot, rates), console=_screen, screen=True, auto_refresh=False) as live:
        while True:
            began = monotonic()
            error = None
            try:
                snapshot = _fetch(client, url)
                rates = samples.add(snapshot.traffic)
            except CallFailed as exc:
                error = str(exc)
            live.update(view(url, snapshot, rates, error=error), refresh=True)
            sleep(max(0.0, interval - (monotonic() - began)))


def _fetch(client: httpx.Client, url: str) -> Snapshot:
    """Return the current state of the gateway at *url*.

    Raises:
        CallFailed: the gateway does not answer, or its answer is not one of this version.
    """

    def get(path: str) -> Any:
        return request(client, url, "GET", path)

    # All three go over one connection, so the same process of the gateway answers them, for all processes.
    answers = {
        "status": get("/v1/status"),
        "traffic": get("/v1/traffic"),
        "rejected": get("/v1/clients/rejected"),
    }
    try:
        return msgspec.convert(answers, Snapshot, str_keys=True)
    except msgspec.ValidationError as exc:
        raise CallFailed(
            f"{url} gave an unexpected answer ({exc}): is it a gateway of this version?", UNREACHABLE
        ) from exc
