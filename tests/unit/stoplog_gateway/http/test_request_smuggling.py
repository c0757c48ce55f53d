"""Requests that ask for another protocol are answered, and their body is never taken for a request."""

from __future__ import annotations

import pytest
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.protocol_connection import JSON, Connection, Request, respond_to_stream, status_of

RESET = b"POST /v1/clients/mallory/reset HTTP/1.1\r\nHost: localhost\r\n\r\n"

UPGRADES = [
    ((b"connection", b"Upgrade"), (b"upgrade", b"websocket")),
    ((b"connection", b"upgrade, HTTP2-Settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABk")),
    ((b"connection", b"keep-alive"), (b"connection", b"UPGRADE"), (b"Upgrade", b"x/1, y")),
]


def upgrading(path: str, body: bytes, upgrade: tuple[tuple[bytes, bytes], ...]) -> bytes:
    length = (b"content-length", b"%d" % len(body))
    return b"".join(Request("POST", path, (JSON, length, *upgrade), (body,)).data())


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("path", ["/v1/check", "/v1/check?a=b"])
async def test_request_in_the_body_of_an_upgrade_request_is_not_answered(
    path: str, upgrade: tuple[tuple[bytes, bytes], ...], limiter: FakeLimiter
) -> None:
    app = create_app(GatewaySettings(), limiter)
    stream = upgrading(path, RESET, upgrade)
    for cut in range(1, len(stream)):
        fast_path = whole_fast_path(limiter)
        answers = await respond_to_stream(app, fast_path, [stream[:cut], stream[cut:]])
        assert answers.count(b"HTTP/1.1 ") == 1
        assert status_of(answers) in (400, 422)
    assert not limiter.changes


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_check_that_offers_another_protocol_is_answered(
    upgrade: tuple[tuple[bytes, bytes], ...], limiter: FakeLimiter
) -> None:
    connection = Connection(create_app(GatewaySettings(), limiter), whole_fast_path(limiter))
    for _ in range(2):
        answer = await connection.send(upgrading("/v1/check", b'{"client_id": "a"}', upgrade))
        assert status_of(answer) == 200
        assert b"connection: close" not in answer
    assert limiter.checks == [Check("a")] * 2
    await connection.disconnect()


async def test_chunked_body_of_an_upgrade_request_is_read(limiter: FakeLimiter) -> None:
    headers = (JSON, (b"transfer-encoding", b"chunked"), *UPGRADES[0])
    body = b'12\r\n{"client_id": "a"}\r\n0\r\n\r\n'
    connection = Connection(create_app(GatewaySettings(), limiter), whole_fast_path(limiter))
    assert status_of(await connection.send(*Request("POST", "/v1/check", headers, (body,)).data())) == 200
    assert limiter.checks == [Check("a")]
    await connection.disconnect()


async def test_connect_ends_the_connection(limiter: FakeLimiter) -> None:
    connect = b"CONNECT /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(RESET)
    answers = await respond_to_stream(create_app(GatewaySettings(), limiter), None, [connect + RESET])
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answers
    assert not limiter.changes
