"""``stoplog verify``: the proof, on a running system, that what was decided follows from the log."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from stoplog_gateway.cli.output import AsJson, examples


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=examples("stoplog verify", "stoplog verify --seconds 60", "stoplog verify --json"))(
        verify
    )


def verify(
    seconds: Annotated[float, typer.Option(min=0, help="How long to let the log go on meanwhile.")] = 5.0,
    lane: Annotated[str | None, typer.Option(help="The lane to verify; the default one is a.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute what workers decide meanwhile, and compare. Only reads.

    Exit status: 0 if nothing differs, 1 if anything does, 3 if it could not be verified.
    """
    if lane is not None:
        os.environ["STOPLOG_LANE"] = lane
    # Another program in this process: the gateway's side imports nothing of the worker.
    command = [sys.executable, "-m", "stoplog_worker", "verify", "--seconds", str(seconds)]
    os.execv(sys.executable, [*command, "--json"] if as_json else command)
