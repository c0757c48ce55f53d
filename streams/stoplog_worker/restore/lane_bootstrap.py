"""A new lane takes over what the default lane has: its changelogs of a partition, copied into our own.

A lane judges every check, as all others do, with a group, tables and changelogs of its own. One that comes
later would have to judge the log from its beginning; instead it copies the default lane's state and goes on
from that lane's marker. What is copied is read back and merged by position as at any restart
(:mod:`stoplog_worker.restore.restorer`), so a copy that breaks off is begun again, and two at once do no harm.
It is written under the group's lease only, as all that an owner writes is: what came after the states of the
partition's next owner would have to be found and mended (:mod:`stoplog_worker.consumer.consumer_thread`).

The default lane goes on writing meanwhile, and four rules keep what is copied whole:

- The end of the policies' changelog is asked for *before* that of the counters'. A marker is written only
  after the states below it are acknowledged, so all states below any marker that is read are read too. States
  beyond it may be read as well: they tell by their position what they hold already.
- No policy beyond that end is taken: it may have left out what was in force at the marker.
- What a copy that broke off has left is without_charges first, under its own positions: of a client that has been
  reset since, and then was idle, the default lane's changelog may have nothing any more
  (:mod:`stoplog_worker.state.expiry`).
- Reading up to the ends is repeated until it is quick: compaction leaves alone what is younger than
  ``min_compaction_lag``, so within that time no record goes because of one that lies beyond the ends.

The marker is written last, when all else is acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic
from typing import Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaException, Producer, TopicPartition

from stoplog.errors import Unavailable
from stoplog.kafka import clients as kafka
from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG, changelogs_of
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    decode_marker,
    encode_marker,
    position_of,
    without_charges,
)
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, Record

_log = logging.getLogger("stoplog.lane")

_QUICK_S: Final = 60.0
"""What counts as quick; topics.yaml has a ``min_compaction_lag`` of ten times that."""
_EMPTIED: Final = 10_000
"""Counters without_charges at a time."""
_POLL_S: Final = 0.02

Entry = tuple[str, bytes, bytes]
"""Table, key and value."""


def changelogs(lane: str) -> dict[str, str]:
    """The changelog topic of each table of *lane*."""
    topics = changelogs_of(lane)
    return {COUNTERS: topics[COUNTERS_CHANGELOG], POLICIES: topics[POLICIES_CHANGELOG]}


class Copier:
    """Copies one partition after the other; used by the restorer's thread only.

    Args:
        bootstrap: Servers.
        send_timeout_ms: After which a record that was not acknowledged is sent again.
        source: The default lane's changelog of each table.
        target: This lane's.
        metrics: Counts what is copied.
        lease: What is written without it may come after what the partition's next owner writes.
        chunk: Records read, written and acknowledged at a time: what a copy holds in memory.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        bootstrap: str,
        send_timeout_ms: int,
        source: dict[str, str],
        target: dict[str, str],
        metrics: Metrics,
        lease: Lease,
        *,
        chunk: int = 10_000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._bootstrap = bootstrap
        self._send_timeout_ms = send_timeout_ms
        self._source = source
        self._target = target
        self._metrics = metrics
        self._lease = lease
        self._chunk = chunk
        self._clock = clock
        self._copy: _Copy | None = None

    def advance(self, partition: int, stored: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple) -> bool:
        """Move the copy of *partition* on by a chunk, unless another is under way; ``True`` when it is done.

        Without the lease nothing moves, and a copy that was under way is dropped.

        Args:
            partition: Its number.
            stored: The counters that our changelog has of it: of a copy that broke off.

        Raises:
            Unavailable: the broker does not answer; the copy begins again with the next call.
        """
        if not self._lease.holds():
            self.drop(partition)
            return False
        if self._copy is None:
            reader = AssignedConsumer(self._bootstrap, on_missing="error", most=self._chunk)
            producer = kafka.changelog_producer(self._bootstrap, self._send_timeout_ms)
            self._copy = _Copy(partition, reader, producer, self._source, self._target, self._clock, stored())
            _log.info("partition %s: copying the state of the default lane", partition)
        copy = self._copy
        if copy.partition != partition:
            return False
        try:
            done = copy.advance()
        except (KafkaException, Unavailable) as exc:
            self.drop(partition)
            raise Unavailable(f"the default lane's state cannot be copied: {exc}") from exc
        if done:
            _log.info("partition %s: copied %s entries", partition, copy.copied)
            self._metrics.copied.inc(copy.copied)
            self.drop(partition)
        return done

    @property
    def partition(self) -> int | None:
        """Whose copy is under way."""
        return self._copy.partition if self._copy is not None else None

    def drop(self, partition: int) -> None:
        """Forget the copy of *partition*, if it is under way."""
        if self._copy is not None and self._copy.partition == partition:
            self._copy.close()
            self._copy = None

    def close(self) -> None:
        """Break off."""
        if self._copy is not None:
            self.drop(self._copy.partition)


