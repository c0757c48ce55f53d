"""A FastAPI dependency: single routes, each with limits or a price of its own."""

from fastapi import HTTPException, Response, WebSocketException
from starlette.requests import HTTPConnection

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.request_check import TRY_AGAIN_LATER, Asking, Identify, Of, refusal
from stoplog.client.answer import Answer
from stoplog.client.limiter import Limiter

# FastAPI reads the signature of __call__ as it stands: no annotations as strings in this module.


class RateLimit:
    """Asks a limiter before a route runs; what it returns to the route is the answer.

    ::

        @app.post("/reports", dependencies=[Depends(RateLimit(limiter, who, cost=10, resource="reports"))])

    A denial is an ``HTTPException`` of 429 with ``Retry-After``, which the application may render as it
    does others; by itself FastAPI makes a problem (RFC 9457) of it. A WebSocket is closed with 1013. Whatever
    fails in here, the route runs. FastAPI puts the header fields of an allowed request on the responses that
    it makes itself, not on a ``Response`` that the route returns.

    The limiter is started by whoever has a lifespan: the application (``async with limiter:``), or a
    :class:`~stoplog.asgi.middleware.RateLimitMiddleware` with the same one.

    Args:
        limiter: What is asked.
        identify: The client's id, or ``None``: not limited. A function of the request, as all of these may
            be: sync or async, given a Starlette ``HTTPConnection``, raising what the application shall see.
        cost: Requests to spend; 0 only looks.
        plan: Whose limits hold if the client has none of its own.
        resource: What is limited apart from the rest.
        legacy_headers: Send ``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` too.
    """

    def __init__(
        self,
        limiter: Limiter,
        identify: Identify,
        *,
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        legacy_headers: bool = False,
    ) -> None:
        self._legacy = legacy_headers
        self._asking = Asking(limiter, identify, cost=cost, plan=plan, resource=resource)

    async def __call__(self, connection: HTTPConnection, response: Response) -> Answer | None:
        """The answer to this request; ``None``: it is not limited, or could not be asked about.

        Raises:
            HTTPException: it is denied.
            WebSocketException: likewise, a WebSocket.
        """
        answer = await self._asking.ask(connection)
        if answer is None:
            return None
        given = rate_limit_headers(answer, legacy=self._legacy)
        headers = {name.decode(): value.decode() for name, value in given}
        if answer.allowed:
            response.headers.update(headers)
            return answer
        detail, remedy = refusal(answer)
        if connection.scope["type"] == "websocket":
            raise WebSocketException(TRY_AGAIN_LATER, detail)
        told = f"{detail}; {remedy}" if remedy else detail
        raise HTTPException(429, told, {**headers, "content-type": "application/problem+json"})
