"""Requests on the fast path: without the application, without a task, and on connections of every state."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.tracing import RequestTracing
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.answer import Answer
from stoplog.client.engine import wall_ms
from stoplog.wire.checks import Check
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat
from tests.support.fake_kafka import running_limiter
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.late_turns import LateTurns
from tests.support.protocol_connection import (
    Connection,
    Request,
    forbidden_app,
    plain_request,
    respond_once,
    run_event_loop,
    status_of,
)

CHECK = plain_request("/v1/check", b'{"client_id": "a", "cost": 2}').data()
CHECKS = plain_request("/v1/checks", b'[{"client_id": "b"}]').data()


async def test_plain_check_does_not_reach_the_application(limiter: FakeLimiter) -> None:
    connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False))
    assert status_of(await connection.send(*CHECK)) == 200
    assert status_of(await connection.send(*CHECKS)) == 200
    assert status_of(await connection.send(*plain_request("/v1/check", b"{}").data())) == 422
    assert limiter.checks == [Check("a", 2), Check("b")]
    cycle: Any = connection.protocol.cycle
    assert not cycle.pieces, "an idle connection keeps a body in memory"
    await connection.disconnect()


async def test_check_on_a_connection_with_paused_writing_is_left_to_uvicorn(limiter: FakeLimiter) -> None:
    fast_path = FastPath(limiter, legacy_headers=False)
    connection = Connection(create_app(GatewaySettings(), limiter), fast_path)
    connection.protocol.pause_writing()
    assert await connection.send(*CHECK) == b"", "responded to a client that does not read"
    connection.protocol.resume_writing()
    assert status_of(await connection.send()) == 200
    await connection.disconnect()


async def test_websocket_handshake_does_not_repeat_the_check_before_it(limiter: FakeLimiter) -> None:
    """Another package can have installed a WebSocket library, which uvicorn would use."""
    connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False), ws=asyncio.Protocol)
    await connection.send(*CHECK)
    upgrade = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    await connection.send(*Request("GET", "/", upgrade).data())
    assert limiter.checks == [Check("a", 2)]
    await connection.disconnect()


@contextmanager
def created_tasks_and_timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the tasks and timers that are created within the block."""
    loop, created = asyncio.get_running_loop(), list[str]()

    def record(name: str) -> None:
        method = getattr(loop, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            created.append(name)
            return method(*args, **kwargs)

        patch.setattr(loop, name, recorded)

    with monkeypatch.context() as patch:
        for name in ("create_task", "call_at"):
            record(name)
        yield created


async def test_plain_check_creates_no_task_and_no_timer(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(create_app(GatewaySettings(), limiter), FastPath(limiter, legacy_headers=False))
    await connection.send(*CHECK)
    with created_tasks_and_timers(monkeypatch) as created:
        for _ in range(20):
            assert status_of(await connection.send(*CHECK)) == 200
        assert created == []
        # A request of the application shows that the test would notice one.
        assert status_of(await connection.send(*Request("GET", "/healthz").data())) == 200
        assert created == ["create_task"]
    await connection.disconnect()


@pytest.mark.usefixtures("kafka")
async def test_checks_of_one_batch_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_limiter(deny_cache=0) as (limiter, log):
        connections = [Connection(forbidden_app, FastPath(limiter, legacy_headers=False)) for _ in range(40)]
        for connection in connections:
            await connection.send(*CHECK)
        log.checks.clear()
        with created_tasks_and_timers(monkeypatch) as created:
            for connection in connections:
                connection.protocol.data_received(CHECK[0])
            await run_event_loop()
            created = list(created)
        assert len(log.checks) == 40
        assert all(len(connection.wire.written) == 2 for connection in connections)
        assert created == ["call_at"], "the checks of one client are not in one batch"
        for connection in connections:
            await connection.disconnect()


@pytest.mark.usefixtures("kafka")
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_limiter() as (limiter, _):
        connection = Connection(
            create_app(GatewaySettings(), limiter), FastPath(limiter, legacy_headers=False)
        )
        get = Request("GET", "/healthz").data()
        answers = await connection.send(b"".join([*CHECK, *get, *CHECKS, *CHECK]))
        await run_event_loop()
        answers = b"".join(connection.wire.written)
        bodies = [part.split(b"\r\n\r\n")[1] for part in answers.split(b"HTTP/1.1 200 OK\r\n")[1:]]
        assert [body[:1] for body in bodies] == [b"{", b"{", b"[", b"{"]
        assert b"status" in bodies[1]
        reading = connection.wire.reading
        assert False in reading
        assert reading[-1], "reading was not resumed"
        await connection.disconnect()


@pytest.mark.usefixtures("kafka")
async def test_shutdown_waits_for_the_response_and_closes_the_connection() -> None:
    async with running_limiter() as (limiter, _):
        connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False))
        connection.protocol.data_received(CHECK[0])
        connection.protocol.shutdown()
        assert not connection.wire.is_closing()
        answer = await connection.send()
        assert status_of(answer) == 200
        assert b"\r\nconnection: close\r\n" in answer
        assert connection.wire.is_closing()


