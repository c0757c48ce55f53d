"""A peer: the same FastAPI application with PyPI's `fastapi-limiter` and Redis, as its documentation shows.

It runs in the peers' environment. ``REDIS_PORT`` is Redis's port.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from fastapi import Depends, FastAPI, Request
from fastapi_limiter import FastAPILimiter
from fastapi_limiter.depends import RateLimiter


async def client_of(request: Request) -> str:
    """Return the client of a request."""
    return request.headers["x-client-id"]


@asynccontextmanager
async def _connected(_: FastAPI) -> AsyncIterator[None]:
    await FastAPILimiter.init(redis.asyncio.Redis(port=int(os.environ["REDIS_PORT"])), identifier=client_of)
    yield
    await FastAPILimiter.close()


app = FastAPI(lifespan=_connected)


@app.get("/", dependencies=[Depends(RateLimiter(times=1_000_000, minutes=1))])
async def hello() -> str:
    """Answer a request."""
    return "hello"
