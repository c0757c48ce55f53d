"""The consumer thread: it alone touches the partitions that this worker processes.

It consumes each partition from its marker on. It judges and answers the records, relays limit updates and
writes checkpoints. One thread does all of it, so nothing needs a lock.

Faust assigns the partitions, and :mod:`stoplog_worker.assignment.takeover` passes the assignments on as
commands. An assignment belongs to a generation of the group. A command that makes the thread write again
names its generation. The thread refuses it unless that generation is current.

Writing and answering follow different rules. The worker *writes* (changelogs, relayed updates, tables) only
while it owns the partition in the current generation and the group lease holds. It *answers* without either.
A decision is a function of the log, so every worker that judges a record gives the same answer. The worker
therefore answers during a rebalance and while the group cannot be reached. After a partition has moved, it
answers until the new owner's heartbeat arrives.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import OFFSET_END, KafkaError, KafkaException, TopicPartition

from stoplog.errors import OffsetGone, TopicRecreated, UndecodableRecord
from stoplog.kafka import clients as kafka
from stoplog.kafka.batch_skipper import BatchSkipper, drain, is_unreadable
from stoplog.lanes import DEFAULT_LANE
from stoplog.topics import CHECKS, NODES, UPDATES
from stoplog.wire.heartbeats import RUNNING, PartitionState, decode_heartbeat
from stoplog.wire.partition_count import PartitionCount
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.consumer.commands import CommandQueue
from stoplog_worker.consumer.partition_set import PartitionSet
from stoplog_worker.consumer.peers import Peers
from stoplog_worker.consumer.progress import ProgressReporter
from stoplog_worker.consumer.revocation import Revocation
from stoplog_worker.consumer.startup_checks import check_topics
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.changelog_repair import Overtaken
from stoplog_worker.partition.key_agreement import KeyAgreement
from stoplog_worker.partition.live_workers import LiveWorkers
from stoplog_worker.partition.partition import Partition
from stoplog_worker.partition.phase import PartitionPhase
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG, START_EMPTY
from stoplog_worker.restore.restorer import Restored
from stoplog_worker.settings import Settings
from stoplog_worker.state.expiry import PASS_S
from stoplog_worker.state.store import PartitionStore

if TYPE_CHECKING:
    from stoplog_worker.partition.tracing import PartitionTracing

_log = logging.getLogger("stoplog.consumer")

_POLL_S: Final = 0.02
"""Longest wait for a record, and so the longest delay of a command or an acknowledgment."""
_MAX_RECORDS: Final = 500
"""Records consumed in one turn, so that a backlog does not delay checkpoints and commands."""
_REST_S: Final = 0.02
"""Seconds between two looks at a partition at rest. A look takes 3 µs, so 64 of them would cost a turn with
one small record more than the record."""
_LAPSE_TOLD_S: Final = 2.0
"""Seconds without the lease before the log states it. A busy machine may miss it for a moment."""
_CHECKPOINT_S: Final = 0.001
"""Seconds of checkpoint work in one turn when idle; a check waits about this long."""
_MAX_REPLAY: Final = 80_000
"""Checks judged since the last checkpoints, over all partitions: a worker replays them in about a second."""
_DIRTY_SHARE: Final = 8
"""At most one in this many clients in memory may be dirty. A dirty client cannot be evicted."""
_OVER_BUDGET_S: Final = 0.05
"""Seconds between two looks at the lease while a checkpoint holds up all checks."""
_REPORT_S: Final = 1.0
"""Seconds between two measurements of the lag, and between two commits."""
_END_S: Final = 2.0
"""Seconds to wait for the broker's answer about the end of a partition, while their number grows."""
UNWRITTEN_S: Final = 30.0
"""Seconds after which partitions that may not be written are dropped: their dirty state grows meanwhile."""


