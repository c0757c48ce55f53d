from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import httpx
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.gathered import GatheredProtocol

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended.is_set()
        self.written.append(bytes(data))

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def close(self) -> None:
        self.ended.set()


async def served(app: ASGIApp, *requests: bytes) -> list[bytes]:
    """What is written to a connection on which *requests* come, until *app* closes it."""
    config, wire = uvicorn.Config(app, lifespan="off", log_config=None), Wire()
    config.load()
    protocol = GatheredProtocol(config, ServerState(), {})
    protocol.connection_made(wire)
    for request in requests:
        protocol.data_received(request)
    await asyncio.wait_for(wire.ended.wait(), 30)
    return wire.written


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"done"})


def get(method: str = "GET", *, last: bool = True) -> bytes:
    then = "close" if last else "keep-alive"
    return f"{method} / HTTP/1.1\r\nHost: h\r\nConnection: {then}\r\n\r\n".encode()


async def test_a_response_is_one_write() -> None:
    [response] = await served(answer, get())
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\ndone")


async def test_responses_on_one_connection_come_whole_and_in_order() -> None:
    written = await served(answer, get(last=False) + get(last=False) + get())
    assert b"".join(written).count(b"\r\n\r\ndone") == 3


async def test_a_head_without_a_body_is_written() -> None:
    [response] = await served(answer, get("HEAD"))
    assert response.endswith(b"\r\n\r\n")


async def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    seen = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        await asyncio.wait_for(seen.wait(), 30)
        await send({"type": "http.response.body", "body": b"done"})

    server = uvicorn.Server(
        uvicorn.Config(slow, http=GatheredProtocol, port=0, lifespan="off", log_config=None)
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        async with httpx.AsyncClient() as client, client.stream("GET", f"http://{host}:{port}") as response:
            assert response.status_code == 200
            seen.set()
            assert await response.aread() == b"done"
    finally:
        await server.shutdown()


def test_what_is_held_when_the_connection_is_reset_is_no_error() -> None:
    """On uvloop, whose transport raises when it is written to after its end."""
    errors: list[dict[str, Any]] = []

    class Late(GatheredProtocol):
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
        server = await loop.create_server(lambda: Late(config, ServerState(), {}), "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await asyncio.wait_for(ended.wait(), 30)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    assert errors == []
