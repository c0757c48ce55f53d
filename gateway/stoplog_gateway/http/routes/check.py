"""``POST /v1/check`` and ``/v1/checks``: may this client spend this now?

Reading a check and rendering its answer are plain functions over bytes, so that a path without a
framework gives the same answers as these routes.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BREAKER_OPEN, FAIL_OPEN
from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST, MAX_ID_BYTES, check_cost, check_id
from stoplog.wire.checks import MAX_BATCH, Check
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LegacyHeaders, Store
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.request_body import JsonBody, JsonListBody, decode
from stoplog_gateway.http.responses import Rendered, RenderedResponse, render, respond


def _id(description: str) -> msgspec.Meta:
    bounds = {"minLength": 1, "maxLength": MAX_ID_BYTES}
    return msgspec.Meta(description=description, extra_json_schema=bounds)


class CheckRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """May *client_id* spend *cost* now? Ids are 1 to 256 bytes of UTF-8 without control characters."""

    client_id: Annotated[str, _id("Who spends: an API key, a user id.")]
    cost: Annotated[
        int,
        msgspec.Meta(
            description="Requests to spend; 0 only looks.",
            extra_json_schema={"minimum": 0, "maximum": MAX_COST},
        ),
    ] = 1
    plan: Annotated[str | None, _id("Whose limits hold if the client has none of its own.")] = None
    resource: Annotated[str | None, _id("What is limited apart from the rest.")] = None


_one: Final = msgspec.json.Decoder(CheckRequest)
_many: Final = msgspec.json.Decoder(list[CheckRequest])


def parse_check(body: bytes) -> Check:
    """Read the body of one check.

    Raises:
        ProblemError: 400, not JSON.
        InvalidInput: names the field.
    """
    return _valid(decode(_one, body))


def parse_checks(body: bytes) -> list[Check]:
    """Read a list of checks; as :func:`parse_check`, fields named ``[3].cost``.

    Raises:
        InvalidInput: also for more than 10,000 checks.
    """
    requests = decode(_many, body)
    if len(requests) > MAX_BATCH:
        raise InvalidInput("body", f"{len(requests)} checks", f"send at most {MAX_BATCH:,} at once")
    checks = []
    for i, request in enumerate(requests):
        try:
            checks.append(_valid(request))
        except InvalidInput as exc:
            raise exc.within(f"[{i}].") from None
    return checks


def _valid(request: CheckRequest) -> Check:
    plan, resource = request.plan, request.resource
    return Check(
        check_id(request.client_id, "client_id"),
        check_cost(request.cost),
        "" if plan is None else check_id(plan, "plan"),
        "" if resource is None else check_id(resource, "resource"),
    )


def render_answer(answer: Answer, *, legacy: bool) -> Rendered:
    """The response to one check; a denial is a 200 too: the call worked.

    *legacy*: with the older header fields.
    """
    return render(answer, extra=rate_limit_headers(answer, legacy=legacy))


_ALLOWED: Final = Answer(True, 100, 99, 60_000, 0, -1)
_DENIED: Final = Answer(False, 100, 0, 60_000, 12_000, 41)
_EXAMPLES: Final = {"allowed": _ALLOWED, "denied": _DENIED, "degraded": FAIL_OPEN[BREAKER_OPEN]}
HEADERS: Final = {
    "RateLimit-Policy": '`"default";q=100`: the limit nearest to being used up; absent without one.',
    "RateLimit": '`"default";r=99;t=60`: what is left of it, and in how many seconds it is whole again.',
    "Retry-After": "Seconds until the same check would pass; on a denial that waiting can help.",
}


_BAD_COST: Final = (INVALID, "cost: not a whole number, got float", "cost", "see its type in /docs")

router = APIRouter(tags=["checks"], default_response_class=Response)


@router.post(
    "/v1/check",
    summary="Spend, if the limit allows it",
    responses={
        **openapi.answers(200, "Allowed or denied", openapi.ref(Answer), _EXAMPLES, HEADERS),
        **openapi.fails(*openapi.BODY_FAILS, _BAD_COST),
    },
    openapi_extra=openapi.body(
        openapi.ref(CheckRequest),
        {
            "simple": {"client_id": "alice"},
            "full": {"client_id": "alice", "cost": 3, "plan": "free", "resource": "POST /orders"},
            "peek": {"client_id": "alice", "cost": 0},
        },
    ),
)
async def check(body: JsonBody, limiter: Store, legacy: LegacyHeaders) -> Response:
    """Spend `cost` of the client's limit if all its limits allow it; otherwise spend nothing.

    A denial is a 200 with `allowed: false`. When the store does not answer within the deadline the
    check is let through: `degraded: true`, and `reason` says why.
    """
    asked = parse_check(body)
    answer = await limiter.check(asked.client, asked.cost, plan=asked.plan, resource=asked.resource)
    return RenderedResponse(render_answer(answer, legacy=legacy))


@router.post(
    "/v1/checks",
    summary="Many checks at once",
    responses={
        **openapi.answers(
            200,
            "An answer for each, in order",
            openapi.array(Answer, MAX_BATCH),
            {"two": [_ALLOWED, _DENIED]},
        ),
        **openapi.fails(*openapi.BODY_FAILS, _BAD_COST),
    },
    openapi_extra=openapi.body(
        openapi.array(CheckRequest, MAX_BATCH),
        {"two": [{"client_id": "alice"}, {"client_id": "bob", "cost": 2, "resource": "login"}]},
    ),
)
async def check_list(body: JsonListBody, limiter: Store) -> Response:
    """Up to 10,000 checks, decided each on its own. One that cannot be used refuses the whole list."""
    return respond(await limiter.check_many(parse_checks(body)))
