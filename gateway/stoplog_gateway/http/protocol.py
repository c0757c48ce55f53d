"""Uvicorn's HTTP protocol, with a hot path, one write a response, and a bound on a request's head.

A plain check (:mod:`stoplog_gateway.http.fast_path`) is answered without what uvicorn makes for an application: a task, an
event, a dict, a timer for each request. One timer a connection tells that it is idle. Whatever is not the
plainest of HTTP is uvicorn's: a connection that is to be closed, a caller that does not read, a request that
comes before the answer to the last.

Uvicorn writes a response's head and body one after the other. Each is a system call and a segment on the
wire, which for a small answer is a tenth of all that a request costs here. And it keeps whatever comes before
a body, however much that is.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport, get_running_loop
from functools import partial
from math import inf
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stoplog.asgi.rate_limit_headers import Headers
from stoplog_gateway.http.fast_path import Ask, HotPath
from stoplog_gateway.http.problems import HEAD_TOO_LARGE, problem
from stoplog_gateway.http.responses import PROBLEM, Rendered, render

MAX_HEAD: Final = 64 << 10
"""Bytes of a request line and its header fields, and of what is sent between and after the chunks of a body:
what proxies pass on at most (Envoy 60 KiB, nginx 32)."""


class GatewayProtocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=partial(GatewayProtocol, hot))``.

    Args:
        hot: Answers plain checks; ``None``: nobody does but the application.
        more: What uvicorn gives its protocols.
    """

    def __init__(self, hot: HotPath | None, **more: Any) -> None:
        super().__init__(**more)
        self._hot = hot
        self._idle_since = inf
        # None is served; a library for them may be there all the same, and such a request begins no cycle.
        self.ws_protocol_class = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin, with a transport that gathers."""
        self._wire = _Gathered(transport, get_running_loop())
        super().connection_made(self._wire)  # type: ignore[arg-type]
        self._unread = 0  # bytes since a head was complete, or a piece of a body came

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

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

    # --- a request ---

    def on_message_begin(self) -> None:
        """Begin a request, of which nothing is known."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Begin to answer the request."""
        self._unread = 0
        self._idle_since = inf  # what came before it in the same piece may have been answered already
        ask = self._hot.of(self.url, self.headers) if self._hot is not None else None
        if ask is not None and self._is_plain():
            self.cycle = _Hot(ask, self.headers)  # type: ignore[assignment]
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _is_plain(self) -> bool:
        """Whether there is nothing about this request that uvicorn would have to look after."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and not self.flow.write_paused
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        self._unread = 0
        if isinstance(self.cycle, _Hot):
            self.cycle.pieces.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer a request that is hot."""
        cycle = self.cycle
        if not isinstance(cycle, _Hot):
            super().on_message_complete()
        elif not self.transport.is_closing():
            body = b"".join(cycle.pieces)
            cycle.pieces.clear()
            cycle.ask(body, cycle.headers, partial(self._respond, cycle))

    def _respond(self, cycle: _Hot, response: Rendered) -> None:
        cycle.response_complete = True
        if self.transport.is_closing():
            return
        status, headers, body = response
        fields = [b"%s: %s\r\n" % field for field in (*self.server_state.default_headers, *headers)]
        if not cycle.keep_alive:
            fields.append(b"connection: close\r\n")
        self._wire.write_now(b"".join((STATUS_LINE[status], *fields, b"\r\n", body)))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    # --- between requests ---

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile, or wait for the next request, but not for long."""
        if self.pipeline or self.transport.is_closing():
            return super().on_response_complete()
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_idle(self.timeout_keep_alive)
        return None

    def _wait_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for as long as allowed, or look again when it may be."""
        self.timeout_keep_alive_task = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        elif self._idle_since < inf:
            self._wait_idle(left)

    def _unset_keepalive_if_required(self) -> None:
        # The timer stays as it is: a request makes none, and ends none.
        self._idle_since = inf


class _Hot:
    """A hot request: what uvicorn's protocol wants to know of one, and what answers it."""

    __slots__ = (
        "ask",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "pieces",
        "response_complete",
    )

    def __init__(self, ask: Ask, headers: Headers) -> None:
        self.ask = ask
        self.headers = headers
        self.pieces: list[bytes] = []
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NOBODY_WAITS


class _Nobody:
    def set(self) -> None:
        """There is nobody who would have to be told."""


_NOBODY_WAITS: Final = _Nobody()


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

    def write_now(self, data: bytes) -> None:
        """Write *data*, after what is held."""
        if self._held:
            data, self._held = self._held + data, b""
        self._send(data)

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
