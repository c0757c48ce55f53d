from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from stoplog.client.blocking import BlockingLimiter
from stoplog.client.cluster_status import Readiness
from stoplog.client.fail_open import FAIL_OPEN, INTERNAL_ERROR
from stoplog.client.limiter import Limiter
from stoplog.client.limits_admin import Applied, StoredLimit
from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import InvalidId, TopicError
from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check
from stoplog.wire.limit_updates import UpdateKey
from tests.support.clockwork import answer_to
from tests.support.fake_kafka import Kafka


def blocking(deadline_ms: int = 60_000) -> BlockingLimiter:
    return BlockingLimiter("kafka:9092", deadline_ms=deadline_ms)


def log_of(limiter: BlockingLimiter) -> Kafka:
    return limiter._limiter._engine.transport  # type: ignore[return-value]


def test_every_call_returns_its_answer(kafka: type[Kafka]) -> None:
    with blocking() as limiter:
        assert limiter.check("alice", 2, plan="gold", resource="login").remaining == 2
        assert [a.remaining for a in limiter.check_many([Check("bob", 4), Check("eve", 6)])] == [4, 6]
        assert limiter.peek("alice").remaining == 0
        limiter.publish("carol", 8)
        with pytest.raises(InvalidId, match="client_id: empty"):
            limiter.check("")
        log = log_of(limiter)
    bob, eve, carol = Check("bob", 4), Check("eve", 6), Check("carol", 8)
    assert set(log.checks) == {Check("alice", 2, "gold", "login"), bob, eve, Check("alice", 0), carol}
    assert log.stopped


def test_limits_are_written_and_read(kafka: type[Kafka]) -> None:
    alice, policy = UpdateKey("client", "alice"), parse_policy("5/minute")
    with blocking() as limiter:
        assert limiter.set_limits(alice, policy) == Applied(True, 0)
        assert limiter.get_limits(alice) == policy
        assert limiter.get_limits(UpdateKey("client", "bob")) is None
        assert limiter.list_limits().items == [StoredLimit(alice, policy, 0)]
        assert limiter.list_limits(None, 1, "plan").items == []
        assert limiter.reset("alice") == Applied(True, 1)
        assert limiter.status().mode == "normal"
        assert not limiter.check("alice", 3).allowed
        assert [found.client_id for found in limiter.most_rejected()] == ["alice"]
        assert limiter.traffic().rejected == 1
        assert limiter.look_up("alice").windows


def test_ready_without_a_broker_states_the_reason(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.view = BrokerView(error="no broker")
    monkeypatch.setattr(kafka, "send_checks", lambda *_: None)
    with blocking() as limiter:
        assert limiter.ready() == Readiness(False, "no broker")


def test_blocking_limiter_has_every_call_of_the_async_limiter() -> None:
    # The exceptions only make sense in an event loop, or for the supervisor of a process.

    def calls(of: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: list(inspect.signature(call).parameters.values())
            for name, call in vars(of).items()
            if inspect.isfunction(call) and not name.startswith("_")
        }

    theirs = calls(Limiter)
    at_once = ("answer_at_once", "open_reservation_at_once", "settle_at_once", "require_stated_plans")
    for name in ("until_failure", "process_state", "ask", "ask_charge", "ask_refund", *at_once):
        del theirs[name]
    ours = calls(BlockingLimiter)
    del ours["stop"]
    assert ours == theirs


def test_checks_of_many_threads_are_all_answered(kafka: type[Kafka]) -> None:
    with blocking() as limiter, ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda cost: limiter.check(f"client-{cost % 7}", cost), range(500))
        assert [answer.remaining for answer in answers] == list(range(500))


def test_checks_that_wait_at_exit_are_answered(kafka: type[Kafka]) -> None:
    asked, held = threading.Event(), list[Batch]()

    def hold(batch: Batch) -> None:
        held.append(batch)
        if batch.checks:
            asked.set()

    with ThreadPoolExecutor(1) as pool:
        with blocking() as limiter:
            log = log_of(limiter)
            limiter.check("alice")
            log.answer = hold
            answer = pool.submit(limiter.check, "alice", 4)
            assert asked.wait(30)
            reply = partial(
                log.loop.call_later, 0.01, lambda: log.listener.on_replies(list(map(answer_to, held)))
            )
            log.loop.call_soon_threadsafe(reply)
        assert answer.result(30).remaining == 4
    assert limiter._thread is None
    assert "stoplog-limiter" not in {thread.name for thread in threading.enumerate()}


def test_call_outside_the_with_block_raises_runtime_error(kafka: type[Kafka]) -> None:
    limiter = blocking()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="use it within `with BlockingLimiter"):
            limiter.check("alice")
        with limiter:
            assert limiter.check("alice", 2).allowed
            with pytest.raises(RuntimeError, match="running already"):
                limiter.__enter__()


def test_entering_with_contradicting_topics_raises_topic_error(kafka: type[Kafka]) -> None:
    kafka.view = BrokerView(8)
    limiter = blocking()
    with pytest.raises(TopicError, match="8 partitions"):
        limiter.__enter__()
    with pytest.raises(RuntimeError, match="not running"):
        limiter.check("alice")


def test_check_of_a_thread_that_does_not_answer_is_degraded_in_time(kafka: type[Kafka]) -> None:
    goes_on = threading.Event()
    with BlockingLimiter("kafka:9092", deadline_ms=50, publish_timeout_ms=100) as limiter:
        log_of(limiter).loop.call_soon_threadsafe(goes_on.wait)
        try:
            for answer in (
                limiter.check("alice"),
                limiter.peek("alice"),
                *limiter.check_many([Check("alice")]),
            ):
                assert answer is FAIL_OPEN[INTERNAL_ERROR]
            closed = limiter.check_many([Check("alice")] * 2, on_unavailable=["allow", "deny"])
            assert [answer.allowed for answer in closed] == [True, False]
            limiter.publish("alice")
        finally:
            goes_on.set()


def test_first_call_starts_a_limiter_that_was_told_so(kafka: type[Kafka]) -> None:
    limiter = blocking()
    limiter.start_on_first_use()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: limiter.check("alice", 2), range(20)))
    assert all(answer.allowed and not answer.degraded for answer in answers)
    assert [thread.name for thread in threading.enumerate()].count("stoplog-limiter") == 1
    log = log_of(limiter)
    limiter.stop()
    assert log.stopped
    limiter.stop()


def test_after_a_fork_the_first_call_starts_it_again(kafka: type[Kafka]) -> None:
    with blocking() as limiter:
        parents = limiter._thread
        assert parents is not None
        limiter._limiter.after_fork()
        limiter.after_fork()
        assert limiter.check("alice", 2).remaining == 2
        assert limiter._thread is not parents
    assert limiter._thread is None
    parents.stop(30)


def test_limiter_that_its_first_call_started_stops_with_the_process() -> None:
    program = """
import logging
from stoplog import BlockingLimiter

logging.basicConfig(format="%(message)s")
limiter = BlockingLimiter("127.0.0.1:1", publish_timeout_ms=20_000, apply_timeout_ms=30_000)
limiter.start_on_first_use()
print(limiter.check("alice").degraded)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "True\n")
    assert "stopped while degraded" in ended.stderr
    assert "Traceback" not in ended.stderr
