"""An event loop that runs only when a test advances it, and a transport that keeps all batches."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Any

from stoplog.client.answer import Answer, Outcome
from stoplog.client.arrivals import Arrivals
from stoplog.client.batcher import Batcher
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.instrumentation import Instrumentation, PublishedRecord
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.errors import Unavailable
from stoplog.wire.checks import Batch, Check, decode_checks_record
from stoplog.wire.replies import Decision, Reply


class Clockwork(asyncio.BaseEventLoop):
    """An event loop whose time stands still until a test advances it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self.timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]

    def __del__(self) -> None:
        """Do not warn that the loop is open: it holds no resources."""

    def time(self) -> float:
        return self.now

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    def _write_to_self(self) -> None:
        """Do nothing: this loop never waits."""

    def turn(self) -> None:
        """Run callbacks until none is ready."""
        while self.ready:
            handle = self.ready.popleft()
            if not handle.cancelled():
                handle._run()

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; each timer fires at its time."""
        self.turn()
        end = self.now + seconds
        while self.timers and self.timers[0].when() <= end:
            timer = heapq.heappop(self.timers)
            self.now = max(self.now, timer.when())
            if not timer.cancelled():
                timer._run()
            self.turn()
        self.now = end


class FakeTransport:
    """Keeps the batches that it is given; raises instead while ``broken``."""

    incarnation = 7
    reply_partition = 2

    def __init__(self) -> None:
        self.sent: list[tuple[int, Batch]] = []
        self.broken = False
        self.records: list[PublishedRecord | None] = []

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, record: PublishedRecord | None = None
    ) -> None:
        if self.broken:
            raise Unavailable("queue full")
        batch = decode_checks_record(value)
        assert isinstance(batch, Batch)
        assert (batch.number, len(batch.checks)) == (number, checks)
        self.sent.append((partition, batch))
        self.records.append(record)

    @property
    def last(self) -> Batch:
        return self.sent[-1][1]


class Bench:
    """A batcher with a fake event loop, clock and transport."""

    deadline_s = 0.25

    def __init__(
        self,
        *,
        partitions: int = 1,
        misses: int = 3,
        max_in_flight: int = 100_000,
        instrumentation: Instrumentation | None = None,
        lease_max_ms: int = 0,
    ) -> None:
        self.loop = Clockwork()
        self.transport = FakeTransport()
        self.metrics = Metrics()
        self.mode = DegradedMode(self.metrics, self.loop.time, lambda: int(self.loop.now * 1000))
        self.denials = DenyCache(self.metrics, partitions, 100, self.loop.time)
        self.leases = LeaseCache(self.metrics, partitions, 7, lease_max_ms, self.loop.time)
        self.updates = Arrivals(self.loop)
        self.rejections = Rejections(self.loop.time)
        self.batcher = Batcher(
            self.loop,
            self.transport,
            self.metrics,
            self.mode,
            self.denials,
            self.leases,
            self.updates,
            self.rejections,
            partitions=partitions,
            deadline_s=self.deadline_s,
            max_misses=misses,
            max_in_flight=max_in_flight,
            instrumentation=instrumentation,
            clock=self.loop.time,
        )

    def ask(self, *costs: int, client: str = "alice") -> list[asyncio.Future[Outcome]]:
        """Send a check of each cost, none of which is answered at once; return their futures."""
        pending = [self.batcher.ask(Check(client, cost)) for cost in costs]
        assert all(isinstance(one, asyncio.Future) for one in pending)
        return [one for one in pending if isinstance(one, asyncio.Future)]

    def open_breaker(self) -> None:
        """Miss deadlines of partition 0 until its circuit breaker opens."""
        for _ in range(3):
            self.ask(0)
            self.loop.advance(self.deadline_s)
        assert isinstance(self.batcher.ask(Check("alice")), Answer)


def costs_of(batch: Batch) -> list[int]:
    """Return the costs of the checks in *batch*."""
    return [check.cost for check in batch.checks]


def remaining_of(futures: list[asyncio.Future[Outcome]]) -> list[int | None]:
    """Return ``remaining`` of each answer."""
    answers = [future.result() for future in futures]
    return [answer.remaining for answer in answers if isinstance(answer, Answer)]


def answer_to(batch: Batch) -> Reply:
    """Return a reply that allows even costs, with the cost as ``remaining`` to tell answers apart."""
    return Reply(
        batch.incarnation,
        batch.number,
        0,
        -1,
        [Decision(c.cost % 2 == 0, 100, c.cost, 1, 0 if c.cost % 2 == 0 else 9, 3) for c in batch.checks],
    )
