"""``/healthz`` and ``/readyz``, for whoever starts, stops and balances gateways."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import Store
from stoplog_gateway.http.problems import NOT_READY, ProblemError
from stoplog_gateway.http.responses import respond


class Health(msgspec.Struct, frozen=True):
    """`alive`, or `ready` too."""

    status: Literal["alive", "ready"]


_REMEDY = "see /v1/status; checks are let through meanwhile"

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/healthz",
    summary="Is the process alive?",
    responses={
        **openapi.answers(200, "It is", openapi.ref(Health), {"alive": Health("alive")}),
        **openapi.fails(),
    },
)
async def healthz() -> Response:
    """200 whatever the store's state: a restart of the gateway mends no broker.

    What a restart does mend, a failure inside the gateway, ends the process (exit status 1).
    """
    return respond(Health("alive"))


@router.get(
    "/readyz",
    summary="Are checks answered from the store?",
    responses={
        **openapi.answers(
            200, "They are, of one partition at least", openapi.ref(Health), {"ready": Health("ready")}
        ),
        **openapi.fails((NOT_READY, "partition 2 has not answered yet", None, _REMEDY)),
    },
)
async def readyz(limiter: Store) -> Response:
    """Whether to send checks to this gateway rather than to another.

    503 with the reason while the checks of *every* partition are let through, and after a start until every
    partition has answered once. With some partitions let through and some answered it is 200:
    `/v1/status` lists them in `degraded_partitions`, and a check tells of itself by `degraded`.
    """
    readiness = await limiter.ready()
    if not readiness.ready:
        raise ProblemError(NOT_READY, readiness.reason or "not ready", None, _REMEDY)
    return respond(Health("ready"))
