"""The peers' servers as processes, on free ports of loopback, with their data in a temporary directory."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stoplog_gateway.local.child_process import Child
from stoplog_gateway.ports import free_port

from tests.benchmarks.peers.environment import (
    PeerMissing,
    envoy_ratelimit_server,
    peers_python,
    redis_server,
    throttlecrab_server,
)
from tests.support.broker import CHECKOUT

_LISTENS_S: Final = 20.0
_RATELIMIT_CONFIG: Final = """\
domain: edge
descriptors:
  - key: client
    rate_limit: {unit: minute, requests_per_unit: 1000000}
"""


class PeerServer:
    """A server process.

    Args:
        child: The process.
        port: The port on which it listens.
        grpc_port: Its port for gRPC, if it has one.
    """

    def __init__(self, child: Child, port: int, grpc_port: int = 0) -> None:
        self._child = child
        self.port = port
        self.grpc_port = grpc_port

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self._child.pid is not None
        return self._child.pid


@contextmanager
def redis(folder: Path) -> Iterator[PeerServer]:
    """Run Redis 7, which syncs its log once a second.

    Raises:
        PeerMissing: Redis is not installed.
    """
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "everysec"]
    with running_server("redis", [redis_server(), *options, *durable], port, folder) as server:
        yield server


@contextmanager
def limits_app(folder: Path, redis_port: int) -> Iterator[PeerServer]:
    """Run `limits` behind FastAPI.

    Raises:
        PeerMissing: Its environment could not be created.
    """
    with peer_app(folder, "limits", redis_port) as server:
        yield server


@contextmanager
def peer_app(folder: Path, module: str, redis_port: int) -> Iterator[PeerServer]:
    """Run the application of ``peers/<module>_app.py`` with Redis.

    Raises:
        PeerMissing: Its environment could not be created.
    """
    env = {"REDIS_PORT": str(redis_port)}
    name = f"tests.benchmarks.peers.{module}_app:app"
    with _under_uvicorn(peers_python(), name, folder, env) as server:
        yield server


@contextmanager
def stoplog_app(folder: Path, name: str, settings: Mapping[str, str]) -> Iterator[PeerServer]:
    """Run an application of ``middleware_app.py``, ``limited`` or ``unlimited``, with Stoplog's settings."""
    with _under_uvicorn(
        sys.executable, f"tests.benchmarks.middleware_app:{name}", folder, settings
    ) as server:
        yield server


@contextmanager
def _under_uvicorn(python: str, app: str, folder: Path, env: Mapping[str, str]) -> Iterator[PeerServer]:
    port = free_port()
    serve = ["-m", "uvicorn", app, "--app-dir", str(CHECKOUT), "--port", str(port)]
    options = ["--no-access-log", "--log-level", "warning"]
    with running_server(
        app.rpartition(".")[2].replace(":", "-"), [python, *serve, *options], port, folder, env
    ) as server:
        yield server


@contextmanager
def throttlecrab(folder: Path) -> Iterator[PeerServer]:
    """Run throttlecrab's server, with counters in memory.

    Raises:
        PeerMissing: The server could not be built.
    """
    port = free_port()
    options = ["--http", "--http-host", "127.0.0.1", "--http-port", str(port), "--log-level", "error"]
    with running_server("throttlecrab", [throttlecrab_server(), *options], port, folder) as server:
        yield server


@contextmanager
def envoy_ratelimit(folder: Path, redis_port: int) -> Iterator[PeerServer]:
    """Run envoyproxy/ratelimit with the limit of all cases.

    Raises:
        PeerMissing: The server could not be built.
    """
    port, grpc_port = free_port(), free_port()
    config = folder / "ratelimit" / "config"
    config.mkdir(parents=True)
    (config / "edge.yaml").write_text(_RATELIMIT_CONFIG)
    env = {
        "RUNTIME_ROOT": str(folder),
        "RUNTIME_SUBDIRECTORY": "ratelimit",
        "BACKEND_TYPE": "redis",
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": f"127.0.0.1:{redis_port}",
        "USE_STATSD": "false",
        "LOG_LEVEL": "error",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "GRPC_HOST": "127.0.0.1",
        "GRPC_PORT": str(grpc_port),
        "DEBUG_HOST": "127.0.0.1",
        "DEBUG_PORT": str(free_port()),
    }
    with running_server("ratelimit", [envoy_ratelimit_server()], port, folder, env) as server:
        server.grpc_port = grpc_port
        yield server


@contextmanager
def grpc_floor(folder: Path) -> Iterator[PeerServer]:
    """Run the server that answers each gRPC call with the same bytes."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.grpc_floor", f"127.0.0.1:{port}"]
    with running_server("grpc-floor", command, port, folder) as server:
        yield server


@contextmanager
def http_floor(folder: Path) -> Iterator[PeerServer]:
    """Run the gateway's HTTP server with the same answer to each check."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.http_floor", str(port)]
    with running_server("http-floor", command, port, folder) as server:
        yield server


@contextmanager
def running_server(
    name: str, command: Sequence[str], port: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[PeerServer]:
    """Run *command* until the block ends; yield it once it listens on *port*.

    Raises:
        PeerMissing: It does not listen in time.
    """
    child = Child(name, command, env=env or {}, log=folder / f"{name}.log")
    child.start()
    try:
        _wait_for(child, port)
        yield PeerServer(child, port)
    finally:
        child.terminate()
        child.join(10)


def _wait_for(child: Child, port: int) -> None:
    until = time.monotonic() + _LISTENS_S
    while time.monotonic() < until:
        if child.status is not None:
            break
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise PeerMissing(
        f"{child.name} does not listen on {port}; the end of its log:{os.linesep}{child.tail()}"
    )
