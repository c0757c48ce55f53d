"""A limiter while the number of partitions grows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stoplog.client import deferred_settlements
from stoplog.client.answer import answer_of
from stoplog.client.engine import wall_ms
from stoplog.client.fail_open import GROWING
from stoplog.client.limiter import Limiter
from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import Unavailable
from stoplog.wire.checks import Batch, Check
from stoplog.wire.heartbeats import GrowthState, Heartbeat, StampedHeartbeat
from stoplog.wire.holds import SETTLED_NOW, Grant, Settlement
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.partition_count import GrowthStep, PartitionCount
from stoplog.wire.replies import Decision, HeldDecision, Reply
from tests.support.fake_kafka import PARTITIONS, Kafka, running_limiter, until_ready

BEFORE, AFTER = PartitionCount(PARTITIONS), PartitionCount(2 * PARTITIONS, PARTITIONS)


def view(count: PartitionCount, epoch: int, to: int | None = None, *, draining: bool = False) -> BrokerView:
    return BrokerView(count.partitions, count, step=GrowthStep(epoch, to, draining))


GROWS = view(BEFORE, 1, AFTER.partitions)
DONE = view(AFTER, 1)
ABORTED = view(BEFORE, 1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - states of the limiter have no event
            await asyncio.sleep(0)


async def pause(limiter: Limiter, log: Kafka) -> None:
    """Have the limiter pause, and wait until it has confirmed."""
    limiter._engine.on_broker_view(GROWS)
    await until(lambda: log.heartbeats[-1].growth == GrowthState(1, paused=True))


async def test_check_during_the_pause_is_answered_without_the_store(kafka: type[Kafka]) -> None:
    # The end waits for the settlement that the pause holds back: for the deadline and the publish timeout.
    async with running_limiter(deadline_ms=2_000, publish_timeout_ms=100) as (limiter, log):
        await until_ready(limiter)
        assert log.heartbeats[-1].growth == GrowthState()
        await pause(limiter, log)
        asked = len(log.checks)
        opened = await limiter.check("alice")
        closed = await limiter.check("alice", on_unavailable="deny")
        assert (opened.allowed, opened.degraded, opened.reason) == (True, True, GROWING)
        assert (closed.allowed, closed.degraded, closed.reason) == (False, True, GROWING)
        await limiter.publish("alice")
        limiter._engine.on_heartbeats([])
        reserved = await limiter.open_reservation("alice", 5)
        assert (reserved.allowed, reserved.reason, reserved.held) == (True, GROWING, 0)
        assert (await limiter.settle(reserved.id or "", 5)).reason == GROWING
        with pytest.raises(Unavailable, match="the number of partitions grows from 4 to 8"):
            await limiter.set_limits(UpdateKey("client", "alice"), None)
        await asyncio.sleep(0)
        assert len(log.checks) == asked, "nothing is published"
        limiter.ask_charge(Check("alice"))
        limiter.ask_refund(Check("alice"))
        limiter._engine._publish_heartbeat(1)
        assert log.heartbeats[-1].growth == GrowthState(1, paused=True, checks=6), "every call is reported"
        assert limiter.metrics.uncounted == 6
        status = limiter.status()
        assert (status.mode, status.uncounted, status.let_through) == ("degraded", 6, 2)
        assert not (await limiter.ready()).ready


async def test_check_that_waits_when_the_pause_begins_is_answered_by_the_store(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        answer = log.answer
        waiting: list[Batch] = []
        log.answer = waiting.append
        asked = limiter.ask(Check("alice"))
        await until(lambda: bool(waiting))
        limiter._engine.on_broker_view(GROWS)
        await asyncio.sleep(0)
        assert (await limiter.check("bob")).reason == GROWING
        assert not any(one.growth == GrowthState(1, paused=True) for one in log.heartbeats)
        reply = answer(waiting[0])
        assert reply is not None
        limiter._engine.on_replies([reply])
        assert isinstance(asked, asyncio.Future)
        assert not answer_of(await asked).degraded
        await until(lambda: log.heartbeats[-1].growth == GrowthState(1, paused=True, checks=1))


@pytest.mark.parametrize("end", [DONE, ABORTED])
async def test_limiter_continues_after_the_step(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture, end: BrokerView
) -> None:
    caplog.set_level(logging.WARNING)
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        await pause(limiter, log)
        for _ in range(3):
            await limiter.check("alice")
        before = limiter._engine
        kafka.view = end
        before.on_broker_view(end)
        await until(lambda: limiter._engine is not before)
        after: Kafka = limiter._engine.transport  # type: ignore[assignment]
        assert end.recorded is not None
        assert limiter.status().partitions == end.recorded.partitions
        # It is published at once, and answered once a worker has replied.
        first = await limiter.check("alice")
        assert first.reason == "breaker_open"
        await until(lambda: not limiter._engine.mode.partitions)
        assert not (await limiter.check("alice")).degraded
        await until(lambda: after.checks.count(Check("alice")) == 2)
        await until(lambda: bool(after.heartbeats))
        assert after.heartbeats[-1].growth == GrowthState(1, checks=3)
        assert not any(one.stopping for one in log.heartbeats), "the limiter goes on"
        limiter._engine.mode._settling_since -= 60
        for _ in range(2):
            limiter._engine.mode.on_tick(healthy=True)
        assert limiter.status().mode == "normal"
    texts = [record.message for record in caplog.records]
    assert [text.split(":")[0].split(" after")[0] for text in texts] == ["degraded", "normal again"]
    assert "4 checks failed open, 0 failed closed, 3 could not be published" in texts[1]


async def test_further_attempt_continues_the_pause(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        await pause(limiter, log)
        await limiter.check("alice")
        limiter._engine.on_broker_view(view(BEFORE, 2, AFTER.partitions))
        assert log.heartbeats[-1].growth == GrowthState(2, paused=True, checks=1)
        assert (await limiter.check("alice")).reason == GROWING


async def test_limiter_that_starts_during_the_step_pauses_at_once(kafka: type[Kafka]) -> None:
    kafka.view = GROWS
    async with running_limiter() as (limiter, log):
        assert (await limiter.check("alice")).reason == GROWING
        await until(lambda: bool(log.heartbeats) and log.heartbeats[-1].growth.paused)  # type: ignore[union-attr]
        assert not log.checks


async def test_limiter_that_missed_the_step_changes_over(kafka: type[Kafka]) -> None:
    kafka.view = BrokerView(PARTITIONS, BEFORE)
    async with running_limiter() as (limiter, _):
        await until_ready(limiter)
        before = limiter._engine
        kafka.view = DONE
        before.on_broker_view(DONE)
        await until(lambda: limiter._engine is not before)
        assert limiter.status().partitions == AFTER.partitions
        assert not (await limiter.check("alice")).degraded


async def test_limiter_that_stops_during_the_pause_announces_it(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        await pause(limiter, log)
    assert log.heartbeats[-1].stopping


async def test_plan_whose_change_has_begun_is_changed_in_all_partitions(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        plan = UpdateKey("plan", "gold")
        sent, delivered = log.send_update, asyncio.Event()

        def slow(
            partition: int,
            key: bytes,
            value: bytes | None,
            id_: str,
            done: Any,
            source: Any,
            order: Any = None,
        ) -> None:
            """Publish a record whose delivery is confirmed later."""

            async def confirm(*reported: Any) -> None:
                await delivered.wait()
                done(*reported)

            sent(
                partition,
                key,
                value,
                id_,
                lambda *args: tasks.append(asyncio.ensure_future(confirm(*args))),
                source,
            )

        tasks: list[asyncio.Future[None]] = []
        monkeypatch.setattr(log, "send_update", slow)
        change = asyncio.create_task(limiter.set_limits(plan, None))
        await until(lambda: bool(tasks))
        assert sum(bool(updates) for updates in log.updates) == 1, "only its home has it"
        limiter._engine.on_broker_view(GROWS)
        with pytest.raises(Unavailable, match="the number of partitions grows from 4 to 8"):
            await limiter.set_limits(UpdateKey("plan", "silver"), None)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(one.growth == GrowthState(1, paused=True) for one in log.heartbeats)
        delivered.set()
        assert (await change).applied
        assert [len(updates) for updates in log.updates] == [1] * PARTITIONS
        await until(lambda: log.heartbeats[-1].growth == GrowthState(1, paused=True))


HOLDING = Heartbeat("w", "worker", "1", "host", 0, holds=list(range(2 * PARTITIONS)))


class Holds:
    """Workers that grant every reservation, and make every settlement unless they are silent."""

    def __init__(self) -> None:
        self.settled: list[Settlement] = []
        self.silent = False

    def answer(self, batch: Batch) -> Reply | None:
        rows = {row.index: row for row in batch.hold_rows or ()}
        settlements = [one for row in rows.values() for one in row.settlements]
        self.settled += settlements
        if settlements and self.silent:
            return None
        answers: list[Decision | str | None] = []
        for index, check in enumerate(batch.checks):
            ask = rows[index].ask if index in rows else None
            grant = None if ask is None else Grant(check.cost, 60_000)
            made = (SETTLED_NOW,) * len(rows[index].settlements) if index in rows else ()
            answers.append(HeldDecision(True, 100, 50, 1, 0, 3, -1, grant, made))
        return Reply(batch.incarnation, batch.number, 0, -1, answers)


async def resume(limiter: Limiter, kafka: type[Kafka], holds: Holds, end: BrokerView = DONE) -> None:
    """Have the limiter continue after the pause, with workers that grant holds."""
    before = limiter._engine
    kafka.view = end
    before.on_broker_view(end)
    await until(lambda: limiter._engine is not before)
    limiter._engine.transport.answer = holds.answer  # type: ignore[attr-defined]
    limiter._engine.on_heartbeats([StampedHeartbeat(HOLDING, wall_ms())])


@asynccontextmanager
async def holding_limiter(holds: Holds, **settings: Any) -> AsyncIterator[tuple[Limiter, Kafka]]:
    async with running_limiter(**settings) as (limiter, log):
        await until_ready(limiter)
        log.answer = holds.answer
        limiter._engine.on_heartbeats([StampedHeartbeat(HOLDING, wall_ms())])
        yield limiter, log


@pytest.mark.parametrize("end", [DONE, ABORTED])
async def test_block_that_ends_during_the_pause_is_settled_after_it(
    kafka: type[Kafka], end: BrokerView
) -> None:
    holds = Holds()
    async with holding_limiter(holds) as (limiter, log):
        async with limiter.reserve("alice", 40) as held:
            await pause(limiter, log)
            held.used = 7
        assert held.settled is not None
        assert (held.settled.state, held.settled.reason) == ("unconfirmed", GROWING)
        assert not holds.settled
        assert limiter.metrics.uncounted == 0, "it will be made"
        again = await limiter.settle(held.reservation.id or "", 9)
        assert again.state == "unconfirmed"
        await resume(limiter, kafka, holds, end)
        await until(lambda: bool(holds.settled))
        await until(lambda: not limiter._deferred)
        assert {(one.used, one.id[0]) for one in holds.settled} == {(7, log.listener.incarnation)}
    assert limiter.metrics.uncounted == 0


async def test_settlement_is_repeated_until_a_worker_confirms_it(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_settlements, "_RETRY_S", 0.0)
    holds = Holds()
    async with holding_limiter(holds, deadline_ms=10) as (limiter, log):
        held = await limiter.open_reservation("alice", 40)
        await pause(limiter, log)
        limiter.settle_at_once(held.id or "", 7)
        holds.silent = True
        await resume(limiter, kafka, holds)
        await until(lambda: len(holds.settled) > 1)
        assert limiter._deferred
        holds.silent = False
        await until(lambda: not limiter._deferred)
    assert {one.used for one in holds.settled} == {7}
    assert limiter.metrics.uncounted == 0


async def test_settlement_is_given_up_when_its_reservation_is_over(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_settlements, "_RETRY_S", 0.0)
    holds = Holds()
    async with holding_limiter(holds, deadline_ms=10) as (limiter, log):
        held = await limiter.open_reservation("alice", 40)
        await pause(limiter, log)
        await limiter.settle(held.id or "", 7)
        limiter._deferred._wall_ms = lambda: 1 << 62
        holds.silent = True
        await resume(limiter, kafka, holds)
        await until(lambda: not limiter._deferred)
    assert limiter.metrics.uncounted == limiter.metrics.uncounted_growing == 1


async def test_limiter_that_stops_during_the_pause_waits_a_bounded_time_for_settlements(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture
) -> None:
    holds = Holds()
    async with holding_limiter(holds, deadline_ms=10, publish_timeout_ms=100) as (limiter, log):
        held = await limiter.open_reservation("alice", 40)
        await pause(limiter, log)
        await limiter.settle(held.id or "", 7)
    assert "1 reservations could not be settled" in caplog.text
    assert limiter.metrics.uncounted == limiter.metrics.uncounted_growing == 1
    assert not holds.settled


async def test_limiter_that_stops_settles_if_the_pause_ends_in_time(kafka: type[Kafka]) -> None:
    holds = Holds()
    async with holding_limiter(holds) as (limiter, log):
        held = await limiter.open_reservation("alice", 40)
        await pause(limiter, log)
        await limiter.settle(held.id or "", 7)
        resuming = asyncio.create_task(resume(limiter, kafka, holds))
    await resuming
    assert {one.used for one in holds.settled} == {7}


async def test_limiter_that_stops_with_its_event_loop_settles_although_all_tasks_are_cancelled(
    kafka: type[Kafka],
) -> None:
    holds = Holds()
    async with holding_limiter(holds) as (limiter, log):
        held = await limiter.open_reservation("alice", 40)
        await pause(limiter, log)
        await limiter.settle(held.id or "", 7)
        await resume(limiter, kafka, holds)
        for task in limiter._engine._housekeeping:
            task.cancel()
        assert limiter._deferred
    assert {one.used for one in holds.settled} == {7}


async def test_limiter_whose_change_of_engines_was_cancelled_stops(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        limiter._on_other_count(AFTER)
        assert limiter._replacement is not None
        limiter._replacement.cancel()
    assert log.stopped
    assert limiter._replacement is None


async def test_settlements_beyond_the_most_are_not_counted(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_settlements, "MOST", 1)
    holds = Holds()
    async with holding_limiter(holds) as (limiter, log):
        first, second = [await limiter.open_reservation("alice", 40) for _ in range(2)]
        await pause(limiter, log)
        for held in (first, second):
            await limiter.settle(held.id or "", 7)
        assert len(limiter._deferred) == 1
        assert limiter.metrics.uncounted_growing == 1
        await resume(limiter, kafka, holds)


async def test_reservation_that_is_cancelled_in_the_pause_is_returned_after_it(
    kafka: type[Kafka],
) -> None:
    holds = Holds()
    async with holding_limiter(holds) as (limiter, log):
        log.answer = lambda _: None
        opening = asyncio.create_task(limiter.open_reservation("alice", 40))
        await until(lambda: Check("alice", 40) in log.checks)
        limiter._engine.on_broker_view(GROWS)
        opening.cancel()
        await asyncio.wait([opening])
        await until(lambda: log.heartbeats[-1].growth == GrowthState(1, paused=True))
        await resume(limiter, kafka, holds)
        await until(lambda: not limiter._deferred)
        assert {one.used for one in holds.settled} == {0}
