"""``/v1/authorize``: a check as proxies ask it before they pass a request on, by status and header fields.

For Traefik's ForwardAuth and nginx's ``auth_request``, which send GET to one URL, and for Envoy's ext_authz,
which sends the method and puts the path of what it asks for behind its prefix.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.request_check import refusal
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BREAKER_OPEN, FAIL_OPEN
from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST, check_id
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import CheckQuery, LegacyHeaders, Store, require_utf8
from stoplog_gateway.http.problems import INVALID, NO_CLIENT, RATE_LIMITED, ProblemError
from stoplog_gateway.http.responses import respond
from stoplog_gateway.http.routes.check import HEADERS
from stoplog_gateway.settings import GatewaySettings

_ANY_METHOD: Final[list[str]] = []  # a route without methods has them all, WebDAV's too
_NO_STORE: Final = (b"cache-control", b"no-store")


class AuthorizeQuery(CheckQuery):
    """What the proxy's configuration fixes. A caller must not: his query never comes to this URL."""

    cost: int = Field(1, ge=0, le=MAX_COST, description="Requests to spend; 0 only looks.")


async def _client(request: Request) -> str:
    """The client that the header of ``STOPLOG_CLIENT_HEADER`` names.

    Raises:
        ProblemError: 403, a status that every proxy passes on: what is wrong here may be the caller's doing.
    """
    settings: GatewaySettings = request.app.state.settings
    name = settings.client_header
    values = [value for key, value in request.headers.raw if key == name.lower().encode()]
    if len(values) != 1:
        what = "is sent more than once" if values else "is missing"
        raise _no_client(name, f"{name} {what}", "have the proxy set it to who is limited")
    try:
        return check_id(values[0].decode(), name)
    except UnicodeDecodeError:
        raise _no_client(name, f"{name}: not UTF-8", "send the id in UTF-8") from None
    except InvalidInput as exc:
        raise _no_client(name, f"{name}: {exc.problem}", exc.remedy) from None


def _no_client(field: str, detail: str, remedy: str) -> ProblemError:
    return ProblemError(NO_CLIENT, detail, field, remedy)


Client = Annotated[str, Depends(_client)]

_ALLOWED: Final = Answer(True, 100, 99, 60_000, 0, -1)
_EXAMPLES: Final = {"allowed": _ALLOWED, "degraded": FAIL_OPEN[BREAKER_OPEN]}

_HEADER: Final = {
    "name": "X-Client-Id",
    "in": "header",
    "required": True,
    "description": "Who spends, in UTF-8; `STOPLOG_CLIENT_HEADER` names another field.",
    "schema": {"type": "string", "examples": ["alice"]},
}

router = APIRouter(
    tags=["checks"],
    default_response_class=Response,
    generate_unique_id_function=lambda route: route.name,  # FastAPI's own needs a method
)


@router.api_route(
    "/v1/authorize", methods=_ANY_METHOD, dependencies=[Depends(require_utf8)], include_in_schema=False
)
@router.get(
    "/v1/authorize",
    summary="May a proxy pass this on?",
    dependencies=[Depends(require_utf8)],
    responses={
        **openapi.answers(200, "Pass it on", openapi.ref(Answer), _EXAMPLES, HEADERS),
        **openapi.fails(
            (RATE_LIMITED, "the limit of 100 is used up", None, "try again in 12 s"),
            (NO_CLIENT, "X-Client-Id is missing", "X-Client-Id", "have the proxy set it to who is limited"),
            (INVALID, "cost: out of bounds", "cost", "use 0 to 1,000,000; 0 only looks"),
        ),
    },
    openapi_extra={"parameters": [_HEADER]},
)
async def authorize(
    client: Client, query: Annotated[AuthorizeQuery, Query()], limiter: Store, legacy: LegacyHeaders
) -> Response:
    """Spend `cost` of the client that `X-Client-Id` names (`STOPLOG_CLIENT_HEADER`: another header field).

    200 if all its limits allow it, or if the store does not answer in time; 429 if not. Any method is
    answered so, and any path below this one, whose query then means nothing here.
    """
    return await _asked(client, query, limiter, legacy)


@router.api_route("/v1/authorize/{path:id}", methods=_ANY_METHOD, include_in_schema=False)
async def authorize_below(client: Client, limiter: Store, legacy: LegacyHeaders) -> Response:
    """The same with the caller's own path behind it; his query is not the proxy's."""
    return await _asked(client, AuthorizeQuery(), limiter, legacy)


async def _asked(client: str, query: AuthorizeQuery, limiter: Store, legacy: bool) -> Response:
    answer = await limiter.check(client, query.cost, plan=query.plan or "", resource=query.resource or "")
    headers = [_NO_STORE, *rate_limit_headers(answer, legacy=legacy)]
    if answer.allowed:
        return respond(answer, extra=headers)
    detail, remedy = refusal(answer)
    raise ProblemError(RATE_LIMITED, detail, None, remedy, headers)
