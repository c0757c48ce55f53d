"""Bound the time of one connection, and end it so that its last response arrives.

The subclass, :mod:`stoplog_gateway.http.protocol`, handles the requests.
"""

from __future__ import annotations

from asyncio import Transport, get_running_loop
from enum import Enum, auto
from math import inf
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stoplog_gateway.http import connections as reasons
from stoplog_gateway.http.connections import Connections, has_unread_data
from stoplog_gateway.http.fast_cycle import FastCycle
from stoplog_gateway.http.final_response import (
    BODY_TIMEOUT_RESPONSE,
    HEAD_TIMEOUT_RESPONSE,
    TOO_MANY_RESPONSE,
)
from stoplog_gateway.http.flow import Flow
from stoplog_gateway.http.joined_writes import JoinedWrites

_REFUSED_S: Final = 1.0
"""Seconds that a refused connection has to read its response."""

_MAX_UNSENT: Final = 8 << 10
"""Bytes of responses beyond the system's own buffer from which a connection's requests wait. With asyncio's
64 KiB, a hundred callers that read nothing took 5 MB more."""


class Phase(Enum):
    """The part of a request to which the next byte belongs.

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
HEAD: Final = Phase.HEAD
LENGTH: Final = Phase.LENGTH
CHUNKED: Final = Phase.CHUNKED
CLOSED: Final = Phase.CLOSED


class BoundedProtocol(HttpToolsProtocol):
    """A connection that ends when it makes no progress.

    Args:
        connections: All connections of the process.
        uvicorn_args: The arguments that uvicorn passes to its protocols.
    """

    def __init__(self, connections: Connections, **uvicorn_args: Any) -> None:
        super().__init__(**uvicorn_args)
        self._connections = connections
        self._limits = connections.limits
        self._turns = connections.turns
        self.expires_at = inf
        self._phase = HEAD
        self._queued = b""  # data that no one has looked at yet, from index _queued_at on
        self._queued_at = 0
        self._resumes = False  # whether the connection waits for its turn
        self._consuming = False
        self._closes_after_consuming = False
        self._draining = connections.draining
        self._served = False  # whether a request has arrived
        self._unsent = 0  # bytes of responses that the caller had not read when it was looked at
        self._head_bytes = 0  # received since the last complete head or piece of a body

    # --- the connection ---

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to serve, with a transport that joins writes."""
        loop = get_running_loop()
        self._joined_writes = JoinedWrites(transport, loop, self._close_after_response)
        super().connection_made(self._joined_writes)  # type: ignore[arg-type]
        self.flow: Flow = Flow(self._joined_writes)  # type: ignore[arg-type]
        self._transport = transport
        transport.set_write_buffer_limits(_MAX_UNSENT)
        self.expires_at = loop.time() + self._limits.keepalive_s
        if not self._connections.add(self):
            self._end(TOO_MANY_RESPONSE)
            loop.call_later(_REFUSED_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the requests that wait."""
        self._phase = CLOSED
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
            self._phase is HEAD
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
        if self._phase is CLOSED:
            return
        sending = self._phase is not HEAD or bool(self._queued)
        self._phase = CLOSED
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
        self._phase = CLOSED
        self._transport.close()
        self._await_end()

    def _linger(self) -> None:
        """Drop what the caller sends until it stops, then close the connection."""
        self._phase = CLOSED
        self._queued = b""
        self._joined_writes.stop()
        if not self._transport.is_closing():
            if self._transport.can_write_eof():  # TLS cannot: the caller closes after the response
                self._transport.write_eof()
            self.flow.release()
            self._await_end()

    def abort(self) -> None:
        """Close the connection at once, even if the caller has not read everything."""
        self._phase = CLOSED
        self._transport.abort()

    def _await_end(self) -> None:
        self._connections.on_last_response(self)
        self._unsent = self._transport.get_write_buffer_size()
        self.expires_at = self.loop.time() + self._limits.body_s

    def _end(self, response: bytes) -> None:
        """Send *response* as the last one, unless the response to this request has begun."""
        cycle = self.cycle
        if cycle is not None and not isinstance(cycle, FastCycle) and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if not self._response_begun():
            self._joined_writes.write_now(response)
        self._linger()

    def _response_begun(self) -> bool:
        """Return whether the request that is being received has a response, or a part of one."""
        cycle = self.cycle
        if self._phase is HEAD or cycle is None or isinstance(cycle, FastCycle):
            return False
        return cycle.response_started

    # --- timeouts ---

    def on_expired(self, now: float) -> None:
        """Close the connection: it wasted its time. Not if it made progress that was not noticed yet."""
        if self._phase is CLOSED or self.flow.write_paused:
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
        elif self._phase is not HEAD:
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
        if self._phase is not CLOSED:
            self.expires_at = inf
            if self.cycle is None or self.cycle.response_complete:
                self._await_more()
                self._resume_soon()

    def _await_more(self) -> None:
        """Set the time until which the caller must send more."""
        limits = self._limits
        idle = self._phase is HEAD and not self.flow.write_paused
        seconds = limits.keepalive_s if idle else limits.body_s
        self.expires_at = self.loop.time() + seconds

    def _unset_keepalive_if_required(self) -> None:
        """Do nothing: uvicorn's timer is not used."""

    def _resume_soon(self) -> None:
        if self._queued and not self._resumes:
            self._resumes = True
            self._turns.run_in_slices(self.resume)

    def resume(self) -> bool:
        """Handle requests that waited; return whether some could be handled now. The subclass does."""
        raise NotImplementedError
