"""The end of a worker's run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from stoplog_worker import worker as module
from stoplog_worker.growth_wait import EXIT_RESTART
from stoplog_worker.worker import Worker

from stoplog.wire.partition_count import CountRecord, GrowthStep, PartitionCount


class Heartbeats:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def run(self) -> None:
        await asyncio.Event().wait()

    def send(self) -> None:
        self.sent.append("heartbeat")

    def announce_stop(self) -> None:
        self.sent.append("stop")

    def close(self) -> None:
        self.sent.append("closed")


async def run(heartbeats: Heartbeats, *, terminated: bool) -> int:
    """Run a worker that drains for a step of growing; send it SIGTERM while it stops, if *terminated*."""

    async def stop(**_: Any) -> None:
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)

    async def forever() -> None:
        await asyncio.Event().wait()

    started = SimpleNamespace(start=lambda: None)
    worker: Any = Worker.__new__(Worker)
    loop = asyncio.get_running_loop()
    vars(worker).update(
        settings=None,
        metrics=SimpleNamespace(registry=None),
        app=SimpleNamespace(start=forever, stop=stop),
        coordinator=SimpleNamespace(stop=stop),
        _loop=loop,
        _ended=loop.create_future(),
        _ending=threading.Event(),
        _tasks=set(),
        _metrics_socket=None,
        _consumer=started,
        _restorer=started,
        _watch=started,
        _reader=SimpleNamespace(next_offset=0),
        _heartbeats=heartbeats,
        _follow_count=lambda _: None,
        _count=PartitionCount(2),
        _step=GrowthStep(1, 4, draining=True),
        _draining=None,
        _drained=False,
        _paused=False,
        _stop_requested=False,
    )
    loop.call_soon(worker._on_record, CountRecord(PartitionCount(4), GrowthStep(1, 4, draining=True)))
    try:
        status: int = await worker.run()
        return status
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "serve_metrics", lambda *_: None)


async def test_worker_that_pauses_becomes_a_new_process() -> None:
    heartbeats = Heartbeats()
    assert await run(heartbeats, terminated=False) == EXIT_RESTART
    assert heartbeats.sent == ["heartbeat", "closed"]


async def test_worker_that_pauses_heeds_sigterm() -> None:
    heartbeats = Heartbeats()
    assert await run(heartbeats, terminated=True) == 0
    assert heartbeats.sent == ["stop", "closed"]
