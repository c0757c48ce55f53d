"""``GET /v1/status`` and ``/metrics``: the state of the gateway and its store, as JSON and for Prometheus."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from stoplog.client.cluster_status import Node, Status
from stoplog.client.metrics import CONTENT_TYPE
from stoplog.wire.heartbeats import RUNNING, PartitionState
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LimiterDep
from stoplog_gateway.http.responses import respond

_SINCE: Final = 1_760_000_000_000
_WORKER: Final = Node("worker-1", "worker", "0.2.0", "node-a", 430, {0: PartitionState(RUNNING, 0)})
_GATEWAY: Final = Node("gateway-1", "gateway", "0.2.0", "node-a", 120, {})
_NORMAL: Final = Status("normal", _SINCE, None, [], 0, 0, "ok", None, 4, [_GATEWAY, _WORKER])
_NO_WORKER: Final = "no worker owns partition 0, 1, 2, 3: start one with `stoplog worker`"
_DEGRADED: Final = Status(
    "degraded", _SINCE, _NO_WORKER, [0, 1, 2, 3], 512, 0, "no_worker", _NO_WORKER, 4, [_GATEWAY], 1, 1
)

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/v1/status",
    summary="Mode, nodes and state of the store",
    responses={
        **openapi.success(
            200, "The current state", openapi.schema_of(Status), {"normal": _NORMAL, "degraded": _DEGRADED}
        ),
        **openapi.failures(),
    },
)
async def status(limiter: LimiterDep) -> Response:
    """Return what this gateway knows. It sends no request, so it also answers while the store is unreachable.

    If several processes share the port, the status covers all of them, and their values are up to one second
    old. The mode is `degraded` if any process is degraded.
    """
    return respond(limiter.status())


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={
        200: {
            "description": "Metrics in the Prometheus text format",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": "# TYPE stoplog_checks_total counter\n",
                }
            },
        },
        **openapi.failures(),
    },
)
async def metrics(limiter: LimiterDep) -> Response:
    """Return the counters, gauges and histograms of this gateway, with a `# HELP` line for each."""
    return Response(limiter.metrics.render(), headers={"content-type": CONTENT_TYPE})
