"""Requests over HTTP go on with the trace that they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.client.answer import PendingAnswer
from stoplog.client.tracing import going_on
from stoplog.tracing import FIELDS
from stoplog_gateway.http.fast_path import HotPath

_FIELDS: Final = frozenset(name.encode() for name in FIELDS)


class TracedApp:
    """An ASGI application whose spans go on with the trace that a request names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        with going_on(_named(scope.get("headers", ()))):
            await self._app(scope, receive, send)


class TracedHotPath(HotPath):
    """A hot path whose spans do so, too."""

    def ask(self, body: bytes, headers: Headers) -> PendingAnswer:
        """As a hot path does."""
        with going_on(_named(headers)):
            return super().ask(body, headers)

    def ask_many(self, body: bytes, headers: Headers) -> list[PendingAnswer]:
        """As a hot path does."""
        with going_on(_named(headers)):
            return super().ask_many(body, headers)


def _named(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in headers if name in _FIELDS}
