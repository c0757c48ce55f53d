"""A batch of checks, and the callers that wait for its answers."""

from __future__ import annotations

import logging
from asyncio import Future, TimerHandle
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from stoplog.client.answer import Answer, Outcome, from_decision, from_held_decision
from stoplog.client.fail_open import NO_HOLDS, REJECTED_BATCH, REPLAYED, degraded_answer
from stoplog.client.lease_table import SentAsk
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.wire.checks import MAX_BATCH, Check
from stoplog.wire.holds import REFUND, RESERVATION, Ask, Settlement
from stoplog.wire.replies import Decision, HeldDecision, Reply, as_held

log = logging.getLogger(__name__)

MAX_BYTES: Final = 900 * 1024
"""Upper bound of a batch's :attr:`PendingBatch.size`. A record of ``checks`` may have 1 MiB, and librdkafka
sends at most 1,000,000 bytes."""

ROW_BYTES: Final = 200
"""What the ask and the settlements of one check may add to a record."""

Rescue: TypeAlias = Callable[[Check], Answer | None]


def no_rescue(_check: Check) -> None:
    """Answer no check."""


class HoldCall(NamedTuple):
    """What a check asks and settles about reservations.

    Attributes:
        ask: The reservation, charge or refund that it asks for; ``None`` if it only settles.
        settlements: The reservations that it settles.
    """

    ask: Ask | None
    settlements: tuple[Settlement, ...]

    @property
    def reserves(self) -> bool:
        """Whether it asks for a reservation: the check is counted, and may be denied."""
        return self.ask is not None and self.ask.kind == RESERVATION

    @property
    def takes_lease(self) -> bool:
        """Whether the lease of its client goes back to the log with it.

        A reservation could be denied because of permits that are held here. A refund returns charges, which
        permits that were spent become when they are settled.
        """
        return self.ask is not None and self.ask.kind in (RESERVATION, REFUND)


_NONE: Final[set[Future[Outcome]]] = set()
"""Stays empty, and saves a set for each batch whose checks all fail open."""


def _log_rejected(metrics: Metrics, why: str) -> None:
    """Log why a worker has refused a batch or a check. The gateway has validated both."""
    if not metrics.degraded[REJECTED_BATCH] and not metrics.failed_closed[REJECTED_BATCH]:
        log.error(
            "a worker refused what this gateway sent: %s. Do all workers have this gateway's version? Did "
            "the number of partitions grow while this gateway was cut off? This is logged once; "
            "stoplog_checks_degraded_total{reason=%r} counts the checks",
            why,
            REJECTED_BATCH,
        )


def _why_undecided(refusal: str | None, metrics: Metrics) -> str:
    """Return the reason of a check that a worker did not decide, and log its *refusal* if there is one."""
    if refusal is None:
        return REPLAYED
    _log_rejected(metrics, refusal)
    return REJECTED_BATCH