@pytest.mark.usefixtures("kafka")
async def test_closed_connection_is_neither_read_nor_written() -> None:
    async with running_limiter() as (limiter, log):
        connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False))
        connection.protocol.data_received(CHECK[0])
        connection.wire.close()
        await run_event_loop()
        assert not connection.wire.written
        assert not connection.wire.late
        assert len(log.checks) == 1
        connection.protocol.data_received(CHECK[0])
        await run_event_loop()
        assert len(log.checks) == 1


async def test_with_tracing_each_plain_check_continues_its_own_trace(
    limiter: FakeLimiter,
) -> None:
    seen: list[int] = []

    def ask(check: Check, fails_closed: bool = False) -> Answer:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return limiter.answer

    limiter.ask = ask  # type: ignore[method-assign]
    connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False, tracing=RequestTracing()))
    for path, content in (("/v1/check", b'{"client_id": "a"}'), ("/v1/checks", b'[{"client_id": "b"}]')):
        request = plain_request(path, content)
        traced = request._replace(headers=(*request.headers, (b"traceparent", b"00-%032x-%016x-01" % (7, 9))))
        for sent in (traced, request):
            assert status_of(await connection.send(*sent.data())) == 200
    assert seen == [7, 0] * 2
    assert not trace.get_current_span().get_span_context().is_valid
    await connection.disconnect()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/check", b'{"client_id": "a", "on_unavailable": "deny"}'),
        ("/v1/checks", b'[{"client_id": "a"}, {"client_id": "b", "on_unavailable": "deny"}]'),
    ],
)
async def test_check_that_fails_closed_is_answered_as_by_the_routes(
    limiter: FakeLimiter, path: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    request, routes = plain_request(path, content), create_app(GatewaySettings(), limiter)
    fast_path = FastPath(limiter, legacy_headers=False)
    assert status_of(await respond_once(forbidden_app, request, fast_path)) == 200
    passed, limiter.fail_closed = limiter.fail_closed, []
    await respond_once(routes, request)
    assert passed == limiter.fail_closed
    assert passed[-1]
    limiter.error = ZeroDivisionError("secret")
    answer = await respond_once(forbidden_app, request, fast_path)
    assert answer == await respond_once(routes, request)
    assert status_of(answer) == 200
    assert b'"allowed":false' in answer
    assert [r.getMessage() for r in caplog.records] == [f"bug in POST '{path}'"] * 2


async def test_bug_is_a_500_and_is_logged(limiter: FakeLimiter, caplog: pytest.LogCaptureFixture) -> None:
    limiter.error = ZeroDivisionError("secret")
    request, routes = (
        plain_request("/v1/check", b'{"client_id": "a"}'),
        create_app(GatewaySettings(), limiter),
    )
    answer = await respond_once(forbidden_app, request, FastPath(limiter, legacy_headers=False))
    assert answer == await respond_once(routes, request)
    assert status_of(answer) == 500
    assert b"secret" not in answer
    assert [r.getMessage() for r in caplog.records] == ["bug in POST '/v1/check'"] * 2


@pytest.mark.usefixtures("kafka")
async def test_check_without_time_fails_open_at_once_and_is_published() -> None:
    async with running_limiter() as (limiter, log):
        connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False, turns=LateTurns()))
        connection.protocol.data_received(CHECK[0])
        [response] = connection.wire.written
        answer = json.loads(response.partition(b"\r\n\r\n")[2])
        assert (answer["allowed"], answer["degraded"], answer["reason"]) == (True, True, "overload")
        closed = plain_request("/v1/check", b'{"client_id": "a", "on_unavailable": "deny"}').data()
        assert b'"allowed":false' in await connection.send(*closed)
        assert [check.client for check in log.checks if check.client] == ["a", "a"]
        assert limiter.metrics.in_flight == limiter.metrics.uncounted == 0
        assert limiter.metrics.received == 2
        await connection.disconnect()


