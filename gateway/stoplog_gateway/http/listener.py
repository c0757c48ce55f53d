"""Accept connections, with or without TLS.

The event loop's own server accepts everything that waits before it reports the first connection. A flood of
connections would use up the file descriptors before any bound could apply. Here, only a few connections are
accepted in each turn of the event loop.

While the open connections send more than a turn has time for, another one would only make all of them wait
longer. If its first request has arrived entirely, it is refused with 503, before it gets a protocol. The same
is true of a connection that has waited here for the deadline, because callers connect faster than they can be
accepted: its caller does not wait any more. The system does not complete connections that the gateway has no
time to refuse.

With TLS, the bound on connections and the time for a head hold for handshakes, too. Each handshake uses the
certificate that is in force when it begins.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from struct import Struct
from typing import Final

from stoplog.log_throttle import LogThrottle
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.http import connections as reasons
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.final_response import OVERLOADED_RESPONSE
from stoplog_gateway.http.overload import MAX_UNREAD, can_be_refused_unread

log: Final = logging.getLogger(__name__)

_MIN_ARRIVING: Final = 16
_MAX_ARRIVING: Final = 128
"""Maximum number of accepted connections without a protocol. They count at no bound yet, but each one holds a
descriptor: the smaller number applies unless there are :data:`_PLENTY`. It takes them one or two turns of the
event loop, so this also bounds what a turn accepts, to about 15 ms."""

_PLENTY: Final = 1_024
"""Connections below the bound."""

_REFUSING_S: Final = 0.02
"""Seconds of a turn for connections that are refused."""

_CROWDED_BACKLOG: Final = 128
"""Connections that wait for the gateway while it refuses new ones: no more than it can refuse in a turn or
two."""

_ACCEPT_PAUSE_S: Final = 1.0
"""Seconds without another try after the system refused to accept a connection."""

_LOG_PAUSE_S: Final = 60.0

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)  # only Linux has the fields below
_LAST_RECEIVED: Final = Struct("=52xI")
"""``tcpi_last_data_recv`` of Linux's ``struct tcp_info``: milliseconds since data arrived."""


class Listener:
    """A listening socket. It takes the place of :class:`asyncio.Server` in uvicorn's server.

    Args:
        sock: A bound socket.
        tls: Certificates in force; ``None`` for no TLS.
        connections: All connections of the process.
        make_protocol: Returns the HTTP protocol of a connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: TlsFiles | None,
        connections: Connections,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self.sockets = (sock,)
        self._sock = sock
        self._tls = tls
        self._connections = connections
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._handshakes: set[_Handshake] = set()
        self._throttle = LogThrottle(_LOG_PAUSE_S)
        self._closed = False
        self._backlog = 0
        self._refuses = False
        self._behind_since = inf  # when connections were first left waiting; infinite if none were last time

    def start(self, backlog: int) -> None:
        """Accept connections from now on."""
        self._backlog = backlog
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        now, turns = self._loop.time(), self._connections.turns
        crowded = turns.is_crowded
        refuses = crowded or now - self._behind_since > turns.deadline_s
        if refuses is not self._refuses:
            self._refuses = refuses
            self._sock.listen(_CROWDED_BACKLOG if refuses else self._backlog)
        free = self._connections.limits.max_open - len(self._connections)
        room = (_MAX_ARRIVING if free > _PLENTY else _MIN_ARRIVING) - len(self._arriving)
        until = now + _REFUSING_S
        while room:
            if (sock := self._next()) is None:
                self._behind_since = inf
                return
            if self._tls is not None:
                self._admit(sock)
                room = 0 if refuses else room - 1  # no response without a handshake, which takes long
            elif refuses and (crowded or _waited_s(sock) > turns.deadline_s) and self._refuse(sock):
                if self._loop.time() >= until:
                    break
            else:
                self._admit(sock)
                room -= 1
        self._behind_since = min(self._behind_since, now)

    def _next(self) -> socket.socket | None:
        """Return the next connection, or ``None`` if none waits or none can be accepted."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as exc:
            self._pause(exc)
            return None
        sock.setblocking(False)
        return sock

    def _refuse(self, sock: socket.socket) -> bool:
        """Send a 503 and close *sock*, if its request is there and may be refused; return whether it was."""
        try:
            if not can_be_refused_unread(sock.recv(MAX_UNREAD, socket.MSG_PEEK)):
                return False
            sock.recv(MAX_UNREAD)  # the system resets a connection that is closed with unread data
            sock.send(OVERLOADED_RESPONSE)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the caller is gone
        sock.close()
        self._connections.count_closed(reasons.OVERLOADED)
        return True

    def _admit(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            task = self._loop.create_task(self._open(sock))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)
        else:
            _Handshake(sock, self._loop, self._handshakes).start(
                self._tls.context, self._connections, self._make_protocol
            )

    async def _open(self, sock: socket.socket) -> None:
        with suppress(OSError):  # the caller is gone
            await self._loop.connect_accepted_socket(self._make_protocol, sock)

    def _pause(self, exc: OSError) -> None:
        if (end := self._throttle.admit()) is not None:
            log.error("cannot accept connections (%s), trying again in 1 s%s", exc.strerror, end)
        self._loop.remove_reader(self._sock)
        self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Accept no more connections, and end the handshakes."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()
            for handshake in list(self._handshakes):
                handshake.abort()

    async def wait_closed(self) -> None:
        """Return once no connection is on its way to its protocol."""
        await asyncio.gather(*self._arriving, *(it.task for it in self._handshakes), return_exceptions=True)


