"""Floods of connections to a gateway process with few file descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import grpc
import pytest
from stoplog_gateway.ports import free_port
from stoplog_gateway.server.descriptors import max_connections

from tests.support.half_open import half_open
from tests.support.lone_gateway import LoneGateway, answers, lone_gateway, until

HARD_LIMIT: Final = 256
BOUND: Final = HARD_LIMIT - 128
FLOOD: Final = 1_000

CHECK: Final = (
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 18\r\n\r\n{"client_id": "a"}'
)
TOO_LARGE: Final = (
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 20000000\r\n\r\n{"
)
"""A body that is refused before it has arrived. The connection stays open until it has."""


def connect(gateway: LoneGateway, stack: ExitStack, sent: bytes = b"") -> socket.socket:
    connection = stack.enter_context(socket.create_connection(gateway.address, 20))
    connection.sendall(sent)
    return connection


@contextmanager
def flood(gateway: LoneGateway, sent: bytes) -> Iterator[None]:
    """Hold :data:`FLOOD` connections that sent *sent*, and read nothing."""
    most = 0
    with ExitStack() as stack:
        for number in range(FLOOD):
            with suppress(ConnectionError):  # it was refused and closed meanwhile
                connect(gateway, stack, sent)
            if number % 10 == 0:
                most = max(most, gateway.descriptors())
        yield
        most = max(most, gateway.descriptors())
    print(f"at most {most} of {HARD_LIMIT} descriptors")
    assert BOUND < most < HARD_LIMIT - 16
    assert not gateway.log_lines("cannot accept connections")


def status(gateway: LoneGateway) -> int:
    """Return the status of a check over a new connection, which must come soon."""
    began = time.monotonic()
    response = gateway.client.post("/v1/check", json={"client_id": "a"})
    assert time.monotonic() - began < 5
    return response.status_code


@pytest.fixture
def gateway() -> Iterator[LoneGateway]:
    # A connection that has waited longer than the deadline gets 503, and this machine may be slow.
    settings = {"body_timeout_s": 60, "head_timeout_s": 60, "deadline_ms": 20_000}
    with lone_gateway(descriptors=(64, HARD_LIMIT), **settings) as gateway:
        yield gateway


def test_flood_at_the_bound_gets_503_and_busy_connections_are_still_served(gateway: LoneGateway) -> None:
    with ExitStack() as stack:
        busy = [connect(gateway, stack, CHECK[:-3]) for _ in range(BOUND)]
        until(lambda: status(gateway) == 503)
        with flood(gateway, CHECK):
            assert [status(gateway) for _ in range(20)] == [503] * 20
            for connection in busy:
                connection.sendall(CHECK[-3:])
            for connection in busy:
                assert connection.recv(4_096).startswith(b"HTTP/1.1 200 ")
            until(lambda: status(gateway) == 200)  # now there are idle connections
    until(lambda: gateway.metric("stoplog_http_connections") == 1)
    assert gateway.metric("stoplog_http_connections_closed_total", reason="refused") > FLOOD
    assert len(gateway.log_lines("closed connections that were refused with 503: all connections")) == 1


@pytest.mark.parametrize("sent", [b"", CHECK, TOO_LARGE])
def test_flood_of_connections_that_are_not_busy_locks_no_one_out(gateway: LoneGateway, sent: bytes) -> None:
    with flood(gateway, sent):
        assert [status(gateway) for _ in range(20)] == [200] * 20
    assert gateway.metric("stoplog_http_connections_closed_total", reason="evicted") >= FLOOD - BOUND
    assert gateway.metric("stoplog_http_connections_closed_total", reason="refused") == 0
    assert len(gateway.log_lines("closed connections that were idle for the longest time")) == 1


def test_gateway_with_few_descriptors_serves_beside_many_half_open_connections() -> None:
    with (
        lone_gateway(
            head_timeout_s=1, body_timeout_s=1, keepalive_s=2, descriptors=(64, HARD_LIMIT)
        ) as gateway,
        half_open(gateway.address, 210),
    ):
        until(lambda: answers(gateway.client))  # 503 while all connections are busy
        assert gateway.metric("stoplog_http_connections_closed_total", reason="evicted") > 0
        until(lambda: gateway.metric("stoplog_http_connections") == 1)  # the timeouts closed the others


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"
"""An empty frame of this type, with which a connection of HTTP/2 is complete."""


@pytest.mark.parametrize(
    ("sent", "setting"),
    [
        (b"", "head_timeout_s"),
        (PREFACE[:9], "head_timeout_s"),
        (PREFACE, "head_timeout_s"),
        (PREFACE + SETTINGS, "keepalive_s"),
    ],
)
def test_half_open_grpc_connections_are_bounded_and_end(sent: bytes, setting: str) -> None:
    times = {"head_timeout_s": 60, "keepalive_s": 60, setting: 2}
    settings: dict[str, Any] = {"envoy": f"127.0.0.1:{free_port()}", **times}
    with lone_gateway(descriptors=(64, HARD_LIMIT), **settings) as gateway, ExitStack() as stack:
        until(lambda: call_health(settings["envoy"]) is not None)
        host, _, port = str(settings["envoy"]).rpartition(":")
        before = gateway.descriptors()
        opened = []
        for _ in range(FLOOD):
            with suppress(ConnectionError):
                connection = stack.enter_context(socket.create_connection((host, int(port)), 20))
                connection.sendall(sent)
                opened.append(connection)
        # gRPC accepts a connection before it closes one that is too many.
        assert gateway.descriptors() <= before + max_connections(HARD_LIMIT, grpc=True).grpc + 8
        assert status(gateway) == 200
        for connection in opened:  # each one ends by itself
            with suppress(ConnectionResetError):
                while connection.recv(4_096):
                    pass
        until(lambda: call_health(settings["envoy"]) is not None)
        until(lambda: gateway.descriptors() <= before)


def call_health(address: object) -> bytes | None:
    """Return the response of gRPC's health service over a new connection; ``None`` if it fails."""
    with grpc.insecure_channel(str(address), [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            response: bytes = call(b"", timeout=5)
        except grpc.RpcError:
            return None
        return response


def test_gateway_with_too_few_descriptors_exits_with_one_line() -> None:
    command = [sys.executable, "-m", "stoplog_gateway", "gateway"]
    for processes in ("1", "2"):
        ended = subprocess.run(
            ["prlimit", "--nofile=64:128", *command, "--processes", processes],
            env={**os.environ, "STOPLOG_PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert "the limit of open files is 128, and a gateway process needs 160" in line


@pytest.mark.parametrize(
    ("limit", "grpc", "expected"), [(160, False, (32, 0)), (256, False, (128, 0)), (1_128, True, (750, 250))]
)
def test_descriptors_are_divided_between_http_and_grpc(
    limit: int, grpc: bool, expected: tuple[int, int]
) -> None:
    assert max_connections(limit, grpc=grpc) == expected
