"""``/v1/clients``: list the most rejected clients, show a client's usage, and reset its counters."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from stoplog.asgi.problem import UNAVAILABLE
from stoplog.client.top_rejected import ENTRIES, SLICE_S, SLICES, Rejected
from stoplog.wire.replies import HoldsInUse, OpenHolds, WindowUse
from stoplog_gateway.http import openapi
from stoplog_gateway.http.change_source import Source, request_id_header
from stoplog_gateway.http.params import CheckQuery, ClientId, LimiterDep, Resource, require_utf8
from stoplog_gateway.http.problems import BUSY
from stoplog_gateway.http.responses import respond


class RejectedClients(msgspec.Struct, frozen=True):
    """Clients with the most rejected checks in the last `seconds`, in descending order.

    `gateway` is the gateway that answered. The list includes all processes on its port.
    """

    gateway: str
    seconds: int
    items: Annotated[list[Rejected], msgspec.Meta(extra_json_schema={"maxItems": ENTRIES})]


class HeldTo(msgspec.Struct, frozen=True):
    """The name under which limits are stored. `id` is null for the default; `resource` can be null."""

    kind: Literal["client", "plan", "default"]
    id: str | None
    resource: str | None


class ClientUsage(msgspec.Struct, frozen=True):
    """A client's usage. `windows` is empty if the client is unlimited.

    `held_to` names the limits that apply; null means the built-in default. `holds` sums up the open
    reservations and leases, whatever their number.
    """

    client_id: str
    plan: str | None
    resource: str | None
    held_to: HeldTo | None
    policy_version: int
    windows: list[WindowUse]
    holds: HoldsInUse


class ResetCounters(msgspec.Struct, frozen=True):
    """A reset. If `applied` is false, it is stored and will be applied, but was not confirmed in time.

    `existed` states whether anything had been spent; null if no worker said so.
    """

    client_id: str
    resource: str | None
    applied: bool
    existed: bool | None


MODELS: Final = (RejectedClients, ClientUsage, ResetCounters)

_REJECTED: Final = RejectedClients("gateway-1", 300, [Rejected("mallory", 5_210, 0)])
_USAGE: Final = ClientUsage(
    "alice",
    None,
    None,
    HeldTo("client", "alice", None),
    41,
    [WindowUse("100/minute", 60, 97_000, 45), WindowUse("10 in flight", 2, 36_000, 2)],
    HoldsInUse(OpenHolds(2, 40, 12_000), OpenHolds(1, 5, 1_900)),
)
_NO_REPLY: Final[openapi.Failure] = (
    UNAVAILABLE,
    "the worker of partition 2 did not reply: check that it runs (`stoplog status`)",
    None,
    "try again when /readyz?strict=1 answers 200",
)
_BUSY: Final[openapi.Failure] = (
    BUSY,
    "64 lookups are waiting already: try again later",
    None,
    "try again after Retry-After seconds",
)
_APPLIED: Final = ResetCounters("alice", None, True, True)
_UNCONFIRMED: Final = ResetCounters("alice", None, False, None)

router = APIRouter(tags=["clients"], default_response_class=Response)


@router.get(
    "/v1/clients/rejected",
    summary="List the most rejected clients",
    responses={
        **openapi.success(200, "At most 100 clients", openapi.schema_of(RejectedClients), {"one": _REJECTED}),
        **openapi.failures(),
    },
)
async def rejected(limiter: LimiterDep) -> Response:
    """List the clients that this gateway rejected most in the last minutes, including its deny cache.

    If more than 100 clients were rejected, `checks` can be too high by up to `surplus`. If several processes
    share the port, the list includes all running processes; their values are up to one second old.
    """
    found = limiter.most_rejected()
    return respond(RejectedClients(limiter.node_id, int(SLICE_S * SLICES), found))


@router.get(
    "/v1/clients/{client_id:id}/usage",
    summary="Show a client's usage",
    dependencies=[Depends(require_utf8)],
    responses={
        **openapi.success(
            200, "The usage that the client's worker knows", openapi.schema_of(ClientUsage), {"one": _USAGE}
        ),
        **openapi.failures(openapi.BAD_RESOURCE, _NO_REPLY, _BUSY),
    },
)
async def usage(client_id: ClientId, query: Annotated[CheckQuery, Query()], limiter: LimiterDep) -> Response:
    """Return the limits that apply, the usage of each, and what is held. The client's worker answers.

    Nothing is charged. The units of a lease count as held until its gateway reports which it has used.
    """
    lookup = await limiter.look_up(client_id, plan=query.plan or "", resource=query.resource or "")
    key = lookup.held_to
    held_to = HeldTo(key.kind, key.id or None, key.resource or None) if key else None  # type: ignore[arg-type]
    return respond(
        ClientUsage(
            client_id,
            query.plan,
            query.resource,
            held_to,
            lookup.policy_version,
            lookup.windows or [],
            lookup.holds,
        )
    )


@router.post(
    "/v1/clients/{client_id:id}/reset",
    summary="Reset a client's counters",
    dependencies=[Depends(require_utf8)],
    responses={
        **openapi.success(
            200, "Applied: the next check sees it", openapi.schema_of(ResetCounters), {"applied": _APPLIED}
        ),
        **openapi.success(
            202,
            "Stored, but not confirmed in time",
            openapi.schema_of(ResetCounters),
            {"unconfirmed": _UNCONFIRMED},
        ),
        **openapi.failures(openapi.NO_BROKER, openapi.BAD_RESOURCE),
    },
)
async def reset(client_id: ClientId, query: Resource, limiter: LimiterDep, source: Source) -> Response:
    """Reset the client's counters; with `resource`, only those of that resource. The request has no body."""
    result = await limiter.reset(client_id, query.resource or "", source=source)
    reset = ResetCounters(client_id, query.resource, result.applied, result.existed)
    return respond(reset, 200 if result.applied else 202, request_id_header(source))
