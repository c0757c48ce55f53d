"""Bound the connections of a gateway process: their number, and the time that each may waste.

A connection that sends nothing holds a file descriptor. Without bounds, a few hundred such connections lock
out all other callers. One timer per process visits all connections twice a second. Requests set no timers.

=========================================  =======  ======  ==========================================
metric                                     type     label   what
=========================================  =======  ======  ==========================================
``stoplog_http_connections``               gauge            open HTTP connections
``stoplog_http_connections_closed_total``  counter  reason  connections that the gateway closed itself
=========================================  =======  ======  ==========================================
"""

from __future__ import annotations

import heapq
import logging
from asyncio import AbstractEventLoop, Transport, get_running_loop
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoplog.log_throttle import LogThrottle
from stoplog_gateway.http.turns import Turns

log: Final = logging.getLogger(__name__)

SWEEP_S: Final = 0.5
"""Seconds between two visits of all connections. A timeout takes up to this much longer than its setting."""

_CANDIDATES: Final = 64
"""Idle connections found by one search. It visits all connections, so its result is used for several."""

_SEARCH_PAUSE_S: Final = 0.1
"""Seconds without another search after one that found no idle connection."""

_MAX_LEAVING: Final = 32
"""Connections that were refused or evicted, and are not closed yet. They have descriptors beyond the bound,
of those that are kept for everything but HTTP connections."""

_LOG_PAUSE_S: Final = 60.0

NO_REQUEST: Final = "no_request"
IDLE: Final = "idle"
HEAD: Final = "head"
BODY: Final = "body"
RESPONSE: Final = "response"
EVICTED: Final = "evicted"
REFUSED: Final = "refused"
TLS_TIMEOUT: Final = "tls_timeout"
TLS_FAILED: Final = "tls_failed"
OVERLOADED: Final = "overloaded"
REASONS: Final = {
    NO_REQUEST: "sent no request within the keep-alive time (STOPLOG_KEEPALIVE_S)",
    IDLE: "were idle for the keep-alive time",
    HEAD: "sent an incomplete head within STOPLOG_HEAD_TIMEOUT_S",
    BODY: "sent no more of a body within STOPLOG_BODY_TIMEOUT_S",
    RESPONSE: "read no more of a response within STOPLOG_BODY_TIMEOUT_S",
    EVICTED: "were idle for the longest time, or had their last response, at the bound on connections",
    REFUSED: "were refused with 503: all connections at the bound were busy",
    TLS_TIMEOUT: "sent an incomplete TLS handshake within STOPLOG_HEAD_TIMEOUT_S",
    OVERLOADED: "were refused with 503: the gateway has no time for the open ones",
    TLS_FAILED: "failed the TLS handshake (no TLS, an unknown CA, or no client certificate)",
}
"""Why the gateway closes connections: values of the label ``reason``, with their meaning."""

_LEVELS: Final = {NO_REQUEST: logging.INFO, IDLE: logging.DEBUG}


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of the connections of one process.

    Attributes:
        keepalive_s: Seconds that a connection may be open without a request.
        head_s: Seconds from the first byte of a request's head to its last.
        body_s: Seconds without progress of a body, or of a response that the caller does not read.
        max_open: Maximum number of open connections.
    """

    keepalive_s: float = 75.0
    head_s: float = 10.0
    body_s: float = 10.0
    max_open: int = 1 << 20


class Connection(Protocol):
    """A connection as this module sees it."""

    expires_at: float
    """Time (of the event loop) at which the connection has wasted too much of it; infinite while it works."""

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits for the first byte of a request."""

    def on_expired(self, now: float) -> None:
        """Handle that ``expires_at`` has passed."""

    def close_idle(self) -> bool:
        """Close the connection without a response, unless a request waits in the socket; return whether."""

    def abort(self) -> None:
        """Close the connection at once, even if the caller has not read everything."""

    def drain(self) -> None:
        """End the connection with its next response."""


