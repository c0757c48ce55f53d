"""A fake transport, with a broker and workers that answer at once unless a test replaces ``answer``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from stoplog.client.arrivals import Arrivals
from stoplog.client.engine import Engine
from stoplog.client.instrumentation import PublishedRecord
from stoplog.client.limiter import Limiter
from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import Unavailable
from stoplog.wire.audit import ChangeSource
from stoplog.wire.checks import Batch, Check, Denials, Denied, SingleCheck, decode_checks_record
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat, decode_heartbeat
from stoplog.wire.holds import SettlementBatch, SettlementRow
from stoplog.wire.limit_updates import Update, decode_update
from stoplog.wire.replies import Decision, LookupReply, Reply, UpdateReply, WindowUse
from tests.support.clockwork import answer_to

PARTITIONS = 4


class Kafka:
    """Replaces ``KafkaTransport`` in an engine."""

    update_prefix = "g."
    lookup_prefix = "g?"
    incarnation = 7
    reply_partition = 0
    view = BrokerView(PARTITIONS)

    def __init__(self, bootstrap: str, *, listener: Engine, **_: Any) -> None:
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        self.arrivals = Arrivals(self.loop)
        self.answer: Callable[[Batch], Reply | None] = answer_to
        self.checks: list[Check] = []
        self.denied: list[Denied] = []
        self.settlements: list[SettlementRow] = []
        self.heartbeats: list[Heartbeat] = []
        self.updates: list[list[Update]] = [[] for _ in range(PARTITIONS)]
        self.stopped = False
        self.paused: str | None = None

    def start(self) -> None:
        self.loop.call_soon(self.listener.on_position)
        self.loop.call_soon(self.listener.on_broker_view, self.view)

    def stop(self) -> None:
        self.stopped = True

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, record: PublishedRecord | None = None
    ) -> None:
        assert self.paused is None, "nothing is published during a pause"
        batch = decode_checks_record(value)
        assert isinstance(batch, Batch)
        self.checks += batch.checks
        if batch.partition >= 0 and (reply := self.answer(batch)) is not None:
            self.loop.call_soon(self.listener.on_replies, [reply])

    def send_denials(self, partition: int, value: bytes, checks: int) -> None:
        record = decode_checks_record(value)
        assert isinstance(record, Denials)
        assert sum(row.checks for row in record.sums) == checks
        self.denied += record.sums

    def send_settlements(self, partition: int, value: bytes) -> None:
        record = decode_checks_record(value)
        assert isinstance(record, SettlementBatch)
        self.settlements += record.rows

    def send_lookup(self, partition: int, value: bytes) -> None:
        single = decode_checks_record(value)
        assert isinstance(single, SingleCheck)
        assert single.reply_to is not None
        reply = LookupReply(single.reply_to.id, -1, None, [WindowUse("100/minute", 1, 60_000)])
        for _lane in "ab":
            self.loop.call_soon(self.listener.on_lookup_replies, [reply])

    def pause(self, why: str) -> None:
        self.paused = why

    def flush(self) -> None:
        """Everything published is stored already."""

    def send_heartbeat(self, key: bytes, value: bytes) -> None:
        heartbeat = decode_heartbeat(value)
        self.heartbeats.append(heartbeat)
        self.loop.call_soon(self.listener.on_heartbeats, [StampedHeartbeat(heartbeat, heartbeat.at_ms)])

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        source: ChangeSource,
        order: int | None = None,
    ) -> None:
        if self.paused is not None:
            raise Unavailable(self.paused)
        log = self.updates[partition]
        update = decode_update(len(log), key, value, None)
        log.append(update)
        self.loop.call_soon(done, None, update.version)
        self.loop.call_soon(
            self.listener.on_update_replies, [UpdateReply(id_, True, update.version, partition)]
        )

    def read_updates(self, partition: int, start: int | None) -> Iterator[Update]:
        yield from self.updates[partition][start or 0 :]


@asynccontextmanager
async def running_limiter(**settings: Any) -> AsyncIterator[tuple[Limiter, Kafka]]:
    """Start a limiter with *settings*. Its transport is the ``Kafka`` of the fixture of that name."""
    async with Limiter("kafka:9092", **{"deadline_ms": 60_000, **settings}) as limiter:
        yield limiter, limiter._engine.transport  # type: ignore[misc]


async def until_ready(limiter: Limiter) -> None:
    """Wait until every partition has answered."""
    for _ in range(3):  # first round of housekeeping, and the replies to its probes
        await asyncio.sleep(0)
    assert (await limiter.ready()).ready


def deny_for_a_minute(batch: Batch) -> Reply:
    """Return a reply that denies every check of *batch*."""
    decisions: list[Decision | str | None] = [Decision(False, 9, 0, 60_000, 60_000, 3) for _ in batch.checks]
    return Reply(batch.incarnation, batch.number, 0, -1, decisions)
