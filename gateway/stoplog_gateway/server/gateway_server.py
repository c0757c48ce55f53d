"""Uvicorn's server, with a pause between the failing readiness and the end of the listener."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import uvicorn

from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.listener import Listener

log: Final = logging.getLogger(__name__)

_POLL_S: Final = 0.1


class GatewayServer(uvicorn.Server):
    """Serve until a signal, drain, and stop.

    Args:
        config: Uvicorn's configuration.
        on_serving: Called when the listener accepts connections.
        drain: Called first: readiness fails, and each response ends its connection.
        drain_s: Seconds for load balancers to notice. New connections are still accepted.
        close: Called after that, together with the end of the HTTP listener.
        connections: All connections of the process.
        tls: Certificates in force; ``None`` for no TLS.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_serving: Callable[[], None],
        drain: Callable[[], None],
        drain_s: float,
        close: Callable[[], Awaitable[None]],
        connections: Connections,
        tls: TlsFiles | None = None,
    ) -> None:
        super().__init__(config)
        self._on_serving = on_serving
        self._drain = drain
        self._drain_s = drain_s
        self._close = close
        self._tls = tls
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on *sockets*, which are bound."""
        assert sockets is not None
        protocol_class: Any = self.config.http_protocol_class
        make_protocol = partial(
            protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        listeners = [Listener(sock, self._tls, self._connections, make_protocol) for sock in sockets]
        for listener in listeners:
            listener.start(self.config.backlog)
        self.servers = listeners  # type: ignore[assignment]
        self.started = True
        self._on_serving()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain for a while, at most until a second signal. Then close the listener, and end the requests."""
        self._drain()
        if self._drain_s:
            log.info("draining for %d s: /readyz answers 503, requests are still served", self._drain_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        while loop.time() < until and len(self._captured_signals) < 2 and not self.force_exit:
            await asyncio.sleep(min(_POLL_S, until - loop.time()))
            await self.on_tick(0)  # keeps the Date of responses current
        await asyncio.gather(super().shutdown(sockets), self._close())
