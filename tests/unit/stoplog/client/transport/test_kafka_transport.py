from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.client.transport.broker_monitor import BrokerMonitor
from stoplog.client.transport.broker_view import BrokerView
from stoplog.client.transport.kafka_transport import KafkaTransport
from stoplog.client.transport.reply_consumer import ReplyConsumer
from stoplog.errors import Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.topics import CHECKS
from stoplog.wire.audit import ChangeSource
from stoplog.wire.partition_count import CountRecord, PartitionCount

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


async def test_nothing_is_published_while_another_number_of_partitions_may_be_in_force() -> None:
    loop = asyncio.get_running_loop()
    down: list[str] = []
    listener: Any = SimpleNamespace(
        on_broker_down=down.append, on_broker_view=lambda _: None, on_denials_lost=lambda _: None
    )
    transport = KafkaTransport(
        KafkaConnection(NOWHERE),
        incarnation=1,
        reply_partition=0,
        publish_timeout_ms=100,
        count=PartitionCount(4),
        follow_updates=False,
        loop=loop,
        listener=listener,
    )

    def refusals() -> set[str | None]:
        return {
            refusal(lambda: transport.send_checks(0, b"", 1, 1)),
            refusal(lambda: transport.send_lookup(0, b"")),
            refusal(lambda: transport.send_denials(0, b"", 1)),
            refusal(lambda: transport.send_update(0, b"", b"", "", print, ChangeSource("ops"))),
        }

    assert refusals() == {f"Kafka at {NOWHERE} has not answered yet"}
    transport._on_broker_view(BrokerView(error="it cannot be read"))
    assert refusals() == {"it cannot be read"}
    await asyncio.sleep(0)
    assert down == ["it cannot be read"]
    transport._on_broker_view(BrokerView(8, PartitionCount(8)))
    assert refusals() == {"changing over to the 8 partitions over which clients are hashed"}
    for right in (BrokerView(8), BrokerView(8, PartitionCount(4)), BrokerView(error="the broker is away")):
        transport._on_broker_view(right)
        assert refusals() == {None}
    await asyncio.sleep(0)
    assert down == ["it cannot be read"], "the circuit breakers decide from then on"
    transport._on_broker_view(BrokerView(8, PartitionCount(8)))
    assert refusals() != {None}
    transport._producer.close()
    transport._consumer.close()


async def test_stop_waits_for_no_broker_that_has_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, end, looked = threading.Event(), threading.Event(), threading.Event()
    views: list[object] = []

    def look(_: BrokerMonitor) -> BrokerView:
        asked.set()
        end.wait(60)  # a request to a broker that does not answer
        looked.set()
        return BrokerView(error="away")

    monkeypatch.setattr(BrokerMonitor, "_look", look)
    listener: Any = SimpleNamespace(on_broker_view=views.append, on_broker_down=lambda _: None)
    transport = KafkaTransport(
        KafkaConnection(NOWHERE),
        incarnation=1,
        reply_partition=0,
        publish_timeout_ms=60_000,
        count=PartitionCount(4),
        follow_updates=True,
        loop=asyncio.get_running_loop(),
        listener=listener,
    )
    transport.start()
    await asyncio.to_thread(asked.wait, 30)
    transport.send_heartbeat(b"", b"")  # will never be delivered
    await asyncio.wait_for(asyncio.to_thread(transport.stop), 30)
    end.set()
    await asyncio.to_thread(looked.wait, 30)
    for thread in transport._watching:
        await asyncio.to_thread(thread.join, 30)
    await asyncio.sleep(0)
    assert views == []


def refusal(send: Callable[[], None]) -> str | None:
    try:
        send()
    except Unavailable as exc:
        return str(exc)
    return None


def test_failed_read_of_the_number_of_partitions_is_an_error_until_one_has_succeeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = SimpleNamespace(error=None, partitions={0: SimpleNamespace(isrs=[1], replicas=[1])})
    results: list[CountRecord | Exception | None] = [
        Unavailable("denied"),
        None,
        Unavailable("away"),
        CountRecord(PartitionCount(1)),
    ]

    def read(_: PartitionCountReader) -> CountRecord | None:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(PartitionCountReader, "read_record", read)
    monitor = BrokerMonitor(KafkaConnection(NOWHERE), threading.Event(), print)
    admin: Any = SimpleNamespace(list_topics=lambda *_: SimpleNamespace(topics={CHECKS: topic}))
    monitor._admin = admin
    assert [monitor._look() for _ in range(4)] == [
        BrokerView(error=f"Kafka at {NOWHERE} cannot be used: denied"),
        BrokerView(1),
        BrokerView(1),
        BrokerView(1, PartitionCount(1)),
    ]
