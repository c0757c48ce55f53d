"""A peer: the same FastAPI application with PyPI's `slowapi` and Redis, as its documentation shows.

It runs in the peers' environment. ``REDIS_PORT`` is Redis's port.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded

_limiter = Limiter(
    key_func=lambda request: request.headers["x-client-id"],
    storage_uri=f"redis://127.0.0.1:{os.environ['REDIS_PORT']}",
)
app = FastAPI()
app.state.limiter = _limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)


@app.get("/")
@_limiter.limit("1000000/minute")  # type: ignore[untyped-decorator]
async def hello(request: Request) -> str:
    """Answer a request."""
    return "hello"
