"""Checks into batches: at most one batch of a partition is in flight, so batches grow with the load.

An idle partition's batch leaves at the end of the event-loop turn that began it, a busy one's at the end of
that in which the one before it is answered, so that whoever was answered and asks again at once is in it.

Deadlines: each batch has one timer, which runs from the moment its oldest check was asked, *not* from its
sending; a check that waits behind a slow batch is let through at its own deadline all the same. Whoever
gives up first frees the partition's slot only for itself: a late reply finds its number gone.

Lanes: with several, each batch gets several replies. The first settles it; see :mod:`stoplog.client.lane_divergence`.

Breaker open: a check is answered at once, and still published, gathered for a moment; these
batches hold no slot and expire a deadline after their *sending*; a reply by then closes the breaker.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, TimerHandle
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from stoplog.client.answer import Answer, Outcome
from stoplog.client.circuit_breaker import Breaker
from stoplog.client.degraded_mode import Mode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.fail_open import BROKER, DEADLINE, FAIL_OPEN, OVERLOAD, STOPPING, UNPUBLISHED
from stoplog.client.in_flight import Pending, PendingBatch, size_of
from stoplog.client.lane_divergence import Answered
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.clock import now
from stoplog.errors import Unavailable
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Batch, Check, encode_batch
from stoplog.wire.format import NO_REPLY
from stoplog.wire.replies import Reply

GATHER_S: Final = 0.05
"""While a breaker is open nobody waits, so its checks are gathered this long into one record: brokers in
trouble, and the worker that comes back, have enough to do."""


class Carried(Protocol):
    """What goes with a batch beside its checks: a trace."""

    headers: list[tuple[str, bytes]]
    """Of the record."""

    def done(self, error: str | None) -> None:
        """The broker has acknowledged the record (``None``), or it is not published; any thread."""


class Outbox(Protocol):
    """Where batches go out: the transport."""

    incarnation: int
    reply_partition: int

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, carried: Carried | None = None
    ) -> None:
        """Publish a batch, without blocking; one that fails later is told to :meth:`Batcher.undelivered`.

        Raises:
            Unavailable: it will not be published.
        """


class _Queue:
    """One partition's batches: ``flying``, then ``full`` ones, then the one that is ``filling``."""

    __slots__ = ("breaker", "due", "filling", "flying", "full", "index", "silent", "tried")

    def __init__(self, index: int, misses: int) -> None:
        self.index = index
        self.breaker = Breaker(misses)
        self.flying: PendingBatch | None = None
        self.full: deque[PendingBatch] = deque()
        self.filling: PendingBatch | None = None
        self.silent: PendingBatch | None = None  # no reply wanted
        self.due = False  # listed for the end of the turn
        self.tried = False  # published to since the last probe

    def pop(self) -> PendingBatch | None:
        """The next to send."""
        if self.full:
            return self.full.popleft()
        batch, self.filling = self.filling, None
        return batch

    def withdraw(self, batch: PendingBatch) -> None:
        """Take out one that has not been sent."""
        if batch is self.filling:
            self.filling = None
        else:
            self.full.remove(batch)


