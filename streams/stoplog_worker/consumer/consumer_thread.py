"""The owner thread: it alone touches the partitions that are this worker's.

Consume from the marker, judge, answer, relay limit updates, flush; one thread, no lock. Faust says which
partitions are ours (:mod:`stoplog_worker.assignment.coordinator` passes that on as commands); what it says belongs to a
generation of the group, and a command of any but the current one is refused.

Writing and answering are two things. Nothing is *written* (changelog, relayed update, table) unless the
partition is ours in the current generation and the group lease surely holds. *Answers* need neither: a
decision is a function of the log, so whoever folds it says the same. A partition is therefore judged and
answered on while a rebalance is under way, while the group cannot be reached, and, once it is another
worker's, until that one says that it judges.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from stoplog.errors import OffsetGone, TopicRecreated, Unavailable, UndecodableRecord
from stoplog.kafka import clients as kafka
from stoplog.kafka.batch_skipper import Steps, drain, unreadable
from stoplog.lanes import DEFAULT_LANE
from stoplog.topics import CHECKS, NODES, UPDATES
from stoplog.wire.heartbeats import RUNNING, PartitionState, decode_heartbeat
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.consumer.peers import Peers
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.checkpoint import Overtaken
from stoplog_worker.partition.partition import Partition
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG, START_EMPTY
from stoplog_worker.restore.restorer import Restored
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import COUNTERS, POLICIES, PartitionStore

_log = logging.getLogger("stoplog.owner")

_POLL_S: Final = 0.02
"""Longest wait for a record: how late a command or an acknowledgment may be noticed."""
_READ: Final = 500
"""Records taken at once, so that a backlog does not keep flushes and commands waiting."""
_FLUSH_S: Final = 0.001
"""Of flushing in a turn, about: how long it holds up a check."""
_REPLAYED: Final = 80_000
"""Checks judged since they were flushed, over all partitions: what a worker replays in about a second."""
_UNFLUSHED: Final = 8
"""Of the clients kept in memory one in so many may wait for a flush, till which it cannot be dropped."""
_CROWDED_S: Final = 0.05
"""Between two looks at the lease while a flush holds up all checks."""
_LAG_S: Final = 1.0
"""Between two looks at how far there is to go, and two commits of how far it went."""
UNWRITTEN_S: Final = 30.0
"""What is judged and may not be written grows; after this long it is dropped, and read from the log again."""

T = TypeVar("T")


class _Holding(NamedTuple):
    """A rebalance under way: what each held partition is still to write up to, and for how long."""

    done: Future[None]
    goals: dict[int, int]
    write_until: float
    drop_at: float

    def end(self) -> None:
        """Nothing more is written."""
        if not self.done.done():
            self.done.set_result(None)


class ConsumerThread(threading.Thread):
    """The thread.

    Args:
        settings: The worker's.
        partitions: How many ``checks`` has.
        changelogs: The changelog topic of each table.
        lease: Extended by the group's heartbeats.
        metrics: What it counts.
        on_dropped: Called in this thread with the stores of partitions that are judged here no longer: the
            next owner has begun, the lease ran out for long, or another worker is ahead. Nothing of them
            is lost, the log has it.
        on_fatal: Called in this thread with what ended it.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        changelogs: dict[str, str],
        lease: Lease,
        metrics: Metrics,
        on_dropped: Callable[[list[PartitionStore]], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="owner", daemon=True)
        self.generation: int | None = None
        """Of the group; ``None`` from a revocation to the next assignment."""
        self._settings = settings
        self._partitions = partitions
        self._lease = lease
        self._metrics = metrics
        self._on_dropped = on_dropped
        self._on_fatal = on_fatal
        # Markers are committed under it, for lag monitors. It has no members: Faust's group assigns.
        self._consumer: Consumer = kafka.worker_consumer(
            settings.bootstrap, f"{settings.app_id}-owner", on_commit=self._committed_are
        )
        self._committed: dict[int, int] = {}
        self._steps = Steps(self._consumer)
        self._kind = _traced() if settings.tracing else Partition
        self._outbox = Producers(settings.bootstrap, settings.send_timeout_ms, changelogs, metrics)
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._peers = Peers(settings.node_id, settings.lane or DEFAULT_LANE)
        self._running: dict[int, Partition] = {}
        self._held: dict[int, Partition] = {}
        """Ours until the rebalance ends that is under way: answered, not written."""
        self._leaving: dict[int, tuple[Partition, float]] = {}
        """Another worker's: answered until that one judges, or until a time."""
        self._holding: _Holding | None = None
        self._unsure_until: float | None = None
        self._updates_paused: set[int] = set()
        self._ends: dict[tuple[str, int], int] = {}
        self._lag: dict[int, int] = {}
        self._lag_at = 0.0
        self._flushing = False
        """Whether flushes that may go on have something to do that waits for nobody."""
        self._stopping = False
        self._ended = False

    # --- from other threads -----------------------------------------------------------------

    def _call(self, command: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._commands.put((command, future))
        if self._ended:
            self._refuse_commands()
        return future

    def start_partition(self, restored: Restored) -> Future[bool]:
        """Judge a restored partition from its marker on; ``False`` if its generation is over."""
        return self._call(lambda: self._start(restored))

    def revoke_all(self, timeout_s: float) -> Future[None]:
        """Write what was judged so far, and then nothing more; answer on. Done after *timeout_s* at last."""
        done: Future[None] = Future()
        self._call(lambda: self._hold(timeout_s, done)).add_done_callback(partial(_pass_on_failure, done))
        return done

    def resume(self, generation: int, partitions: set[int]) -> Future[set[int]]:
        """Write again what is held of *partitions*; none if the generation is over."""
        return self._call(lambda: self._resume(generation, partitions))

    def hand_over(self, partitions: set[int], for_s: float) -> Future[None]:
        """Answer what is held of *partitions* until another worker judges it, *for_s* at most."""
        return self._call(lambda: self._leave(partitions, for_s))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Let go of a partition that is held or left; what was not flushed is forgotten, the log has it."""
        return self._call(lambda: self._release(partition))

    def has_peers(self) -> Future[bool]:
        """Whether there are other workers in this lane, of which one could take over."""
        return self._call(lambda: self._peers.any_alive(monotonic()))

    def set_changelog_ends(self, ends: dict[tuple[str, int], int]) -> None:
        """The next offsets of owned changelogs, as the broker has them."""
        self._call(lambda: self._ends.update(ends))

    def partition_states(self) -> dict[int, PartitionState]:
        """The partitions judged as ours and their lag, for the node's beat."""
        ours = (*tuple(self._running), *tuple(self._held))
        return {p: PartitionState(RUNNING, self._lag.get(p, 0)) for p in ours}

    def stop(self, timeout_s: float) -> list[PartitionStore]:
        """End the thread and return the stores it held; none if it has not ended after *timeout_s*."""

        def end() -> None:
            self._stopping = True

        self._call(end)
        self.join(timeout_s)
        return [] if self.is_alive() else [owned.store for owned in self._judged()]

    # --- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until told to stop."""
        cause = None
        try:
            # A worker that judges nothing yet may be the one to take over.
            kafka.fetch_metadata(self._consumer, (CHECKS, UPDATES, NODES))
            self._outbox.acquaint()
            self._listen()
            while not self._stopping:
                self._turn()
        except Exception as exc:  # noqa: BLE001 - whatever ended it must end the worker, not only this thread
            cause = exc
        self._outbox.close()
        self._consumer.close()
        self._ended = True
        self._refuse_commands()
        if self._holding is not None:
            self._holding.end()
        if cause is not None:
            self._on_fatal(cause)

    def _listen(self) -> None:
        """Hear the beats of others from now on."""
        self._consumer.incremental_assign([TopicPartition(NODES, 0, OFFSET_END)])

    def _turn(self) -> None:
        self._run_commands()
        messages = drain(self._consumer, _READ, 0 if self._flushing else _POLL_S)
        began = monotonic()
        for message in self._steps.sift(messages):
            self._take(message)
        self._outbox.poll()
        now = monotonic()
        # While there is much to judge, flushes have a third of the time, or they would never end.
        until = now + max(_FLUSH_S, (now - began) / 2)
        self._flushing = False
        for owned in tuple(self._running.values()):
            if not self._sure(now):
                break
            self._tend(owned, now, until)
        if self._holding is not None:
            self._write_last(self._holding, now, until)
        if self._leaving:
            self._end_leaving({p for p, (_, until) in self._leaving.items() if now >= until})
        if now - self._lag_at >= _LAG_S:
            self._lag_at = now
            self._measure_lag()
            self._commit()

    def _judged(self) -> list[Partition]:
        leaving = (owned for owned, _ in self._leaving.values())
        return [*self._running.values(), *self._held.values(), *leaving]

    def _sure(self, now: float) -> bool:
        """Whether what runs is surely still ours, and may be written."""
        if self._lease.holds():
            self._unsure_until = None
            return True
        if self._unsure_until is None:
            self._unsure_until = now + UNWRITTEN_S
            self._metrics.lapses.inc()
            _log.warning(
                "the group lease ran out (no heartbeat answered in time): partitions %s are answered and "
                "nothing of them is written until the group answers",
                sorted(self._running),
            )
        elif now >= self._unsure_until:
            _log.warning(
                "the group has not answered for %g s more: partitions %s are dropped until it does; what was "
                "not flushed is read from the log again",
                UNWRITTEN_S,
                sorted(self._running),
            )
            self._unsure_until = None
            self._drop(list(self._running.values()))
        return False

    def _run_commands(self) -> None:
        with suppress(queue.Empty):
            while True:
                command, future = self._commands.get_nowait()
                try:
                    future.set_result(command())
                except BaseException as exc:
                    future.set_exception(exc)
                    raise

    def _refuse_commands(self) -> None:
        """Nobody will run them any more."""
        with suppress(queue.Empty):
            while True:
                _, future = self._commands.get_nowait()
                future.set_exception(Unavailable("the owner thread has ended"))

    # --- partitions come and go -------------------------------------------------------------

    def _start(self, restored: Restored) -> bool:
        if restored.generation != self.generation:
            return False
        store = restored.store
        # Without a marker the counters are recomputed from all that the log still holds.
        default = self._settings.default_policy
        first = Marker(restored.log_start, 0, -1, -1, restored.topic_id, default)
        stored = store.marker()
        self._refuse_remains(restored, stored)
        marker = msgspec.structs.replace(
            stored or first, updates_id=restored.updates_id, changelog_ids=restored.changelog_ids
        )
        owned = self._kind(
            self._settings,
            self._partitions,
            store,
            marker,
            self._outbox,
            self._metrics,
            answer_from=restored.answer_from,
        )
        if stored != marker:
            # The default of the first start holds from now on, be there records or not; so do topics' ids.
            owned.ledger.rewrite((), ())
        self._begin(owned)
        _log.info("partition %s: judging from offset %s", store.partition, marker.next_offset)
        return True

    def _refuse_remains(self, restored: Restored, marker: Marker | None) -> None:
        """See that what is stored and the topics it came from are all still there.

        Raises:
            TopicRecreated: one was deleted and made again, and the others remain.
        """
        store, changelogs = restored.store, self._outbox.changelogs
        if marker is None:
            # The marker is written before the first counter is; and all counters may be gone again since.
            if store.next_offset[COUNTERS] > 0:
                raise TopicRecreated(
                    f"partition {store.partition} has counters and no marker, which was in a topic "
                    f"{changelogs[POLICIES]} that is gone, and the limits with it. If it was deleted on "
                    f"purpose: {REBUILD_FROM_LOG}"
                )
            return
        if marker.topic_id != restored.topic_id:
            raise TopicRecreated(
                f"the counters of partition {store.partition} belong to a topic {CHECKS} that is gone (id "
                f"{marker.topic_id}, now {restored.topic_id}). If it was deleted on purpose: {REBUILD_FROM_LOG}"
            )
        for table, topic in changelogs.items():
            known, now = marker.changelog_ids.get(table), restored.changelog_ids[table]
            if known not in (None, now):
                raise TopicRecreated(
                    f"the {table} of partition {store.partition} were in a topic {topic} that is gone (id "
                    f"{known}, now {now}), and the new one lacks what came before. If it was deleted on "
                    f"purpose: {REBUILD_FROM_LOG}"
                )
        if marker.updates_id not in ("", restored.updates_id):
            raise TopicRecreated(
                f"the limits of partition {store.partition} belong to a topic {UPDATES} that is gone (id "
                f"{marker.updates_id}, now {restored.updates_id}), and updates in the new one would be taken "
                f"for known ones. If it was deleted on purpose: {START_EMPTY}"
            )

    def _begin(self, owned: Partition) -> None:
        partition, ledger = owned.partition, owned.ledger
        self._running[partition] = owned
        owned.begin(monotonic())
        self._consumer.incremental_assign(
            [
                TopicPartition(CHECKS, partition, ledger.next_offset),
                TopicPartition(UPDATES, partition, ledger.applied + 1),
            ]
        )

    def _end(self, owned: Partition) -> None:
        """Judge it no longer."""
        for judged in (self._running, self._held, self._leaving):
            judged.pop(owned.partition, None)
        if owned.partition in self._updates_paused:
            # librdkafka would keep it paused for whoever is assigned it next, here.
            self._resume_updates(owned.partition)
        if self._lag.pop(owned.partition, None) is not None:
            self._metrics.lag.remove(str(owned.partition))
        self._consumer.incremental_unassign(
            [TopicPartition(CHECKS, owned.partition), TopicPartition(UPDATES, owned.partition)]
        )
        for topic in (CHECKS, UPDATES):
            self._steps.forget(topic, owned.partition)

    def _hold(self, timeout_s: float, done: Future[None]) -> None:
        # What is held already has had its last flush: the group may have given it away by now.
        goals = {partition: owned.ledger.next_offset for partition, owned in self._running.items()}
        if self._holding is not None:
            if not self._holding.done.done():
                goals |= self._holding.goals
            self._holding.end()
        self._held.update(self._running)
        self._running.clear()
        self._unsure_until = None
        now = monotonic()
        self._holding = _Holding(done, goals, now + timeout_s, now + UNWRITTEN_S)

    def _write_last(self, holding: _Holding, now: float, until: float) -> None:
        """Move the flushes of what is held on; once done, no more is written."""
        if not holding.done.done():
            for partition, goal in tuple(holding.goals.items()):
                held = self._held.get(partition)
                if held is None or (self._lease.holds() and held.flush_to(goal, until)):
                    del holding.goals[partition]
                elif self._lease.holds():
                    self._flushing |= held.busy
            if not holding.goals or now >= holding.write_until or not self._lease.holds():
                holding.end()
        elif now >= holding.drop_at and self._held:
            _log.warning(
                "a rebalance has not ended for %g s: partitions %s are dropped until it does",
                UNWRITTEN_S,
                sorted(self._held),
            )
            self._drop(list(self._held.values()))

    def _resume(self, generation: int, partitions: set[int]) -> set[int]:
        resumed = partitions & self._held.keys() if generation == self.generation else set()
        for partition in resumed:
            owned = self._running[partition] = self._held.pop(partition)
            owned.begin(monotonic())
        return resumed

    def _leave(self, partitions: set[int], for_s: float) -> None:
        for partition in partitions & self._held.keys():
            self._leaving[partition] = self._held.pop(partition), monotonic() + for_s

    def _end_leaving(self, partitions: set[int]) -> None:
        ended = [self._leaving[partition][0] for partition in partitions & self._leaving.keys()]
        if ended:
            self._drop(ended)

    def _release(self, partition: int) -> PartitionStore | None:
        owned = self._held.get(partition) or self._leaving.get(partition, (None,))[0]
        if owned is None:
            return None
        self._end(owned)
        return owned.store

    def _drop(self, dropped: list[Partition]) -> None:
        for owned in dropped:
            self._end(owned)
        self._on_dropped([owned.store for owned in dropped])

    # --- records ----------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            self._consumer_error(error, message)
            return
        if message.topic() == NODES:
            self._take_beat(message)
            return
        partition = message.partition()
        owned = self._running.get(partition) or self._held.get(partition)
        if owned is None:
            if partition not in self._leaving:
                return
            owned, _ = self._leaving[partition]
        if message.topic() != UPDATES:
            owned.take(message)
            return
        owned.take_update(message)
        if owned.relay.full and partition not in self._updates_paused:
            self._consumer.pause([TopicPartition(UPDATES, partition)])
            self._updates_paused.add(partition)

    def _take_beat(self, message: Any) -> None:
        with suppress(UndecodableRecord):
            self._end_leaving(self._peers.on_heartbeat(decode_heartbeat(message.value()), monotonic()))

    def _consumer_error(self, error: Any, message: Any) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            return
        if unreadable(message):
            partition = message.partition()
            if message.topic() != NODES and (partition in self._running or partition in self._held):
                reason = f"the batch that begins here cannot be unpacked: {error.str()}"
                self._outbox.dead_letter(message, reason)
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if message.topic() == NODES:  # beats of the past say nothing
                self._consumer.incremental_unassign([TopicPartition(NODES, 0)])
                self._listen()
                return
            if message.topic() == UPDATES:  # it is compacted, never cut
                raise TopicRecreated(
                    f"{UPDATES}[{message.partition()}] does not hold the offset to go on from "
                    f"({error.str()}): the topic was deleted and made again. If that was meant: {START_EMPTY}"
                )
            raise OffsetGone(
                f"{message.topic()}[{message.partition()}] does not hold the offset to go on from "
                f"({error.str()}): the worker was away for longer than the topic keeps records, or the topic "
                f"was cut. To go on with what the log still holds: {REBUILD_FROM_LOG}"
            )
        if error.fatal():
            raise KafkaException(error)
        _log.warning("reading %s[%s]: %s", message.topic(), message.partition(), error.str())

    def _tend(self, owned: Partition, now: float, until: float) -> None:
        for table in self._outbox.changelogs:
            end = self._ends.pop((table, owned.partition), None)
            if end is not None:
                owned.look_at_end(table, end)
        keep = self._settings.cached_clients // len(self._running)
        crowded = owned.ledger.over_budget(keep)
        limits = _REPLAYED // len(self._running), keep // _UNFLUSHED
        try:
            marker = owned.tend(now, until, *limits)
            # Only what is flushed can be dropped from memory: checks wait for that, for once.
            while crowded and owned.busy and self._sure(now := monotonic()):
                marker = owned.tend(now, now + _CROWDED_S, *limits)
        except Overtaken as exc:
            _log.warning("%s; it is dropped here and restored", exc)
            self._drop([owned])
            return
        if owned.partition in self._updates_paused and not owned.relay.full:
            self._resume_updates(owned.partition)
        if marker is not None:
            owned.ledger.evict(keep)
        self._flushing |= owned.busy

    def _resume_updates(self, partition: int) -> None:
        self._consumer.resume([TopicPartition(UPDATES, partition)])
        self._updates_paused.discard(partition)

    def _commit(self) -> None:
        """Commit the markers, for lag monitors; what has failed is tried again."""
        markers = {
            partition: owned.ledger.checkpointed.next_offset for partition, owned in self._running.items()
        }
        places = [
            TopicPartition(CHECKS, p, end) for p, end in markers.items() if self._committed.get(p) != end
        ]
        if places and self._lease.holds():
            with suppress(KafkaException):
                self._consumer.commit(offsets=places, asynchronous=True)

    def _committed_are(self, error: Any, places: list[TopicPartition]) -> None:
        if error is None:
            self._committed |= {place.partition: place.offset for place in places if place.error is None}

    def _measure_lag(self) -> None:
        for partition, owned in (*self._running.items(), *self._held.items()):
            _, end = self._consumer.get_watermark_offsets(TopicPartition(CHECKS, partition), cached=True)
            self._lag[partition] = max(0, end - owned.ledger.next_offset) if end >= 0 else 0
            self._metrics.lag.labels(str(partition)).set(self._lag[partition])
        self._metrics.cached.set(sum(len(owned.ledger.states) for owned in self._judged()))


def _traced() -> type[Partition]:
    """The partition that tells of its records by OpenTelemetry.

    Raises:
        SettingsError: the packages are not there.
    """
    from stoplog_worker.partition.tracing import TracedPartition

    return TracedPartition


def _pass_on_failure(done: Future[None], called: Future[None]) -> None:
    error = called.exception()
    if error is not None:
        done.set_exception(error)
