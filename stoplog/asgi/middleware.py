"""ASGI middleware: the requests of a whole application, each held to its client's limits.

::

    limiter = Limiter("127.0.0.1:9092")
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=lambda c: c.headers.get("x-api-key"))

==============================  ======================================================================
a request that                  gets
==============================  ======================================================================
is allowed                      the application's response, with ``RateLimit`` and ``RateLimit-Policy``
is denied                       429, a problem (RFC 9457) and ``Retry-After``; the application is not called
nobody is limited for           the application's response
the store cannot be asked for   likewise: whatever fails in here, the application goes on
==============================  ======================================================================

A WebSocket is asked about once, when it opens. Denied, it is never accepted: the server answers 429, as
above, if it can (``websocket.http.response``: uvicorn and hypercorn do), else closes it with 1013, which is a
403 before the handshake.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from stoplog_gateway.http.problems import RATE_LIMITED, problem
from stoplog_gateway.http.responses import PROBLEM, Rendered, render

from stoplog.asgi.rate_limit_headers import Headers, rate_limit_headers
from stoplog.asgi.request_check import TRY_AGAIN_LATER, Asking, Identify, Of, refusal
from stoplog.client.answer import Answer
from stoplog.client.limiter import Limiter

_STARTS = ("http.response.start", "websocket.accept")


class RateLimitMiddleware:
    """Asks a limiter about every request before *app* sees it.

    A limiter that the application has not entered by the end of its startup is started then, and stopped with
    it. An application without a lifespan has to enter it (``async with limiter:``); until it does, nothing is
    limited.

    Args:
        app: The application.
        limiter: What is asked; other middleware, dependencies and the application itself may share it.
        identify: The client's id, or ``None``: not limited. A function of the request, as all of these may
            be: sync or async, given a Starlette ``HTTPConnection``, raising what the application shall see.
        cost: Requests to spend; 0 only looks.
        plan: Whose limits hold if the client has none of its own.
        resource: What is limited apart from the rest.
        legacy_headers: Send ``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` too.

    Raises:
        TopicError: at the application's startup, whose end it is: the broker's topics contradict topics.yaml.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: Limiter,
        identify: Identify,
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        legacy_headers: bool = False,
    ) -> None:
        self.app = app
        self._limiter = limiter
        self._legacy = legacy_headers
        self._asking = Asking(limiter, identify, cost=cost, plan=plan, resource=resource)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            return await self._live(scope, receive, send)
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        answer = await self._asking.ask(HTTPConnection(scope))
        if answer is None:
            return await self.app(scope, receive, send)
        if not answer.allowed:
            return await self._deny(answer, scope, send)
        await self.app(scope, receive, _telling(rate_limit_headers(answer, legacy=self._legacy), send))

    async def _deny(self, answer: Answer, scope: Scope, send: Send) -> None:
        rendered = render_refusal(answer, legacy=self._legacy)
        if scope["type"] == "http":
            await _respond("http", rendered, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await _respond("websocket.http", rendered, send)
        else:
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": refusal(answer)[0]})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as ours:

            async def around(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete" and not self._limiter.running:
                    await ours.enter_async_context(self._limiter)
                elif message["type"].startswith("lifespan.shutdown"):
                    await ours.aclose()  # once this is sent, the server may end at any time
                await send(message)

            await self.app(scope, receive, around)


def _telling(headers: Headers, send: Send) -> Send:
    """Adds *headers* to what is sent, unless the application says itself how its caller stands."""

    async def tell(message: Message) -> None:
        if message["type"] in _STARTS:
            given = list(message.get("headers", ()))
            if not any(name.lower() == b"ratelimit" for name, _ in given):
                message = {**message, "headers": [*given, *headers]}
        await send(message)

    return tell


async def _respond(kind: str, rendered: Rendered, send: Send) -> None:
    status, headers, body = rendered
    await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


def render_refusal(answer: Answer, *, legacy: bool) -> Rendered:
    """The response to a request that was denied; *legacy*: with the older header fields."""
    detail, remedy = refusal(answer)
    what = problem(RATE_LIMITED, detail, None, remedy)
    return render(what, what.status, rate_limit_headers(answer, legacy=legacy), media=PROBLEM)
