"""``/v1/authorize``: check a request on behalf of a proxy, which reads the status and the header fields.

Traefik's ForwardAuth and nginx's ``auth_request`` send GET requests to one URL. Envoy's ext_authz sends the
original method, and appends the original path to its path prefix.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, ValidationError
from starlette.responses import Response

from stoplog.asgi.denial import denial_text
from stoplog.asgi.problem import BLOCKED, NO_CLIENT, RATE_LIMITED, problem
from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.responses import Rendered, render
from stoplog.client import listed
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BREAKER_OPEN, FAIL_OPEN, OnUnavailable
from stoplog.client.listed import answer_listed
from stoplog.identity.identifiers import peer_of
from stoplog.identity.identity import Identified
from stoplog.policy import MAX_COST
from stoplog_gateway.access.proxy_paths import AUTHORIZE
from stoplog_gateway.http import openapi
from stoplog_gateway.http.bugs import render_failed_closed
from stoplog_gateway.http.failing_closed import ProxyOnUnavailable
from stoplog_gateway.http.params import CheckQuery, LegacyHeaders, LimiterDep, require_utf8, require_utf8_in
from stoplog_gateway.http.problems import (
    FAILED_CLOSED,
    INVALID,
    invalid_parameter,
    render_problem,
)
from stoplog_gateway.http.proxy_clients import ProxyClients
from stoplog_gateway.http.responses import RenderedResponse
from stoplog_gateway.http.routes.check import HEADERS

_ANY_METHOD: Final[list[str]] = []  # a route without methods has them all, WebDAV's too
_NO_STORE: Final = (b"cache-control", b"no-store")


class AuthorizeQuery(CheckQuery):
    """Query of the URL in the proxy's configuration. A client's own query never reaches this route."""

    cost: int = Field(1, ge=0, le=MAX_COST, description="Cost to charge; 0 charges nothing.")
    unavailable: OnUnavailable = Field(
        "allow",
        description="Answer to a check that the store does not decide in time: `allow` fails open, `deny` "
        "fails closed. The header field `Stoplog-Unavailable` has the same effect.",
    )


async def _client(request: Request) -> Identified:
    """Return the client of a request, and what the lists of addresses say.

    Raises:
        ProblemError: 403. Every proxy forwards this status, and the API caller may have caused the error.
    """
    clients: ProxyClients = request.app.state.proxy_clients
    return clients.identify(peer_of(request.scope), request.headers.raw)


@lru_cache(256)
def parse_query(query: bytes) -> AuthorizeQuery:
    """Return the parameters in *query*, which is the proxy's.

    Raises:
        ProblemError: A parameter is unknown or invalid.
        InvalidInput: The query is not UTF-8, or an id is invalid.
    """
    require_utf8_in("query", query)
    try:
        return AuthorizeQuery.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as exc:
        raise invalid_parameter(exc.errors()[0]) from None


Client = Annotated[Identified, Depends(_client)]

_ALLOWED: Final = Answer(True, 100, 99, 60_000, 0, -1)
_EXAMPLES: Final = {"allowed": _ALLOWED, "degraded": FAIL_OPEN[BREAKER_OPEN]}

_HEADER: Final = {
    "name": "X-Client-Id",
    "in": "header",
    "required": True,
    "description": "Client id, in UTF-8. `STOPLOG_CLIENT_HEADER` sets another header field. With "
    "`STOPLOG_IDENTIFY`, that chain names the client instead.",
    "schema": {"type": "string", "examples": ["alice"]},
}
_UNAVAILABLE_HEADER: Final = {
    "name": "Stoplog-Unavailable",
    "in": "header",
    "required": False,
    "description": "As `unavailable`, for proxies that replace the query. `deny` in one of them is enough.",
    "schema": {"type": "string", "enum": ["allow", "deny"], "default": "allow", "examples": ["deny"]},
}

router = APIRouter(
    tags=["checks"],
    default_response_class=Response,
    generate_unique_id_function=lambda route: route.name,  # FastAPI's default needs a method
)


@router.api_route(
    AUTHORIZE, methods=_ANY_METHOD, dependencies=[Depends(require_utf8)], include_in_schema=False
)
@router.get(
    AUTHORIZE,
    summary="Authorize a request for a proxy",
    dependencies=[Depends(require_utf8)],
    responses={
        **openapi.success(
            200, "The proxy should forward the request", openapi.schema_of(Answer), _EXAMPLES, HEADERS
        ),
        **openapi.failures(
            (RATE_LIMITED, "the limit of 100 is used up", None, "try again in 12 s"),
            (FAILED_CLOSED, "the store did not decide the check (deadline)", None, "try again in 1 s"),
            (
                NO_CLIENT,
                "X-Client-Id is missing",
                "X-Client-Id",
                "configure the proxy to set it to the client id",
            ),
            (BLOCKED, "the address of the client is blocked", None, None),
            openapi.OLD_WORKER,
            (INVALID, "cost: out of bounds", "cost", "use 0 to 1,000,000; 0 only looks"),
        ),
    },
    openapi_extra={"parameters": [_HEADER, _UNAVAILABLE_HEADER]},
)
async def authorize(
    client: Client,
    query: Annotated[AuthorizeQuery, Query()],
    on_unavailable: ProxyOnUnavailable,
    limiter: LimiterDep,
    legacy: LegacyHeaders,
) -> Response:
    """Charge `cost` to the client in the header field `X-Client-Id` (or that of `STOPLOG_CLIENT_HEADER`).

    The status is 200 if all limits allow the request, or if the check fails open because the store does not
    answer in time. Otherwise it is 429. With `unavailable=deny`, the check fails closed, also with 429. The
    route accepts every method and every path below it. Below it, the query is ignored.
    """
    return await _authorize(client, query, on_unavailable, limiter, legacy)


@router.api_route(f"{AUTHORIZE}/{{path:id}}", methods=_ANY_METHOD, include_in_schema=False)
async def authorize_below(
    client: Client, on_unavailable: ProxyOnUnavailable, limiter: LimiterDep, legacy: LegacyHeaders
) -> Response:
    """Handle a URL to which the proxy appended the original path. Its query is the client's: ignore it."""
    return await _authorize(client, AuthorizeQuery(), on_unavailable, limiter, legacy)


async def _authorize(
    identified: Identified,
    query: AuthorizeQuery,
    on_unavailable: OnUnavailable,
    limiter: LimiterDep,
    legacy: bool,
) -> Response:
    client, verdict = identified
    answer = answer_listed(verdict, limiter.metrics) or await limiter.check(
        client or "",
        query.cost,
        plan=query.plan or "",
        resource=query.resource or "",
        on_unavailable=on_unavailable,
    )
    return RenderedResponse(render_authorization(answer, legacy=legacy))


def render_authorization(answer: Answer, *, legacy: bool) -> Rendered:
    """Return the response to a proxy; *legacy* adds the ``X-RateLimit-*`` header fields."""
    if answer.degraded and not answer.allowed:
        return render_failed_closed(answer)
    headers = [_NO_STORE, *rate_limit_headers(answer, legacy=legacy)]
    if answer.allowed:
        return render(answer, extra=headers)
    detail, remedy = denial_text(answer)
    kind = BLOCKED if answer.reason == listed.BLOCKED else RATE_LIMITED
    return render_problem(problem(kind, detail, None, remedy), headers)
