"""What the shell offers for a client, a plan or a resource when Tab is pressed: those that have limits."""

from __future__ import annotations

import typer

from gateway.cli.api import DEFAULT_URL, stored


def clients(ctx: typer.Context, incomplete: str) -> list[str]:
    """Clients with limits of their own."""
    return _distinct(ctx, "client", "id", incomplete)


def plans(ctx: typer.Context, incomplete: str) -> list[str]:
    """Plans that have limits."""
    return _distinct(ctx, "plan", "id", incomplete)


def resources(ctx: typer.Context, incomplete: str) -> list[str]:
    """Resources for which somebody has limits."""
    kinds = ("default", "plan", "client")
    return sorted({name for kind in kinds for name in _distinct(ctx, kind, "resource", incomplete)})


def _distinct(ctx: typer.Context, kind: str, member: str, incomplete: str) -> list[str]:
    values = {item[member] for item in stored(ctx.params.get("url") or DEFAULT_URL, kind)}
    return sorted(value for value in values if value and value.startswith(incomplete))
