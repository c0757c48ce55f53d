"""A reader on a real broker: what it was acquainted with it reads without waiting for a timer."""

from __future__ import annotations

from time import monotonic

from confluent_kafka import Producer, TopicPartition

from gateway.broker import Broker
from streams.contract.topics import COUNTERS_CHANGELOG, NODES
from streams.reader import Reader

WAIT_S = 30


def first_record_s(broker: Broker, *, acquainted: bool) -> float:
    """Seconds from when a connected reader is told what to read to the first record."""
    reader = Reader(broker.bootstrap)
    try:
        reader.range_of(NODES, 0)
        if acquainted:
            reader.acquaint([COUNTERS_CHANGELOG])
        began = monotonic()
        reader.add([TopicPartition(COUNTERS_CHANGELOG, 0, 0)])
        assert reader.take(WAIT_S).records
        return monotonic() - began
    finally:
        reader.close()


def test_a_topic_it_knows_is_read_at_once(fresh_kafka: Broker) -> None:
    producer = Producer({"bootstrap.servers": fresh_kafka.bootstrap})
    producer.produce(COUNTERS_CHANGELOG, b"value", b"key", partition=0)
    assert producer.flush(WAIT_S) == 0
    known, new = (min(first_record_s(fresh_kafka, acquainted=it) for _ in range(2)) for it in (True, False))
    # A new one waits for librdkafka's next look, of which there is one a second.
    assert known < new / 2, (known, new)
