"""A peer: PyPI `limits`, its sliding window in Redis, behind FastAPI, as its documentation has it.

Runs in the peers' environment, under uvicorn with uvloop and httptools: ``REDIS_PORT`` says where Redis is.
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
_limiter = SlidingWindowCounterRateLimiter(_storage)
app = FastAPI()


class CheckRequest(BaseModel):
    """Who spends how much."""

    client_id: str
    cost: int = 1


@app.post("/v1/check")
async def check(request: CheckRequest) -> dict[str, bool]:
    """Spend, if the limit allows it."""
    return {"allowed": await _limiter.hit(_LIMIT, request.client_id, cost=request.cost)}
