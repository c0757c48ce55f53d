from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import stoplog.client.engine
from stoplog.client.cluster_status import Readiness
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.engine import wall_ms
from stoplog.client.fail_open import STOPPING
from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.client.transport.broker_view import BrokerView
from stoplog.clock import now
from stoplog.errors import TopicError
from stoplog.partitioning import partition_of
from stoplog.topics import DEFAULT_FILE
from stoplog.wire.checks import Batch, Check
from stoplog.wire.heartbeats import Heartbeat, PartitionState, StampedHeartbeat
from stoplog.wire.holds import Ask, Grant, Settlement, SettlementRow
from stoplog.wire.limit_updates import Update
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import Decision, HeldDecision, Reply
from tests.support.clockwork import answer_to
from tests.support.fake_kafka import PARTITIONS, Kafka, deny_for_a_minute, running_limiter, until_ready


async def test_proof_has_expired_after_the_machine_was_suspended(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_gettime = time.clock_gettime
    slept_s = 0.0

    def gettime(clock: int) -> float:
        return clock_gettime(clock) + slept_s * (clock == time.CLOCK_BOOTTIME)

    monkeypatch.setattr(time, "clock_gettime", gettime)
    async with running_limiter() as (limiter, log):
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
    async with running_limiter(breaker_misses=1) as (limiter, log):
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
    async with running_limiter() as (limiter, _):
        await asyncio.wait_for(limiter.until_failure(), 10)
        assert limiter.failure == "the limiter's housekeeping failed: RuntimeError('a bug')"
        assert not (await limiter.ready()).ready


async def test_limiter_is_ready_while_one_partition_answers(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, _):
        await until_ready(limiter)
        for partition in range(PARTITIONS):
            assert (await limiter.ready()).ready
            limiter._engine.mode.on_breaker_open(partition, "silent")
        assert await limiter.ready() == Readiness(False, "silent")


async def test_status_with_one_worker_lists_its_nodes_and_partitions(kafka: type[Kafka]) -> None:
    async with running_limiter(node_id="g1") as (limiter, log):
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


async def test_limiter_hashes_over_the_recorded_partitions_and_says_once_what_differs(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    kafka.view = BrokerView(8, PartitionCount(2))
    topics = tmp_path / "topics.yaml"
    topics.write_bytes(DEFAULT_FILE.read_bytes())
    async with running_limiter(topics=topics) as (limiter, _):
        assert (limiter.status().partitions, limiter.status().store) == (2, "no_worker")
        limiter._engine.on_broker_view(BrokerView(8, PartitionCount(2)))
        assert [record.message for record in caplog.records] == [
            "clients are hashed over the 2 partitions with which the log began, although checks has 8 and "
            "topics.yaml requires 4: partitions above 1 are not used. Have other producers of checks hash "
            "over 2 partitions, or run `stoplog topics grow 8`. Set partitions: 2 for these topics in "
            "topics.yaml"
        ]


async def test_number_in_the_shipped_topics_file_is_no_difference(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture
) -> None:
    kafka.view = BrokerView(1, PartitionCount(1))
    async with running_limiter() as (limiter, _):
        assert (limiter.status().partitions, limiter.status().store) == (1, "no_worker")
        assert caplog.records == []


async def test_limiter_that_started_without_a_broker_changes_over_to_the_recorded_partitions(
    kafka: type[Kafka],
) -> None:
    kafka.view = BrokerView(error="no broker")
    async with running_limiter() as (limiter, log):
        old = limiter._engine
        assert limiter.status().partitions == 4
        failure = asyncio.create_task(limiter.until_failure())
        kafka.view = BrokerView(4, PartitionCount(2))
        old.on_broker_view(kafka.view)
        assert limiter._replacement is not None
        await asyncio.wait_for(limiter._replacement, 10)
        assert limiter.status().partitions == 2
        assert log.stopped
        await until_ready(limiter)
        assert not (await limiter.check("alice")).degraded
        assert not failure.done()
        limiter._engine.on_failure("a bug")
        await asyncio.wait_for(failure, 10)


async def test_limiter_whose_change_over_fails_reports_the_failure(kafka: type[Kafka]) -> None:
    kafka.view = BrokerView(error="no broker")
    async with running_limiter() as (limiter, _):
        kafka.view = BrokerView(1, PartitionCount(2))
        limiter._engine.on_broker_view(kafka.view)
        await asyncio.wait_for(limiter.until_failure(), 10)
        assert "cannot change over to 2 partitions" in (limiter.failure or "")


async def test_stop_waits_for_answers(kafka: type[Kafka]) -> None:
    held: list[Batch] = []
    async with running_limiter(deadline_ms=60_000) as (limiter, log):
        await until_ready(limiter)
        log.answer = held.append
        answered = asyncio.create_task(limiter.check("alice", 4))
        await asyncio.sleep(0)
        log.loop.call_later(0.01, lambda: limiter._engine.on_replies([answer_to(batch) for batch in held]))
    assert (await answered).remaining == 4
    assert (await limiter.check("bob")).reason == "stopping"


async def test_stop_waits_no_longer_than_the_deadline(kafka: type[Kafka]) -> None:
    async with running_limiter(deadline_ms=20) as (limiter, log):
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


async def test_wrong_topics_are_logged_while_the_limiter_runs_and_not_during_its_stop(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture
) -> None:
    async with running_limiter() as (limiter, _):
        limiter._engine.on_broker_view(BrokerView(8))
        assert "8 partitions" in caplog.text
        limiter._engine.on_broker_view(BrokerView(PARTITIONS))
        caplog.clear()
    limiter._engine.on_broker_view(BrokerView(8))
    assert not caplog.records


async def test_leases_begin_with_the_heartbeats_and_are_settled_at_the_stop(kafka: type[Kafka]) -> None:
    asks: list[Ask] = []

    def grant(batch: Batch) -> Reply:
        rows = {row.index: row.ask for row in batch.hold_rows or ()}
        asks.extend(ask for ask in rows.values() if ask is not None)
        answers: list[Decision | str | None] = [
            HeldDecision(True, 100, 50, 9_000, 0, 3, 0, Grant(10, 3_000) if rows.get(index) else None)
            for index in range(len(batch.checks))
        ]
        return Reply(batch.incarnation, batch.number, 0, -1, answers)

    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        engine = limiter._engine
        log.answer = grant
        assert not engine.wants_proof()
        for _ in range(9):
            await limiter.check("alice")
        assert not asks, "no worker has announced holds"
        beat = Heartbeat("w", "worker", "1", "host", 0, holds=list(range(PARTITIONS)))
        engine.on_heartbeats([StampedHeartbeat(beat, wall_ms())])
        engine.on_updates_read(list(range(PARTITIONS)), now() + 10)
        while not asks:
            await limiter.check("alice")
        assert engine.wants_proof()
        sent = len(log.checks)
        answer = await limiter.check("alice", 2)
        assert (answer.allowed, answer.remaining, len(log.checks)) == (True, 58, sent)
        assert limiter.metrics.lease_hits == 1
        assert not log.settlements
        partition = partition_of("alice", PARTITIONS)
        engine.on_updates([(partition, Update(5, "client", "bob", "", None))])
        await limiter.check("alice")
        assert len(log.checks) == sent
        engine.on_updates([(partition, Update(6, "client", "alice", "", None))])
        first = asks[0]
        used = SettlementRow("alice", "", (Settlement(first.id, 3),))
        assert log.settlements == [used], "an update ends the lease, and its permits go back at once"
        await limiter.check("alice")
        assert len(log.checks) == sent + 1
    _, second = asks
    # The worker that granted the second lease had not applied the update.
    assert log.settlements == [used, SettlementRow("alice", "", (Settlement(second.id, 0),))]
    assert asks[0].id[0] == limiter._engine.incarnation
