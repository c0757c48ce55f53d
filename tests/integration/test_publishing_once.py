"""A batch is in the log only once, even if the producer does not learn in time that it was delivered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from stoplog.client.deferred_settlements import DeferredSettlements
from stoplog.client.engine import Engine
from stoplog.client.growth_pause import GrowthPause
from stoplog.client.metrics import Metrics
from stoplog.client.settings import Settings
from stoplog.client.transport.broker_view import BrokerView
from stoplog.client.transport.kafka_transport import KafkaTransport
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS
from stoplog.wire.partition_count import PartitionCount
from tests.support.broker import fresh_cluster, make_topics
from tests.support.network_proxy import ProxiedBroker

PARTITIONS = 4
TIMEOUT_MS = 2_000
ROUNDS = 3
LATER_S = 1.8
"""Seconds after the first batch of a round at which the others are sent. They are not late when it is."""
SILENCE_S = 3.1
"""Seconds without acknowledgments. librdkafka looks for timeouts once a second."""


class Listener(Engine):
    """An engine that records which batches were reported as not delivered."""

    def __init__(self) -> None:
        metrics = Metrics()
        super().__init__(
            Settings(),
            metrics,
            node_id="test",
            count=PartitionCount(PARTITIONS),
            partitions_in_file=PARTITIONS,
            on_other_count=lambda _: None,
            reply_partition=0,
            instrumentation=None,
            growth=GrowthPause(metrics),
            deferred=DeferredSettlements(metrics, lambda: 0),
        )
        self.lost: list[int] = []
        self.has_position = asyncio.Event()
        self.has_view = asyncio.Event()

    def on_position(self) -> None:
        self.has_position.set()

    def on_broker_view(self, view: BrokerView) -> None:
        super().on_broker_view(view)
        if view.error is None:
            self.has_view.set()

    def on_undelivered(self, failures: list[tuple[int, int]]) -> None:
        self.lost += [number for number, _ in failures]


def values(bootstrap: str) -> Iterator[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    for partition in range(PARTITIONS):
        place = TopicPartition(CHECKS, partition, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([place])
        reached = 0
        while reached < (end or 0):
            message: Any = consumer.poll(30)
            yield message.value()
            reached = message.offset() + 1
    consumer.close()


@pytest.fixture
def broker() -> Iterator[ProxiedBroker]:
    with fresh_cluster(1, kind=ProxiedBroker) as [broker]:
        make_topics(broker.bootstrap)
        yield broker
        broker.proxy.close()


@pytest.mark.timeout(120)
async def test_batch_with_lost_acknowledgment_is_in_log_once(broker: ProxiedBroker) -> None:
    """The broker stores all batches, but its acknowledgments do not arrive.

    When the oldest batch times out (``message.timeout.ms``), librdkafka by itself sends the batches after it
    again under a new epoch. They would then be in the log twice.
    """
    loop, listener = asyncio.get_running_loop(), Listener()
    transport = KafkaTransport(
        KafkaConnection(f"127.0.0.1:{broker.proxy.port}"),
        incarnation=1,
        reply_partition=0,
        count=PartitionCount(PARTITIONS),
        follow_updates=False,
        publish_timeout_ms=TIMEOUT_MS,
        loop=loop,
        listener=listener,
    )
    transport.start()
    await asyncio.wait_for(listener.has_position.wait(), 30)
    await asyncio.wait_for(listener.has_view.wait(), 30)
    numbers = count(1)

    def publish(*partitions: int) -> None:
        for partition in partitions:
            number = next(numbers)
            transport.send_checks(partition, b"%d" % number, number, 1)

    for _ in range(ROUNDS):
        publish(*range(PARTITIONS))
        assert await asyncio.to_thread(transport._producer._producer.flush, 30) == 0
        broker.proxy.cut_answers()
        # The test is about times, so it sleeps: one batch is too late, and the others are not yet.
        publish(0)
        await asyncio.sleep(LATER_S)
        publish(1, 2, 3)
        await asyncio.sleep(SILENCE_S - LATER_S)
        broker.proxy.heal()
        await asyncio.to_thread(transport._producer._producer.flush, 30)
    await asyncio.to_thread(transport.stop)
    await asyncio.sleep(0)  # the last reports are delivered
    sent = next(numbers) - 1

    found = Counter(int(value) for value in values(broker.bootstrap))
    assert found == Counter(range(1, sent + 1)), "every batch is stored once"
    assert len(listener.lost) >= ROUNDS, "every round must have a batch that was late"
