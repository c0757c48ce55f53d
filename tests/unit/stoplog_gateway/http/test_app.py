from __future__ import annotations

import logging

import pytest
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter


async def test_lifespan_starts_and_stops_the_limiter(
    limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = create_app(GatewaySettings(kafka="broker:9092"), limiter)
    async with app.router.lifespan_context(app):
        assert limiter.running
    assert not limiter.running
    assert [r.getMessage() for r in caplog.records] == [
        "the gateway listens on http://127.0.0.1:8080 and uses Kafka at broker:9092"
    ]