class _Copy:
    """The copy of one partition."""

    def __init__(
        self,
        partition: int,
        reader: AssignedConsumer,
        producer: Producer,
        source: dict[str, str],
        target: dict[str, str],
        clock: Callable[[], float],
        stored: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self.partition = partition
        self._left = iter(stored)
        self.copied = 0
        self._reader = reader
        self._producer = producer
        self._source = source
        self._target = target
        self._clock = clock
        self._tables = {topic: table for table, topic in source.items()}
        self._next = dict.fromkeys(TABLES, 0)
        self._ends: dict[str, int] = {}
        self._asked = 0.0
        self._chunk: list[Entry] = []
        self._waiting = 0
        self._failed = False
        self._marker: bytes | None = None
        self._sealed = False

    def advance(self) -> bool:
        self._producer.poll(_POLL_S if self._waiting else 0)
        if self._waiting:
            return False
        if self._failed:
            self._send(self._chunk)
        elif chunk := [
            (COUNTERS, key, without_charges(value)) for key, value in islice(self._left, _EMPTIED)
        ]:
            self._send(chunk)
        elif self._sealed:
            return True
        elif not self._ends or (self._at_ends and self._clock() - self._asked > _QUICK_S):
            self._ask_for_ends()
        elif not self._at_ends:
            self._send(self._read())
        elif self._marker is None:
            # That lane has judged nothing yet: this one begins where the log does, as it will.
            return True
        else:
            self._sealed = True
            # Our changelogs, which the owner notes, hold what is below it.
            marker = msgspec.structs.replace(decode_marker(self._marker), changelog_ids={})
            self._send([(POLICIES, MARKER_KEY, encode_marker(marker))])
        return False

    def close(self) -> None:
        self._producer.purge()
        self._reader.close()

    @property
    def _at_ends(self) -> bool:
        return all(self._next[table] >= end for table, end in self._ends.items())

    def _ask_for_ends(self) -> None:
        self._asked = self._clock()
        for table in (POLICIES, COUNTERS):
            _, self._ends[table] = self._reader.offset_range(self._source[table], self.partition)
        self._reader.assign(
            [
                TopicPartition(self._source[table], self.partition, self._next[table] or OFFSET_BEGINNING)
                for table in TABLES
            ]
        )

    def _read(self) -> list[Entry]:
        """Of each key the highest of the next records; markers are kept back."""
        messages, ends, gone = self._reader.consume(_POLL_S)
        if gone:
            raise Unavailable(f"the beginning of {sorted(gone)} was deleted while it was read")
        highest: dict[tuple[str, bytes], bytes] = {}
        for message in messages:
            table, offset = self._tables[message.topic()], message.offset()
            if offset >= self._ends[table]:
                continue
            self._next[table] = offset + 1
            entry = Record(offset, message.key(), message.value()).entry(table)
            if entry is None:
                continue
            key, value = entry
            if (table, key) == (POLICIES, MARKER_KEY):
                self._marker = _higher(self._marker, value)
            else:
                highest[table, key] = _higher(highest.get((table, key)), value)
        for (topic, _), end in ends.items():
            table = self._tables[topic]
            self._next[table] = max(self._next[table], end)
        return [(table, key, value) for (table, key), value in highest.items()]

    def _send(self, chunk: list[Entry]) -> None:
        self._chunk, self._failed, self._waiting = chunk, False, len(chunk)
        for table, key, value in chunk:
            self._produce(self._target[table], key, value)

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition=self.partition, on_delivery=self._delivered
                )
                return
            except BufferError:
                self._producer.poll(_POLL_S)

    def _delivered(self, error: Any, _message: Any) -> None:
        self._waiting -= 1
        if error is None:
            self.copied += 1
        else:
            self._failed = True


def _higher(known: bytes | None, value: bytes) -> bytes:
    return value if known is None or position_of(value) >= position_of(known) else known
