"""A reader on a real broker: what it was acquainted with it reads without waiting for a timer."""

from __future__ import annotations

from time import monotonic

from confluent_kafka import Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer

from stoplog.topics import COUNTERS_CHANGELOG, NODES

WAIT_S = 30
JUST_OVER_A_TICK_S = 1.1


def first_record_s(broker: Broker, *, acquainted: bool) -> float:
    """Seconds from when a connected reader is told what to read to the first record."""
    reader = AssignedConsumer(broker.bootstrap)
    try:
        if acquainted:
            reader.fetch_metadata([COUNTERS_CHANGELOG])
        reader.add([TopicPartition(NODES, 0, 0)])
        assert reader.consume(WAIT_S).ends
        # A client that has just connected looks topics up at once; later, by a timer that has just gone off.
        assert not reader.consume(JUST_OVER_A_TICK_S).records
        began = monotonic()
        reader.add([TopicPartition(COUNTERS_CHANGELOG, 0, 0)])
        assert reader.consume(WAIT_S).records
        return monotonic() - began
    finally:
        reader.close()


def test_reader_of_known_topic_starts_at_once(fresh_kafka: Broker) -> None:
    producer = Producer({"bootstrap.servers": fresh_kafka.bootstrap})
    producer.produce(COUNTERS_CHANGELOG, b"value", b"key", partition=0)
    assert producer.flush(WAIT_S) == 0
    known, new = (first_record_s(fresh_kafka, acquainted=it) for it in (True, False))
    assert known < new / 2, (known, new)
