"""Write the changes of one partition back, the changelog first.

A checkpoint takes these steps, and each begins only after the one before is acknowledged:

1. Produce every dirty state and policy once, to the changelog of its table.
2. Produce the marker to the changelog of the policies. It passes no update that the audit lacks.
3. Write all of it to RocksDB.
4. Commit the marker's offset, for lag monitors (:mod:`stoplog_worker.consumer.consumer_thread`).

After a crash between any two steps, the next owner replays the log from the last marker. The positions in the
states show which checks are already applied.

The worker goes on judging during a checkpoint. A checkpoint handles a few entries at a time, so no check
waits long. It may therefore write a state that is ahead of the marker. The state's position shows this, and a
replay skips the checks that the state already holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Final, Protocol

from stoplog.errors import StateError
from stoplog.log_throttle import LogThrottle
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.changelog_repair import ChangelogRepair
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

_log = logging.getLogger("stoplog.checkpoint")

Delivered = Callable[[Any, Any], None]

CHUNK: Final = 50
"""Entries encoded and produced, or stored, in one step: a quarter of a millisecond."""


_SAME_TEXT_S: Final = 600.0
"""Seconds between two log lines with the same cause. Without a broker, every checkpoint fails."""


class CheckpointPhase(Enum):
    """How far a checkpoint has come.

    =================  ========================================================  =================
    from               event                                                     to
    =================  ========================================================  =================
    IDLE               a checkpoint begins                                       PRODUCING_ENTRIES
    IDLE               a checkpoint of the marker alone begins                   AWAITING_ENTRIES
    PRODUCING_ENTRIES  the last entry is produced                                AWAITING_ENTRIES
    AWAITING_ENTRIES   all entries are acknowledged; the marker is produced      AWAITING_MARKER
    AWAITING_ENTRIES   an entry was not acknowledged; all are dirty again        IDLE
    AWAITING_MARKER    the marker is acknowledged; the first entries are stored  STORING
    AWAITING_MARKER    the marker was not acknowledged; all entries are dirty    IDLE
    STORING            the last entries and the marker are stored                IDLE
    =================  ========================================================  =================
    """

    IDLE = auto()
    PRODUCING_ENTRIES = auto()
    AWAITING_ENTRIES = auto()
    AWAITING_MARKER = auto()
    STORING = auto()


TRANSITIONS: Final = frozenset(
    {
        (CheckpointPhase.IDLE, CheckpointPhase.PRODUCING_ENTRIES),
        (CheckpointPhase.IDLE, CheckpointPhase.AWAITING_ENTRIES),
        (CheckpointPhase.PRODUCING_ENTRIES, CheckpointPhase.AWAITING_ENTRIES),
        (CheckpointPhase.AWAITING_ENTRIES, CheckpointPhase.AWAITING_MARKER),
        (CheckpointPhase.AWAITING_ENTRIES, CheckpointPhase.IDLE),
        (CheckpointPhase.AWAITING_MARKER, CheckpointPhase.STORING),
        (CheckpointPhase.AWAITING_MARKER, CheckpointPhase.IDLE),
        (CheckpointPhase.STORING, CheckpointPhase.IDLE),
    }
)
"""The table above."""


class Send(Protocol):
    """Produces a record to a table's changelog."""

    def __call__(self, table: str, key: bytes, value: bytes, delivered: Delivered) -> None:
        """Call *delivered* later, with an error or with a message that knows its offset."""


