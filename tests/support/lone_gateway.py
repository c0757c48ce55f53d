"""A gateway process without a store: its checks fail open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import httpx
from stoplog_gateway.ports import free_port

PATIENCE_S = 60


class LoneGateway(NamedTuple):
    """A running gateway.

    Attributes:
        process: The process; with several, their parent.
        client: Opens a connection for each request.
        log: The file with what it wrote on both streams.
    """

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: IO[bytes]

    @property
    def address(self) -> tuple[str, int]:
        """Where it serves HTTP."""
        return "127.0.0.1", self.client.base_url.port or 0

    def log_lines(self, needle: str) -> list[str]:
        """Return the lines of the log that contain *needle*."""
        return [line for line in Path(self.log.name).read_text().splitlines() if needle in line]

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric over a new connection; 0 if it has none."""
        label = ",".join(f'{key}="{value}"' for key, value in labels.items())
        begin = f"{name}{{{label}}} " if label else f"{name} "
        lines = self.client.get("/metrics").raise_for_status().text.splitlines()
        return sum(float(line.removeprefix(begin)) for line in lines if line.startswith(begin))

    def descriptors(self) -> int:
        """Return how many files the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_bytes(self) -> int:
        """Return the memory that the process has in RAM."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def lone_gateway(
    *arguments: str, descriptors: tuple[int, int] | None = None, **settings: object
) -> Iterator[LoneGateway]:
    """Run a gateway; yield it once it answers.

    Args:
        arguments: Options of the command.
        descriptors: Soft and hard limit of open files.
        settings: Its settings.
    """
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")}
    env |= {"STOPLOG_PORT": str(port), "STOPLOG_KAFKA": f"127.0.0.1:{free_port()}", "STOPLOG_DRAIN_S": "0"}
    env |= {f"STOPLOG_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "stoplog_gateway", "gateway", *arguments]
    if descriptors is not None:
        command = ["prlimit", f"--nofile={descriptors[0]}:{descriptors[1]}", *command]
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT) as process,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, limits=limits, timeout=20
        ) as client,
    ):
        gateway = LoneGateway(process, client, log)
        try:
            until(lambda: process.poll() is not None or answers(client))
            assert process.poll() is None, gateway.log_lines("")
            yield gateway
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()


def answers(client: httpx.Client) -> bool:
    """Return whether the gateway is healthy."""
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds. The state of another process has no event to await."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
