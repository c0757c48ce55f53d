"""Failures within one of several processes; tests/e2e/test_gateway_processes.py covers the rest."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import stoplog_gateway.server.process_slot
from stoplog_gateway.server.process_slot import ProcessSlot
from stoplog_gateway.server.shared_metrics import SharedMetrics

from stoplog.client.limiter import Limiter


async def test_metrics_that_cannot_be_written_are_logged_once_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, written, tries = SharedMetrics.write, asyncio.Event(), 0

    def write_at_the_third_try(self: SharedMetrics) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError("No space left on device")
        write(self)
        written.set()

    monkeypatch.setattr(SharedMetrics, "write", write_at_the_third_try)
    monkeypatch.setattr(stoplog_gateway.server.process_slot, "WRITE_INTERVAL_S", 0.0)
    parent, other = os.pipe()
    try:
        async with ProcessSlot(1, 0, tmp_path, parent).occupied(Limiter("127.0.0.1:1")), asyncio.timeout(30):
            await written.wait()
    finally:
        os.close(parent)
        os.close(other)
    [record] = caplog.records
    assert "is STOPLOG_HOME full?" in record.getMessage()
