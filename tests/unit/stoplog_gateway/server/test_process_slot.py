"""What goes wrong in one of several processes; all else is in tests/e2e/test_gateway_processes.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import stoplog_gateway.server.process_slot
from stoplog_gateway.server.process_slot import Peer
from stoplog_gateway.server.shared_metrics import SharedMetrics

from stoplog.client.limiter import Limiter


async def test_metrics_that_cannot_be_shared_are_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flush, shared, tries = SharedMetrics.flush, asyncio.Event(), 0

    def flush_the_third_time(self: SharedMetrics) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError("No space left on device")
        flush(self)
        shared.set()

    monkeypatch.setattr(SharedMetrics, "flush", flush_the_third_time)
    monkeypatch.setattr(stoplog_gateway.server.process_slot, "FLUSH_S", 0.0)
    parent, other = os.pipe()
    try:
        async with Peer(1, 0, tmp_path, parent).joined(Limiter("127.0.0.1:1")), asyncio.timeout(30):
            await shared.wait()
    finally:
        os.close(parent)
        os.close(other)
    [record] = caplog.records
    assert "is TMPDIR full?" in record.getMessage()
