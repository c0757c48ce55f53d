"""A FastAPI application with limits per API key: one for all requests, and one more for an expensive route.

::

    uvicorn examples.app:app --port 8000
    curl -i http://127.0.0.1:8000/books -H 'X-API-Key: alice'

``STOPLOG_KAFKA`` sets the address of Kafka. While Kafka does not answer, every request is allowed.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from stoplog import Answer, Limiter, RateLimit, RateLimitMiddleware, Settings


def api_key(connection: HTTPConnection) -> str | None:
    """Return the client id of a request. Requests without a key, such as health checks, are not limited."""
    return connection.headers.get("x-api-key")


limiter = Limiter(Settings())
reports = RateLimit(limiter, api_key, resource="reports", cost=2)

app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)  # starts and stops the limiter


@app.get("/books")
async def books() -> list[str]:
    """Charge 1 to the limit of the key."""
    return ["Nineteen Eighty-Four"]


@app.post("/reports")
async def report(answer: Annotated[Answer | None, Depends(reports)]) -> dict[str, int | None]:
    """Charge 2 to the key's limit for reports, and 1 to its limit for all requests."""
    left = answer.remaining if answer is not None else None
    return {"left_for_reports": left}
