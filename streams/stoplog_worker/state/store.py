"""What is stored of one partition: two RocksDB tables, and how far each has read its changelog.

Used by one thread at a time: the restorer's while the partition is restored or stands by, the owner's
while it is judged; it is handed over whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rocksdict import Rdict, WriteBatch

from stoplog_worker.algorithm.state_codec import (
    FORMAT,
    MARKER_KEY,
    Marker,
    decode_history,
    decode_marker,
    is_state,
    position_of,
)

COUNTERS: Final = "counters"
POLICIES: Final = "policies"
TABLES: Final = (COUNTERS, POLICIES)

_OFFSET_KEY: Final = b"\x00changelog"
"""Next changelog offset to read. Ids hold no control characters, so no client's key begins like this."""

_OUTRUN_KEY: Final = b"\x00outrun"
_MILESTONES_KEY: Final = b"\x00milestones"
_OWN_KEYS: Final = (_OFFSET_KEY, _OUTRUN_KEY, _MILESTONES_KEY)

_CLEARED: Final = 10_000
"""Entries removed at a time."""


class Record(NamedTuple):
    """A changelog record."""

    offset: int
    key: bytes | None
    value: bytes | None

    def entry(self, table: str) -> tuple[bytes, bytes] | None:
        """Key and value if it is an entry of *table*; anything else that strays in is passed over.

        What cannot be decoded would stop every worker that loads it, one after the other.
        """
        if (
            self.key
            and self.key not in _OWN_KEYS
            and self.value
            and len(self.value) >= 9
            and self.value.startswith(FORMAT)
        ):
            try:
                if table == COUNTERS:
                    sound = is_state(self.value)
                elif self.key == MARKER_KEY:
                    sound = bool(decode_marker(self.value))
                else:
                    sound = bool(decode_history(self.value))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return None
            if sound:
                return self.key, self.value
        return None


class Milestone(NamedTuple):
    """Before offset *end* of the changelog of counters none that counts has a position above *highest*."""

    end: int
    highest: int


class PartitionStore:
    """Both tables of *partition*, opened.

    Args:
        partition: Its number.
        open_table: Opens the RocksDB at a path.
        paths: Where each table is.
    """

    def __init__(self, partition: int, open_table: Callable[[Path], Rdict], paths: dict[str, Path]) -> None:
        self.partition = partition
        self._dbs: dict[str, Any] = {table: open_table(paths[table]) for table in TABLES}
        self.next = {table: self._stored_offset(table) for table in TABLES}
        self.outrun = {table: self._stored_outrun(table) for table in TABLES}
        """Keys whose last changelog record is older than what is stored, by table: a worker that had lost
        the partition wrote late. Compaction would keep that record, so the owner writes them again."""
        raw = self._dbs[COUNTERS].get(_MILESTONES_KEY)
        self.milestones = msgspec.msgpack.decode(raw, type=list[Milestone]) if raw is not None else []
        """Of passes over the counters (:mod:`stoplog_worker.state.expiry`), oldest first."""

    def _stored_offset(self, table: str) -> int:
        raw = self._dbs[table].get(_OFFSET_KEY)
        return int.from_bytes(raw) if raw is not None else 0

    def _stored_outrun(self, table: str) -> set[bytes]:
        raw = self._dbs[table].get(_OUTRUN_KEY)
        return msgspec.msgpack.decode(raw, type=set[bytes]) if raw is not None else set()

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

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of *keys* in the table of policies, in their order."""
        return self._dbs[POLICIES].get(list(keys))  # type: ignore[no-any-return]

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of *key* in *table*."""
        return None if key in _OWN_KEYS else self._dbs[table].get(key)

    def marker(self) -> Marker | None:
        """Where the last completed flush ended; ``None`` before the first."""
        raw = self.get(POLICIES, MARKER_KEY)
        return decode_marker(raw) if raw is not None else None

    def items(self, table: str) -> Iterable[tuple[bytes, bytes]]:
        """All entries of *table*."""
        return ((k, v) for k, v in self._dbs[table].items() if k not in _OWN_KEYS)

    def states_from(self, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The first *count* counters not before *key*, in the order of their keys."""
        found = self._dbs[COUNTERS].items(from_key=key) if key else self._dbs[COUNTERS].items()
        return list(islice(((k, v) for k, v in found if k not in _OWN_KEYS), count))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Forget these counters; the changelog is as it was."""
        if keys:
            batch = WriteBatch(raw_mode=True)
            for key in keys:
                batch.delete(key)
            self._dbs[COUNTERS].write(batch)

    def keep_milestones(self, milestones: list[Milestone]) -> None:
        """Have these from now on, and when the store is opened again."""
        self.milestones = milestones
        self._dbs[COUNTERS].put(_MILESTONES_KEY, msgspec.msgpack.encode(milestones))

    def clear_counters(self) -> None:
        """Have no counters, and their changelog to read from its beginning."""
        self.next[COUNTERS] = 0
        # That first: who opens the table after a crash clears what is left.
        self._write(COUNTERS, (), set())
        self.keep_milestones([])
        begin = b""
        while entries := self.states_from(begin, _CLEARED):
            self.remove([key for key, _ in entries])
            begin = entries[-1][0] + b"\0"  # not from the start again, over all that was removed

    def write(self, table: str, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Put *entries*, which stand at the changelog's end, and how far it is read, all or nothing."""
        outrun = self.outrun[table]
        self._write(table, entries, outrun - {key for key, _ in entries} if outrun else outrun)

    def merge(self, table: str, records: Sequence[Record]) -> None:
        """Take over changelog *records*, in offset order: of each key what has the highest position.

        An entry never replaces one with a higher position: a worker that has lost the partition may have
        written late. What is no entry takes nothing from the one before it.
        """
        entries = [
            record.entry(table) or (record.key, None)
            for record in records
            if record.key and record.key not in _OWN_KEYS
        ]
        keys = list(dict.fromkeys(key for key, _ in entries))
        highest: dict[bytes, bytes] = {
            key: value
            for key, value in zip(keys, self._dbs[table].get(keys) if keys else (), strict=True)
            if value is not None
        }
        new: dict[bytes, bytes] = {}
        outrun = set(self.outrun[table])
        for key, value in entries:
            known = highest.get(key)
            if value is None:
                # Noise, or a deletion that none of us writes: compaction would keep only that.
                if known is not None:
                    outrun.add(key)
            elif known is None or position_of(value) >= position_of(known):
                highest[key] = new[key] = value
                outrun.discard(key)
            else:
                outrun.add(key)
        self.next[table] = max(self.next[table], records[-1].offset + 1)
        self._write(table, new.items(), outrun)

    def _write(self, table: str, entries: Iterable[tuple[bytes, bytes]], outrun: set[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in entries:
            batch.put(key, value)
        batch.put(_OFFSET_KEY, self.next[table].to_bytes(8))
        if outrun != self.outrun[table]:
            batch.put(_OUTRUN_KEY, msgspec.msgpack.encode(outrun))
            self.outrun[table] = outrun
        self._dbs[table].write(batch)

    def close(self) -> None:
        """Release the files; the store is of no use after."""
        for db in self._dbs.values():
            db.close()
