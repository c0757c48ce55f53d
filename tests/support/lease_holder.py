"""A process with the real lease cache, for tests with the real fold: what it admits, and its records."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stoplog.client.demand import Rate
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.lease_table import SentAsk
from stoplog.client.metrics import Metrics
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements
from stoplog.wire.holds import Ask, HoldRow, SettlementBatch
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, Reply

_NOT_FROZEN = {"_metrics", "_clock", "_demand", "_looks", "_ticks"}


@dataclass
class SentBatch:
    """A batch on its way. ``asks`` are what :meth:`LeaseCache.rows` returned."""

    value: bytes
    checks: list[Check]
    asks: list[SentAsk]
    sent_at: float


class LeaseHolder:
    """A process with leases, whose callers all ask for clients of partition 0.

    Args:
        incarnation: Its incarnation.
        max_ms: The longest lease to ask for.
        clock: Returns its own time, in seconds.
        metrics: Counts permits; several holders may share it.
    """

    def __init__(
        self, incarnation: int, max_ms: int, clock: Callable[[], float], metrics: Metrics | None = None
    ) -> None:
        self.incarnation = incarnation
        self.clock = clock
        self.metrics = metrics or Metrics()
        self.cache = LeaseCache(self.metrics, 1, incarnation, max_ms, clock)
        self.cache.enable([0])

    def admit(self, check: Check) -> bool:
        """Return whether the cache allows *check*, which is about to be sent."""
        return self.cache.get(check) is not None

    def rescue(self, check: Check) -> bool:
        """Return whether the cache allows *check*, which the log has denied."""
        return self.cache.get(check, renew=False) is not None

    def send(self, checks: Sequence[Check], *, reply_to: int = 0) -> SentBatch:
        """Return the batch of *checks*, none of which the cache has allowed."""
        marked = [index for index, check in enumerate(checks) if self.cache.note(0, check)]
        rows, asks = self.cache.rows(0, checks, marked, waits=True)
        value = encode_batch(Batch(reply_to, self.incarnation, 1, list(checks), rows))
        return SentBatch(value, list(checks), asks, self.clock())

    def reserve(self, check: Check, ask: Ask) -> bytes:
        """Return the record of *check*, which asks for a reservation, and what goes back with it."""
        marked = [0] if self.cache.give_back(check) else []
        rows, _ = self.cache.rows(0, [check], marked, True, [0])
        back = rows[0].settlements if rows else ()
        return encode_batch(Batch(0, self.incarnation, 1, [check], [HoldRow(0, ask, back)]))

    def answered(self, sent: SentBatch, answers: Sequence[Decision | str | None], applied: int) -> list[bool]:
        """Take the reply to a batch. Return for each check whether its caller may go ahead."""
        reply = Reply(self.incarnation, 1, 0, applied, list(answers))
        self.cache.learn(0, sent.asks, reply, sent.sent_at)
        return [
            (isinstance(answer, Decision) and answer.allowed) or self.rescue(check)
            for check, answer in zip(sent.checks, answers, strict=True)
        ]

    def lost(self, sent: SentBatch) -> None:
        """Give up waiting for the reply to a batch."""
        self.cache.abandon(sent.asks)

    def settlements(self) -> list[bytes]:
        """Return the records of settlements that are due."""
        return [
            encode_settlements(SettlementBatch(-1, self.incarnation, 0, rows))
            for _, rows in self.cache.take_settlements()
        ]

    def hear(self, kind: str, client: str, version: int) -> None:
        """Read a limit update."""
        self.cache.on_update(0, UpdateKey(kind, client), version)

    def prove(self, at: float | None = None) -> None:
        """Take the proof that every update before *at* was read, which defaults to now."""
        self.cache.on_proof([0], self.clock() if at is None else at)

    def frozen(self, late: object) -> bytes:
        """Return everything that its later behavior depends on, and *late*; but no rates and metrics.

        *late* may contain batches that this holder has sent.
        """
        cache, table = self.cache, self.cache._table
        for row in cache._rows.values():
            table.set_rate(row, Rate(0, 0), 0)
            for column in (table.look_at, table.beyond, table.remaining, table.reset_at):
                column[row] = 0
        state = {name: value for name, value in cache.__dict__.items() if name not in _NOT_FROZEN}
        return pickle.dumps((state, late))

    def thaw(self, frozen: bytes) -> Any:
        """Become the holder that was *frozen*; return what :meth:`frozen` has taken beside it."""
        state, late = pickle.loads(frozen)
        self.cache.__dict__.update(state)
        for row in self.cache._rows.values():
            self.cache._look(row, self.clock())
        return late

    @property
    def balanced(self) -> bool:
        """Whether each granted permit was used, given back, lost, or is left."""
        metrics = self.metrics
        left = sum(self.cache._table.left)
        gone = metrics.lease_used + metrics.lease_returned + metrics.lease_expired
        return metrics.lease_granted == gone + left
