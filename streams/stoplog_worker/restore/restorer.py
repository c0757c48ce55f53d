"""Changelogs into stores: partitions that are to be judged here, and those that stand by.

One thread with a consumer of its own reads all of them in large batches: Faust's recovery takes 100 µs a
record, this a tenth, and a standby must keep up with what a busy owner writes.
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
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from stoplog.errors import StateError, StoplogError, TopicError, Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.topic_admin import describe
from stoplog.topics import CHECKS, UPDATES
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.metrics import Metrics
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG
from stoplog_worker.restore.lane_bootstrap import Copier
from stoplog_worker.state.expiry import Sweeper
from stoplog_worker.state.store import COUNTERS, TABLES, PartitionStore, Record

_log = logging.getLogger("stoplog.restore")

_POLL_S: Final = 0.05
_LOOK_S: Final = 1.0
"""How often the ends of owned changelogs are looked at for foreign writes."""
_RPC_S: Final = 2.0
_RETRY_S: Final = 0.5
_STOP_S: Final = 10.0
"""Seconds for the end of the thread, which may be waiting for brokers that are away."""


class Restored(NamedTuple):
    """A partition whose store holds all that its changelogs held when it was asked for.

    ``topic_id`` is that of ``checks``, ``updates_id`` that of ``limit-updates``, ``changelog_ids`` has
    that of each table's changelog; ``log_start`` is the first offset that ``checks`` still holds there.
    Checks below ``answer_from`` are not to be answered: a further lane, which may be new and have much to
    catch up with, leaves what came before it to the default one.
    """

    generation: int
    store: PartitionStore
    topic_id: str
    updates_id: str
    changelog_ids: dict[str, str]
    log_start: int
    answer_from: int = 0


class _Followed:
    """A partition being read; ``ends`` are the offsets to reach, while it is to become active.

    ``copied``: the lane is new, and what the default lane had is in its changelogs. ``read_anew``: a copy may
    begin, for all that an earlier one has left is read.
    """

    def __init__(self, store: PartitionStore) -> None:
        self.store = store
        self.sweeper = Sweeper(store)
        self.generation: int | None = None
        self.ends: dict[str, int] = {}
        self.copied = self.read_anew = False
        self.not_before = 0.0

    @property
    def caught_up(self) -> bool:
        """Whether it has been read to its ends, which are known."""
        return bool(self.ends) and all(self.store.next[table] >= end for table, end in self.ends.items())


class Restorer(threading.Thread):
    """The thread that reads changelogs.

    Args:
        bootstrap: Servers.
        topics: The changelog topic of each table.
        open_store: Opens a partition's tables.
        metrics: Counts records.
        on_restored: Called in this thread for each partition that has caught up; it then owns the store.
        on_ends: Called in this thread with the next offset of each watched ``(table, partition)``.
        on_fatal: Called in this thread with what ended it.
        copier: Of a further lane: has the state of the default one for partitions that have none.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: dict[str, str],
        open_store: Callable[[int], PartitionStore],
        metrics: Metrics,
        on_restored: Callable[[Restored], None],
        on_ends: Callable[[dict[tuple[str, int], int]], None],
        on_fatal: Callable[[BaseException], None],
        copier: Copier | None = None,
    ) -> None:
        super().__init__(name="restorer", daemon=True)
        self._copier = copier
        self._topics = topics
        self._tables = {topic: table for table, topic in topics.items()}
        self._open = open_store
        self._metrics = metrics
        self._on_restored = on_restored
        self._on_ends = on_ends
        self._on_fatal = on_fatal
        self._servers = bootstrap
        self._reader = AssignedConsumer(bootstrap, on_missing="error")
        self._admin = kafka.worker_admin(bootstrap)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._followed: dict[int, _Followed] = {}
        self._gone: set[tuple[str, int]] = set()
        self._begin_again_at = 0.0
        self._watched: set[int] = set()
        self._looked = 0.0
        self._stopping = False

    # --- from other threads ---

    def open(self, partition: int) -> None:
        """Open *partition*, which nobody holds, and keep it up to date."""
        self._commands.put(lambda: self._follow(self._open(partition)))

    def follow(self, store: PartitionStore) -> None:
        """Keep *store* up to date."""
        self._commands.put(lambda: self._follow(store))

    def activate(self, generation: int | None, partition: int) -> None:
        """Hand *partition* to ``on_restored`` once it has caught up; ``None``: let it stand by.

        Without effect if it is not here: then it has just been handed over, for an older generation.
        """
        self._commands.put(lambda: self._activate(generation, partition))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Stop reading *partition*; its store, or ``None`` if it is not here."""
        future: Future[PartitionStore | None] = Future()
        self._commands.put(lambda: future.set_result(self._release(partition)))
        return future

    def watch(self, partitions: set[int]) -> None:
        """Look at the changelog ends of these, which the owner writes to."""
        self._commands.put(lambda: setattr(self, "_watched", set(partitions)))

    def stop(self) -> None:
        """End the thread, which closes what it holds."""

        def end() -> None:
            self._stopping = True

        self._commands.put(end)
        self.join(_STOP_S)

    # --- the thread ---

    def run(self) -> None:
        """Read until told to stop."""
        try:
            self._reader.prefetch_metadata(self._tables)
            while not self._stopping:
                self._run_commands()
                self._hand_over()
                self._read()
                self._look()
        except (StoplogError, KafkaException, OSError) as exc:
            self._on_fatal(exc)
        except Exception as exc:  # noqa: BLE001 - a bug here must end the worker, not only this thread
            self._on_fatal(exc)
        finally:
            for followed in self._followed.values():
                followed.store.close()
            if self._copier is not None:
                self._copier.close()
            self._reader.close()

    def _run_commands(self) -> None:
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                return

    def _follow(self, store: PartitionStore) -> None:
        if not store.next[COUNTERS]:
            # It holds nothing, or what is left of a table that was being cleared.
            store.clear_counters()
        self._followed[store.partition] = _Followed(store)
        self._reader.add(
            [
                TopicPartition(self._topics[table], store.partition, store.next[table] or OFFSET_BEGINNING)
                for table in TABLES
            ]
        )

    def _activate(self, generation: int | None, partition: int) -> None:
        followed = self._followed.get(partition)
        if followed is not None:
            followed.generation, followed.ends = generation, {}

    def _release(self, partition: int) -> PartitionStore | None:
        followed = self._followed.pop(partition, None)
        if followed is None:
            return None
        self._reader.remove([TopicPartition(self._topics[table], partition) for table in TABLES])
        self._gone -= {(topic, partition) for topic in self._tables}
        if self._copier is not None:
            self._copier.drop(partition)
        return followed.store

    def _hand_over(self) -> None:
        """Give away the stores that are asked for and have reached their ends.

        All are asked about at once: while a broker is away each question takes seconds.
        """
        now = monotonic()
        due = [f for f in self._followed.values() if f.generation is not None and now >= f.not_before]
        if not due:
            return
        # Asked for after the assignment: what the owner before flushed as it let go lies below.
        self._find_ends([followed for followed in due if not followed.ends])
        ready = [followed for followed in due if followed.caught_up and self._is_copied(followed)]
        if ready:
            self._give(ready)

    def _postpone(self, followed: list[_Followed], why: object) -> None:
        """Try again later, by a client that knows nothing.

        One that has asked a broker which then died, or was restarted, may go on asking it, or with a leader's
        old epoch.
        """
        if not followed:
            return
        partitions = [one.store.partition for one in followed]
        _log.warning("partitions %s cannot be restored yet: %s", partitions, why)
        self._admin = kafka.worker_admin(self._servers)
        for one in followed:
            one.not_before = monotonic() + _RETRY_S

    def _find_ends(self, asking: list[_Followed]) -> None:
        found, why = self._ends({followed.store.partition for followed in asking})
        lacking = []
        for followed in asking:
            store = followed.store
            ends = {table: found.get((table, store.partition), -1) for table in TABLES}
            if min(ends.values()) < 0:
                lacking.append(followed)
                continue
            for table, end in ends.items():
                if store.next[table] > end:
                    raise StateError(
                        f"the local {table} of partition {store.partition} have read their changelog to "
                        f"offset {store.next[table]} and it ends at {end}: the topic {self._topics[table]} "
                        f"was deleted or cut, and these tables are the last that hold what it held. If that "
                        f"was meant: {REBUILD_FROM_LOG}"
                    )
            followed.ends = ends
        self._postpone(lacking, why)

    def _is_copied(self, followed: _Followed) -> bool:
        """Whether nothing is to be copied (any more) from the default lane."""
        if self._copier is None or followed.copied or followed.store.marker() is not None:
            return True
        store = followed.store
        if self._copier.partition is None and not followed.read_anew:
            followed.ends, followed.read_anew = {}, True
            return False
        if self._copier.partition in (None, store.partition):
            followed.read_anew = False
        try:
            if self._copier.advance(store.partition, partial(store.items, COUNTERS)):
                followed.copied, followed.ends = True, {}  # what was copied is to be read
        except (Unavailable, TopicError) as exc:
            self._postpone([followed], exc)
        return False

    def _give(self, ready: list[_Followed]) -> None:
        try:
            described = describe(self._admin, [CHECKS, UPDATES, *self._tables], _RPC_S * 2)
        except (Unavailable, TopicError) as exc:
            self._postpone(ready, exc)
            return
        ids = {name: str(topic.topic_id) for name, topic in described.items()}
        of_changelogs = {table: ids[topic] for table, topic in self._topics.items()}
        place_of = {TopicPartition(CHECKS, followed.store.partition): followed for followed in ready}
        starts, why = self._offsets(list(place_of), OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        answered = dict.fromkeys(place_of, 0)
        if self._copier is not None:
            answered, why = self._offsets(list(starts), OffsetSpec.latest())  # type: ignore[no-untyped-call]
        known = starts.keys() & answered.keys()
        self._postpone([followed for place, followed in place_of.items() if place not in known], why)
        for place in (place for place in place_of if place in known):
            store, generation = place_of[place].store, place_of[place].generation
            assert generation is not None
            self._release(store.partition)
            self._on_restored(
                Restored(
                    generation,
                    store,
                    ids[CHECKS],
                    ids[UPDATES],
                    of_changelogs,
                    starts[place],
                    answered[place],
                )
            )

    def _read(self) -> None:
        messages, ends, gone = self._reader.consume(_POLL_S)
        taken: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for message in messages:
            record = Record(message.offset(), message.key(), message.value())
            taken[self._tables[message.topic()], message.partition()].append(record)
        for (table, partition), records in taken.items():
            if partition in self._followed:
                self._followed[partition].store.merge(table, records)
                self._metrics.restored.inc(len(records))
        for (topic, partition), end in ends.items():
            if partition in self._followed:
                followed, table = self._followed[partition], self._tables[topic]
                followed.store.next[table] = max(followed.store.next[table], end)
        self._gone |= gone
        self._begin_again()
        now, among = monotonic(), len(self._followed)
        for followed in list(self._followed.values()):
            self._metrics.swept.inc(len(followed.sweeper.advance(now, among)))

    def _begin_again(self) -> None:
        """Go on at the beginning of changelogs that have lost what was to be read next."""
        now = monotonic()
        if not self._gone or now < self._begin_again_at:
            return
        self._begin_again_at = now + _RETRY_S
        places = {TopicPartition(topic, partition): (topic, partition) for topic, partition in self._gone}
        starts, why = self._offsets(list(places), OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        if len(starts) < len(places):
            _log.warning("changelogs %s cannot be read on yet: %s", sorted(self._gone), why)
            self._admin = kafka.worker_admin(self._servers)
        for place, start in starts.items():
            self._gone.remove(places[place])
            followed, table = self._followed.get(place.partition), self._tables[place.topic]
            if followed is None:
                continue
            store = followed.store
            # A topic that ends before that was made again: what is stored then stays, and is not judged by.
            if store.next[table] < start:
                _log.warning(
                    "partition %s: the %s were read to offset %s of %s, which now begins at %s: they are "
                    "read again from there",
                    store.partition,
                    table,
                    store.next[table],
                    place.topic,
                    start,
                )
                if table == COUNTERS:
                    # What was deleted says nothing any more (stoplog_worker.state.expiry), but may have followed on what is
                    # stored here: of a client that has been reset, say.
                    store.clear_counters()
            self._reader.remove([place])
            self._reader.add([TopicPartition(place.topic, place.partition, OFFSET_BEGINNING)])

    def _look(self) -> None:
        now = monotonic()
        if not self._watched or now - self._looked < _LOOK_S:
            return
        self._looked = now
        found, _ = self._ends(self._watched)
        if len(found) < len(self._watched) * len(TABLES):
            # The owner's own writes will tell, or its lease runs out.
            self._admin = kafka.worker_admin(self._servers)
        self._on_ends(found)

    def _ends(self, partitions: set[int]) -> tuple[dict[tuple[str, int], int], str]:
        places = [TopicPartition(topic, p) for topic in self._topics.values() for p in partitions]
        found, why = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {(self._tables[place.topic], place.partition): end for place, end in found.items()}, why

    def _offsets(
        self, places: list[TopicPartition], which: OffsetSpec
    ) -> tuple[dict[TopicPartition, int], str]:
        """Those that can be had, and why the others cannot."""
        found: dict[TopicPartition, int] = {}
        why = ""
        if not places:
            return found, why
        try:
            asked: dict[TopicPartition, Any] = dict.fromkeys(places, which)
            answers = self._admin.list_offsets(asked, request_timeout=_RPC_S)
        except KafkaException as exc:
            return found, f"offsets cannot be read: {exc}"
        for place, future in answers.items():
            try:
                found[place] = future.result(timeout=_RPC_S * 2).offset
            except (KafkaException, TimeoutError) as exc:
                why = f"offsets cannot be read: {exc}"
        # A partition without a leader is answered so, not by an error.
        known = {place: offset for place, offset in found.items() if offset >= 0}
        return known, why or "a partition has no leader"
