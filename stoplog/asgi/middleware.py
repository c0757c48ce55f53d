"""ASGI middleware that checks every request of an application against its client's limits.

::

    limiter = Limiter("127.0.0.1:9092")
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=lambda c: c.headers.get("x-api-key"))

========================  ==================================================================================
request                   response
========================  ==================================================================================
allowed                   the application's, with ``RateLimit`` and ``RateLimit-Policy``
preflight (CORS)          the application's; it is not charged
denied                    429, a problem (RFC 9457) and ``Retry-After``; the application is not called
blocked address           403, a problem; the application is not called
exempt address            the application's; nothing is charged
without a client id       the application's
no decision in time       the application's; with ``on_unavailable="deny"`` 503 and ``Retry-After``
check failed              the same: a failure of the limiter fails no request that may fail open
========================  ==================================================================================

A WebSocket is checked once, when it opens. A denied one is never accepted. The server answers it
as above if it supports ``websocket.http.response`` (uvicorn and hypercorn do). Otherwise the middleware
closes it with 1013, which the server turns into a 403 before the handshake.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

try:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as exc:
    raise ImportError(
        "RateLimitMiddleware needs Starlette, which is not installed: run pip install 'stoplog[asgi]'",
        name=exc.name,
    ) from exc

from stoplog.asgi.cors import check_order, exposed
from stoplog.asgi.denial import denial_text, render_denial
from stoplog.asgi.outcome import UPGRADED, Charge, Outcome
from stoplog.asgi.rate_limit_headers import Headers, rate_limit_headers
from stoplog.asgi.request_check import TRY_AGAIN_LATER, Identify, Of, RequestCheck
from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer
from stoplog.client.fail_open import OnUnavailable
from stoplog.client.limiter import Limiter
from stoplog.client.reservations import DEFAULT_TTL_MS

_STARTS = ("http.response.start", "websocket.accept")


class RateLimitMiddleware:
    """Checks each request with a limiter before *app* is called.

    The middleware starts the limiter at the end of the application's startup, unless it runs already, and
    stops it with the application. Without a lifespan, as in a mounted application, the first request starts
    it, and the end of the event loop stops it.

    ``CORSMiddleware`` must enclose this middleware, so that browsers can read denials.

    Args:
        app: The application.
        limiter: Decides. The application, its dependencies and other middleware may share it.
        identify: Returns the client id of a request, or ``None`` if the request is not limited. Like the
            functions for *cost*, *plan* and *resource*, it may be sync or async, and its argument is a
            Starlette ``HTTPConnection`` with header fields in UTF-8. Its exceptions reach the application's
            error handlers. By default, the chain of ``STOPLOG_IDENTIFY`` names the client.
        cost: Requests to charge; 0 only looks. A value or a function.
        plan: Plan whose limits apply if the client has none of its own. A value or a function.
        resource: Resource with limits and counters of its own. A value or a function.
        on_unavailable: ``deny`` makes a request fail closed: it is denied with 503 if the store does not
            decide it, or if the limiter fails. By default, it fails open. A value or a function.
        charge: Returns the units to charge for a response, from its status and its header fields (Starlette's
            ``Headers``). *cost* is then reserved before the request, and settled when the response has ended
            (:class:`~stoplog.asgi.outcome.Outcome`). A WebSocket that was accepted has the status 101 and
            ends when it is closed.
        ttl_ms: With *charge*: milliseconds after which the reserved cost is charged in full, at most an hour.
        legacy_headers: Also send ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.

    Raises:
        InvalidInput: *on_unavailable*, *charge* or *ttl_ms* is invalid, or nothing names the clients.
        SettingsError: *app* contains Starlette's ``CORSMiddleware``.
        TopicError: At the application's startup, if the broker's topics contradict topics.yaml.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: Limiter,
        identify: Identify | None = None,
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        on_unavailable: Of[OnUnavailable] = "allow",
        charge: Charge | None = None,
        ttl_ms: int = DEFAULT_TTL_MS,
        legacy_headers: bool = False,
    ) -> None:
        check_order(app)
        self.app = app
        self._limiter = limiter
        self._legacy = legacy_headers
        self._request_check = RequestCheck(
            limiter,
            identify,
            cost=cost,
            plan=plan,
            resource=resource,
            on_unavailable=on_unavailable,
            charge=charge,
            ttl_ms=ttl_ms,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            return await self._run_lifespan(scope, receive, send)
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        answer, outcome = await self._request_check.check(HTTPConnection(scope))
        if answer is None:
            return await self.app(scope, receive, send)
        if not answer.allowed:
            return await self._deny(answer, scope, send)
        send = _adding(exposed(rate_limit_headers(answer, legacy=self._legacy), scope), send)
        if outcome is None:
            return await self.app(scope, receive, send)
        try:
            await self.app(scope, receive, _noting(outcome, send))
        except BaseException as exc:
            outcome.fail(exc)
            raise
        finally:
            await outcome.end()

    async def _deny(self, answer: Answer, scope: Scope, send: Send) -> None:
        status, headers, body = render_denial(answer, legacy=self._legacy)
        rendered = Rendered(status, exposed(headers, scope), body)
        if scope["type"] == "http":
            await _respond("http", rendered, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await _respond("websocket.http", rendered, send)
        else:
            detail, _ = denial_text(answer)
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": detail})

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:

            async def send_around(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete" and not self._limiter.running:
                    await stack.enter_async_context(self._limiter)
                elif message["type"].startswith("lifespan.shutdown"):
                    await stack.aclose()  # the server may end at any time after this message
                await send(message)

            await self.app(scope, receive, send_around)


def _adding(headers: Headers, send: Send) -> Send:
    """Return a *send* that adds *headers*, unless the application sends a ``RateLimit`` field itself."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] in _STARTS:
            own = list(message.get("headers", ()))
            if not any(name.lower() == b"ratelimit" for name, _ in own):
                message = {**message, "headers": [*own, *headers]}
        await send(message)

    return send_with_headers


def _noting(outcome: Outcome, send: Send) -> Send:
    """Return a *send* that notes the response in *outcome*, and settles when it has ended."""

    async def send_and_note(message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                outcome.respond(message["status"], message.get("headers", ()))
            case "websocket.accept":
                outcome.respond(UPGRADED, message.get("headers", ()))
        try:
            await send(message)
        except Exception:
            outcome.cut_off()
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            outcome.settle()  # background tasks of the application follow

    return send_and_note


async def _respond(kind: str, rendered: Rendered, send: Send) -> None:
    status, headers, body = rendered
    await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
