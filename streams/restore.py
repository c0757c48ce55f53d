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
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from streams import kafka
from streams.contract.errors import SluiceError, StateError, TopicError, Unavailable
from streams.contract.topics import CHECKS, describe
from streams.lane import Copier
from streams.metrics import Metrics
from streams.reader import Reader
from streams.store import TABLES, PartitionStore, Record
from streams.sweep import Sweeper

_log = logging.getLogger("sluice.restore")

_POLL_S: Final = 0.05
_LOOK_S: Final = 1.0
"""How often the ends of owned changelogs are looked at for foreign writes."""
_RPC_S: Final = 5.0
_RETRY_S: Final = 0.5


class Restored(NamedTuple):
    """A partition whose store holds all that its changelogs held when it was asked for.

    ``topic_id`` is that of ``checks``, and ``log_start`` the first offset that its partition still holds.
    Checks below ``answer_from`` are not to be answered: a further lane, which may be new and have much to
    catch up with, leaves what came before it to the default one.
    """

    generation: int
    store: PartitionStore
    topic_id: str
    log_start: int
    answer_from: int = 0


class _Followed:
    """A partition being read; ``ends`` are the offsets to reach, while it is to become active.

    ``copied``: the lane is new, and what the default lane had is in its changelogs.
    """

    def __init__(self, store: PartitionStore) -> None:
        self.store = store
        self.sweeper = Sweeper(store)
        self.generation: int | None = None
        self.ends: dict[str, int] = {}
        self.copied = False
        self.not_before = 0.0


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
        self._reader = Reader(bootstrap)
        self._admin = kafka.admin(bootstrap)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._followed: dict[int, _Followed] = {}
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
        """End the thread and close what it holds."""

        def end() -> None:
            self._stopping = True

        self._commands.put(end)
        self.join()

    # --- the thread ---

    def run(self) -> None:
        """Read until told to stop."""
        try:
            while not self._stopping:
                self._run_commands()
                self._read()
                self._look()
        except (SluiceError, KafkaException, OSError) as exc:
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
        self._followed[store.partition] = _Followed(store)
        self._reader.add(
            [TopicPartition(self._topics[table], store.partition, store.next[table]) for table in TABLES]
        )

    def _activate(self, generation: int | None, partition: int) -> None:
        followed = self._followed.get(partition)
        if followed is not None:
            followed.generation, followed.ends = generation, {}
            self._hand_over(followed)

    def _release(self, partition: int) -> PartitionStore | None:
        followed = self._followed.pop(partition, None)
        if followed is None:
            return None
        self._reader.remove([TopicPartition(self._topics[table], partition) for table in TABLES])
        if self._copier is not None:
            self._copier.drop(partition)
        return followed.store

    def _hand_over(self, followed: _Followed) -> None:
        """Give the store away if it is asked for and has reached its ends."""
        store, generation = followed.store, followed.generation
        if generation is None or monotonic() < followed.not_before:
            return
        try:
            if not followed.ends:
                # Asked for after the assignment: what the owner before flushed as it let go lies below.
                followed.ends = self._ends_of(store)
            if any(store.next[table] < end for table, end in followed.ends.items()):
                return
            if self._copier is not None and not followed.copied and store.marker() is None:
                if self._copier.advance(store.partition):
                    followed.copied, followed.ends = True, {}  # what was copied is to be read
                return
            topic_id = str(describe(self._admin, [CHECKS])[CHECKS].topic_id)
            place = TopicPartition(CHECKS, store.partition)
            log_start = self._offsets([place], OffsetSpec.earliest())[place]  # type: ignore[no-untyped-call]
            answer_from = 0
            if self._copier is not None:
                answer_from = self._offsets([place], OffsetSpec.latest())[place]  # type: ignore[no-untyped-call]
        except (Unavailable, TopicError) as exc:
            _log.warning("partition %s cannot be restored yet: %s", store.partition, exc)
            followed.not_before = monotonic() + _RETRY_S
            return
        self._release(store.partition)
        self._on_restored(Restored(generation, store, topic_id, log_start, answer_from))

    def _ends_of(self, store: PartitionStore) -> dict[str, int]:
        found = self._ends({store.partition})
        ends = {table: found[table, store.partition] for table in TABLES}
        for table, end in ends.items():
            if store.next[table] > end:
                raise StateError(
                    f"the local {table} of partition {store.partition} have read their changelog to offset "
                    f"{store.next[table]} and it ends at {end}: the topic {self._topics[table]} was "
                    f"deleted or cut. If that was meant, remove this worker's tables and start it again"
                )
        return ends

    def _read(self) -> None:
        messages, ends = self._reader.take(_POLL_S)
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
        now, among = monotonic(), len(self._followed)
        for followed in list(self._followed.values()):
            self._metrics.swept.inc(followed.sweeper.advance(now, among))
            self._hand_over(followed)

    def _look(self) -> None:
        now = monotonic()
        if not self._watched or now - self._looked < _LOOK_S:
            return
        self._looked = now
        with suppress(Unavailable):  # the owner's own writes will tell, or its lease runs out
            self._on_ends(self._ends(self._watched))

    def _ends(self, partitions: set[int]) -> dict[tuple[str, int], int]:
        places = [TopicPartition(topic, p) for topic in self._topics.values() for p in partitions]
        found = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {(self._tables[place.topic], place.partition): end for place, end in found.items()}

    def _offsets(self, places: list[TopicPartition], which: OffsetSpec) -> dict[TopicPartition, int]:
        try:
            asked: dict[TopicPartition, Any] = dict.fromkeys(places, which)
            answers = self._admin.list_offsets(asked, request_timeout=_RPC_S)
            found = {place: future.result(timeout=_RPC_S * 2).offset for place, future in answers.items()}
        except (KafkaException, TimeoutError) as exc:
            # A client that asked a leader before its broker restarted goes on asking with the old epoch.
            self._admin = kafka.admin(self._servers)
            raise Unavailable(f"offsets cannot be read: {exc}") from exc
        if min(found.values(), default=0) < 0:
            # A partition without a leader is answered so, not by an error.
            raise Unavailable("offsets cannot be read: a partition has no leader")
        return found