class Checkpointer:
    """The checkpoints of one partition.

    Args:
        ledger: Hands out its changes.
        store: Receives them.
        send: Produces to a changelog.
        repair: Learns of records that this worker did not write.
        metrics: Counts checkpoints.
        replay_from: Returns the marker that a replay may have to begin with; ``None`` if there is none. The
            checkpoint's marker does not pass it.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: PartitionStore,
        send: Send,
        repair: ChangelogRepair,
        metrics: Metrics,
        replay_from: Callable[[], Marker | None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._send = send
        self._repair = repair
        self._next_offsets = repair.next_offsets
        self._metrics = metrics
        self._replay_from = replay_from
        self.phase = CheckpointPhase.IDLE
        self._unacknowledged = 0
        self._failed = False
        self._throttle = LogThrottle(_SAME_TEXT_S)
        self._unsent: Iterator[tuple[bytes, bytes]] = iter(())
        self._counters: list[tuple[bytes, bytes]] = []
        self._policies: list[tuple[bytes, bytes]] = []
        self._stored = 0
        self._marker = ledger.checkpointed
        self._began = 0.0
        self._callbacks: dict[str, Delivered] = {table: partial(self._delivered, table) for table in TABLES}

    @property
    def idle(self) -> bool:
        """Whether no checkpoint is under way."""
        return self.phase is CheckpointPhase.IDLE

    @property
    def ready(self) -> bool:
        """Whether the next step can be taken now: it waits for no acknowledgment."""
        if self.phase is CheckpointPhase.PRODUCING_ENTRIES:
            return True
        return self.phase is not CheckpointPhase.IDLE and not self._unacknowledged

    @property
    def failed(self) -> bool:
        """Whether a write of the last checkpoint was not acknowledged."""
        return self._failed

    def begin(self) -> None:
        """Begin a checkpoint of all that is dirty now. Call it only when idle."""
        self._start(CheckpointPhase.PRODUCING_ENTRIES)
        self._marker, (self._unsent, self._policies) = self._ledger.take_dirty()
        for key, value in self._policies:
            self._produce(POLICIES, key, value)
        self._produce_chunk()

    def begin_with_marker(self) -> None:
        """Begin a checkpoint of the marker alone. Call it only when idle.

        It is the first checkpoint of a partition. If counters are found later without a marker, the marker's
        topic was deleted.
        """
        self._start(CheckpointPhase.AWAITING_ENTRIES)
        self._marker = self._ledger.checkpointed

    def _start(self, phase: CheckpointPhase) -> None:
        self._enter(phase)
        self._began = monotonic()
        self._failed = False
        self._stored = 0

    def _enter(self, phase: CheckpointPhase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            raise ValueError(f"a checkpoint cannot go from {self.phase.name} to {phase.name}")
        self.phase = phase

    def advance(self, until: float = 0.0) -> Marker | None:
        """Take steps that wait for no acknowledgment; return the marker if the checkpoint is complete.

        The first step is always taken, further ones until *until*, in monotonic seconds.
        """
        marker = self._step()
        while self.ready and monotonic() < until:
            marker = self._step()
        return marker

    def _step(self) -> Marker | None:
        if self.phase is CheckpointPhase.PRODUCING_ENTRIES:
            self._produce_chunk()
        elif self.phase is CheckpointPhase.IDLE or self._unacknowledged:
            pass
        elif self._failed:
            self._give_up()
        elif self.phase is CheckpointPhase.AWAITING_ENTRIES:
            self._enter(CheckpointPhase.AWAITING_MARKER)
            replay_from = self._replay_from()
            if replay_from is not None and replay_from.next_offset < self._marker.next_offset:
                self._marker = replay_from
            self._produce(POLICIES, MARKER_KEY, encode_marker(self._marker))
        else:
            if self.phase is CheckpointPhase.AWAITING_MARKER:
                self._enter(CheckpointPhase.STORING)
            if self._store_chunk():
                self._enter(CheckpointPhase.IDLE)
                return self._marker
        return None

    def _give_up(self) -> None:
        """End a checkpoint of which a write was not acknowledged: everything in it is dirty again."""
        self._enter(CheckpointPhase.IDLE)
        self._metrics.flush_failures.inc()
        self._ledger.rewrite(*([key for key, _ in part] for part in (self._counters, self._policies)))
        self._counters, self._policies = [], []

    def _produce_chunk(self) -> None:
        chunk = list(islice(self._unsent, CHUNK))
        self._counters += chunk
        for key, value in chunk:
            self._produce(COUNTERS, key, value)
        if len(chunk) < CHUNK:
            self._enter(CheckpointPhase.AWAITING_ENTRIES)

    def _produce(self, table: str, key: bytes, value: bytes) -> None:
        self._unacknowledged += 1
        self._send(table, key, value, self._callbacks[table])

    def _store_chunk(self) -> bool:
        """Write a chunk to the store; return whether it was the last one, which includes the marker."""
        store, counters = self._store, self._counters
        chunk = counters[self._stored : self._stored + CHUNK]
        self._stored += len(chunk)
        if self._stored < len(counters):
            # The stored changelog offset stays: after a crash the changelog is read again from there.
            store.write(COUNTERS, chunk)
            return False
        store.next_offset.update(self._next_offsets)
        for table, start, _ in self._repair.gaps:
            # The next worker that opens these tables must read the gaps that remain.
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
        self._unacknowledged -= 1
        if error is not None:
            why = error.str()
            if not self._failed and (suppressed := self._throttle.admit(why)) is not None:
                _log.warning(
                    "partition %s: a changelog write was not acknowledged (%s). The checkpoint will be "
                    "repeated%s",
                    self._store.partition,
                    why,
                    suppressed,
                )
            self._failed = True
            return
        offset, expected = message.offset(), self._next_offsets[table]
        if offset == expected:
            self._next_offsets[table] = offset + 1
            return
        if offset < expected:
            raise StateError(
                f"the changelog of {table}, partition {self._store.partition}, has lost records: a new "
                f"record got offset {offset}, although offset {expected} was next. The topic was deleted or "
                f"truncated, so a lost disk would now lose counters. If that was intended: {REBUILD_FROM_LOG}"
            )
        self._repair.note_end(table, offset)
        self._next_offsets[table] = offset + 1
