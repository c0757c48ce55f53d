"""A consumer thread on a real broker, without a group: the test assigns partitions and holds the lease."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from rocksdict import Options, Rdict
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.state_codec import MARKER_KEY, position_of
from stoplog_worker.consumer.consumer_thread import UNWRITTEN_S, ConsumerThread
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.settings import Settings
from stoplog_worker.state.expiry import PASS_S
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import describe
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, REPLIES, UPDATES
from stoplog.wire.checks import POSITION_BITS, Batch, Check, encode_batch
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import Decision, Reply, decode_reply
from tests.support.system import eventually

PARTITIONS = 4
CHANGELOGS = {COUNTERS: COUNTERS_CHANGELOG, POLICIES: POLICIES_CHANGELOG}
CLIENTS = {partition_of(name, PARTITIONS): name for name in (f"client-{number}" for number in range(40))}
"""A client of each partition."""
WAIT_S = 60
"""Seconds until an operation counts as failed. An idle machine needs a hundredth of it."""


class Lease:
    """A lease that holds as long as the test wants."""

    held = True
    over_s = 60.0

    def holds(self) -> bool:
        return self.held

    def over_for_s(self) -> float:
        return self.over_s


def open_store(partition: int, folder: Path) -> PartitionStore:
    """Open the tables of *partition* under *folder*."""
    folder.mkdir(exist_ok=True)
    paths = {table: folder / f"{partition}-{table}" for table in TABLES}
    return PartitionStore(partition, lambda path: Rdict(str(path), Options(raw_mode=True)), paths)


class Bench:
    """A consumer thread with one partition, and a gateway's view of it.

    Args:
        broker: The broker.
        folder: Folder for the tables.
        partition: Number of the partition.
        unwritten_s: Seconds after which the partition is dropped if it may not be written.
        expiry_pass_s: Seconds between two passes that remove expired states.
        **settings: Settings of the worker.
    """

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        partition: int,
        *,
        unwritten_s: float = UNWRITTEN_S,
        expiry_pass_s: float = PASS_S,
        **settings: Any,
    ) -> None:
        self.partition, self.client = partition, CLIENTS[partition]
        self.lease, self.dropped = Lease(), queue.SimpleQueue[list[PartitionStore]]()
        self.failures: list[BaseException] = []
        self.metrics = Metrics()
        self.bootstrap = broker.bootstrap
        self.thread = ConsumerThread(
            Settings(kafka=broker.bootstrap, home=folder, **settings),
            PartitionCount(PARTITIONS),
            CHANGELOGS,
            cast(Any, self.lease),
            self.metrics,
            on_dropped=self.dropped.put,
            on_fatal=self.failures.append,
            unwritten_s=unwritten_s,
            expiry_pass_s=expiry_pass_s,
        )
        self.thread.generation = 1
        self.thread.start()
        self.store = open_store(partition, folder)
        self._producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
        self._replies = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test"})
        eventually("the new topics have leaders", self._has_leaders)
        _, end = self._replies.get_watermark_offsets(TopicPartition(REPLIES, partition), timeout=WAIT_S)
        self._replies.assign([TopicPartition(REPLIES, partition, end or 0)])
        self._number = 0

    def _has_leaders(self) -> bool:
        try:
            for topic in (CHECKS, UPDATES, REPLIES, *CHANGELOGS.values()):
                self._replies.get_watermark_offsets(TopicPartition(topic, self.partition), timeout=WAIT_S)
        except KafkaException:
            return False
        return True

    def start(self, generation: int = 1) -> bool:
        """Hand the restored partition to the thread; return whether it accepted."""
        admin = silent_admin(KafkaConnection(self.bootstrap))
        described = describe(admin, [CHECKS, UPDATES, *CHANGELOGS.values()])
        ids = {name: str(topic.topic_id) for name, topic in described.items()}
        of_changelogs = {table: ids[topic] for table, topic in CHANGELOGS.items()}
        restored = Restored(generation, self.store, ids[CHECKS], ids[UPDATES], of_changelogs, 0)
        return self.thread.start_partition(restored).result(WAIT_S)

    def produce(
        self, topic: str, value: bytes | None, key: bytes | None = None, partition: int | None = None
    ) -> int:
        """Write a record; return its offset."""
        done: list[int] = []

        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            done.append(message.offset())

        where = self.partition if partition is None else partition
        self._producer.produce(topic, value, key, partition=where, on_delivery=delivered)
        assert self._producer.flush(WAIT_S) == 0
        return done[0]

    def publish(self, cost: int) -> int:
        """Publish a check without waiting; return the number of its batch."""
        self._number += 1
        batch = Batch(self.partition, 4711, self._number, [Check(self.client, cost)])
        self.produce(CHECKS, encode_batch(batch))
        return self._number

    def reply(self, number: int) -> Reply:
        """Return the reply to batch *number*; skip replies to earlier batches."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            message: Any = self._replies.poll(0.1)
            if message is not None and message.error() is None:
                reply = decode_reply(message.value())
                if reply.number == number:
                    return reply
        raise AssertionError(f"no reply to batch {number}; {self.failures}")

    def check(self, cost: int) -> Decision:
        """Publish a check and return its decision."""
        [answer] = self.reply(self.publish(cost)).answers
        assert isinstance(answer, Decision), answer
        return answer

    def end(self, table: str) -> int:
        """Return the next offset of a table's changelog."""
        place = TopicPartition(CHANGELOGS[table], self.partition)
        _, end = self._replies.get_watermark_offsets(place, timeout=WAIT_S)
        return end or 0

    def changelog(self, topic: str) -> list[tuple[bytes, bytes]]:
        """Return key and value of every record in the partition of *topic*."""
        # The owner may delete the beginning of the changelog meanwhile: then go on at the new beginning.
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": "test", "auto.offset.reset": "earliest"}
        )
        place = TopicPartition(topic, self.partition)
        low, end = consumer.get_watermark_offsets(place, timeout=WAIT_S)
        found: list[tuple[bytes, bytes]] = []
        consumer.assign([TopicPartition(topic, self.partition, low or 0)])
        reached = low or 0
        while reached < (end or 0):
            message: Any = consumer.poll(WAIT_S)
            found.append((message.key(), message.value()))
            reached = message.offset() + 1
        consumer.close()
        return found

    def checkpointed(self) -> bool:
        """Return whether the last marker covers every record of ``checks``."""
        markers = [value for key, value in self.changelog(POLICIES_CHANGELOG) if key == MARKER_KEY]
        checks = TopicPartition(CHECKS, self.partition)
        _, end = self._replies.get_watermark_offsets(checks, timeout=WAIT_S)
        return bool(markers) and position_of(markers[-1]) == (end or 0) << POSITION_BITS

    def close(self) -> None:
        self.thread.stop(5)
        self._replies.close()
        self.store.close()
        assert not self.failures


@contextmanager
def running_restorer(
    broker: Broker, store: PartitionStore, *, expiry_pass_s: float = PASS_S
) -> Iterator[Callable[[], PartitionStore]]:
    """Run a restorer that follows the changelogs with *store*.

    Yields:
        A function that makes the partition active, and returns the store once it has caught up.
    """
    restored = queue.SimpleQueue[Restored]()
    failures: list[BaseException] = []
    thread = Restorer(
        KafkaConnection(broker.bootstrap),
        CHANGELOGS,
        lambda _: store,
        Metrics(),
        on_restored=restored.put,
        on_ends=lambda _: None,
        on_fatal=failures.append,
        expiry_pass_s=expiry_pass_s,
    )
    thread.start()
    thread.follow(store)

    def hand_over() -> PartitionStore:
        thread.activate(1, store.partition)
        return restored.get(timeout=WAIT_S).store

    try:
        yield hand_over
    finally:
        thread.stop()
        assert not failures


SLOW = {"flush_interval_ms": 60_000}
"""Settings with which no regular checkpoint comes during a test."""
FAST = {"flush_interval_ms": 50}
"""Settings with which checkpoints follow each other closely."""
