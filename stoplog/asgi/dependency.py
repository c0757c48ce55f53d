"""A FastAPI dependency for single routes, each with limits or a cost of its own."""

from collections.abc import AsyncIterator

try:
    from fastapi import HTTPException, Response, WebSocketException
    from fastapi.exceptions import RequestValidationError
except ImportError as exc:
    raise ImportError(
        "RateLimit needs FastAPI, which is not installed: run pip install fastapi", name=exc.name
    ) from exc

from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from stoplog.asgi.cors import exposed
from stoplog.asgi.denial import denial_kind, denial_text
from stoplog.asgi.outcome import UPGRADED, Charge, Outcome
from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.request_check import TRY_AGAIN_LATER, Identify, Of, RequestCheck
from stoplog.client.answer import Answer
from stoplog.client.fail_open import OnUnavailable
from stoplog.client.limiter import Limiter
from stoplog.client.reservations import DEFAULT_TTL_MS

# FastAPI evaluates the annotations of __call__, so this module does not postpone annotations.


class RateLimit:
    """Checks a request with a limiter before its route runs, and returns the answer to the route.

    ::

        @app.post("/reports", dependencies=[Depends(RateLimit(limiter, who, cost=10, resource="reports"))])

    A denied request raises an ``HTTPException`` with ``Retry-After``: of 429, of 503 if it failed closed,
    or of 403 if its address is blocked.
    The application may render it as it renders others; by default FastAPI answers with a JSON problem. A
    denied WebSocket is closed with 1013. A failure of the limiter fails no route that may fail open. FastAPI
    adds the header fields of an allowed request to the responses that it creates, not to a ``Response`` that
    the route returns.

    The application starts the limiter in its lifespan (``async with limiter:``), or shares it with a
    :class:`~stoplog.asgi.middleware.RateLimitMiddleware`, which does. Otherwise the first request starts it.

    Args:
        limiter: Decides.
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
            ``Headers``). *cost* is then reserved before the route runs, and settled when the response and its
            background tasks have ended (:class:`~stoplog.asgi.outcome.Outcome`). FastAPI shows a dependency
            the status and the header fields that the route sets in its parameter of the type ``Response``,
            and the exception that it raises, but not a ``Response`` that it returns. Use the middleware for
            those.
        ttl_ms: With *charge*: milliseconds after which the reserved cost is charged in full, at most an hour.
        legacy_headers: Also send ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.

    Raises:
        InvalidInput: *on_unavailable*, *charge* or *ttl_ms* is invalid, or nothing names the clients.
    """

    def __init__(
        self,
        limiter: Limiter,
        identify: Identify | None = None,
        *,
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        on_unavailable: Of[OnUnavailable] = "allow",
        charge: Charge | None = None,
        ttl_ms: int = DEFAULT_TTL_MS,
        legacy_headers: bool = False,
    ) -> None:
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

    async def __call__(self, connection: HTTPConnection, response: Response) -> AsyncIterator[Answer | None]:
        """Yield the answer to this request; ``None`` if it is not limited or an error made it fail open.

        Raises:
            HTTPException: The request is denied.
            WebSocketException: The WebSocket is denied.
        """
        answer, outcome = await self._request_check.check(connection)
        if answer is not None:
            fields = exposed(rate_limit_headers(answer, legacy=self._legacy), connection.scope)
            headers = {name.decode(): value.decode() for name, value in fields}
            if not answer.allowed:
                raise _denial(answer, connection, headers)
            response.headers.update(headers)
        if outcome is None:
            yield answer
            return
        try:
            yield answer
        except BaseException as exc:
            _note_error(outcome, exc)
            raise
        else:
            _note_response(outcome, connection, response)
        finally:
            await outcome.end()


def _denial(answer: Answer, connection: HTTPConnection, headers: dict[str, str]) -> Exception:
    detail, remedy = denial_text(answer)
    if connection.scope["type"] == "websocket":
        return WebSocketException(TRY_AGAIN_LATER, detail)
    text = f"{detail}; {remedy}" if remedy else detail
    problem = {**headers, "content-type": "application/problem+json"}
    return HTTPException(denial_kind(answer).status, text, problem)


def _note_response(outcome: Outcome, connection: HTTPConnection, response: Response) -> None:
    if connection.scope["type"] == "websocket":
        outcome.respond(UPGRADED)
    else:
        of_route = getattr(connection.scope.get("route"), "status_code", None)
        outcome.respond(response.status_code or of_route or 200, response.headers.raw)


def _note_error(outcome: Outcome, error: BaseException) -> None:
    if isinstance(error, AnyHTTPException):
        fields = (error.headers or {}).items()
        outcome.respond(
            error.status_code, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        )
    elif isinstance(error, RequestValidationError):
        outcome.respond(422)
    elif isinstance(error, WebSocketException):
        outcome.respond(403)
    elif isinstance(error, WebSocketDisconnect):
        outcome.respond(UPGRADED)
    else:
        outcome.fail(error)
