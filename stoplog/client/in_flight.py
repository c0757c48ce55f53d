"""A batch of checks and those who wait for its answers; and the batches that await a reply."""

from __future__ import annotations

import logging
from asyncio import Future, TimerHandle
from collections import OrderedDict
from itertools import count
from typing import Final

from stoplog.client.answer import Outcome, from_decision
from stoplog.client.fail_open import FAIL_OPEN, REJECTED_BATCH, REPLAYED
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.errors import InvalidInput
from stoplog.wire.checks import MAX_BATCH, Check
from stoplog.wire.replies import Decision, Reply

log = logging.getLogger(__name__)

MAX_BYTES: Final = 900 * 1024
"""Bytes of msgpack in one batch, by :func:`size_of`; a record of ``checks`` may have 1 MiB, and
librdkafka sends at most 1,000,000 bytes."""

MAX_GIVEN_UP: Final = 65_536
"""Batches given up of which a late reply is still recognized as such: 10 MB of numbers at most."""


def size_of(check: Check) -> int:
    """Bytes that *check* adds to a batch, at most: four for each character, and msgpack's own."""
    return 16 + 4 * (len(check.client) + len(check.plan) + len(check.resource))


class PendingBatch:
    """Checks of one partition, in the order asked.

    ``futures`` holds one future a check, in their order, or none at all: nobody waits (any more). ``sent_at``
    is when it was given to the outbox, in seconds; 0: not yet.
    """

    __slots__ = ("_asked", "_bytes", "checks", "futures", "number", "partition", "sent_at", "timer")

    def __init__(self, number: int, partition: int) -> None:
        self.number = number
        self.partition = partition
        self.checks: list[Check] = []
        self.futures: list[Future[Outcome]] = []
        self.sent_at = 0.0
        self.timer: TimerHandle | None = None
        self._asked: list[tuple[float, int]] = []
        self._bytes = 0

    def has_room(self, size: int) -> bool:
        """Whether a check of *size* bytes still fits."""
        return len(self.checks) < MAX_BATCH and self._bytes + size <= MAX_BYTES

    def add(self, check: Check, size: int, future: Future[Outcome] | None, now: float) -> None:
        """Append *check*, asked at *now* (seconds); checks of one loop turn come with the same *now*."""
        if future is not None:
            if not self._asked or self._asked[-1][0] != now:
                self._asked.append((now, len(self.futures)))
            self.futures.append(future)
        self.checks.append(check)
        self._bytes += size

    def disarm(self) -> None:
        """Cancel its timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def settle(self, reply: Reply, metrics: Metrics, rejections: Rejections, now: float) -> None:
        """Resolve every future by *reply*."""
        if not self.futures:
            return
        if reply.error is not None or len(reply.answers) != len(self.checks):
            why = reply.error or f"{len(reply.answers)} answers to {len(self.checks)} checks"
            if not metrics.degraded[REJECTED_BATCH]:
                log.error(
                    "a worker could not judge a batch: %s; are all workers of this gateway's version? "
                    "stoplog_checks_degraded_total{reason=%r} counts the checks, this is logged once",
                    why,
                    REJECTED_BATCH,
                )
            self.fail_open(REJECTED_BATCH, metrics, now)
            return
        allowed = rejected = replayed = invalid = 0
        for future, check, decision in zip(self.futures, self.checks, reply.answers, strict=True):
            outcome: Outcome
            if type(decision) is Decision:
                if decision.allowed:
                    allowed += 1
                else:
                    rejected += 1
                    rejections.add(check.client)
                outcome = from_decision(decision)
            elif decision is None:
                replayed += 1
                outcome = FAIL_OPEN[REPLAYED]
            else:
                invalid += 1
                outcome = InvalidInput("client_id", str(decision), "correct the check, then ask again")
            if not future.done():  # its caller may have gone
                future.set_result(outcome)
        metrics.allowed += allowed
        metrics.rejected += rejected
        metrics.degraded[REPLAYED] += replayed
        metrics.invalid += invalid
        self._leave(metrics, now)

    def fail_open(self, reason: str, metrics: Metrics, now: float) -> None:
        """Resolve every future that still waits to the degraded answer of *reason*."""
        answer = FAIL_OPEN[reason]
        for future in self.futures:
            if not future.done():
                future.set_result(answer)
        metrics.degraded[reason] += len(self.futures)
        self._leave(metrics, now)

    def _leave(self, metrics: Metrics, now: float) -> None:
        left = len(self.futures)
        metrics.in_flight -= left
        for asked, first in reversed(self._asked):
            metrics.latency.observe(now - asked, left - first)
            left = first
        self._asked.clear()
        self.futures.clear()


class Pending:
    """Batches that were sent and await a reply, by number; numbers are never used again."""

    __slots__ = ("_batches", "_given_up", "_numbers")

    def __init__(self) -> None:
        self._batches: dict[int, PendingBatch] = {}
        self._given_up: OrderedDict[int, int] = OrderedDict()
        self._numbers = count(1)

    def new(self, partition: int) -> PendingBatch:
        """A batch with a number of its own; not awaited before :meth:`expect`."""
        return PendingBatch(next(self._numbers), partition)

    def expect(self, batch: PendingBatch) -> None:
        """Its reply may come from now on."""
        self._batches[batch.number] = batch

    def take(self, number: int) -> PendingBatch | None:
        """The batch of that number, which is awaited no longer; ``None`` if it was not (any more)."""
        return self._batches.pop(number, None)

    def give_up(self, number: int) -> PendingBatch | None:
        """As :meth:`take`, of a batch that was not answered in time: a reply to it is late."""
        batch = self.take(number)
        if batch is not None:
            self._given_up[number] = batch.partition
            if len(self._given_up) > MAX_GIVEN_UP:
                self._given_up.popitem(last=False)
        return batch

    def forgive(self, number: int) -> int | None:
        """The partition of a batch that was given up, to which a reply has come after all."""
        return self._given_up.pop(number, None)

    def drain(self) -> list[PendingBatch]:
        """All of them; none is awaited any more."""
        batches = list(self._batches.values())
        self._batches.clear()
        return batches
