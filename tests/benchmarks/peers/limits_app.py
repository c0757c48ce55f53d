"""A peer: PyPI's `limits` with its sliding window in Redis, behind FastAPI, as its documentation shows.

It runs in the peers' environment, under uvicorn with uvloop and httptools. ``REDIS_PORT`` is Redis's port.
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel

_LIMIT = RateLimitItemPerMinute(1_000_000)
_storage = RedisStorage(
    f"async+redis://127.0.0.1:{os.environ['REDIS_PORT']}",
    implementation="redispy",
    max_connections=1_000,  # its default is refused beyond 100 callers
)
_strategy = SlidingWindowCounterRateLimiter(_storage)
app = FastAPI()


class PeerCheck(BaseModel):
    """The body of a request."""

    client_id: str
    cost: int = 1


@app.post("/v1/check")
async def check(request: PeerCheck) -> dict[str, bool]:
    """Charge the client if the limit allows it."""
    return {"allowed": await _strategy.hit(_LIMIT, request.client_id, cost=request.cost)}
