"""A limiter while the number of partitions grows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from stoplog.client.answer import answer_of
from stoplog.client.fail_open import GROWING
from stoplog.client.limiter import Limiter
from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import Unavailable
from stoplog.wire.checks import Batch, Check
from stoplog.wire.heartbeats import GrowthState
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.partition_count import GrowthStep, PartitionCount
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
    async with running_limiter() as (limiter, log):
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
        limiter._engine._publish_heartbeat()
        assert log.heartbeats[-1].growth == GrowthState(1, paused=True, checks=7), "every call is reported"
        assert limiter.metrics.uncounted == 7
        status = limiter.status()
        assert (status.mode, status.uncounted, status.let_through) == ("degraded", 7, 2)
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
