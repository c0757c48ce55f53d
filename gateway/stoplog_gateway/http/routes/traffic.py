"""``GET /v1/traffic``: how many checks came, and how they were answered."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from stoplog.client.traffic import LatencyBucket, Traffic
from stoplog_gateway.http import openapi
from stoplog_gateway.http.params import Store
from stoplog_gateway.http.responses import respond

_LATENCY: Final = [LatencyBucket(1.0, 700), LatencyBucket(2.0, 990), LatencyBucket(None, 1_000)]
_TRAFFIC: Final = Traffic(1_760_000_000_000, 1_000, 900, 100, 0, 0, 0, 0, _LATENCY)

router = APIRouter(tags=["operation"], default_response_class=Response)


@router.get(
    "/v1/traffic",
    summary="Checks counted so far",
    responses={
        **openapi.answers(200, "As counted now", openapi.ref(Traffic), {"some": _TRAFFIC}),
        **openapi.fails(),
    },
)
async def traffic(limiter: Store) -> Response:
    """A few of the counts of `/metrics` as JSON: of all processes on this port, as old as a second."""
    return respond(limiter.traffic())
