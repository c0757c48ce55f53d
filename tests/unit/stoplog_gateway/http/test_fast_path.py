"""The hot path against the routes: the same requests, the same bytes in answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.http.tracing import RequestTracing
from stoplog_gateway.settings import GatewaySettings
from uvicorn.server import ServerState

import stoplog.client.engine
from stoplog.client.answer import Answer
from stoplog.client.limiter import Limiter
from stoplog.wire.checks import Check
from tests.support.check_bodies import check_bodies
from tests.support.fake_kafka import Kafka
from tests.support.fake_limiter import FakeLimiter
from tests.support.raw_replies import Wire

JSON = (b"content-type", b"application/json")
TURNS = 300
"""Of the event loop: an answer that has not come by then waits for more of the request."""


async def turns() -> None:
    """So many that all is answered which can be."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Request(NamedTuple):
    """A request as it comes in; *ended*: its caller stayed to the end of the body."""

    method: str = "POST"
    path: str = "/v1/check"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = (b"",)
    ended: bool = True
    version: str = "1.1"

    def data(self) -> list[bytes]:
        """What arrives."""
        lines = [f"{self.method} {self.path} HTTP/{self.version}".encode(), b"host: h"]
        lines += [b"%s: %s" % field for field in self.headers]
        first, *rest = self.pieces if self.ended else self.pieces[:-1] or (b"",)
        return [b"\r\n".join(lines) + b"\r\n\r\n" + first, *rest]


def plain(path: str, content: bytes) -> Request:
    return Request(path=path, headers=(JSON, (b"content-length", b"%d" % len(content))), pieces=(content,))


class Connection:
    """A connection to *app*, in front of which *hot* stands."""

    def __init__(self, app: ASGIApp, hot: FastPath | None, **how: Any) -> None:
        config, self.wire = uvicorn.Config(app, lifespan="off", log_config=None, **how), Wire()
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"today")]
        self.protocol = GatewayProtocol(hot, config=config, server_state=state, app_state={})
        self.protocol.connection_made(self.wire)

    async def send(self, *data: bytes) -> bytes:
        """Send *data* piece by piece; what comes back."""
        before = len(self.wire.written)
        for piece in data:
            if not self.wire.is_closing():
                self.protocol.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(TURNS):
            cycle = self.protocol.cycle
            if self.wire.is_closing() or (cycle is not None and cycle.response_complete):
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return b"".join(self.wire.written[before:])

    async def end(self) -> None:
        """The caller hangs up."""
        self.protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert not self.wire.late


async def call(app: ASGIApp, request: Request, hot: FastPath | None = None) -> bytes:
    """What a connection of its own is answered."""
    connection = Connection(app, hot)
    answer = await connection.send(*request.data())
    await connection.end()
    return answer


