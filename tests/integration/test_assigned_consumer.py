"""A consumer on a real broker: it reads a topic whose metadata it knows without waiting for a timer."""

from __future__ import annotations

import threading
from contextlib import closing
from time import monotonic

import pytest
from confluent_kafka import Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer

from stoplog.errors import Unavailable
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import add_partitions
from stoplog.topics import COUNTERS_CHANGELOG, NODES

WAIT_S = 30
JUST_OVER_A_TICK_S = 1.1


def first_record_s(broker: Broker, *, knows_topic: bool) -> float:
    """Return the seconds from the assignment of a connected consumer to its first record."""
    consumer = AssignedConsumer(KafkaConnection(broker.bootstrap))
    try:
        if knows_topic:
            consumer.fetch_metadata([COUNTERS_CHANGELOG])
        consumer.add([TopicPartition(NODES, 0, 0)])
        assert consumer.consume(WAIT_S).ends
        # A new client looks up topics at once. Later it waits for a timer, which has just expired.
        assert not consumer.consume(JUST_OVER_A_TICK_S).records
        began = monotonic()
        consumer.add([TopicPartition(COUNTERS_CHANGELOG, 0, 0)])
        assert consumer.consume(WAIT_S).records
        return monotonic() - began
    finally:
        consumer.close()


def test_consumer_of_known_topic_starts_at_once(fresh_kafka: Broker) -> None:
    producer = Producer({"bootstrap.servers": fresh_kafka.bootstrap})
    producer.produce(COUNTERS_CHANGELOG, b"value", b"key", partition=0)
    assert producer.flush(WAIT_S) == 0
    known, new = (first_record_s(fresh_kafka, knows_topic=it) for it in (True, False))
    assert known < new / 2, (known, new)


def test_offsets_of_a_partition_that_is_not_known_yet_are_waited_for(fresh_kafka: Broker) -> None:
    connection = KafkaConnection(fresh_kafka.bootstrap)
    with (
        closing(AssignedConsumer(connection, silence_s=0.5)) as impatient,
        pytest.raises(Unavailable, match=r"nodes\[1\]: .* check that Kafka is running"),
    ):
        impatient.offset_range(NODES, 1)
    with closing(AssignedConsumer(connection, silence_s=WAIT_S)) as consumer:
        found: list[tuple[int, int]] = []
        asking = threading.Thread(target=lambda: found.append(consumer.offset_range(NODES, 1)))
        asking.start()
        asking.join(1)
        assert asking.is_alive(), "it goes on asking"
        add_partitions(silent_admin(connection), [NODES], 2)
        asking.join(2 * WAIT_S)
        assert found == [(0, 0)]
