"""``/healthz`` and ``/readyz``: probes for orchestrators and load balancers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LimiterDep
from stoplog_gateway.http.problems import INVALID, NOT_READY, ProblemError
from stoplog_gateway.http.responses import respond
from stoplog_gateway.lifecycle import Lifecycle, Phase


class Health(msgspec.Struct, frozen=True):
    """The state: `alive`, or also `ready`."""

    status: Literal["alive", "ready"]


class ReadyQuery(BaseModel):
    """The query of ``/readyz``."""

    model_config = ConfigDict(extra="forbid")

    strict: bool = Field(False, description="Be ready only while the store answers.")


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
    summary="Readiness to receive checks",
    responses={
        **openapi.success(
            200,
            "The gateway answers checks; with `strict`, the store answers those of at least one partition",
            openapi.schema_of(Health),
            {"ready": Health("ready")},
        ),
        **openapi.failures(
            (NOT_READY, "partition 2 has not answered yet", None, _REMEDY),
            (INVALID, "strict: Input should be a valid boolean", "strict", "see the parameter in /docs"),
        ),
    },
)
async def readyz(request: Request, query: Annotated[ReadyQuery, Query()], limiter: LimiterDep) -> Response:
    """Return 200 if a load balancer should send checks to this gateway.

    Return 503 while the gateway drains before its end. Also return 503 after a start until every partition
    has answered once, for at most `STOPLOG_STARTUP_S`. A gateway whose store does not answer stays ready: its
    checks fail open, and without it they would get no answer.

    With `strict=1`, also return 503 while the checks of *every* partition fail open. If only some partitions
    fail open, the status is 200: `/v1/status` lists them in `degraded_partitions`, and the answer to each of
    their checks contains `degraded: true`.
    """
    lifecycle: Lifecycle = request.app.state.lifecycle
    readiness = await limiter.ready()
    phase = lifecycle.phase(answered=readiness.ready)
    if phase is Phase.DRAINING:
        raise ProblemError(NOT_READY, "the gateway is about to stop", None, "send checks to another gateway")
    if not readiness.ready and (query.strict or phase is Phase.STARTING):
        raise ProblemError(NOT_READY, readiness.reason or "not ready", None, _REMEDY)
    return respond(Health("ready"))
