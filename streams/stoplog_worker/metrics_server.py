"""Serve a worker's ``/metrics``, on a port of its own or on a socket that `stoplog up` holds."""

from __future__ import annotations

import socket
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.exposition import ThreadingWSGIServer

from stoplog.errors import SettingsError
from stoplog_worker.settings import Settings


def serve_metrics(settings: Settings, registry: CollectorRegistry, inherited: int | None = None) -> None:
    """Serve *registry* in a thread until the process ends.

    Args:
        settings: The worker's settings, with the address to listen on.
        registry: The metrics.
        inherited: File descriptor of a listening socket, which takes the place of the address.

    Raises:
        SettingsError: The address cannot be used.
    """
    if inherited is not None:
        _serve_on(socket.socket(fileno=inherited), registry)
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        start_http_server(port, host, registry)
    except OSError as exc:
        raise SettingsError(
            f"/metrics cannot listen on {host}:{port} ({exc.strerror}): set STOPLOG_METRICS_PORT to a "
            f"free port (0: any), or STOPLOG_METRICS_HOST to an address of this machine"
        ) from exc


def _serve_on(listening: socket.socket, registry: CollectorRegistry) -> None:
    class Server(ThreadingWSGIServer):
        def server_bind(self) -> None:
            self.socket.close()
            self.socket = listening
            self.server_name, self.server_port = "localhost", listening.getsockname()[1]
            self.setup_environ()

        def server_activate(self) -> None:
            """Do nothing: the socket listens already."""

    server = make_server("", 0, make_wsgi_app(registry), Server, handler_class=_SilentHandler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _SilentHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
