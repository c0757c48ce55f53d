"""``/v1/limits``, ``/v1/plans`` and ``/v1/default``: set, read, delete and list limits."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from stoplog.client.limiter import Limiter
from stoplog.client.limits_admin import Applied
from stoplog.policy import Policy, parse_policy
from stoplog.wire.audit import ChangeSource
from stoplog.wire.limit_updates import UpdateKey
from stoplog_gateway.http import openapi
from stoplog_gateway.http.change_source import Source, request_id_header
from stoplog_gateway.http.params import ClientId, LimiterDep, PlanId, Resource, ResourceQuery, require_utf8
from stoplog_gateway.http.problems import NO_LIMITS, ProblemError
from stoplog_gateway.http.request_body import JsonBody, decode
from stoplog_gateway.http.responses import respond
from stoplog_gateway.http.routes.limit_models import (
    ChangedLimits,
    DeletedLimits,
    LimitsRequest,
    ListedLimits,
    Page,
    StoredLimits,
    stored_fields,
    with_whole_numbers,
)

_LIMITS: Final = ["100/minute", "10/second"]
_BODY: Final = openapi.json_body(
    openapi.schema_of(LimitsRequest),
    {
        "several": {"limits": _LIMITS},
        "long": {"limits": [{"max": 100, "window_seconds": 60}]},
        "unlimited": {"limits": "unlimited"},
        "blocked": {"limits": ["0/minute"]},
    },
)

_Kind = Literal["client", "plan", "default"]


def _changed(kind: _Kind, id_: str | None, limits: list[str] | None) -> openapi.Responses:
    """Return the responses of a route that changes limits. With *limits*, the route reads a body."""
    applied: ChangedLimits
    if limits is None:
        schema = openapi.schema_of(DeletedLimits)
        applied = DeletedLimits(kind, id_, None, limits, True, 41, True)
        unconfirmed: ChangedLimits = DeletedLimits(kind, id_, None, limits, False, None, None)
    else:
        schema = openapi.schema_of(ChangedLimits)
        applied = ChangedLimits(kind, id_, None, limits, True, 41)
        unconfirmed = ChangedLimits(kind, id_, None, limits, False, None)
    return {
        **openapi.success(200, "Applied: the next check sees it", schema, {"applied": applied}),
        **openapi.success(202, "Stored, but not confirmed in time", schema, {"unconfirmed": unconfirmed}),
        **openapi.failures(
            *((*openapi.BODY_FAILURES, openapi.OLD_WORKER) if limits else ()),
            openapi.NO_BROKER,
            openapi.BAD_LIMIT if limits else openapi.BAD_RESOURCE,
        ),
    }


def _found(kind: _Kind, id_: str | None) -> openapi.Responses:
    found = StoredLimits(kind, id_, None, _LIMITS)
    return {
        **openapi.success(200, "The stored limits", openapi.schema_of(StoredLimits), {"stored": found}),
        **openapi.failures(openapi.NOTHING_STORED, openapi.BAD_RESOURCE, *openapi.READ_FAILURES),
    }


class PageQuery(BaseModel):
    """Selects a page."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[str, Field(json_schema_extra={"pattern": r"^[0-9]{1,6}\.[0-9]{1,18}$"})] | None = Field(
        None, description="`next` of the previous page. Without it, the first page."
    )
    limit: int = Field(
        100, description="Number of entries to read, 1 to 1,000.", json_schema_extra=openapi.PAGE_SIZE
    )
    kind: Annotated[str, Field(json_schema_extra={"enum": list(get_args(_Kind))})] | None = Field(
        None, description="List only limits of this kind: `client`, `plan` or `default`."
    )


_request_decoder: Final = msgspec.json.Decoder(LimitsRequest)

_PAGE: Final = Page([ListedLimits("client", "alice", None, _LIMITS, 41)], None)

router = APIRouter(tags=["limits"], dependencies=[Depends(require_utf8)], default_response_class=Response)


@router.get(
    "/v1/limits",
    summary="List stored limits",
    responses={
        **openapi.success(200, "A page of limits", openapi.schema_of(Page), {"last": _PAGE}),
        **openapi.failures(openapi.BAD_PAGE, *openapi.READ_FAILURES),
    },
)
async def list_limits(query: Annotated[PageQuery, Query()], limiter: LimiterDep) -> Response:
    """List limits in the order of the log. An entry that changes between two pages can occur in both."""
    found = await limiter.list_limits(query.after, query.limit, query.kind)
    items = [
        ListedLimits(**stored_fields(item.key, item.policy), policy_version=item.version)
        for item in found.items
    ]
    return respond(Page(items, found.next))


@router.put(
    "/v1/limits/{client_id:id}",
    summary="Set a client's limits",
    responses=_changed("client", "alice", _LIMITS),
    openapi_extra=_BODY,
)
async def put_client(
    client_id: ClientId, query: Resource, body: JsonBody, limiter: LimiterDep, source: Source
) -> Response:
    """Set the limits of one client; with `resource`, only for that resource."""
    return await _set(limiter, _key("client", client_id, query), body, source)


