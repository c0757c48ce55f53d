"""The transport where no broker is: what becomes of its threads, and of its producer."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.limiter import Limiter
from gateway.settings import Settings
from gateway.transport import Transport

NOWHERE = "127.0.0.1:1"


async def test_a_thread_that_dies_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_: Transport) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Transport, "_take_position", break_down)
    async with Limiter(Settings(kafka=NOWHERE, publish_timeout_ms=100)) as limiter:
        await asyncio.wait_for(limiter.until_failure(), 10)
        ready = await limiter.ready()
        assert limiter.failure == ready.reason == "thread sluice-replies ended: RuntimeError('a bug')"
        assert not ready.ready
        assert (await limiter.check("alice")).degraded
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert record.exc_info
