"""``POST /v1/refunds``: give back to a client what it was charged."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from stoplog.client.fail_open import DEADLINE
from stoplog.client.refunds import Refund
from stoplog.policy import MAX_COST, check_id
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LimiterDep
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.request_body import JsonBody, decode, whole_number
from stoplog_gateway.http.responses import respond


class RefundRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A refund. Ids are 1 to 256 bytes of UTF-8 without control characters."""

    client_id: Annotated[str, openapi.id_field("Client that was charged.")]
    cost: Annotated[int | float, openapi.number_field("Units to give back.", 0, MAX_COST)] = 1
    refund_id: Annotated[
        str | None,
        openapi.id_field(
            "Identifies the refund: a repeated call with the same client, resource and id gives nothing "
            "back. A new id by default."
        ),
    ] = None
    plan: Annotated[
        str | None, openapi.id_field("Plan whose limits apply if the client has no limits of its own.")
    ] = None
    resource: Annotated[str | None, openapi.id_field("Resource with separate limits and counters.")] = None


MODELS: Final = (RefundRequest, Refund)

_decode: Final = msgspec.json.Decoder(RefundRequest)
_EXAMPLES: Final = {
    "refunded": Refund("order-4711", "refunded", 3),
    "repeated": Refund("order-4711", "refunded", 3, True),
    "not_refundable": Refund("order-4711", "not_refundable"),
    "unconfirmed": Refund("order-4711", "unconfirmed", reason=DEADLINE),
}
_BAD_COST: Final = (INVALID, "cost: not a whole number, got float", "cost", "see its type in /docs")

router = APIRouter(tags=["checks"], default_response_class=Response)


@router.post(
    "/v1/refunds",
    summary="Give back what a client was charged",
    responses={
        **openapi.success(200, "What became of the refund", openapi.schema_of(Refund), _EXAMPLES),
        **openapi.failures(*openapi.BODY_FAILURES, openapi.OLD_WORKER, _BAD_COST),
    },
    openapi_extra=openapi.json_body(
        openapi.schema_of(RefundRequest),
        {
            "simple": {"client_id": "alice", "refund_id": "order-4711"},
            "full": {
                "client_id": "alice",
                "cost": 3,
                "refund_id": "order-4711",
                "plan": "free",
                "resource": "POST /orders",
            },
        },
    ),
)
async def refund(body: JsonBody, limiter: LimiterDep) -> Response:
    """Reduce the newest charges of the client by `cost`, never below 0, if its limits are refundable.

    The `refund_id` is remembered for one window, the longest of the client's limits. A repeated call changes
    nothing in that time, so a caller without an answer can repeat it. Requests that pass because of a refund
    are outside the guarantee of the limits.
    """
    asked = decode(_decode, body)
    done = await limiter.refund(
        asked.client_id,
        whole_number(asked.cost, "cost"),
        refund_id=asked.refund_id,
        plan="" if asked.plan is None else check_id(asked.plan, "plan"),
        resource="" if asked.resource is None else check_id(asked.resource, "resource"),
    )
    return respond(done)
