from __future__ import annotations

import asyncio
import logging

import pytest

from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.client.transport.reply_consumer import ReplyConsumer

NOWHERE = "127.0.0.1:1"


async def test_failed_thread_is_reported_and_checks_fail_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_: ReplyConsumer) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ReplyConsumer, "take_position", break_down)
    async with Limiter(Settings(kafka=NOWHERE, publish_timeout_ms=100)) as limiter:
        await asyncio.wait_for(limiter.until_failure(), 10)
        ready = await limiter.ready()
        assert limiter.failure == ready.reason == "thread stoplog-replies failed: RuntimeError('a bug')"
        assert not ready.ready
        assert (await limiter.check("alice")).degraded
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert record.exc_info
