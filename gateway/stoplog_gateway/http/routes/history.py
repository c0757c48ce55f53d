"""``/v1/limits/…/history``: the changes of limits, with author, time, address and previous limits.

These routes come before those that read limits, because an id may contain slashes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from stoplog.client.limiter import Limiter
from stoplog.wire.audit import AuditEntry, AuditRecord
from stoplog.wire.limit_updates import UpdateKey
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import ClientId, LimiterDep, PlanId, ResourceQuery, require_utf8
from stoplog_gateway.http.problems import INVALID
from stoplog_gateway.http.responses import respond
from stoplog_gateway.http.routes.limits import read_limits

Limits = list[str] | Literal["unlimited"] | None


class Change(msgspec.Struct, frozen=True):
    """A change of limits or a reset of counters, as it was applied.

    `at_ms` is the broker's time. `limits` is null after a deletion and for a reset. `previous_limits` is null
    if nothing was replaced. `who` is the name of a token, `local`, `sdk` or `kafka`. `position`
    identifies the change among those of one client, plan or the default.
    """

    change: Literal["set", "delete", "reset"]
    resource: str | None
    limits: Limits
    policy_version: int
    previous_limits: Limits
    previous_version: int | None
    at_ms: int
    who: str
    address: str | None
    request_id: str | None
    position: int


class History(msgspec.Struct, frozen=True):
    """A page of changes, the newest first. `next` is the `before` of the next page, and null on the last."""

    kind: Literal["client", "plan", "default"]
    id: str | None
    resource: str | None
    items: list[Change]
    next: str | None


MODELS: Final = (History,)


class HistoryQuery(ResourceQuery):
    """Selects a page."""

    before: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,18}$"})] | None = Field(
        None, description="`next` of the previous page. Without it, the newest changes."
    )
    limit: int = Field(
        100, description="Number of changes to return, 1 to 1,000.", json_schema_extra=openapi.PAGE_SIZE
    )


_CHANGE: Final = Change(
    change="set",
    resource=None,
    limits=["100/minute"],
    policy_version=41,
    previous_limits=["50/minute"],
    previous_version=12,
    at_ms=1_764_457_200_000,
    who="admin",
    address="10.0.0.7",
    request_id="7d1f0c93b2a84e55",
    position=80_871_424,
)


def _found(kind: Literal["client", "plan", "default"], id_: str | None) -> openapi.Responses:
    page = History(kind, id_, None, [_CHANGE], None)
    bad_page: openapi.Failure = (INVALID, "limit: out of bounds", "limit", "use 1 to 1,000")
    return {
        **openapi.success(200, "A page of changes", openapi.schema_of(History), {"last": page}),
        **openapi.failures(bad_page, *openapi.READ_FAILURES),
    }


router = APIRouter(tags=["limits"], dependencies=[Depends(require_utf8)], default_response_class=Response)


@router.get(
    "/v1/limits/{client_id:id}/history",
    summary="Read the history of a client's limits",
    responses=_found("client", "alice"),
)
async def client_history(
    request: Request, client_id: ClientId, query: Annotated[HistoryQuery, Query()], limiter: LimiterDep
) -> Response:
    """Return the changes of the client's own limits and the resets of its counters, for `resource` or none.

    If the last slash is encoded as `%2F`, the route is that of the client `…/history`.
    """
    return await _history_or_limits(
        request, limiter, UpdateKey("client", client_id, query.resource or ""), query
    )


@router.get(
    "/v1/plans/{plan:id}/history",
    summary="Read the history of a plan's limits",
    responses=_found("plan", "free"),
)
async def plan_history(
    request: Request, plan: PlanId, query: Annotated[HistoryQuery, Query()], limiter: LimiterDep
) -> Response:
    """Return the changes of the plan's limits, for `resource` or none."""
    key = UpdateKey("plan", plan, query.resource or "")
    return await _history_or_limits(request, limiter, key, query)


@router.get(
    "/v1/default/history",
    summary="Read the history of the default limits",
    responses=_found("default", None),
)
async def default_history(query: Annotated[HistoryQuery, Query()], limiter: LimiterDep) -> Response:
    """Return the changes of the default limits, for `resource` or none."""
    return await _history(limiter, UpdateKey("default", "", query.resource or ""), query)


async def _history_or_limits(
    request: Request, limiter: Limiter, key: UpdateKey, query: HistoryQuery
) -> Response:
    """Return the history of *key*, or the limits of the id ``…/history`` if its slash was sent as ``%2F``."""
    if not request.scope["raw_path"].endswith(b"/history"):
        return await read_limits(limiter, msgspec.structs.replace(key, id=f"{key.id}/history"))
    return await _history(limiter, key, query)


async def _history(limiter: Limiter, key: UpdateKey, query: HistoryQuery) -> Response:
    page = await limiter.limits_history(key, query.before, query.limit)
    kind: Any = key.kind
    items = [_change(entry) for entry in page.items]
    return respond(History(kind, key.id or None, key.resource or None, items, page.next))


def _change(entry: AuditEntry) -> Change:
    record: AuditRecord = entry.record
    change: Literal["set", "delete", "reset"] = "delete" if record.limits is None else "set"
    return Change(
        change="reset" if entry.key.kind == "reset" else change,
        resource=entry.key.resource or None,
        limits=record.limits,
        policy_version=record.policy_version,
        previous_limits=record.previous_limits,
        previous_version=record.previous_version,
        at_ms=record.at_ms,
        who=record.who,
        address=record.address or None,
        request_id=record.request_id or None,
        position=record.position,
    )