@router.get(
    "/v1/limits/{client_id:id}", summary="Read a client's own limits", responses=_found("client", "alice")
)
async def get_client(client_id: ClientId, query: Resource, limiter: LimiterDep) -> Response:
    """Return the limits stored for this client, without the limits of plans and the default."""
    return await read_limits(limiter, _key("client", client_id, query))


@router.delete(
    "/v1/limits/{client_id:id}",
    summary="Delete a client's limits",
    responses=_changed("client", "alice", None),
)
async def delete_client(
    client_id: ClientId, query: Resource, limiter: LimiterDep, source: Source
) -> Response:
    """Delete the client's own limits, so that its plan's or the default limits apply.

    Can be repeated: `existed` states whether there was anything to delete.
    """
    return await _delete(limiter, _key("client", client_id, query), source)


@router.put(
    "/v1/plans/{plan:id}",
    summary="Set a plan's limits",
    responses=_changed("plan", "free", _LIMITS),
    openapi_extra=_BODY,
)
async def put_plan(
    plan: PlanId, query: Resource, body: JsonBody, limiter: LimiterDep, source: Source
) -> Response:
    """Set a plan's limits, which apply to its clients that have no limits of their own."""
    return await _set(limiter, _key("plan", plan, query), body, source)


@router.get("/v1/plans/{plan:id}", summary="Read a plan's limits", responses=_found("plan", "free"))
async def get_plan(plan: PlanId, query: Resource, limiter: LimiterDep) -> Response:
    """Return the limits stored for this plan."""
    return await read_limits(limiter, _key("plan", plan, query))


@router.delete(
    "/v1/plans/{plan:id}",
    summary="Delete a plan's limits",
    responses=_changed("plan", "free", None),
)
async def delete_plan(plan: PlanId, query: Resource, limiter: LimiterDep, source: Source) -> Response:
    """Delete the plan's limits, so that the default limits apply to its clients."""
    return await _delete(limiter, _key("plan", plan, query), source)


@router.put(
    "/v1/default",
    summary="Set the default limits",
    responses=_changed("default", None, _LIMITS),
    openapi_extra=_BODY,
)
async def put_default(query: Resource, body: JsonBody, limiter: LimiterDep, source: Source) -> Response:
    """Set the limits of all clients that have no limits of their own or of a plan."""
    return await _set(limiter, _key("default", "", query), body, source)


@router.get("/v1/default", summary="Read the default limits", responses=_found("default", None))
async def get_default(query: Resource, limiter: LimiterDep) -> Response:
    """Return the stored default limits. The status is 404 while the workers' built-in default applies."""
    return await read_limits(limiter, _key("default", "", query))


@router.delete(
    "/v1/default",
    summary="Delete the default limits",
    responses=_changed("default", None, None),
)
async def delete_default(query: Resource, limiter: LimiterDep, source: Source) -> Response:
    """Delete the default limits, so that the workers' built-in default applies."""
    return await _delete(limiter, _key("default", "", query), source)


def _key(kind: _Kind, id_: str, query: ResourceQuery) -> UpdateKey:
    return UpdateKey(kind, id_, query.resource or "")


async def _set(limiter: Limiter, key: UpdateKey, body: bytes, source: ChangeSource) -> Response:
    policy = parse_policy(with_whole_numbers(decode(_request_decoder, body).limits))
    change = await limiter.set_limits(key, policy, source=source)
    return _changed_response(ChangedLimits(**_changed_fields(key, policy, change)), change, source)


async def _delete(limiter: Limiter, key: UpdateKey, source: ChangeSource) -> Response:
    change = await limiter.set_limits(key, None, source=source)
    deleted = DeletedLimits(**_changed_fields(key, None, change), existed=change.existed)
    return _changed_response(deleted, change, source)


async def read_limits(limiter: Limiter, key: UpdateKey) -> Response:
    """Respond with the limits stored under *key*, or with 404."""
    policy = await limiter.get_limits(key)
    if policy is None:
        name = f"{key.kind} {key.id}".strip() + (f" for resource {key.resource}" if key.resource else "")
        field = "client_id" if key.kind == "client" else key.kind
        raise ProblemError(NO_LIMITS, f"{name} has no limits of its own", field, "set some with PUT")
    return respond(StoredLimits(**stored_fields(key, policy)))


def _changed_fields(key: UpdateKey, policy: Policy | None, change: Applied) -> dict[str, Any]:
    version = change.version if change.applied else None
    return {**stored_fields(key, policy), "applied": change.applied, "policy_version": version}


def _changed_response(changed: ChangedLimits, change: Applied, source: ChangeSource) -> Response:
    """Respond with 200 if the change is applied, and with 202 if no worker confirmed it in time."""
    return respond(changed, 200 if change.applied else 202, request_id_header(source))
