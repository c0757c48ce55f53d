"""The life of a batch: one partition's checks, from the first enqueued to the last answered."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from typing import Final

from stoplog.client.answer import Outcome
from stoplog.client.batch_sender import BatchSender
from stoplog.client.circuit_breaker import CLOSED, CircuitBreaker
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.fail_open import DEADLINE, UNPUBLISHED, Deadlines
from stoplog.client.in_flight import InFlight
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import PendingBatch
from stoplog.wire.checks import Check

GATHER_S: Final = 0.05
"""Seconds for which checks are gathered into one batch while the circuit breaker is open. No caller waits
for them, and few large records are less work for brokers in trouble and for a worker that returns."""


class PartitionQueue:
    """One partition's batches. At most one of them holds the *slot*, so batches grow with the load.

    ================  =======================================================================================
    move              effect
    ================  =======================================================================================
    enqueue           A check joins the batch being filled. A full batch waits behind the slot.
    next_batch        The oldest batch takes the free slot; it is sent next.
    on_reply          The slot becomes free, and the circuit breaker closes if it was open.
    on_deadline       The checks of the batch fail open. The slot becomes free; the miss may open the breaker.
    on_undelivered    The same, for a batch that could not be published.
    trip              The breaker opens: every waiting check fails open, and every batch is sent.
    gather            While the breaker is open, a check joins a batch that is sent without the slot.
    ================  =======================================================================================

    A batch that is sent without the slot has no waiting checks. Its deadline starts when it is sent, and a
    reply before that deadline closes the breaker.

    Args:
        index: The partition.
        loop: Runs the timer of gathering.
        in_flight: Numbers the batches and keeps those that were sent.
        sender: Publishes batches.
        deadlines: Ends the wait of batches.
        mode: Learns when the circuit breaker opens and closes.
        metrics: Counts the checks that fail open.
        clock: Returns seconds.
        max_misses: Deadlines missed in a row that open the circuit breaker.

    Attributes:
        index: The partition.
        breaker: The circuit breaker of the partition.
        slot: The batch that holds the slot; ``None`` if it is free.
        filling: The batch that the next check joins; ``None`` if the next check begins one.
        no_reply: The batch of checks that want no reply.
        scheduled: Whether the batcher calls :meth:`on_turn_end` at the end of this turn.
    """

    __slots__ = (
        "_clock",
        "_deadlines",
        "_full",
        "_in_flight",
        "_loop",
        "_metrics",
        "_mode",
        "_sender",
        "_sent_since_probe",
        "breaker",
        "filling",
        "index",
        "no_reply",
        "scheduled",
        "slot",
    )

    def __init__(
        self,
        index: int,
        loop: AbstractEventLoop,
        in_flight: InFlight,
        sender: BatchSender,
        deadlines: Deadlines,
        mode: DegradedMode,
        metrics: Metrics,
        clock: Callable[[], float],
        max_misses: int,
    ) -> None:
        self.index = index
        self.breaker = CircuitBreaker(max_misses)
        self.slot: PendingBatch | None = None
        self.filling: PendingBatch | None = None
        self.no_reply: PendingBatch | None = None
        self.scheduled = False
        self._full: deque[PendingBatch] = deque()
        self._sent_since_probe = False
        self._loop = loop
        self._in_flight = in_flight
        self._sender = sender
        self._deadlines = deadlines
        self._mode = mode
        self._metrics = metrics
        self._clock = clock

    # --- a check joins a batch ----------------------------------------------------------------

    def enqueue(self, check: Check, future: Future[Outcome], asked_at: float) -> bool:
        """Append a check that waits. Return whether it began a batch, which then has its deadline.

        Args:
            check: The check.
            future: Resolved with the answer.
            asked_at: Seconds; the same for all checks of one turn of the event loop.
        """
        batch = self.filling
        if batch is not None:
            if batch.add(check, future, asked_at):
                return False
            self._full.append(batch)
        self.filling = batch = self._in_flight.new_batch(self.index)
        batch.add(check, future, asked_at)
        self._deadlines.start(batch)
        return True

    def enqueue_without_reply(self, check: Check) -> bool:
        """Append a check that is only to be counted. Return whether it began a batch."""
        batch = self.no_reply
        if batch is not None and batch.add(check, None, 0.0):
            return False
        self._send_no_reply()
        self.no_reply = batch = self._in_flight.new_batch(self.index)
        batch.add(check, None, 0.0)
        return True

    def gather(self, check: Check) -> None:
        """Append a check that has failed open already, because the circuit breaker is open."""
        batch = self.filling
        if batch is not None:
            if batch.add(check, None, 0.0):
                return
            self._send_without_slot(batch)
        self.filling = batch = self._in_flight.new_batch(self.index)
        batch.add(check, None, 0.0)
        batch.timer = self._loop.call_later(GATHER_S, self._end_gathering, batch)

    def _end_gathering(self, batch: PendingBatch) -> None:
        if self.filling is batch:
            self.filling = None
            self._send_without_slot(batch)

    # --- a batch is sent ----------------------------------------------------------------------

    def on_turn_end(self) -> None:
        """Send what this turn of the event loop has collected."""
        self.scheduled = False
        self._send_no_reply()
        if self.breaker.state is CLOSED:
            self._send_next()

    def next_batch(self) -> PendingBatch | None:
        """Give the free slot to the oldest batch and return it, or return ``None``."""
        if self.slot is None:
            self.slot = self._pop()
            return self.slot
        return None

    def _pop(self) -> PendingBatch | None:
        if self._full:
            return self._full.popleft()
        batch, self.filling = self.filling, None
        return batch

    def _send_next(self) -> None:
        while (batch := self.next_batch()) is not None:
            if not self._send(batch):
                self.slot = None

    def _send_without_slot(self, batch: PendingBatch) -> None:
        batch.cancel_timer()
        if self._send(batch):
            self._deadlines.start(batch)

    def _send_no_reply(self) -> None:
        batch, self.no_reply = self.no_reply, None
        if batch is not None:
            self._sender.send_without_reply(batch)

    def _send(self, batch: PendingBatch) -> bool:
        self._sent_since_probe = True
        return self._sender.send(batch)

    def probe(self, *, broker_in_doubt: bool) -> None:
        """Publish an empty batch if only a reply to it can tell whether the partition's worker answers.

        This is the case for a partition without traffic whose circuit breaker is open, or which has never
        replied. Call this once per tick.

        Args:
            broker_in_doubt: The broker does not answer requests for metadata: probe every partition
                without traffic.
        """
        if not self._sent_since_probe:
            if self.breaker.state is not CLOSED:
                self._send_without_slot(self._in_flight.new_batch(self.index))
            elif (broker_in_doubt or not self.breaker.has_replied) and self.slot is None:
                self.slot = batch = self._in_flight.new_batch(self.index)
                self._deadlines.start(batch)
                if not self._send(batch):
                    self.slot = None
        self._sent_since_probe = False

    # --- a batch ends -------------------------------------------------------------------------

    def on_reply(self, batch: PendingBatch) -> bool:
        """Handle a timely reply to *batch*. Return whether that freed the slot."""
        batch.cancel_timer()
        if self.breaker.on_reply():
            self._on_breaker_closed()
        if self.slot is not batch:
            return False
        self.slot = None
        return True

    def on_deadline(self, batch: PendingBatch) -> None:
        """Handle the deadline of *batch*: its checks fail open."""
        if batch.sent_at:
            self._in_flight.give_up(batch.number)
            self._on_miss(batch, DEADLINE)
        else:
            # The batch before it has its deadline in this very moment, or the loop has come late to it.
            batch.degrade(DEADLINE, self._metrics, self._clock())
            self._remove_unsent(batch)
            self._send_without_slot(batch)

    def on_undelivered(self, batch: PendingBatch) -> None:
        """Handle a batch that the transport could not publish: its checks fail open."""
        batch.cancel_timer()
        self._on_miss(batch, UNPUBLISHED)

    def _on_miss(self, batch: PendingBatch, reason: str) -> None:
        batch.degrade(reason, self._metrics, self._clock())
        if self.slot is not batch:
            return  # sent while the breaker was open: the miss is no news
        self.slot = None
        if self.breaker.on_miss():
            why = self._describe_misses(reason)
            self._on_breaker_open(why, before_first_reply=reason == DEADLINE and not self.breaker.has_replied)
        else:
            self._send_next()

    def _remove_unsent(self, batch: PendingBatch) -> None:
        if batch is self.filling:
            self.filling = None
        else:
            self._full.remove(batch)

    # --- the circuit breaker ------------------------------------------------------------------

    def trip(self, why: str) -> None:
        """Open the circuit breaker because no broker can be reached; *why* is for the operator."""
        if self.breaker.on_broker_down():
            self._on_breaker_open(why)

    def await_worker(self, why: str) -> None:
        """Open the circuit breaker until the partition's worker, which is known to start, replies."""
        if self.breaker.on_worker_start():
            self._on_breaker_open(why)

    def _on_breaker_open(self, why: str, *, before_first_reply: bool = False) -> None:
        self._mode.on_breaker_open(self.index, why, before_first_reply=before_first_reply)
        now, reason = self._clock(), self.breaker.state
        if self.slot is not None:  # stays in flight without the slot: its reply may close the breaker
            self.slot.degrade(reason, self._metrics, now)
            self.slot = None
        while (batch := self._pop()) is not None:
            batch.degrade(reason, self._metrics, now)
            self._send_without_slot(batch)

    def _on_breaker_closed(self) -> None:
        self._mode.on_breaker_closed(self.index)
        if self.filling is not None:  # gathered while the breaker was open
            batch, self.filling = self.filling, None
            self._send_without_slot(batch)

    def _describe_misses(self, reason: str) -> str:
        """Return why the breaker opened, for the operator; *reason* ended the last batch."""
        if reason == UNPUBLISHED:
            last = "the last one could not be published. Are the brokers healthy?"
        else:
            waited_ms = self._deadlines.seconds * 1000
            last = f"the last one had no reply within {waited_ms:g} ms. Is its worker running?"
        failed = f"partition {self.index}: {self.breaker.misses} batches in a row failed"
        return f"{failed}, {last} GET /v1/status lists the nodes"

    # --- the end ------------------------------------------------------------------------------

    def unanswered(self) -> list[PendingBatch]:
        """Return the batches whose checks may wait."""
        batches = (self.slot, *self._full, self.filling)
        return [batch for batch in batches if batch is not None]

    def send_all(self) -> None:
        """Send every batch, without the slot."""
        while (batch := self._pop()) is not None:
            self._send_without_slot(batch)
