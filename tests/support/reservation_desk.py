"""Reservations and refunds over a real batcher: the test replies for the worker."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from stoplog.client.deferred_settlements import DeferredSettlements
from stoplog.client.refunds import Refund
from stoplog.client.reservations import Reservation, Reservations, Settled
from stoplog.wire.checks import Batch, Check
from stoplog.wire.holds import Grant, HoldId
from stoplog.wire.replies import Decision, HeldDecision, Reply
from tests.support.clockwork import Bench

ALICE = Check("alice", 40)
GRANTED = HeldDecision(True, 100, 60, 60_000, 0, 3, 0, Grant(40, 5_000))
T = TypeVar("T")


class Call(Generic[T]):
    """A call that is in progress. Nothing but the test advances it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._result: list[T] = []
        self._step()

    def _step(self) -> None:
        try:
            self._coroutine.send(None)
        except StopIteration as end:
            self._result.append(end.value)

    @property
    def result(self) -> T:
        if not self._result:
            self._step()
        [result] = self._result
        return result


class Desk:
    """A batcher whose partition grants holds, and the reservations over it."""

    def __init__(self, *, enabled: bool = True, **fields: Any) -> None:
        self.bench = Bench(**fields)
        if enabled:
            self.bench.leases.enable([0])
        self.now_ms = 1_000_000
        self.old_workers: list[str] = []
        self.deferred = DeferredSettlements(self.bench.metrics, lambda: self.now_ms)
        self.reservations = self.reservations_after(0.01)
        self.reservations.heard.set()

    def reservations_after(self, deadline_s: float) -> Reservations:
        return Reservations(
            7, self.bench.metrics, deadline_s, lambda: self.now_ms, self.deferred, lambda: self.old_workers
        )

    def open(self, check: Check = ALICE, *, closed: bool = False) -> Call[Reservation]:
        call = Call(self.reservations.open(self.bench.batcher, check, 5_000, closed))
        self.bench.loop.turn()
        return call

    def settle(self, id_: str | None, used: int) -> Call[Settled]:
        assert id_ is not None
        call = Call(self.reservations.settle(self.bench.batcher, id_, used))
        self.bench.loop.turn()
        return call

    def refund(self, check: Check = ALICE, refund_id: str | None = "order 7") -> Call[Refund]:
        call = Call(self.reservations.refund_once(self.bench.batcher, check, refund_id))
        self.bench.loop.turn()
        return call

    def lease(self, units: int) -> HoldId:
        """Check alice until the log grants a lease of *units*; return its id."""
        while True:
            self.bench.leases.on_proof([0], self.bench.loop.now)
            self.bench.ask(1)
            self.bench.loop.turn()
            asks = [row.ask for row in self.sent.hold_rows or () if row.ask is not None]
            grant = Grant(units, 3_000) if asks else None
            self.reply(HeldDecision(True, 100, 50, 60_000, 0, 3, 0, grant))
            self.bench.loop.turn()
            if asks:
                return asks[0].id

    @property
    def sent(self) -> Batch:
        return self.bench.transport.last

    def reply(self, *answers: Decision | str | None, error: str | None = None) -> None:
        reply = Reply(7, self.sent.number, 0, -1, list(answers), error)
        self.bench.batcher.on_replies([reply])

    def opened(self) -> Reservation:
        """Return a reservation that was granted."""
        call = self.open()
        self.reply(GRANTED)
        return call.result

    def answered(self, *settled: int, used: int = 9) -> Settled:
        """Settle a new reservation; return the result of the worker's answer."""
        call = self.settle(self.opened().id, used)
        self.reply(HeldDecision(True, 100, 91, 60_000, 0, 3, 0, None, settled))
        return call.result

    def counts(self) -> dict[str, int]:
        metrics = self.bench.metrics
        found = {name: getattr(metrics, name) for name in ("received", "allowed", "rejected", "in_flight")}
        found |= {reason: count for reason, count in metrics.degraded.items() if count}
        return {name: count for name, count in found.items() if count}