class Batcher:
    """All partitions' batches of one gateway; of its event loop alone.

    Args:
        loop: Turns and timers.
        outbox: Where batches go.
        denials: Those that need no asking.
        rejections: What the store rejects is noted there.
        partitions: Partitions of ``checks``.
        deadline_s: Seconds until a check is let through.
        misses: Deadlines missed in a row that open a partition's breaker.
        max_in_flight: Checks that may wait for an answer.
        clock: Seconds; for latencies, finer than some loops' own time, and the deny cache's.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        outbox: Outbox,
        metrics: Metrics,
        mode: Mode,
        denials: DenyCache,
        rejections: Rejections,
        *,
        partitions: int,
        deadline_s: float,
        misses: int,
        max_in_flight: int,
        clock: Callable[[], float] = now,
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._metrics = metrics
        self._mode = mode
        self._denials = denials
        self._rejections = rejections
        self._deadline_s = deadline_s
        self._misses = misses
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._partitions = partitions
        self._queues = [_Queue(index, misses) for index in range(partitions)]
        self._pending = Pending()
        self._answered = Answered(metrics, partitions, clock)
        self._now = 0.0  # when this turn's first check was asked; 0 between turns
        self._due: list[_Queue] = []
        self._closed = False

    # --- asking -----------------------------------------------------------------------------

    def ask(self, check: Check) -> Future[Outcome] | Answer:
        """Have *check* answered: a future, or the answer if there is nothing to wait for.

        That is a denial that still holds, whatever the state of its partition, or a degraded one.
        """
        if (denial := self._denials.get(check)) is not None:
            return denial
        metrics = self._metrics
        metrics.received += 1
        queue = self._queues[partition_of(check.client, self._partitions)]
        if queue.breaker.reason is not None and not self._closed:
            self._publish_aside(queue, check)
            return self._at_once(queue.breaker.reason)
        if metrics.in_flight >= self._max_in_flight or self._closed:
            metrics.uncounted += 1
            return self._at_once(STOPPING if self._closed else OVERLOAD)
        size = size_of(check)
        batch = queue.filling
        if batch is None or not batch.has_room(size):
            if batch is not None:
                queue.full.append(batch)
            batch = queue.filling = self._pending.new(queue.index)
            batch.timer = self._loop.call_later(self._deadline_s, self._on_timer, batch)
            if queue.flying is None:
                self._at_end_of_turn(queue)
        future: Future[Outcome] = self._loop.create_future()
        batch.add(check, size, future, self._now or self._begin_turn())
        metrics.in_flight += 1
        return future

    def publish(self, check: Check) -> None:
        """Have *check* counted only."""
        self._metrics.received += 1
        self._metrics.published += 1
        if self._closed:
            self._metrics.uncounted += 1
            return
        queue = self._queues[partition_of(check.client, self._partitions)]
        size = size_of(check)
        batch = queue.silent
        if batch is None or not batch.has_room(size):
            self._send_silent(queue)
            batch = queue.silent = self._pending.new(queue.index)
            self._at_end_of_turn(queue)
        batch.add(check, size, None, 0.0)

    def _at_once(self, reason: str) -> Answer:
        self._metrics.degraded[reason] += 1
        self._metrics.latency.observe(0.0)
        return FAIL_OPEN[reason]

    def _publish_aside(self, queue: _Queue, check: Check) -> None:
        size = size_of(check)
        batch = queue.filling
        if batch is None or not batch.has_room(size):
            if batch is not None:
                self._send_aside(batch)
            batch = queue.filling = self._pending.new(queue.index)
            batch.timer = self._loop.call_later(GATHER_S, self._gathered, queue, batch)
        batch.add(check, size, None, 0.0)

    def _gathered(self, queue: _Queue, batch: PendingBatch) -> None:
        if queue.filling is batch:
            queue.filling = None
            self._send_aside(batch)

    # --- sending ----------------------------------------------------------------------------

    def _begin_turn(self) -> float:
        self._now = self._clock()
        self._loop.call_soon(self._end_turn)
        return self._now

    def _at_end_of_turn(self, queue: _Queue) -> None:
        if not queue.due:
            queue.due = True
            self._due.append(queue)
            if not self._now:
                self._begin_turn()

    def _end_turn(self) -> None:
        self._now = 0.0
        due, self._due = self._due, []
        for queue in due:
            queue.due = False
            self._send_silent(queue)
            if queue.breaker.reason is None:
                self._send_next(queue)

    def _send_next(self, queue: _Queue) -> None:
        while queue.flying is None and (batch := queue.pop()) is not None:
            queue.flying = batch
            if not self._send(batch):
                queue.flying = None

    def _send_aside(self, batch: PendingBatch) -> None:
        """Send *batch*, for which nobody waits, without a slot."""
        batch.disarm()
        if self._send(batch):
            batch.timer = self._loop.call_later(self._deadline_s, self._on_timer, batch)

    def _send_silent(self, queue: _Queue) -> None:
        batch, queue.silent = queue.silent, None
        if batch is not None:
            self._publish(batch, NO_REPLY)

    def _send(self, batch: PendingBatch) -> bool:
        batch.sent_at = self._clock()
        self._queues[batch.partition].tried = True
        self._pending.expect(batch)
        if self._publish(batch, self._outbox.reply_partition):
            return True
        self._pending.take(batch.number)
        batch.disarm()
        batch.fail_open(UNPUBLISHED, self._metrics, self._clock())
        return False

    def _publish(self, batch: PendingBatch, reply_to: int) -> bool:
        checks = len(batch.checks)
        value = encode_batch(Batch(reply_to, self._outbox.incarnation, batch.number, batch.checks))
        carried = self._carried(batch)
        try:
            self._outbox.send_checks(batch.partition, value, batch.number, checks, carried)
        except Unavailable as exc:
            if carried is not None:
                carried.done(str(exc))
            self._metrics.publish_failures += 1
            self._metrics.uncounted += checks
            return False
        if checks:
            self._metrics.batches.observe(checks)
        return True

    def _carried(self, batch: PendingBatch) -> Carried | None:
        """What goes with *batch*, which is about to be published; stoplog/client/tracing.py has something."""

    # --- what comes back --------------------------------------------------------------------

    def replied(self, replies: list[Reply]) -> None:
        """Replies to this gateway's batches, late ones and those of further lanes among them."""
        now = self._clock()
        landed = []
        for reply in replies:
            batch = self._pending.take(reply.number)
            if batch is None:
                self._replied_again(reply)
                continue
            self._answered.keep(batch.partition, reply)
            batch.disarm()
            queue = self._queues[batch.partition]
            if queue.breaker.hit():
                self._on_closed(queue)
            self._denials.learn(batch.partition, batch.checks, reply, batch.sent_at)
            batch.settle(reply, self._metrics, self._rejections, now)
            if queue.flying is batch:
                queue.flying = None
                landed.append(queue)
        for queue in landed:  # only now: those whom these replies answer come before the end of the turn
            self._at_end_of_turn(queue)

    def _replied_again(self, reply: Reply) -> None:
        """A reply to a batch that has been answered, by another lane, or given up."""
        partition = self._pending.forgive(reply.number)
        if partition is None:
            self._answered.compare(reply)
        else:
            self._metrics.late += 1
            self._answered.keep(partition, reply)

    def undelivered(self, number: int, checks: int) -> None:
        """The batch of that number could not be published, *checks* checks in it."""
        self._metrics.publish_failures += 1
        self._metrics.uncounted += checks
        batch = self._pending.give_up(number)
        if batch is not None:
            batch.disarm()
            self._give_up(batch, UNPUBLISHED)

    def _on_timer(self, batch: PendingBatch) -> None:
        # Some loops run timers before callbacks from other threads: after a stall of this loop, replies that
        # came in time may be waiting there. Let them go first.
        self._loop.call_soon(self._expire, batch, batch.timer)

    def _expire(self, batch: PendingBatch, timer: TimerHandle | None) -> None:
        if timer is None or batch.timer is not timer:  # answered meanwhile, or sent on
            return
        batch.timer = None
        if batch.sent_at:
            self._pending.give_up(batch.number)
            self._give_up(batch, DEADLINE)
        else:
            # The one before it is due in this very moment, or the loop has only now come to it.
            batch.fail_open(DEADLINE, self._metrics, self._clock())
            self._queues[batch.partition].withdraw(batch)
            self._send_aside(batch)

    def _give_up(self, batch: PendingBatch, reason: str) -> None:
        batch.fail_open(reason, self._metrics, self._clock())
        queue = self._queues[batch.partition]
        if queue.flying is not batch:
            return  # sent while the breaker was open: its miss says nothing new
        queue.flying = None
        if queue.breaker.miss():
            self._on_opened(queue, self._told(queue.index, reason))
        elif queue.breaker.reason is None:
            self._send_next(queue)

    def _told(self, partition: int, reason: str) -> str:
        """Why a breaker opened, for the operator; *reason* ended the last batch."""
        if reason == UNPUBLISHED:
            last = "could not be published: are the brokers well?"
        else:
            last = f"had no answer within {self._deadline_s * 1000:g} ms: is its worker running?"
        failed = f"partition {partition}: {self._misses} batches in a row failed"
        return f"{failed}, the last {last} GET /v1/status shows who is there"

    # --- breakers ---------------------------------------------------------------------------

    def broker_down(self, why: str) -> None:
        """No broker can be reached: let all partitions through at once until they answer again."""
        for queue in self._queues:
            if queue.breaker.trip(BROKER):
                self._on_opened(queue, why)

    def _on_opened(self, queue: _Queue, why: str) -> None:
        self._mode.opened(queue.index, why)
        now, reason = self._clock(), queue.breaker.reason
        assert reason is not None
        if queue.flying is not None:  # stays pending, without the slot: its reply may close the breaker
            queue.flying.fail_open(reason, self._metrics, now)
            queue.flying = None
        while (batch := queue.pop()) is not None:
            batch.fail_open(reason, self._metrics, now)
            self._send_aside(batch)

    def _on_closed(self, queue: _Queue) -> None:
        self._mode.closed(queue.index)
        if queue.filling is not None:
            batch, queue.filling = queue.filling, None
            self._send_aside(batch)

    def probe(self, *, doubtful: bool = False) -> None:
        """Publish an empty batch where only an answer can tell that a partition is well.

        That is: never answered yet, or open without traffic of its own. Once a tick.

        Args:
            doubtful: The broker seems away: every partition without traffic is asked.
        """
        for queue in self._queues:
            if not queue.tried and queue.breaker.reason is not None:
                self._send_aside(self._pending.new(queue.index))
            elif not queue.tried and (doubtful or not queue.breaker.proven) and queue.flying is None:
                queue.flying = batch = self._pending.new(queue.index)
                batch.timer = self._loop.call_later(self._deadline_s, self._on_timer, batch)
                if not self._send(batch):
                    queue.flying = None
            queue.tried = False

    @property
    def calm(self) -> bool:
        """Whether every partition's last batch was answered in time."""
        return not any(queue.breaker.missed or queue.breaker.reason for queue in self._queues)

    @property
    def unproven(self) -> list[int]:
        """Partitions that have never answered."""
        return [queue.index for queue in self._queues if not queue.breaker.proven]

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more checks; those asked before may still be answered."""
        self._closed = True
        self._denials.close()

    def waiting(self) -> list[Future[Outcome]]:
        """The futures of all checks that have no answer yet."""
        return [future for batch in self._unanswered() for future in batch.futures]

    def let_go(self) -> None:
        """Answer whoever still waits, publish what is still open, and expect no more replies."""
        self._end_turn()
        for batch in self._unanswered():
            batch.fail_open(STOPPING, self._metrics, self._clock())
        for queue in self._queues:
            while (unsent := queue.pop()) is not None:
                self._send_aside(unsent)
        for batch in self._pending.drain():
            batch.disarm()

    def _unanswered(self) -> list[PendingBatch]:
        return [
            batch
            for queue in self._queues
            for batch in (queue.flying, *queue.full, queue.filling)
            if batch is not None
        ]
