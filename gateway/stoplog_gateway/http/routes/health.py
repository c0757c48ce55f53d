"""``/healthz`` and ``/readyz``: probes for orchestrators and load balancers."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LimiterDep
from stoplog_gateway.http.problems import NOT_READY, ProblemError
from stoplog_gateway.http.responses import respond


class Health(msgspec.Struct, frozen=True):
    """The state: `alive`, or also `ready`."""

    status: Literal["alive", "ready"]


_REMEDY = "see /v1/status; until then, checks fail open"

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/healthz",
    summary="Liveness of the process",
    responses={
        **openapi.success(200, "The process is alive", openapi.schema_of(Health), {"alive": Health("alive")}),
        **openapi.failures(),
    },
)
async def healthz() -> Response:
    """Return 200 in every state of the store: a restart of the gateway does not repair a broker.

    After an internal failure, which a restart does repair, the process ends by itself (exit status 1).
    """
    return respond(Health("alive"))


@router.get(
    "/readyz",
    summary="Readiness to answer from the store",
    responses={
        **openapi.success(
            200,
            "The store answers checks of at least one partition",
            openapi.schema_of(Health),
            {"ready": Health("ready")},
        ),
        **openapi.failures((NOT_READY, "partition 2 has not answered yet", None, _REMEDY)),
    },
)
async def readyz(limiter: LimiterDep) -> Response:
    """Return 200 if a load balancer should send checks to this gateway.

    Return 503 with the reason while the checks of *every* partition fail open, and after a start until every
    partition has answered once. If only some partitions fail open, the status is 200: `/v1/status` lists them
    in `degraded_partitions`, and the answer to each of their checks contains `degraded: true`.
    """
    readiness = await limiter.ready()
    if not readiness.ready:
        raise ProblemError(NOT_READY, readiness.reason or "not ready", None, _REMEDY)
    return respond(Health("ready"))
