"""An event loop that moves only when told to, and an outbox that keeps what it is given."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Any

from stoplog.client.batcher import Batcher, Carried
from stoplog.client.degraded_mode import Mode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.errors import Unavailable
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.replies import Decision, Reply


class Clockwork(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self.timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]

    def __del__(self) -> None:
        """Nothing was opened: no need to close."""

    def time(self) -> float:
        return self.now

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    def turn(self) -> None:
        """Run what is ready, until nothing is."""
        while self.ready:
            handle = self.ready.popleft()
            if not handle.cancelled():
                handle._run()

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, each timer firing at its time."""
        self.turn()
        end = self.now + seconds
        while self.timers and self.timers[0].when() <= end:
            timer = heapq.heappop(self.timers)
            self.now = max(self.now, timer.when())
            if not timer.cancelled():
                timer._run()
            self.turn()
        self.now = end


class Outbox:
    incarnation = 7
    reply_partition = 2

    def __init__(self) -> None:
        self.sent: list[tuple[int, Batch]] = []
        self.broken = False
        self.carried: list[Carried | None] = []

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, carried: Carried | None = None
    ) -> None:
        if self.broken:
            raise Unavailable("queue full")
        batch = decode_checks_record(value)
        assert isinstance(batch, Batch)
        assert (batch.number, len(batch.checks)) == (number, checks)
        self.sent.append((partition, batch))
        self.carried.append(carried)

    @property
    def last(self) -> Batch:
        return self.sent[-1][1]


class Bench:
    """A batcher with everything around it faked."""

    deadline_s = 0.25

    def __init__(
        self,
        *,
        partitions: int = 1,
        misses: int = 3,
        max_in_flight: int = 100_000,
        kind: type[Batcher] = Batcher,
    ) -> None:
        self.loop = Clockwork()
        self.outbox = Outbox()
        self.metrics = Metrics()
        self.mode = Mode(self.metrics, self.loop.time, lambda: int(self.loop.now * 1000))
        self.denials = DenyCache(self.metrics, partitions, 100, self.loop.time)
        self.rejections = Rejections(self.loop.time)
        self.batcher = kind(
            self.loop,
            self.outbox,
            self.metrics,
            self.mode,
            self.denials,
            self.rejections,
            partitions=partitions,
            deadline_s=self.deadline_s,
            misses=misses,
            max_in_flight=max_in_flight,
            clock=self.loop.time,
        )


def answer_to(batch: Batch) -> Reply:
    """Allows even costs; the cost comes back as ``remaining``, so that answers can be told apart."""
    return Reply(
        batch.incarnation,
        batch.number,
        0,
        -1,
        [Decision(c.cost % 2 == 0, 100, c.cost, 1, 0 if c.cost % 2 == 0 else 9, 3) for c in batch.checks],
    )
