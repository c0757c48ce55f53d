"""Shell completion: the clients, plans and resources that have limits, and limits."""

from __future__ import annotations

import re
from typing import Final

import typer

from stoplog_gateway.cli.http_client import DEFAULT_URL, stored

_PLAIN: Final = re.compile(r"[\w.@:/+=-]+", re.ASCII)
"""Ids that are completed. Shells evaluate completions and ids are untrusted, so all others must be typed."""

_UNITS: Final = ("second", "minute", "hour", "day")


def clients(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the clients with limits of their own."""
    return _distinct(ctx, "client", "id", incomplete)


def client_then_limits(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return clients for the first word and limits for the others; after --plan or --default, only limits."""
    given = ctx.params
    if not (given.get("words") or given.get("plan") is not None or given.get("default")):
        return clients(ctx, incomplete)
    number = incomplete.partition("/")[0]
    if not (number.isascii() and number.isdecimal()):
        number = "100"
    offered = (*(f"{number}/{unit}" for unit in _UNITS), "unlimited")
    return [limit for limit in offered if limit.startswith(incomplete)]


def plans(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the plans that have limits."""
    return _distinct(ctx, "plan", "id", incomplete)


def resources(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the resources that any limits name."""
    kinds = ("default", "plan", "client")
    return sorted({name for kind in kinds for name in _distinct(ctx, kind, "resource", incomplete)})


def _distinct(ctx: typer.Context, kind: str, member: str, incomplete: str) -> list[str]:
    values = {item[member] for item in stored(ctx.params.get("url") or DEFAULT_URL, kind)}
    return sorted(
        value for value in values if value and value.startswith(incomplete) and _PLAIN.fullmatch(value)
    )
