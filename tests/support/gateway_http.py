"""An HTTP client of a gateway's application with a fake limiter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter


@asynccontextmanager
async def connect(
    limiter: FakeLimiter,
    *,
    host: str = "127.0.0.1",
    tokens: Mapping[str, str] | None = None,
    check_needs_token: bool = False,
    **fields: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application with *limiter*, configured to listen on *host*.

    *tokens* are texts of tokens, with their scopes; ``None`` stands for a gateway without a tokens file.
    """
    settings = GatewaySettings(host=host, **fields)
    access = access_control(tokens, host=host, check_needs_token=check_needs_token)
    transport = httpx.ASGITransport(app=create_app(settings, limiter, access))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client
