"""What went wrong, as RFC 9457 has it, and how every exception becomes that."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.client.limits_admin import Busy
from stoplog.errors import InvalidInput, Unavailable
from stoplog_gateway.http.responses import PROBLEM, Rendered, RenderedResponse, render

log: Final = logging.getLogger(__name__)

_LATER: Final = (
    "try again after Retry-After seconds; many limits are read faster page by page, GET /v1/limits"
)
_SHOWN: Final = 600
"""Characters of a detail or a field's name: two ids of 256 bytes, and what is wrong with them."""

_METHODS: Final = ("GET", "PUT", "POST", "DELETE")


class Kind(NamedTuple):
    """A type of problem: its status, its name in ``type``, and a title that never varies."""

    status: int
    name: str
    title: str


MALFORMED: Final = Kind(400, "malformed-json", "The body is not JSON")
BAD_QUESTION: Final = Kind(400, "bad-question", "The rate limit service is asked nothing that it can answer")
UNAUTHORIZED: Final = Kind(401, "unauthorized", "The admin token is missing or wrong")
FORBIDDEN: Final = Kind(403, "forbidden", "Changes are not accepted from here")
NO_CLIENT: Final = Kind(403, "no-client", "The request names no client that can be used")
NOT_FOUND: Final = Kind(404, "not-found", "There is no such route")
NO_LIMITS: Final = Kind(404, "no-limits", "No limits of its own")
METHOD: Final = Kind(405, "method-not-allowed", "The route does not know this method")
TOO_LARGE: Final = Kind(413, "too-large", "The body is too large")
CONTENT_TYPE: Final = Kind(415, "content-type", "The body's type is not JSON")
INVALID: Final = Kind(422, "invalid-value", "A value cannot be used")
RATE_LIMITED: Final = Kind(429, "rate-limited", "Too many requests")
HEAD_TOO_LARGE: Final = Kind(431, "head-too-large", "The request's head is too large")
BUG: Final = Kind(500, "internal-error", "The gateway has a bug")
NOT_INSTALLED: Final = Kind(501, "not-installed", "The gateway lacks packages that this needs")
UNAVAILABLE: Final = Kind(503, "store-unavailable", "The store does not answer")
BUSY: Final = Kind(503, "busy", "Too many reads at once")
NOT_READY: Final = Kind(503, "not-ready", "Checks are not answered from the store")


class Problem(msgspec.Struct, frozen=True):
    """Why a call did not do what it asked for (RFC 9457, with two members of our own).

    ``detail`` says what is wrong, ``field`` with which part of the request, ``remedy`` what would do.
    """

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    remedy: str | None = None


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        field: str | None = None,
        remedy: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = problem(kind, detail, field, remedy)
        self.headers = headers or []


def problem(kind: Kind, detail: str, field: str | None = None, remedy: str | None = None) -> Problem:
    """A problem of that *kind*; a long *detail* or *field*, which may be a caller's own text, is cut."""
    field = None if field is None else _cut(field)
    return Problem(f"urn:stoplog:problem:{kind.name}", kind.title, kind.status, _cut(detail), field, remedy)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def render_error(exc: Exception) -> Rendered | None:
    """The problem an exception stands for; ``None`` if it is a bug."""
    match exc:
        case ProblemError():
            return _render(exc.problem, exc.headers)
        case InvalidInput():
            return _render(problem(INVALID, f"{exc.field}: {exc.problem}", exc.field, exc.remedy))
        case Busy():
            return _render(problem(BUSY, str(exc), None, _LATER), [(b"retry-after", b"1")])
        case Unavailable():
            return _render(problem(UNAVAILABLE, str(exc), None, "try again when /readyz answers 200"))
        case _:
            return None


def render_bug(scope: Scope) -> Rendered:
    """The problem that the exception being handled is, which nobody expected; the log has it."""
    log.exception("a bug in %s %r", scope["method"], scope["path"][:200])
    return _render(problem(BUG, "the gateway failed in a way it should not; its log has the traceback"))


def _render(what: Problem, headers: Headers | None = None) -> Rendered:
    return render(what, what.status, headers or (), media=PROBLEM)


def install(app: FastAPI) -> None:
    """Have *app* answer every exception with a problem."""
    for kind in (ProblemError, InvalidInput, Busy, Unavailable):
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_middleware(CatchBugs)


async def _expected(_: Request, exc: Exception) -> Response:
    rendered = render_error(exc)
    assert rendered is not None
    return RenderedResponse(rendered)


async def _parameters(_: Request, exc: Exception) -> Response:
    """Path and query parameters are FastAPI's to read; bodies are not."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    name = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        detail, remedy = f"{name}: unknown parameter", "remove it, or check its spelling"
    else:
        detail, remedy = f"{name}: {first['msg']}", "see the parameter in /docs"
    return RenderedResponse(_render(problem(INVALID, detail, name, remedy)))


async def _routing(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.scope["path"]
    if exc.status_code == 405:
        # The framework names the methods of the first route only; ours has a route a method.
        allowed = ", ".join(_methods_of(request))
        what = problem(METHOD, f"{request.method} {path}", "method", f"use {allowed}")
        return RenderedResponse(_render(what, [(b"allow", allowed.encode())]))
    what = problem(NOT_FOUND, f"no route {path}", "path", "see /docs for the routes there are")
    return RenderedResponse(_render(what))


def _methods_of(request: Request) -> list[str]:
    scopes = [{**request.scope, "method": method} for method in _METHODS]
    routes = request.app.routes
    return [s["method"] for s in scopes if any(r.matches(s)[0] is Match.FULL for r in routes)]


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # read by nobody: the caller has hung up


class CatchBugs:
    """Turns an exception that nobody expected into a 500 without internals, and one log entry.

    Inside the framework's own, which would raise it again and have the server log it twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and catch what nothing inside did."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception:
            if started:  # too late for another answer: the server logs it and hangs up
                raise
            await RenderedResponse(render_bug(scope))(scope, receive, send)
