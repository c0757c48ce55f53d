"""``GET /v1/status`` and ``/metrics``: how the gateway and its store are, for people and for Prometheus."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from stoplog.client.cluster_status import Node, Status
from stoplog.client.metrics import CONTENT_TYPE
from stoplog.wire.heartbeats import RUNNING, PartitionState
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import Store
from stoplog_gateway.http.responses import respond

_SINCE: Final = 1_760_000_000_000
_WORKER: Final = Node("worker-1", "worker", "0.1.0", "node-a", 430, {0: PartitionState(RUNNING, 0)})
_GATEWAY: Final = Node("gateway-1", "gateway", "0.1.0", "node-a", 120, {})
_NORMAL: Final = Status("normal", _SINCE, None, [], 0, 0, "ok", None, 4, [_GATEWAY, _WORKER])
_NOBODY: Final = "no worker owns partition 0, 1, 2, 3: start one with `stoplog worker`"
_DEGRADED: Final = Status(
    "degraded", _SINCE, _NOBODY, [0, 1, 2, 3], 512, 0, "no_worker", _NOBODY, 4, [_GATEWAY], 1, 1
)

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/v1/status",
    summary="Mode, nodes, and the store's state",
    responses={
        **openapi.answers(
            200, "As known now", openapi.ref(Status), {"normal": _NORMAL, "degraded": _DEGRADED}
        ),
        **openapi.fails(),
    },
)
async def status(limiter: Store) -> Response:
    """What this gateway knows, without asking anybody: a gateway that has lost the store answers too.

    Where one port has several processes it is of all, as of a second ago: degraded if any of them is.
    """
    return respond(limiter.status())


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={
        200: {
            "description": "Prometheus text",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": "# TYPE stoplog_checks_total counter\n",
                }
            },
        },
        **openapi.fails(),
    },
)
async def metrics(limiter: Store) -> Response:
    """Counts, gauges and histograms of this gateway, with their `# HELP`; stoplog/client/metrics.py lists them."""
    return Response(limiter.metrics.render(), headers={"content-type": CONTENT_TYPE})
