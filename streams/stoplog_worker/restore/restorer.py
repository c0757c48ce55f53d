"""Read changelogs into stores: of partitions that are to become active here, and of standbys.

One thread with its own consumer reads all changelogs in large batches. Faust's recovery takes ten times as
long for a record, and a standby must keep up with a busy owner.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from stoplog.errors import StateError, StoplogError, TopicError, Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS, UPDATES
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.metrics import Metrics
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG
from stoplog_worker.restore.changelog_offsets import ChangelogOffsets
from stoplog_worker.restore.lane_bootstrap import LaneCopier
from stoplog_worker.restore.partition_restore import PartitionRestore, RestorePhase
from stoplog_worker.state.expiry import PASS_S
from stoplog_worker.state.store import COUNTERS, TABLES, PartitionStore, Record

_log = logging.getLogger("stoplog.restore")

_POLL_S: Final = 0.05
"""Seconds that one read waits for records."""
_WATCH_S: Final = 1.0
"""Seconds between two looks at the ends of owned changelogs, for writes of other workers."""
_RETRY_S: Final = 0.5
"""Seconds before the next request to a broker that did not answer."""
_STOP_S: Final = 10.0
"""Seconds in which the thread must end: it may be waiting for a broker that is away."""


class Restored(NamedTuple):
    """A partition whose store holds everything that its changelogs held after it was assigned.

    Attributes:
        generation: The generation of the group for which it was restored.
        store: The partition's tables.
        topic_id: Id of the ``checks`` topic.
        updates_id: Id of the ``limit-updates`` topic.
        changelog_ids: Id of each table's changelog.
        log_start: First offset that ``checks`` still holds in this partition.
        answer_from: Checks before this offset are decided but not answered. A further lane may have much to
            catch up with, so the default lane answers what came before it.
    """

    generation: int
    store: PartitionStore
    topic_id: str
    updates_id: str
    changelog_ids: dict[str, str]
    log_start: int
    answer_from: int = 0


class Restorer(threading.Thread):
    """The thread that reads changelogs.

    Args:
        connection: How to reach Kafka.
        topics: The changelog topic of each table.
        open_store: Opens a partition's tables.
        metrics: Counts records.
        on_restored: Called in this thread with each partition that has caught up. It then owns the store.
        on_ends: Called in this thread with the next offset of each watched ``(table, partition)``.
        on_fatal: Called in this thread with the error that ended it.
        copier: Copies the default lane's state to a new partition of a further lane; ``None`` in the default
            lane.
        expiry_pass_s: Seconds between two passes over a partition's states, which remove expired ones.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: dict[str, str],
        open_store: Callable[[int], PartitionStore],
        metrics: Metrics,
        on_restored: Callable[[Restored], None],
        on_ends: Callable[[dict[tuple[str, int], int]], None],
        on_fatal: Callable[[BaseException], None],
        copier: LaneCopier | None = None,
        *,
        expiry_pass_s: float = PASS_S,
    ) -> None:
        super().__init__(name="restorer", daemon=True)
        self._copier = copier
        self._expiry_pass_s = expiry_pass_s
        self._topics = topics
        self._tables = {topic: table for table, topic in topics.items()}
        self._open = open_store
        self._metrics = metrics
        self._on_restored = on_restored
        self._on_ends = on_ends
        self._on_fatal = on_fatal
        self._consumer = AssignedConsumer(connection, on_missing="error")
        self._offsets = ChangelogOffsets(connection, topics)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._restores: dict[int, PartitionRestore] = {}
        self._truncated: set[tuple[str, int]] = set()
        """Changelogs that no longer hold the offset to be read next, as ``(topic, partition)``."""
        self._reread_at = 0.0
        self._watched: set[int] = set()
        self._watched_at = 0.0
        self._stopping = False

    # --- called by other threads ---

    def open(self, partition: int) -> None:
        """Open *partition*, which is open nowhere, and keep it up to date."""
        self._commands.put(lambda: self._follow(self._open(partition)))

    def follow(self, store: PartitionStore) -> None:
        """Keep *store* up to date."""
        self._commands.put(lambda: self._follow(store))

    def activate(self, generation: int | None, partition: int) -> None:
        """Restore *partition* and pass it to ``on_restored``; with ``None`` keep it as a standby.

        Has no effect if the partition is not here: it was then handed over for an earlier generation.
        """
        self._commands.put(lambda: self._activate(generation, partition))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Stop reading *partition*; return its store, or ``None`` if it is not here."""
        future: Future[PartitionStore | None] = Future()
        self._commands.put(lambda: future.set_result(self._release(partition)))
        return future

    def watch(self, partitions: set[int]) -> None:
        """Report the changelog ends of *partitions*, to which the owner writes."""
        self._commands.put(lambda: setattr(self, "_watched", set(partitions)))

    def stop(self) -> None:
        """End the thread. It closes the stores it holds."""

        def end() -> None:
            self._stopping = True

        self._commands.put(end)
        self.join(_STOP_S)

    # --- the thread ---

    def run(self) -> None:
        """Read until :meth:`stop`."""
        try:
            self._consumer.fetch_metadata(self._tables)
            while not self._stopping:
                self._run_commands()
                self._advance_restores()
                self._read()
                self._report_ends()
        except (StoplogError, KafkaException, OSError) as exc:
            self._on_fatal(exc)
        except Exception as exc:  # noqa: BLE001 - a bug here must end the worker, not only this thread
            self._on_fatal(exc)
        finally:
            for restore in self._restores.values():
                restore.store.close()
            if self._copier is not None:
                self._copier.close()
            self._consumer.close()

    def _run_commands(self) -> None:
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                return

    def _follow(self, store: PartitionStore) -> None:
        if not store.next_offset[COUNTERS]:
            # The table is empty, or a crash has interrupted the clearing of it.
            store.clear_counters()
        store.log_end = partial(self._log_end, store.partition)
        self._restores[store.partition] = PartitionRestore(
            store, self._copier, expiry_pass_s=self._expiry_pass_s
        )
        self._consumer.add(
            [
                TopicPartition(
                    self._topics[table], store.partition, store.next_offset[table] or OFFSET_BEGINNING
                )
                for table in TABLES
            ]
        )

    def _log_end(self, partition: int) -> int | None:
        place = TopicPartition(CHECKS, partition)
        return self._offsets.latest([place]).found.get(place)

    def _activate(self, generation: int | None, partition: int) -> None:
        restore = self._restores.get(partition)
        if restore is not None:
            restore.activate(generation)

    def _release(self, partition: int) -> PartitionStore | None:
        restore = self._restores.pop(partition, None)
        if restore is None:
            return None
        self._consumer.remove([TopicPartition(self._topics[table], partition) for table in TABLES])
        self._truncated -= {(topic, partition) for topic in self._tables}
        if self._copier is not None:
            self._copier.drop(partition)
        return restore.store

    # --- restoring ---

    def _advance_restores(self) -> None:
        """Advance the partitions that are to become active, and hand over those that are ready.

        One request covers all partitions, because each takes seconds while a broker is away.
        """
        now = monotonic()
        due = [
            restore
            for restore in self._restores.values()
            if restore.phase is not RestorePhase.STANDBY and now >= restore.retry_at
        ]
        # After the assignment, so that the ends include the last writes of the previous owner.
        self._find_ends([restore for restore in due if restore.finding_ends])
        for restore in due:
            try:
                restore.advance()
            except (Unavailable, TopicError) as exc:
                self._postpone([restore], exc)
        self._hand_over([restore for restore in due if restore.phase is RestorePhase.READY])

    def _postpone(self, restores: list[PartitionRestore], reason: object) -> None:
        """Try again later, with a new client."""
        if not restores:
            return
        partitions = [restore.store.partition for restore in restores]
        _log.warning("partitions %s cannot be restored yet: %s", partitions, reason)
        self._offsets.reconnect()
        for restore in restores:
            restore.retry_at = monotonic() + _RETRY_S

    def _find_ends(self, restores: list[PartitionRestore]) -> None:
        found, reason = self._offsets.ends([restore.store.partition for restore in restores])
        without = []
        for restore in restores:
            ends = found.get(restore.store.partition, {})
            if len(ends) == len(TABLES):
                self._check_not_truncated(restore.store, ends)
                restore.found_ends(ends)
            else:
                without.append(restore)
        self._postpone(without, reason)

    def _check_not_truncated(self, store: PartitionStore, ends: dict[str, int]) -> None:
        for table, end in ends.items():
            if store.next_offset[table] > end:
                topic = self._topics[table]
                raise StateError(
                    f"the local {table} table of partition {store.partition} has read its changelog to "
                    f"offset {store.next_offset[table]}, but the changelog ends at {end}: topic {topic} was "
                    f"deleted or truncated, and this table may hold its last copy. If that was intended: "
                    f"{REBUILD_FROM_LOG}"
                )

    def _hand_over(self, ready: list[PartitionRestore]) -> None:
        if not ready:
            return
        try:
            ids = self._offsets.topic_ids()
        except (Unavailable, TopicError) as exc:
            self._postpone(ready, exc)
            return
        changelog_ids = {table: ids[topic] for table, topic in self._topics.items()}
        restores = {TopicPartition(CHECKS, restore.store.partition): restore for restore in ready}
        starts, reason = self._offsets.earliest(restores)
        answer_from = dict.fromkeys(restores, 0)
        if self._copier is not None:
            answer_from, reason = self._offsets.latest(starts)
        known = starts.keys() & answer_from.keys()
        self._postpone([restore for place, restore in restores.items() if place not in known], reason)
        for place in (place for place in restores if place in known):
            store, generation = restores[place].store, restores[place].generation
            assert generation is not None
            self._release(store.partition)
            self._on_restored(
                Restored(
                    generation,
                    store,
                    ids[CHECKS],
                    ids[UPDATES],
                    changelog_ids,
                    starts[place],
                    answer_from[place],
                )
            )

    # --- reading ---

    def _read(self) -> None:
        messages, ends, gone = self._consumer.consume(_POLL_S)
        batches: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for message in messages:
            record = Record(message.offset(), message.key(), message.value())
            batches[self._tables[message.topic()], message.partition()].append(record)
        for (table, partition), records in batches.items():
            if partition in self._restores:
                self._metrics.noise.inc(self._restores[partition].store.merge(table, records))
                self._metrics.restored.inc(len(records))
        for (topic, partition), end in ends.items():
            if partition in self._restores:
                self._restores[partition].store.reach(self._tables[topic], end)
        self._truncated |= gone
        self._reread_truncated()
        now, among = monotonic(), len(self._restores)
        for restore in list(self._restores.values()):
            self._metrics.swept.inc(len(restore.expirer.advance(now, among)))

    def _reread_truncated(self) -> None:
        """Read changelogs from their beginning if they no longer hold the offset to be read next."""
        now = monotonic()
        if not self._truncated or now < self._reread_at:
            return
        self._reread_at = now + _RETRY_S
        places = {
            TopicPartition(topic, partition): (topic, partition) for topic, partition in self._truncated
        }
        starts, reason = self._offsets.earliest(places)
        if len(starts) < len(places):
            _log.warning("changelogs %s cannot be read yet: %s", sorted(self._truncated), reason)
            self._offsets.reconnect()
        for place, start in starts.items():
            self._truncated.remove(places[place])
            restore, table = self._restores.get(place.partition), self._tables[place.topic]
            if restore is None:
                continue
            store = restore.store
            # A changelog that begins before was created again. Its partition is not handed over
            # (_check_not_truncated), and the store keeps what may be the last copy.
            if store.next_offset[table] < start:
                _log.warning(
                    "partition %s: the %s table was read to offset %s of %s, which now begins at %s: reading "
                    "it again from there",
                    store.partition,
                    table,
                    store.next_offset[table],
                    place.topic,
                    start,
                )
                if table == COUNTERS:
                    # The deleted records are not needed (stoplog_worker.state.expiry). But the store may hold
                    # states that they replaced, of a client that was reset, for example.
                    store.clear_counters()
            self._consumer.remove([place])
            self._consumer.add([TopicPartition(place.topic, place.partition, OFFSET_BEGINNING)])

    def _report_ends(self) -> None:
        now = monotonic()
        if not self._watched or now - self._watched_at < _WATCH_S:
            return
        self._watched_at = now
        found, _ = self._offsets.ends(self._watched)
        ends = {
            (table, partition): end
            for partition, by_table in found.items()
            for table, end in by_table.items()
        }
        if len(ends) < len(self._watched) * len(TABLES):
            # No warning: the owner's own writes fail as well, or its lease expires.
            self._offsets.reconnect()
        self._on_ends(ends)
