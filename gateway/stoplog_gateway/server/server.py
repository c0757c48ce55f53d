"""A gateway as a process: the application under uvicorn, its signals, and its end."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from stoplog.client.limiter import Limiter
from stoplog.client.settings import GRACE_S, Settings
from stoplog_gateway.envoy import envoy_server
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import HotPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.ports import bound
from stoplog_gateway.server.process_slot import Peer

if TYPE_CHECKING:
    from stoplog_gateway.envoy.server import Server as EnvoyServer

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(settings: Settings, peer: Peer | None = None) -> str | None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: Read once, here.
        peer: This process's place, if it shares the port with others.

    Returns:
        ``None`` after a signal; what went wrong if it stopped by itself (:attr:`Limiter.failure`).

    Raises:
        CannotListen: the address for Envoy cannot be used.
        SettingsError: Envoy's rate limit service lacks what it needs.
        TopicError: topics.yaml cannot be read, or the broker's topics contradict it.
    """
    limiter = Limiter(settings, reply_slot=peer.reply_slot if peer else None)
    app = create_app(settings, limiter)
    envoy = envoy_server(settings, limiter, app.state.mapping, shared=peer is not None)
    served: ASGIApp = app
    hot = HotPath(limiter, legacy_headers=settings.legacy_headers)
    with ExitStack() as stack:
        if settings.tracing:
            served, hot = _traced(app, limiter, settings, stack)
        protocol: Any = partial(GatewayProtocol, hot)
        config = uvicorn.Config(
            served,
            host=settings.host,
            port=settings.port,
            http=protocol,
            # It would log a start that fails with a traceback, whatever the reason.
            lifespan="off",
            log_config=None,
            access_log=False,
            # A header field and a wrapper that cost each request some microseconds; what a proxy says is
            # looked at in security.py.
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        with suppress(asyncio.CancelledError):  # a signal while it started
            uvloop.run(_serve(app, uvicorn.Server(config), limiter, envoy, peer))
        return limiter.failure


def _traced(app: ASGIApp, limiter: Limiter, settings: Settings, stack: ExitStack) -> tuple[ASGIApp, HotPath]:
    """Both ways to answer, going on with callers' traces; spans are sent until *stack* ends."""
    from stoplog.tracing import start
    from stoplog_gateway.http.tracing import TracedApp, TracedHotPath

    stack.callback(start("stoplog-gateway", limiter.node_id))
    return TracedApp(app), TracedHotPath(limiter, legacy_headers=settings.legacy_headers)


async def _serve(
    app: FastAPI, server: uvicorn.Server, limiter: Limiter, envoy: EnvoyServer | None, peer: Peer | None
) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    async with AsyncExitStack() as stack:
        if peer is not None:
            await stack.enter_async_context(peer.joined(limiter))
        await stack.enter_async_context(app.router.lifespan_context(app))
        if envoy is not None:
            await stack.enter_async_context(envoy)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            # Until uvicorn has a handler of its own. It stops gracefully and then raises the signal again:
            # that was all, and no failure.
            signal.signal(number, stop)
        config = server.config
        await server.serve(bound(config.port, config.host, shared=True) if peer else None)
