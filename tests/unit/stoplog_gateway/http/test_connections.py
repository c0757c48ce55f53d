"""Bounds of connections on a real server: time without progress, and their number."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import uvicorn
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import ConnectionLimits, Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter
from tests.support.on_uvloop import on_uvloop
from tests.support.protocol_connection import final_statuses, plain_request

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHECK = plain_request("/v1/check", b'{"client_id": "a"}').data()[0]
QUICK = ConnectionLimits(keepalive_s=0.4, head_s=0.4, body_s=0.4)


class Running(NamedTuple):
    """A real server, and its connections."""

    address: tuple[str, int]
    connections: Connections
    server: uvicorn.Server

    def closed(self) -> dict[str, int]:
        """Return how many connections the server closed, by reason."""
        _, closed = self.connections.collect()
        return {s.labels["reason"]: int(s.value) for s in closed.samples if s.value}


@asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[Running]:
    limiter, connections = FakeLimiter(), Connections(limits)
    app = create_app(GatewaySettings(), limiter)
    protocol: Any = partial(GatewayProtocol, FastPath(limiter, legacy_headers=False), connections)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, port=0, lifespan="off", log_config=None))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield Running(server.servers[0].sockets[0].getsockname(), connections, server)
    finally:
        server.force_exit = True
        await server.shutdown()


async def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send *parts*, and return what arrives until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*address)
    for part in parts:
        writer.write(part)
        await writer.drain()
    response = await asyncio.wait_for(reader.read(), 8)
    writer.close()
    return response


@pytest.mark.parametrize(
    ("sent", "statuses", "reason"),
    # The shortest time is shorter than the keep-alive time, which the connection began with.
    [
        (b"", [], "no_request"),
        (b"GET /healthz HT", [408], "head"),
        (CHECK[:-3], [408], "body"),
        (CHECK[:-18], [408], "body"),
        (GET, [200], "idle"),
        (CHECK, [200], "idle"),
        (CHECK + CHECK + CHECK[:-3], [200, 200, 408], "body"),
        (GET + GET[:-2], [200, 408], "head"),
        (
            b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            [415],
            "body",
        ),
    ],
)
@on_uvloop
async def test_connection_without_progress_is_closed(
    sent: bytes, statuses: list[int], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stoplog_gateway.http.connections")
    async with serving(QUICK) as running:
        began = time.monotonic()
        assert final_statuses(await exchange(running.address, sent)) == statuses
        assert 0.3 < time.monotonic() - began < 5
        assert running.closed() == {reason: 1}
        assert len([r for r in caplog.records if "closed connections that" in r.getMessage()]) == 1


@on_uvloop
async def test_slow_body_with_progress_is_read_and_a_slow_head_is_not() -> None:
    async with serving(QUICK) as running:
        for request, head, status in ((CHECK, len(CHECK) - 18, 200), (GET, 0, 408)):
            reader, writer = await asyncio.open_connection(*running.address)
            writer.write(request[:head])
            for byte in request[head : head + 18]:
                if not running.closed():
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.1)
            assert int((await asyncio.wait_for(reader.readline(), 10)).split()[1]) == status
            writer.close()


@on_uvloop
async def test_client_that_reads_no_response_is_disconnected() -> None:
    async with serving(QUICK) as running:
        with socket.create_connection(running.address) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                await send_for_ever(client, loop)
        assert running.closed() == {"response": 1}


@on_uvloop
async def test_at_the_bound_the_connection_that_is_idle_longest_makes_room() -> None:
    async with serving(ConnectionLimits(max_open=3)) as running:
        opened = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection(*running.address)
            writer.write(CHECK)
            assert b"200" in await reader.readline()
            opened.append((reader, writer))
            await asyncio.sleep(0.01)  # the clock of the event loop counts milliseconds
        assert (await asyncio.wait_for(opened[0][0].read(), 10)).endswith(b"}")
        assert not any(reader.at_eof() for reader, _ in opened[1:])
        assert running.closed() == {"evicted": 1}
        for _, writer in opened:
            writer.close()


@on_uvloop
async def test_at_the_bound_without_an_idle_connection_a_new_one_gets_503() -> None:
    async with serving(ConnectionLimits(max_open=2)) as running:
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection(*running.address)
            writer.write(CHECK[:-3])
            writers.append(writer)
        await asyncio.sleep(0.1)
        response = await exchange(running.address, CHECK)
        assert final_statuses(response) == [503]
        assert b"too-many-connections" in response
        assert running.closed() == {"refused": 1}
        for writer in writers:
            writer.close()


@on_uvloop
async def test_request_that_waited_during_a_stall_is_answered() -> None:
    """After SIGSTOP and SIGCONT, timers run before sockets are read."""
    async with serving(QUICK) as running:
        with socket.create_connection(running.address) as client:
            client.sendall(CHECK)
            await asyncio.sleep(0.1)
            client.recv(65_536)
            client.sendall(CHECK)
            time.sleep(1.5)  # noqa: ASYNC251 - the stall: the event loop does not run
            await asyncio.sleep(0.2)
            client.setblocking(False)
            assert final_statuses(client.recv(65_536)) == [200]
        assert running.closed() == {}


@on_uvloop
async def test_response_to_a_body_that_is_too_large_arrives() -> None:
    head = b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with serving(ConnectionLimits()) as running:
        for length in (b"Content-Length: 20000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1312d00\r\n"):
            # The client sends everything before it reads: a reset would destroy the response.
            response = await exchange(running.address, head + length, *[b"x" * 1_000_000] * 20)
            assert final_statuses(response) == [413]


@on_uvloop
async def test_shutdown_ends_each_connection_after_its_response() -> None:
    async with serving(ConnectionLimits()) as running:
        reader, writer = await asyncio.open_connection(*running.address)
        idle, idle_writer = await asyncio.open_connection(*running.address)
        idle_writer.write(GET)
        assert b"200" in await idle.readline()
        writer.write(CHECK[:-3])
        await asyncio.sleep(0.1)
        running.connections.drain()
        writer.write(CHECK[-3:])
        response = await asyncio.wait_for(reader.read(), 8)
        assert final_statuses(response) == [200]
        assert b"connection: close" in response
        for part in (GET, CHECK):
            response = await exchange(running.address, part)  # new connections are still served
            assert final_statuses(response) == [200]
            assert b"connection: close" in response
        idle_writer.write(CHECK)
        assert b"connection: close" in await asyncio.wait_for(idle.read(), 10)
        writer.close()
        idle_writer.close()


async def send_for_ever(client: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    while True:
        await asyncio.wait_for(loop.sock_sendall(client, CHECK * 500), 20)
