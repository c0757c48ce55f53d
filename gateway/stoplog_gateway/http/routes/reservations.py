"""``/v1/reservations``: hold units for a client, and settle when it is known how many it used."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Request
from starlette.responses import Response
from starlette.types import Scope

from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.responses import Rendered, render
from stoplog.client.fail_open import BREAKER_OPEN, DEADLINE, OnUnavailable
from stoplog.client.metrics import Metrics
from stoplog.client.reservations import DEFAULT_TTL_MS, Reservation, Settled
from stoplog.errors import InvalidInput, UpgradeFirst
from stoplog.policy import MAX_COST
from stoplog.wire.checks import Check
from stoplog.wire.holds import MAX_TTL_MS, TOO_MANY_RESERVATIONS
from stoplog_gateway.http import openapi
from stoplog_gateway.http.bugs import answers_after_bug
from stoplog_gateway.http.params import LegacyHeaders, LimiterDep
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.request_body import JsonBody, decode, whole_number
from stoplog_gateway.http.responses import RenderedResponse, respond
from stoplog_gateway.http.routes.check import HEADERS


class ReservationRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A reservation. Ids are 1 to 256 bytes of UTF-8 without control characters."""

    client_id: Annotated[str, openapi.id_field("Client id, such as an API key or a user id.")]
    cost: Annotated[int | float, openapi.number_field("Units to hold.", 0, MAX_COST)] = 1
    ttl_ms: Annotated[
        int | float,
        openapi.number_field(
            "Milliseconds after which the reservation ends, with all of it charged.", 1, MAX_TTL_MS
        ),
    ] = DEFAULT_TTL_MS
    plan: Annotated[
        str | None, openapi.id_field("Plan whose limits apply if the client has no limits of its own.")
    ] = None
    resource: Annotated[str | None, openapi.id_field("Resource with separate limits and counters.")] = None
    on_unavailable: Annotated[
        OnUnavailable,
        msgspec.Meta(
            description="Answer to a reservation that the store does not decide in time: `allow` fails open, "
            "`deny` fails closed. Such a reservation may still be granted."
        ),
    ] = "allow"


