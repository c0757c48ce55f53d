"""Start a new lane with the default lane's state: copy its changelogs of a partition into the lane's own.

Every lane decides every check, with its own group, tables and changelogs. A new lane would have to decide the
log from its beginning. Instead it copies the default lane's state and continues from that lane's marker. The
restorer reads the copy and merges it by position, as after any restart
(:mod:`stoplog_worker.restore.restorer`). So an interrupted copy can begin again, and two copies at once do no
harm. A copy writes only under the group's lease, like an owner: the partition's next owner would have to find
and repair anything written later.

The default lane continues to write during the copy. Four rules make the copy complete:

- The end of the policies' changelog is read *before* the end of the counters' changelog. A marker is written
  after all states below it are acknowledged, so every state below a marker that is read is read too. States
  beyond the marker may be read as well. Their positions show which checks they contain.
- No policy beyond that end is copied: it may have dropped the version in force at the marker.
- The states that an interrupted copy left are emptied first, under their own positions. A client may have
  been reset and idle since, and then the default lane's changelog may have no record of it
  (:mod:`stoplog_worker.state.expiry`).
- Reading up to the ends is repeated until it is fast enough. Compaction keeps records younger than
  ``min_compaction_lag``, so within that time no record disappears because of a newer one beyond the ends.

The marker is written last, after everything else is acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import Enum, auto
from itertools import islice
from time import monotonic
from typing import Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaException, Producer, TopicPartition

from stoplog.errors import Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.connection import KafkaConnection
from stoplog.lanes import changelogs_of
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    decode_marker,
    encode_marker,
    is_beyond,
    position_of,
    without_charges,
)
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, NewerMarker, Record

_log = logging.getLogger("stoplog.lane")

_MAX_READ_S: Final = 60.0
"""Seconds in which the changelogs must be read to their ends: a tenth of ``min_compaction_lag`` in
topics.yaml."""
_LEFTOVERS: Final = 10_000
"""Leftover states emptied in one step."""
_POLL_S: Final = 0.02

Entry = tuple[str, bytes, bytes]
"""Table, key and value."""


def changelogs(lane: str) -> dict[str, str]:
    """Return the changelog topic of each table of *lane*; the default lane is ``""``."""
    topics = changelogs_of(lane)
    return {COUNTERS: topics[COUNTERS_CHANGELOG], POLICIES: topics[POLICIES_CHANGELOG]}


class LaneCopier:
    """Copies partitions, one after the other. Used by the restorer's thread only.

    Args:
        connection: How to reach Kafka.
        send_timeout_ms: Milliseconds after which an unacknowledged record is sent again.
        source: The default lane's changelog of each table.
        target: This lane's changelog of each table.
        metrics: Counts copied entries.
        lease: A copy only writes while it holds.
        chunk: Records read, written and acknowledged in one step. They are held in memory.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        send_timeout_ms: int,
        source: dict[str, str],
        target: dict[str, str],
        metrics: Metrics,
        lease: Lease,
        *,
        chunk: int = 10_000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._connection = connection
        self._send_timeout_ms = send_timeout_ms
        self._source = source
        self._target = target
        self._metrics = metrics
        self._lease = lease
        self._chunk = chunk
        self._clock = clock
        self._copy: PartitionCopy | None = None

    def advance(self, partition: int, stored: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple) -> bool:
        """Advance the copy of *partition* by one step, unless another partition's is in progress.

        Without the lease, a copy in progress is dropped.

        Args:
            partition: The partition.
            stored: Returns the counters in this lane's store, which an interrupted copy left.

        Returns:
            Whether the copy is complete.

        Raises:
            Unavailable: the broker does not answer. The next call begins the copy again.
        """
        if not self._lease.holds():
            self.drop(partition)
            return False
        if self._copy is None:
            consumer = AssignedConsumer(self._connection, on_missing="error", most=self._chunk)
            producer = kafka.changelog_producer(self._connection, self._send_timeout_ms)
            self._copy = PartitionCopy(
                partition, consumer, producer, self._source, self._target, self._clock, stored()
            )
            _log.info("partition %s: copying the state of the default lane", partition)
        copy = self._copy
        if copy.partition != partition:
            return False
        try:
            complete = copy.advance()
        except (KafkaException, Unavailable) as exc:
            self.drop(partition)
            raise Unavailable(f"the default lane's state cannot be copied: {exc}") from exc
        if complete:
            _log.info("partition %s: copied %s entries", partition, copy.copied)
            self._metrics.copied.inc(copy.copied)
            self.drop(partition)
        return complete

    @property
    def partition(self) -> int | None:
        """The partition being copied."""
        return self._copy.partition if self._copy is not None else None

    def drop(self, partition: int) -> None:
        """Interrupt the copy of *partition*, if it is in progress."""
        if self._copy is not None and self._copy.partition == partition:
            self._copy.close()
            self._copy = None

    def close(self) -> None:
        """Interrupt the copy in progress."""
        if self._copy is not None:
            self.drop(self._copy.partition)


