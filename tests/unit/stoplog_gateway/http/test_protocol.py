from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import httpx
import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.final_response import MAX_HEAD
from stoplog_gateway.http.protocol import GatewayProtocol
from uvicorn.server import ServerState

from tests.support.http_transport import FakeHttpTransport

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


async def served(app: ASGIApp, *requests: bytes) -> list[bytes]:
    """Return the data written to a connection that receives *requests*, until *app* closes it."""
    config, wire = uvicorn.Config(app, lifespan="off", log_config=None), FakeHttpTransport()
    config.load()
    protocol = GatewayProtocol(None, Connections(), config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(wire)
    for request in requests:
        protocol.data_received(request)
    await asyncio.wait_for(wire.ended.wait(), 30)
    assert not wire.late
    return wire.written


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"done"})


def get(method: str = "GET", *, last: bool = True) -> bytes:
    connection = "close" if last else "keep-alive"
    return f"{method} / HTTP/1.1\r\nHost: h\r\nConnection: {connection}\r\n\r\n".encode()


def post(field: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n" % field


def batched(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the number of bytes in the request's body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    content = b"%d" % size
    head = {**HEAD, "headers": [(b"content-length", b"%d" % len(content))]}
    await send(head)
    await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    """Run a real server, and return its address."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=cast(Any, partial(GatewayProtocol, None, Connections())),
            port=0,
            lifespan="off",
            log_config=None,
        )
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        await server.shutdown()


async def test_response_is_written_at_once() -> None:
    [response] = await served(answer, get())
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\ndone")


async def test_pipelined_requests_get_complete_responses_in_order() -> None:
    written = await served(answer, get(last=False) + get(last=False) + get())
    assert b"".join(written).count(b"\r\n\r\ndone") == 3


async def test_response_without_a_body_is_written() -> None:
    [response] = await served(answer, get("HEAD"))
    assert response.endswith(b"\r\n\r\n")


async def test_head_of_a_slow_response_is_sent_before_its_body() -> None:
    seen = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        await asyncio.wait_for(seen.wait(), 30)
        await send({"type": "http.response.body", "body": b"done"})

    async with (
        running(slow) as (host, port),
        httpx.AsyncClient() as client,
        client.stream("GET", f"http://{host}:{port}") as response,
    ):
        assert response.status_code == 200
        seen.set()
        assert await response.aread() == b"done"


def padded(size: int, *, then: str = "close") -> bytes:
    """Return a GET request with a head of *size* bytes."""
    head = f"GET / HTTP/1.1\r\nHost: h\r\nConnection: {then}\r\nPad: ".encode()
    return head.ljust(size - 4, b"x") + b"\r\n\r\n"


async def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send *parts* and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*address)
    for part in parts:
        writer.write(part)
        await writer.drain()
    response = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return response


async def test_head_of_64_kib_is_accepted_and_one_byte_more_is_a_431() -> None:
    async with running(answer) as address:
        assert (await exchange(address, padded(MAX_HEAD))).endswith(b"done")
        for parts in ([padded(MAX_HEAD + 1)], [*batched(padded(MAX_HEAD + 1), 4_000)]):
            head, _, body = (await exchange(address, *parts)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
            assert b"content-type: application/problem+json" in head
            assert b"connection: close" in head
            assert json.loads(body)["type"] == "urn:stoplog:problem:head-too-large"


async def test_limit_applies_to_each_head_on_a_connection() -> None:
    async with running(answer) as address:
        response = await exchange(address, padded(MAX_HEAD, then="keep-alive"), padded(MAX_HEAD))
    assert response.count(b"done") == 2


async def test_earlier_body_does_not_count_as_the_head_of_a_pipelined_request() -> None:
    async with running(echo) as address:
        large = post(b"Content-Length: 200000") + b"x" * 200_000
        response = await exchange(address, large + padded(50_000))
    assert response.count(b"HTTP/1.1 200 OK") == 2


CHUNKED = post(b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("begun", "endless"),
    [
        (b"", b"GET /" + b"x" * MAX_HEAD),
        (b"", b"\r\n" * MAX_HEAD),
        (CHUNKED, b"1;extension=" + b"x" * MAX_HEAD),
        (CHUNKED, b"0\r\n" + b"trailer: x\r\n" * MAX_HEAD),
    ],
    ids=["URL", "empty lines", "extension", "trailers"],
)
async def test_endless_head_is_a_431(begun: bytes, endless: bytes) -> None:
    written = await served(answer, begun, endless)
    assert written[0].startswith(b"HTTP/1.1 431 ")


async def test_protocol_does_not_limit_bodies() -> None:
    async with running(echo) as address:
        chunks = [b"%x\r\n%s\r\n" % (size, b"x" * size) for size in (1, 100_000, 300_000, 7)]
        response = await exchange(address, post(b"Transfer-Encoding: chunked"), *chunks, b"0\r\n\r\n" + get())
    assert b"\r\n\r\n400008" in response


def test_reset_connection_with_a_held_write_raises_no_error() -> None:
    """uvloop's transport raises an error for a write after the end of the connection."""
    errors: list[dict[str, Any]] = []

    class Late(GatewayProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            self.transport.write(b"a head that was sent in the same turn")
            super().connection_lost(exc)
            self.loop.call_soon(self.loop.call_soon, ended.set)

    ended = asyncio.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        config = uvicorn.Config(answer, lifespan="off", log_config=None)
        config.load()
        server = await loop.create_server(
            lambda: Late(None, Connections(), config=config, server_state=ServerState(), app_state={}),
            "127.0.0.1",
            0,
        )
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await asyncio.wait_for(ended.wait(), 30)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    assert errors == []
