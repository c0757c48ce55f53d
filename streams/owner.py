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
from functools import partial
from time import monotonic, time
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams import kafka
from streams.contract.errors import OffsetGone, RecordError, TopicRecreated, Unavailable, UndecodableRecord
from streams.contract.records import (
    POSITION_BITS,
    Batch,
    Check,
    Decision,
    PartitionBeat,
    Reply,
    SingleCheck,
    Update,
    decode_checks_record,
    encode_json_reply,
    encode_reply,
    reply_address,
)
from streams.contract.topics import CHECKS, DEAD_LETTERS, REPLIES, UPDATES
from streams.flush import Flusher, Overtaken
from streams.judge import Answer, fault_finder, judge
from streams.lease import Lease
from streams.ledger import Ledger, Marker
from streams.metrics import Metrics
from streams.relay import Relay
from streams.restore import Restored, read_range
from streams.settings import Settings
from streams.store import PartitionStore

_log = logging.getLogger("sluice.owner")

GROUP: Final = "sluice-owner"
"""Under which markers are committed, for lag monitors. It has no members: Faust's group assigns."""

_POLL_S: Final = 0.02
"""Longest wait for a record: how late a command or an acknowledgment may be noticed."""
_READ: Final = 500
"""Records taken at once, so that a backlog does not keep flushes and commands waiting."""
_LAG_S: Final = 1.0
_JUMP_MS: Final = 2_000
"""What a timestamp may go back, or be ahead of this host's clock, before it is worth a warning."""

T = TypeVar("T")


