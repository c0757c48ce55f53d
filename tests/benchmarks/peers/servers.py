"""The peers' servers as processes, on free ports of loopback, with their data in a temporary directory."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stoplog_gateway.local.child_process import Child
from stoplog_gateway.ports import free_port

from tests.benchmarks.peers.environment import PeerMissing, peers_python, redis_server, throttlecrab_server
from tests.support.broker import CHECKOUT

_LISTENS_S: Final = 20.0


class PeerServer:
    """A server process.

    Args:
        child: The process.
        port: The port on which it listens.
    """

    def __init__(self, child: Child, port: int) -> None:
        self._child = child
        self.port = port

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
    with _running("redis", [redis_server(), *options, *durable], port, folder) as server:
        yield server


@contextmanager
def limits_app(folder: Path, redis_port: int) -> Iterator[PeerServer]:
    """Run `limits` behind FastAPI.

    Raises:
        PeerMissing: Its environment could not be created.
    """
    port = free_port()
    serve = ["-m", "uvicorn", "tests.benchmarks.peers.limits_app:app", "--app-dir", str(CHECKOUT)]
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    env = {"REDIS_PORT": str(redis_port)}
    with _running("limits", [peers_python(), *serve, *options], port, folder, env) as server:
        yield server


@contextmanager
def throttlecrab(folder: Path) -> Iterator[PeerServer]:
    """Run throttlecrab's server, with counters in memory.

    Raises:
        PeerMissing: The server could not be built.
    """
    port = free_port()
    options = ["--http", "--http-host", "127.0.0.1", "--http-port", str(port), "--log-level", "error"]
    with _running("throttlecrab", [throttlecrab_server(), *options], port, folder) as server:
        yield server


@contextmanager
def _running(
    name: str, command: Sequence[str], port: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[PeerServer]:
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
