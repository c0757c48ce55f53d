"""Limits of size and type; on a real server where the arrival of the bytes matters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import httpx
import pytest
import uvicorn
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect

MIB = 1 << 20
JSON = {"content-type": "application/json"}


class Server(uvicorn.Server):
    """A server with an event that is set when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@pytest.fixture
def limiter() -> FakeLimiter:
    return FakeLimiter()


@pytest.fixture(params=["routes", "fast path"])
async def address(limiter: FakeLimiter, request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, int]]:
    """The address of a real server, with and without the fast path."""
    app = create_app(GatewaySettings(), limiter)
    fast = request.param == "fast path"
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(GatewayProtocol, FastPath(limiter, legacy_headers=False), Connections()))
        if fast
        else "httptools",
        port=0,
        log_config=None,
        ws="none",
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    await server.listening.wait()
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    await serving


def body_of(size: int, url: str) -> bytes:
    """Return a valid body of exactly *size* bytes."""
    check = b'{"client_id": "alice"%s}'
    wrap = b"[%s]" % check if url == "/v1/checks" else check
    return wrap % (b" " * (size - len(wrap % b"")))


@pytest.mark.parametrize(("url", "limit"), [("/v1/check", MIB), ("/v1/checks", 4 * MIB)])
async def test_body_of_the_maximum_size_is_accepted_and_one_byte_more_is_a_413(
    url: str, limit: int, limiter: FakeLimiter
) -> None:
    async with connect(limiter) as client:
        assert (await client.post(url, content=body_of(limit, url), headers=JSON)).status_code == 200
        assert len(limiter.checks) == 1
        response = await client.post(url, content=body_of(limit + 1, url), headers=JSON)
    assert response.status_code == 413
    assert response.json()["field"] == "body"
    assert len(limiter.checks) == 1


async def test_body_of_limits_above_the_maximum_size_is_a_413(limiter: FakeLimiter) -> None:
    async with connect(limiter) as client:
        response = await client.put("/v1/default", content=b" " * (MIB + 1), headers=JSON)
    assert response.status_code == 413
    assert not limiter.changes


async def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send *parts* and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


HEAD = b"POST /v1/check HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def test_large_content_length_is_a_413_before_the_body_arrives(address: tuple[str, int]) -> None:
    for size in (b"1048577", b"9" * 17):
        answer = await exchange(address, HEAD + b"Content-Length: %s\r\n\r\n" % size)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in answer


async def test_chunks_above_the_maximum_size_are_a_413_before_the_body_ends(
    address: tuple[str, int], limiter: FakeLimiter
) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    # One MiB and one chunk. The test never sends the end of the body, and the server must not wait for it.
    answer = await exchange(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert not limiter.checks


async def test_chunks_within_the_limit_are_accepted(address: tuple[str, int], limiter: FakeLimiter) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"client_id":'
        yield b' "alice"}'

    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        response = await client.post("/v1/check", content=chunks(), headers=JSON)
    assert response.status_code == 200
    assert len(limiter.checks) == 1


async def test_disconnect_within_a_body_logs_no_error(
    address: tuple[str, int], limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection(*address)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        assert (await client.get("/healthz")).status_code == 200
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
    assert not limiter.checks


@pytest.mark.parametrize(
    "type_", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
@pytest.mark.parametrize(
    ("method", "url"), [("POST", "/v1/check"), ("POST", "/v1/checks"), ("PUT", "/v1/default")]
)
async def test_content_type_other_than_json_is_a_415(
    type_: str | None, method: str, url: str, limiter: FakeLimiter
) -> None:
    headers = {} if type_ is None else {"content-type": type_}
    async with connect(limiter) as client:
        response = await client.request(method, url, content=b'{"client_id": "alice"}', headers=headers)
    assert response.status_code == 415
    assert response.json()["field"] == "Content-Type"
    assert "application/json" in response.json()["remedy"]
    assert not limiter.checks
    assert not limiter.changes


async def test_content_type_with_a_charset_is_accepted(limiter: FakeLimiter) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    async with connect(limiter) as client:
        response = await client.post("/v1/check", content=b'{"client_id": "alice"}', headers=headers)
    assert response.status_code == 200
