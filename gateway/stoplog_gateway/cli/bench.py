"""``stoplog bench``: how fast checks are answered here and now."""

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
from stoplog_gateway.cli.http_client import DEFAULT_URL, Url, call
from stoplog_gateway.cli.load_generator import MOST, Ask, Tally, put_load
from stoplog_gateway.cli.output import AsJson, err, examples, out, print_json, reporting
from stoplog_gateway.cli.raw_client import connected
from stoplog_gateway.local.kafka_broker import reachable

_SECONDS: Final = 10.0
_QUICK_S: Final = 2.0
_LOOK_S: Final = 0.1
"""Between two looks at how far it is."""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(
        epilog=examples("stoplog bench --quick", "stoplog bench --sdk --callers 256", "stoplog bench --json")
    )(bench)


def bench(
    quick: Annotated[bool, typer.Option("--quick", help=f"{_QUICK_S:g} seconds, not {_SECONDS:g}.")] = False,
    sdk: Annotated[
        bool,
        typer.Option("--sdk", help="Ask Kafka (STOPLOG_KAFKA) without a gateway, as Python programs can."),
    ] = False,
    callers: Annotated[
        int, typer.Option(min=1, max=1024, help="Callers, each of which waits for its answer.")
    ] = 32,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Put a short load of checks on a running system and say how fast they were answered.

    They are at most 1,000,000, of 10,000 clients (stoplog-bench-0 and on), and counted as any others. All
    callers run in this one process: what it reaches is not all that a gateway can do.
    """
    seconds = _QUICK_S if quick else _SECONDS
    with reporting():
        if sdk:
            settings = Settings()
            reachable(settings.bootstrap)
            through, ways = f"Kafka at {settings.bootstrap}", _sharing_a_limiter(settings, callers)
        else:
            call(url, "GET", "/v1/status")
            through, ways = url, connected(url, callers)
        tally = _run(ways, seconds)
    p50, p99, p999 = tally.percentiles_ms(50, 99, 99.9)
    told: dict[str, Any] = {
        "through": through,
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
        print_json(told)
    else:
        _show(told)
    if tally.degraded:
        err.print(
            f"stoplog: {tally.degraded:,} checks were let through without the store's answer: "
            f"`stoplog status` says why",
            style="yellow",
        )


@asynccontextmanager
async def _sharing_a_limiter(settings: Settings, callers: int) -> AsyncIterator[list[Ask]]:
    from stoplog.client.limiter import Limiter  # the other commands start faster without it

    async with Limiter(settings) as limiter:
        yield [limiter.check] * callers


def _run(ways: AbstractAsyncContextManager[list[Ask]], seconds: float) -> Tally:
    import uvloop

    tally = Tally()
    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.fields[checks]:,} checks"),
        TimeRemainingColumn(),
    )

    async def run() -> None:
        async with ways as callers:
            with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
                showing = asyncio.create_task(_show_progress(progress, tally, seconds))
                try:
                    await put_load(callers, tally, seconds=seconds)
                finally:
                    showing.cancel()

    uvloop.run(run())
    return tally


async def _show_progress(progress: Progress, tally: Tally, seconds: float) -> None:
    task = progress.add_task("measuring", total=seconds, checks=0)
    began = monotonic()
    while True:
        # Whichever of the two bounds is nearer.
        done = max((monotonic() - began) / seconds, tally.checks / MOST)
        progress.update(task, completed=done * seconds, checks=tally.checks)
        await asyncio.sleep(_LOOK_S)


def _show(told: dict[str, Any]) -> None:
    checks, seconds, callers = told["checks"], told["seconds"], told["callers"]
    out.print(f"{checks:,} checks in {seconds:.1f} s by {callers} callers of {told['through']}")
    table = Table()
    for name in ("checks/s", "p50 ms", "p99 ms", "p99.9 ms", "allowed", "denied", "degraded"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{told['checks_per_s']:,.0f}",
        *(f"{told[name]:.2f}" for name in ("p50_ms", "p99_ms", "p99_9_ms")),
        *(f"{told[name]:,}" for name in ("allowed", "denied", "degraded")),
    )
    out.print(table)
