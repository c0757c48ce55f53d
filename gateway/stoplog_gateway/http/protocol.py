"""Uvicorn's HTTP protocol with a fast path, one write per response, and bounds on what a caller can demand.

The protocol answers a plain check (:mod:`stoplog_gateway.http.fast_path`) without the objects that uvicorn
creates for an application: a task, an event, a dict and a timer for each request. It remembers the heads of
plain checks: a client sends the same bytes again and again, and a known head need not be parsed. Uvicorn
handles every request that needs more of HTTP.

Uvicorn writes the head and the body of a response separately, so each response costs two system calls and two
segments. This protocol joins them.

One request at a time is parsed. Uvicorn parses pipelined requests at once, and keeps an object for each.
This protocol keeps their bytes and stops reading the connection until the response is sent. It finds the end
of each request itself (:mod:`stoplog_gateway.http.request_head`, :mod:`stoplog_gateway.http.chunked`) and
passes the parser no byte beyond it. If the parser finds another end, the connection is closed. A request
that asks for another protocol (``Upgrade``) is answered as if it did not.
"""

from __future__ import annotations

from asyncio import Transport, get_running_loop
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered
from stoplog_gateway.http import connections as reasons
from stoplog_gateway.http.chunked import BadChunk, ChunkedBody
from stoplog_gateway.http.connections import Connections, has_unread_data
from stoplog_gateway.http.fast_path import FastPath, Handler, KnownHead
from stoplog_gateway.http.final_response import (
    BAD_REQUEST_RESPONSE,
    BODY_TIMEOUT_RESPONSE,
    HEAD_TIMEOUT_RESPONSE,
    HEAD_TOO_LARGE_RESPONSE,
    MAX_HEAD,
    TOO_MANY_RESPONSE,
    final_response,
)
from stoplog_gateway.http.joined_writes import JoinedWrites
from stoplog_gateway.http.problems import BAD_REQUEST
from stoplog_gateway.http.request_head import CHUNKED, FRAMING_FIELDS, BadHead, body_length, without_upgrade

_REQUESTS_PER_TURN: Final = 16
"""Pipelined requests of one connection that are handled before other connections get their turn."""

_REFUSED_S: Final = 1.0
"""Seconds that a refused connection has to read its response."""

_HEAD_END: Final = b"\r\n\r\n"


class Phase(Enum):
    """Which part of a request the next byte belongs to.

    ========  ==============================================  =================================
    phase     the next byte                                   next phase
    ========  ==============================================  =================================
    HEAD      belongs to a head, or begins one                LENGTH or CHUNKED if there is a
                                                              body; HEAD otherwise; CLOSED
    LENGTH    belongs to a body with ``Content-Length``       HEAD, CLOSED
    CHUNKED   belongs to a body in chunks                     HEAD, CLOSED
    CLOSED    is dropped: the last response has been sent
    ========  ==============================================  =================================
    """

    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    CLOSED = auto()


# Access to a member of an enum takes longer than to a global.
_HEAD: Final = Phase.HEAD
_LENGTH: Final = Phase.LENGTH
_CHUNKED: Final = Phase.CHUNKED
_CLOSED: Final = Phase.CLOSED


