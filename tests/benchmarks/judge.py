"""The cost of a check at a worker, without Kafka: batches through the real :class:`Partition` and RocksDB.

``python -m tests.benchmarks.judge 8000 1000000`` prints a line for each number of clients. The figures
contain everything between the bytes of a record and those of its reply: decoding, judging, encoding, metrics,
checkpoints, RocksDB and its background threads. They do not contain librdkafka.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import FORMAT, Marker, State, encode_state
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import COUNTERS, TABLES, PartitionStore
from stoplog_worker.worker import GC_THRESHOLDS

from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch
from stoplog.wire.partition_count import PartitionCount
from tests.support.relay import alone, unkeyed

PARTITIONS = 4
BATCH = 100
LIMITS = "1000/minute"
START = 1_764_000_000_000
RECORDS_PER_CHECKPOINT = 40
"""Records of one partition between two checkpoints. A worker waits longer."""


class JudgeResult(NamedTuple):
    """Figures of one run. Microseconds are CPU time per check."""

    clients: int
    checks: int
    judging_us: float
    checkpoint_us: float
    background_us: float
    peak_mb: float
    disk_bytes_per_client: float


class InstantProducers:
    """Fake producers: changelog records are acknowledged at the next poll, all others are dropped."""

    def __init__(self) -> None:
        self.changelogs = dict.fromkeys(TABLES, "")
        self._next = {(table, p): 0 for table in TABLES for p in range(PARTITIONS)}
        self._waiting: list[Any] = []

    def reply(self, partition: int, value: bytes) -> None:
        """Drop the reply."""

    def write_changelog(self, partition: int, table: str, key: bytes, value: bytes, delivered: Any) -> None:
        place = table, partition
        self._waiting.append((delivered, self._next[place]))
        self._next[place] += 1

    def publish_update(self, *_: Any) -> None:
        """Never called: no limit changes."""

    def relay_update(self, partition: int, value: bytes, headers: Any, delivered: Any) -> None:
        """Do nothing: there are no updates."""

    def truncate_changelog(self, table: str, partition: int, offset: int) -> None:
        """Do nothing: there is no changelog to truncate."""

    def poll(self) -> None:
        waiting, self._waiting = self._waiting, []
        for delivered, offset in waiting:
            delivered(None, FakeMessage(offset, b""))


class FakeMessage:
    """A consumed record, with the methods of librdkafka's."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 2, START + self._offset * 6


def measure(clients: int, checks: int, folder: Path, *, seed: int = 1, cached: int = 200_000) -> JudgeResult:
    """Judge *checks* of *clients*, drawn uniformly. All clients have a stored state."""
    gc.set_threshold(*GC_THRESHOLDS)
    settings = Settings(cached_clients=cached)
    producers: Any = InstantProducers()
    metrics = Metrics()
    rocks = RocksDbFactory(settings.store_memory_mb << 20, len(TABLES) * PARTITIONS)
    stores = [
        PartitionStore(p, rocks.open, {t: folder / f"{t}-{p}" for t in TABLES}) for p in range(PARTITIONS)
    ]
    populate(stores, clients)
    offset = clients // BATCH + 1
    marker = Marker(offset, START, -1, -1, "", parse_policy(LIMITS))
    owned = [
        Partition(
            settings,
            PartitionCount(PARTITIONS),
            store,
            marker,
            producers,
            metrics,
            keys=unkeyed(),
            workers=alone(),
        )
        for store in stores
    ]
    draw = random.Random(seed)
    process = psutil.Process()
    judging_s = checkpoint_s = encoding_s = 0.0
    peak = 0
    done = 0
    began = time.process_time()
    while done < checks:
        t = time.thread_time()
        records = list(batches(draw, clients, RECORDS_PER_CHECKPOINT * PARTITIONS))
        encoding_s += time.thread_time() - t
        t = time.thread_time()
        for partition, value in records:
            owned[partition].take(FakeMessage(offset, value))
            offset += 1
        judging_s += time.thread_time() - t
        t = time.thread_time()
        for one in owned:
            while not one.checkpoint_to(one.ledger.next_offset, 0.0, 0.0):
                producers.poll()
            one.ledger.evict(cached // PARTITIONS)
        checkpoint_s += time.thread_time() - t
        done += len(records) * BATCH
        peak = max(peak, process.memory_info().rss)
    total_s = time.process_time() - began - encoding_s
    for store in stores:
        store.close()
    disk = sum(file.stat().st_size for file in folder.rglob("*.sst"))
    judging_us, checkpoint_us, background_us = (
        seconds / done * 1e6 for seconds in (judging_s, checkpoint_s, total_s - judging_s - checkpoint_s)
    )
    return JudgeResult(clients, done, judging_us, checkpoint_us, background_us, peak / 1e6, disk / clients)


def batches(draw: random.Random, clients: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield partition and bytes of *count* batches."""
    waiting: list[list[Check]] = [[] for _ in range(PARTITIONS)]
    while count:
        client = name(draw.randrange(clients))
        partition = partition_of(client, PARTITIONS)
        waiting[partition].append(Check(client))
        if len(waiting[partition]) == BATCH:
            count -= 1
            yield partition, encode_batch(Batch(0, 2**63, count, waiting[partition]))
            waiting[partition] = []


def name(number: int) -> str:
    return f"user-{number:x}"


def populate(stores: list[PartitionStore], clients: int) -> None:
    """Store one charge of each client, within the last minute."""
    tails = [charged(START - age) for age in range(0, 50_000, 1_000)]
    chunk = 50_000
    for start in range(0, clients, chunk):
        entries: list[list[tuple[bytes, bytes]]] = [[] for _ in stores]
        for number in range(start, min(start + chunk, clients)):
            # A bijection that scatters the clients.
            client = name(number * 7_368_787 % clients if clients % 7_368_787 else number)
            position = number // BATCH << 16 | number % BATCH
            value = FORMAT + position.to_bytes(8) + tails[number % len(tails)]
            entries[partition_of(client, PARTITIONS)].append((client.encode(), value))
        for store, found in zip(stores, entries, strict=True):
            store.write(COUNTERS, found)


def charged(at_ms: int) -> bytes:
    """Return an encoded state with one charge, without its first bytes (format and position)."""
    window = Window(60_000)
    window.charge(at_ms, 1)
    return encode_state(State(0, {60_000: window}))[9:]


def main() -> None:
    os.environ.pop("STOPLOG_CACHED_CLIENTS", None)
    for text in sys.argv[1:]:
        clients = int(text)
        with TemporaryDirectory() as folder:
            print(measure(clients, 400_000, Path(folder)))


if __name__ == "__main__":
    main()
