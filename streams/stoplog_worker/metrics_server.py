"""Serve a worker's ``/metrics``, on a port of its own or on a socket that `stoplog up` holds.

Each connection gets one response. It has a thread and a file descriptor, and the worker needs descriptors for
its tables. So the number of connections is bounded, and the time of each one.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from stoplog.errors import SettingsError
from stoplog.log_throttle import LogThrottle
from stoplog_worker.settings import Settings

log: Final = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""Maximum number of connections. One more closes the oldest one, so that no caller can lock a scraper out."""

MAX_S: Final = 10.0
"""Seconds from the beginning of a connection until it is closed. A scraper waits no longer by default."""

_SWEEP_S: Final = 0.5
_LOG_PAUSE_S: Final = 60.0


def serve_metrics(settings: Settings, registry: CollectorRegistry, inherited: int | None = None) -> None:
    """Serve *registry* in a thread until the process ends.

    Args:
        settings: The worker's settings, with the address to listen on.
        registry: The metrics.
        inherited: File descriptor of a listening socket, which takes the place of the address.

    Raises:
        SettingsError: The address cannot be used.
    """
    if inherited is None:
        listening = _listen(settings.metrics_host, settings.metrics_port)
    else:
        listening = socket.socket(fileno=inherited)

    class Server(_BoundedServer):
        def server_bind(self) -> None:
            self.socket.close()
            self.socket = listening
            self.server_name, self.server_port = "localhost", listening.getsockname()[1]
            self.setup_environ()

        def server_activate(self) -> None:
            """Do nothing: the socket listens already."""

    server = make_server("", 0, make_wsgi_app(registry), Server, handler_class=_SilentHandler)
    threading.Thread(target=server.serve_forever, args=(_SWEEP_S,), name="metrics", daemon=True).start()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family)
    except OSError as exc:
        raise SettingsError(
            f"/metrics cannot listen on {host}:{port} ({exc.strerror}): set STOPLOG_METRICS_PORT to a "
            f"free port (0: any), or STOPLOG_METRICS_HOST to an address of this machine"
        ) from exc


class _BoundedServer(ThreadingMixIn, WSGIServer):
    """A thread per connection, for a bounded number of connections and a bounded time."""

    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        self._ends_at: dict[socket.socket, float] = {}
        """When the time of each connection is over; the oldest connection first."""
        self._throttle = LogThrottle(_LOG_PAUSE_S)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a new connection, if necessary in the place of the oldest one."""
        with self._lock:
            if len(self._ends_at) >= MAX_CONNECTIONS:
                self._end_oldest(f"were the oldest of {MAX_CONNECTIONS}, at their maximum number")
            self._ends_at[request] = time.monotonic() + MAX_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._ends_at.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End the connections whose time is over."""
        now = time.monotonic()
        with self._lock:
            while self._ends_at and next(iter(self._ends_at.values())) <= now:
                self._end_oldest(f"took longer than {MAX_S:g} s")

    def _end_oldest(self, why: str) -> None:
        request = next(iter(self._ends_at))
        del self._ends_at[request]
        with suppress(OSError):  # the caller has just reset it
            request.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        if (end := self._throttle.admit(why)) is not None:
            log.warning("closed connections to /metrics that %s%s", why, end)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, unless the connection has just ended."""
        if not isinstance(sys.exception(), OSError):
            log.exception("bug in /metrics")


class _SilentHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
