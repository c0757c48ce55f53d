"""One partition on this worker: judge its records, answer them, relay its updates, checkpoint its state."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from stoplog.errors import RecordError, UndecodableRecord
from stoplog.wire.audit import source_of
from stoplog.wire.checks import POSITION_BITS, Batch, Denials, SingleCheck, reply_address
from stoplog.wire.format import headers_of
from stoplog.wire.holds import LEASE, RESERVATION, SettlementBatch
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import (
    Decision,
    Reply,
    Settled,
    SettlementReply,
    encode_held_reply,
    encode_json_reply,
    encode_reply,
)
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger, UpdateEffect
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import RESULTS, Metrics
from stoplog_worker.partition.audit_log import AuditLog
from stoplog_worker.partition.canonical_keys import KeyCanonicalizer
from stoplog_worker.partition.changelog_repair import ChangelogRepair, read_in_background
from stoplog_worker.partition.checkpoint import Checkpointer
from stoplog_worker.partition.checkpoint_schedule import CheckpointSchedule
from stoplog_worker.partition.holds_gate import HoldsGate
from stoplog_worker.partition.key_agreement import KeyAgreement
from stoplog_worker.partition.live_workers import LiveWorkers
from stoplog_worker.partition.phase import PartitionPhase
from stoplog_worker.partition.update_relay import UpdateRelay
from stoplog_worker.settings import Settings
from stoplog_worker.state.expiry import PASS_S, StateExpirer
from stoplog_worker.state.store import COUNTERS, PartitionStore

if TYPE_CHECKING:
    from stoplog_worker.partition.tracing import PartitionTracing

_log = logging.getLogger("stoplog.partition")

_CLOCK_JUMP_MS: Final = 2_000
"""How far a timestamp may go back, or be ahead of this host's clock, without a warning."""

_UNJUDGED_S: Final = 600.0
"""Seconds for which a cost that no limit judged is announced. Programs that have such costs have many."""


