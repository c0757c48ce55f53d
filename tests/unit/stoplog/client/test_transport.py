"""The transport where no broker is: what becomes of its threads, and of its producer."""

from __future__ import annotations

import asyncio
import logging
import threading
from itertools import islice, pairwise
from typing import Any

import pytest

import stoplog.kafka.clients
from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.client.transport.kafka_transport import Transport
from stoplog.errors import Unavailable
from stoplog.topics import UPDATES
from stoplog.wire.limit_updates import UpdateKey, encode_update_key

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
        assert limiter.failure == ready.reason == "thread stoplog-replies ended: RuntimeError('a bug')"
        assert not ready.ready
        assert (await limiter.check("alice")).degraded
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert record.exc_info


class Record:
    """An update that deletes alice's limits."""

    def __init__(self, offset: int) -> None:
        self.offset = lambda: offset

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return UPDATES

    def partition(self) -> int:
        return 0

    def key(self) -> bytes:
        return encode_update_key(UpdateKey("client", "alice"))

    def value(self) -> None:
        return None

    def headers(self) -> None:
        return None


class Partition:
    """A consumer of a partition of 1,000 updates."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 1_000

    def assign(self, _: Any) -> None:
        """Read from its beginning."""

    def consume(self, most: int, _: float) -> list[Record]:
        first, self.at = self.at, min(1_000, self.at + most)
        return [Record(offset) for offset in range(first, self.at)]

    def poll(self, _: float) -> Record | None:
        return next(iter(self.consume(1, 0)), None)

    def close(self) -> None:
        """Done."""


async def test_a_read_of_updates_rests_between_a_few_and_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, the event loop waits 5 ms for each turn: decoding does not let go of the interpreter."""
    monkeypatch.setattr(stoplog.kafka.clients, "Producer", Stub)
    monkeypatch.setattr(stoplog.kafka.clients, "Consumer", Partition)
    transport = Transport(
        NOWHERE,
        incarnation=1,
        reply_partition=0,
        follow=0,
        publish_timeout_ms=100,
        loop=asyncio.get_running_loop(),
        listener=Limiter(Settings()),
    )
    read: list[int] = []
    rested: list[int] = []
    monkeypatch.setattr("stoplog.client.transport.kafka_transport.sleep", lambda _: rested.append(len(read)))
    for update in islice(transport.read_updates(0, None), 1_000):
        read.append(update.version)
    assert read == list(range(1_000))
    assert max(after - before for before, after in pairwise([0, *rested, 1_000])) <= 101
    transport._consumer.close()


class Stub:
    """A producer whose ``produce`` is in no hurry."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.did: list[str] = []
        self.reports: list[Any] = []
        self.error: BaseException | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()

    def produce(self, *_: Any, on_delivery: Any, **__: Any) -> None:
        if self.error is not None:
            raise self.error
        self.reports.append(on_delivery)
        self.entered.set()
        self.may_go_on.wait(10)
        self.did.append("produce")

    def purge(self) -> None:
        self.did.append("purge")

    def flush(self, _: float) -> None:
        self.did.append("flush")

    def poll(self, _: float) -> None:
        """Nothing to report."""

    def list_topics(self, *_: Any) -> None:
        """Connected."""


def with_stub(monkeypatch: pytest.MonkeyPatch) -> Transport:
    """A transport whose producer is a :class:`Stub`; of the running loop."""
    monkeypatch.setattr(stoplog.kafka.clients, "Producer", Stub)
    return Transport(
        NOWHERE,
        incarnation=1,
        reply_partition=0,
        follow=0,
        publish_timeout_ms=100,
        loop=asyncio.get_running_loop(),
        listener=Limiter(Settings()),
    )


async def test_a_report_waits_until_nobody_looks_for_the_oldest_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dict that shrinks while another thread looks at it would end that thread."""
    transport = with_stub(monkeypatch)
    popped_under_lock: list[bool] = []

    class Watched(dict[int, float]):
        def pop(self, *args: Any) -> Any:
            popped_under_lock.append(transport._producing.locked())
            return super().pop(*args)

    transport._unreported = Watched()
    producer: Any = transport._producer
    producer.may_go_on.set()
    transport.send_checks(0, b"batch", 1, 1)
    producer.reports[0](None, None)
    producer.error = BufferError()
    with pytest.raises(Unavailable):
        transport.send_checks(0, b"batch", 2, 1)
    assert popped_under_lock == [True, True]
    assert not transport._unreported
    transport._consumer.close()


async def test_a_batch_that_meets_the_replacement_of_the_producer_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport = with_stub(monkeypatch)
    old: Any = transport._producer
    sending = threading.Thread(target=transport.send_checks, args=(0, b"batch", 1, 1))
    sending.start()
    assert old.entered.wait(10)
    renewing = threading.Thread(target=transport._renew_producer)
    renewing.start()
    # Without an order between the two, the old producer would be purged by now, and then given a batch.
    renewing.join(0.3)
    old.may_go_on.set()
    sending.join()
    renewing.join()
    assert old.did == ["produce", "purge", "flush"]
    assert transport._producer is not old
    transport._consumer.close()


async def test_a_record_that_is_not_delivered_in_time_replaces_the_producer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left to give it up alone, librdkafka would send others again under an epoch no broker can compare."""
    monkeypatch.setattr(stoplog.kafka.clients, "Producer", Stub)
    now = 100.0
    monkeypatch.setattr("stoplog.client.transport.kafka_transport.monotonic", lambda: now)
    transport = Transport(
        NOWHERE,
        incarnation=1,
        reply_partition=0,
        follow=0,
        publish_timeout_ms=100,
        loop=asyncio.get_running_loop(),
        listener=Limiter(Settings()),
    )
    old: Any = transport._producer
    old.may_go_on.set()
    transport.send_checks(0, b"batch", 1, 1)
    transport._serve_producer()
    assert old.did == ["produce"]
    now += 0.2
    transport._serve_producer()
    assert old.did == ["produce", "purge", "flush"]
    new: Any = transport._producer
    assert new is not old
    transport._serve_producer()
    assert transport._producer is new
    transport._consumer.close()
