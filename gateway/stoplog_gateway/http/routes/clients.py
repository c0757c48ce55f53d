"""``/v1/clients``: who is rejected most, how one of them stands, and its counters emptied."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from stoplog.client.top_rejected import ENTRIES, SLICE_S, SLICES, Rejected
from stoplog.wire.replies import WindowUse
from stoplog_gateway.http import openapi
from stoplog_gateway.http.auth import guard
from stoplog_gateway.http.params import CheckQuery, ClientId, Resource, Store, require_utf8
from stoplog_gateway.http.problems import BUSY, UNAVAILABLE
from stoplog_gateway.http.responses import respond


class RejectedClients(msgspec.Struct, frozen=True):
    """Clients by their rejected checks of the last `seconds`, most first.

    `gateway`: who answered, for all processes on its port.
    """

    gateway: str
    seconds: int
    items: Annotated[list[Rejected], msgspec.Meta(extra_json_schema={"maxItems": ENTRIES})]


class HeldTo(msgspec.Struct, frozen=True):
    """Where limits are stored; `id` is null for the default, `resource` where they hold for none."""

    kind: Literal["client", "plan", "default"]
    id: str | None
    resource: str | None


class ClientUsage(msgspec.Struct, frozen=True):
    """How a client stands; `windows` is empty where it is unlimited.

    `held_to`: whose limits these are; null: the built-in ones.
    """

    client_id: str
    plan: str | None
    resource: str | None
    held_to: HeldTo | None
    policy_version: int
    windows: list[WindowUse]


class ResetCounters(msgspec.Struct, frozen=True):
    """A reset; `applied` false: it is stored and will be applied, but nobody confirmed that in time."""

    client_id: str
    resource: str | None
    applied: bool


MODELS: Final = (RejectedClients, ClientUsage, ResetCounters)

_REJECTED: Final = RejectedClients("gateway-1", 300, [Rejected("mallory", 5_210, 0)])
_USAGE: Final = ClientUsage(
    "alice", None, None, HeldTo("client", "alice", None), 41, [WindowUse("100/minute", 60, 43_000)]
)
_SILENT: Final[openapi.Case] = (
    UNAVAILABLE,
    "partition 2 did not answer: is its worker running?",
    None,
    "try again when /readyz answers 200",
)
_BUSY: Final[openapi.Case] = (
    BUSY,
    "64 clients are being looked up: try again later",
    None,
    "try again after Retry-After seconds",
)
_DONE: Final = ResetCounters("alice", None, True)
_LATE: Final = ResetCounters("alice", None, False)

router = APIRouter(tags=["clients"], default_response_class=Response)


@router.get(
    "/v1/clients/rejected",
    summary="Who is rejected most",
    dependencies=[Depends(guard)],
    responses={
        **openapi.answers(200, "At most 100", openapi.ref(RejectedClients), {"one": _REJECTED}),
        **openapi.fails(openapi.NO_TOKEN, openapi.BEYOND_LOOPBACK),
    },
    openapi_extra=openapi.with_token(),
)
async def rejected(limiter: Store) -> Response:
    """Those whom this gateway rejected most in the last minutes, its deny cache included.

    `checks` may be too high by `surplus`, where more than 100 clients were rejected. Where one port has
    several processes, it is of all that run now, as of a second ago.
    """
    found = limiter.most_rejected()
    return respond(RejectedClients(limiter.node_id, int(SLICE_S * SLICES), found))


@router.get(
    "/v1/clients/{client_id:id}/usage",
    summary="How a client stands",
    dependencies=[Depends(require_utf8)],
    responses={
        **openapi.answers(200, "As its worker knows it", openapi.ref(ClientUsage), {"one": _USAGE}),
        **openapi.fails(openapi.BAD_RESOURCE, _SILENT, _BUSY),
    },
)
async def usage(client_id: ClientId, query: Annotated[CheckQuery, Query()], limiter: Store) -> Response:
    """The limits that hold, and what is used of each. Asks the worker and spends nothing."""
    look = await limiter.look_up(client_id, plan=query.plan or "", resource=query.resource or "")
    key = look.held_to
    held_to = HeldTo(key.kind, key.id or None, key.resource or None) if key else None  # type: ignore[arg-type]
    return respond(
        ClientUsage(client_id, query.plan, query.resource, held_to, look.policy_version, look.windows or [])
    )


@router.post(
    "/v1/clients/{client_id:id}/reset",
    summary="Forget what a client has spent",
    dependencies=[Depends(guard), Depends(require_utf8)],
    responses={
        **openapi.answers(200, "The next check sees it", openapi.ref(ResetCounters), {"applied": _DONE}),
        **openapi.answers(202, "Not confirmed in time", openapi.ref(ResetCounters), {"unconfirmed": _LATE}),
        **openapi.fails(*openapi.CHANGE_FAILS, openapi.BAD_RESOURCE),
    },
    openapi_extra=openapi.with_token(),
)
async def reset(client_id: ClientId, query: Resource, limiter: Store) -> Response:
    """Empty the client's counters, with `resource` only that resource's. Takes no body."""
    done = await limiter.reset(client_id, query.resource or "")
    status = 200 if done.applied else 202
    return respond(ResetCounters(client_id, query.resource, done.applied), status)
