"""The HTTP front: any bytes, in any pieces, on a connection of the gateway's protocol.

For each input:

- No exception leaves the protocol, and no response is a 5xx.
- The responses are the same with and without the fast path, however the bytes are cut, and so are the checks
  and changes that reach the limiter.
- There are never more responses than requests. If h11, another parser, accepts all bytes, it counts the
  requests. Otherwise each request needs a line that ends with its version of HTTP, and the last response may
  be one to bytes that are no request.
"""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from random import Random
from typing import Final

import h11
import uvicorn
from starlette.types import ASGIApp
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.settings import GatewaySettings
from uvicorn.server import ServerState

from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.http_transport import FakeHttpTransport
from tests.support.protocol_connection import final_statuses
from tests.support.raw_requests import load_corpus

NAME: Final = "http"
EXAMPLES: Final = tuple(raw.data for raw in load_corpus())

_QUIET_TURNS: Final = 40
"""Turns of the event loop without output after which no more output is expected."""

_RANDOM: Final = re.compile(rb"\r\nx-request-id: [0-9a-f]{16}\r\n")
"""A header field that differs in each response."""

_REQUEST_LINE: Final = re.compile(rb"HTTP/\d\.\d[ \t]*\r?\n")


class HttpFront:
    """Sends inputs to the protocol. Use it in one event loop."""

    def __init__(self) -> None:
        self._limiter = FakeLimiter()
        self._app: ASGIApp = create_app(GatewaySettings(), self._limiter)
        self._config = uvicorn.Config(self._app, lifespan="off", log_config=None)
        self._config.load()
        self._connections = Connections()
        self._experienced = whole_fast_path(self._limiter)
        self._seen: set[tuple[int, ...]] = set()
        self._failures: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self._failures.append(str(context.get("exception") or context["message"]))
        )

    async def run(self, data: bytes, places: Random) -> bool:
        """Send *data*, cut at *places*. Return whether its responses are of a new kind."""
        cut = sorted(places.randrange(len(data) + 1) for _ in range(places.choice((0, 1, 1, 3))))
        pieces = [data[at:to] for at, to in pairwise([0, *cut, len(data)]) if at < to]
        slow = await self._respond(None, [data] if data else [])
        slow_calls = self._take_calls()
        fast = await self._respond(self._experienced, pieces)
        fast_calls = self._take_calls()
        statuses = final_statuses(fast)
        assert slow == fast, f"the paths differ: {slow[:300]!r} and {fast[:300]!r} for {pieces}"
        assert slow_calls == fast_calls
        assert not self._failures, self._failures
        assert not [status for status in statuses if status >= 500], fast[-600:]
        assert len(statuses) <= most_responses(data), f"{statuses} for {data!r}"
        kind = tuple(statuses[:4])
        is_new = kind not in self._seen
        self._seen.add(kind)
        return is_new

    def _take_calls(self) -> tuple[list[Check], list[bool], list[UpdateKey]]:
        """Return the checks and changes that reached the limiter since the last call."""
        limiter = self._limiter
        calls = limiter.checks, limiter.fail_closed, limiter.changes
        limiter.checks, limiter.fail_closed, limiter.changes, limiter.stored = [], [], [], {}
        for calls_of_others in (limiter.sources, limiter.histories, limiter.pages):
            calls_of_others.clear()
        return calls

    async def _respond(self, fast_path: FastPath | None, pieces: list[bytes]) -> bytes:
        state, wire = ServerState(), FakeHttpTransport()
        state.default_headers = [(b"date", b"today")]
        protocol = GatewayProtocol(
            fast_path, self._connections, config=self._config, server_state=state, app_state={}
        )
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.is_closing():
                protocol.data_received(piece)
        quiet = 0
        while quiet < _QUIET_TURNS:
            written = len(wire.written)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(wire.written) == written else 0
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert not wire.late, "the protocol writes to a connection that is lost"
        return _RANDOM.sub(b"\r\n", b"".join(wire.written))


def most_responses(data: bytes) -> int:
    """Return how many responses *data* may have at most."""
    requests = _counted_by_h11(data)
    return requests if requests is not None else len(_REQUEST_LINE.findall(data)) + 1


def _counted_by_h11(data: bytes) -> int | None:
    """Return the number of requests in *data* by h11; ``None`` if they are not all valid to it."""
    if not data:
        return 0  # h11 takes no data for the end of the connection
    parser = h11.Connection(h11.SERVER)
    requests = 0
    try:
        parser.receive_data(data)
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                return requests if not parser.trailing_data[0] else None
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                if parser.their_state is not h11.DONE:
                    return None
                rest, _ = parser.trailing_data
                if not rest:
                    return requests
                parser = h11.Connection(h11.SERVER)
                parser.receive_data(rest)
            elif isinstance(event, h11.Request):
                requests += 1
    except h11.RemoteProtocolError:
        return None
