"""Limiters that their first call starts."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from stoplog.client.fail_open import STOPPING
from stoplog.client.limiter import Limiter
from stoplog.client.self_start import RETRY_S
from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import TopicError
from stoplog.wire.checks import Check
from tests.support.fake_kafka import Kafka


@pytest.fixture
def transports(kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch) -> list[Kafka]:
    """Return the transports of all engines, in the order of their starts."""
    started: list[Kafka] = []
    begin = kafka.start

    def start(self: Kafka) -> None:
        started.append(self)
        begin(self)

    monkeypatch.setattr(kafka, "start", start)
    return started


def limiter(**settings: Any) -> Limiter:
    limiter = Limiter("kafka:9092", **{"deadline_ms": 60_000, **settings})
    limiter.start_on_first_use()
    return limiter


async def test_simultaneous_first_calls_start_it_once(transports: list[Kafka]) -> None:
    one = limiter()
    answers = await asyncio.gather(*(one.check("alice", 2) for _ in range(5)))
    assert all(answer.allowed and not answer.degraded for answer in answers)
    assert (await one.check_many([Check("bob", 4)]))[0].remaining == 4
    assert (await one.look_up("alice")).windows
    assert len(transports) == 1


def test_it_stops_with_its_event_loop_and_starts_in_the_next_one(transports: list[Kafka]) -> None:
    one = limiter()
    for number in (1, 2):
        assert not asyncio.run(one.check("alice", 2)).degraded
        assert [transport.stopped for transport in transports] == [True] * number
        assert not one.running


def test_loop_that_was_closed_without_stopping_it_is_given_up(transports: list[Kafka]) -> None:
    one = limiter()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(one.check("alice", 2))
    one.metrics.in_flight = 7  # checks that nobody will answer
    task = one.self_start._task
    assert task is not None
    for pending in asyncio.all_tasks(loop):
        pending._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert not asyncio.run(one.check("alice", 2)).degraded
    assert len(transports) == 2
    assert (one.metrics.in_flight, one.metrics.allowed) == (0, 2)
    assert not task.done()
    del task
    gc.collect()  # the task is never ended; that raises no error


def test_start_that_an_event_loop_cut_off_before_it_began_is_made_in_the_next_one(
    transports: list[Kafka],
) -> None:
    one = limiter()

    async def cut_off() -> None:
        asyncio.get_running_loop().create_task(one.check("alice", 2))  # it takes one step

    asyncio.run(cut_off())
    assert not asyncio.run(one.check("alice", 2)).degraded
    assert len(transports) == 1


async def test_call_in_a_second_event_loop_raises_while_the_first_one_runs(kafka: type[Kafka]) -> None:
    one = limiter()
    await one.check("alice", 2)
    with pytest.raises(RuntimeError, match="running in another event loop"):
        await asyncio.to_thread(asyncio.run, one.check("alice", 2))


async def test_check_waits_for_the_start_no_longer_than_the_publish_timeout(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "start", lambda _: None)  # a broker that never answers
    monkeypatch.setattr(kafka, "send_checks", lambda *_: None)
    one = limiter(deadline_ms=50, publish_timeout_ms=200)
    began = time.monotonic()
    answer = await one.check("alice")
    taken = time.monotonic() - began
    assert (answer.allowed, answer.degraded) == (True, True)
    assert 0.15 < taken < 5  # START_S, for which `async with` would wait


async def test_topics_that_contradict_raise_at_each_call_and_are_looked_at_again(
    transports: list[Kafka], kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, kafka.view = kafka.view, BrokerView(8)
    one = limiter()
    for _ in range(2):
        with pytest.raises(TopicError, match="8 partitions"):
            await one.check("alice")
    began = len(transports)
    kafka.view = right
    one.self_start._failed_at -= RETRY_S
    assert not (await one.check("alice", 2)).degraded
    assert len(transports) == began + 1


async def test_after_a_fork_it_is_another_node_and_starts_itself(transports: list[Kafka]) -> None:
    async with Limiter("kafka:9092", node_id="web", deadline_ms=60_000) as one:
        first = one._engine
        await one.check("alice", 2)
        one.metrics.in_flight = 7  # checks of the parent
        one.after_fork()
        assert not one.running
        assert (one.metrics.in_flight, one.metrics.allowed, one.traffic().latency[-1].checks) == (0, 0, 0)
        assert one.node_id.startswith("web-")
        assert (await one.check("alice", 2)).remaining == 2
        assert one._engine is not first
        assert one._engine.incarnation != first.incarnation
    assert transports[1].stopped
    first.transport.stop()


async def test_call_during_a_start_by_the_application_waits_for_it(transports: list[Kafka]) -> None:
    one = limiter()
    entering = asyncio.create_task(one.__aenter__())
    await asyncio.sleep(0)
    assert not (await one.check("alice", 2)).degraded
    assert await entering is one
    await one.__aexit__(None, None, None)
    assert [transport.stopped for transport in transports] == [True]


async def test_second_start_raises_while_the_first_one_or_a_stop_is_under_way(
    transports: list[Kafka],
) -> None:
    one = limiter()
    first = asyncio.create_task(one.check("alice", 2))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="running already"):
            await one.__aenter__()
        await first
    stopping = asyncio.create_task(one.__aexit__(None, None, None))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="running already"):
        await one.__aenter__()
    assert (await one.check("alice", 2)).reason == STOPPING
    await stopping
    assert len(transports) == 1
    async with one:
        assert not (await one.check("alice", 2)).degraded


async def test_failed_start_by_the_application_fails_the_calls_that_wait_for_it(
    transports: list[Kafka], kafka: type[Kafka]
) -> None:
    right, kafka.view = kafka.view, BrokerView(8)
    one = limiter()
    entering = asyncio.create_task(one.__aenter__())
    await asyncio.sleep(0)
    for call in (one.check("alice"), entering):
        with pytest.raises(TopicError, match="8 partitions"):
            await call
    kafka.view = right
    assert not (await one.check("alice", 2)).degraded
    assert len(transports) == 2


@pytest.mark.parametrize("starts", [False, True])
async def test_calls_that_need_heartbeats_wait_for_them_and_the_start_only_once(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    one = limiter(deadline_ms=100, publish_timeout_ms=1_000)
    if starts:
        await one.check("alice", 2)
        one._engine.reservations.heard.clear()
    else:
        monkeypatch.setattr(kafka, "start", lambda _: None)  # a broker that never answers
    waited: list[float] = []
    timeout = asyncio.timeout

    def count(delay: float | None) -> asyncio.Timeout:
        waited.append(delay or 0)
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", count)
    began = time.monotonic()
    await one.check_many([Check("alice", 2, f"=5/{seconds}s") for seconds in range(2, 200)])
    for _ in range(20):
        await one.check("alice", 2, plan="=5/minute")
    assert sum(waited) <= 0.1  # for heartbeats
    assert time.monotonic() - began < 5  # START_S


async def test_calls_that_wait_for_limits_without_a_broker_are_answered_together(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "start", lambda _: None)
    one = limiter(deadline_ms=50, publish_timeout_ms=200)
    began = time.monotonic()
    answers = await asyncio.gather(*(one.wait("alice") for _ in range(100)))
    assert all(answer.degraded for answer in answers)
    assert time.monotonic() - began < 5  # one after the other, 20 s


def test_limiter_that_did_not_run_before_a_fork_must_be_entered(kafka: type[Kafka]) -> None:
    one = Limiter("kafka:9092")
    one.after_fork()
    with pytest.raises(RuntimeError, match="use it within `async with"):
        asyncio.run(one.check("alice"))
