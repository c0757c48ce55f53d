"""The owner thread: it alone touches the partitions that are this worker's.

Consume from the marker, judge, answer, relay limit updates, flush; one thread, no lock. Faust says which
partitions are ours (:mod:`streams.ownership` passes that on as commands); what it says belongs to a
generation of the group, and a command of any but the current one is refused. Nothing is judged, answered
or written unless the group lease surely holds.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams import kafka
from streams.contract.errors import OffsetGone, TopicRecreated, Unavailable
from streams.contract.records import PartitionBeat
from streams.contract.topics import CHECKS, UPDATES
from streams.contract.unpacking import Steps, unreadable
from streams.flush import Overtaken
from streams.lease import Lease
from streams.ledger import Marker
from streams.metrics import Metrics
from streams.outbox import Outbox
from streams.owned import Owned
from streams.restore import Restored
from streams.settings import Settings
from streams.store import PartitionStore

_log = logging.getLogger("sluice.owner")

START_AFRESH: Final = (
    "stop all workers, delete their tables and the topics of the changelogs, run `sluice topics create` and "
    "start them again: counters are recomputed from the log, limits taken from limit-updates"
)

_POLL_S: Final = 0.02
"""Longest wait for a record: how late a command or an acknowledgment may be noticed."""
_READ: Final = 500
"""Records taken at once, so that a backlog does not keep flushes and commands waiting."""
_LAG_S: Final = 1.0

T = TypeVar("T")


class Owner(threading.Thread):
    """The thread.

    Args:
        settings: The worker's.
        partitions: How many ``checks`` has.
        changelogs: The changelog topic of each table.
        lease: Extended by the group's heartbeats.
        metrics: What it counts.
        on_lapse: Called in this thread with the stores of partitions dropped because the lease ran out or
            another worker is ahead; nothing of them is lost, the log has it.
        on_fatal: Called in this thread with what ended it.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        changelogs: dict[str, str],
        lease: Lease,
        metrics: Metrics,
        on_lapse: Callable[[list[PartitionStore]], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="owner", daemon=True)
        self.generation: int | None = None
        """Of the group; ``None`` from a revocation to the next assignment."""
        self._settings = settings
        self._partitions = partitions
        self._lease = lease
        self._metrics = metrics
        self._on_lapse = on_lapse
        self._on_fatal = on_fatal
        # Markers are committed under it, for lag monitors. It has no members: Faust's group assigns.
        self._consumer: Consumer = kafka.consumer(settings.bootstrap, f"{settings.app_id}-owner")
        self._steps = Steps(self._consumer)
        self._outbox = Outbox(settings.bootstrap, settings.send_timeout_ms, changelogs, metrics)
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._running: dict[int, Owned] = {}
        self._parked: dict[int, Owned] = {}
        self._updates_paused: set[int] = set()
        self._ends: dict[tuple[str, int], int] = {}
        self._lag: dict[int, int] = {}
        self._lag_at = 0.0
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

    def park_all(self, timeout_s: float) -> Future[None]:
        """Flush and stop all partitions, keeping them in memory; a flush is given *timeout_s*."""
        return self._call(lambda: self._park(timeout_s))

    def resume(self, generation: int, partitions: set[int]) -> Future[set[int]]:
        """Go on with those that are parked, as if nothing had been; none if the generation is over."""
        return self._call(lambda: self._resume(generation, partitions))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Let go of a parked partition; what was not flushed is forgotten, the log has it."""
        return self._call(lambda: self._release(partition))

    def changelog_ends(self, ends: dict[tuple[str, int], int]) -> None:
        """The next offsets of owned changelogs, as the broker has them."""
        self._call(lambda: self._ends.update(ends))

    def beats(self) -> dict[int, PartitionBeat]:
        """The running partitions and their lag, for the node's beat."""
        return {p: PartitionBeat("running", self._lag.get(p, 0)) for p in tuple(self._running)}

    def stop(self, timeout_s: float) -> list[PartitionStore]:
        """Flush for up to *timeout_s*, end the thread, and return the stores it held."""

        def end() -> None:
            self._park(timeout_s)
            self._stopping = True

        with suppress(Unavailable):  # it has ended already
            self._call(end).result(timeout_s * 2)
        self.join(timeout_s)
        return [owned.store for owned in (*self._running.values(), *self._parked.values())]

    # --- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until told to stop."""
        cause = None
        try:
            while not self._stopping:
                self._turn()
        except Exception as exc:  # noqa: BLE001 - whatever ended it must end the worker, not only this thread
            cause = exc
        self._outbox.close()
        self._consumer.close()
        self._ended = True
        self._refuse_commands()
        if cause is not None:
            self._on_fatal(cause)

    def _turn(self) -> None:
        self._run_commands()
        for message in self._steps.sift(kafka.drain(self._consumer, _READ, _POLL_S)):
            if not self._sure():
                break
            self._take(message)
        self._outbox.poll()
        now = monotonic()
        for owned in tuple(self._running.values()):
            if self._sure():
                self._tend(owned, now)
        if now - self._lag_at >= _LAG_S:
            self._lag_at = now
            self._measure_lag()

    def _sure(self) -> bool:
        """Whether the partitions are surely still ours; if not, they are dropped."""
        if self._lease.holds():
            return True
        if self._running:
            self._lapse()
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
        store, topic_id = restored.store, restored.topic_id
        # Without a marker the counters are recomputed from all that the log still holds.
        first = Marker(restored.log_start, 0, -1, -1, topic_id, self._settings.default_policy)
        marker = store.marker() or first
        if marker.topic_id != topic_id:
            raise TopicRecreated(
                f"the counters of partition {store.partition} belong to a topic {CHECKS} that is gone (id "
                f"{marker.topic_id}, now {topic_id}). If it was deleted on purpose: {START_AFRESH}"
            )
        owned = Owned(
            self._settings,
            self._partitions,
            store,
            marker,
            self._outbox,
            self._metrics,
            answer_from=restored.answer_from,
        )
        if marker is first:
            # The default of the first start holds from now on, be there records or not.
            owned.ledger.rewrite((), ())
        self._begin(owned)
        _log.info("partition %s: judging from offset %s", store.partition, marker.next_offset)
        return True

    def _begin(self, owned: Owned) -> None:
        partition, ledger = owned.partition, owned.ledger
        self._running[partition] = owned
        owned.begin(monotonic())
        self._consumer.incremental_assign(
            [
                TopicPartition(CHECKS, partition, ledger.next_offset),
                TopicPartition(UPDATES, partition, ledger.applied + 1),
            ]
        )

    def _leave(self, owned: Owned) -> None:
        del self._running[owned.partition]
        self._updates_paused.discard(owned.partition)
        if self._lag.pop(owned.partition, None) is not None:
            self._metrics.lag.remove(str(owned.partition))
        self._consumer.incremental_unassign(
            [TopicPartition(CHECKS, owned.partition), TopicPartition(UPDATES, owned.partition)]
        )
        for topic in (CHECKS, UPDATES):
            self._steps.forget(topic, owned.partition)

    def _park(self, timeout_s: float) -> None:
        parking = list(self._running.values())
        for owned in parking:
            self._leave(owned)
            self._parked[owned.partition] = owned
        give_up = monotonic() + timeout_s
        while parking and self._lease.holds() and monotonic() < give_up:
            parking = [owned for owned in parking if owned.flush_now()]
            self._outbox.poll(0.01)

    def _resume(self, generation: int, partitions: set[int]) -> set[int]:
        resumed = partitions & self._parked.keys() if generation == self.generation else set()
        for partition in resumed:
            self._begin(self._parked.pop(partition))
        return resumed

    def _release(self, partition: int) -> PartitionStore | None:
        owned = self._parked.pop(partition, None)
        return owned.store if owned else None

    def _lapse(self) -> None:
        self._metrics.lapses.inc()
        _log.warning(
            "the group lease ran out (no heartbeat answered in time): partitions %s are dropped until the "
            "group answers; what was not flushed is read from the log again",
            sorted(self._running),
        )
        self._drop(list(self._running.values()))

    def _drop(self, dropped: list[Owned]) -> None:
        for owned in dropped:
            self._leave(owned)
        self._on_lapse([owned.store for owned in dropped])

    # --- records ----------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            self._consumer_error(error, message)
            return
        owned = self._running.get(message.partition())
        if owned is None:
            return
        if message.topic() == UPDATES:
            owned.take_update(message)
        else:
            owned.take(message)

    def _consumer_error(self, error: Any, message: Any) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            return
        if unreadable(message):
            if message.partition() in self._running:
                reason = f"the batch that begins here cannot be unpacked: {error.str()}"
                self._outbox.dead_letter(message, reason)
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise OffsetGone(
                f"{message.topic()}[{message.partition()}] does not hold the offset to go on from "
                f"({error.str()}): the worker was away for longer than the topic keeps records, or the topic "
                f"was cut. To go on with what the log still holds: {START_AFRESH}"
            )
        if error.fatal():
            raise KafkaException(error)
        _log.warning("reading %s[%s]: %s", message.topic(), message.partition(), error.str())

    def _tend(self, owned: Owned, now: float) -> None:
        for table in self._outbox.changelogs:
            end = self._ends.pop((table, owned.partition), None)
            if end is not None:
                owned.look_at_end(table, end)
        try:
            marker = owned.tend(now)
        except Overtaken as exc:
            _log.warning("%s; it is dropped here and restored", exc)
            self._drop([owned])
            return
        if owned.relay.full != (owned.partition in self._updates_paused):
            self._pause_updates(owned.partition, owned.relay.full)
        if marker is not None:
            with suppress(KafkaException):  # only lag monitors read it
                place = TopicPartition(CHECKS, owned.partition, marker.next_offset)
                self._consumer.commit(offsets=[place], asynchronous=True)
            owned.ledger.forget_clean(self._settings.cached_clients // len(self._running))

    def _pause_updates(self, partition: int, pause: bool) -> None:
        place = [TopicPartition(UPDATES, partition)]
        if pause:
            self._consumer.pause(place)
            self._updates_paused.add(partition)
        else:
            self._consumer.resume(place)
            self._updates_paused.discard(partition)

    def _measure_lag(self) -> None:
        for partition, owned in self._running.items():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(CHECKS, partition), cached=True)
            self._lag[partition] = max(0, end - owned.ledger.next_offset) if end >= 0 else 0
            self._metrics.lag.labels(str(partition)).set(self._lag[partition])
        self._metrics.cached.set(sum(len(owned.ledger.states) for owned in self._running.values()))
