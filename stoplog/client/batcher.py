"""Route checks to their partitions, and send their batches at the end of a turn of the event loop.

At most one batch of a partition is in flight, so batches grow with the load. The batch of an idle partition
is sent at the end of the turn in which it began. The batch of a busy partition is sent at the end of the turn
in which the reply to the previous one arrives. It thus includes the next check of a caller just answered.

:mod:`stoplog.client.partition_queue` describes the life of a batch, and :mod:`stoplog.client.fail_open` the
rule for checks without a timely reply. With several lanes each batch gets several replies. The first one
answers the checks; the others are compared with it (:mod:`stoplog.client.lane_divergence`). A lane that has
decided a check before a restart has no answer to it any more. Other lanes then complete its reply. What is
still missing at the deadline fails open.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from functools import partial

from stoplog.client.answer import Answer, Outcome, PendingAnswer
from stoplog.client.arrivals import Arrivals
from stoplog.client.batch_sender import BatchSender, CheckTransport
from stoplog.client.circuit_breaker import CLOSED
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.fail_open import GROWING, NO_HOLDS, OVERLOAD, STOPPING, Deadlines, degraded_answer
from stoplog.client.in_flight import InFlight
from stoplog.client.instrumentation import Instrumentation
from stoplog.client.lane_divergence import DivergenceDetector
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.metrics import Metrics
from stoplog.client.partition_queue import PartitionQueue
from stoplog.client.pending_batch import HoldCall, PendingBatch
from stoplog.client.top_rejected import Rejections
from stoplog.clock import now
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Check
from stoplog.wire.replies import Reply


class Batcher:
    """The batches of all partitions of one gateway. Use it from its event loop only.

    Args:
        loop: Runs turns and timers.
        transport: Publishes batches.
        metrics: Counts checks and batches.
        mode: Learns when a partition's circuit breaker opens and closes.
        denials: Answers checks that are known to be denied.
        leases: Answers checks that permits cover.
        updates: What *denials* and *leases* still have to learn about limit updates. It is handled before a
            check is answered.
        rejections: Counts rejected checks by client.
        partitions: Number of partitions of ``checks``.
        deadline_s: Seconds until a check fails open.
        max_misses: Deadlines missed in a row that open a partition's circuit breaker.
        max_in_flight: Checks that may wait for an answer.
        instrumentation: Observes checks and batches, if given.
        clock: Returns monotonic seconds, at a finer resolution than the time of some event loops. The deny
            cache and the lease cache must use the same clock.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        transport: CheckTransport,
        metrics: Metrics,
        mode: DegradedMode,
        denials: DenyCache,
        leases: LeaseCache,
        updates: Arrivals,
        rejections: Rejections,
        *,
        partitions: int,
        deadline_s: float,
        max_misses: int,
        max_in_flight: int,
        instrumentation: Instrumentation | None = None,
        clock: Callable[[], float] = now,
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self._denials = denials
        self._leases = leases
        self._updates = updates
        self._rejections = rejections
        self._max_in_flight = max_in_flight
        self._instrumentation = instrumentation
        self._clock = clock
        self._partitions = partitions
        self._in_flight = InFlight(partial(leases.get, renew=False))
        self._divergence = DivergenceDetector(metrics, partitions, clock)
        sender = BatchSender(transport, self._in_flight, leases, metrics, instrumentation, clock)
        deadlines = Deadlines(loop, deadline_s, self._on_deadline)
        self._queues = [
            PartitionQueue(index, loop, self._in_flight, sender, deadlines, mode, metrics, clock, max_misses)
            for index in range(partitions)
        ]
        self._turn_began = 0.0  # when this turn's first check was asked; 0 between turns
        self._gathers = False  # whether checks that wait for an answer were asked in this turn
        self._scheduled: list[PartitionQueue] = []
        self._closed: str | None = None
        """The reason of all answers from now on; ``None`` while checks are accepted."""

    # --- checks -----------------------------------------------------------------------------

    def ask(self, check: Check, fails_closed: bool = False) -> PendingAnswer:
        """Return the answer to *check* if it need not wait, else a future that resolves to it.

        A check need not wait if permits of a lease cover it, if the deny cache holds its denial, or if it
        fails open or closed at once.

        Args:
            check: The check.
            fails_closed: Deny the check if the store does not decide it; by default, allow it.
        """
        if self._updates.waiting:
            self._updates.handle()
        if (answer := self._leases.get(check)) is not None:
            return self._leased(check, answer)
        if self._denials.knows(check.client):
            # The log may deny a check that permits cover: it counts them as spent.
            if (answer := self._leases.get(check, renew=False)) is not None:
                return self._leased(check, answer)
            if (answer := self._denials.get(check)) is not None:
                return self._known(check, answer)
        metrics = self._metrics
        queue = self._queues[partition_of(check.client, self._partitions)]
        if queue.breaker.state is not CLOSED and not self._closed:
            if (answer := self._answer_without_log(check)) is not None:
                return answer
            metrics.received += 1
            if fails_closed or not self._leases.spend(check):
                queue.gather(check)
            return self._degrade(check, queue.breaker.state, fails_closed, queue.filling)
        if metrics.in_flight >= self._max_in_flight or self._closed:
            if (answer := self._answer_without_log(check)) is not None:
                return answer
            metrics.received += 1
            self._count_unpublished()
            return self._degrade(check, self._closed or OVERLOAD, fails_closed, None)
        metrics.received += 1
        future: Future[Outcome] = self._loop.create_future()
        if queue.enqueue(check, future, self._turn_began or self._begin_turn()) and queue.slot is None:
            self._schedule(queue)
            self._gathers = True
        metrics.in_flight += 1
        if self._leases.note(queue.index, check) and queue.filling is not None:
            queue.filling.mark_last()
        if fails_closed and queue.filling is not None:
            queue.filling.fail_closed(future)
        if self._instrumentation is not None and queue.filling is not None:
            self._instrumentation.on_wait(check, future, queue.filling)
        return future

    def hold(self, check: Check, call: HoldCall, fails_closed: bool = False) -> PendingAnswer:
        """As :meth:`ask`, for a check about a reservation, a charge or a refund. No permits answer it.

        The permits of its client's lease, and of one that is being granted, go back with a reservation, which
        is not denied because of them. They go back with a refund, too: it returns what was spent of them.

        Args:
            check: The check. Its cost is what it reserves; 0 for all other calls.
            call: What it asks for or settles.
            fails_closed: Deny a reservation if the store does not decide it; by default, allow it.
        """
        if self._updates.waiting:
            self._updates.handle()
        metrics, reserves = self._metrics, call.reserves
        if reserves and (answer := self._denials.get(check)) is not None:
            return self._known(check, answer)
        metrics.received += reserves
        queue = self._queues[partition_of(check.client, self._partitions)]
        if self._closed or metrics.in_flight >= self._max_in_flight:
            if self._closed != GROWING or call.ask is not None:  # settled after the pause
                self._count_unpublished()
            return self._degrade_hold(check, self._closed or OVERLOAD, reserves, fails_closed)
        if not self._leases.grants_holds(queue.index):
            if reserves and queue.enqueue_without_reply(check):
                self._schedule(queue)
            return self._degrade_hold(check, NO_HOLDS, reserves, fails_closed)
        if queue.breaker.state is not CLOSED:
            queue.gather(check)
            assert queue.filling is not None
            queue.filling.hold_last(call)
            return self._degrade_hold(check, queue.breaker.state, reserves, fails_closed)
        future: Future[Outcome] = self._loop.create_future()
        if queue.enqueue(check, future, self._turn_began or self._begin_turn()) and queue.slot is None:
            self._schedule(queue)
        metrics.in_flight += 1
        batch = queue.filling
        assert batch is not None
        batch.hold_last(call)
        if call.takes_lease and self._leases.give_back(check):
            batch.mark_last()
        if fails_closed:
            batch.fail_closed(future)
        if self._instrumentation is not None:
            self._instrumentation.on_wait(check, future, batch)
        return future

    def grants_holds(self, client: str) -> bool:
        """Return whether the partition of *client* grants reservations, as far as this process knows."""
        return self._leases.grants_holds(partition_of(client, self._partitions))

    def hold_at_once(self, check: Check, call: HoldCall, fails_closed: bool = False) -> Answer:
        """As :meth:`hold`, but degrade the reservation or settlement with the reason ``overload``.

        It is published all the same: the store may grant the reservation, and makes the settlement.
        """
        if self._gathers:
            self._end_turn()
        if self._updates.waiting:
            self._updates.handle()
        reserves = call.reserves
        queue = self._queues[partition_of(check.client, self._partitions)]
        if self._closed or queue.breaker.state is not CLOSED or not self._leases.grants_holds(queue.index):
            pending = self.hold(check, call, fails_closed)
            assert isinstance(pending, Answer), "it does not wait for this partition"
            return pending
        if reserves and (answer := self._denials.get(check, failing_open=True)) is not None:
            return self._known(check, answer)
        self._metrics.received += reserves
        if queue.enqueue_without_reply(check):
            self._schedule(queue)
        assert queue.no_reply is not None
        queue.no_reply.hold_last(call)
        return self._degrade_hold(check, OVERLOAD, reserves, fails_closed)

    def _degrade_hold(self, check: Check, reason: str, reserves: bool, fails_closed: bool) -> Answer:
        if not reserves:
            return degraded_answer(reason, False)
        return self._degrade(check, reason, fails_closed, None)

    def answer_at_once(self, check: Check, fails_closed: bool = False) -> PendingAnswer:
        """Return a degraded answer to *check*, because the caller has no time for more. It is still counted.

        The batches of this turn are sent now: no check will join them, and the store can decide them while
        the caller says to others that there is no time.

        The arguments are those of :meth:`ask`.
        """
        if self._gathers:
            self._end_turn()
        if self._updates.waiting:
            self._updates.handle()
        queue = self._queues[partition_of(check.client, self._partitions)]
        if queue.breaker.state is not CLOSED or self._closed:
            return self.ask(check, fails_closed)
        if (answer := self._answer_without_log(check)) is not None:
            return answer
        self._metrics.received += 1
        self._leases.count(queue.index, check)
        if queue.enqueue_without_reply(check):
            self._schedule(queue)
        return self._degrade(check, OVERLOAD, fails_closed, queue.no_reply)

    def publish(self, check: Check) -> None:
        """Have *check* counted without an answer."""
        self._metrics.received += 1
        self._metrics.published += 1
        if self._closed:
            self._count_unpublished()
            return
        queue = self._queues[partition_of(check.client, self._partitions)]
        if queue.enqueue_without_reply(check):
            self._schedule(queue)
        if self._instrumentation is not None and queue.no_reply is not None:
            self._instrumentation.on_publish_only(queue.no_reply)

    def _count_unpublished(self) -> None:
        """Count a call that is not published: a check, a settlement, a charge or a refund."""
        self._metrics.count_unpublished(growing=self._closed == GROWING)

    def _answer_without_log(self, check: Check) -> Answer | None:
        """Return the answer to a check that otherwise fails open, if it is certain."""
        if (answer := self._leases.get(check, renew=False)) is not None:
            return self._leased(check, answer)
        if (answer := self._denials.get(check, failing_open=True)) is not None:
            return self._known(check, answer)
        return None

    def _leased(self, check: Check, answer: Answer) -> Answer:
        metrics = self._metrics
        metrics.received += 1
        metrics.allowed += 1
        metrics.latency.observe(0.0)
        return self._known(check, answer)

    def _known(self, check: Check, answer: Answer) -> Answer:
        if self._instrumentation is not None:
            self._instrumentation.on_answer(check, answer, None)
        return answer

    def _degrade(self, check: Check, reason: str, fails_closed: bool, batch: PendingBatch | None) -> Answer:
        answer = degraded_answer(reason, fails_closed)
        self._metrics.count_degraded(reason, fails_closed)
        self._metrics.latency.observe(0.0)
        if self._instrumentation is not None:
            self._instrumentation.on_answer(check, answer, batch)
        return answer

    # --- the turn of the event loop -----------------------------------------------------------

    def _begin_turn(self) -> float:
        self._turn_began = self._clock()
        self._loop.call_soon(self._end_turn)
        return self._turn_began

    def _schedule(self, queue: PartitionQueue) -> None:
        """Have *queue* send its next batch at the end of this turn."""
        if not queue.scheduled:
            queue.scheduled = True
            self._scheduled.append(queue)
            if not self._turn_began:
                self._begin_turn()

    def _end_turn(self) -> None:
        self._turn_began, self._gathers = 0.0, False
        scheduled, self._scheduled = self._scheduled, []
        for queue in scheduled:
            queue.on_turn_end()

    # --- events -----------------------------------------------------------------------------

    def on_replies(self, replies: list[Reply]) -> None:
        """Handle replies to this gateway's batches, including late ones and those of further lanes."""
        now = self._clock()
        freed = []
        for reply in replies:
            batch = self._in_flight.take(reply.number)
            if batch is None:
                self._on_further_reply(reply)
                continue
            known = self._completed(batch, reply)
            if self._divergence.lanes > 1 and None in known.answers and batch.futures:
                batch.incomplete = known
                self._in_flight.add(batch)
                continue
            if self._on_first_reply(batch, known, now):
                freed.append(self._queues[batch.partition])
        # Scheduled last: the callers that these replies answer run before the end of the turn.
        for queue in freed:
            self._schedule(queue)

    def _completed(self, batch: PendingBatch, reply: Reply) -> Reply:
        """Return what *reply* and those before it contain, and keep it for comparisons."""
        if batch.incomplete is None:
            self._divergence.remember(batch.partition, reply)
            return reply
        self._divergence.compare(reply)
        known = batch.completed(reply)
        self._divergence.complete(known)
        return known

    def _on_first_reply(self, batch: PendingBatch, reply: Reply, now: float) -> bool:
        """Answer the checks of *batch*. Return whether that freed the slot of its partition."""
        slot_freed = self._queues[batch.partition].on_reply(batch)
        self._answer(batch, reply, now)
        return slot_freed

    def _answer(self, batch: PendingBatch, reply: Reply, now: float) -> None:
        """Answer the checks of *batch* that still wait, and learn from *reply*."""
        shown = self._leases.show(batch.checks, batch.asks, reply) if batch.futures else reply
        if batch.asks or reply.error is not None:
            self._leases.learn(batch.partition, batch.asks, reply, batch.sent_at)
        held = self._leases.grants_holds(batch.partition)
        self._denials.learn(batch.partition, batch.checks, reply, batch.sent_at, held=held)
        for index in batch.holds:
            self._denials.on_hold(batch.checks[index])
        batch.resolve(shown, self._metrics, self._rejections, now)

    def _on_further_reply(self, reply: Reply) -> None:
        """Handle a reply to a batch that another lane has answered, or that was given up."""
        partition = self._in_flight.take_given_up(reply.number)
        if partition is None:
            self._divergence.compare(reply)
        else:
            self._metrics.late += 1
            self._divergence.remember(partition, reply)

    def on_undelivered(self, number: int, checks: int) -> None:
        """Handle a batch of *checks* checks that could not be published."""
        self._metrics.publish_failures += 1
        self._metrics.uncounted += checks
        batch = self._in_flight.give_up(number)
        if batch is not None:
            self._leases.abandon(batch.asks)
            self._queues[batch.partition].on_undelivered(batch)

    def on_lanes(self, lanes: int) -> None:
        """Note how many lanes have a worker that is alive."""
        self._divergence.lanes = lanes

    def _on_deadline(self, batch: PendingBatch) -> None:
        if batch.incomplete is not None and self._in_flight.take(batch.number) is not None:
            if not batch.futures:
                # The circuit breaker has opened since that reply came: only a later one closes it.
                self._answer(batch, batch.incomplete, self._clock())
            elif self._on_first_reply(batch, batch.incomplete, self._clock()):
                self._schedule(self._queues[batch.partition])
            return
        self._leases.abandon(batch.asks)
        self._queues[batch.partition].on_deadline(batch)

    def on_broker_down(self, why: str) -> None:
        """Open every partition's circuit breaker, because no broker can be reached."""
        for queue in self._queues:
            queue.trip(why)

    def await_workers(self, why: str) -> None:
        """Open every partition's circuit breaker until its worker, which is known to start, replies."""
        for queue in self._queues:
            queue.await_worker(why)

    def probe(self, *, broker_in_doubt: bool = False) -> None:
        """Probe every partition that needs it (:meth:`PartitionQueue.probe`)."""
        for queue in self._queues:
            queue.probe(broker_in_doubt=broker_in_doubt)

    # --- state ------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether every partition replied in time to its last batch."""
        return not any(queue.breaker.misses or queue.breaker.state is not CLOSED for queue in self._queues)

    @property
    def never_replied(self) -> list[int]:
        """The partitions that have never replied in time."""
        return [queue.index for queue in self._queues if not queue.breaker.has_replied]

    # --- the end ----------------------------------------------------------------------------

    def close(self, reason: str = STOPPING) -> None:
        """Publish no more checks: degrade them with *reason*. Checks that wait may still be answered."""
        self._closed = reason
        self._denials.close()
        self._leases.close()

    def waiting(self) -> list[Future[Outcome]]:
        """Return the futures of all checks that wait."""
        return [future for queue in self._queues for batch in queue.unanswered() for future in batch.futures]

    def stop(self) -> None:
        """Answer every check that still waits, send every batch, and expect no more replies.

        The batcher is closed.
        """
        reason = self._closed or STOPPING
        self._end_turn()
        for queue in self._queues:
            for batch in queue.unanswered():
                batch.degrade(reason, self._metrics, self._clock())
        for queue in self._queues:
            queue.send_all()
        for batch in self._in_flight.drain():
            batch.cancel_timer()
