"""``POST /v1/check`` and ``/v1/checks``: check whether a client may spend a cost now.

Plain functions over bytes parse the checks and render the answers. The fast path uses the same functions, so
it sends the same responses as these routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.responses import Rendered, render
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BREAKER_OPEN, DEADLINE, FAIL_CLOSED, FAIL_OPEN, OnUnavailable
from stoplog.client.limiter import SLICE
from stoplog.errors import InvalidInput, UpgradeFirst
from stoplog.policy import MAX_COST, check_cost, check_id
from stoplog.wire.checks import MAX_BATCH, Check
from stoplog_gateway.http import openapi
from stoplog_gateway.http.bugs import answers_after_bug
from stoplog_gateway.http.params import LegacyHeaders, LimiterDep
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.request_body import JsonBody, JsonListBody, decode, whole_number
from stoplog_gateway.http.responses import RenderedResponse, respond


class CheckRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A check. Ids are 1 to 256 bytes of UTF-8 without control characters."""

    client_id: Annotated[str, openapi.id_field("Client id, such as an API key or a user id.")]
    cost: Annotated[int | float, openapi.number_field("Cost to charge; 0 charges nothing.", 0, MAX_COST)] = 1
    plan: Annotated[
        str | None, openapi.id_field("Plan whose limits apply if the client has no limits of its own.")
    ] = None
    resource: Annotated[str | None, openapi.id_field("Resource with separate limits and counters.")] = None
    on_unavailable: Annotated[
        OnUnavailable,
        msgspec.Meta(
            description="Answer to a check that the store does not decide in time: `allow` fails open, "
            "`deny` fails closed. Such a check may still be counted."
        ),
    ] = "allow"


_check_decoder: Final = msgspec.json.Decoder(CheckRequest)
_list_decoder: Final = msgspec.json.Decoder(list[CheckRequest])


def parse_check(body: bytes) -> tuple[Check, OnUnavailable]:
    """Parse the body of one check. Return the check, and its ``on_unavailable``.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: A value is invalid; names the field.
    """
    request = decode(_check_decoder, body)
    return _validated(request), request.on_unavailable


def parse_checks(body: bytes) -> Iterator[list[tuple[Check, OnUnavailable]]]:
    """Parse a list of checks, each with its ``on_unavailable``. Yield it in slices of :data:`SLICE` checks.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: A value is invalid (the field is named as in ``[3].cost``), or the list is too long.
    """
    requests = decode(_list_decoder, body)
    if len(requests) > MAX_BATCH:
        raise InvalidInput("body", f"{len(requests)} checks", f"send at most {MAX_BATCH:,} per request")
    for start in range(0, len(requests), SLICE):
        checks = []
        for i, request in enumerate(requests[start : start + SLICE], start):
            try:
                checks.append((_validated(request), request.on_unavailable))
            except InvalidInput as exc:
                raise exc.within(f"[{i}].") from None
        yield checks


def _validated(request: CheckRequest) -> Check:
    plan, resource = request.plan, request.resource
    cost = request.cost
    return Check(
        check_id(request.client_id, "client_id"),
        check_cost(cost if type(cost) is int else whole_number(cost, "cost")),
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
_EXAMPLES: Final = {
    "allowed": _ALLOWED,
    "denied": _DENIED,
    "failed_open": FAIL_OPEN[BREAKER_OPEN],
    "failed_closed": FAIL_CLOSED[DEADLINE],
}
HEADERS: Final = {
    "RateLimit-Policy": '`"default";q=100`: the limit closest to exhaustion. Absent if no limit applies.',
    "RateLimit": '`"default";r=99;t=60`: remaining cost, and seconds until the limit is fully restored.',
    "Retry-After": "Seconds until the same check is allowed. Only on a denial that waiting can resolve. 1 if "
    "the check failed closed.",
}


_BAD_COST: Final = (INVALID, "cost: not a whole number, got float", "cost", "see its type in /docs")

router = APIRouter(tags=["checks"], default_response_class=Response)


@router.post(
    "/v1/check",
    summary="Check and charge a client",
    responses={
        **openapi.success(200, "Allowed or denied", openapi.schema_of(Answer), _EXAMPLES, HEADERS),
        **openapi.failures(*openapi.BODY_FAILURES, openapi.OLD_WORKER, _BAD_COST),
    },
    openapi_extra=openapi.json_body(
        openapi.schema_of(CheckRequest),
        {
            "simple": {"client_id": "alice"},
            "full": {"client_id": "alice", "cost": 3, "plan": "free", "resource": "POST /orders"},
            "peek": {"client_id": "alice", "cost": 0},
            "login": {"client_id": "alice", "resource": "login", "on_unavailable": "deny"},
        },
    ),
)
async def check(request: Request, body: JsonBody, limiter: LimiterDep, legacy: LegacyHeaders) -> Response:
    """Charge `cost` to the client if all its limits allow it; otherwise charge nothing.

    A denial has the status 200 and `allowed: false`. If the store does not answer within the deadline, the
    check fails open: it is allowed with `degraded: true`, and `reason` states the cause. With
    `"on_unavailable": "deny"` it fails closed: it is denied, with the same two fields.
    """
    check, on_unavailable = parse_check(body)
    try:
        answer = await limiter.check(
            check.client, check.cost, plan=check.plan, resource=check.resource, on_unavailable=on_unavailable
        )
    except (InvalidInput, UpgradeFirst):
        raise
    except Exception:
        answers = answers_after_bug(request.scope, limiter.metrics, [on_unavailable])
        if answers is None:
            raise
        [answer] = answers
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
        **openapi.failures(*openapi.BODY_FAILURES, openapi.OLD_WORKER, _BAD_COST),
    },
    openapi_extra=openapi.json_body(
        openapi.array_of(CheckRequest, MAX_BATCH),
        {"two": [{"client_id": "alice"}, {"client_id": "bob", "cost": 2, "resource": "login"}]},
    ),
)
async def check_list(request: Request, body: JsonListBody, limiter: LimiterDep) -> Response:
    """Decide up to 10,000 checks independently. One invalid check makes the request fail as a whole."""
    parsed: list[tuple[Check, OnUnavailable]] = []
    for part in parse_checks(body):
        parsed += part
        await asyncio.sleep(0)
    on_unavailable = [one for _, one in parsed]
    try:
        answers = await limiter.check_many([check for check, _ in parsed], on_unavailable=on_unavailable)
    except (InvalidInput, UpgradeFirst):
        raise
    except Exception:
        degraded = answers_after_bug(request.scope, limiter.metrics, on_unavailable)
        if degraded is None:
            raise
        answers = degraded
    return respond(answers)