class ConsumerThread(threading.Thread):
    """The thread, and the commands that other threads give it.

    Args:
        settings: The worker's settings.
        count: The number of partitions.
        changelogs: The changelog topic of each table.
        lease: The group lease.
        metrics: The worker's metrics.
        on_dropped: Called in this thread with the stores of dropped partitions: the new owner has begun, the
            lease stayed lost, or another worker is ahead. Nothing is lost, because the log has everything.
        on_fatal: Called in this thread with the exception that ended it.
        audited: Whether there is a topic for the audit of limit updates.
        unwritten_s: Seconds after which partitions that may not be written are dropped.
        expiry_pass_s: Seconds between two passes over a partition's states, which remove expired ones.
    """

    def __init__(
        self,
        settings: Settings,
        count: PartitionCount,
        changelogs: dict[str, str],
        lease: Lease,
        metrics: Metrics,
        on_dropped: Callable[[list[PartitionStore]], None],
        on_fatal: Callable[[BaseException], None],
        *,
        audited: bool = False,
        unwritten_s: float = UNWRITTEN_S,
        expiry_pass_s: float = PASS_S,
    ) -> None:
        super().__init__(name="consumer", daemon=True)
        self.generation: int | None = None
        """The group's generation; ``None`` from a revocation to the next assignment."""
        self._settings = settings
        self._partition_count = count
        self._audited = audited
        self._unwritten_s = unwritten_s
        self._expiry_pass_s = expiry_pass_s
        self._lease = lease
        self._metrics = metrics
        self._on_dropped = on_dropped
        self._on_fatal = on_fatal
        self._progress = ProgressReporter(metrics)
        # Lag monitors read the offsets committed under this group. It has no members: Faust's group assigns.
        self._consumer = kafka.worker_consumer(
            settings.connection,
            f"{settings.app_id}-owner",
            on_commit=self._progress.on_commit,
            report_end=False,
        )
        self._skipper = BatchSkipper(self._consumer)
        self._tracing = _load_tracing() if settings.tracing else None
        self._producers = Producers(settings.connection, settings.send_timeout_ms, changelogs, metrics)
        self._commands = CommandQueue()
        self._peers = Peers(settings.node_id, settings.lane or DEFAULT_LANE)
        self._workers = LiveWorkers(settings.node_id)
        self._keys = KeyAgreement(settings.keys, self._workers)
        self._partitions = PartitionSet()
        self._revocation: Revocation | None = None
        self._lapse_ends_at: float | None = None
        """While the lease is lost: when the active partitions are dropped, monotonic seconds."""
        self._lapse_told = False
        self._paused: set[tuple[str, int]] = set()
        """Topics and partitions that are not consumed for a while."""
        self._changelog_ends: dict[tuple[str, int], int] = {}
        self._reported_at = 0.0
        self._rest_until = 0.0
        """When partitions at rest are looked at again, monotonic seconds."""
        self._checkpoint_ready = False
        """Whether a checkpoint can go on without an acknowledgment, so that the next turn must not wait."""
        self._stopping = False

    # --- called by other threads ---

    def start_partition(self, restored: Restored) -> Future[bool]:
        """Process a restored partition from its marker on; ``False`` if its generation is over."""
        return self._commands.call(lambda: self._start(restored))

    def revoke_all(self, timeout_s: float) -> Future[None]:
        """Write a last checkpoint of every partition and nothing after it, but go on answering.

        The future completes when nothing more is written, *timeout_s* later at the latest.
        """
        done: Future[None] = Future()
        command = self._commands.call(lambda: self._revoke(timeout_s, done))
        command.add_done_callback(partial(_pass_on_failure, done))
        return done

    def resume(self, generation: int, partitions: set[int]) -> Future[set[int]]:
        """Write revoked *partitions* again; return which. None of them if *generation* is over."""
        return self._commands.call(lambda: self._resume(generation, partitions))

    def hand_over(self, partitions: set[int], for_s: float) -> Future[None]:
        """Answer revoked *partitions* until their new owner's heartbeat arrives, for *for_s* at most."""
        return self._commands.call(lambda: self._partitions.hand_over(partitions, monotonic() + for_s))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Stop processing a partition that is not active; return its store, or ``None`` if it has none here.

        State that is in no checkpoint is dropped. The log has it.
        """
        return self._commands.call(lambda: self._release(partition))

    def has_peers(self) -> Future[bool]:
        """Return whether another worker of this lane could take over."""
        return self._commands.call(lambda: self._peers.any_alive(monotonic()))

    def drained(self) -> Future[bool]:
        """Return whether everything in the log of the active partitions is decided, and in checkpoints."""
        return self._commands.call(self._is_drained)

    def set_changelog_ends(self, ends: dict[tuple[str, int], int]) -> None:
        """Pass on the next offsets of changelogs, by table and partition, as the broker reports them."""
        self._commands.call(lambda: self._changelog_ends.update(ends))

    def partition_states(self) -> dict[int, PartitionState]:
        """Return the partitions that this worker owns, and their lag, for its heartbeat."""
        owned = self._partitions.in_phase(PartitionPhase.ACTIVE, PartitionPhase.REVOKING)
        lag = self._progress.lag
        return {one.number: PartitionState(RUNNING, lag.get(one.number, 0)) for one in owned}

    def partitions_with_holds(self) -> list[int]:
        """Return the partitions that this worker owns and that grant holds, for its heartbeat."""
        owned = self._partitions.in_phase(PartitionPhase.ACTIVE, PartitionPhase.REVOKING)
        return sorted(one.number for one in owned if one.gate.open)

    def unjudged_partitions(self) -> list[int]:
        """Return the partitions with recent costs that no limit judged, for its heartbeat."""
        owned = self._partitions.in_phase(PartitionPhase.ACTIVE, PartitionPhase.REVOKING)
        return sorted(one.number for one in owned if one.unjudged)

    def stop(self, timeout_s: float) -> list[PartitionStore]:
        """End the thread and return the stores it held; none if it has not ended after *timeout_s*."""

        def end() -> None:
            self._stopping = True

        self._commands.call(end)
        self.join(timeout_s)
        return [] if self.is_alive() else [partition.store for partition in self._partitions.all()]

    # --- the loop ---

    def run(self) -> None:
        """Take turns until the thread is stopped."""
        cause = None
        try:
            # Without delay at the first assignment: this worker may have to take over at any time.
            kafka.fetch_metadata(self._consumer, (CHECKS, UPDATES, NODES))
            self._producers.fetch_metadata()
            self._consume_heartbeats()
            while not self._stopping:
                self._turn()
        except Exception as exc:  # noqa: BLE001 - every exception must end the worker, not only this thread
            cause = exc
        self._producers.close()
        self._consumer.close()
        self._commands.close()
        if self._revocation is not None:
            self._revocation.end()
        if cause is not None:
            self._on_fatal(cause)

    def _consume_heartbeats(self) -> None:
        self._consumer.incremental_assign([TopicPartition(NODES, 0, OFFSET_END)])

    def _turn(self) -> None:
        self._commands.run_pending()
        messages = drain(self._consumer, _MAX_RECORDS, 0 if self._checkpoint_ready else _POLL_S)
        began = monotonic()
        for message in self._skipper.keep(messages):
            self._take(message)
        self._producers.poll()
        now = monotonic()
        # Under load, writing gets a third of the time; otherwise checkpoints would never end.
        until = now + max(_CHECKPOINT_S, (now - began) / 2)
        self._checkpoint_ready = False
        self._write_active(now, until)
        if self._revocation is not None:
            self._write_revoking(self._revocation, now, until)
        if self._partitions.handing_over:
            self._drop(one for one in self._partitions.handing_over if now >= one.answer_until)
        if now - self._reported_at >= _REPORT_S:
            self._reported_at = now
            self._report()

    def _write_active(self, now: float, until: float) -> None:
        """Advance everything that active partitions write, as long as the lease holds."""
        active = self._partitions.active
        looks_at_all = now >= self._rest_until
        if looks_at_all:
            self._rest_until = now + _REST_S
        for partition in active:
            if partition.rests and not looks_at_all:
                continue
            if not self._lease.holds():
                self._on_lease_lost(active, now)
                return
            self._end_lapse()
            self._advance(partition, now, until, len(active))

    def _end_lapse(self) -> None:
        self._lapse_ends_at = None
        if self._lapse_told:
            self._lapse_told = False
            _log.info("the group answers again: checkpoints continue")

    def _on_lease_lost(self, active: tuple[Partition, ...], now: float) -> None:
        """Note that *active* partitions may not be written, and drop them if that lasts."""
        numbers = sorted(partition.number for partition in active)
        if self._lapse_ends_at is None:
            self._lapse_ends_at = now + self._unwritten_s
            self._metrics.lapses.inc()
        if now >= self._lapse_ends_at:
            _log.warning(
                "the group has not answered for another %g s: dropping partitions %s until it does. State "
                "that is in no checkpoint will be read from the log again",
                self._unwritten_s,
                numbers,
            )
            self._lapse_ends_at = None
            self._drop(active)
        elif not self._lapse_told and self._lease.over_for_s() >= _LAPSE_TOLD_S:
            self._lapse_told = True
            _log.warning(
                "the group lease ran out: no heartbeat was answered in time. Partitions %s are answered, but "
                "not written, until the group answers",
                numbers,
            )

    def _advance(self, partition: Partition, now: float, until: float, active: int) -> None:
        for table in self._producers.changelogs:
            end = self._changelog_ends.pop((table, partition.number), None)
            if end is not None:
                partition.note_changelog_end(table, end)
        max_clients = self._settings.cached_clients // active
        over_budget = partition.ledger.over_budget(max_clients)
        limits = _MAX_REPLAY // active, max_clients // _DIRTY_SHARE
        try:
            marker = partition.advance(now, until, *limits)
            # Memory is short, and dirty state cannot be evicted: for once, checks wait for the checkpoint.
            while over_budget and partition.busy and self._lease.holds():
                now = monotonic()
                marker = partition.advance(now, now + _OVER_BUDGET_S, *limits)
        except Overtaken as exc:
            _log.warning("%s; dropping the partition and restoring it", exc)
            self._drop([partition])
            return
        self._pause(CHECKS, partition.number, partition.audit.full)
        self._pause(UPDATES, partition.number, partition.relay.full)
        if marker is not None:
            partition.ledger.evict(max_clients)
        self._checkpoint_ready |= partition.busy

    def _write_revoking(self, revocation: Revocation, now: float, until: float) -> None:
        """Advance the last checkpoints, and drop revoked partitions if the rebalance does not end."""
        if revocation.writing:
            self._checkpoint_ready |= revocation.advance(self._partitions, self._lease, now, until)
        elif revocation.overdue(now):
            revoking = self._partitions.in_phase(PartitionPhase.REVOKING)
            if revoking:
                _log.warning(
                    "a rebalance has not ended for %g s: dropping partitions %s until it does",
                    self._unwritten_s,
                    sorted(partition.number for partition in revoking),
                )
                self._drop(revoking)

    def _report(self) -> None:
        active = self._partitions.active
        revoking = self._partitions.in_phase(PartitionPhase.REVOKING)
        self._progress.measure_lag(self._consumer, (*active, *revoking))
        self._metrics.held.set(sum(partition.relay.held for partition in active))
        self._metrics.cached.set(sum(len(one.ledger.states) for one in self._partitions.all()))
        if self._lease.holds():
            self._progress.commit(self._consumer, active)

    # --- partitions ---

    def _start(self, restored: Restored) -> bool:
        if restored.generation != self.generation:
            return False
        store = restored.store
        stored = store.marker()
        check_topics(restored, stored, self._producers.changelogs)
        # Without a marker, the counters are computed from everything that the log still holds.
        default = self._settings.default_policy
        first = Marker(restored.log_start, 0, -1, -1, restored.topic_id, default)
        marker = msgspec.structs.replace(
            stored or first, updates_id=restored.updates_id, changelog_ids=restored.changelog_ids
        )
        partition = Partition(
            self._settings,
            self._partition_count,
            store,
            marker,
            self._producers,
            self._metrics,
            keys=self._keys,
            workers=self._workers,
            answer_from=restored.answer_from,
            audited=self._audited,
            tracing=self._tracing,
            expiry_pass_s=self._expiry_pass_s,
        )
        if stored != marker:
            # The first start's default limits and the topics' ids hold from now on, even without records.
            partition.ledger.rewrite((), ())
        self._partitions.add(partition, monotonic())
        self._consumer.incremental_assign(
            [
                TopicPartition(CHECKS, partition.number, partition.ledger.next_offset),
                TopicPartition(UPDATES, partition.number, partition.ledger.applied + 1),
            ]
        )
        _log.info("partition %s: judging from offset %s", partition.number, marker.next_offset)
        return True

    def _revoke(self, timeout_s: float, done: Future[None]) -> None:
        # A partition that was revoked before has had its last checkpoint: the group may have moved it by now.
        goals = self._partitions.revoke()
        if self._revocation is not None:
            goals |= self._revocation.unfinished_goals()
            self._revocation.end()
        self._lapse_ends_at = None
        now = monotonic()
        self._revocation = Revocation(
            done, goals, write_until=now + timeout_s, drop_at=now + self._unwritten_s
        )

    def _resume(self, generation: int, partitions: set[int]) -> set[int]:
        return self._partitions.resume(partitions, monotonic()) if generation == self.generation else set()

    def _release(self, number: int) -> PartitionStore | None:
        partition = self._partitions.by_number.get(number)
        if partition is None or partition.phase is PartitionPhase.ACTIVE:
            return None
        self._remove(partition)
        return partition.store

    def _is_drained(self) -> bool:
        drained, now = True, monotonic()
        for partition in self._partitions.active:
            # First, so that the ends include all that this worker writes while the number grows.
            drained &= partition.gate.rest(now)
            try:
                ends = [self._end(topic, partition.number) for topic in (CHECKS, UPDATES)]
            except KafkaException:  # the worker soon looks again
                return False
            drained &= partition.drained(*ends)
        return drained

    def _end(self, topic: str, number: int) -> int:
        _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, number), _END_S)
        return end

    def _drop(self, partitions: Iterable[Partition]) -> None:
        dropped = list(partitions)
        for partition in dropped:
            self._remove(partition)
        if dropped:
            self._on_dropped([partition.store for partition in dropped])

    def _remove(self, partition: Partition) -> None:
        number = partition.number
        self._partitions.remove(partition)
        for topic in (CHECKS, UPDATES):
            # librdkafka would keep it paused for the next assignment.
            self._pause(topic, number, False)
        self._progress.forget(number)
        self._consumer.incremental_unassign([TopicPartition(CHECKS, number), TopicPartition(UPDATES, number)])
        for topic in (CHECKS, UPDATES):
            self._skipper.forget(topic, number)

    # --- records ---

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            self._handle_error(error, message)
            return
        topic = message.topic()
        if topic == NODES:
            self._take_heartbeat(message)
            return
        partition = self._partitions.by_number.get(message.partition())
        if partition is None:
            return
        if topic != UPDATES:
            partition.take(message)
            return
        partition.take_update(message)
        self._pause(UPDATES, partition.number, partition.relay.full)

    def _pause(self, topic: str, number: int, paused: bool) -> None:
        """Consume the partition *number* of *topic* only if it is not *paused*."""
        place = topic, number
        if paused == (place in self._paused):
            return
        if paused:
            self._consumer.pause([TopicPartition(*place)])
            self._paused.add(place)
        else:
            self._consumer.resume([TopicPartition(*place)])
            self._paused.discard(place)

    def _take_heartbeat(self, message: Any) -> None:
        with suppress(UndecodableRecord):
            heartbeat, now = decode_heartbeat(message.value()), monotonic()
            self._workers.on_heartbeat(heartbeat, now)
            self._drop(self._partitions.handed_over(self._peers.on_heartbeat(heartbeat, now)))

    def _handle_error(self, error: Any, message: Any) -> None:
        code, topic, number = error.code(), message.topic(), message.partition()
        if is_unreadable(message):
            partition = self._partitions.by_number.get(number)
            owned = partition is not None and partition.phase is not PartitionPhase.HANDING_OVER
            if topic != NODES and owned:
                reason = f"the batch that begins here cannot be decompressed: {error.str()}"
                self._producers.dead_letter(message, reason)
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if topic == NODES:  # old heartbeats are of no use
                self._consumer.incremental_unassign([TopicPartition(NODES, 0)])
                self._consume_heartbeats()
                return
            raise _offset_gone(topic, number, error)
        if error.fatal():
            raise KafkaException(error)
        _log.warning("consuming %s[%s]: %s", topic, number, error.str())


def _offset_gone(topic: str, number: int, error: Any) -> TopicRecreated | OffsetGone:
    """Return the exception for a partition that no longer holds the next offset."""
    missing = f"{topic}[{number}] does not hold the next offset ({error.str()})"
    if topic == UPDATES:  # compaction never removes the next offset
        return TopicRecreated(
            f"{missing}: the topic was deleted and created again. If that was intended: {START_EMPTY}"
        )
    return OffsetGone(
        f"{missing}: the worker was away for longer than the topic's retention, or records were deleted. To "
        f"continue with what the log still holds: {REBUILD_FROM_LOG}"
    )


def _load_tracing() -> PartitionTracing:
    """Return the instrumentation of OpenTelemetry, which is imported only when tracing is on."""
    from stoplog_worker.partition.tracing import PartitionTracing

    return PartitionTracing()


def _pass_on_failure(done: Future[None], command: Future[None]) -> None:
    error = command.exception()
    if error is not None:
        done.set_exception(error)