def _waited_s(sock: socket.socket) -> float:
    """Return the seconds since *sock* received data, or was connected; 0 if the system does not tell."""
    if _TCP_INFO is None:
        return 0.0
    (waited_ms,) = _LAST_RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_RECEIVED.size))
    return float(waited_ms) / 1_000


class _Handshake:
    """A connection before the end of its handshake; one of :class:`Connections`."""

    task: asyncio.Task[None]
    is_idle = False

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, handshakes: set[_Handshake]
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._handshakes = handshakes
        self.expires_at = 0.0

    def start(
        self,
        context: ssl.SSLContext,
        connections: Connections,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """Start the handshake, or close the connection if there are too many."""
        self.expires_at = self._loop.time() + connections.limits.head_s
        self._connections = connections
        if not connections.add(self):
            self._sock.close()  # without a handshake, no response can be sent
            connections.discard(self)
            return
        self._handshakes.add(self)
        self.task = self._loop.create_task(self._shake_hands(context, make_protocol))

    async def _shake_hands(
        self, context: ssl.SSLContext, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        def make() -> asyncio.Protocol:
            protocol = make_protocol()
            # The protocol is one of the connections itself. It must not count twice at their bound.
            protocol.connection_made = partial(self._hand_over, protocol.connection_made)  # type: ignore[method-assign]
            return protocol

        limits = self._connections.limits
        try:
            await self._loop.connect_accepted_socket(
                make,
                self._sock,
                ssl=context,
                # The sweep of Connections comes first.
                ssl_handshake_timeout=limits.head_s + 2.0,
                ssl_shutdown_timeout=limits.body_s,
            )
        except OSError as exc:  # ssl.SSLError is one, too
            self._connections.count_closed(reasons.TLS_FAILED, _reason(exc))
        finally:
            self._forget()

    def _forget(self) -> None:
        self._connections.discard(self)
        self._handshakes.discard(self)

    def _hand_over(
        self, connection_made: Callable[[asyncio.BaseTransport], None], transport: asyncio.BaseTransport
    ) -> None:
        self._forget()
        connection_made(transport)

    def abort(self) -> None:
        """End the connection."""
        self.task.cancel()

    def on_expired(self, now: float) -> None:
        """Close the connection, whose handshake takes too long."""
        self._connections.count_closed(reasons.TLS_TIMEOUT)
        self._forget()
        self.abort()

    def close_idle(self) -> bool:
        """Return ``False``: a handshake is never idle."""
        return False

    def drain(self) -> None:
        """Do nothing: the response to the first request ends the connection."""

    def resume(self) -> None:
        """Do nothing: no request waits."""


def _reason(exc: OSError) -> str:
    return (getattr(exc, "reason", None) or exc.strerror or type(exc).__name__).lower().replace("_", " ")
