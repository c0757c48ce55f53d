"""Uvicorn's HTTP protocol, with one write a response, and a bound on a request's head.

Uvicorn writes a response's head and body one after the other. Each is a system call and a segment on the
wire, which for a small answer is a tenth of all that a request costs here. And it keeps whatever comes before
a body, however much that is.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport, get_running_loop
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.problems import HEAD_TOO_LARGE, problem
from gateway.api.responses import PROBLEM, render

MAX_HEAD: Final = 64 << 10
"""Bytes of a request line and its header fields, and of what is sent between and after the chunks of a body:
what proxies pass on at most (Envoy 60 KiB, nginx 32)."""


class GatheredProtocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=...)``."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin, with a transport that gathers."""
        super().connection_made(_Gathered(transport, get_running_loop()))  # type: ignore[arg-type]
        self._unread = 0  # bytes since a head was complete, or a piece of a body came

    def data_received(self, data: bytes) -> None:
        """Parse *data*; a request whose head is too large is answered 431, and the connection closed."""
        self._unread += len(data)
        if self._unread <= MAX_HEAD:
            return super().data_received(data)
        self._unread -= len(data)
        while data and not self.transport.is_closing():
            room = MAX_HEAD - self._unread
            if not room:
                self.transport.write(_REFUSAL)
                self.transport.close()
                return None
            piece, data = data[:room], data[room:]
            self._unread += len(piece)
            super().data_received(piece)
        return None

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        self._unread = 0
        super().on_body(body)


def _refusal() -> bytes:
    status, headers, body = render(
        problem(
            HEAD_TOO_LARGE,
            f"the request line and header fields are over {MAX_HEAD >> 10} KiB",
            None,
            "send fewer or shorter header fields, and lists in the body",
        ),
        HEAD_TOO_LARGE.status,
        [(b"connection", b"close")],
        media=PROBLEM,
    )
    head = b"".join(b"%s: %s\r\n" % field for field in headers)
    return b"HTTP/1.1 %d Request Header Fields Too Large\r\n%s\r\n%s" % (status, head, body)


_REFUSAL: Final = _refusal()


class _Gathered:
    """A transport that writes at the end of the event-loop turn, or with the next piece, all it was given."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Take *data*; at the latest it is written when this turn ends."""
        if self._held:
            data, self._held = self._held + data, b""
            self._send(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._send(data)

    def _send(self, data: bytes) -> None:
        # The connection may be reset in the turn in which data was held; uvloop's transport then raises.
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
