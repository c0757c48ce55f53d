"""Rules for all routes: HEAD is answered as GET, and a gateway for local programs refuses all others."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoplog_gateway.http.auth import require_local
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.responses import RenderedResponse

_FOR_PROXIES: Final = ("/v1/authorize", "/json")
"""Routes that proxies call. Traefik and nginx pass the header fields of their own callers to them."""


class AnswerHead:
    """Answer HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # The server keeps its own scope: it must know that the method is HEAD.
        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class OnlyLocalCallers:
    """Refuse requests from anywhere but programs on the same machine, except on the routes for proxies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, or send 403."""
        if scope["type"] == "http" and not _is_for_proxies(scope["path"]):
            try:
                require_local(scope["headers"])
            except ProblemError as exc:
                rendered = render_error(exc)
                assert rendered is not None
                return await RenderedResponse(rendered)(scope, receive, send)
        await self.app(scope, receive, send)


def _is_for_proxies(path: str) -> bool:
    return path in _FOR_PROXIES or path.startswith("/v1/authorize/")