class CopyPhase(Enum):
    """The next step of a copy. Before it, all records of the step before are acknowledged, or sent again.

    ==============  ===================================================================================
    phase           meaning
    ==============  ===================================================================================
    EMPTYING        overwrites the states that an interrupted copy left with empty ones
    FINDING_ENDS    asks where the default lane's changelogs end
    COPYING         reads them up to these ends, and writes the entries
    WRITING_MARKER  the marker is on its way
    COMPLETE        the lane has everything
    ==============  ===================================================================================

    ==============  ==============  ===================================================================
    from            to              when
    ==============  ==============  ===================================================================
    EMPTYING        FINDING_ENDS    no state is left to be emptied
    FINDING_ENDS    COPYING         the ends are known
    COPYING         FINDING_ENDS    at the ends, but reading has taken more than 60 s
    COPYING         WRITING_MARKER  at the ends
    COPYING         COMPLETE        at the ends, without a marker: the default lane has decided nothing yet
    WRITING_MARKER  COMPLETE        the marker is acknowledged
    ==============  ==============  ===================================================================
    """

    EMPTYING = auto()
    FINDING_ENDS = auto()
    COPYING = auto()
    WRITING_MARKER = auto()
    COMPLETE = auto()


class PartitionCopy:
    """The copy of one partition.

    Args:
        partition: The partition.
        consumer: Reads the default lane's changelogs.
        producer: Writes this lane's changelogs.
        source: The default lane's changelog of each table.
        target: This lane's changelog of each table.
        clock: Returns monotonic seconds.
        leftovers: The counters that an interrupted copy left.
    """

    def __init__(
        self,
        partition: int,
        consumer: AssignedConsumer,
        producer: Producer,
        source: dict[str, str],
        target: dict[str, str],
        clock: Callable[[], float],
        leftovers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self.partition = partition
        self.phase = CopyPhase.EMPTYING
        self.copied = 0
        """Entries acknowledged."""
        self._leftovers = iter(leftovers)
        self._consumer = consumer
        self._producer = producer
        self._source = source
        self._target = target
        self._clock = clock
        self._tables = {topic: table for table, topic in source.items()}
        self._next = dict.fromkeys(TABLES, 0)
        self._ends: dict[str, int] = {}
        self._log_end = 0
        self._ends_found_at = 0.0
        self._chunk: list[Entry] = []
        self._unacknowledged = 0
        self._failed = False
        self._marker: bytes | None = None
        self._newer = NewerMarker()

    def advance(self) -> bool:
        """Take one step; return whether the copy is complete.

        Raises:
            Unavailable: the broker does not answer, or a changelog lost its beginning while it was read.
            NewerFormat: a newer release has written the default lane's partition.
            KafkaException: the consumer or the producer cannot continue.
        """
        self._producer.poll(_POLL_S if self._unacknowledged else 0)
        if self._unacknowledged:
            return False
        if self._failed:
            self._send(self._chunk)
        elif self.phase is CopyPhase.EMPTYING:
            self._empty_leftovers()
        elif self.phase is CopyPhase.FINDING_ENDS:
            self._find_ends()
        elif self.phase is CopyPhase.COPYING:
            if self._at_ends:
                self._finish_reading()
            else:
                self._send(self._read())
        elif self.phase is CopyPhase.WRITING_MARKER:
            self.phase = CopyPhase.COMPLETE
        return self.phase is CopyPhase.COMPLETE

    def close(self) -> None:
        """Discard unsent records and disconnect."""
        self._producer.purge()
        self._consumer.close()

    def _empty_leftovers(self) -> None:
        chunk = [
            (COUNTERS, key, without_charges(value)) for key, value in islice(self._leftovers, _LEFTOVERS)
        ]
        if chunk:
            self._send(chunk)
        else:
            self.phase = CopyPhase.FINDING_ENDS

    @property
    def _at_ends(self) -> bool:
        return all(self._next[table] >= end for table, end in self._ends.items())

    def _find_ends(self) -> None:
        self._ends_found_at = self._clock()
        for table in (POLICIES, COUNTERS):  # in this order: see the module's docstring
            _, self._ends[table] = self._consumer.offset_range(self._source[table], self.partition)
        # Last: every entry before these ends has a position that the log has now.
        _, self._log_end = self._consumer.offset_range(CHECKS, self.partition)
        self._consumer.assign(
            [
                TopicPartition(self._source[table], self.partition, self._next[table] or OFFSET_BEGINNING)
                for table in TABLES
            ]
        )
        self.phase = CopyPhase.COPYING

    def _finish_reading(self) -> None:
        if self._clock() - self._ends_found_at > _MAX_READ_S:
            self.phase = CopyPhase.FINDING_ENDS
            return
        self._newer.refuse()
        if self._marker is None:
            self.phase = CopyPhase.COMPLETE
        else:
            self.phase = CopyPhase.WRITING_MARKER
            # The marker is valid with this lane's changelogs now. Their owner adds their ids.
            marker = msgspec.structs.replace(decode_marker(self._marker), changelog_ids={})
            self._send([(POLICIES, MARKER_KEY, encode_marker(marker))])

    def _read(self) -> list[Entry]:
        """Read the next records; return each key's entry with the highest position, without markers."""
        messages, ends, gone = self._consumer.consume(_POLL_S)
        if gone:
            raise Unavailable(f"the beginning of {sorted(gone)} was deleted while it was read")
        highest: dict[tuple[str, bytes], bytes] = {}
        for message in messages:
            table, offset = self._tables[message.topic()], message.offset()
            if offset >= self._ends[table]:
                continue
            self._next[table] = offset + 1
            record = Record(offset, message.key(), message.value())
            self._newer.note(record, table, lambda: self._log_end)
            entry = record.entry(table)
            if entry is None:
                continue
            key, value = entry
            if is_beyond(key, value, self._log_end):
                continue  # forged
            if (table, key) == (POLICIES, MARKER_KEY):
                self._marker = _higher(self._marker, value)
            else:
                highest[table, key] = _higher(highest.get((table, key)), value)
        for (topic, _), end in ends.items():
            table = self._tables[topic]
            self._next[table] = max(self._next[table], end)
        return [(table, key, value) for (table, key), value in highest.items()]

    def _send(self, chunk: list[Entry]) -> None:
        self._chunk, self._failed, self._unacknowledged = chunk, False, len(chunk)
        for table, key, value in chunk:
            self._produce(self._target[table], key, value)

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition=self.partition, on_delivery=self._on_delivery
                )
                return
            except BufferError:
                self._producer.poll(_POLL_S)

    def _on_delivery(self, error: Any, _message: Any) -> None:
        self._unacknowledged -= 1
        if error is None:
            self.copied += 1
        else:
            self._failed = True


def _higher(known: bytes | None, value: bytes) -> bytes:
    """Return the value with the higher position, the later one of two equal ones."""
    return value if known is None or position_of(value) >= position_of(known) else known
