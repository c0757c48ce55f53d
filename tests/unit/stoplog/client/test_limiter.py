from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import stoplog.client.engine
from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Readiness
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.deny_cache import PROOF_S
from stoplog.client.fail_open import STOPPING
from stoplog.client.limiter import Limiter
from stoplog.client.limits_admin import Applied, LimitsAdmin
from stoplog.client.settings import Settings
from stoplog.client.top_rejected import Rejected
from stoplog.client.transport.broker_view import BrokerView
from stoplog.clock import now
from stoplog.errors import InvalidCost, InvalidId, InvalidInput, SettingsError, TopicError
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Batch, Check, Denied
from stoplog.wire.heartbeats import Heartbeat, PartitionState, StampedHeartbeat
from stoplog.wire.limit_updates import Update, UpdateKey
from stoplog.wire.replies import Decision, Reply, WindowUse
from tests.support.clockwork import answer_to
from tests.support.fake_kafka import PARTITIONS, Kafka


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> type[Kafka]:
    class Mine(Kafka):
        pass

    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Mine)
    return Mine


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[Limiter, Kafka]]:
    async with Limiter("kafka:9092", **{"deadline_ms": 60_000, **settings}) as limiter:
        yield limiter, limiter._engine.transport  # type: ignore[misc]


async def until_ready(limiter: Limiter) -> None:
    for _ in range(3):  # first round of housekeeping, and the replies to its probes
        await asyncio.sleep(0)
    assert (await limiter.ready()).ready


