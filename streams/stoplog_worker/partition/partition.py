"""One partition that is ours: its records judged and answered, its updates relayed, its state flushed."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from threading import Thread
from time import monotonic, time
from typing import Any, Final

from stoplog.errors import RecordError, Unavailable
from stoplog.wire.checks import Batch, Denials, SingleCheck, reply_address
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision, Reply, encode_json_reply, encode_reply
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import RESULTS, Metrics
from stoplog_worker.partition.checkpoint import Checkpointer
from stoplog_worker.partition.update_relay import UpdateRelay
from stoplog_worker.settings import Settings
from stoplog_worker.state.expiry import Sweeper
from stoplog_worker.state.store import COUNTERS, PartitionStore, Record

_log = logging.getLogger("stoplog.owned")

_JUMP_MS: Final = 2_000
"""What a timestamp may go back, or jump ahead of this host's clock, before it is worth a warning."""

_SOON_S: Final = 1.0
"""Between flushes at least, if the interval is longer: what was charged in it is written once."""

_RETRY_S: Final = 0.5
"""From the beginning of a flush that is due at once to that of the next one, if it fails."""


class Partition:
    """A partition.

    Args:
        settings: The worker's.
        partitions: How many there are.
        store: Its tables.
        marker: Where to go on from.
        outbox: What is sent goes there.
        metrics: What is counted.
        answer_from: The first offset that is answered; those before it are another lane's.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        store: PartitionStore,
        marker: Marker,
        outbox: Producers,
        metrics: Metrics,
        *,
        answer_from: int = 0,
    ) -> None:
        self.partition = store.partition
        self._answer_from = answer_from
        self.store = store
        self.ledger = Ledger(store, marker)
        self._settings = settings
        self._partitions = partitions
        self._outbox = outbox
        self._metrics = metrics
        self._results = [metrics.checks.labels(result) for result in RESULTS]
        self._fault = fault_finder(store.partition, partitions)
        self._flusher = Checkpointer(self.ledger, store, partial(outbox.changelog, store.partition), metrics)
        self._sweeper = Sweeper(store, partial(outbox.shorten, COUNTERS, store.partition))
        self._interval_s = settings.flush_interval_ms / 1_000
        self._soon_s = min(_SOON_S, self._interval_s)
        self._flush_at = self._flush_soon_at = 0.0
        self._judged = 0
        self._swept: list[bytes] = []
        self._retry_at = 0.0
        self._gap: tuple[tuple[str, int, int], Future[list[Record]]] | None = None
        send = partial(outbox.update, self.partition)
        self.relay = UpdateRelay(self.partition, partitions, self.ledger, send)

    def begin(self, now: float) -> None:
        """Flush from *now* on, monotonic seconds, once an interval; partitions one after the other."""
        turn = 1 + self.partition / self._partitions
        self._flush_at = self._flush_soon_at = now + turn * self._soon_s

    # --- records ---

    def take_update(self, message: Any) -> None:
        """A record of ``limit-updates``: to be relayed."""
        try:
            self.relay.take(message)
        except RecordError as exc:
            self._outbox.dead_letter(message, exc.reason)

    def take(self, message: Any) -> None:
        """A record of ``checks``: judge it and answer; one that is known already is passed over."""
        offset, stamp_ms = message.offset(), message.timestamp()[1]
        if offset < self.ledger.next_offset:
            return
        self._watch_clock(stamp_ms)
        folded = fold(self.ledger, offset, stamp_ms, message.value(), self._fault)
        self._judged += len(folded.answers)
        self._metrics.records.inc()
        if offset < self._answer_from:
            return
        if folded.record is None:
            self._refuse(message, folded.refused)
        elif isinstance(folded.record, Update):
            self._applied(folded.record, folded.fresh)
        elif isinstance(folded.record, Denials):
            denied = sum(row.checks for row in folded.record.sums)
            self._metrics.checks.labels("cached").inc(denied)
        else:
            self._answer(folded.record, folded.answers, offset)
            self._count(folded.answers, message)

    def _refuse(self, message: Any, reason: str) -> None:
        self._outbox.dead_letter(message, reason)
        address = reply_address(message.value())
        if address is not None:
            partition, incarnation, number = address
            reply = Reply(incarnation, number, message.offset(), self.ledger.applied, [], reason)
            self._outbox.reply(partition, encode_reply(reply))

    def _answer(self, record: Batch | SingleCheck, answers: list[Answer], offset: int) -> None:
        if isinstance(record, Batch):
            if record.partition >= 0:
                reply = Reply(record.incarnation, record.number, offset, self.ledger.applied, answers)
                self._outbox.reply(record.partition, encode_reply(reply))
        elif record.reply_to is not None and answers[0] is not None:
            facts = _facts(answers[0])
            if record.check.cost == 0 and "error" not in facts:
                facts |= self.ledger.usage_report(record.check)
            self._outbox.reply(record.reply_to.partition, encode_json_reply(record.reply_to, **facts))

    def _count(self, answers: list[Answer], message: Any) -> None:
        allowed = rejected = replayed = 0
        unfit = []
        for answer in answers:
            if isinstance(answer, Decision):
                if answer.allowed:
                    allowed += 1
                else:
                    rejected += 1
            elif answer is None:
                replayed += 1
            else:
                unfit.append(answer)
        for counter, count in zip(self._results, (allowed, rejected, len(unfit), replayed), strict=True):
            if count:
                counter.inc(count)
        if unfit:
            self._outbox.dead_letter(message, unfit[0])

    def _applied(self, update: Update, fresh: bool) -> None:
        self._metrics.updates.labels("applied" if fresh else "repeated").inc()
        to = update.reply_to
        if to is not None:
            facts = {"applied": True, "version": update.version, "partition": self.partition}
            self._outbox.reply(to.partition, encode_json_reply(to, **facts))

    def _watch_clock(self, stamp_ms: int) -> None:
        """Warn of a leader whose clock is off; no decision depends on it."""
        step_ms = stamp_ms - self.ledger.stamp_ms
        ahead_ms = stamp_ms - int(time() * 1_000)
        if step_ms < -_JUMP_MS:
            direction, by_ms = "back", -step_ms
        elif step_ms > _JUMP_MS and ahead_ms > _JUMP_MS:
            # Only the step itself: every record of a leader that is ahead is ahead.
            direction, by_ms = "ahead", ahead_ms
        else:
            return
        self._metrics.clock_jumps.labels(direction).inc()
        _log.warning(
            "partition %s: its leader's clock jumped %s by about %s ms; keep the brokers on NTP",
            self.partition,
            direction,
            by_ms,
        )

    # --- flushing ---

    def tend(self, now: float, until: float, enough: int, many: int) -> Marker | None:
        """Move relay and flush on; returns the marker of a flush that ended.

        Args:
            now: Monotonic seconds.
            until: When the next records should be looked at; the flush takes one step all the same.
            enough: Checks judged since the last flush after which the next does not wait for its time.
            many: Clients not yet flushed, of which the same is true.

        Raises:
            Overtaken: another worker is ahead: the partition is not ours.
        """
        if self.ledger.next_offset >= self._answer_from:
            # A further lane waits until those have come by that another has relayed.
            self.relay.advance()
        if gone := self._sweeper.advance(now, self._partitions):
            self._metrics.swept.inc(len(gone))
            self._swept += gone
        if not self._flusher.idle:
            return self._flusher.advance(until)
        if self._swept:
            self.ledger.expire(self._swept)
            self._swept.clear()
        waiting = self._judged >= enough or len(self.ledger.dirty) >= many
        urgent = waiting or self._flusher.foreign or self._flusher.failed
        if now >= (self._flush_soon_at if urgent else self._flush_at):
            self._flush_at, self._flush_soon_at = now + self._interval_s, now + self._soon_s
            if self._flusher.foreign:
                # It may have taken long: the lease is to be looked at before anything is written.
                self._mend()
            elif self.ledger.changed:
                self._judged = 0
                self._begin_flush()
        return None

    def _begin_flush(self) -> None:
        if self.store.marker() is None:
            self._flusher.begin_with_marker()
        else:
            self._flusher.begin()

    @property
    def busy(self) -> bool:
        """Whether a flush is under way that waits for nobody."""
        return self._flusher.ready

    def flush_to(self, offset: int, until: float) -> bool:
        """Move on to where all before *offset* is written, without waiting for its time; whether it is.

        It goes on until *until*, as :meth:`tend` does.
        """
        if self._flusher.idle and self.ledger.checkpointed.next_offset < offset:
            now = monotonic()
            if self._flusher.failed and now < self._retry_at:
                return False
            self._retry_at = now + _RETRY_S
            self._begin_flush()
        self._flusher.advance(until)
        return self._flusher.idle and self.ledger.checkpointed.next_offset >= offset

    def look_at_end(self, table: str, end: int) -> None:
        """The broker says that *end* is the next offset of the changelog of *table*."""
        if self._flusher.idle:
            self._flusher.look_at_end(table, end)

    def _mend(self) -> None:
        """Write over what somebody else wrote to our changelogs, once it has been read.

        It is read in a thread of its own: a broker may take seconds, and checks go on meanwhile.
        """
        gaps = self._flusher.foreign
        if self._gap is None:
            if gaps:
                table = gaps[0][0]
                same = [gap for gap in gaps if gap[0] == table]
                whole = table, min(start for _, start, _ in same), max(end for _, _, end in same)
                self._gap = whole, self._read_aside(*whole)
            return
        (table, start, end), reading = self._gap
        if not reading.done():
            return
        self._gap = None
        try:
            records = reading.result()
        except Unavailable as exc:
            _log.warning("%s; will be tried again", exc)
            return
        self._flusher.foreign = [gap for gap in gaps if gap[0] != table or gap[2] > end]
        _log.warning(
            "%s[%s] holds records from offset %s to %s that were not written here: writing over them",
            self._outbox.changelogs[table],
            self.partition,
            start,
            end,
        )
        self._flusher.mend(table, records)
        self._flush_at = self._flush_soon_at

    def _read_aside(self, table: str, start: int, end: int) -> Future[list[Record]]:
        future: Future[list[Record]] = Future()
        topic = self._outbox.changelogs[table]

        def read() -> None:
            reader = AssignedConsumer(self._settings.bootstrap)
            try:
                found = reader.read(topic, self.partition, start, end)
                future.set_result([Record(it.offset(), it.key(), it.value()) for it in found])
            except Exception as exc:  # noqa: BLE001 - raised where the future is asked
                future.set_exception(exc)
            finally:
                reader.close()

        Thread(target=read, name=f"gap-{self.partition}", daemon=True).start()
        return future


def _facts(answer: Decision | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    return {name: getattr(answer, name) for name in Decision.__struct_fields__}
