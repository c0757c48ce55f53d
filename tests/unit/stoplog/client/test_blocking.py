from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import pytest

from stoplog.client.blocking import BlockingLimiter
from stoplog.client.cluster_status import Readiness
from stoplog.client.fail_open import BROKER, FAIL_CLOSED, FAIL_OPEN, INTERNAL_ERROR, STOPPING
from stoplog.client.limiter import Limiter
from stoplog.client.limiter_thread import LimiterThread
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


@pytest.mark.parametrize("enters", [True, False])
def test_checks_that_wait_at_exit_are_answered(kafka: type[Kafka], enters: bool) -> None:
    asked, held = threading.Event(), list[Batch]()

    def hold(batch: Batch) -> None:
        held.append(batch)
        if batch.checks:
            asked.set()

    limiter = blocking()
    if not enters:
        limiter.start_on_first_use()
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as stack:
            if enters:
                stack.enter_context(limiter)
            else:
                stack.callback(limiter.stop)
            limiter.check("alice")
            log = log_of(limiter)
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


def test_check_with_a_stated_plan_that_a_silent_broker_does_not_answer_is_degraded_in_time(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start", "send_checks", "send_heartbeat"):
        monkeypatch.setattr(kafka, name, lambda *_: None)
    limiter = BlockingLimiter("kafka:9092", deadline_ms=100, publish_timeout_ms=1_000)
    limiter.start_on_first_use()
    plan = "=5/minute"
    answers = [limiter.check("alice", plan=plan), *limiter.check_many([Check("alice", 1, plan)])]
    assert all(answer.degraded and answer.reason != INTERNAL_ERROR for answer in answers), "it took too long"
    limiter.stop()


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


def test_calls_during_a_start_by_another_thread_do_not_wait_longer_than_usual(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, begin = threading.Event(), kafka.start

    def start(self: Kafka) -> None:
        goes_on.wait(60)
        begin(self)

    monkeypatch.setattr(kafka, "start", start)
    limiter = BlockingLimiter("kafka:9092", deadline_ms=50, publish_timeout_ms=100)
    with ThreadPoolExecutor(1) as pool:
        entering = pool.submit(limiter.__enter__)
        try:
            while limiter._thread is None:
                assert not entering.done()
            assert limiter.check("alice") is FAIL_OPEN[BROKER]
            with pytest.raises(RuntimeError, match="running already"):
                limiter.__enter__()
        finally:
            goes_on.set()
        assert entering.result(60) is limiter
        assert limiter.peek("alice").reason != BROKER
        limiter.stop()


def test_calls_during_a_stop_do_not_wait_for_its_end(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, goes_on = threading.Event(), threading.Event()

    def stop(self: Kafka) -> None:
        stops.set()
        goes_on.wait(60)

    monkeypatch.setattr(kafka, "stop", stop)
    limiter = blocking()
    limiter.start_on_first_use()
    limiter.check("alice", 2)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(limiter.stop)
        try:
            assert stops.wait(60)
            assert limiter.check("alice") is FAIL_OPEN[STOPPING]
            assert limiter.check_many([Check("a")], on_unavailable="deny") == [FAIL_CLOSED[STOPPING]]
            limiter.publish("alice")
            with pytest.raises(RuntimeError, match="the limiter is stopped"):
                limiter.open_reservation("alice")
            assert not stopping.done()
        finally:
            goes_on.set()
        stopping.result(60)
    assert limiter.metrics.uncounted == 1
    assert not limiter.check("alice", 2).degraded
    limiter._exit()
    assert limiter.check("alice", 2) is FAIL_OPEN[STOPPING]
    assert limiter._thread is None


def test_stop_during_a_start_by_the_first_call_answers_that_call(
    kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    monkeypatch.setattr(kafka, "start", lambda _: began.set())  # the broker does not answer
    monkeypatch.setattr(kafka, "send_checks", lambda *_: None)
    limiter = BlockingLimiter("kafka:9092", publish_timeout_ms=60_000, apply_timeout_ms=70_000)
    limiter.start_on_first_use()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(limiter.check, "alice")
        assert began.wait(60)
        limiter.stop()
        assert answer.result(60).degraded
    assert limiter.metrics.uncounted == 1


class Interrupted(BaseException):
    pass


def test_call_that_is_interrupted_is_canceled(kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch) -> None:
    waits, canceled, main_thread = threading.Event(), threading.Event(), threading.get_ident()
    result = LimiterThread._result

    def wait_for(thread: LimiterThread, future: Any) -> Any:
        waits.set()
        return result(thread, future)

    async def wait() -> None:
        await asyncio.to_thread(waits.wait)
        signal.pthread_kill(main_thread, signal.SIGUSR1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.set()
            raise

    def interrupt(_: int, __: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with blocking() as limiter:
            monkeypatch.setattr(LimiterThread, "_result", wait_for)
            with pytest.raises(Interrupted):
                limiter._wait(wait())
            assert canceled.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_call_that_a_stop_cuts_off_says_so(kafka: type[Kafka]) -> None:
    limiter, begun = blocking(), threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        with limiter:
            call = pool.submit(limiter._wait, wait())
            assert begun.wait(60)
        with pytest.raises(RuntimeError, match="the limiter is stopped"):
            call.result(60)


def test_limiter_that_its_first_call_started_stops_with_its_process() -> None:
    program = """
import logging
import multiprocessing
import os
import billiard
from celery.signals import worker_process_shutdown
from stoplog import BlockingLimiter

def check(way):
    logging.basicConfig(format=f"{way}: %(message)s", force=True)
    print(way, limiter.check("alice").degraded, flush=True)

limiter = BlockingLimiter("127.0.0.1:1", publish_timeout_ms=20_000, apply_timeout_ms=30_000)
limiter.start_on_first_use()
for library in (multiprocessing, billiard):
    child = library.get_context("fork").Process(target=check, args=(library.__name__,))
    child.start()
    child.join()
if os.fork() == 0:  # a process of a Celery pool
    check("celery")
    worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
    os._exit(0)
os.wait()
check("main")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    ways = ["multiprocessing", "billiard", "celery", "main"]
    assert (ended.returncode, ended.stdout) == (0, "".join(f"{way} True\n" for way in ways))
    for way in ways:
        assert f"{way}: stopped while degraded" in ended.stderr
    assert "Traceback" not in ended.stderr
