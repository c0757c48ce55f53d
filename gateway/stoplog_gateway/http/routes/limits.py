"""The routes of limits: of a client, of a plan, the default, and all of them page by page."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from stoplog_gateway.http import openapi
from stoplog_gateway.http.auth import guard
from stoplog_gateway.http.params import ClientId, PlanId, Resource, Store, require_utf8
from stoplog_gateway.http.request_body import JsonBody
from stoplog_gateway.http.routes import limit_models as stored
from stoplog_gateway.http.routes.limit_models import (
    ChangedLimits,
    LimitsRequest,
    ListedLimits,
    Page,
    StoredLimits,
)

_LIMITS: Final = ["100/minute", "10/second"]
_BODY: Final = openapi.body(
    openapi.ref(LimitsRequest),
    {
        "several": {"limits": _LIMITS},
        "long": {"limits": [{"max": 100, "window_seconds": 60}]},
        "unlimited": {"limits": "unlimited"},
        "blocked": {"limits": ["0/minute"]},
    },
)

_Kind = Literal["client", "plan", "default"]


def _changed(kind: _Kind, id_: str | None, limits: list[str] | None) -> openapi.Entry:
    """Responses of a change; with *limits* it reads a body."""
    schema = openapi.ref(ChangedLimits)
    done = ChangedLimits(kind, id_, None, limits, True, 41)
    late = ChangedLimits(kind, id_, None, limits, False, None)
    return {
        **openapi.answers(200, "Applied: the next check sees it", schema, {"applied": done}),
        **openapi.answers(202, "Stored, but nobody confirmed in time", schema, {"unconfirmed": late}),
        **openapi.fails(
            *(openapi.BODY_FAILS if limits else ()),
            *openapi.CHANGE_FAILS,
            openapi.BAD_LIMIT if limits else openapi.BAD_RESOURCE,
        ),
    }


def _found(kind: _Kind, id_: str | None) -> openapi.Entry:
    found = StoredLimits(kind, id_, None, _LIMITS)
    return {
        **openapi.answers(200, "What it is held to", openapi.ref(StoredLimits), {"stored": found}),
        **openapi.fails(openapi.NOTHING_STORED, openapi.BAD_RESOURCE, *openapi.READ_FAILS),
    }


class PageQuery(BaseModel):
    """Which page."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, description="`next` of the page before; without it, the first page.")
    limit: int = Field(100, description="Entries to look at, 1 to 1,000.")
    kind: str | None = Field(None, description="Only `client`, `plan` or `default`.")


_PAGE: Final = Page([ListedLimits("client", "alice", None, _LIMITS, 41)], None)

_change: Final[Any] = [Depends(guard)]

router = APIRouter(tags=["limits"], dependencies=[Depends(require_utf8)], default_response_class=Response)


@router.get(
    "/v1/limits",
    summary="List stored limits",
    dependencies=[Depends(guard)],
    responses={
        **openapi.answers(200, "A page", openapi.ref(Page), {"last": _PAGE}),
        **openapi.fails(openapi.NO_TOKEN, openapi.BAD_PAGE, *openapi.READ_FAILS),
    },
    openapi_extra=openapi.with_token(),
)
async def list_limits(query: Annotated[PageQuery, Query()], limiter: Store) -> Response:
    """Read from the log as it is: an entry changed between two pages may come by twice, the newer later."""
    return await stored.page(limiter, query.after, query.limit, query.kind)


@router.put(
    "/v1/limits/{client_id:id}",
    summary="Set a client's limits",
    dependencies=_change,
    responses=_changed("client", "alice", _LIMITS),
    openapi_extra=openapi.with_token(_BODY),
)
async def put_client(client_id: ClientId, query: Resource, body: JsonBody, limiter: Store) -> Response:
    """Hold one client to these limits, with `resource` in that resource only."""
    return await stored.put(limiter, stored.key_of("client", client_id, query), body)


@router.get("/v1/limits/{client_id:id}", summary="A client's own limits", responses=_found("client", "alice"))
async def get_client(client_id: ClientId, query: Resource, limiter: Store) -> Response:
    """What is stored for this client; not the plan's or default limits that hold without."""
    return await stored.get(limiter, stored.key_of("client", client_id, query))


@router.delete(
    "/v1/limits/{client_id:id}",
    summary="Delete a client's limits",
    dependencies=_change,
    responses=_changed("client", "alice", None),
    openapi_extra=openapi.with_token(),
)
async def delete_client(client_id: ClientId, query: Resource, limiter: Store) -> Response:
    """Its plan's limits, or the default, hold again. Nothing to delete is no error."""
    return await stored.delete(limiter, stored.key_of("client", client_id, query))


@router.put(
    "/v1/plans/{plan:id}",
    summary="Set a plan's limits",
    dependencies=_change,
    responses=_changed("plan", "free", _LIMITS),
    openapi_extra=openapi.with_token(_BODY),
)
async def put_plan(plan: PlanId, query: Resource, body: JsonBody, limiter: Store) -> Response:
    """Hold every client whose check names this plan, and that has no limits of its own, to these limits."""
    return await stored.put(limiter, stored.key_of("plan", plan, query), body)


@router.get("/v1/plans/{plan:id}", summary="A plan's limits", responses=_found("plan", "free"))
async def get_plan(plan: PlanId, query: Resource, limiter: Store) -> Response:
    """What is stored for this plan."""
    return await stored.get(limiter, stored.key_of("plan", plan, query))


@router.delete(
    "/v1/plans/{plan:id}",
    summary="Delete a plan's limits",
    dependencies=_change,
    responses=_changed("plan", "free", None),
    openapi_extra=openapi.with_token(),
)
async def delete_plan(plan: PlanId, query: Resource, limiter: Store) -> Response:
    """The default holds for its clients again."""
    return await stored.delete(limiter, stored.key_of("plan", plan, query))


@router.put(
    "/v1/default",
    summary="Set the default limits",
    dependencies=_change,
    responses=_changed("default", None, _LIMITS),
    openapi_extra=openapi.with_token(_BODY),
)
async def put_default(query: Resource, body: JsonBody, limiter: Store) -> Response:
    """Hold every client without limits of its own or of a plan to these limits."""
    return await stored.put(limiter, stored.key_of("default", "", query), body)


@router.get("/v1/default", summary="The default limits", responses=_found("default", None))
async def get_default(query: Resource, limiter: Store) -> Response:
    """What is stored as the default; 404 while the workers' built-in default holds."""
    return await stored.get(limiter, stored.key_of("default", "", query))


@router.delete(
    "/v1/default",
    summary="Delete the default limits",
    dependencies=_change,
    responses=_changed("default", None, None),
    openapi_extra=openapi.with_token(),
)
async def delete_default(query: Resource, limiter: Store) -> Response:
    """The workers' built-in default holds again."""
    return await stored.delete(limiter, stored.key_of("default", "", query))