class _Owned:
    """One partition of ours."""

    def __init__(
        self, store: PartitionStore, ledger: Ledger, flusher: Flusher, relay: Relay, partitions: int
    ) -> None:
        self.partition = store.partition
        self.store = store
        self.ledger = ledger
        self.flusher = flusher
        self.relay = relay
        self.fault = fault_finder(store.partition, partitions)
        self.flush_at = 0.0
        self.updates_paused = False


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
        self._changelogs = changelogs
        self._lease = lease
        self._metrics = metrics
        self._on_lapse = on_lapse
        self._on_fatal = on_fatal
        self._consumer: Consumer = kafka.consumer(settings.bootstrap, GROUP)
        self._changelog = kafka.changelog_producer(settings.bootstrap, settings.send_timeout_ms)
        self._replies = kafka.reply_producer(settings.bootstrap, settings.send_timeout_ms)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running: dict[int, _Owned] = {}
        self._parked: dict[int, _Owned] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._lag: dict[int, int] = {}
        self._lag_at = 0.0
        self._stopping = False

    # --- from other threads -----------------------------------------------------------------

    def _call(self, command: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(command())
            except BaseException as exc:
                future.set_exception(exc)
                raise

        self._commands.put(run)
        return future

    def start_partition(self, restored: Restored) -> Future[bool]:
        """Judge a restored partition from its marker on; ``False`` if its generation is over."""
        return self._call(lambda: self._start(restored))

    def park_all(self, timeout_s: float) -> Future[None]:
        """Flush and stop all partitions, keeping them in memory; a flush is given *timeout_s*."""
        return self._call(lambda: self._park(timeout_s))

    def resume(self, generation: int, partitions: set[int]) -> Future[bool]:
        """Go on with parked partitions as if nothing had been; ``False`` if the generation is over."""
        return self._call(lambda: self._resume(generation, partitions))

    def release(self, partition: int) -> Future[PartitionStore | None]:
        """Let go of a parked partition; what was not flushed is forgotten, the log has it."""
        return self._call(lambda: self._release(partition))

    def changelog_ends(self, ends: dict[tuple[str, int], int]) -> None:
        """The next offsets of owned changelogs, as the broker has them."""
        self._commands.put(lambda: self._ends.update(ends))

    def beats(self) -> dict[int, PartitionBeat]:
        """The running partitions and their lag, for the node's beat."""
        return {p: PartitionBeat("running", self._lag.get(p, 0)) for p in tuple(self._running)}

    def stop(self, timeout_s: float) -> list[PartitionStore]:
        """Flush, end the thread, and return the stores it held."""

        def end() -> list[PartitionStore]:
            self._park(timeout_s)
            self._stopping = True
            return [owned.store for owned in self._parked.values()]

        stores = self._call(end).result(timeout_s * 3) if self.is_alive() else []
        self.join(timeout_s)
        return stores

    # --- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until told to stop."""
        try:
            while not self._stopping:
                self._turn()
        except Exception as exc:  # noqa: BLE001 - whatever ended it must end the worker, not only this thread
            self._on_fatal(exc)
        finally:
            self._replies.flush(1.0)
            self._consumer.close()

    def _turn(self) -> None:
        self._run_commands()
        first = self._consumer.poll(_POLL_S)
        messages: list[Any] = [] if first is None else [first, *self._consumer.consume(_READ, 0)]
        if self._running and not self._lease.holds():
            self._lapse()
        for message in messages:
            self._take(message)
        self._replies.poll(0)
        self._changelog.poll(0)
        now = monotonic()
        for owned in tuple(self._running.values()):
            self._tend(owned, now)
        if now - self._lag_at >= _LAG_S:
            self._lag_at = now
            self._measure_lag()

    def _run_commands(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    # --- partitions come and go -------------------------------------------------------------

    def _start(self, restored: Restored) -> bool:
        if restored.generation != self.generation:
            return False
        store = restored.store
        marker = store.marker() or self._first_marker(store.partition, restored.topic_id)
        if marker.topic_id != restored.topic_id:
            raise TopicRecreated(
                f"the counters of partition {store.partition} belong to a topic {CHECKS} that is gone (id "
                f"{marker.topic_id}, now {restored.topic_id}). If it was deleted on purpose, delete all of "
                f"Sluice's topics and this worker's tables, and run `sluice topics create`"
            )
        ledger = Ledger(store, marker)
        owned = _Owned(
            store,
            ledger,
            Flusher(ledger, store, partial(self._send_changelog, store.partition), self._metrics),
            Relay(store.partition, self._partitions, ledger, partial(self._send_update, store.partition)),
            self._partitions,
        )
        self._begin(owned)
        _log.info("partition %s: judging from offset %s", store.partition, ledger.next_offset)
        return True

    def _first_marker(self, partition: int, topic_id: str) -> Marker:
        """Before the first flush: the committed offset, else the log's beginning."""
        place = TopicPartition(CHECKS, partition)
        offset = self._consumer.committed([place], timeout=10)[0].offset
        if offset < 0:
            offset, _ = self._consumer.get_watermark_offsets(place, timeout=10)
        return Marker(offset, 0, -1, -1, topic_id, self._settings.default_policy)

    def _begin(self, owned: _Owned) -> None:
        partition, ledger = owned.partition, owned.ledger
        self._running[partition] = owned
        owned.flush_at = monotonic() + self._settings.flush_interval_ms / 1_000
        owned.updates_paused = False
        self._consumer.incremental_assign(
            [
                TopicPartition(CHECKS, partition, ledger.next_offset),
                TopicPartition(UPDATES, partition, ledger.applied + 1),
            ]
        )

    def _leave(self, owned: _Owned) -> None:
        del self._running[owned.partition]
        if self._lag.pop(owned.partition, None) is not None:
            self._metrics.lag.remove(str(owned.partition))
        self._consumer.incremental_unassign(
            [TopicPartition(CHECKS, owned.partition), TopicPartition(UPDATES, owned.partition)]
        )

    def _park(self, timeout_s: float) -> None:
        parking = list(self._running.values())
        for owned in parking:
            self._leave(owned)
        give_up = monotonic() + timeout_s
        while any(self._flush_step(owned) for owned in parking) and monotonic() < give_up:
            if not self._lease.holds():
                break
            self._changelog.poll(0.01)
        self._parked = {owned.partition: owned for owned in parking}

    def _flush_step(self, owned: _Owned) -> bool:
        """Move a flush on; returns whether something is left to be written."""
        if owned.flusher.idle and owned.ledger.changed:
            owned.flusher.begin()
        self._ended(owned, owned.flusher.advance())
        return not owned.flusher.idle or owned.ledger.changed

    def _resume(self, generation: int, partitions: set[int]) -> bool:
        if generation != self.generation:
            return False
        for partition in partitions:
            owned = self._parked.pop(partition)
            relay = partial(self._send_update, partition)
            owned.relay = Relay(partition, self._partitions, owned.ledger, relay)
            self._begin(owned)
        return True

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

    def _drop(self, dropped: list[_Owned]) -> None:
        for owned in dropped:
            self._leave(owned)
        self._on_lapse([owned.store for owned in dropped])

    # --- records ----------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        owned = self._running.get(message.partition())
        error = message.error()
        if error is not None:
            self._consumer_error(error, message)
        elif owned is None:
            return
        elif message.topic() == UPDATES:
            try:
                owned.relay.take(message)
            except RecordError as exc:
                self._dead_letter(message, exc.reason)
        else:
            self._judge(owned, message)

    def _consumer_error(self, error: Any, message: Any) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise OffsetGone(
                f"{message.topic()}[{message.partition()}] does not hold the offset to go on from "
                f"({error.str()}): the worker was away for longer than the topic keeps records, or the topic "
                f"was cut. Counters would be wrong; to go on from the log's end with them as they are, "
                f"delete this worker's tables and the topic sluice-policies-changelog, or raise retention"
            )
        if error.fatal():
            raise KafkaException(error)
        _log.warning("reading %s[%s]: %s", message.topic(), message.partition(), error.str())

    def _judge(self, owned: _Owned, message: Any) -> None:
        ledger, offset, value = owned.ledger, message.offset(), message.value()
        if offset < ledger.next_offset:
            return
        stamp_ms = message.timestamp()[1]
        self._watch_clock(owned, stamp_ms)
        now_ms = ledger.advance(offset, stamp_ms)
        self._metrics.records.inc()
        try:
            record = decode_checks_record(value)
        except UndecodableRecord as exc:
            self._dead_letter(message, exc.reason)
            address = reply_address(value)
            if address is not None:
                partition, incarnation, number = address
                self._reply(
                    partition,
                    encode_reply(Reply(incarnation, number, offset, ledger.applied, [], exc.reason)),
                )
            return
        if isinstance(record, Update):
            self._apply(owned, record, offset)
        else:
            self._decide(owned, record, message, now_ms)

    def _decide(self, owned: _Owned, record: Batch | SingleCheck, message: Any, now_ms: int) -> None:
        ledger, offset = owned.ledger, message.offset()
        checks: list[Check] = record.checks if isinstance(record, Batch) else [record.check]
        answers = judge(ledger, offset, now_ms, checks, owned.fault)
        self._count(answers, message)
        if isinstance(record, Batch):
            if record.partition >= 0:
                reply = Reply(record.incarnation, record.number, offset, ledger.applied, answers)
                self._reply(record.partition, encode_reply(reply))
        elif record.reply_to is not None and answers[0] is not None:
            facts = _facts(answers[0])
            self._reply(record.reply_to.partition, encode_json_reply(record.reply_to, **facts))

    def _count(self, answers: list[Answer], message: Any) -> None:
        allowed = rejected = replayed = 0
        reasons = []
        for answer in answers:
            if answer is None:
                replayed += 1
            elif isinstance(answer, str):
                reasons.append(answer)
            elif answer.allowed:
                allowed += 1
            else:
                rejected += 1
        checks = self._metrics.checks
        for result, count in (("allowed", allowed), ("rejected", rejected), ("replayed", replayed)):
            if count:
                checks.labels(result).inc(count)
        if reasons:
            checks.labels("unfit").inc(len(reasons))
            self._dead_letter(message, reasons[0])

    def _apply(self, owned: _Owned, update: Update, offset: int) -> None:
        fresh = owned.ledger.apply(update, offset << POSITION_BITS)
        self._metrics.updates.labels("applied" if fresh else "repeated").inc()
        if update.reply_to is not None:
            self._reply(
                update.reply_to.partition,
                encode_json_reply(
                    update.reply_to, applied=True, version=update.version, partition=owned.partition
                ),
            )

    def _watch_clock(self, owned: _Owned, stamp_ms: int) -> None:
        back = owned.ledger.stamp_ms - stamp_ms
        ahead = stamp_ms - int(time() * 1_000)
        if back > _JUMP_MS:
            direction, by_ms = "back", back
        elif ahead > _JUMP_MS and -back > _JUMP_MS:
            # Only the step itself: every record of a leader that is ahead is ahead.
            direction, by_ms = "ahead", ahead
        else:
            return
        self._metrics.clock_jumps.labels(direction).inc()
        _log.warning(
            "partition %s: the leader's clock jumped %s by about %s ms; decisions go on by partition time",
            owned.partition,
            direction,
            by_ms,
        )

    # --- what is sent -----------------------------------------------------------------------

    def _reply(self, partition: int, value: bytes) -> None:
        if not 0 <= partition < 2**31:
            return
        try:
            self._replies.produce(REPLIES, value, partition=partition)
        except (BufferError, KafkaException) as exc:
            _log.warning("a reply could not be sent (%s); its gateway lets the checks through", exc)

    def _dead_letter(self, message: Any, reason: str) -> None:
        self._metrics.dead_letters.labels(message.topic()).inc()
        _log.warning(
            "%s[%s]@%s goes to %s: %s",
            message.topic(),
            message.partition(),
            message.offset(),
            DEAD_LETTERS,
            reason[:500],
        )
        headers = {
            "reason": reason[:2_000].encode(),
            "topic": message.topic().encode(),
            "partition": str(message.partition()).encode(),
            "offset": str(message.offset()).encode(),
        }
        try:
            self._replies.produce(DEAD_LETTERS, message.value(), message.key(), headers=headers)
        except (BufferError, KafkaException) as exc:
            _log.error("a dead letter could not be sent: %s", exc)

    def _send_changelog(
        self, partition: int, table: str, key: bytes, value: bytes, delivered: Callable[[Any, Any], None]
    ) -> None:
        self._produce(self._changelogs[table], partition, key, value, delivered)

    def _send_update(self, partition: int, value: bytes, delivered: Callable[[Any, Any], None]) -> None:
        self._produce(CHECKS, partition, None, value, delivered)

    def _produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes,
        delivered: Callable[[Any, Any], None],
    ) -> None:
        while True:
            try:
                self._changelog.produce(topic, value, key, partition=partition, on_delivery=delivered)
                return
            except BufferError:
                # Everything queued is sent or given up within the send timeout.
                self._changelog.poll(0.01)

    # --- flushing ---------------------------------------------------------------------------

    def _tend(self, owned: _Owned, now: float) -> None:
        owned.relay.advance()
        if owned.relay.full != owned.updates_paused:
            owned.updates_paused = owned.relay.full
            place = [TopicPartition(UPDATES, owned.partition)]
            (self._consumer.pause if owned.updates_paused else self._consumer.resume)(place)
        flusher = owned.flusher
        if not flusher.idle:
            self._ended(owned, flusher.advance())
        elif now >= owned.flush_at:
            owned.flush_at = now + self._settings.flush_interval_ms / 1_000
            for table in self._changelogs:
                flusher.look_at_end(table, self._ends.pop((table, owned.partition), 0))
            if flusher.foreign and not self._mend(owned):
                return
            if owned.ledger.changed:
                flusher.begin()

    def _mend(self, owned: _Owned) -> bool:
        """Write over what somebody else wrote; returns whether the partition is still ours."""
        gaps, owned.flusher.foreign = owned.flusher.foreign, []
        try:
            while gaps:
                table, start, end = gaps[0]
                topic = self._changelogs[table]
                records = read_range(self._settings.bootstrap, topic, owned.partition, start, end)
                _log.warning(
                    "%s[%s] holds %s records from %s that were not written here; writing over them",
                    topic,
                    owned.partition,
                    len(records),
                    start,
                )
                owned.flusher.mend(table, records)
                del gaps[0]
        except Unavailable as exc:
            _log.warning("partition %s: %s; will be tried again", owned.partition, exc)
            owned.flusher.foreign = gaps
            return True
        except Overtaken as exc:
            _log.warning("%s; it is dropped here and restored", exc)
            self._drop([owned])
            return False
        return True

    def _ended(self, owned: _Owned, marker: Marker | None) -> None:
        if marker is None:
            return
        with suppress(KafkaException):  # only lag monitors read it
            self._consumer.commit(
                offsets=[TopicPartition(CHECKS, owned.partition, marker.next_offset)], asynchronous=True
            )
        share = self._settings.cached_clients // max(1, len(self._running))
        owned.ledger.forget_clean(share)

    def _measure_lag(self) -> None:
        for partition, owned in self._running.items():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(CHECKS, partition), cached=True)
            self._lag[partition] = max(0, end - owned.ledger.next_offset) if end >= 0 else 0
            self._metrics.lag.labels(str(partition)).set(self._lag[partition])
        self._metrics.cached.set(sum(len(owned.ledger.states) for owned in self._running.values()))
        self._metrics.partitions.labels("running").set(len(self._running))


def _facts(answer: Decision | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    return {name: getattr(answer, name) for name in Decision.__struct_fields__}
