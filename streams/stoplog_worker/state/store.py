"""The store of one partition: two RocksDB tables, and how far each has read its changelog.

One thread uses a store at a time: the restorer's while the partition is restored or a standby, and the
owner's while it is active. The store is handed over as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rocksdict import Rdict, WriteBatch

from stoplog import __version__
from stoplog.errors import NewerFormat
from stoplog_worker.algorithm.state_codec import (
    FORMAT,
    FORMAT_HOLDS,
    MARKER_KEY,
    Marker,
    decode_history,
    decode_marker,
    is_beyond,
    is_state,
    newer_format,
    position_of,
)

COUNTERS: Final = "counters"
POLICIES: Final = "policies"
TABLES: Final = (COUNTERS, POLICIES)

_OFFSET_KEY: Final = b"\x00changelog"
"""Next changelog offset to read. An id has no control characters, so no client's key begins like this."""

_OUTDATED_KEY: Final = b"\x00outrun"
_MILESTONES_KEY: Final = b"\x00milestones"
_OWN_KEYS: Final = (_OFFSET_KEY, _OUTDATED_KEY, _MILESTONES_KEY)

_CLEARED_AT_ONCE: Final = 10_000
"""Entries removed in one batch."""


class Record(NamedTuple):
    """A changelog record."""

    offset: int
    key: bytes | None
    value: bytes | None

    def entry(self, table: str) -> tuple[bytes, bytes] | None:
        """Return key and value if the record is an entry of *table*; ``None`` for any foreign record.

        A value that cannot be decoded must not be stored. It would stop every worker that loads it.
        """
        if not self.key or self.key in _OWN_KEYS or not self.value or len(self.value) < 9:
            return None
        if self.value.startswith((FORMAT, FORMAT_HOLDS) if table == COUNTERS else FORMAT):
            try:
                if table == COUNTERS:
                    valid = is_state(self.value)
                elif self.key == MARKER_KEY:
                    valid = bool(decode_marker(self.value))
                else:
                    valid = bool(decode_history(self.value))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return None  # RecursionError: fields that are not known here are nested too deeply
            if valid:
                return self.key, self.value
        return None


class NewerMarker:
    """The marker of a newer format in one changelog, if a newer release may have written the partition last.

    A later marker overrides it if this release can read it and its position is at least as high. A marker
    that is ahead of the log is none: no worker can have written it.
    """

    def __init__(self) -> None:
        self.offset: int | None = None
        """Its changelog offset, of several the first; ``None`` if there is none."""
        self._position = -1
        self._format = 0

    def note(self, record: Record, table: str, log_end: Callable[[], int | None]) -> bool:
        """Take note of the next record of a changelog; return whether it is the marker of a newer format.

        Args:
            record: The record.
            table: The changelog's table.
            log_end: Returns the next offset of the partition's log; ``None`` if no broker answers. It is
                called for few records.
        """
        value = record.value
        if table != POLICIES or record.key != MARKER_KEY or not value or len(value) < 9:
            return False
        newer = newer_format(value)
        if newer is not None:
            end = log_end()
            if end is not None and is_beyond(MARKER_KEY, value, end):
                return False
            if self.offset is None:
                self.offset = record.offset
            self._position, self._format = max(self._position, position_of(value)), newer
            return True
        if self.offset is not None and position_of(value) >= self._position and record.entry(table):
            end = log_end()
            if end is not None and not is_beyond(MARKER_KEY, value, end):
                self.offset, self._position = None, -1
        return False

    def refuse(self) -> None:
        """Refuse to go on if there is one.

        Raises:
            NewerFormat: There is; states the remedy.
        """
        if self.offset is not None:
            raise NewerFormat(
                f"the marker of a partition names the format {self._format} of values, which release "
                f"{__version__} cannot read. A newer release has written this partition: upgrade this worker "
                f"to that release. Keep its tables and the changelogs"
            )


