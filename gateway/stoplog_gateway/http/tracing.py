"""Continue the trace that an HTTP request names in its header fields."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from stoplog.client.tracing import continued_trace
from stoplog.tracing import FIELDS

_FIELDS: Final = frozenset(name.encode() for name in FIELDS)


class RequestTracing:
    """Continue the callers' traces. Exists only if tracing is on."""

    def continue_trace(self, headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[None]:
        """Return a context in which new spans continue the trace that *headers* name, if they name one."""
        return continued_trace({name.decode(): value for name, value in headers if name in _FIELDS})

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI application that continues the trace of each request to *app*."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            with self.continue_trace(scope.get("headers", ())):
                await app(scope, receive, send)

        return traced