class Settlement(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The use of a reservation."""

    used: Annotated[
        int | float, openapi.number_field("Units to charge. The rest is given back.", 0, MAX_COST)
    ]


MODELS: Final = (ReservationRequest, Settlement, Reservation, Settled)

_decode_request: Final = msgspec.json.Decoder(ReservationRequest)
_decode_settlement: Final = msgspec.json.Decoder(Settlement)

_ID: Final = "lwHPESIzRFVmd4jPmavN7_4hQ2WmdGVhbS03oKDPAAABmaG3aAA"
_EXAMPLES: Final = {
    "granted": Reservation(True, 100_000, 96_000, 60_000, 0, 41, id=_ID, held=4_000, ttl_ms=60_000),
    "denied": Reservation(False, 100_000, 3_000, 60_000, 12_000, 41),
    "too_many": Reservation(
        False,
        100_000,
        90_000,
        60_000,
        4_000,
        41,
        detail=TOO_MANY_RESERVATIONS,
    ),
    "failed_open": Reservation(True, None, None, 0, 0, -1, True, BREAKER_OPEN, id=_ID),
    "failed_closed": Reservation(False, None, None, 0, 1_000, -1, True, DEADLINE, id=_ID),
}
_SETTLED: Final = {
    "settled": Settled(_ID, "settled", 2_913),
    "repeated": Settled(_ID, "settled", 2_913, True),
    "over": Settled(_ID, "over"),
    "unconfirmed": Settled(_ID, "unconfirmed", reason=DEADLINE),
}
_BAD_TTL: Final = (INVALID, "ttl_ms: out of bounds", "ttl_ms", "use 1 to 3,600,000 milliseconds")
_BAD_USED: Final = (INVALID, "used: missing", "used", "add it")
_BAD_ID: Final = (
    INVALID,
    "reservation_id: not an id of a reservation",
    "reservation_id",
    "use the id in the answer to the reservation",
)

ReservationId = Annotated[
    str,
    Path(
        description="The id that `POST /v1/reservations` returned.",
        examples=[_ID],
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"},
    ),
]


def parse_reservation(body: bytes) -> tuple[Check, int, OnUnavailable]:
    """Return the check, the time to live in ms, and the choice of a request. The limiter checks their ranges.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: A field has another type; names it.
    """
    asked = decode(_decode_request, body)
    plan, resource = _given(asked.plan, "plan"), _given(asked.resource, "resource")
    check = Check(asked.client_id, _whole(asked.cost, "cost"), plan, resource)
    return check, _whole(asked.ttl_ms, "ttl_ms"), asked.on_unavailable


def parse_used(body: bytes) -> int:
    """Return the use in the body of a settlement. The errors are those of :func:`parse_reservation`."""
    return _whole(decode(_decode_settlement, body).used, "used")


def reservation_after_bug(
    scope: Scope, metrics: Metrics, on_unavailable: OnUnavailable
) -> Reservation | None:
    """Return the answer to a reservation that a bug prevented; ``None`` if it is a 500."""
    answers = answers_after_bug(scope, metrics, [on_unavailable])
    if answers is None:
        return None
    return Reservation(*(getattr(answers[0], name) for name in answers[0].__struct_fields__))


def render_reservation(answer: Reservation, *, legacy: bool) -> Rendered:
    """Return the response to a reservation. *legacy* adds the ``X-RateLimit-*`` header fields."""
    return render(answer, extra=rate_limit_headers(answer, legacy=legacy))


router = APIRouter(tags=["checks"], default_response_class=Response)


@router.post(
    "/v1/reservations",
    summary="Reserve units whose use is known later",
    responses={
        **openapi.success(200, "Granted or denied", openapi.schema_of(Reservation), _EXAMPLES, HEADERS),
        **openapi.failures(*openapi.BODY_FAILURES, openapi.OLD_WORKER, _BAD_TTL),
    },
    openapi_extra=openapi.json_body(
        openapi.schema_of(ReservationRequest),
        {
            "simple": {"client_id": "team-7", "cost": 4_000},
            "full": {
                "client_id": "team-7",
                "cost": 4_000,
                "ttl_ms": 120_000,
                "plan": "free",
                "resource": "tokens",
                "on_unavailable": "deny",
            },
        },
    ),
)
async def reserve(request: Request, body: JsonBody, limiter: LimiterDep, legacy: LegacyHeaders) -> Response:
    """Hold `cost` units if all limits of the client allow them; otherwise hold nothing.

    The units count in full until the reservation is settled with the `id` of the answer. If it is not settled
    within `ttl_ms`, it ends, and all of its units are charged. A denial has the status 200 and
    `allowed: false`, as that of a check. A degraded answer has an id, too: the store may still grant it.
    """
    check, ttl_ms, on_unavailable = parse_reservation(body)
    try:
        answer = await limiter.open_reservation(
            check.client,
            check.cost,
            ttl_ms=ttl_ms,
            plan=check.plan,
            resource=check.resource,
            on_unavailable=on_unavailable,
        )
    except (InvalidInput, UpgradeFirst):
        raise
    except Exception:
        degraded = reservation_after_bug(request.scope, limiter.metrics, on_unavailable)
        if degraded is None:
            raise
        answer = degraded
    return RenderedResponse(render_reservation(answer, legacy=legacy))


@router.post(
    "/v1/reservations/{reservation_id}/settle",
    summary="Settle a reservation",
    responses={
        **openapi.success(200, "What became of the reservation", openapi.schema_of(Settled), _SETTLED),
        **openapi.failures(*openapi.BODY_FAILURES, _BAD_USED, _BAD_ID),
    },
    openapi_extra=openapi.json_body(openapi.schema_of(Settlement), {"some": {"used": 2_913}}),
)
async def settle(reservation_id: ReservationId, body: JsonBody, limiter: LimiterDep) -> Response:
    """Charge `used` units and give back the rest. A repeated call changes nothing.

    The answer says what became of the reservation, also after a repeated or late call. More units than were
    held are charged as well, outside the guarantee of the limits.
    """
    return respond(await limiter.settle(reservation_id, parse_used(body)))


@router.delete(
    "/v1/reservations/{reservation_id}",
    summary="Give a reservation back",
    responses={
        **openapi.success(
            200,
            "What became of the reservation",
            openapi.schema_of(Settled),
            {"returned": Settled(_ID, "settled", 0), **_SETTLED},
        ),
        **openapi.failures(_BAD_ID),
    },
)
async def give_back(reservation_id: ReservationId, limiter: LimiterDep) -> Response:
    """Charge nothing and give back all units: the same as a settlement with `used` 0."""
    return respond(await limiter.settle(reservation_id, 0))


def _whole(value: float, field: str) -> int:
    return value if type(value) is int else whole_number(value, field)


def _given(value: str | None, field: str) -> str:
    """Return an optional id, or the empty text for none. An empty id is not one that is missing."""
    if value == "":
        raise InvalidInput(field, "empty", "give an id of 1 to 256 bytes")
    return value or ""