STATED = [
    plain_request("/v1/check", b'{"client_id": "a", "plan": "=5/minute"}'),
    plain_request("/v1/check", b'{"client_id": "a", "plan": "=5/minute", "on_unavailable": "deny"}'),
    plain_request("/v1/checks", b'[{"client_id": "a"}, {"client_id": "a", "plan": "=5/minute"}]'),
    Request("GET", "/v1/authorize?cost=2&plan=%3D5/minute&unavailable=deny", ((b"x-client-id", b"a"),)),
]


@pytest.mark.usefixtures("kafka")
@pytest.mark.parametrize("request_", STATED, ids=["check", "check that fails closed", "list", "proxy"])
async def test_plan_that_an_old_worker_cannot_read_is_a_409_on_every_path(request_: Request) -> None:
    old = Heartbeat("worker-1@old", "worker", "0.2.0", "old", 0)
    async with running_limiter() as (limiter, log):
        fast_path = whole_fast_path(limiter)
        assert status_of(await respond_once(forbidden_app, request_, fast_path)) == 200
        limiter._engine.on_heartbeats([StampedHeartbeat(old, wall_ms())])
        log.checks.clear()
        response = await respond_once(forbidden_app, request_, fast_path)
        assert status_of(response) == 409
        assert b"upgrade worker worker-1@old first" in response
        assert response == await respond_once(create_app(GatewaySettings(), limiter), request_)
        late = Connection(forbidden_app, whole_fast_path(limiter, turns=LateTurns()))
        assert await late.send(*request_.data()) == response
        await late.disconnect()
        assert not any(check.client for check in log.checks)
        states_none = plain_request("/v1/check", b'{"client_id": "a", "plan": "=best"}')
        assert status_of(await respond_once(forbidden_app, states_none, fast_path)) == 200


def list_of(count: int) -> bytes:
    return json.dumps([{"client_id": f"client-{number}"} for number in range(count)]).encode()


@pytest.mark.usefixtures("kafka")
async def test_long_list_of_checks_is_handled_in_many_turns() -> None:
    turns = dict.fromkeys(("fast path", "routes"), 0)
    async with running_limiter(deadline_ms=60_000) as (limiter, _):
        app = create_app(GatewaySettings(), limiter)
        for way, fast_path in (("routes", None), ("fast path", FastPath(limiter, legacy_headers=False))):
            connection = Connection(app, fast_path)
            connection.protocol.data_received(*plain_request("/v1/checks", list_of(10_000)).data())
            while not connection.wire.written:
                turns[way] += 1
                await asyncio.sleep(0)
            assert b"".join(connection.wire.written).count(b'"allowed"') == 10_000
            await connection.disconnect()
    assert min(turns.values()) > 20


async def test_long_list_is_refused_while_others_wait_too_long(limiter: FakeLimiter) -> None:
    now = 100.0
    turns = Turns(0.25, lambda: now)
    fast_path = FastPath(limiter, legacy_headers=False, turns=turns)
    long = plain_request("/v1/checks", list_of(600)).data()[0]
    first, second = Connection(forbidden_app, fast_path), Connection(forbidden_app, fast_path)
    first.protocol.data_received(long)
    now += 1
    second.protocol.data_received(long)
    assert status_of(second.wire.written[0]) == 503
    assert status_of(await first.send()) == 200
    assert status_of(await second.send(long)) == 200
    for connection in (first, second):
        await connection.disconnect()
