"""A FastAPI dependency for single routes, each with limits or a cost of its own."""

try:
    from fastapi import HTTPException, Response, WebSocketException
except ImportError as exc:
    raise ImportError(
        "RateLimit needs FastAPI, which is not installed: run pip install fastapi", name=exc.name
    ) from exc

from starlette.requests import HTTPConnection

from stoplog.asgi.denial import denial_kind, denial_text
from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.request_check import TRY_AGAIN_LATER, Identify, Of, RequestCheck
from stoplog.client.answer import Answer
from stoplog.client.fail_open import OnUnavailable
from stoplog.client.limiter import Limiter

# FastAPI evaluates the annotations of __call__, so this module does not postpone annotations.


class RateLimit:
    """Checks a request with a limiter before its route runs, and returns the answer to the route.

    ::

        @app.post("/reports", dependencies=[Depends(RateLimit(limiter, who, cost=10, resource="reports"))])

    A denied request raises an ``HTTPException`` with ``Retry-After``: of 429, or of 503 if it failed closed.
    The application may render it as it renders others; by default FastAPI answers with a JSON problem. A
    denied WebSocket is closed with 1013. A failure of the limiter fails no route that may fail open. FastAPI
    adds the header fields of an allowed request to the responses that it creates, not to a ``Response`` that
    the route returns.

    The application starts the limiter in its lifespan (``async with limiter:``), or shares it with a
    :class:`~stoplog.asgi.middleware.RateLimitMiddleware`, which does.

    Args:
        limiter: Decides.
        identify: Returns the client id of a request, or ``None`` if the request is not limited. Like the
            functions for *cost*, *plan* and *resource*, it may be sync or async, and its argument is a
            Starlette ``HTTPConnection``. Its exceptions reach the application's error handlers.
        cost: Requests to charge; 0 only looks. A value or a function.
        plan: Plan whose limits apply if the client has none of its own. A value or a function.
        resource: Resource with limits and counters of its own. A value or a function.
        on_unavailable: ``deny`` makes a request fail closed: it is denied with 503 if the store does not
            decide it, or if the limiter fails. By default, it fails open. A value or a function.
        legacy_headers: Also send ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.
    """

    def __init__(
        self,
        limiter: Limiter,
        identify: Identify,
        *,
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        on_unavailable: Of[OnUnavailable] = "allow",
        legacy_headers: bool = False,
    ) -> None:
        self._legacy = legacy_headers
        self._request_check = RequestCheck(
            limiter, identify, cost=cost, plan=plan, resource=resource, on_unavailable=on_unavailable
        )

    async def __call__(self, connection: HTTPConnection, response: Response) -> Answer | None:
        """Return the answer to this request; ``None`` if it is not limited or an error made it fail open.

        Raises:
            HTTPException: The request is denied.
            WebSocketException: The WebSocket is denied.
        """
        answer = await self._request_check.check(connection)
        if answer is None:
            return None
        fields = rate_limit_headers(answer, legacy=self._legacy)
        headers = {name.decode(): value.decode() for name, value in fields}
        if answer.allowed:
            response.headers.update(headers)
            return answer
        detail, remedy = denial_text(answer)
        if connection.scope["type"] == "websocket":
            raise WebSocketException(TRY_AGAIN_LATER, detail)
        text = f"{detail}; {remedy}" if remedy else detail
        raise HTTPException(
            denial_kind(answer).status, text, {**headers, "content-type": "application/problem+json"}
        )
