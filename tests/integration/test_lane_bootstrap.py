"""The copy of the default lane's state into a new lane's changelogs, on a real broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import (
    FORMAT,
    MARKER_KEY,
    Marker,
    PolicyChange,
    State,
    decode_marker,
    decode_state,
    encode_marker,
    encode_state,
    position_of,
)
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.lane_bootstrap import LaneCopier, changelogs
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, Record

from stoplog.clock import now
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, load_topics
from stoplog.wire.checks import POSITION_BITS
from tests.support import raw
from tests.support.memory_store import MemoryStore, contents
from tests.support.raw import ZSTD, bomb

PARTITION = 1
LOG_END = 100_000
SOURCE = changelogs("")
Produce = Callable[..., None]


@pytest.fixture(scope="module")
def kafka_of_lanes(fresh_kafka: Broker) -> Broker:
    admin = silent_admin(KafkaConnection(fresh_kafka.bootstrap))
    create_topics(admin, with_lanes(load_topics(), ["b", "c", "d", "e", "f"]).values())
    fill_log(fresh_kafka)
    return fresh_kafka


def fill_log(broker: Broker) -> None:
    """Make the log longer than every position that the tests write. The copy leaves out what lies beyond."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "queue.buffering.max.messages": LOG_END})
    for _ in range(LOG_END):
        producer.produce(CHECKS, b"x", partition=PARTITION)
    assert producer.flush(60) == 0


@contextmanager
def copier_of(broker: Broker, name: str, lease: Lease | None = None, **options: Any) -> Iterator[LaneCopier]:
    if lease is None:
        lease = Lease(600_000, 2_000)
        lease.extend(now())
    copier = LaneCopier(
        KafkaConnection(broker.bootstrap), 2_000, SOURCE, changelogs(name), Metrics(), lease, **options
    )
    try:
        yield copier
    finally:
        copier.close()


def finish(copier: LaneCopier, partition: int = PARTITION, **how: Any) -> None:
    for _ in range(2_000):
        if copier.advance(partition, **how):
            return
    raise AssertionError("the copy does not finish")


def read(broker: Broker, topic: str, partition: int = PARTITION) -> list[Record]:
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": "test", "enable.partition.eof": True}
    )
    found: list[Record] = []
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while True:
            message: Any = consumer.poll(30)
            assert message is not None, f"{topic} cannot be read"
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF
                return found
            found.append(Record(message.offset(), message.key(), message.value()))
    finally:
        consumer.close()


def merged(broker: Broker, topics: dict[str, str]) -> dict[str, dict[bytes, bytes]]:
    store = MemoryStore(PARTITION)
    for table, topic in topics.items():
        if records := read(broker, topic):
            store.merge(table, records)
    return contents(store)


def state(offset: int) -> bytes:
    return encode_state(State(offset << POSITION_BITS, {60_000: Window(60_000, [offset], [1], 0)}))


def policy(offset: int) -> bytes:
    position = offset << POSITION_BITS
    history = [PolicyChange(position, offset, parse_policy("5/minute"))]
    return FORMAT + position.to_bytes(8) + msgspec.msgpack.encode(history)


def marker(offset: int) -> bytes:
    return encode_marker(Marker(offset, 7, 7, 3, "topic", parse_policy("100/minute")))


class Source:
    """A writer to the default lane's changelogs. As a worker, it writes the marker after all states."""

    def __init__(self, broker: Broker) -> None:
        self._producer = Producer({"bootstrap.servers": broker.bootstrap, "acks": "all"})
        self._random = Random(5)
        self.offset = 0

    def write(self, table: str, key: bytes | None, content: bytes | None) -> None:
        self._producer.produce(SOURCE[table], content, key, partition=PARTITION)

    def checkpoint(self, states: int) -> None:
        """Write *states* states and a policy, and then the marker."""
        for _ in range(states):
            self.offset += 1
            self.write(COUNTERS, b"client-%d" % self._random.randrange(400), state(self.offset))
        self.write(POLICIES, b"client\0client-%d\0" % self._random.randrange(50), policy(self.offset))
        assert self._producer.flush(30) == 0
        self.write(POLICIES, MARKER_KEY, marker(self.offset + 1))
        assert self._producer.flush(30) == 0


def test_lane_copy_has_all_state_and_writes_marker_last(kafka_of_lanes: Broker) -> None:
    source = Source(kafka_of_lanes)
    for states in (1, 500, 700, 3):
        source.checkpoint(states)
    # A late record of a worker that has lost the partition, and records that no worker would write.
    source.write(COUNTERS, b"client-1", state(0))
    source.write(COUNTERS, b"stray", b"\x07")
    source.write(COUNTERS, None, state(1))
    source.checkpoint(1)

    with copier_of(kafka_of_lanes, "b", chunk=100) as copier:
        assert not copier.advance(PARTITION)
        assert not copier.advance(PARTITION + 1)  # it copies one partition at a time
        finish(copier)
        finish(copier, PARTITION + 1)  # this partition has no state

    assert merged(kafka_of_lanes, changelogs("b")) == merged(kafka_of_lanes, SOURCE)
    policies = read(kafka_of_lanes, changelogs("b")[POLICIES])
    assert [record.key for record in policies].index(MARKER_KEY) == len(policies) - 1
    assert not read(kafka_of_lanes, changelogs("b")[POLICIES], PARTITION + 1)


