"""A FastAPI application whose callers are limited: every request by API key, one costly route once more.

::

    uvicorn examples.app:app --port 8000
    curl -i http://127.0.0.1:8000/books -H 'X-API-Key: alice'

``STOPLOG_KAFKA`` says where Kafka is. While it does not answer, everything is allowed.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from stoplog import Answer, Limiter, RateLimit, RateLimitMiddleware, Settings


def api_key(connection: HTTPConnection) -> str | None:
    """Who asks; health checks and whoever has no key yet are not limited here."""
    return connection.headers.get("x-api-key")


limiter = Limiter(Settings())
reports = RateLimit(limiter, api_key, resource="reports", cost=2)

app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)  # starts and stops it, too


@app.get("/books")
async def books() -> list[str]:
    """Costs 1 of the key's limit."""
    return ["Nineteen Eighty-Four"]


@app.post("/reports")
async def report(answer: Annotated[Answer | None, Depends(reports)]) -> dict[str, int | None]:
    """Costs 2 of what the key may spend on reports, and 1 as every request does."""
    left = answer.remaining if answer is not None else None
    return {"left_for_reports": left}