async def test_check_returns_its_answer(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        assert await limiter.check("alice", 2, plan="gold", resource="login") == Answer(True, 100, 2, 1, 0, 3)
        assert not (await limiter.check("alice", 3)).allowed
        assert log.checks == [Check("alice", 2, "gold", "login"), Check("alice", 3)]


async def test_check_many_returns_answers_in_order(kafka: type[Kafka]) -> None:
    async with running() as (limiter, _):
        answers = await limiter.check_many([Check(f"client-{i % 97}", i) for i in range(25_000)])
        assert [answer.remaining for answer in answers] == list(range(25_000))
        assert await limiter.check_many([]) == []


def deny_for_a_minute(batch: Batch) -> Reply:
    decisions: list[Decision | str | None] = [Decision(False, 9, 0, 60_000, 60_000, 3) for _ in batch.checks]
    return Reply(batch.incarnation, batch.number, 0, -1, decisions)


async def test_known_denial_is_answered_without_a_check_and_its_sum_is_published(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        await until_ready(limiter)
        log.answer = deny_for_a_minute
        limiter._engine.on_updates_read(list(range(PARTITIONS)), now())
        first = await limiter.check("alice", 2)
        asked = len(log.checks)
        # On a busy machine the first proof may have expired. A transport would renew it.
        limiter._engine.on_updates_read(list(range(PARTITIONS)), now() + 3_600)
        again = await limiter.check_many([Check("alice", 2), Check("alice", 3), Check("bob")])
        assert [(a.allowed, a.degraded, a.limit) for a in again] == [(False, False, 9)] * 3
        assert 0 < (again[0].retry_after_ms or 0) <= (first.retry_after_ms or 0)
        assert log.checks[asked:] == [Check("bob")]
        assert (limiter.metrics.received, limiter.metrics.rejected) == (4, 4)
        limiter._engine.on_updates([(partition_of("bob", PARTITIONS), Update(0, "client", "bob", "", None))])
        log.answer = answer_to
        assert (await limiter.check("bob", 2)).allowed
        assert not log.denied
    assert log.denied == [Denied("alice", "", "", 2, 5)]


async def test_proof_has_expired_after_the_machine_was_suspended(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_gettime = time.clock_gettime
    slept_s = 0.0

    def gettime(clock: int) -> float:
        return clock_gettime(clock) + slept_s * (clock == time.CLOCK_BOOTTIME)

    monkeypatch.setattr(time, "clock_gettime", gettime)
    async with running() as (limiter, log):
        await until_ready(limiter)
        log.answer = deny_for_a_minute
        limiter._engine.on_updates_read(list(range(PARTITIONS)), now() + 10)
        await limiter.check("alice")
        asked = len(log.checks)
        await limiter.check("alice")
        assert len(log.checks) == asked
        slept_s = 11.0
        await limiter.check("alice")
        assert log.checks[asked:] == [Check("alice")]


async def test_change_is_confirmed_once_no_gateway_denies_by_the_old_limits(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(*_: Any) -> Applied:
        return Applied(True, 5)

    monkeypatch.setattr(LimitsAdmin, "write", write)
    async with running() as (limiter, _):
        for change in (limiter.reset("alice"), limiter.set_limits(UpdateKey("client", "alice"), None)):
            began = now()
            assert (await change).applied
            assert now() - began >= PROOF_S


async def test_most_rejected_lists_clients_by_name(kafka: type[Kafka]) -> None:
    async with running() as (limiter, _):
        await limiter.check_many(
            [Check("alice", 3), Check("bob", 2), Check("mallory", 3), Check("mallory", 5)]
        )
        assert limiter.most_rejected() == [Rejected("mallory", 2, 0), Rejected("alice", 1, 0)]
        seen = limiter.traffic()
        assert (seen.received, seen.allowed, seen.rejected, seen.latency[-1].checks) == (4, 1, 3, 4)


async def test_look_up_spends_nothing(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        found = await limiter.look_up("alice", plan="gold")
        assert found.windows == [WindowUse("100/minute", 1, 60_000)]
        assert not log.checks
        with pytest.raises(InvalidId):
            await limiter.look_up("")


async def test_publish_does_not_wait(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        await limiter.publish("alice", 5)
        await asyncio.sleep(0)
        assert log.checks == [Check("alice", 5)]


async def test_peek_spends_nothing(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        assert (await limiter.peek("alice", plan="gold", resource="login")).remaining == 0
        assert log.checks == [Check("alice", 0, "gold", "login")]


def test_settings_are_given_by_name_or_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLOG_NODE_ID", "from the environment")
    named = Limiter("one:9092,two:9092", deadline_ms=40)._settings
    assert (named.bootstrap, named.deadline_ms, named.node_id) == (
        "one:9092,two:9092",
        40,
        "from the environment",
    )
    assert Limiter(named)._settings is named


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deadline": 40}, "deadline is not a setting; use one of kafka, .*deadline_ms"),
        ({"deadline_ms": 1}, "deadline_ms: Input should be greater than or equal to 5"),
        ({"deadline_ms": "soon"}, "deadline_ms: Input should be a valid integer"),
        ({"apply_timeout_ms": 3_000}, "apply_timeout_ms: .* set it above 3000"),
        ({"publish_timeout_ms": 5_000}, "apply_timeout_ms: .* set it above 6000"),
    ],
)
def test_invalid_setting_is_named_in_the_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Limiter("kafka:9092", **fields)


async def test_call_before_the_start_raises_with_a_remedy() -> None:
    limiter = Limiter("kafka:9092")
    for call in (limiter.check("alice"), limiter.publish("alice"), limiter.reset("alice")):
        with pytest.raises(RuntimeError, match="use it within `async with"):
            await call


@pytest.mark.parametrize(
    ("check", "error", "field"),
    [
        (Check(""), InvalidId, "client_id"),
        (Check("a\x00"), InvalidId, "client_id"),
        (Check("a", 1, "\n"), InvalidId, "plan"),
        (Check("a", 1, "", "x" * 257), InvalidId, "resource"),
        (Check("a", -1), InvalidCost, "cost"),
        (Check("a", 1_000_001), InvalidCost, "cost"),
    ],
)
async def test_invalid_input_is_named_and_not_published(
    kafka: type[Kafka], check: Check, error: type[InvalidInput], field: str
) -> None:
    async with running() as (limiter, log):
        for call in (limiter.check, limiter.publish):
            with pytest.raises(error) as caught:
                await call(check.client, check.cost, plan=check.plan, resource=check.resource)
            assert caught.value.field == field
        with pytest.raises(error) as caught:
            await limiter.check_many([Check("good"), check])
        assert caught.value.field == f"checks[1].{field}"
        assert not log.checks


async def test_check_that_a_worker_refuses_raises_the_reason(kafka: type[Kafka]) -> None:
    async with running() as (limiter, log):
        log.answer = lambda batch: Reply(7, batch.number, 0, 0, ["wrong partition"] * len(batch.checks))
        with pytest.raises(InvalidInput, match="wrong partition"):
            await limiter.check("alice")
        with pytest.raises(InvalidInput, match="wrong partition"):
            await limiter.check_many([Check("alice")] * 3)


async def test_limiter_is_ready_once_every_partition_has_answered(kafka: type[Kafka]) -> None:
    limiter = Limiter(Settings())
    assert not (await limiter.ready()).ready
    async with limiter:
        ready = await limiter.ready()
        assert (ready.ready, ready.reason) == (
            False,
            "partition 0, 1, 2, 3 has not answered yet: is a worker running?",
        )
        await until_ready(limiter)
        assert limiter.metrics.received == 0

        limiter._engine.on_broker_down("the broker is gone")
        assert (await limiter.ready()).reason == "the broker is gone"
        status = limiter.status()
        assert (status.mode, status.store, status.degraded_partitions) == (
            "degraded",
            "unreachable",
            [0, 1, 2, 3],
        )
        assert (await limiter.check("alice")).reason == "broker"


async def test_partitions_are_probed_before_a_broker_without_metadata_counts_as_down(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stoplog.client.engine, "TICK_S", 0.0)
    async with running(breaker_misses=1) as (limiter, log):
        await until_ready(limiter)
        asked: list[Batch] = []
        all_asked = asyncio.Event()

        def keep(batch: Batch) -> None:
            asked.append(batch)
            if len(asked) == PARTITIONS:
                all_asked.set()

        log.answer = keep
        limiter._engine.on_broker_view(BrokerView(error="it does not answer"))
        assert (await limiter.ready()).ready
        await asyncio.wait_for(all_asked.wait(), 10)
        assert not limiter.status().degraded_partitions
        for batch in asked:
            limiter._engine.on_undelivered([(batch.number, 0)])
        assert (await limiter.ready()).reason == limiter.status().why


async def test_failed_housekeeping_is_reported(kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch) -> None:
    def on_tick(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(DegradedMode, "on_tick", on_tick)
    async with running() as (limiter, _):
        await asyncio.wait_for(limiter.until_failure(), 10)
        assert limiter.failure == "the limiter's housekeeping failed: RuntimeError('a bug')"
        assert not (await limiter.ready()).ready


async def test_limiter_is_ready_while_one_partition_answers(kafka: type[Kafka]) -> None:
    async with running() as (limiter, _):
        await until_ready(limiter)
        for partition in range(PARTITIONS):
            assert (await limiter.ready()).ready
            limiter._engine.mode.on_breaker_open(partition, "silent")
        assert await limiter.ready() == Readiness(False, "silent")


async def test_status_lists_nodes(kafka: type[Kafka]) -> None:
    async with running(node_id="g1") as (limiter, log):
        await asyncio.sleep(0)
        (heartbeat,) = log.heartbeats
        assert (heartbeat.id, heartbeat.role, heartbeat.stopping) == ("g1", "gateway", False)
        partitions = {p: PartitionState("running") for p in range(PARTITIONS)}
        worker = Heartbeat("w1", "worker", "1", "host", 0, partitions)
        limiter._engine.on_heartbeats([StampedHeartbeat(heartbeat, 1), StampedHeartbeat(worker, 1)])
        status = limiter.status()
        assert [node.id for node in status.nodes] == ["g1", "w1"]
        assert (status.mode, status.why, status.store, status.partitions) == ("normal", None, "ok", 4)
        page = limiter.metrics.render().decode()
        assert 'stoplog_nodes{role="worker"} 1.0' in page
        assert 'stoplog_store_state{state="ok"} 1.0' in page
    assert log.heartbeats[-1].stopping
    assert log.stopped


async def test_start_with_other_partition_count_is_refused(kafka: type[Kafka]) -> None:
    kafka.view = BrokerView(8)
    limiter = Limiter(Settings())
    with pytest.raises(TopicError, match="8 partitions"):
        await limiter.__aenter__()
    assert limiter._engine.transport.stopped  # type: ignore[attr-defined]


async def test_stop_waits_for_answers(kafka: type[Kafka]) -> None:
    held: list[Batch] = []
    async with running(deadline_ms=60_000) as (limiter, log):
        await until_ready(limiter)
        log.answer = held.append
        answered = asyncio.create_task(limiter.check("alice", 4))
        await asyncio.sleep(0)
        log.loop.call_later(0.01, lambda: limiter._engine.on_replies([answer_to(batch) for batch in held]))
    assert (await answered).remaining == 4
    assert (await limiter.check("bob")).reason == "stopping"


async def test_stop_waits_no_longer_than_the_deadline(kafka: type[Kafka]) -> None:
    async with running(deadline_ms=20) as (limiter, log):
        log.answer = lambda _: None
        waiting = [asyncio.create_task(limiter.check(client)) for client in "abcdef"]
        await asyncio.sleep(0)
    assert {(await answer).degraded for answer in waiting} == {True}


async def test_restarted_limiter_knows_nothing_of_earlier_run_and_cannot_run_twice(
    kafka: type[Kafka],
) -> None:
    limiter = Limiter("kafka:9092", deadline_ms=60_000)
    assert not limiter.running
    incarnations: set[int] = set()
    for _ in range(2):
        async with limiter:
            assert limiter.running
            with pytest.raises(RuntimeError, match="is running already"):
                await limiter.__aenter__()
            assert not (await limiter.check("alice")).degraded
            incarnations.add(limiter._engine.incarnation)
            limiter._engine.mode.on_breaker_open(0, "a test")
            limiter.metrics.deny_entries = 1
        assert not limiter.running
        assert (await limiter.check("alice")).reason == STOPPING
    # A late reply to the first run must not be taken for a reply to the second.
    assert len(incarnations) == 2
    async with limiter:
        assert not limiter.status().degraded_partitions
        assert (limiter.metrics.degraded_partitions, limiter.metrics.deny_entries) == (0, 0)
