"""Run one gateway process: the application under uvicorn, Envoy's service beside it, signals, and its end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from stoplog.client.limiter import Limiter
from stoplog.identity.identity import Identity
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.envoy import envoy_server
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import ConnectionLimits, Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.http.proxies import Proxies
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.lifecycle import Lifecycle, Phase
from stoplog_gateway.ports import bind_port
from stoplog_gateway.server.descriptors import max_connections, raise_descriptor_limit
from stoplog_gateway.server.gateway_server import GatewayServer
from stoplog_gateway.server.process_slot import ProcessSlot
from stoplog_gateway.settings import GRACE_S, GatewaySettings

if TYPE_CHECKING:
    from stoplog_gateway.envoy.server import EnvoyServer
    from stoplog_gateway.http.tracing import RequestTracing

_RECEIVE_BUFFER: Final = 64 << 10
"""Bytes that the system receives for a connection until the gateway reads them. They bound what one read
returns, and thus the memory of pipelined requests that wait."""

_GC_THRESHOLDS: Final = (50_000, 20, 20)
"""Thresholds of Python's garbage collector. Open connections are many objects, and in use. With the default
thresholds it examines them so often that 10,000 connections that open block all callers for 0.4 s."""

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(
    settings: GatewaySettings,
    slot: ProcessSlot | None = None,
    on_serving: Callable[[], None] = lambda: None,
) -> str | None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: The gateway's settings.
        slot: Slot of this process, if several processes share the port.
        on_serving: Called when the gateway accepts requests.

    Returns:
        ``None`` after a signal; the reason if the gateway stopped by itself (:attr:`Limiter.failure`).

    Raises:
        CannotListen: The address for Envoy cannot be used.
        SettingsError: An extra that the settings need is not installed, a file cannot be used, or the limit
            of open files is too low.
        TopicError: topics.yaml cannot be read, or the broker's topics contradict it.
    """
    maximum = max_connections(raise_descriptor_limit(), grpc=settings.envoy is not None)
    limits = ConnectionLimits(
        keepalive_s=settings.keepalive_s,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        max_open=maximum.http,
    )
    gc.set_threshold(*_GC_THRESHOLDS)
    limiter = Limiter(settings, reply_slot=slot.reply_slot if slot else None)
    access = AccessControl.of(settings)
    app = create_app(settings, limiter, access)
    lifecycle: Lifecycle = app.state.lifecycle

    async def is_ready() -> bool:
        answered = (await limiter.ready()).ready
        return lifecycle.phase(answered=answered) is Phase.SERVING

    tls = TlsFiles.of(settings, access.files)
    turns = Turns(settings.deadline_ms / 1000)
    envoy = envoy_server(
        settings,
        limiter,
        app.state.mapping,
        shared=slot is not None,
        is_ready=is_ready,
        bounds=replace(limits, max_open=maximum.grpc),
        turns=turns,
        access=access,
        tls=tls,
    )
    with ExitStack() as stack:
        tracing = _start_tracing(limiter, stack) if settings.tracing else None
        served: ASGIApp = app if tracing is None else tracing.wrap(app)
        refusals = OverloadRefusals()
        fast_path = FastPath(
            limiter,
            turns=turns,
            legacy_headers=settings.legacy_headers,
            access=access,
            tracing=tracing,
            proxies=Proxies(
                limiter,
                access,
                turns,
                app.state.mapping,
                client_header=settings.client_header,
                identity=Identity.of(settings),
                legacy_headers=settings.legacy_headers,
            ),
            refusals=refusals,
        )
        connections = Connections(limits, turns)
        for collector in (connections, access.refusals, access.files, refusals):
            limiter.metrics.registry.register(collector)
        protocol: Any = partial(GatewayProtocol, fast_path, connections)
        config = uvicorn.Config(
            served,
            host=settings.host,
            port=settings.port,
            http=protocol,
            # _serve runs the lifespan: uvicorn would log a failed start with a traceback.
            lifespan="off",
            log_config=None,
            access_log=False,
            # Both cost CPU time for each request. access/local_callers.py checks the fields of proxies.
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )

        def drain() -> None:
            lifecycle.drain()
            connections.drain()

        async def close() -> None:
            if envoy is not None:
                await envoy.stop()

        with suppress(asyncio.CancelledError):  # a signal during the start
            server = GatewayServer(
                config,
                on_serving=on_serving,
                drain=drain,
                drain_s=settings.drain_s,
                close=close,
                connections=connections,
                tls=tls,
            )
            uvloop.run(_serve(app, server, limiter, envoy, slot))
        return limiter.failure


def _start_tracing(limiter: Limiter, stack: ExitStack) -> RequestTracing:
    """Export spans until *stack* exits."""
    from stoplog.tracing import start
    from stoplog_gateway.http.tracing import RequestTracing

    stack.callback(start("stoplog-gateway", limiter.node_id))
    return RequestTracing()


async def _serve(
    app: FastAPI,
    server: uvicorn.Server,
    limiter: Limiter,
    envoy: EnvoyServer | None,
    slot: ProcessSlot | None,
) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    async with AsyncExitStack() as stack:
        if slot is not None:
            await stack.enter_async_context(slot.occupied(limiter))
        await stack.enter_async_context(app.router.lifespan_context(app))
        if envoy is not None:
            await stack.enter_async_context(envoy)
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # Handles signals until uvicorn installs its own handlers. After a graceful stop, uvicorn raises
            # the signal again and expects this handler: the default one would end the process as a failure.
            signal.signal(number, stop)
        config = server.config
        sockets = bind_port(config.port, config.host, shared=slot is not None)
        for sock in sockets:  # connections inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        await server.serve(sockets)
