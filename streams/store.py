"""What is stored of one partition: two RocksDB tables, and how far each has read its changelog.

Used by one thread at a time: the restorer's while the partition is restored or stands by, the owner's
while it is judged; it is handed over whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rocksdict import Rdict, WriteBatch

from streams.ledger import MARKER_KEY, Marker, decode_marker, position_of

COUNTERS: Final = "counters"
POLICIES: Final = "policies"
TABLES: Final = (COUNTERS, POLICIES)

_OFFSET_KEY: Final = b"\x00changelog"
"""Next changelog offset to read. Ids hold no control characters, so no client's key begins like this."""


class Record(NamedTuple):
    """A changelog record."""

    offset: int
    key: bytes | None
    value: bytes | None


class PartitionStore:
    """Both tables of *partition*, opened.

    Args:
        partition: Its number.
        open_table: Opens the RocksDB of a table at a path.
        paths: Where each table is.
    """

    def __init__(
        self, partition: int, open_table: Callable[[str, Path], Rdict], paths: dict[str, Path]
    ) -> None:
        self.partition = partition
        self._dbs: dict[str, Any] = {table: open_table(table, paths[table]) for table in TABLES}
        self.next = {table: self._stored_offset(table) for table in TABLES}

    def _stored_offset(self, table: str) -> int:
        raw = self._dbs[table].get(_OFFSET_KEY)
        return int.from_bytes(raw) if raw is not None else 0

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of *keys* in their order."""
        return self._dbs[COUNTERS].get(list(keys))  # type: ignore[no-any-return]

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """The client's own entry and those of its resources."""
        for key, value in self._dbs[COUNTERS].items(from_key=client):
            # A zero byte sorts before all that an id may hold: they stand together.
            if key != client and not key.startswith(client + b"\0"):
                return
            yield key, value

    def policy(self, key: bytes) -> bytes | None:
        """Value of *key* among the policies."""
        return self._dbs[POLICIES].get(key)  # type: ignore[no-any-return]

    def marker(self) -> Marker | None:
        """Where the last completed flush ended; ``None`` before the first."""
        raw = self.policy(MARKER_KEY)
        return decode_marker(raw) if raw is not None else None

    def items(self, table: str) -> Iterable[tuple[bytes, bytes]]:
        """All entries of *table*."""
        return ((k, v) for k, v in self._dbs[table].items() if k != _OFFSET_KEY)

    def write(self, table: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Put *entries* and how far the changelog is read, all or nothing."""
        batch = WriteBatch(raw_mode=True)
        for key, value in entries:
            batch.put(key, value)
        batch.put(_OFFSET_KEY, self.next[table].to_bytes(8))
        self._dbs[table].write(batch)

    def merge(self, table: str, records: Sequence[Record]) -> None:
        """Take over changelog *records*, in offset order: of each key what has the highest position.

        An entry never replaces one with a higher position: a worker that has lost the partition may have
        written late. Records that no worker of this format writes (no key or value) are passed over.
        """
        newest: dict[bytes, bytes] = {}
        for record in records:
            key, value = record.key, record.value
            if key and value and len(value) >= 9:
                known = newest.get(key)
                if known is None or position_of(value) >= position_of(known):
                    newest[key] = value
        stored = self._dbs[table].get(list(newest)) if newest else []
        self.next[table] = max(self.next[table], records[-1].offset + 1)
        self.write(
            table,
            (
                (key, value)
                for (key, value), old in zip(newest.items(), stored, strict=True)
                if old is None or position_of(value) >= position_of(old)
            ),
        )

    def close(self) -> None:
        """Release the files; the store is of no use after."""
        for db in self._dbs.values():
            db.close()
