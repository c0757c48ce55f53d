"""An HTTP client of a gateway's application with a fake limiter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import SecretStr
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter


@asynccontextmanager
async def connect(
    limiter: FakeLimiter, *, host: str = "127.0.0.1", token: str | None = None, **fields: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application with *limiter*, configured to listen on *host*."""
    settings = GatewaySettings(host=host, admin_token=SecretStr(token) if token else None, **fields)
    transport = httpx.ASGITransport(app=create_app(settings, limiter))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client
