"""Write-back of one partition, changelog first.

In this order, each step only after the one before is acknowledged:

1. every dirty state and policy, once, to its changelog;
2. the marker, to the policies' changelog;
3. both to RocksDB;
4. the marker's offset is committed, for lag monitors (by the caller).

A crash between any two of them replays what lies after the last marker, and the positions in the states
tell what is already applied. Judging goes on meanwhile: what a flush writes was encoded when it began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol

from streams.contract.errors import StateError
from streams.contract.records import POSITION_BITS
from streams.ledger import MARKER_KEY, Entries, Ledger, Marker, encode_marker, position_of
from streams.metrics import Metrics
from streams.store import COUNTERS, POLICIES, TABLES, PartitionStore, Record

_log = logging.getLogger("sluice.flush")

Delivered = Callable[[Any, Any], None]

_IDLE: Final = "idle"
_ENTRIES: Final = "entries"
_MARKER: Final = "marker"


class Overtaken(StateError):
    """Another worker has written states of positions this one has not reached: it owns the partition."""


class Send(Protocol):
    """Produce to a table's changelog."""

    def __call__(self, table: str, key: bytes, value: bytes, delivered: Delivered) -> None:
        """*delivered* is called with an error or a message that knows its offset."""


class Flusher:
    """The write-back of one owned partition.

    Args:
        ledger: Whose changes are written.
        store: Where to.
        send: Produces to a changelog.
        metrics: Counts flushes.
    """

    def __init__(self, ledger: Ledger, store: PartitionStore, send: Send, metrics: Metrics) -> None:
        self._ledger = ledger
        self._store = store
        self._send = send
        self._metrics = metrics
        self._step = _IDLE
        self._waiting = 0
        self._failed = False
        self._entries = Entries([], [])
        self._marker = ledger.flushed
        self._began = 0.0
        self._expected = dict(store.next)
        self._callbacks: dict[str, Delivered] = {table: partial(self._delivered, table) for table in TABLES}
        self.foreign: list[tuple[str, int, int]] = []
        if any(store.outrun.values()):
            ledger.rewrite(store.outrun[COUNTERS], store.outrun[POLICIES])

    @property
    def idle(self) -> bool:
        """Whether no flush is under way."""
        return self._step == _IDLE

    def begin(self) -> None:
        """Start a flush of all that is dirty now; only when idle."""
        self._began = monotonic()
        self._failed = False
        self._marker, self._entries = self._ledger.take_dirty()
        self._step = _ENTRIES
        for table, entries in zip(TABLES, self._entries, strict=True):
            for key, value in entries:
                self._produce(table, key, value)

    def advance(self) -> Marker | None:
        """Take the next step if the one before is acknowledged; returns the marker of a flush that ended."""
        if self._waiting or self._step == _IDLE:
            return None
        if self._failed:
            self._step = _IDLE
            self._metrics.flush_failures.inc()
            self._ledger.rewrite(*([key for key, _ in entries] for entries in self._entries))
            self._entries = Entries([], [])
            return None
        if self._step == _ENTRIES:
            self._step = _MARKER
            self._produce(POLICIES, MARKER_KEY, encode_marker(self._marker))
            return None
        self._persist()
        self._step = _IDLE
        return self._marker

    def _persist(self) -> None:
        store, entries, marker = self._store, self._entries, self._marker
        store.next.update(self._expected)
        for table, start, _ in self.foreign:
            # Whoever opens these tables next must read what is not yet mended.
            store.next[table] = min(store.next[table], start)
        if entries.counters:
            store.write(COUNTERS, entries.counters)
        store.write(POLICIES, [*entries.policies, (MARKER_KEY, encode_marker(marker))])
        self._ledger.flushed = marker
        self._metrics.flush_entries.observe(len(entries.counters) + len(entries.policies))
        self._metrics.flush_seconds.observe(monotonic() - self._began)
        self._entries = Entries([], [])

    def _produce(self, table: str, key: bytes, value: bytes) -> None:
        self._waiting += 1
        self._send(table, key, value, self._callbacks[table])

    def _delivered(self, table: str, error: Any, message: Any) -> None:
        self._waiting -= 1
        if error is not None:
            if not self._failed:
                _log.warning(
                    "partition %s: a changelog write was not acknowledged (%s); it will be done again",
                    self._store.partition,
                    error,
                )
            self._failed = True
            return
        offset = message.offset()
        if offset < self._expected[table]:
            raise StateError(
                f"the changelog of {table}, partition {self._store.partition}, has lost records: it had "
                f"{self._expected[table]}, and a new one came to offset {offset}. The topic was deleted or "
                f"cut, and a lost disk would now lose counters. If that was meant, delete all of Sluice's "
                f"topics and all workers' tables, and run `sluice topics create`"
            )
        self.look_at_end(table, offset)
        self._expected[table] = offset + 1

    def look_at_end(self, table: str, end: int) -> None:
        """Note a gap if the changelog's next offset, *end*, is beyond what was written from here."""
        expected = self._expected[table]
        if end > expected:
            self.foreign.append((table, expected, end))
            self._expected[table] = end

    def mend(self, table: str, records: Sequence[Record]) -> None:
        """Have every key that somebody else wrote to the changelog written again, and the marker after.

        Args:
            table: Whose changelog it is.
            records: What was found in the gap.

        Raises:
            Overtaken: the writer is ahead of this worker, which then no longer owns the partition.
        """
        reached = self._ledger.next_offset << POSITION_BITS
        keys = []
        for record in records:
            entry = record.entry(table)
            if entry is None:
                # Compaction would keep this instead of what was known of the key.
                if record.key and self._store.get(table, record.key) is not None:
                    keys.append(record.key)
                continue
            key, value = entry
            is_marker = key == MARKER_KEY
            # A marker's position is the first not applied, any other the last that is.
            if position_of(value) >= reached + is_marker:
                raise Overtaken(f"partition {self._store.partition}: another worker has judged further")
            if not is_marker:
                keys.append(key)
        self._metrics.gaps_mended.inc(len(records))
        self._ledger.rewrite(*((keys, ()) if table == COUNTERS else ((), keys)))
