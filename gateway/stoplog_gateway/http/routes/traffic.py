"""``GET /v1/traffic``: counts of checks by their outcome, and latencies."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from stoplog.client.traffic import LatencyBucket, Traffic
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import LimiterDep
from stoplog_gateway.http.responses import respond

_LATENCY: Final = [LatencyBucket(1.0, 700), LatencyBucket(2.0, 990), LatencyBucket(None, 1_000)]
_TRAFFIC: Final = Traffic(1_760_000_000_000, 1_000, 900, 100, 0, 0, 0, 0, _LATENCY)

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/v1/traffic",
    summary="Counts of checks",
    responses={
        **openapi.success(200, "The current counts", openapi.schema_of(Traffic), {"some": _TRAFFIC}),
        **openapi.failures(),
    },
)
async def traffic(limiter: LimiterDep) -> Response:
    """Return some counters of `/metrics` as JSON: of all processes on this port, up to one second old."""
    return respond(limiter.traffic())