class PendingBatch:
    """Checks of one partition, in the order in which they were asked.

    Args:
        number: Identifies the batch in its reply.
        partition: The partition of ``checks``.
        rescue: Returns the answer to a check that was denied, or not answered in time, if the permits of a
            lease cover it.

    Attributes:
        number: Identifies the batch in its reply.
        partition: The partition of ``checks``.
        checks: The checks.
        futures: One future for each check, in the same order; empty if no caller waits.
        size: Upper bound of the bytes of msgpack: four for each character of an id, and overhead.
        sent_at: When the batch was given to the transport, in seconds; 0 before that.
        marked: Indexes of the checks that may carry asks and settlements
            (:meth:`stoplog.client.lease_cache.LeaseCache.note`).
        asks: The asks for leases that it was sent with.
        holds: The checks about reservations, by their index.
        incomplete: What the replies of some lanes contain while answers are missing. It counts if they do not
            come by the deadline.
        timer: The timer of the deadline, or of the end of gathering; ``None`` if none runs.
    """

    __slots__ = (
        "_asked",
        "_fail_closed",
        "_rescue",
        "asks",
        "checks",
        "futures",
        "holds",
        "incomplete",
        "marked",
        "number",
        "partition",
        "sent_at",
        "size",
        "timer",
    )

    def __init__(self, number: int, partition: int, rescue: Rescue = no_rescue) -> None:
        self._rescue = rescue
        self.marked: list[int] = []
        self.asks: list[SentAsk] = []
        self.holds: dict[int, HoldCall] = {}
        self.incomplete: Reply | None = None
        self.number = number
        self.partition = partition
        self.checks: list[Check] = []
        self.futures: list[Future[Outcome]] = []
        self.size = 0
        self.sent_at = 0.0
        self.timer: TimerHandle | None = None
        self._asked: list[tuple[float, int]] = []  # time of each turn of the loop, index of its first future
        self._fail_closed: set[Future[Outcome]] = _NONE

    def add(self, check: Check, future: Future[Outcome] | None, asked_at: float) -> bool:
        """Append *check* if it fits. Return whether it did.

        Args:
            check: The check.
            future: Resolved with the answer; ``None`` if no caller waits. All checks of a batch that waits
                have a future.
            asked_at: Seconds; all checks of one turn of the event loop have the same time.
        """
        size = self.size + 16 + 4 * (len(check.client) + len(check.plan) + len(check.resource))
        if size > MAX_BYTES or len(self.checks) >= MAX_BATCH:
            return False
        self.size = size
        if future is not None:
            if not self._asked or self._asked[-1][0] != asked_at:
                self._asked.append((asked_at, len(self.futures)))
            self.futures.append(future)
        self.checks.append(check)
        return True

    def fail_closed(self, future: Future[Outcome]) -> None:
        """Have the check of *future*, which was added, fail closed if the store does not decide it."""
        if self._fail_closed is _NONE:
            self._fail_closed = set()
        self._fail_closed.add(future)

    def mark_last(self) -> None:
        """Mark the last check. Its row makes the record longer."""
        self.marked.append(len(self.checks) - 1)
        self.size += ROW_BYTES

    def hold_last(self, call: HoldCall) -> None:
        """Have the last check ask for a reservation, or settle one."""
        self.holds[len(self.checks) - 1] = call
        self.size += ROW_BYTES

    def cancel_timer(self) -> None:
        """Cancel the timer, if one runs."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def completed(self, reply: Reply) -> Reply:
        """Return :attr:`incomplete` with the answers that it lacks and *reply*, of another lane, has.

        It has applied only the updates that both lanes have applied. A reply that answers no check, or not
        each of them, is returned as it is.
        """
        kept = self.incomplete
        if kept is None or reply.error is not None or len(reply.answers) != len(kept.answers):
            return reply
        pairs = zip(kept.answers, reply.answers, strict=True)
        answers = [other if one is None else one for one, other in pairs]
        return replace(kept, answers=answers, applied=min(kept.applied, reply.applied))

    def resolve(self, reply: Reply, metrics: Metrics, rejections: Rejections, now: float) -> None:
        """Resolve every future with its answer in *reply*."""
        if not self.futures:
            return
        if reply.error is not None or len(reply.answers) != len(self.checks):
            why = reply.error or f"{len(reply.answers)} answers to {len(self.checks)} checks"
            _log_rejected(metrics, why)
            self.degrade(REJECTED_BATCH, metrics, now)
            return
        allowed = rejected = 0
        futures, checks, answers = self.futures, self.checks, reply.answers
        if self.holds:
            self._resolve_holds(reply, metrics, rejections)
            others = [index for index in range(len(checks)) if index not in self.holds]
            futures, checks = [futures[index] for index in others], [checks[index] for index in others]
            answers = [answers[index] for index in others]
        for future, check, decision in zip(futures, checks, answers, strict=True):
            outcome: Outcome
            if isinstance(decision, Decision):
                if decision.allowed:
                    allowed += 1
                    outcome = from_decision(decision)
                elif (rescued := self._rescue(check)) is not None:
                    allowed += 1
                    outcome = rescued
                else:
                    rejected += 1
                    rejections.add(check.client)
                    outcome = from_decision(decision)
            else:
                reason = _why_undecided(decision, metrics)
                fails_closed = future in self._fail_closed
                outcome = degraded_answer(reason, fails_closed)
                metrics.count_degraded(reason, fails_closed)
            if not future.done():  # its caller may have canceled it
                future.set_result(outcome)
        metrics.allowed += allowed
        metrics.rejected += rejected
        self._release_futures(metrics, now)

    def _resolve_holds(self, reply: Reply, metrics: Metrics, rejections: Rejections) -> None:
        """Resolve the futures of the checks about reservations. Permits never answer them."""
        for index, call in self.holds.items():
            future, decision, reserves = self.futures[index], reply.answers[index], call.reserves
            outcome: Outcome
            if isinstance(decision, Decision) and reserves and not decision.allowed:
                metrics.rejected += 1
                rejections.add(self.checks[index].client)
                outcome = from_held_decision(as_held(decision))
            elif isinstance(decision, HeldDecision):
                metrics.allowed += reserves
                outcome = from_held_decision(decision)
            else:
                # The reply has no fields about holds if the batch was sent without them.
                reason = NO_HOLDS if isinstance(decision, Decision) else _why_undecided(decision, metrics)
                outcome = self._degraded_hold(future, reason, reserves, metrics)
            if not future.done():
                future.set_result(outcome)

    def _degraded_hold(
        self, future: Future[Outcome], reason: str, reserves: bool, metrics: Metrics
    ) -> Answer:
        fails_closed = future in self._fail_closed
        if reserves:
            metrics.count_degraded(reason, fails_closed)
        return degraded_answer(reason, fails_closed)

    def degrade(self, reason: str, metrics: Metrics, now: float) -> None:
        """Resolve every future that still waits: by the permits of a lease, else with a degraded answer.

        Args:
            reason: The reason of degraded answers.
            metrics: Counts the answers.
            now: Seconds.
        """
        fail_closed = self._fail_closed
        closed = len(fail_closed)
        opened = len(self.futures) - closed
        for index, call in self.holds.items() if self.futures else ():
            future = self.futures[index]
            fails_closed = future in fail_closed
            opened, closed = opened - (not fails_closed), closed - fails_closed
            if not future.done():
                future.set_result(self._degraded_hold(future, reason, call.reserves, metrics))
        for future, check in zip(self.futures, self.checks, strict=True) if self.futures else ():
            if future.done():
                continue
            fails_closed = future in fail_closed
            answer = self._rescue(check)
            if answer is None:
                answer = degraded_answer(reason, fails_closed)
            else:
                metrics.allowed += 1
                opened, closed = opened - (not fails_closed), closed - fails_closed
            future.set_result(answer)
        metrics.count_degraded(reason, False, opened)
        metrics.count_degraded(reason, True, closed)
        self._release_futures(metrics, now)

    def _release_futures(self, metrics: Metrics, now: float) -> None:
        left = len(self.futures)
        metrics.in_flight -= left
        for asked_at, first in reversed(self._asked):
            metrics.latency.observe(now - asked_at, left - first)
            left = first
        self._asked.clear()
        self.futures.clear()
        self._fail_closed = _NONE
