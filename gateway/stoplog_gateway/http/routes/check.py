"""``POST /v1/check`` and ``/v1/checks``: check whether a client may spend a cost now.

Plain functions over bytes parse the checks and render the answers. The fast path uses the same functions, so
it sends the same responses as these routes.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.responses import Rendered, render
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BREAKER_OPEN, FAIL_OPEN
from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST, MAX_ID_BYTES, check_cost, check_id
from stoplog.wire.checks import MAX_BATCH, Check
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LegacyHeaders, LimiterDep
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.request_body import JsonBody, JsonListBody, decode
from stoplog_gateway.http.responses import RenderedResponse, respond


def _id(description: str) -> msgspec.Meta:
    bounds = {"minLength": 1, "maxLength": MAX_ID_BYTES}
    return msgspec.Meta(description=description, extra_json_schema=bounds)


class CheckRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A check. Ids are 1 to 256 bytes of UTF-8 without control characters."""

    client_id: Annotated[str, _id("Client id, such as an API key or a user id.")]
    cost: Annotated[
        int,
        msgspec.Meta(
            description="Cost to charge; 0 charges nothing.",
            extra_json_schema={"minimum": 0, "maximum": MAX_COST},
        ),
    ] = 1
    plan: Annotated[str | None, _id("Plan whose limits apply if the client has no limits of its own.")] = None
    resource: Annotated[str | None, _id("Resource with separate limits and counters.")] = None


_check_decoder: Final = msgspec.json.Decoder(CheckRequest)
_list_decoder: Final = msgspec.json.Decoder(list[CheckRequest])


def parse_check(body: bytes) -> Check:
    """Parse the body of one check.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: A value is invalid; names the field.
    """
    return _validated(decode(_check_decoder, body))


def parse_checks(body: bytes) -> list[Check]:
    """Parse a list of checks.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: A value is invalid (the field is named as in ``[3].cost``), or the list is too long.
    """
    requests = decode(_list_decoder, body)
    if len(requests) > MAX_BATCH:
        raise InvalidInput("body", f"{len(requests)} checks", f"send at most {MAX_BATCH:,} per request")
    checks = []
    for i, request in enumerate(requests):
        try:
            checks.append(_validated(request))
        except InvalidInput as exc:
            raise exc.within(f"[{i}].") from None
    return checks


def _validated(request: CheckRequest) -> Check:
    plan, resource = request.plan, request.resource
    return Check(
        check_id(request.client_id, "client_id"),
        check_cost(request.cost),
        "" if plan is None else check_id(plan, "plan"),
        "" if resource is None else check_id(resource, "resource"),
    )


def render_answer(answer: Answer, *, legacy: bool) -> Rendered:
    """Return the response to one check. The status is 200 for a denial too, because the call succeeded.

    *legacy* adds the ``X-RateLimit-*`` header fields.
    """
    return render(answer, extra=rate_limit_headers(answer, legacy=legacy))


_ALLOWED: Final = Answer(True, 100, 99, 60_000, 0, -1)
_DENIED: Final = Answer(False, 100, 0, 60_000, 12_000, 41)
_EXAMPLES: Final = {"allowed": _ALLOWED, "denied": _DENIED, "degraded": FAIL_OPEN[BREAKER_OPEN]}
HEADERS: Final = {
    "RateLimit-Policy": '`"default";q=100`: the limit closest to exhaustion. Absent if no limit applies.',
    "RateLimit": '`"default";r=99;t=60`: remaining cost, and seconds until the limit is fully restored.',
    "Retry-After": "Seconds until the same check is allowed. Only on a denial that waiting can resolve.",
}


_BAD_COST: Final = (INVALID, "cost: not a whole number, got float", "cost", "see its type in /docs")

router = APIRouter(tags=["checks"], default_response_class=Response)


@router.post(
    "/v1/check",
    summary="Check and charge a client",
    responses={
        **openapi.success(200, "Allowed or denied", openapi.schema_of(Answer), _EXAMPLES, HEADERS),
        **openapi.failures(*openapi.BODY_FAILURES, _BAD_COST),
    },
    openapi_extra=openapi.json_body(
        openapi.schema_of(CheckRequest),
        {
            "simple": {"client_id": "alice"},
            "full": {"client_id": "alice", "cost": 3, "plan": "free", "resource": "POST /orders"},
            "peek": {"client_id": "alice", "cost": 0},
        },
    ),
)
async def check(body: JsonBody, limiter: LimiterDep, legacy: LegacyHeaders) -> Response:
    """Charge `cost` to the client if all its limits allow it; otherwise charge nothing.

    A denial has the status 200 and `allowed: false`. If the store does not answer within the deadline, the
    check fails open: it is allowed with `degraded: true`, and `reason` states the cause.
    """
    parsed = parse_check(body)
    answer = await limiter.check(parsed.client, parsed.cost, plan=parsed.plan, resource=parsed.resource)
    return RenderedResponse(render_answer(answer, legacy=legacy))


@router.post(
    "/v1/checks",
    summary="Check and charge many clients",
    responses={
        **openapi.success(
            200,
            "One answer per check, in the same order",
            openapi.array_of(Answer, MAX_BATCH),
            {"two": [_ALLOWED, _DENIED]},
        ),
        **openapi.failures(*openapi.BODY_FAILURES, _BAD_COST),
    },
    openapi_extra=openapi.json_body(
        openapi.array_of(CheckRequest, MAX_BATCH),
        {"two": [{"client_id": "alice"}, {"client_id": "bob", "cost": 2, "resource": "login"}]},
    ),
)
async def check_list(body: JsonListBody, limiter: LimiterDep) -> Response:
    """Decide up to 10,000 checks independently. One invalid check makes the request fail as a whole."""
    return respond(await limiter.check_many(parse_checks(body)))
