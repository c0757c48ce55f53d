"""Problem details (RFC 9457): the kinds of problems, and the conversion of exceptions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from stoplog.asgi.problem import UNAVAILABLE, Kind, Problem, problem
from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import PROBLEM, Rendered, render
from stoplog.errors import Busy, InvalidInput, Unavailable, UpgradeFirst
from stoplog_gateway.http.responses import RenderedResponse

log: Final = logging.getLogger(__name__)

_BUSY_REMEDY: Final = (
    "try again after Retry-After seconds; to read many limits, use the pages of GET /v1/limits"
)
_METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE")

BAD_REQUEST: Final = Kind(400, "bad-request", "The request is not valid HTTP")
MALFORMED: Final = Kind(400, "malformed-json", "The body is not JSON")
NO_DESCRIPTOR: Final = Kind(400, "bad-question", "The request contains no valid descriptor")
UNAUTHORIZED: Final = Kind(401, "unauthorized", "The token is missing or unknown")
PROXY_UNAUTHORIZED: Final = Kind(403, "proxy-unauthorized", "The proxy's token is missing or unknown")
FORBIDDEN: Final = Kind(403, "forbidden", "The caller has no access")
NOT_FOUND: Final = Kind(404, "not-found", "Route not found")
NO_LIMITS: Final = Kind(404, "no-limits", "No limits are stored under this name")
METHOD: Final = Kind(405, "method-not-allowed", "The route does not support this method")
TIMED_OUT: Final = Kind(408, "request-timeout", "The request did not arrive in time")
UPGRADE_FIRST: Final = Kind(409, "upgrade-first", "A worker of an older release is running")
TOO_LARGE: Final = Kind(413, "too-large", "The body is too large")
CONTENT_TYPE: Final = Kind(415, "content-type", "The content type is not JSON")
INVALID: Final = Kind(422, "invalid-value", "A value is invalid")
HEAD_TOO_LARGE: Final = Kind(431, "head-too-large", "The request header is too large")
BUG: Final = Kind(500, "internal-error", "The gateway has a bug")
NOT_INSTALLED: Final = Kind(501, "not-installed", "The gateway lacks a required package")
FAILED_CLOSED: Final = Kind(429, UNAVAILABLE.name, UNAVAILABLE.title)
BUSY: Final = Kind(503, "busy", "Too many reads at once")
TOO_MANY_CONNECTIONS: Final = Kind(503, "too-many-connections", "Too many open connections")
OVERLOADED: Final = Kind(503, "overloaded", "The gateway is overloaded")
NOT_READY: Final = Kind(503, "not-ready", "The gateway should receive no checks")


class ProblemError(Exception):
    """Ends a request with a problem response."""

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


def render_error(exc: Exception) -> Rendered | None:
    """Return the problem response for an expected exception, and ``None`` for any other (a bug)."""
    match exc:
        case ProblemError():
            return render_problem(exc.problem, exc.headers)
        case InvalidInput():
            return render_problem(problem(INVALID, f"{exc.field}: {exc.problem}", exc.field, exc.remedy))
        case UpgradeFirst():
            return render_problem(problem(UPGRADE_FIRST, str(exc), None, exc.remedy))
        case Busy():
            return render_problem(problem(BUSY, str(exc), None, _BUSY_REMEDY), [(b"retry-after", b"1")])
        case Unavailable():
            return render_problem(
                problem(UNAVAILABLE, str(exc), None, "try again when /readyz?strict=1 answers 200")
            )
        case _:
            return None


def render_problem(details: Problem, headers: Headers | None = None) -> Rendered:
    """Return the response with a problem."""
    return render(details, details.status, headers or (), media=PROBLEM)


def install(app: FastAPI) -> None:
    """Make *app* answer every exception with a problem response."""
    for kind in (ProblemError, InvalidInput, UpgradeFirst, Busy, Unavailable):
        app.add_exception_handler(kind, _on_expected_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_routing_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_expected_error(_: Request, exc: Exception) -> Response:
    rendered = render_error(exc)
    assert rendered is not None
    return RenderedResponse(rendered)


async def _on_invalid_parameter(_: Request, exc: Exception) -> Response:
    """Handle FastAPI's validation errors, which concern path and query parameters only."""
    assert isinstance(exc, RequestValidationError)
    return RenderedResponse(render_problem(invalid_parameter(exc.errors()[0]).problem))


def invalid_parameter(error: Mapping[str, Any]) -> ProblemError:
    """Return the problem for the first of pydantic's *errors* about the parameters of a request."""
    name = str(error["loc"][-1])
    if error["type"] == "extra_forbidden":
        return ProblemError(INVALID, f"{name}: unknown parameter", name, "remove it, or check its spelling")
    return ProblemError(INVALID, f"{name}: {error['msg']}", name, "see the parameter in /docs")


async def _on_routing_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.scope["path"]
    if exc.status_code == 405:
        # Each method is a route of its own. The framework would name the methods of the first route only.
        allowed = ", ".join(_methods_of(request))
        details = problem(METHOD, f"{request.method} {path}", "method", f"use {allowed}")
        return RenderedResponse(render_problem(details, [(b"allow", allowed.encode())]))
    details = problem(NOT_FOUND, f"no route {path}", "path", "see /docs for all routes")
    return RenderedResponse(render_problem(details))


def _methods_of(request: Request) -> list[str]:
    scopes = [{**request.scope, "method": method} for method in _METHODS]
    routes = request.app.routes
    methods = {s["method"] for s in scopes if any(r.matches(s)[0] is Match.FULL for r in routes)}
    if "GET" in methods:
        methods.add("HEAD")
    return [method for method in _METHODS if method in methods]


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # no one receives it: the client has disconnected
