"""Uvicorn's HTTP protocol with a fast path, one write per response, and a limit for a request's head.

The protocol answers a plain check (:mod:`stoplog_gateway.http.fast_path`) without the objects that uvicorn
creates for an application: a task, an event, a dict and a timer for each request. One timer per connection
detects idle connections. Uvicorn handles every request that needs more of HTTP: a connection to close, a
caller that does not read, a pipelined request.

Uvicorn writes the head and the body of a response separately, so each response costs two system calls and two
segments. This protocol joins them. Uvicorn also buffers a head of any size. This protocol limits it.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport, get_running_loop
from functools import partial
from math import inf
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stoplog.asgi.problem import problem
from stoplog.asgi.responses import PROBLEM, Rendered, render
from stoplog_gateway.http.fast_path import FastPath, Handler
from stoplog_gateway.http.problems import HEAD_TOO_LARGE

MAX_HEAD: Final = 64 << 10
"""Maximum bytes of a request line and its header fields, and of the chunk headers and trailers of a body.

Proxies forward less by default (Envoy 60 KiB, nginx 32 KiB)."""


class GatewayProtocol(HttpToolsProtocol):
    """Serve one connection. Use as ``uvicorn.Config(http=partial(GatewayProtocol, fast_path))``.

    Args:
        fast_path: Answers plain checks. ``None`` sends every request to the application.
        uvicorn_args: The arguments that uvicorn passes to its protocols.
    """

    def __init__(self, fast_path: FastPath | None, **uvicorn_args: Any) -> None:
        super().__init__(**uvicorn_args)
        self._fast_path = fast_path
        self._idle_since = inf
        # The gateway serves no WebSocket. Uvicorn would find an installed WebSocket library by itself, and
        # its upgrade would not start a request cycle.
        self.ws_protocol_class = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to serve, with a transport that joins writes."""
        self._joined_writes = _JoinedWrites(transport, get_running_loop())
        super().connection_made(self._joined_writes)  # type: ignore[arg-type]
        self._head_bytes = 0  # received since the last complete head or piece of a body

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the idle timer."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def data_received(self, data: bytes) -> None:
        """Parse *data*. If a request's head is too large, send 431 and close the connection."""
        self._head_bytes += len(data)
        if self._head_bytes <= MAX_HEAD:
            return super().data_received(data)
        self._head_bytes -= len(data)
        while data and not self.transport.is_closing():
            room = MAX_HEAD - self._head_bytes
            if not room:
                self.transport.write(_HEAD_TOO_LARGE_RESPONSE)
                self.transport.close()
                return None
            piece, data = data[:room], data[room:]
            self._head_bytes += len(piece)
            super().data_received(piece)
        return None

    # --- one request ---

    def on_message_begin(self) -> None:
        """Reset the parsed fields for a new request."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Choose between the fast path and uvicorn."""
        self._head_bytes = 0
        self._idle_since = inf  # an earlier request in the same data may already have set it
        handler = self._fast_path.handler_for(self.url, self.headers) if self._fast_path is not None else None
        if handler is not None and self._is_plain():
            self.cycle = _FastCycle(handler)  # type: ignore[assignment]
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _is_plain(self) -> bool:
        """Return whether the request needs none of the HTTP features that only uvicorn implements."""
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
        """Collect a piece of the body, or pass it to uvicorn."""
        self._head_bytes = 0
        if isinstance(self.cycle, _FastCycle):
            self.cycle.pieces.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle a request of the fast path; uvicorn handles the others."""
        cycle = self.cycle
        if not isinstance(cycle, _FastCycle):
            super().on_message_complete()
        elif not self.transport.is_closing():
            body = b"".join(cycle.pieces)
            cycle.pieces.clear()
            cycle.handler(body, partial(self._respond, cycle))

    def _respond(self, cycle: _FastCycle, response: Rendered) -> None:
        cycle.response_complete = True
        if self.transport.is_closing():
            return
        status, headers, body = response
        fields = [b"%s: %s\r\n" % field for field in (*self.server_state.default_headers, *headers)]
        if not cycle.keep_alive:
            fields.append(b"connection: close\r\n")
        self._joined_writes.write_now(b"".join((STATUS_LINE[status], *fields, b"\r\n", body)))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    # --- between requests ---

    def on_response_complete(self) -> None:
        """Handle a request that arrived meanwhile, or start to wait for the next one."""
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
        """Close the connection if it has been idle for too long; otherwise set the timer again."""
        self.timeout_keep_alive_task = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        elif self._idle_since < inf:
            self._wait_idle(left)

    def _unset_keepalive_if_required(self) -> None:
        # The timer keeps running: requests neither create nor cancel it.
        self._idle_since = inf


class _FastCycle:
    """A request on the fast path: its handler, and the attributes that uvicorn expects of a request cycle."""

    __slots__ = (
        "disconnected",
        "handler",
        "keep_alive",
        "message_event",
        "pieces",
        "response_complete",
    )

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.pieces: list[bytes] = []
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT


class _NoEvent:
    def set(self) -> None:
        """Do nothing: no task waits for messages of a request on the fast path."""


_NO_EVENT: Final = _NoEvent()


def _head_too_large_response() -> bytes:
    status, headers, body = render(
        problem(
            HEAD_TOO_LARGE,
            f"the request line and header fields exceed {MAX_HEAD >> 10} KiB",
            None,
            "send fewer or shorter header fields, and send lists in the body",
        ),
        HEAD_TOO_LARGE.status,
        [(b"connection", b"close")],
        media=PROBLEM,
    )
    head = b"".join(b"%s: %s\r\n" % field for field in headers)
    return b"HTTP/1.1 %d Request Header Fields Too Large\r\n%s\r\n%s" % (status, head, body)


_HEAD_TOO_LARGE_RESPONSE: Final = _head_too_large_response()


class _JoinedWrites:
    """A transport that holds a write back until the next one, or until the end of the event-loop turn."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Hold *data*, or write it together with the data that is held."""
        if self._held:
            data, self._held = self._held + data, b""
            self._send(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def write_now(self, data: bytes) -> None:
        """Write the data that is held, then *data*."""
        if self._held:
            data, self._held = self._held + data, b""
        self._send(data)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._send(data)

    def _send(self, data: bytes) -> None:
        # The peer can reset the connection while data is held; uvloop's transport would raise then.
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Write the data that is held, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