def status_of(answer: bytes) -> int:
    """0: there is no answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


ids = st.text(max_size=5) | st.sampled_from(["alice", "a" * 256, "é" * 129, "a\x7f", "\u2028", "zoë 1"])
costs = st.integers(-2, 12) | st.sampled_from([1_000_000, 1_000_001, 10**30, 1.5, True, None])
checks = st.fixed_dictionaries(
    {"client_id": ids}, optional={"cost": costs, "plan": ids | st.none(), "resource": ids | st.none()}
)
contents = (
    (checks | st.lists(checks, max_size=4)).map(lambda asked: json.dumps(asked).encode())
    | checks.map(lambda asked: json.dumps(asked, ensure_ascii=False).encode("utf-8", "replace"))
    | check_bodies
)
media = st.sampled_from(
    [b"application/json", b"Application/JSON ; charset=utf-8", b"text/plain", b"", b"\xff"]
)
paths = ["/v1/check", "/v1/checks"] * 4 + ["/v1/check/", "/v1/Check", "/v1/checks/a", "", "/v1/check?a=b"]
MORE = [
    (b"connection", b"close"),
    (b"connection", b"keep-alive"),
    (b"connection", b"upgrade"),
    (b"expect", b"100-continue"),
    (b"transfer-encoding", b"chunked"),
    (b"Content-Encoding", b"gzip"),
]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    content = draw(contents)
    at = draw(st.integers(0, len(content)))
    pieces = draw(st.sampled_from([(content,), (content[:at], content[at:])]))
    lengths = [b"%d" % len(content)] * 5 + [b"1048577", b"9" * 19, b"4194305", b"-1", b"x", b""]
    types = draw(st.just([b"application/json"]) | st.lists(media, max_size=2))
    announced = draw(st.just([b"%d" % len(content)]) | st.lists(st.sampled_from(lengths), max_size=2))
    headers = [(b"content-type", value) for value in types]
    headers += [(b"content-length", value) for value in announced]
    headers += [(b"authorization", b"Bearer x"), (b"origin", b"http://elsewhere")]
    headers += draw(st.just([]) | st.sampled_from(MORE).map(lambda field: [field]))
    return Request(
        draw(st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "OPTIONS"])),
        draw(st.sampled_from(paths)),
        tuple(draw(st.permutations(headers))),
        pieces,
        draw(st.sampled_from([True] * 8 + [False])),
        draw(st.sampled_from(["1.1"] * 8 + ["1.0"])),
    )


def cases(path: str, good: bytes) -> list[Request]:
    """One request of every status; and those that differ in what only a repeated field tells."""
    ask = plain(path, good)
    length = ask.headers[1]
    return [
        ask,
        plain(path, good[:-1]),
        plain(path, b"7"),
        ask._replace(method="PUT"),
        ask._replace(headers=((b"content-type", b"text/plain"), length)),
        ask._replace(headers=(JSON, (b"content-length", b"4194305"))),
        ask._replace(headers=((b"content-type", b""), JSON, length)),
        ask._replace(headers=(JSON, (b"content-length", b"4194305"), length)),
        ask._replace(headers=(*ask.headers, (b"connection", b"keep-alive")), version="1.0"),
        ask._replace(headers=(*ask.headers, (b"connection", b"upgrade"), (b"upgrade", b"h2c"))),
    ]


sound = st.sampled_from(
    [
        Request("GET", "/healthz"),
        plain("/v1/check", b"{}")._replace(method="PUT"),
        plain("/v1/check", b"{}")._replace(headers=((b"content-length", b"2"),)),
        plain("/v1/check?a=b", b'{"client_id": "a"}'),
    ]
) | st.builds(plain, st.sampled_from(["/v1/check", "/v1/checks"]), contents).flatmap(
    lambda request: st.sampled_from(
        [request] * 5
        + [
            request._replace(headers=(*request.headers, (b"connection", b"close"))),
            request._replace(headers=(*request.headers, (b"connection", b"keep-alive")), version="1.0"),
        ]
    )
)
"""Requests that a parser takes: where it takes the next for none, an answer under way may be lost with it."""

CASES = cases("/v1/check", b'{"client_id": "alice"}') + cases("/v1/checks", b'[{"client_id": "alice"}]')


@pytest.mark.parametrize("legacy", [False, True])
def test_every_request_has_the_answer_that_the_routes_give(
    monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    chosen = GatewaySettings(legacy_headers=legacy)
    limiter = Limiter(chosen)
    routes = create_app(chosen, limiter)
    hot = FastPath(limiter, legacy_headers=legacy)
    seen = set()
    fields: set[bytes] = set()

    with asyncio.Runner() as runner:
        runner.run(limiter.__aenter__())
        log: Kafka = limiter._engine.transport  # type: ignore[assignment]

        @given(requests())
        @settings(max_examples=250)
        def compare(request: Request) -> None:
            expected = runner.run(call(routes, request))
            asked, log.checks = log.checks, []
            assert runner.run(call(routes, request, hot)) == expected
            assert log.checks == asked
            log.checks = []
            seen.add((request.path, status_of(expected)))
            fields.update(line.partition(b":")[0] for line in expected.split(b"\r\n"))

        for case in CASES:
            compare = example(case)(compare)
        compare()

        @given(st.lists(sound, min_size=2, max_size=4), st.data())
        @settings(max_examples=150)
        def compare_connections(asked: list[Request], data: st.DataObject) -> None:
            stream = b"".join(b"".join(request.data()) for request in asked)
            cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4).map(sorted))
            pieces = [stream[at:to] for at, to in pairwise([0, *cuts, len(stream)]) if at < to]
            answers = []
            for way in (None, hot):
                answers.append((runner.run(converse(routes, way, pieces)), log.checks))
                log.checks = []
            assert answers[0] == answers[1]

        compare_connections()
        runner.run(limiter.__aexit__(None, None, None))
    assert (b"x-ratelimit-reset" in fields) == legacy
    assert seen >= {
        (path, status) for path in ("/v1/check", "/v1/checks") for status in (200, 400, 405, 413, 415, 422)
    }


async def converse(app: ASGIApp, hot: FastPath | None, pieces: Sequence[bytes]) -> bytes:
    """All that a connection is answered to these *pieces*, which come without waiting for answers."""
    connection = Connection(app, hot)
    for piece in pieces:
        if not connection.wire.is_closing():
            connection.protocol.data_received(piece)
    await turns()
    await connection.end()
    return b"".join(connection.wire.written)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("passed on")


CHECK = plain("/v1/check", b'{"client_id": "a", "cost": 2}').data()
CHECKS = plain("/v1/checks", b'[{"client_id": "b"}]').data()


async def test_a_plain_check_does_not_come_to_the_routes(limiter: FakeLimiter) -> None:
    connection = Connection(refuse, FastPath(limiter, legacy_headers=False))
    assert status_of(await connection.send(*CHECK)) == 200
    assert status_of(await connection.send(*CHECKS)) == 200
    assert status_of(await connection.send(*plain("/v1/check", b"{}").data())) == 422
    assert limiter.checks == [Check("a", 2), Check("b")]
    cycle: Any = connection.protocol.cycle
    assert not cycle.pieces, "an idle connection keeps no body"
    timer = connection.protocol.timeout_keep_alive_task
    assert timer is not None
    await connection.end()
    assert timer.cancelled()


async def test_where_uvicorn_has_to_look_after_a_request_it_is_not_hot(limiter: FakeLimiter) -> None:
    hot = FastPath(limiter, legacy_headers=False)
    connection = Connection(create_app(GatewaySettings(), limiter), hot)
    connection.protocol.pause_writing()
    assert await connection.send(*CHECK) == b"", "the caller does not read"
    connection.protocol.resume_writing()
    assert status_of(await connection.send()) == 200
    await connection.end()


async def test_a_websockets_handshake_is_not_the_check_before_it_once_more(limiter: FakeLimiter) -> None:
    """With a library for them on the path, which some other package may have brought."""
    connection = Connection(refuse, FastPath(limiter, legacy_headers=False), ws=asyncio.Protocol)
    await connection.send(*CHECK)
    upgrade = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    await connection.send(*Request("GET", "/", upgrade).data())
    assert limiter.checks == [Check("a", 2)]
    await connection.end()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tasks and timers made in the block."""
    loop, made = asyncio.get_running_loop(), list[str]()

    def counting(name: str) -> None:
        method = getattr(loop, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return method(*args, **kwargs)

        patch.setattr(loop, name, counted)

    with monkeypatch.context() as patch:
        for name in ("create_task", "call_at"):
            counting(name)
        yield made


async def test_a_plain_check_makes_no_task_and_no_timer(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(create_app(GatewaySettings(), limiter), FastPath(limiter, legacy_headers=False))
    await connection.send(*CHECK)
    with counted(monkeypatch) as made:
        for _ in range(20):
            assert status_of(await connection.send(*CHECK)) == 200
        assert made == []
        # It would be seen.
        assert status_of(await connection.send(*Request("GET", "/healthz").data())) == 200
        assert made == ["create_task"]
    await connection.end()


async def test_checks_that_wait_for_the_store_have_one_timer_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    limiter = Limiter(GatewaySettings(deny_cache=0))
    async with limiter:
        log: Kafka = limiter._engine.transport  # type: ignore[assignment]
        connections = [Connection(refuse, FastPath(limiter, legacy_headers=False)) for _ in range(40)]
        for connection in connections:
            await connection.send(*CHECK)
        log.checks.clear()
        with counted(monkeypatch) as made:
            for connection in connections:
                connection.protocol.data_received(CHECK[0])
            await turns()
            made = list(made)
        assert len(log.checks) == 40
        assert all(len(connection.wire.written) == 2 for connection in connections)
        assert made == ["call_at"], "all are of one client, and in one batch"
        for connection in connections:
            await connection.end()


async def test_the_connections_one_timer_closes_it_when_it_was_idle_for_long(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(refuse, FastPath(limiter, legacy_headers=False))
    protocol, loop = connection.protocol, asyncio.get_running_loop()
    now, timers = loop.time(), list[float]()
    monkeypatch.setattr(loop, "time", lambda: now)

    def call_later(after: float, _: object) -> object:
        timers.append(after)
        return object()

    monkeypatch.setattr(loop, "call_later", call_later)
    keep_s = protocol.timeout_keep_alive
    await connection.send(*CHECK)
    now += keep_s - 1
    await connection.send(*CHECK)
    assert timers == [keep_s]
    now += 1
    protocol.timeout_keep_alive_handler()
    assert timers == [keep_s, keep_s - 1]
    assert not connection.wire.is_closing()
    protocol.data_received(CHECK[0][:20])
    now += keep_s
    protocol.timeout_keep_alive_handler()
    assert not connection.wire.is_closing(), "a request has begun"
    await connection.send(CHECK[0][20:])
    assert timers[2:] == [keep_s]
    now += keep_s
    protocol.timeout_keep_alive_handler()
    assert connection.wire.is_closing()


async def test_a_connection_is_not_idle_whose_request_came_with_the_one_before(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(refuse, FastPath(limiter, legacy_headers=False))
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    await connection.send(CHECK[0] + CHECK[0][:-3])
    now += connection.protocol.timeout_keep_alive
    connection.protocol.timeout_keep_alive_handler()
    assert not connection.wire.is_closing()
    assert status_of(await connection.send(CHECK[0][-3:])) == 200
    await connection.end()


async def test_what_comes_before_the_answer_is_answered_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    limiter = Limiter(GatewaySettings())
    async with limiter:
        connection = Connection(
            create_app(GatewaySettings(), limiter), FastPath(limiter, legacy_headers=False)
        )
        get = Request("GET", "/healthz").data()
        answers = await connection.send(b"".join([*CHECK, *get, *CHECKS, *CHECK]))
        await turns()
        answers = b"".join(connection.wire.written)
        bodies = [part.split(b"\r\n\r\n")[1] for part in answers.split(b"HTTP/1.1 200 OK\r\n")[1:]]
        assert [body[:1] for body in bodies] == [b"{", b"{", b"[", b"{"]
        assert b"status" in bodies[1]
        reading = connection.wire.reading
        assert False in reading
        assert reading[-1], "what follows is read"
        await connection.end()


async def test_a_shutdown_waits_for_the_answer_and_says_that_it_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    limiter = Limiter(GatewaySettings())
    async with limiter:
        connection = Connection(refuse, FastPath(limiter, legacy_headers=False))
        connection.protocol.data_received(CHECK[0])
        connection.protocol.shutdown()
        assert not connection.wire.is_closing()
        answer = await connection.send()
        assert status_of(answer) == 200
        assert b"\r\nconnection: close\r\n" in answer
        assert connection.wire.is_closing()


async def test_nothing_is_asked_or_written_once_a_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    limiter = Limiter(GatewaySettings())
    async with limiter:
        log: Kafka = limiter._engine.transport  # type: ignore[assignment]
        connection = Connection(refuse, FastPath(limiter, legacy_headers=False))
        connection.protocol.data_received(CHECK[0])
        connection.wire.close()
        await turns()
        assert not connection.wire.written
        assert not connection.wire.late
        assert len(log.checks) == 1
        connection.protocol.data_received(CHECK[0])
        await turns()
        assert len(log.checks) == 1


async def test_each_plain_check_goes_on_with_the_trace_that_it_names_and_no_other(
    limiter: FakeLimiter,
) -> None:
    seen: list[int] = []

    def ask(check: Check) -> Answer:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return limiter.answer

    limiter.ask = ask  # type: ignore[method-assign]
    connection = Connection(refuse, FastPath(limiter, legacy_headers=False, tracing=RequestTracing()))
    for path, content in (("/v1/check", b'{"client_id": "a"}'), ("/v1/checks", b'[{"client_id": "b"}]')):
        request = plain(path, content)
        traced = request._replace(headers=(*request.headers, (b"traceparent", b"00-%032x-%016x-01" % (7, 9))))
        for one in (traced, request):
            assert status_of(await connection.send(*one.data())) == 200
    assert seen == [7, 0] * 2
    assert not trace.get_current_span().get_span_context().is_valid
    await connection.end()


async def test_a_bug_is_a_500_and_in_the_log(limiter: FakeLimiter, caplog: pytest.LogCaptureFixture) -> None:
    limiter.error = ZeroDivisionError("secret")
    request, routes = plain("/v1/check", b'{"client_id": "a"}'), create_app(GatewaySettings(), limiter)
    answer = await call(refuse, request, FastPath(limiter, legacy_headers=False))
    assert answer == await call(routes, request)
    assert status_of(answer) == 500
    assert b"secret" not in answer
    assert [r.getMessage() for r in caplog.records] == ["bug in POST '/v1/check'"] * 2
