"""How fast a worker restores changelogs: to an empty disk, and at a standby that catches up.

``python -m tests.benchmarks.recovery 1000000`` starts a broker and writes the states of that many clients to
the counters' changelog. A worker's :class:`~stoplog_worker.restore.restorer.Restorer` restores all partitions
into an empty RocksDB. Every client is then written once more, and the restorer follows as a standby. The
program prints the changelog records per second of both.
"""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from confluent_kafka import Producer
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, State, encode_marker, encode_state
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

from stoplog.kafka.connection import KafkaConnection
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG
from stoplog.wire.checks import POSITION_BITS
from tests.support.broker import fresh_broker

PARTITIONS = 4
START = 1_764_000_000_000
PATIENCE_S = 120.0
MEMORY = 256 << 20


class Speed(NamedTuple):
    """Changelog records, with the seconds and this process's CPU seconds to restore them."""

    records: int
    seconds: float
    cpu_s: float

    def __str__(self) -> str:
        cpu_us = self.cpu_s / self.records * 1e6
        return f"{self.records / self.seconds:,.0f} records/s ({cpu_us:.1f} µs CPU each)"


class Changelog:
    """A writer of the states of all clients, and of a marker in every partition."""

    def __init__(self, bootstrap: str, clients: int) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 50, "compression.type": "lz4", "log_level": 0}
        )
        self._clients = clients
        self._position = 0

    def write(self) -> None:
        """Write each client once."""
        self._position += 1 << POSITION_BITS
        for number in range(self._clients):
            client = f"client-{number}"
            window = Window(60_000)
            window.charge(START + number, 3)
            window.charge(START + number + 1_000, 2)
            state = State(self._position, {60_000: window})
            self._send(
                COUNTERS_CHANGELOG, partition_of(client, PARTITIONS), client.encode(), encode_state(state)
            )
        marker = Marker(self._position >> POSITION_BITS, START, START, -1, "", parse_policy("100/minute"))
        for partition in range(PARTITIONS):
            self._send(POLICIES_CHANGELOG, partition, MARKER_KEY, encode_marker(marker))
        self._producer.flush(PATIENCE_S)

    def _send(self, topic: str, partition: int, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, partition=partition)
                return
            except BufferError:
                self._producer.poll(0.05)


def measure(clients: int, folder: Path) -> tuple[Speed, Speed]:
    """Restore *clients* states into *folder*, then follow while as many are written again."""
    rocks = RocksDbFactory(MEMORY, len(TABLES))
    restored: queue.SimpleQueue[Restored] = queue.SimpleQueue()
    failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    with fresh_broker(kind=Broker) as broker:
        changelog = Changelog(broker.bootstrap, clients)
        restorer = Restorer(
            KafkaConnection(broker.bootstrap),
            {COUNTERS: COUNTERS_CHANGELOG, POLICIES: POLICIES_CHANGELOG},
            lambda p: PartitionStore(p, rocks.open, {table: folder / f"{table}-{p}" for table in TABLES}),
            Metrics(),
            restored.put,
            lambda _: None,
            failed.put,
        )

        def caught_up(generation: int) -> tuple[Speed, list[PartitionStore]]:
            began, cpu = time.monotonic(), time.process_time()
            for partition in range(PARTITIONS):
                restorer.activate(generation, partition)
            stores = [restored.get(timeout=PATIENCE_S).store for _ in range(PARTITIONS)]
            took, spent = time.monotonic() - began, time.process_time() - cpu
            return Speed(clients + PARTITIONS, took, spent), stores

        restorer.start()
        try:
            changelog.write()
            for partition in range(PARTITIONS):
                restorer.open(partition)
            first, stores = caught_up(1)
            changelog.write()
            for store in stores:
                restorer.follow(store)
            second, stores = caught_up(2)
            for store in stores:
                store.close()
        finally:
            restorer.stop()
        assert failed.empty(), failed.get()
    return first, second


def main() -> None:
    """Print a line for each number of clients given."""
    for clients in map(int, sys.argv[1:] or ["1000000"]):
        with TemporaryDirectory(prefix="stoplog-bench-") as folder:
            restored, followed = measure(clients, Path(folder))
        print(f"{clients:,} clients: restored {restored}, a standby caught up {followed}")


if __name__ == "__main__":
    main()
