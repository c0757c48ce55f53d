"""A gateway that gets more than it can answer in time: a real broker, worker and gateway for some seconds.

In the first test, the gateway is stopped while requests arrive, so that it finds them all in one turn of its
event loop, however fast the machine is. In the others, callers send without a pause. What a machine can
decide follows from a measurement in the same run. `make bench-overload` measures how long callers wait.

Leases would answer most of these checks, so only the last test has them.
"""

from __future__ import annotations

import json
import re
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.client.update_proofs import PROOF_S
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


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("system")
        system = System(fresh_kafka, folder, stack, default_limits=f"{LIMIT}/hour")
        system.add_worker()
        system.add_gateway(deadline_ms=100, lease_max_ms=0)
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
    gateway = system.gateways[0]
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


CALIBRATION_S = 2.0
OVERLOAD_S = 5.0
LONG = 250
"""Checks in each list: nearly the longest that is handled at once."""

FEW = 32
"""Callers that keep a gateway busy without overload."""

MANY = 200
"""Callers of whose lists a turn of the event loop reads only a part."""

MIN_SHARE = 0.2
"""Checks that are decided in overload, relative to those without. The worker counts the others, too, on the
same cores."""


@dataclass
class Load:
    """What callers got, each of which sends its next list as soon as it has a response."""

    seconds: list[float] = field(default_factory=list)
    decided: int = 0
    degraded: int = 0
    reasons: Counter[bytes] = field(default_factory=Counter)


def drive(gateway: Gateway, callers: int, seconds: float) -> Load:
    """Let so many *callers* send lists for some *seconds*. A reset or another status than 200 is an error."""
    load = Load()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets: dict[int, socket.socket] = {}
        sent: dict[socket.socket, float] = {}
        received: dict[socket.socket, bytes] = {}
        for _ in range(callers):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S))
            selector.register(sock, selectors.EVENT_READ)
            sockets[sock.fileno()], received[sock] = sock, b""
        eventually(
            "all connections are accepted", lambda: gateway.metric("stoplog_http_connections") > callers
        )
        body = json.dumps([{"client_id": f"client-{number}"} for number in range(LONG)]).encode()
        request = HEAD % len(body) + body
        began = time.monotonic()
        for sock in sockets.values():
            sent[sock] = time.monotonic()
            sock.sendall(request)
        while sent:
            ready = selector.select(PATIENCE_S)
            assert ready, f"{len(sent)} callers got no response"
            for key, _ in ready:
                sock = sockets[key.fd]
                data = sock.recv(1 << 18)
                assert data, "the connection ended"
                received[sock] += data
                head, end, body = received[sock].partition(b"\r\n\r\n")
                if not end or len(body) < int(re.findall(rb"content-length: (\d+)", head)[0]):
                    continue
                now = time.monotonic()
                assert head.startswith(b"HTTP/1.1 200 ")
                load.seconds.append(now - sent[sock])
                degraded = body.count(b'"degraded":true')
                load.degraded += degraded
                load.decided += LONG - degraded
                if degraded:
                    load.reasons.update(re.findall(rb'"reason":"(\w+)"', body))
                received[sock] = b""
                if now - began < seconds:
                    sent[sock] = now
                    sock.sendall(request)
                else:
                    del sent[sock]
    return load


def test_gateway_in_lasting_overload_goes_on_deciding_and_resets_nothing(system: System) -> None:
    gateway = system.add_gateway(lease_max_ms=0)
    eventually("the gateway is ready", gateway.ready)
    drive(gateway, FEW, CALIBRATION_S / 2)
    capacity = drive(gateway, FEW, CALIBRATION_S).decided / CALIBRATION_S
    before = gateway.metric("stoplog_checks_degraded_total")
    load = drive(gateway, MANY, OVERLOAD_S)

    load.seconds.sort()
    median = load.seconds[len(load.seconds) // 2]
    summary = (
        f"capacity {capacity:,.0f}/s, decided {load.decided / OVERLOAD_S:,.0f}/s, median {median:.3f} s, "
        f"{dict(load.reasons)}"
    )
    print(summary)
    assert load.reasons[b"overload"] > 0, summary
    assert load.decided / OVERLOAD_S >= MIN_SHARE * capacity, summary
    assert gateway.metric("stoplog_checks_degraded_total") - before == load.degraded
    assert gateway.count("stoplog_checks_uncounted_total") == 0
    eventually("the store decides again", lambda: gateway.check("another")["degraded"] is False)


def test_leases_answer_hot_clients_in_lasting_overload(system: System) -> None:
    gateway = system.add_gateway()
    eventually("the gateway is ready", gateway.ready)

    def every_client_has_a_lease() -> bool:
        drive(gateway, FEW, CALIBRATION_S / 4)
        return gateway.metric("stoplog_leases") == LONG

    eventually("every client has a lease", every_client_has_a_lease)
    load = drive(gateway, MANY, OVERLOAD_S)
    load.seconds.sort()
    summary = f"{load.decided} decided, {dict(load.reasons)}, the longest took {load.seconds[-1]:.3f} s"
    print(summary)
    # Turns of the event loop are longer than a proof lasts, or the test proves nothing.
    assert load.seconds[-1] > PROOF_S, summary
    assert load.decided > 4 * load.degraded, summary