class GatewayProtocol(HttpToolsProtocol):
    """Serve one connection. Use as ``uvicorn.Config(http=partial(GatewayProtocol, fast_path, connections))``.

    Args:
        fast_path: Answers plain checks. ``None`` sends every request to the application.
        connections: All connections of the process.
        uvicorn_args: The arguments that uvicorn passes to its protocols.
    """

    def __init__(self, fast_path: FastPath | None, connections: Connections, **uvicorn_args: Any) -> None:
        super().__init__(**uvicorn_args)
        self._fast_path = fast_path
        self._connections = connections
        self._limits = connections.limits
        self.expires_at = inf
        # The gateway serves no WebSocket. Uvicorn would find an installed WebSocket library by itself, and
        # its upgrade would not start a request cycle.
        self.ws_protocol_class = None
        self._phase = _HEAD
        self._queued = b""  # data that no one has looked at yet, from index _queued_at on
        self._queued_at = 0
        self._resumes = False  # whether the connection waits for its turn
        self._consuming = False
        self._closes_after_consuming = False
        self._known_heads = fast_path.known_heads if fast_path is not None else {}
        self._draining = connections.draining
        self._served = False  # whether a request has arrived
        self._unsent = 0  # bytes of responses that the caller had not read when it was looked at
        # Of the request that is parsed:
        self._head_bytes = 0  # received since the last complete head or piece of a body
        self._tail = b""  # the last three bytes of an incomplete head
        self._left = 0  # bytes of a body with Content-Length that have not arrived
        self._unparsed = False  # whether its head is known, so that the parser has not seen it
        self._chunked = ChunkedBody()
        self._reset_progress()

    def _reset_progress(self) -> None:
        self._begun = self._head_parsed = self._parsed = self._upgrading = False
        self._bad_head: BadHead | None = None

    # --- the connection ---

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to serve, with a transport that joins writes."""
        loop = get_running_loop()
        self._joined_writes = JoinedWrites(transport, loop, self._close_after_response)
        super().connection_made(self._joined_writes)  # type: ignore[arg-type]
        self.flow: _Flow = _Flow(self._joined_writes)  # type: ignore[arg-type]
        self._transport = transport
        self.expires_at = loop.time() + self._limits.keepalive_s
        if not self._connections.add(self):
            self._end(TOO_MANY_RESPONSE)
            loop.call_later(_REFUSED_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the requests that wait."""
        self._phase = _CLOSED
        self._queued = b""
        self.expires_at = inf
        self._connections.discard(self)
        super().connection_lost(exc)

    def drain(self) -> None:
        """End the connection with its next response."""
        self._draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """End the connection: now if it is idle, otherwise with its next response."""
        self.drain()
        if self.is_idle:
            self.close_idle()

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits for the first byte of a request."""
        return (
            self._phase is _HEAD
            and not self._head_bytes
            and not self._queued
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
        )

    def close_idle(self) -> bool:
        """Close the connection without a response, unless a request waits in the socket; return whether."""
        if has_unread_data(self._transport):
            return False
        self._close()
        return True

    def _close_after_response(self) -> None:
        """Close the connection; if the caller may still be sending, read on until it stops.

        The operating system resets a connection that is closed with unread data, and the reset can destroy
        the response before the caller reads it.
        """
        if self._phase is _CLOSED:
            return
        sending = self._phase is not _HEAD or bool(self._queued)
        self._phase = _CLOSED
        self._queued = b""
        self._joined_writes.stop()
        if self._consuming and not sending:
            self._closes_after_consuming = True
        elif sending or has_unread_data(self._transport):
            self._linger()
        else:
            self._close()

    def _close(self) -> None:
        """Close the connection once the caller has read what was sent."""
        self._phase = _CLOSED
        self._transport.close()
        self._await_end()

    def _linger(self) -> None:
        """Drop what the caller sends until it stops, then close the connection."""
        self._phase = _CLOSED
        self._queued = b""
        self._joined_writes.stop()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self.flow.release()
            self._await_end()

    def _await_end(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self.expires_at = self.loop.time() + self._limits.body_s

    def _end(self, response: bytes) -> None:
        """Send *response* as the last one, unless the response to this request has begun."""
        cycle = self.cycle
        if cycle is not None and not isinstance(cycle, _FastCycle) and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if not self._response_begun():
            self._joined_writes.write_now(response)
        self._linger()

    def _response_begun(self) -> bool:
        """Return whether the request that is being received has a response, or a part of one."""
        cycle = self.cycle
        if self._phase is _HEAD or cycle is None or isinstance(cycle, _FastCycle):
            return False
        return cycle.response_started

    # --- timeouts ---

    def on_expired(self, now: float) -> None:
        """Close the connection: it wasted its time. Not if it made progress that was not noticed yet."""
        if self._phase is _CLOSED or self.flow.write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent = unsent
                self.expires_at = now + self._limits.body_s
            else:
                if unsent:
                    self._connections.count_closed(reasons.RESPONSE)
                self._transport.abort()
        elif has_unread_data(self._transport):
            self.expires_at = now + 1.0  # the event loop reads it before that
        elif self._phase is not _HEAD:
            self._connections.count_closed(reasons.BODY)
            self._end(BODY_TIMEOUT_RESPONSE)
        elif self._head_bytes:
            self._connections.count_closed(reasons.HEAD)
            self._end(HEAD_TIMEOUT_RESPONSE)
        else:
            self._connections.count_closed(reasons.IDLE if self._served else reasons.NO_REQUEST)
            self._close()

    def pause_writing(self) -> None:
        """Stop to handle requests: the caller does not read the responses."""
        super().pause_writing()
        self._unsent = self._transport.get_write_buffer_size()
        self.expires_at = self.loop.time() + self._limits.body_s

    def resume_writing(self) -> None:
        """Handle requests again."""
        super().resume_writing()
        if self._phase is not _CLOSED:
            self.expires_at = inf
            if self.cycle is None or self.cycle.response_complete:
                self._await_more()
                self._resume_soon()

    def _await_more(self) -> None:
        """Set the time until which the caller must send more."""
        limits = self._limits
        idle = self._phase is _HEAD and not self.flow.write_paused
        seconds = limits.keepalive_s if idle else limits.body_s
        self.expires_at = self.loop.time() + seconds

    def _unset_keepalive_if_required(self) -> None:
        """Do nothing: uvicorn's timer is not used."""

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Handle the requests in *data*. Keep those that have to wait, and read no more meanwhile."""
        if self._joined_writes.is_closing():
            return
        if self._queued:
            data = self._queued[self._queued_at :] + data
            self._queued = b""
        self._consume(data, 0)

    def _consume(self, data: bytes, at: int) -> None:
        """Handle the requests in *data* from index *at* on."""
        self._consuming = True
        end = len(data)
        allowed = _REQUESTS_PER_TURN
        while at < end:
            if self._phase is _HEAD:
                cycle = self.cycle
                busy = cycle is not None and not cycle.response_complete
                if busy or self.flow.write_paused or not allowed:
                    self._consuming = False
                    self._queue(data, at, busy=busy)
                    return
                allowed -= 1
                if not self._head_bytes:
                    head_end = data.find(_HEAD_END, at) + len(_HEAD_END)
                    known = self._known_heads.get(data[at:head_end])
                    if known is not None:
                        at = self._consume_known(known, data, head_end)
                        continue
                at = self._consume_head(data, at)
            elif self._phase is _LENGTH:
                at = self._consume_body(data, at)
            elif self._phase is _CHUNKED:
                at = self._consume_chunks(data, at)
            else:
                break
        self._consuming = False
        if self._closes_after_consuming:
            self._closes_after_consuming = False
            if at < end or has_unread_data(self._transport):
                self._linger()
            else:
                self._close()
        elif self._phase is _LENGTH or self._phase is _CHUNKED:
            self.expires_at = self.loop.time() + self._limits.body_s

    def _queue(self, data: bytes, at: int, *, busy: bool) -> None:
        """Keep *data* until the response before it is sent and read. Meanwhile, the caller's data waits."""
        self._queued, self._queued_at = data, at
        self.flow.hold()
        if not busy:
            self._resume_soon()

    def _resume_soon(self) -> None:
        if self._queued and not self._resumes:
            self._resumes = True
            self._connections.resume_soon(self)

    def resume(self) -> None:
        """Handle the requests that waited."""
        self._resumes = False
        if not self._queued or self._phase is _CLOSED:
            return
        if self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete):
            return
        data, self._queued = self._queued, b""
        self._consume(data, self._queued_at)
        if not self._queued and not self._joined_writes.is_closing():
            self.flow.release()

    def _consume_known(self, known: KnownHead, data: bytes, at: int) -> int:
        """Handle a plain check whose head was parsed before. Its body begins at index *at* of *data*."""
        handler, size = known
        self.cycle = cycle = _FastCycle(handler)  # type: ignore[assignment]
        if self._draining:
            cycle.keep_alive = False
        self._served = True
        body_end = at + size
        if body_end <= len(data):
            self.expires_at = inf
            handler(data[at:body_end], partial(self._respond, cycle))
            return body_end
        cycle.pieces.append(data[at:])
        self._left = body_end - len(data)
        self._unparsed = True
        self._phase = _LENGTH
        return len(data)

    def _consume_head(self, data: bytes, at: int) -> int:
        """Parse a head, or the part of it that has arrived. Return the index after it."""
        stop, complete = self._head_end(data, at)
        size = stop - at
        if self._head_bytes + size > MAX_HEAD:
            self._end(HEAD_TOO_LARGE_RESPONSE)
            return stop
        whole = not self._head_bytes
        self._head_bytes += size
        if whole:
            self._served = True
            self.expires_at = self.loop.time() + self._limits.head_s
        piece = data[at:stop]
        if not self._feed(piece):
            return stop
        if not complete:
            if self._head_parsed:
                self._end(BAD_REQUEST_RESPONSE)
            else:
                self._tail = (self._tail + piece)[-3:]
            return stop
        self._tail = b""
        if not self._head_parsed:
            if self._begun:
                self._end(BAD_REQUEST_RESPONSE)
            return stop  # empty lines before a request
        self._head_bytes = 0
        if self._left or self._phase is _CHUNKED:
            if self._left:
                self._phase = _LENGTH
            if self._parsed:
                self._end(BAD_REQUEST_RESPONSE)
            elif whole and isinstance(self.cycle, _FastCycle):
                self._fast_path.remember(piece, self.cycle.handler, self._left)
        else:
            self._end_of_message()
        return stop

    def _head_end(self, data: bytes, at: int) -> tuple[int, bool]:
        """Return the index after the head's bytes in *data*, and whether the head is complete there."""
        if self._tail:
            found = (self._tail + data[at : at + 3]).find(_HEAD_END)
            if found >= 0:
                return at + found + len(_HEAD_END) - len(self._tail), True
        found = data.find(_HEAD_END, at)
        return (found + len(_HEAD_END), True) if found >= 0 else (len(data), False)

    def _consume_body(self, data: bytes, at: int) -> int:
        stop = min(at + self._left, len(data))
        self._left -= stop - at
        if self._unparsed:
            self.cycle.pieces.append(data[at:stop])  # type: ignore[attr-defined]
            if not self._left:
                self._unparsed = False
                self._handle_plain(self.cycle)  # type: ignore[arg-type]
        elif self._feed(data[at:stop]):
            if not self._left:
                self._end_of_message()
            elif self._parsed:
                self._end(BAD_REQUEST_RESPONSE)
        return stop

    def _consume_chunks(self, data: bytes, at: int) -> int:
        try:
            stop = self._chunked.end_in(data, at)
        except BadChunk:
            self._end(BAD_REQUEST_RESPONSE)
            return len(data)
        complete = stop >= 0
        if not complete:
            stop = len(data)
        while at < stop:
            room = MAX_HEAD - self._head_bytes
            if not room:
                self._end(HEAD_TOO_LARGE_RESPONSE)
                return stop
            piece = data[at : min(at + room, stop)]
            at += len(piece)
            self._head_bytes += len(piece)
            if not self._feed(piece):
                return stop
        if complete:
            self._end_of_message()
        elif self._parsed:
            self._end(BAD_REQUEST_RESPONSE)
        return stop

    def _end_of_message(self) -> None:
        """Start with the next request. Close the connection unless the parser also found the end here."""
        if not self._parsed:
            self._end(BAD_REQUEST_RESPONSE)
            return
        if self._phase is not _CLOSED:
            self._phase = _HEAD
            if self.cycle.response_complete:
                self._await_more()  # the response was sent before the end of the body
            else:
                self.expires_at = inf
        self._head_bytes = 0
        self._reset_progress()

    def _feed(self, piece: bytes) -> bool:
        """Pass *piece* to the parser. If it is invalid, send 400, end the connection and return ``False``."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._upgrading:
                return self._feed_without_upgrade()
        except httptools.HttpParserError:
            bad = self._bad_head
            self._end(
                BAD_REQUEST_RESPONSE
                if bad is None
                else final_response(BAD_REQUEST, bad.detail, bad.field, bad.remedy)
            )
            return False
        return self._phase is not _CLOSED

    def _feed_without_upgrade(self) -> bool:
        """Parse the head again, without ``Upgrade``: with it, the parser does not read the body."""
        head = without_upgrade(
            self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
        )
        self._reset_progress()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return self._feed(head)

    # --- callbacks of the parser ---

    def on_message_begin(self) -> None:
        """Reset the parsed fields for a new request."""
        if self._begun:
            raise _Disagreement
        self._begun = True
        self.url = b""
        self.headers = []
        self._framing: Headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; those that decide where the body ends also apart."""
        name = name.lower()
        if name in FRAMING_FIELDS:
            self._framing.append((name, value))
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Choose between the fast path and uvicorn."""
        self._head_parsed = True
        parser = self.parser
        method = parser.get_method()
        if parser.should_upgrade() and method != b"CONNECT":
            self._upgrading = True
            return
        try:
            length = body_length(parser.get_http_version(), self.url, self._framing)
        except BadHead as exc:
            self._bad_head = exc
            raise
        if method == b"CONNECT":
            length = 0  # the parser reads no body either; the connection is closed after the response
        self.expires_at = inf
        handler = self._fast_path.handler_for(self.url, self.headers) if self._fast_path is not None else None
        if handler is not None and length > 0 and self._is_plain():
            self.cycle = _FastCycle(handler)  # type: ignore[assignment]
        else:
            self._start_application()
            if method == b"CONNECT":
                self.cycle.keep_alive = False
        if length == CHUNKED:
            self._phase = _CHUNKED
            self._chunked = ChunkedBody()
        self._left = max(length, 0)
        if self._draining:
            self.cycle.keep_alive = False

    def _start_application(self) -> None:
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
            and not self.expect_100_continue
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
        self._parsed = True
        if self._upgrading:
            return
        cycle = self.cycle
        if not isinstance(cycle, _FastCycle):
            super().on_message_complete()
        elif not self.transport.is_closing():
            self._handle_plain(cycle)

    def _handle_plain(self, cycle: _FastCycle) -> None:
        body = b"".join(cycle.pieces)
        cycle.pieces.clear()
        self._phase = _HEAD
        self.expires_at = inf
        cycle.handler(body, partial(self._respond, cycle))

    # --- responses ---

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
            self._close_after_response()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Handle the requests that arrived meanwhile, or start to wait for the next one."""
        self.server_state.total_requests += 1
        if self._phase is _CLOSED:
            return
        self._await_more()
        if self._queued:
            if not self._consuming:
                self._resume_soon()
        else:
            self.flow.resume_reading()


class _Disagreement(Exception):
    """The parser and this protocol found different ends of a request."""


class _Flow(FlowControl):
    """Uvicorn's flow control, which does not resume reading while requests wait."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self) -> None:
        """Read no more until :meth:`release`."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read again."""
        self._held = False
        super().resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless requests wait."""
        if not self._held:
            super().resume_reading()


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
