from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect


@pytest.fixture
def limiter() -> FakeLimiter:
    return FakeLimiter()


@pytest.fixture
async def http(limiter: FakeLimiter) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with ``limiter``."""
    async with connect(limiter) as client:
        yield client
