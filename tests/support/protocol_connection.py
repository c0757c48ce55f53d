"""Connections to :class:`GatewayProtocol` without a socket: send bytes, read the response's bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from uvicorn.server import ServerState

from tests.support.http_transport import FakeHttpTransport

JSON = (b"content-type", b"application/json")
TURNS = 300
"""Turns of the event loop after which a missing response waits for more of the request."""

QUIET_TURNS = 60
"""Turns without output after which no more output is expected."""


async def run_event_loop() -> None:
    """Run the event loop until every response that can be sent is sent."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Request(NamedTuple):
    """A request, in pieces. If ``complete`` is false, its last piece does not arrive."""

    method: str = "POST"
    path: str = "/v1/check"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = (b"",)
    complete: bool = True
    version: str = "1.1"

    def data(self) -> list[bytes]:
        """Return the pieces that arrive; the first includes the head."""
        lines = [f"{self.method} {self.path} HTTP/{self.version}".encode(), b"host: localhost"]
        lines += [b"%s: %s" % field for field in self.headers]
        first, *rest = self.pieces if self.complete else self.pieces[:-1] or (b"",)
        return [b"\r\n".join(lines) + b"\r\n\r\n" + first, *rest]


def plain_request(path: str, content: bytes) -> Request:
    """Return a request that the fast path can handle."""
    return Request(path=path, headers=(JSON, (b"content-length", b"%d" % len(content))), pieces=(content,))


class Connection:
    """A connection to *app* with *fast_path* in front of it."""

    def __init__(
        self,
        app: ASGIApp,
        fast_path: FastPath | None,
        connections: Connections | None = None,
        **config_args: Any,
    ) -> None:
        config, self.wire = (
            uvicorn.Config(app, lifespan="off", log_config=None, proxy_headers=False, **config_args),
            FakeHttpTransport(),
        )
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"today")]
        self.connections = Connections() if connections is None else connections
        self.protocol = GatewayProtocol(
            fast_path, self.connections, config=config, server_state=state, app_state={}
        )
        self.protocol.connection_made(self.wire)

    async def send(self, *data: bytes) -> bytes:
        """Send *data* piece by piece, and return the response."""
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

    async def disconnect(self) -> None:
        """Close the connection from the client's side."""
        self.protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert not self.wire.late


async def respond_once(app: ASGIApp, request: Request, fast_path: FastPath | None = None) -> bytes:
    """Return the response to *request* on a new connection."""
    connection = Connection(app, fast_path)
    response = await connection.send(*request.data())
    await connection.disconnect()
    return response


async def respond_to_stream(app: ASGIApp, fast_path: FastPath | None, pieces: Sequence[bytes]) -> bytes:
    """Return everything that a new connection sends if *pieces* arrive without waiting for responses."""
    [response] = await respond_to_streams(app, fast_path, [pieces])
    return response


async def respond_to_streams(
    app: ASGIApp, fast_path: FastPath | None, streams: Sequence[Sequence[bytes]]
) -> list[bytes]:
    """Return everything that new connections send, one for each of *streams*, all at the same time."""
    connections = [Connection(app, fast_path) for _ in streams]
    for connection, pieces in zip(connections, streams, strict=True):
        for piece in pieces:
            if not connection.wire.is_closing():
                connection.protocol.data_received(piece)
    quiet, written = 0, -1
    while quiet < QUIET_TURNS:
        await asyncio.sleep(0)
        before, written = written, sum(len(connection.wire.written) for connection in connections)
        quiet = quiet + 1 if written == before else 0
    for connection in connections:
        await connection.disconnect()
    return [b"".join(connection.wire.written) for connection in connections]


def final_statuses(responses: bytes) -> list[int]:
    """Return the statuses of *responses*, without those that announce another one (1xx)."""
    # A body may repeat a field of the request, but no line end of it.
    statuses = map(int, re.findall(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n", responses))
    return [status for status in statuses if status >= 200]


def status_of(response: bytes) -> int:
    """Return the status of *response*; 0 if it is empty."""
    return int(response.split(b" ", 2)[1]) if response else 0


async def forbidden_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail: the request should have taken the fast path."""
    raise AssertionError("the request reached the application")


async def echo_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the request back: its method, its target and its body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    target = scope["raw_path"] + b"?" + scope["query_string"]
    body = b" ".join((scope["method"].encode(), target, body))
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})
