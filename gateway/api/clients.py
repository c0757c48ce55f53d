"""``POST /v1/clients/{client_id}/reset``: a client's counters."""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from gateway.api import openapi
from gateway.api.inputs import ClientId, Resource, Store, require_utf8
from gateway.api.responses import respond
from gateway.security import guard_change


class ResetCounters(msgspec.Struct, frozen=True):
    """A reset; `applied` false: it is stored and will be applied, but nobody confirmed that in time."""

    client_id: str
    resource: str | None
    applied: bool


_DONE: Final = ResetCounters("alice", None, True)
_LATE: Final = ResetCounters("alice", None, False)

router = APIRouter(tags=["clients"], default_response_class=Response)


@router.post(
    "/v1/clients/{client_id:id}/reset",
    summary="Forget what a client has spent",
    dependencies=[Depends(guard_change), Depends(require_utf8)],
    responses={
        **openapi.answers(200, "The next check sees it", openapi.ref(ResetCounters), {"applied": _DONE}),
        **openapi.answers(202, "Not confirmed in time", openapi.ref(ResetCounters), {"unconfirmed": _LATE}),
        **openapi.fails(*openapi.CHANGE_FAILS, openapi.BAD_RESOURCE),
    },
    openapi_extra=openapi.change(),
)
async def reset(client_id: ClientId, query: Resource, limiter: Store) -> Response:
    """Empty the client's counters, with `resource` only that resource's. Takes no body."""
    done = await limiter.reset(client_id, query.resource or "")
    status = 200 if done.applied else 202
    return respond(ResetCounters(client_id, query.resource, done.applied), status)
