"""The hot path: ``POST /v1/check`` and ``/v1/checks`` answered in front of the framework.

The framework's way to a route costs several times what a check does. What is plainly a check, JSON whose
length is announced and whose body is there at once, is answered here; all else is passed on as it came, and
answered by the routes in :mod:`gateway.api.check`. Both ways read and render by the same functions, and
a property test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.check import parse_check, parse_checks, render_answer
from gateway.api.problems import render_bug, render_error
from gateway.api.responses import JSON, Rendered, render
from gateway.body import is_json
from gateway.limiter import Limiter

_MAX_DIGITS: Final = 6
"""Digits of a ``Content-Length``: below 1 MB a body is within every route's limit."""


class HotPath:
    """Answers checks; everything else is *app*'s.

    Args:
        app: The whole API, with routes for checks too.
        limiter: The one that *app* asks.
        legacy_headers: As in the settings of *app*.
    """

    def __init__(self, app: ASGIApp, limiter: Limiter, *, legacy_headers: bool) -> None:
        self._app = app
        self._legacy = legacy_headers
        self._limiter = limiter
        self._hot: Final[dict[str | None, Callable[[bytes], Awaitable[Rendered]]]] = {
            "/v1/check": self._check,
            "/v1/checks": self._check_list,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        answer = self._hot.get(scope.get("path"))
        if answer is None or scope.get("method") != "POST" or not _is_plain(scope["headers"]):
            return await self._app(scope, receive, send)
        message = await receive()
        if message["type"] != "http.request" or message.get("more_body"):
            return await self._app(scope, _again(message, receive), send)
        try:
            rendered = await answer(message.get("body", b""))
        except Exception as exc:  # noqa: BLE001 - render_bug logs it
            rendered = render_error(exc) or render_bug(scope)
        status, headers, body = rendered
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _check(self, body: bytes) -> Rendered:
        asked = parse_check(body)
        answer = await self._limiter.check(asked.client, asked.cost, plan=asked.plan, resource=asked.resource)
        return render_answer(answer, legacy=self._legacy)

    async def _check_list(self, body: bytes) -> Rendered:
        return render(await self._limiter.check_many(parse_checks(body)))


def _is_plain(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether they announce JSON, and not too much; of a repeated field the first counts, as in routes."""
    media = length = None
    for name, value in headers:
        if name == b"content-type" and media is None:
            media = value
        elif name == b"content-length" and length is None:
            length = value
    if media is None or not length or len(length) > _MAX_DIGITS:
        return False
    return media == JSON or is_json(media.decode("latin-1"))


def _again(first: Message, receive: Receive) -> Receive:
    """A *receive* that begins with the message already taken from it."""
    taken = [first]

    async def receive_again() -> Message:
        return taken.pop() if taken else await receive()

    return receive_again
