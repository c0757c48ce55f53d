"""Write-back of one partition, changelog first.

In this order, each step only after the one before is acknowledged:

1. every dirty state and policy, once, to its changelog;
2. the marker, to the policies' changelog;
3. both to RocksDB;
4. the marker's offset is committed, for lag monitors (by the caller).

A crash between any two of them replays what lies after the last marker, and the positions in the states
tell what is already applied. Judging goes on meanwhile, and a flush is done a few entries at a time, so that
it holds up no check for long: a state may be written as it is after the marker, which its position tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Final, Protocol

from stoplog.errors import StateError
from stoplog.wire.checks import POSITION_BITS
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker, position_of
from stoplog_worker.metrics import Metrics
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore, Record

_log = logging.getLogger("stoplog.flush")

Delivered = Callable[[Any, Any], None]

_IDLE: Final = "idle"
_ENTRIES: Final = "entries"
_MARKER: Final = "marker"
_STORE: Final = "store"

CHUNK: Final = 50
"""Counters encoded and produced, or stored, in one step: a quarter of a millisecond."""


class Overtaken(StateError):
    """Another worker has written states of positions this one has not reached: it owns the partition."""


class Send(Protocol):
    """Produce to a table's changelog."""

    def __call__(self, table: str, key: bytes, value: bytes, delivered: Delivered) -> None:
        """*delivered* is called with an error or a message that knows its offset."""


class Checkpointer:
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
        self._unsent: Iterator[tuple[bytes, bytes]] | None = None
        self._counters: list[tuple[bytes, bytes]] = []
        self._policies: list[tuple[bytes, bytes]] = []
        self._stored = 0
        self._marker = ledger.checkpointed
        self._began = 0.0
        self._expected = dict(store.next_offset)
        self._callbacks: dict[str, Delivered] = {table: partial(self._delivered, table) for table in TABLES}
        self.foreign: list[tuple[str, int, int]] = []
        if any(store.outdated.values()):
            ledger.rewrite(store.outdated[COUNTERS], store.outdated[POLICIES])

    @property
    def idle(self) -> bool:
        """Whether no flush is under way."""
        return self._step == _IDLE

    @property
    def ready(self) -> bool:
        """Whether the next step waits for nobody."""
        return self._unsent is not None or (self._step != _IDLE and not self._waiting)

    @property
    def failed(self) -> bool:
        """Whether a write of the last flush was not acknowledged."""
        return self._failed

    def begin(self) -> None:
        """Start a flush of all that is dirty now; only when idle."""
        self._began = monotonic()
        self._failed = False
        self._marker, (self._unsent, self._policies) = self._ledger.take_dirty()
        self._stored = 0
        self._step = _ENTRIES
        for key, value in self._policies:
            self._produce(POLICIES, key, value)
        self._produce_some(self._unsent)

    def begin_with_marker(self) -> None:
        """Start a flush of the marker alone, as it was given; only when idle.

        The first of a partition: from then on counters without a marker tell that its topic is gone.
        """
        self._began = monotonic()
        self._failed = False
        self._marker = self._ledger.checkpointed
        self._stored = 0
        self._step = _ENTRIES

    def advance(self, until: float = 0.0) -> Marker | None:
        """Take steps as long as they need not wait; returns the marker of a flush that ended with them.

        The first is taken in any case, further ones until *until*, monotonic seconds.
        """
        marker = self._step_on()
        while self.ready and monotonic() < until:
            marker = self._step_on()
        return marker

    def _step_on(self) -> Marker | None:
        if self._unsent is not None:
            self._produce_some(self._unsent)
        elif self._waiting or self._step == _IDLE:
            pass
        elif self._failed:
            self._step = _IDLE
            self._metrics.flush_failures.inc()
            self._ledger.rewrite(*([key for key, _ in part] for part in (self._counters, self._policies)))
            self._counters, self._policies = [], []
        elif self._step == _ENTRIES:
            self._step = _MARKER
            self._produce(POLICIES, MARKER_KEY, encode_marker(self._marker))
        else:
            self._step = _STORE
            if self._persist_some():
                self._step = _IDLE
                return self._marker
        return None

    def _produce_some(self, unsent: Iterator[tuple[bytes, bytes]]) -> None:
        chunk = list(islice(unsent, CHUNK))
        self._counters += chunk
        for key, value in chunk:
            self._produce(COUNTERS, key, value)
        if len(chunk) < CHUNK:
            self._unsent = None

    def _produce(self, table: str, key: bytes, value: bytes) -> None:
        self._waiting += 1
        self._send(table, key, value, self._callbacks[table])

    def _persist_some(self) -> bool:
        """Bring a chunk into the store; whether it was the last, which has the marker with it."""
        store, counters = self._store, self._counters
        chunk = counters[self._stored : self._stored + CHUNK]
        self._stored += len(chunk)
        if self._stored < len(counters):
            # How far the changelog is read stays as it was: after a crash it is read again from there.
            store.write(COUNTERS, chunk)
            return False
        store.next_offset.update(self._expected)
        for table, start, _ in self.foreign:
            # Whoever opens these tables next must read what is not yet mended.
            store.next_offset[table] = min(store.next_offset[table], start)
        if chunk:
            store.write(COUNTERS, chunk)
        store.write(POLICIES, [*self._policies, (MARKER_KEY, encode_marker(self._marker))])
        self._ledger.checkpointed = self._marker
        self._metrics.flush_entries.observe(len(counters) + len(self._policies))
        self._metrics.flush_seconds.observe(monotonic() - self._began)
        self._counters, self._policies = [], []
        return True

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
        offset, expected = message.offset(), self._expected[table]
        if offset == expected:
            self._expected[table] = offset + 1
            return
        if offset < expected:
            raise StateError(
                f"the changelog of {table}, partition {self._store.partition}, has lost records: it had "
                f"{expected}, and a new one came to offset {offset}. The topic was deleted or "
                f"cut, and a lost disk would now lose counters. If that was meant: {REBUILD_FROM_LOG}"
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