def test_interrupted_lane_copy_restarts_with_same_result(kafka_of_lanes: Broker) -> None:
    source = Source(kafka_of_lanes)
    source.offset = 10_000
    source.checkpoint(600)
    with copier_of(kafka_of_lanes, "c", chunk=50) as copier:
        while not read(kafka_of_lanes, changelogs("c")[COUNTERS]):
            assert not copier.advance(PARTITION)
        copier.drop(PARTITION)
        assert MARKER_KEY not in {record.key for record in read(kafka_of_lanes, changelogs("c")[POLICIES])}
        source.checkpoint(300)
        finish(copier)
    assert merged(kafka_of_lanes, changelogs("c")) == merged(kafka_of_lanes, SOURCE)


def test_interrupted_lane_copy_keeps_no_expired_state(
    kafka_of_lanes: Broker,
) -> None:
    """An example is a client that has been reset since, and was idle until its records were deleted."""
    source = Source(kafka_of_lanes)
    source.offset = 15_000
    source.checkpoint(50)
    own = changelogs("f")
    producer = Producer({"bootstrap.servers": kafka_of_lanes.bootstrap})
    for key in (b"forgotten", b"client-1"):
        producer.produce(own[COUNTERS], state(14_000), key, partition=PARTITION)
    assert producer.flush(30) == 0
    source.write(COUNTERS, b"client-1", state(14_000))
    source.checkpoint(1)
    store = MemoryStore(PARTITION)
    store.merge(COUNTERS, read(kafka_of_lanes, own[COUNTERS]))
    with copier_of(kafka_of_lanes, "f") as copier:
        finish(copier, stored=partial(store.items, COUNTERS))
    found, expected = merged(kafka_of_lanes, own), merged(kafka_of_lanes, SOURCE)
    left = found[COUNTERS].pop(b"forgotten")
    assert (position_of(left), decode_state(left).windows) == (14_000 << POSITION_BITS, {})
    assert found == expected
    assert decode_state(found[COUNTERS][b"client-1"]).windows


def test_lane_copy_during_writes_never_has_marker_without_states(kafka_of_lanes: Broker) -> None:
    source = Source(kafka_of_lanes)
    source.offset = 20_000
    source.checkpoint(600)
    with copier_of(kafka_of_lanes, "d", chunk=50) as copier:
        while not copier.advance(PARTITION):
            source.checkpoint(20)

    copied, at_the_end = merged(kafka_of_lanes, changelogs("d")), merged(kafka_of_lanes, SOURCE)
    found = decode_marker(copied[POLICIES][MARKER_KEY])
    assert 20_600 < found.next_offset <= source.offset + 1
    reached = found.next_offset << POSITION_BITS
    for table in TABLES:
        for key, content in at_the_end[table].items():
            if position_of(content) < reached:
                assert copied[table][key] == content
    assert all(position_of(content) <= reached for key, content in copied[POLICIES].items()), (
        "the copy has no policy of after its marker"
    )


def test_lane_copy_with_slow_read_repeats_the_read(kafka_of_lanes: Broker) -> None:
    """Otherwise compaction could have deleted records in favor of newer ones after the copied range."""
    source = Source(kafka_of_lanes)
    source.offset = 30_000
    source.checkpoint(1)
    now = 0.0

    def clock() -> float:
        nonlocal now
        if now < 200:  # the default lane makes more checkpoints meanwhile
            now += 61
            source.checkpoint(1)
        return now

    with copier_of(kafka_of_lanes, "b", clock=clock) as copier:
        finish(copier)
    assert source.offset == 30_005
    assert merged(kafka_of_lanes, changelogs("b")) == merged(kafka_of_lanes, SOURCE)


def test_lane_copy_skips_batches_that_cannot_be_decompressed(kafka_of_lanes: Broker) -> None:
    source = Source(kafka_of_lanes)
    source.offset = 40_000
    source.checkpoint(3)
    for records, topic in ((1, SOURCE[POLICIES]), (37, SOURCE[COUNTERS]), (5, SOURCE[COUNTERS])):
        poison = bomb(ZSTD, 20, records)
        assert raw.produce(kafka_of_lanes.bootstrap, topic, PARTITION, poison) == 0
    source.checkpoint(3)
    with copier_of(kafka_of_lanes, "e") as copier:
        finish(copier)
    copied = merged(kafka_of_lanes, changelogs("e"))
    assert decode_marker(copied[POLICIES][MARKER_KEY]).next_offset == 40_007
    # Three states before the poison, and three after it.
    states = {position_of(value) >> POSITION_BITS for value in copied[COUNTERS].values()}
    assert states >= set(range(40_001, 40_007))