class Connections(Collector):
    """The open connections of one process.

    Args:
        limits: Bounds of the connections.
        turns: Shares the event loop between them.
    """

    def __init__(self, limits: ConnectionLimits | None = None, turns: Turns | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self.turns = turns or Turns()
        self.draining = False
        """Whether every response ends its connection, because the process is about to stop."""
        self._open: set[Connection] = set()
        self._ending: dict[Connection, None] = {}
        """Those of the open ones that have got their last response, the oldest first."""
        self._leaving: dict[Connection, None] = {}
        """Those that are not open any more, but not closed yet, the oldest first."""
        self._closed = dict.fromkeys(REASONS, 0)
        self._throttle = LogThrottle(_LOG_PAUSE_S)
        self._candidates: deque[tuple[float, Connection]] = deque()
        self._search_after = 0.0
        self._sweeping = False

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def add(self, connection: Connection) -> bool:
        """Admit *connection*, if necessary by closing another one.

        The one that has been idle longest makes room; without an idle one, the first of those that have got
        their last response.

        Returns:
            ``False`` if there are too many connections and all of them are busy. A few refused connections
            can stay open until the caller has read the response; the oldest ones are aborted.
        """
        loop = get_running_loop()
        if len(self._open) >= self.limits.max_open and not (self._evict(loop.time()) or self._evict_ending()):
            self.count_closed(REFUSED)
            self._leave(connection)
            return False
        self._open.add(connection)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_S, self._sweep_again, loop)
        return True

    def on_last_response(self, connection: Connection) -> None:
        """Note that *connection* has got its last response, and is open only until the caller has read it."""
        if connection in self._open:
            self._ending[connection] = None

    def discard(self, connection: Connection) -> None:
        """Forget *connection*, which is closed."""
        self._open.discard(connection)
        self._ending.pop(connection, None)
        self._leaving.pop(connection, None)

    def drain(self) -> None:
        """End every connection with its next response, those that are opened later too."""
        self.draining = True
        for connection in self._open:
            connection.drain()

    def count_closed(self, reason: str, detail: str = "") -> None:
        """Count and log a connection that the gateway closed for one of :data:`REASONS`, with a *detail*."""
        self._closed[reason] += 1
        level = _LEVELS.get(reason, logging.WARNING)
        if log.isEnabledFor(level) and (end := self._throttle.admit(reason)) is not None:
            what = f"{REASONS[reason]}, the last: {detail}" if detail else REASONS[reason]
            log.log(level, "closed connections that %s (%d open)%s", what, len(self._open), end)

    def sweep(self, now: float) -> None:
        """Visit all connections at time *now* of the event loop."""
        for connection in [c for c in self._open if c.expires_at <= now]:
            connection.on_expired(now)

    def _sweep_again(self, loop: AbstractEventLoop) -> None:
        self.sweep(loop.time())
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep_again, loop)

    def _evict(self, now: float) -> bool:
        if not self._candidates and now >= self._search_after:
            idle = ((c.expires_at, id(c), c) for c in self._open if c.is_idle)
            self._candidates.extend((at, c) for at, _, c in heapq.nsmallest(_CANDIDATES, idle))
            if not self._candidates:
                self._search_after = now + _SEARCH_PAUSE_S
        while self._candidates:
            expires_at, connection = self._candidates.popleft()
            unchanged = connection.expires_at == expires_at and connection in self._open
            if unchanged and connection.is_idle and connection.close_idle():
                self._make_leave(connection)
                return True
        return False

    def _evict_ending(self) -> bool:
        if not self._ending:
            return False
        connection = next(iter(self._ending))
        connection.abort()
        self._make_leave(connection)
        return True

    def _make_leave(self, connection: Connection) -> None:
        self.discard(connection)
        self.count_closed(EVICTED)
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        self._leaving[connection] = None
        if len(self._leaving) > _MAX_LEAVING:
            oldest = next(iter(self._leaving))
            del self._leaving[oldest]
            oldest.abort()

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, for a scrape."""
        yield GaugeMetricFamily("stoplog_http_connections", "Open HTTP connections", value=len(self._open))
        closed = CounterMetricFamily(
            "stoplog_http_connections_closed", "HTTP connections that the gateway closed", labels=["reason"]
        )
        for reason, count in self._closed.items():
            closed.add_metric([reason], count)
        yield closed


def has_unread_data(transport: Transport) -> bool:
    """Return whether the operating system has data, or the end of the stream, that was not read yet.

    After a stall of the process (SIGSTOP, a paused virtual machine), timers run before sockets are read.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    polled = poll()
    polled.register(sock.fileno(), POLLIN)
    return bool(polled.poll(0))
