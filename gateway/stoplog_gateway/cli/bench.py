"""``stoplog bench``: measure how fast a running system answers checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stoplog.client.settings import Settings
from stoplog_gateway.cli.extras import require
from stoplog_gateway.cli.gateway_options import calls_gateway
from stoplog_gateway.cli.http_client import DEFAULT_URL, Url, call
from stoplog_gateway.cli.load_generator import MAX_CHECKS, SendCheck, Tally, generate_load
from stoplog_gateway.cli.output import AsJson, err, examples, out, print_json, reporting
from stoplog_gateway.kafka_reachable import ensure_reachable

_SECONDS: Final = 10.0
_QUICK_S: Final = 2.0
_REFRESH_S: Final = 0.1
"""Seconds between two updates of the progress bar."""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(
        epilog=examples("stoplog bench --quick", "stoplog bench --sdk --callers 256", "stoplog bench --json")
    )(bench)


@calls_gateway
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Measure for {_QUICK_S:g} seconds instead of {_SECONDS:g}.")
    ] = False,
    sdk: Annotated[
        bool,
        typer.Option("--sdk", help="Check through the SDK and Kafka (STOPLOG_KAFKA), without a gateway."),
    ] = False,
    callers: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            help="Concurrent callers. Each sends its next check when the last one is answered.",
        ),
    ] = 32,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Send checks to a running system for a short time and report throughput and latency.

    The checks, at most 1,000,000, are counted for 10,000 clients, stoplog-bench-0 and so on.

    All callers run in this one process, so a gateway can do more than this measures.
    """
    seconds = _QUICK_S if quick else _SECONDS
    with reporting():
        if sdk:
            settings = Settings()
            ensure_reachable(settings.connection)
            target, opened = f"Kafka at {settings.bootstrap}", _sdk_callers(settings, callers)
        else:
            require("gateway")  # brings httptools
            from stoplog_gateway.cli.raw_client import connected

            call(url, "GET", "/healthz")
            target, opened = url, connected(url, callers)
        tally = _run(opened, seconds)
    p50, p99, p999 = tally.percentiles_ms(50, 99, 99.9)
    result: dict[str, Any] = {
        "through": target,
        "callers": callers,
        "seconds": round(tally.seconds, 3),
        "checks": tally.checks,
        "checks_per_s": round(tally.checks / tally.seconds, 1),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "p99_9_ms": round(p999, 3),
        "allowed": tally.allowed,
        "denied": tally.denied,
        "degraded": tally.degraded,
    }
    if as_json:
        print_json(result)
    else:
        _show(result)
    if tally.degraded:
        err.print(
            f"stoplog: {tally.degraded:,} checks failed open without an answer of a worker: "
            f"`stoplog status` shows the reason",
            style="yellow",
        )


@asynccontextmanager
async def _sdk_callers(settings: Settings, callers: int) -> AsyncIterator[list[SendCheck]]:
    """Return the check of one limiter for all callers."""
    from stoplog.client.limiter import Limiter  # the other commands start faster without it

    async with Limiter(settings) as limiter:
        yield [limiter.check] * callers


def _run(opened: AbstractAsyncContextManager[list[SendCheck]], seconds: float) -> Tally:
    import uvloop

    tally = Tally()
    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.fields[checks]:,} checks"),
        TimeRemainingColumn(),
    )

    async def run() -> None:
        async with opened as callers:
            with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
                showing = asyncio.create_task(_show_progress(progress, tally, seconds))
                try:
                    await generate_load(callers, tally, seconds=seconds)
                finally:
                    showing.cancel()

    uvloop.run(run())
    return tally


async def _show_progress(progress: Progress, tally: Tally, seconds: float) -> None:
    task = progress.add_task("measuring", total=seconds, checks=0)
    began = monotonic()
    while True:
        # The run ends at the first of two bounds.
        done = max((monotonic() - began) / seconds, tally.checks / MAX_CHECKS)
        progress.update(task, completed=done * seconds, checks=tally.checks)
        await asyncio.sleep(_REFRESH_S)


def _show(result: dict[str, Any]) -> None:
    checks, seconds, callers = result["checks"], result["seconds"], result["callers"]
    out.print(f"{checks:,} checks in {seconds:.1f} s by {callers} callers of {result['through']}")
    table = Table()
    for name in ("checks/s", "p50 ms", "p99 ms", "p99.9 ms", "allowed", "denied", "degraded"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{result['checks_per_s']:,.0f}",
        *(f"{result[name]:.2f}" for name in ("p50_ms", "p99_ms", "p99_9_ms")),
        *(f"{result[name]:,}" for name in ("allowed", "denied", "degraded")),
    )
    out.print(table)
