from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stoplog.client.answer import Answer
from stoplog.client.engine import wall_ms
from stoplog.client.fail_open import FAIL_CLOSED, FAIL_OPEN, REJECTED_BATCH
from stoplog.client.limiter import MAX_UNANSWERED, SLICE, Limiter, steps_of_list
from stoplog.client.limits_admin import Applied, LimitsAdmin
from stoplog.client.top_rejected import Rejected
from stoplog.client.update_proofs import PROOF_S
from stoplog.clock import now
from stoplog.errors import InvalidCost, InvalidId, InvalidInput, SettingsError, UpgradeFirst
from stoplog.partitioning import partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire.checks import Check, Denied
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat
from stoplog.wire.limit_updates import Update, UpdateKey
from stoplog.wire.replies import Reply, WindowUse
from tests.support.clockwork import answer_to
from tests.support.fake_kafka import PARTITIONS, Kafka, deny_for_a_minute, running_limiter, until_ready


async def test_check_returns_its_answer(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        assert await limiter.check("alice", 2, plan="gold", resource="login") == Answer(True, 100, 2, 1, 0, 3)
        assert not (await limiter.check("alice", 3)).allowed
        assert log.checks == [Check("alice", 2, "gold", "login"), Check("alice", 3)]


async def test_check_many_returns_answers_in_order(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, _):
        answers = await limiter.check_many([Check(f"client-{i % 97}", i) for i in range(25_000)])
        assert [answer.remaining for answer in answers] == list(range(25_000))
        assert await limiter.check_many([]) == []


async def test_known_denial_is_answered_without_a_check_and_its_sum_is_published(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        log.answer = deny_for_a_minute
        limiter._engine.on_updates_read(list(range(PARTITIONS)), now())
        first = await limiter.check("alice", 2)
        asked = len(log.checks)
        # On a busy machine the first proof may have expired. A transport would renew it.
        limiter._engine.on_updates_read(list(range(PARTITIONS)), now() + 3_600)
        again = await limiter.check_many([Check("alice", 2), Check("alice", 2), Check("bob")])
        assert [(a.allowed, a.degraded, a.limit) for a in again] == [(False, False, 9)] * 3
        assert 0 < (again[0].retry_after_ms or 0) <= (first.retry_after_ms or 0)
        assert log.checks[asked:] == [Check("bob")]
        assert (limiter.metrics.received, limiter.metrics.rejected) == (4, 4)
        limiter._engine.on_updates([(partition_of("bob", PARTITIONS), Update(0, "client", "bob", "", None))])
        log.answer = answer_to
        assert (await limiter.check("bob", 2)).allowed
        assert not log.denied
    assert log.denied == [Denied("alice", "", "", 2, 4)]


async def test_checks_fail_closed_one_by_one_or_all(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, _):
        limiter._engine.on_broker_down("the broker is gone")
        assert not (await limiter.check("alice", on_unavailable="deny")).allowed
        assert (await limiter.check("alice")).allowed
        checks = [Check("alice"), Check("bob")]
        for on_unavailable, allowed in (("deny", [False, False]), ("allow", [True, True])):
            answers = await limiter.check_many(checks, on_unavailable=on_unavailable)  # type: ignore[arg-type]
            assert [answer.allowed for answer in answers] == allowed
        answers = await limiter.check_many(checks, on_unavailable=["allow", "deny"])
        assert [(answer.allowed, answer.degraded) for answer in answers] == [(True, True), (False, True)]
        assert limiter.traffic().failed_closed == 4
        for wrong in ("denied", ["deny"], ["allow", ""]):
            with pytest.raises(InvalidInput, match="on_unavailable"):
                await limiter.check_many(checks, on_unavailable=wrong)  # type: ignore[arg-type]


async def test_change_is_confirmed_once_no_gateway_denies_by_the_old_limits(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(*_: Any) -> Applied:
        return Applied(True, 5)

    monkeypatch.setattr(LimitsAdmin, "write", write)
    async with running_limiter() as (limiter, _):
        for change in (limiter.reset("alice"), limiter.set_limits(UpdateKey("client", "alice"), None)):
            began = now()
            assert (await change).applied
            assert now() - began >= PROOF_S


async def test_limits_that_an_old_worker_would_refuse_are_not_published(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Policy | None] = []

    async def write(_: LimitsAdmin, key: UpdateKey, policy: Policy | None, *__: Any) -> Applied:
        written.append(policy)
        return Applied(False, 5)

    monkeypatch.setattr(LimitsAdmin, "write", write)
    alice = UpdateKey("client", "alice")
    newer = [parse_policy("10 in flight"), parse_policy(["refundable", "5/minute"])]
    async with running_limiter() as (limiter, _):
        old = Heartbeat("worker-1@old", "worker", "0.2.0", "old", 0)
        limiter._engine.on_heartbeats([StampedHeartbeat(old, wall_ms())])
        for policy in newer:
            with pytest.raises(UpgradeFirst, match="upgrade worker worker-1@old first"):
                await limiter.set_limits(alice, policy)
        for other in (parse_policy("5/minute"), None):
            await limiter.set_limits(alice, other)
        limiter._engine.on_heartbeats([StampedHeartbeat(msgspec.structs.replace(old, stopping=True), 2_000)])
        for policy in newer:
            await limiter.set_limits(alice, policy)
    assert written == [parse_policy("5/minute"), None, *newer]


async def test_stop_while_degraded_logs_uncounted_checks_of_the_last_moment(
    kafka: type[Kafka], caplog: pytest.LogCaptureFixture
) -> None:
    async with running_limiter() as (limiter, log):
        await until_ready(limiter)
        limiter._engine.on_broker_down("the broker is gone")

        def stop() -> None:  # as the transport does: it reports what it had to drop
            log.loop.call_soon_threadsafe(limiter._engine.on_undelivered, [(1, 3), (2, 4)])

        log.stop = stop  # type: ignore[method-assign]
    assert "0 checks failed open, 7 could not be published and are not counted" in caplog.text


async def test_most_rejected_lists_clients_by_name(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, _):
        await limiter.check_many(
            [Check("alice", 3), Check("bob", 2), Check("mallory", 3), Check("mallory", 5)]
        )
        assert limiter.most_rejected() == [Rejected("mallory", 2, 0), Rejected("alice", 1, 0)]
        seen = limiter.traffic()
        assert (seen.received, seen.allowed, seen.rejected, seen.latency[-1].checks) == (4, 1, 3, 4)


async def test_look_up_of_a_client_spends_nothing(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        found = await limiter.look_up("alice", plan="gold")
        assert found.windows == [WindowUse("100/minute", 1, 60_000)]
        assert not log.checks
        with pytest.raises(InvalidId):
            await limiter.look_up("")


async def test_publish_without_an_answer_does_not_wait(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        await limiter.publish("alice", 5)
        await asyncio.sleep(0)
        assert log.checks == [Check("alice", 5)]


async def test_peek_at_a_client_sends_a_check_of_cost_0(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
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
    async with running_limiter() as (limiter, log):
        for call in (limiter.check, limiter.publish):
            with pytest.raises(error) as caught:
                await call(check.client, check.cost, plan=check.plan, resource=check.resource)
            assert caught.value.field == field
        with pytest.raises(error) as caught:
            await limiter.check_many([Check("good"), check])
        assert caught.value.field == f"checks[1].{field}"
        assert not log.checks


async def test_check_that_a_worker_refuses_fails_open_or_closed(kafka: type[Kafka]) -> None:
    async with running_limiter() as (limiter, log):
        log.answer = lambda batch: Reply(7, batch.number, 0, 0, ["wrong partition"] * len(batch.checks))
        assert await limiter.check("alice") is FAIL_OPEN[REJECTED_BATCH]
        closed = await limiter.check_many([Check("alice")] * 3, on_unavailable="deny")
        assert closed == [FAIL_CLOSED[REJECTED_BATCH]] * 3


def test_limiter_offers_the_calls_of_the_sdk_and_nothing_else() -> None:
    checks = {"check", "check_many", "publish", "peek", "wait"}
    checks |= {"ask", "answer_at_once", "require_stated_plans"}
    reservations = {"reserve", "open_reservation", "settle", "open_reservation_at_once", "settle_at_once"}
    adjustments = {"refund", "ask_charge", "ask_refund"}
    limits = {"look_up", "set_limits", "get_limits", "list_limits", "limits_history", "reset"}
    state = {"status", "process_state", "traffic", "most_rejected", "ready", "running", "node_id"}
    failure = {"failure", "until_failure"}
    life = {"start_on_first_use", "after_fork"}
    calls = checks | reservations | adjustments | limits
    assert {name for name in vars(Limiter) if not name.startswith("_")} == calls | state | failure | life


DECIDED, DEGRADED = Answer(True, 9, 8, 1, 0, 3), Answer(True, None, None, 0, 0, 0, True, "deadline")


@pytest.mark.parametrize(("outcome", "waits"), [(DECIDED, 2 * SLICE), (DEGRADED, 1)])
async def test_long_list_waits_for_its_answers_before_it_asks_more(outcome: Answer, waits: int) -> None:
    pending: list[Any] = []
    waited = 0
    for step in steps_of_list(pending, 4 * SLICE):
        if isinstance(step, slice):
            assert step == slice(len(pending), len(pending) + SLICE)
            pending += [asyncio.get_running_loop().create_future() for _ in range(SLICE)]
            if waits > 1:
                assert sum(not one.done() for one in pending) <= MAX_UNANSWERED
        else:
            waited += 1
            step.set_result(outcome)
    assert len(pending) == 4 * SLICE
    assert waited == waits


async def test_list_of_answers_that_are_there_waits_for_nothing() -> None:
    pending: list[Any] = []
    for step in steps_of_list(pending, 4 * SLICE):
        assert isinstance(step, slice)
        pending += [DECIDED] * SLICE
    assert len(pending) == 4 * SLICE
