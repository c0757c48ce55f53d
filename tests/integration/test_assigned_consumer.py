"""A consumer on a real broker: it reads a topic whose metadata it knows without waiting for a timer."""

from __future__ import annotations

from time import monotonic

from confluent_kafka import Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer

from stoplog.kafka.connection import KafkaConnection
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
