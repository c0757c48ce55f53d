"""The hot path against the routes: the same requests, the same answers."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import NamedTuple

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import gateway.limiter
from gateway.api.hot import HotPath
from gateway.app import create_app
from gateway.limiter import Limiter
from gateway.settings import Settings
from streams.contract.records import Check
from tests.unit.gateway.api.fake import FakeLimiter
from tests.unit.gateway.api.test_check import bodies
from tests.unit.gateway.kafka import Kafka

JSON = (b"content-type", b"application/json")


class Request(NamedTuple):
    """A request as a server passes it on; *ended*: its caller stayed to the end of the body."""

    method: str = "POST"
    path: str = "/v1/check"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = (b"",)
    ended: bool = True


def plain(path: str, content: bytes) -> Request:
    return Request(path=path, headers=(JSON, (b"content-length", b"%d" % len(content))), pieces=(content,))


class Response(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def call(app: ASGIApp, request: Request) -> Response:
    """What *app* answers."""
    messages: deque[Message] = deque(
        {"type": "http.request", "body": piece, "more_body": not request.ended or i < len(request.pieces) - 1}
        for i, piece in enumerate(request.pieces)
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.popleft() if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"a=b",
        "root_path": "",
        "headers": list(request.headers),
    }
    await app(scope, receive, send)
    start, *rest = sent
    assert start["type"] == "http.response.start"
    return Response(start["status"], start["headers"], b"".join(m.get("body", b"") for m in rest))


ids = st.text(max_size=5) | st.sampled_from(["alice", "a" * 256, "é" * 129, "a\x7f", "\u2028", "zoë 1"])
costs = st.integers(-2, 12) | st.sampled_from([1_000_000, 1_000_001, 10**30, 1.5, True, None])
checks = st.fixed_dictionaries(
    {"client_id": ids}, optional={"cost": costs, "plan": ids | st.none(), "resource": ids | st.none()}
)
contents = (
    (checks | st.lists(checks, max_size=4)).map(lambda asked: json.dumps(asked).encode())
    | checks.map(lambda asked: json.dumps(asked, ensure_ascii=False).encode("utf-8", "replace"))
    | bodies
)
media = st.sampled_from(
    [b"application/json", b"Application/JSON ; charset=utf-8", b"text/plain", b"", b"\xff"]
)
paths = ["/v1/check", "/v1/checks"] * 4 + ["/v1/check/", "/v1/Check", "/v1/checks/a", ""]


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
    return Request(
        draw(st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "OPTIONS"])),
        draw(st.sampled_from(paths)),
        tuple(draw(st.permutations(headers))),
        pieces,
        draw(st.sampled_from([True] * 8 + [False])),
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
    ]


CASES = cases("/v1/check", b'{"client_id": "alice"}') + cases("/v1/checks", b'[{"client_id": "alice"}]')


@pytest.mark.parametrize("legacy", [False, True])
def test_every_request_has_the_answer_that_the_routes_give(
    monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.setattr(gateway.limiter, "Transport", Kafka)
    chosen = Settings(legacy_headers=legacy)
    limiter = Limiter(chosen)
    routes = create_app(chosen, limiter)
    hot = HotPath(routes, limiter, legacy_headers=legacy)
    seen = set()
    fields: set[bytes] = set()

    with asyncio.Runner() as runner:
        runner.run(limiter.__aenter__())
        log: Kafka = limiter._transport  # type: ignore[assignment]

        @given(requests())
        @settings(max_examples=250)
        def compare(request: Request) -> None:
            expected = runner.run(call(routes, request))
            asked, log.checks = log.checks, []
            assert runner.run(call(hot, request)) == expected
            assert log.checks == asked
            log.checks = []
            seen.add((request.path, expected.status))
            fields.update(name for name, _ in expected.headers)

        for case in CASES:
            compare = example(case)(compare)
        compare()
        runner.run(limiter.__aexit__(None, None, None))
    assert (b"x-ratelimit-reset" in fields) == legacy
    assert seen >= {
        (path, status) for path in ("/v1/check", "/v1/checks") for status in (200, 400, 405, 413, 415, 422)
    }


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("passed on")


async def test_a_plain_check_does_not_come_to_the_routes(limiter: FakeLimiter) -> None:
    app = HotPath(refuse, limiter, legacy_headers=False)
    assert (await call(app, plain("/v1/check", b'{"client_id": "a", "cost": 2}'))).status == 200
    assert (await call(app, plain("/v1/checks", b'[{"client_id": "b"}]'))).status == 200
    assert (await call(app, plain("/v1/check", b"{}"))).status == 422
    assert limiter.checks == [Check("a", 2), Check("b")]


async def test_a_bug_is_a_500_and_in_the_log(limiter: FakeLimiter, caplog: pytest.LogCaptureFixture) -> None:
    limiter.error = ZeroDivisionError("secret")
    request = plain("/v1/check", b'{"client_id": "a"}')
    response = await call(HotPath(refuse, limiter, legacy_headers=False), request)
    assert response == await call(create_app(Settings(), limiter), request)
    assert response.status == 500
    assert b"secret" not in response.body
    assert [r.getMessage() for r in caplog.records] == ["a bug in POST '/v1/check'"] * 2


async def test_all_else_is_the_routes(limiter: FakeLimiter) -> None:
    app = HotPath(create_app(Settings(), limiter), limiter, legacy_headers=False)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/v1/clients/alice/reset")).status_code == 200
