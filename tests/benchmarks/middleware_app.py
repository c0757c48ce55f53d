"""A FastAPI application of one route, without a limiter and behind Stoplog's middleware.

``python -m uvicorn tests.benchmarks.middleware_app:limited``. ``STOPLOG_KAFKA``, ``STOPLOG_TOPICS`` and
``STOPLOG_LEASE_MAX_MS`` configure the limiter.
"""

from __future__ import annotations

from fastapi import FastAPI

from stoplog import Limiter, RateLimitMiddleware
from stoplog.client.settings import read_settings

unlimited = FastAPI()


@unlimited.get("/")
async def hello() -> str:
    """Answer a request."""
    return "hello"


_limiter = Limiter(read_settings())
limited = FastAPI()
limited.add_middleware(
    RateLimitMiddleware, limiter=_limiter, identify=lambda request: request.headers.get("x-client-id")
)
limited.get("/")(hello)


@limited.get("/counts")
async def counts() -> dict[str, int]:
    """Return the counters of the limiter. A request without a client id is not limited."""
    return {"failed_open": _limiter.metrics.failed_open, "lease_hits": _limiter.metrics.lease_hits}