class Partition:
    """A partition.

    Args:
        settings: The worker's settings.
        count: The number of partitions.
        store: The partition's tables.
        marker: Position at which to continue.
        producers: Send replies, changelog records, relayed updates and dead letters.
        metrics: Count them.
        keys: The relay keys, and the one to sign with.
        workers: The other workers.
        answer_from: The first offset to answer. The checks before it were answered by another lane.
        audited: Whether there is a topic for the audit.
        tracing: Creates spans; ``None`` when tracing is off.
        expiry_pass_s: Seconds between two passes over the states, which remove expired ones.
    """

    def __init__(
        self,
        settings: Settings,
        count: PartitionCount,
        store: PartitionStore,
        marker: Marker,
        producers: Producers,
        metrics: Metrics,
        *,
        keys: KeyAgreement,
        workers: LiveWorkers,
        answer_from: int = 0,
        audited: bool = False,
        tracing: PartitionTracing | None = None,
        expiry_pass_s: float = PASS_S,
    ) -> None:
        number = self.number = store.partition
        self.phase: PartitionPhase | None = None
        """Changed by :class:`stoplog_worker.consumer.partition_set.PartitionSet` only."""
        self.answer_until = 0.0
        """In HANDING_OVER: when this worker stops answering, monotonic seconds."""
        self.rests = False
        """Whether nothing was taken since the last :meth:`advance`, and no write was under way then. Only
        time, a peer or a command gives such a partition anything to do."""
        self.store = store
        self.ledger = Ledger(store, marker)
        partitions = count.partitions
        self._partitions = partitions
        self._producers = producers
        self._metrics = metrics
        self._answer_from = answer_from
        self._tracing = tracing
        self._result_counters = [metrics.checks.labels(result) for result in RESULTS]
        self._hold_counters = {RESERVATION: metrics.reservations, LEASE: metrics.lease_permits}
        self._find_fault = fault_finder(number, partitions)
        read = partial(read_in_background, settings.connection)
        self.repair = ChangelogRepair(self.ledger, store, producers.changelogs, metrics, read)
        write = partial(producers.write_changelog, number)
        write_audit = partial(producers.write_audit, number) if audited else None
        self.audit = AuditLog(number, count, write_audit, metrics)
        self.checkpointer = Checkpointer(
            self.ledger, store, write, self.repair, metrics, self.audit.replay_from
        )
        self.schedule = CheckpointSchedule(settings.flush_interval_ms / 1_000, number / partitions)
        self._authority = UpdateAuthority(keys.keys, marker.topic_id, marker.updates_id, number)
        append = partial(producers.relay_update, number)

        def signing_key() -> str | None:
            return keys.signing_key(monotonic())

        self.gate = HoldsGate(number, self.ledger, workers, append, self._authority, signing_key)
        self.relay = UpdateRelay(
            number,
            count,
            self.ledger,
            append,
            self._authority,
            signing_key,
            KeyCanonicalizer(self.ledger, partial(producers.publish_update, number)),
        )
        truncate = partial(producers.truncate_changelog, COUNTERS, number)
        self._expirer = StateExpirer(store, truncate, pass_s=expiry_pass_s)
        self._expired: list[bytes] = []
        self._unjudged_until = 0.0
        self._judged = 0
        """Checks judged since the last checkpoint began."""

    # --- records ---

    def take_update(self, message: Any) -> None:
        """Queue a record of ``limit-updates`` for the relay."""
        self.rests = False
        try:
            self.relay.take(message)
        except RecordError as exc:
            self._producers.dead_letter(message, exc.reason)

    def take(self, message: Any) -> None:
        """Judge and answer a record of ``checks``. A record that the ledger already holds is skipped."""
        self.rests = False
        if self._tracing is None:
            self._judge(message)
        else:
            with self._tracing.judging(self.number, message):
                self._judge(message)

    def _judge(self, message: Any) -> None:
        ledger, offset = self.ledger, message.offset()
        if offset < ledger.next_offset:
            return
        stamp_ms = message.timestamp()[1]
        if not -_CLOCK_JUMP_MS <= stamp_ms - ledger.stamp_ms <= _CLOCK_JUMP_MS:
            self._report_clock_jump(stamp_ms)
        folded = fold(ledger, offset, stamp_ms, message.value(), self._find_fault, self._authority)
        self._judged += len(folded.answers)
        self._metrics.records.inc()
        if ledger.hold_counts:
            for (kind, result), count in ledger.hold_counts.items():
                self._hold_counters[kind].labels(result).inc(count)
            ledger.hold_counts.clear()
        if ledger.unjudged:
            ledger.unjudged = False
            self._unjudged_until = monotonic() + _UNJUDGED_S
        if offset < self._answer_from:
            return
        if folded.record is None:
            if folded.refusal is not None:
                self._metrics.updates.labels(folded.refusal.kind).inc()
            self._refuse(message, folded.refused)
        elif isinstance(folded.record, Update):
            if folded.record.key == ENABLE_HOLDS:
                return
            self._confirm(folded.record, folded.effect)
            if folded.effect is not None:
                self._audit(folded.record, folded.effect, message)
        elif isinstance(folded.record, SettlementBatch):
            self._answer_settlements(folded.record, folded.settled, message)
        elif isinstance(folded.record, Denials):
            denied = sum(row.checks for row in folded.record.sums)
            self._metrics.checks.labels("cached").inc(denied)
        else:
            if self._tracing is None:
                self._answer(folded.record, folded.answers, offset)
            else:
                with self._tracing.replying(len(folded.answers)):
                    self._answer(folded.record, folded.answers, offset)
            self._count(folded.answers, message)

    def _refuse(self, message: Any, reason: str) -> None:
        """Copy an undecodable record to the dead letters. Reply with the reason if it has a reply address."""
        self._producers.dead_letter(message, reason)
        address = reply_address(message.value())
        if address is not None:
            partition, incarnation, number = address
            reply = Reply(incarnation, number, message.offset(), self.ledger.applied, [], reason)
            self._producers.reply(partition, encode_reply(reply))

    def _answer(self, record: Batch | SingleCheck, answers: list[Answer], offset: int) -> None:
        if isinstance(record, Batch):
            if record.partition >= 0:
                reply = Reply(record.incarnation, record.number, offset, self.ledger.applied, answers)
                encode = encode_reply if record.hold_rows is None else encode_held_reply
                self._producers.reply(record.partition, encode(reply))
        elif record.reply_to is not None and answers[0] is not None:
            fields = _json_fields(answers[0])
            if record.check.cost == 0 and "error" not in fields:
                fields |= self.ledger.usage_report(record.check)
            self._producers.reply(record.reply_to.partition, encode_json_reply(record.reply_to, **fields))

    def _answer_settlements(
        self, record: SettlementBatch, answers: Sequence[Settled | str | None], message: Any
    ) -> None:
        if record.partition >= 0:
            applied = self.ledger.applied
            reply = SettlementReply(
                record.incarnation, record.number, message.offset(), applied, list(answers)
            )
            self._producers.reply(record.partition, encode_held_reply(reply))
        for answer in answers:
            if isinstance(answer, str):
                self._producers.dead_letter(message, answer)
                return

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
        counts = allowed, rejected, len(unfit), replayed
        for counter, count in zip(self._result_counters, counts, strict=True):
            if count:
                counter.inc(count)
        if unfit:
            self._producers.dead_letter(message, unfit[0])

    def _audit(self, update: Update, effect: UpdateEffect, message: Any) -> None:
        try:
            headers = headers_of(message)
        except UndecodableRecord:  # written by another producer than a worker
            headers = None
        position, stamp_ms = message.offset() << POSITION_BITS, message.timestamp()[1]
        self.audit.record(update, effect, position, stamp_ms, source_of(headers))

    def _confirm(self, update: Update, effect: UpdateEffect | None) -> None:
        """Confirm to the sender that the update has taken effect."""
        self._metrics.updates.labels("applied" if effect is not None else "repeated").inc()
        to = update.reply_to
        if to is not None:
            fields = {
                "applied": True,
                "version": update.version,
                "partition": self.number,
                "existed": effect.existed if effect is not None else None,
            }
            self._producers.reply(to.partition, encode_json_reply(to, **fields))

    def _report_clock_jump(self, stamp_ms: int) -> None:
        """Warn of a partition leader whose clock is wrong. No decision depends on this host's clock."""
        step_ms = stamp_ms - self.ledger.stamp_ms
        ahead_ms = stamp_ms - int(time() * 1_000)
        if step_ms < 0:
            direction, by_ms = "back", -step_ms
        elif ahead_ms > _CLOCK_JUMP_MS:
            # Only the first record after the jump gets here: later ones make no large step.
            direction, by_ms = "ahead", ahead_ms
        else:
            return
        self._metrics.clock_jumps.labels(direction).inc()
        _log.warning(
            "partition %s: the clock of its leader jumped %s by about %s ms; keep the brokers on NTP",
            self.number,
            direction,
            by_ms,
        )

    # --- writing ---

    def advance(self, now: float, until: float, max_replay: int, max_dirty: int) -> Marker | None:
        """Advance the relay, the audit, the expiry, the repair and the checkpoint by a small step each.

        Args:
            now: Monotonic seconds.
            until: When the caller needs to go on; the checkpoint takes at least one step.
            max_replay: Checks judged since the last checkpoint that make the next one urgent.
            max_dirty: Dirty clients that make it urgent.

        Returns:
            The marker of a checkpoint that is now complete, else ``None``.

        Raises:
            Overtaken: another worker is ahead and owns the partition.
        """
        self.audit.advance(now)
        # A further lane waits until it has read every update that another lane relayed.
        if self.ledger.next_offset >= self._answer_from and not self.audit.behind:
            self.relay.advance()
            self.gate.advance(now)
        if expired := self._expirer.advance(now, self._partitions):
            self._metrics.swept.inc(len(expired))
            self._expired += expired
        checkpointer = self.checkpointer
        if not checkpointer.idle:
            return checkpointer.advance(until)
        self.rests = self.relay.idle and not self.audit.waiting
        if self._expired:
            self.ledger.expire(self._expired)
            self._expired.clear()
        if self.repair.must_repeat:
            self.repair.repeat()
        crowded = self._judged >= max_replay or len(self.ledger.dirty) >= max_dirty
        if self.schedule.is_due(now, urgent=crowded or bool(self.repair.gaps) or checkpointer.failed):
            self.schedule.begun(now)
            if self.repair.gaps:
                # This may take long, so the caller checks the lease before the checkpoint begins.
                if self.repair.advance():
                    self.schedule.expedite()
            elif self.ledger.changed:
                self._begin_checkpoint()
        return None

    def _begin_checkpoint(self) -> None:
        self.rests = False
        self._judged = 0
        if self.store.marker() is None:
            self.checkpointer.begin_with_marker()
        else:
            self.checkpointer.begin()

    @property
    def unjudged(self) -> bool:
        """Whether units were charged in the last minutes that no limit judged. Any thread may read it."""
        return monotonic() < self._unjudged_until

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way that waits for no acknowledgment."""
        return self.checkpointer.ready

    def drained(self, checks_end: int, updates_end: int) -> bool:
        """Return whether everything up to the ends of both logs is decided and in a checkpoint.

        If only the checkpoint is missing, it begins earlier than planned.
        """
        relay = self.relay
        if self.ledger.next_offset < checks_end or relay.next_offset < updates_end or not relay.idle:
            return False
        if self.ledger.changed or not self.checkpointer.idle:
            self.schedule.expedite()
            return False
        return not self.audit.waiting

    def checkpoint_to(self, offset: int, now: float, until: float) -> bool:
        """Advance the last checkpoint of a revoked partition; return whether it is complete.

        Args:
            offset: The goal: every record before it must be in a complete checkpoint.
            now: Monotonic seconds.
            until: When the caller needs to go on; the checkpoint takes at least one step.
        """
        self.audit.advance(now)
        checkpointer = self.checkpointer
        if checkpointer.idle and self.ledger.checkpointed.next_offset < offset:
            if not self.schedule.last_is_due(now, failed=checkpointer.failed or self.audit.waiting):
                return False
            self.schedule.last_begun(now)
            self._begin_checkpoint()
        checkpointer.advance(until)
        return checkpointer.idle and self.ledger.checkpointed.next_offset >= offset

    def note_changelog_end(self, table: str, end: int) -> None:
        """Compare *end*, the changelog's next offset at the broker, with this worker's own writes."""
        if self.checkpointer.idle:
            self.repair.note_end(table, end)


def _json_fields(answer: Decision | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    return {name: getattr(answer, name) for name in Decision.__struct_fields__}
