"""Fakes at the I/O edge of a partition: its tables in dicts, its changelogs in lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaError
from stoplog_worker.partition.changelog_repair import GapContents
from stoplog_worker.state.store import COUNTERS, TABLES, PartitionStore, Record


class MemoryDb(dict[bytes, bytes]):
    """The methods of a RocksDB that a store calls."""

    def get(self, key: Any, default: Any = None) -> Any:
        return [super(MemoryDb, self).get(k) for k in key] if isinstance(key, list) else super().get(key)

    def items(self, from_key: bytes = b"") -> Any:
        return iter([(key, self[key]) for key in sorted(self) if key >= from_key])

    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value

    def close(self) -> None:
        self.clear()


class MemoryStore(PartitionStore):
    """A store without files."""

    def __init__(self, partition: int = 0) -> None:
        def opened(_path: Path) -> Any:
            return MemoryDb()

        super().__init__(partition, opened, dict.fromkeys(TABLES, Path()))

    def remove(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            del self._dbs[COUNTERS][key]

    def _write(self, table: str, entries: Iterable[tuple[bytes, bytes]], outdated: set[bytes]) -> None:
        self._dbs[table].update(entries)
        self.outdated[table] = outdated


class Sent(NamedTuple):
    """A produced record that has not reached the broker."""

    table: str
    key: bytes
    value: bytes
    delivered: Callable[[Any, Any], None]


class Delivered:
    """The message in the delivery report of a record that arrived."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset


class Changelogs:
    """Both changelogs of a partition, and the records in flight to them."""

    def __init__(self) -> None:
        self.logs: dict[str, list[tuple[bytes, bytes]]] = {table: [] for table in TABLES}
        self.sent: list[Sent] = []
        self.start = 0
        """First offset of the counters' changelog: the records before it are deleted."""
        self.log_end = 1_000
        """Next offset of the partition's log."""

    def send(self, table: str, key: bytes, value: bytes, delivered: Callable[[Any, Any], None]) -> None:
        self.sent.append(Sent(table, key, value, delivered))

    def append(self, table: str, key: bytes, value: bytes) -> int:
        self.logs[table].append((key, value))
        return len(self.logs[table]) - 1

    def arrive(self, index: int = 0) -> None:
        """Deliver the record and acknowledge it."""
        sent = self.sent.pop(index)
        sent.delivered(None, Delivered(self.append(sent.table, sent.key, sent.value)))

    def arrive_all(self) -> None:
        while self.sent:
            self.arrive()

    def fail(self, index: int = 0, *, arrives: bool = False) -> None:
        """Have the producer give up the record, which may have arrived nevertheless."""
        sent = self.sent.pop(index)
        if arrives:
            self.append(sent.table, sent.key, sent.value)
        sent.delivered(KafkaError(KafkaError._MSG_TIMED_OUT), None)

    def shorten(self, start: int) -> None:
        self.start = max(self.start, start)

    def read(self, table: str, start: int = 0, end: int | None = None) -> list[Record]:
        if table == COUNTERS:
            start = max(start, self.start)
        found = enumerate(self.logs[table][start:end], start)
        return [Record(offset, key, value) for offset, (key, value) in found]

    def read_later(self, table: str, _partition: int, start: int, end: int) -> Future[GapContents]:
        """Read as the repair of a changelog does, without delay."""
        future: Future[GapContents] = Future()
        future.set_result(GapContents(self.read(table, start, end), self.log_end))
        return future

    def restore(self, store: PartitionStore, batch: int = 1_000) -> None:
        """Bring *store* up to the end, as the restorer does."""
        if store.next_offset[COUNTERS] < self.start:
            store.clear_counters()
        store.log_end = lambda: self.log_end
        for table in TABLES:
            for records in _batches(self.read(table, store.next_offset[table]), batch):
                store.merge(table, records)
            store.reach(table, len(self.logs[table]))

    def compacted(self) -> Changelogs:
        """Return what compaction leaves: the last record of each key."""
        other = Changelogs()
        other.log_end = self.log_end
        for table in TABLES:
            left = {record.key: record.value for record in self.read(table)}
            other.logs[table] = [(key, value) for key, value in left.items() if key and value]
        return other


def _batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[at : at + size] for at in range(0, len(records), size))


def contents(store: PartitionStore) -> dict[str, dict[bytes, bytes]]:
    return {table: dict(store.items(table)) for table in TABLES}
