"""``stoplog watch``: a running gateway as it goes, in a terminal."""

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

from stoplog_gateway.cli.http_client import DEFAULT_URL, Unanswered, Url, ask, connection
from stoplog_gateway.cli.output import REFUSED, UNREACHABLE, AsJson, examples, fail, print_json
from stoplog_gateway.cli.rates import Rates, Recent
from stoplog_gateway.cli.serve import stopped_by_signals
from stoplog_gateway.cli.watch_view import Told, view

_PATIENCE_S: Final = 3.0
"""An answer takes milliseconds, and whoever watches wants to see that none comes."""

# Unlike that of the other commands it wraps and cuts at the terminal's width.
_screen: Final = Console(highlight=False, markup=False, emoji=False)


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=examples("stoplog watch", "stoplog watch --once", "stoplog watch --json | jq .rates"))(
        watch
    )


def watch(
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Show it once and end, as into a pipe: two looks, with rates between."),
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Watch a gateway: mode, checks a second, latency, nodes, most rejected clients. Ctrl-C ends it."""
    # Rich would take a pipe for a terminal where FORCE_COLOR is set.
    live = sys.stdout.isatty() and not _screen.is_dumb_terminal
    with connection(_PATIENCE_S) as client:
        if as_json or once or not live:
            _show_once(client, url, interval, as_json)
        else:
            with suppress(KeyboardInterrupt), stopped_by_signals():
                _show_on(client, url, interval)


def _show_once(client: httpx.Client, url: str, interval: float, as_json: bool) -> None:
    recent = Recent()
    try:
        recent.add(_look(client, url).traffic)
        sleep(interval)
        told = _look(client, url)
    except Unanswered as exc:
        fail(str(exc), exc.status)
    rates = recent.add(told.traffic)
    if as_json:
        seen = {"rates": rates, **msgspec.structs.asdict(told)}
        print_json(msgspec.to_builtins(seen, str_keys=True))
    else:
        _screen.print(view(url, told, rates))


def _show_on(client: httpx.Client, url: str, interval: float) -> None:
    recent, rates, told = Recent(), Rates(), None
    with Live(view(url, told, rates), console=_screen, screen=True, auto_refresh=False) as live:
        while True:
            began = monotonic()
            silent = None
            try:
                told = _look(client, url)
                rates = recent.add(told.traffic)
            except Unanswered as exc:
                silent = str(exc)
            live.update(view(url, told, rates, silent=silent), refresh=True)
            sleep(max(0.0, interval - (monotonic() - began)))


def _look(client: httpx.Client, url: str) -> Told:
    """One look.

    Raises:
        Unanswered: the gateway does not answer, or not as one of this version does.
    """

    def answer(path: str) -> Any:
        return ask(client, url, "GET", path)

    # One after the other, over one connection: of several processes one answers all three, for all.
    said = {"status": answer("/v1/status"), "traffic": answer("/v1/traffic")}
    try:
        said["rejected"] = answer("/v1/clients/rejected")
    except Unanswered as exc:
        if exc.status != REFUSED:
            raise
        said["withheld"] = str(exc)  # without the admin token all else is told
    try:
        return msgspec.convert(said, Told, str_keys=True)
    except msgspec.ValidationError as exc:
        raise Unanswered(
            f"{url} answered something else ({exc}): is it a gateway of this version?", UNREACHABLE
        ) from exc