class Milestone(NamedTuple):
    """A finding of a pass over the counters, about the changelog before an offset.

    Attributes:
        end: Changelog offset.
        highest: No needed record before ``end`` has a higher position.
    """

    end: int
    highest: int


class PartitionStore:
    """Both tables of a partition, opened.

    Args:
        partition: The partition.
        open_table: Opens the RocksDB database at a path.
        paths: The path of each table.
    """

    def __init__(self, partition: int, open_table: Callable[[Path], Rdict], paths: dict[str, Path]) -> None:
        self.partition = partition
        self._dbs: dict[str, Any] = {table: open_table(paths[table]) for table in TABLES}
        self.newer = NewerMarker()
        """The marker of a newer format that was read, and that no later one has overridden yet."""
        self.next_offset = {table: self._stored_offset(table) for table in TABLES}
        """Next changelog offset to read, by table."""
        self.outdated = {table: self._stored_outdated(table) for table in TABLES}
        """Keys whose last changelog record is older than the stored value, by table. A worker that lost the
        partition wrote it late. Compaction would keep that record, so the owner writes these keys again."""
        self.log_end: Callable[[], int | None] = lambda: None
        """Returns the next offset of the partition's log; ``None`` if no broker answers. It may block."""
        raw = self._dbs[COUNTERS].get(_MILESTONES_KEY)
        self.milestones = msgspec.msgpack.decode(raw, type=list[Milestone]) if raw is not None else []
        """The findings of passes over the counters (:mod:`stoplog_worker.state.expiry`), oldest first."""

    def _stored_offset(self, table: str) -> int:
        raw = self._dbs[table].get(_OFFSET_KEY)
        return int.from_bytes(raw) if raw is not None else 0

    def _stored_outdated(self, table: str) -> set[bytes]:
        raw = self._dbs[table].get(_OUTDATED_KEY)
        return msgspec.msgpack.decode(raw, type=set[bytes]) if raw is not None else set()

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of *keys* in the table of counters, in their order."""
        return self._dbs[COUNTERS].get(list(keys))  # type: ignore[no-any-return]

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Return the entries of *client*, with and without a resource."""
        for key, value in self._dbs[COUNTERS].items(from_key=client):
            # A zero byte sorts before every character of an id, so these entries are adjacent.
            if key != client and not key.startswith(client + b"\0"):
                return
            yield key, value

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of *keys* in the table of policies, in their order."""
        return self._dbs[POLICIES].get(list(keys))  # type: ignore[no-any-return]

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of *key* in *table*."""
        return None if key in _OWN_KEYS else self._dbs[table].get(key)

    def marker(self) -> Marker | None:
        """Return the marker of the last complete checkpoint; ``None`` before the first."""
        raw = self.get(POLICIES, MARKER_KEY)
        return decode_marker(raw) if raw is not None else None

    def items(self, table: str) -> Iterable[tuple[bytes, bytes]]:
        """Return all entries of *table*, in the order of their keys."""
        return ((k, v) for k, v in self._dbs[table].items() if k not in _OWN_KEYS)

    def states_from(self, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return the first *count* entries of counters from *key* on, in the order of their keys."""
        found = self._dbs[COUNTERS].items(from_key=key) if key else self._dbs[COUNTERS].items()
        return list(islice(((k, v) for k, v in found if k not in _OWN_KEYS), count))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove these keys from the counters. The changelog keeps them."""
        if keys:
            batch = WriteBatch(raw_mode=True)
            for key in keys:
                batch.delete(key)
            self._dbs[COUNTERS].write(batch)

    def save_milestones(self, milestones: list[Milestone]) -> None:
        """Replace the milestones, in memory and on disk."""
        self.milestones = milestones
        self._dbs[COUNTERS].put(_MILESTONES_KEY, msgspec.msgpack.encode(milestones))

    def reread_counters(self) -> None:
        """Have the worker that opens the tables next read the counters' changelog from its beginning.

        A newer release may have written counters that were skipped here as noise.
        """
        self._dbs[COUNTERS].put(_OFFSET_KEY, bytes(8))

    def clear_counters(self) -> None:
        """Remove all counters. Their changelog is read from its beginning again."""
        self.next_offset[COUNTERS] = 0
        # The offset first: after a crash, the worker that opens the table clears the rest.
        self._write(COUNTERS, (), set())
        self.save_milestones([])
        begin = b""
        while entries := self.states_from(begin, _CLEARED_AT_ONCE):
            self.remove([key for key, _ in entries])
            begin = entries[-1][0] + b"\0"  # not from the start: it would visit all removed entries

    def write(self, table: str, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Store *entries*, the latest in the changelog, and its next offset, atomically."""
        outdated = self.outdated[table]
        self._write(table, entries, outdated - {key for key, _ in entries} if outdated else outdated)

    def merge(self, table: str, records: Sequence[Record]) -> int:
        """Store changelog *records*, given in offset order: for each key the value with the highest position.

        A value never replaces one with a higher position: a worker that has lost the partition may have
        written late. The exception is a position that the log does not have yet: such an entry is forged, and
        the later one is the owner's repair. A foreign record changes nothing, except that its key becomes
        outdated in the changelog.

        ``next_offset`` does not pass the marker of a newer format until a later marker overrides it. So it is
        found again after a restart.

        Returns:
            How many of the records have a key, but no value that a worker writes.
        """
        log_end = cache(self.log_end)
        entries = [
            record.entry(table) or (record.key, None)
            for record in records
            if record.key and record.key not in _OWN_KEYS and not self.newer.note(record, table, log_end)
        ]
        keys = list(dict.fromkeys(key for key, _ in entries))
        highest: dict[bytes, bytes] = {
            key: value
            for key, value in zip(keys, self._dbs[table].get(keys) if keys else (), strict=True)
            if value is not None
        }
        new: dict[bytes, bytes] = {}
        outdated = set(self.outdated[table])
        for key, value in entries:
            known = highest.get(key)
            if value is None:
                # A foreign record, or a deletion, which no worker writes. Compaction would keep only that.
                if known is not None:
                    outdated.add(key)
            elif known is None or position_of(value) >= position_of(known):
                highest[key] = new[key] = value
                outdated.discard(key)
            else:
                end = log_end()
                if end is not None and is_beyond(key, known, end):
                    highest[key] = new[key] = value
                    outdated.discard(key)
                else:
                    outdated.add(key)
        reached = records[-1].offset + 1
        if table == POLICIES and self.newer.offset is not None:
            reached = min(reached, self.newer.offset)
            self.reread_counters()
        self.next_offset[table] = max(self.next_offset[table], reached)
        self._write(table, new.items(), outdated)
        return sum(value is None for _, value in entries)

    def reach(self, table: str, end: int) -> None:
        """Note that the changelog of *table* was read to *end*, where it ended.

        Raises:
            NewerFormat: It has the marker of a newer format, and no later one that overrides it.
        """
        if table == POLICIES and self.newer.offset is not None and self.newer.offset < end:
            self.newer.refuse()
        self.next_offset[table] = max(self.next_offset[table], end)

    def _write(self, table: str, entries: Iterable[tuple[bytes, bytes]], outdated: set[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in entries:
            batch.put(key, value)
        rereads = table == COUNTERS and self.newer.offset is not None
        batch.put(_OFFSET_KEY, bytes(8) if rereads else self.next_offset[table].to_bytes(8))
        if outdated != self.outdated[table]:
            batch.put(_OUTDATED_KEY, msgspec.msgpack.encode(outdated))
            self.outdated[table] = outdated
        self._dbs[table].write(batch)

    def close(self) -> None:
        """Close the databases. The store cannot be used afterwards."""
        for db in self._dbs.values():
            db.close()
