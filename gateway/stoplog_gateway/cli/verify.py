"""``stoplog verify``: prove on a running system that the decisions follow from the log."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from stoplog_gateway.cli.extras import require
from stoplog_gateway.cli.output import AsJson, examples


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=examples("stoplog verify", "stoplog verify --seconds 60", "stoplog verify --json"))(
        verify
    )


def verify(
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to follow the log.")] = 5.0,
    lane: Annotated[str | None, typer.Option(help="Lane to verify. The default lane is a.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the decisions of the workers from the log and compare. Writes nothing.

    Exit status: 0 no difference, 1 a difference, 3 nothing was verified.
    """
    require("worker")
    if lane is not None:
        os.environ["STOPLOG_LANE"] = lane
    # Replace this process by another program: the gateway's package imports nothing of the worker's.
    command = [sys.executable, "-m", "stoplog_worker", "verify", "--seconds", str(seconds)]
    os.execv(sys.executable, [*command, "--json"] if as_json else command)
