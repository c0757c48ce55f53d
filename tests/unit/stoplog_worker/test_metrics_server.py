"""A worker's /metrics, on an address and on an inherited socket."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter
from stoplog_gateway.ports import free_port
from stoplog_worker.metrics_server import MAX_CONNECTIONS, serve_metrics
from stoplog_worker.settings import Settings

from stoplog.errors import SettingsError
from tests.support.system import eventually


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seen", "Of the test.", registry=registry).inc()
    return registry


def test_metrics_are_served_on_an_inherited_socket(
    registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        serve_metrics(Settings(metrics_port=1), registry, os.dup(held.fileno()))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/metrics"
        answer = httpx.get(url, trust_env=False).raise_for_status()
    assert "seen_total 1.0" in answer.text
    assert capfd.readouterr().err == ""


def test_metrics_on_a_taken_port_name_the_remedy(registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127.0.0.1:{port} \(.*set STOPLOG_METRICS_PORT to a free"):
            serve_metrics(Settings(metrics_port=port), registry)


SERVER = """
import sys, resource
from prometheus_client import CollectorRegistry
from stoplog_worker import metrics_server
from stoplog_worker.settings import Settings
metrics_server.MAX_S = float(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
metrics_server.serve_metrics(Settings(metrics_host="::1", metrics_port=int(sys.argv[2])), CollectorRegistry())
print("serves", flush=True)
sys.stdin.read()
"""
"""A process with the endpoint and few descriptors."""

HALF_OPEN = [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: local"]


@contextmanager
def serving(max_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(max_s), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serves\n"
            yield process, port
        finally:
            process.kill()


def open_connections(process: subprocess.Popen[str]) -> int:
    return len(psutil.Process(process.pid).net_connections("tcp")) - 1  # without the listening one


def test_flood_of_half_open_connections_locks_no_scraper_out() -> None:
    with serving(max_s=60) as (process, port), ExitStack() as stack:
        for sent in HALF_OPEN * 100:
            stack.enter_context(socket.create_connection(("::1", port), 20)).sendall(sent)
        for _ in range(20):
            with socket.create_connection(("::1", port), 20) as reset:
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            httpx.get(f"http://[::1]:{port}/metrics", trust_env=False, timeout=20).raise_for_status()
        eventually("it keeps few of them", lambda: open_connections(process) <= MAX_CONNECTIONS)
        process.kill()
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
        assert line == "closed connections to /metrics that were the oldest of 16, at their maximum number"


def drip(connection: socket.socket) -> None:
    while True:  # only a time for the whole connection ends it
        connection.sendall(b"G")
        time.sleep(0.1)


def test_half_open_connection_ends_in_time_even_if_it_sends_a_little_again_and_again() -> None:
    with serving(max_s=1) as (process, port):
        silent, slow = (socket.create_connection(("::1", port), 20) for _ in range(2))
        with silent, slow:
            with pytest.raises(ConnectionError):
                drip(slow)
            assert silent.recv(1) == b""
            eventually("no connection is open", lambda: open_connections(process) == 0)
