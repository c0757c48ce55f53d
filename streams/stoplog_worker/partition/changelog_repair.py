"""Overwrite what another worker wrote to the changelogs of this worker's partition.

A worker that lost the partition may still write late. Its records would replace newer states when the broker
compacts the changelog. The offsets of this worker's own writes reveal such records: they leave a gap. This
worker reads the gap and writes the current state of every key found there again.

The entries are written with a position that is at least as high as that of every record in the gap
(:meth:`stoplog_worker.algorithm.ledger.Ledger.rewrite`). So a restore takes them, whether or not the broker
has compacted the changelog, even if a foreign record claims a higher position than this worker's state.

A foreign record may claim a position that the log does not have yet. No worker can have written it, and a
restore does not prefer it (:meth:`stoplog_worker.state.store.PartitionStore.merge`). Once the log reaches
that position, a restore would prefer it. This worker then overwrites the key again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from math import inf
from threading import Thread
from typing import NamedTuple

from stoplog.errors import StateError, Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS
from stoplog.wire.checks import POSITION_BITS
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, is_beyond, position_of
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.metrics import Metrics
from stoplog_worker.state.store import COUNTERS, POLICIES, NewerMarker, PartitionStore, Record

_log = logging.getLogger("stoplog.repair")


class Overtaken(StateError):
    """Another worker has written positions that this worker has not reached: it owns the partition."""


class Gap(NamedTuple):
    """Changelog records that this worker did not write: offsets *start* to *end*, without *end*."""

    table: str
    start: int
    end: int


class GapContents(NamedTuple):
    """The records of a gap, and the end of the log after they were read."""

    records: list[Record]
    log_end: int


class ChangelogRepair:
    """Finds the gaps of one partition and overwrites what they hold.

    Args:
        ledger: Marks the overwritten keys dirty; the next checkpoint writes them.
        store: The partition's tables.
        topics: The changelog topic of each table.
        metrics: Counts the records found.
        read: Reads offsets *start* to *end* of a topic's partition without blocking the caller.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: PartitionStore,
        topics: Mapping[str, str],
        metrics: Metrics,
        read: Callable[[str, int, int, int], Future[GapContents]],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._topics = topics
        self._metrics = metrics
        self._read = read
        self._reading: tuple[Gap, Future[GapContents]] | None = None
        self._ahead: dict[tuple[str, bytes], int] = {}
        """Positions ahead of the log that were found, by table and key."""
        self._repeat_at = inf
        """The lowest of them."""
        self.gaps: list[Gap] = []
        """Gaps not yet overwritten, oldest first."""
        self.next_offsets = dict(store.next_offset)
        """The offset that the next record written by this worker should get, by table."""
        if any(store.outdated.values()):
            ledger.rewrite(store.outdated[COUNTERS], store.outdated[POLICIES])

    def note_end(self, table: str, end: int) -> None:
        """Record a gap if *end*, the changelog's next offset, is beyond this worker's own writes."""
        expected = self.next_offsets[table]
        if end > expected:
            self.gaps.append(Gap(table, expected, end))
            self.next_offsets[table] = end

    def advance(self) -> bool:
        """Start to read a gap, or overwrite one that was read; return whether one was overwritten.

        Call it only between two checkpoints.

        Raises:
            Overtaken: the writer of the gap is ahead of this worker.
        """
        if self._reading is None:
            if self.gaps:
                gap = self._all_of(self.gaps[0].table)
                future = self._read(self._topics[gap.table], self._store.partition, gap.start, gap.end)
                self._reading = gap, future
            return False
        gap, reading = self._reading
        if not reading.done():
            return False
        self._reading = None
        try:
            records, log_end = reading.result()
        except Unavailable as exc:
            _log.warning("%s; trying again", exc)
            return False
        self.gaps = [other for other in self.gaps if other.table != gap.table or other.end > gap.end]
        _log.warning(
            "%s[%s]: another worker wrote the records from offset %s to %s; overwriting them",
            self._topics[gap.table],
            self._store.partition,
            gap.start,
            gap.end,
        )
        self.overwrite(gap.table, records, log_end)
        return True

    @property
    def must_repeat(self) -> bool:
        """Whether the log has reached a position that a foreign record had claimed before."""
        return self._ledger.next_offset << POSITION_BITS > self._repeat_at

    def repeat(self) -> None:
        """Have the next checkpoint write the keys of those records again."""
        reached = self._ledger.next_offset << POSITION_BITS
        found = [place for place, position in self._ahead.items() if position < reached]
        for place in found:
            del self._ahead[place]
        self._repeat_at = min(self._ahead.values(), default=inf)
        self._ledger.rewrite(
            *([key for table, key in found if table == wanted] for wanted in (COUNTERS, POLICIES))
        )

    def _all_of(self, table: str) -> Gap:
        """Return one gap that covers all gaps of *table*."""
        gaps = [gap for gap in self.gaps if gap.table == table]
        return Gap(table, min(gap.start for gap in gaps), max(gap.end for gap in gaps))

    def overwrite(self, table: str, records: Sequence[Record], log_end: int) -> None:
        """Have the next checkpoint write every key of *records* again, and the marker after them.

        Args:
            table: The table of the changelog.
            records: The records found in a gap.
            log_end: The next offset of the log, asked for after they were read.

        Raises:
            NewerFormat: a marker names a format of a newer release.
            Overtaken: the writer is ahead of this worker, which no longer owns the partition.
        """
        reached = self._ledger.next_offset << POSITION_BITS
        keys = []
        newer = NewerMarker()
        for record in records:
            if newer.note(record, table, lambda: log_end):
                # Even if this worker has written a marker since: it may be the one that wrote late.
                self._store.reread_counters()
                newer.refuse()
            entry = record.entry(table)
            if entry is None:
                self._metrics.noise.inc()
                # Compaction would keep this record instead of the valid one before it.
                if record.key and self._store.get(table, record.key) is not None:
                    keys.append(record.key)
                continue
            key, value = entry
            is_marker = key == MARKER_KEY
            position = position_of(value)
            # A marker stores the first position not applied, every other entry the last one applied.
            if position >= reached + is_marker and not is_beyond(key, value, log_end):
                raise Overtaken(f"partition {self._store.partition}: another worker has judged further")
            if not is_marker:
                keys.append(key)
                if position >= reached:
                    self._ahead[table, key] = position
                    self._repeat_at = min(self._repeat_at, position)
        self._metrics.gaps_mended.inc(len(records))
        self._ledger.rewrite(*((keys, ()) if table == COUNTERS else ((), keys)))


def read_in_background(
    connection: KafkaConnection, topic: str, partition: int, start: int, end: int
) -> Future[GapContents]:
    """Read offsets *start* to *end* in a separate thread, because a broker may take seconds.

    The future raises ``Unavailable`` if no broker answers.
    """
    future: Future[GapContents] = Future()

    def read() -> None:
        try:
            with closing(AssignedConsumer(connection)) as consumer:
                found = list(consumer.read(topic, partition, start, end))
                _, log_end = consumer.offset_range(CHECKS, partition)
            records = [Record(message.offset(), message.key(), message.value()) for message in found]
            future.set_result(GapContents(records, log_end))
        except Exception as exc:  # noqa: BLE001 - the future raises it where its result is taken
            future.set_exception(exc)

    Thread(target=read, name=f"gap-{partition}", daemon=True).start()
    return future
