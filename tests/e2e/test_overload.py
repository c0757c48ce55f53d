"""A gateway that gets more than it can answer in time: a real broker, worker and gateway for some seconds.

The gateway is stopped while requests arrive, so that it finds them all in one turn of its event loop, however
fast the machine is. `make bench-overload` measures what this test only tells apart.
"""

from __future__ import annotations

import json
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.system import PATIENCE_S, Gateway, System, eventually

CONNECTIONS = 300
CHECKS = 100
"""Checks in each list. All lists together take the gateway more than ten times the time that it reads for."""

LIST = json.dumps([{"client_id": f"client-{number}"} for number in range(CHECKS)]).encode()
HEAD = (
    b"POST /v1/checks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
AUTHORIZE = b"GET /v1/authorize HTTP/1.1\r\nHost: localhost\r\nX-Client-Id: proxied\r\n\r\n"
LIMIT = 1_000_000


@pytest.fixture
def system(fresh_kafka: Broker, tmp_path: Path) -> Iterator[System]:
    with ExitStack() as stack:
        system = System(fresh_kafka, tmp_path, stack, default_limits=f"{LIMIT}/hour")
        system.add_worker()
        system.add_gateway(deadline_ms=100)
        system.wait_ready()
        yield system


def send_at_once(gateway: Gateway, requests: list[bytes]) -> list[bytes]:
    """Let *gateway* find *requests*, each on a connection of its own, in one turn; return the responses."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S))
            for _ in requests
        ]
        eventually(
            "all connections are accepted",
            lambda: gateway.metric("stoplog_http_connections") > len(requests),
        )
        gateway.signal(signal.SIGSTOP)
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        gateway.signal(signal.SIGCONT)
        return [receive(connection) for connection in connections]


def receive(connection: socket.socket) -> bytes:
    """Return one response. A reset raises an exception."""
    response = b""
    while True:
        data = connection.recv(1 << 16)
        assert data, f"the connection ended after {response[:200]!r}"
        response += data
        head, end, body = response.partition(b"\r\n\r\n")
        if end and len(body) >= int(re.findall(rb"content-length: (\d+)", head)[0]):
            return response


def test_gateway_in_overload_fails_open_at_once_resets_nothing_and_is_normal_afterwards(
    system: System,
) -> None:
    [gateway] = system.gateways
    one_list = HEAD % len(LIST) + LIST
    responses = send_at_once(gateway, [one_list] * CONNECTIONS + [AUTHORIZE] * 20)
    statuses = [response.split(b" ", 2)[1] for response in responses]
    assert statuses == [b"200"] * len(responses), "no 5xx, and no response is missing"

    reasons: Counter[str | None] = Counter()
    for response in responses[:CONNECTIONS]:
        answers = json.loads(response.partition(b"\r\n\r\n")[2])
        assert len(answers) == CHECKS
        assert all(answer["allowed"] for answer in answers)
        reasons.update(answer["reason"] for answer in answers)
    assert reasons["overload"] >= CHECKS * 10, reasons
    assert gateway.metric('stoplog_checks_degraded_total{reason="overload"}') >= reasons["overload"]
    assert gateway.count("stoplog_checks_uncounted_total") == 0

    eventually("the store decides again", lambda: gateway.check("another")["degraded"] is False)
    eventually("the end is reported", lambda: bool(gateway.lines("WARNING", "overload ended")))
    assert len(gateway.lines("WARNING", "overload: checks")) == 1
    [ended] = gateway.lines("overload ended")
    counted = int(gateway.metric('stoplog_checks_degraded_total{reason="overload"}'))
    assert f"{counted:,} checks were answered without the store, 0 are not counted" in ended

    def remaining() -> int | None:
        left: int | None = gateway.check("client-7", cost=0)["remaining"]
        return left

    eventually(
        "every check is counted, also those that failed open", lambda: remaining() == LIMIT - CONNECTIONS
    )
