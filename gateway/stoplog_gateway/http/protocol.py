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

from functools import partial
from math import inf
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered
from stoplog_gateway.http.bounded_protocol import CHUNKED, CLOSED, HEAD, LENGTH, BoundedProtocol
from stoplog_gateway.http.chunked import BadChunk, ChunkedBody
from stoplog_gateway.http.connections import Connections, has_unread_data
from stoplog_gateway.http.fast_cycle import FastCycle
from stoplog_gateway.http.fast_path import FastPath, KnownHead
from stoplog_gateway.http.final_response import (
    BAD_REQUEST_RESPONSE,
    HEAD_TOO_LARGE_RESPONSE,
    MAX_HEAD,
    final_response,
)
from stoplog_gateway.http.handlers import AtOnce, Handler
from stoplog_gateway.http.known_heads import KnownHeads, matters
from stoplog_gateway.http.problems import BAD_REQUEST
from stoplog_gateway.http.request_head import IN_CHUNKS, BadHead, body_length, without_upgrade

_REQUESTS_PER_SLICE: Final = 4
"""Pipelined requests of one connection that are handled before other connections get their turn."""

_HEAD_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class GatewayProtocol(BoundedProtocol):
    """Serve one connection. Use as ``uvicorn.Config(http=partial(GatewayProtocol, fast_path, connections))``.

    Args:
        fast_path: Answers plain checks. ``None`` sends every request to the application.
        connections: All connections of the process.
        uvicorn_args: The arguments that uvicorn passes to its protocols.
    """

    def __init__(self, fast_path: FastPath | None, connections: Connections, **uvicorn_args: Any) -> None:
        super().__init__(connections, **uvicorn_args)
        self._fast_path = fast_path
        # The gateway serves no WebSocket. Uvicorn would find an installed WebSocket library by itself, and
        # its upgrade would not start a request cycle.
        self.ws_protocol_class = None
        self._known_heads = KnownHeads[KnownHead]() if fast_path is None else fast_path.known_heads
        # Of the request that is parsed:
        self._tail = b""  # the last three bytes of an incomplete head
        self._left = 0  # bytes of a body with Content-Length that have not arrived
        self._unparsed = False  # whether its head is known, so that the parser has not seen it
        self._chunked = ChunkedBody()
        self._reset_progress()

    def _reset_progress(self) -> None:
        self._begun = self._head_parsed = self._parsed = self._upgrading = False
        self._at_once: AtOnce | None = None  # how it is answered if this turn has no time for it
        self._room = 0  # bytes of a body that may still come for that
        self._bad_head: BadHead | None = None

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Handle the requests in *data*. Keep those that have to wait, and read no more meanwhile."""
        if self._joined_writes.is_closing():
            return
        if self._queued:
            data = self._queued[self._queued_at :] + data
            self._queued = b""
        self._consume(data, 0, 1)

    def _consume(self, data: bytes, at: int, allowed: int) -> None:
        """Handle up to *allowed* requests in *data* from index *at* on. The others wait."""
        self._consuming = True
        end = len(data)
        while at < end:
            if self._phase is HEAD:
                cycle = self.cycle
                busy = cycle is not None and not cycle.response_complete
                if busy or self.flow.write_paused or not allowed:
                    self._consuming = False
                    self._queue(data, at, busy=busy)
                    return
                allowed -= 1
                if not self._head_bytes:
                    head_end = data.find(_HEAD_END, at) + len(_HEAD_END)
                    head = data[at:head_end]
                    known = self._known_heads.find(head)
                    if known is not None:
                        at = self._consume_known(*known, data, head_end)
                        continue
                    if self._fast_path is not None and (handler := self._fast_path.handler_of(head)):
                        at = self._consume_known(handler, 0, data, head_end)
                        continue
                at = self._consume_head(data, at)
            elif self._phase is LENGTH:
                at = self._consume_body(data, at)
            elif self._phase is CHUNKED:
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
        elif self._phase is LENGTH or self._phase is CHUNKED:
            self.expires_at = self.loop.time() + self._limits.body_s

    def _queue(self, data: bytes, at: int, *, busy: bool) -> None:
        """Keep *data* until the response before it is sent and read. Meanwhile, the caller's data waits."""
        self._queued, self._queued_at = data, at
        self.flow.hold()
        if not busy:
            self._resume_soon()

    def resume(self) -> bool:
        """Handle some of the requests that waited. If others can go on, they ask for the next slice."""
        self._resumes = False
        if not self._queued or self._phase is CLOSED:
            return False
        if self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete):
            return False
        data, self._queued = self._queued, b""
        self._consume(data, self._queued_at, _REQUESTS_PER_SLICE)
        if not self._queued and not self._joined_writes.is_closing():
            self.flow.release()
        return False

    def _consume_known(self, handler: Handler, size: int, data: bytes, at: int) -> int:
        """Handle a request with a known head. Its body of *size* bytes begins at index *at* of *data*."""
        self.cycle = cycle = FastCycle(handler)  # type: ignore[assignment]
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
        self._phase = LENGTH
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
        if self._left or self._phase is CHUNKED:
            if self._left:
                self._phase = LENGTH
            if self._parsed:
                self._end(BAD_REQUEST_RESPONSE)
            elif self._at_once is not None:
                self._await_body(self._at_once)
            elif whole:
                self._remember(piece)
        else:
            if whole and self._at_once is None:
                self._remember(piece)
            self._end_of_message()
        return stop

    def _remember(self, head: bytes) -> None:
        if self._fast_path is not None and isinstance(self.cycle, FastCycle):
            self._fast_path.remember(
                head, self.cycle.handler, self._left, target=self.url, fields=self._fields
            )

    def _await_body(self, at_once: AtOnce) -> None:
        """Ask for the body of a request that is answered at once, or answer it now if the body is long."""
        if self._left > at_once.max_body:
            self._refuse_body(at_once)
        elif self.expect_100_continue and self.parser.get_http_version() == "1.1":
            self._joined_writes.write_now(_CONTINUE)

    def _refuse_body(self, at_once: AtOnce) -> None:
        """Answer a request without its body. The rest of it is dropped, and the connection ends."""
        cycle: Any = self.cycle
        cycle.pieces.clear()
        cycle.keep_alive = False
        at_once.refuse(b"", partial(self._respond, cycle))

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
        if self._phase is not CLOSED:
            self._phase = HEAD
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
        return self._phase is not CLOSED

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
        self._fields: Headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; those that matter also apart."""
        name = name.lower()
        if matters(name):
            self._fields.append((name, value))
            if name == b"expect" and value.lower() == b"100-continue":
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
            length = body_length(parser.get_http_version(), self.url, self._fields)
        except BadHead as exc:
            self._bad_head = exc
            raise
        if method == b"CONNECT":
            length = 0  # the parser reads no body either; the connection is closed after the response
        self.expires_at = inf
        handler = None
        if self._fast_path is not None and self._is_plain():
            handler = self._fast_path.handler_for(
                method, self.url, length, self._fields, self.headers, self._address
            )
        if handler is not None:
            self.cycle = FastCycle(handler)  # type: ignore[assignment]
        elif (at_once := self._answer_at_once(method)) is not None:
            self.cycle = FastCycle(at_once.handle)  # type: ignore[assignment]
            self.cycle.keep_alive = parser.get_http_version() == "1.1" and parser.should_keep_alive()
            self._at_once, self._room = at_once, at_once.max_body
        else:
            self._start_application()
        if method == b"CONNECT":
            self.cycle.keep_alive = False
        if length == IN_CHUNKS:
            self._phase = CHUNKED
            self._chunked = ChunkedBody()
        self._left = max(length, 0)
        if self._draining:
            self.cycle.keep_alive = False

    def _answer_at_once(self, method: bytes) -> AtOnce | None:
        """Return how to answer a request of the application if this turn has no time for it."""
        if self._turns.admits_request() or self._fast_path is None:
            return None
        return self._fast_path.at_once(method, self.url, self.headers, self._address)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

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
            parser.get_http_version() == "1.1" and parser.should_keep_alive() and not self.expect_100_continue
        )

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body, or pass it to uvicorn."""
        self._head_bytes = 0
        if isinstance(self.cycle, FastCycle):
            self.cycle.pieces.append(body)
            if self._at_once is not None and self._phase is CHUNKED:
                self._room -= len(body)
                if self._room < 0:
                    self._refuse_body(self._at_once)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle a request of the fast path; uvicorn handles the others."""
        self._parsed = True
        if self._upgrading:
            return
        cycle = self.cycle
        if not isinstance(cycle, FastCycle):
            super().on_message_complete()
        elif not self.transport.is_closing():
            self._handle_plain(cycle)

    def _handle_plain(self, cycle: FastCycle) -> None:
        body = b"".join(cycle.pieces)
        cycle.pieces.clear()
        self._phase = HEAD
        self.expires_at = inf
        cycle.handler(body, partial(self._respond, cycle))

    # --- responses ---

    def _respond(self, cycle: FastCycle, response: Rendered) -> None:
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
        if self._phase is CLOSED:
            return
        self._await_more()
        if self._queued:
            if not self._consuming:
                self._resume_soon()
        else:
            self.flow.resume_reading()


class _Disagreement(Exception):
    """The parser and this protocol found different ends of a request."""
