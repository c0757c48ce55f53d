"""Pipelines of requests whose responses no one reads, sent to a gateway process."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tests.support.lone_gateway import LoneGateway, lone_gateway

GET: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BODY: Final = b'{"client_id":"alice"}'
CHECK: Final = (
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
PROXY: Final = b"GET /v1/authorize?client_id=alice HTTP/1.1\r\nHost: localhost\r\n\r\n"
MAX_S: Final = 0.5
MAX_GROWTH: Final = 20e6
ATTACK_S: Final = 2.0
CONTROL_S: Final = 1.0


@contextmanager
def unread_pipelines(gateway: LoneGateway, request: bytes, connections: int, size: int) -> Iterator[None]:
    """Send *size* bytes of *request* on each connection, as far as the gateway accepts them; read nothing."""
    pipeline = memoryview(request * (size // len(request)))
    stop = threading.Event()

    def send(selector: selectors.BaseSelector) -> None:
        while not stop.is_set() and selector.get_map():
            for key, _ in selector.select(0.1):
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                sent = key.data + connection.send(pipeline[key.data : key.data + 65_536])
                if sent < len(pipeline):
                    selector.modify(connection, selectors.EVENT_WRITE, sent)
                else:
                    selector.unregister(connection)

    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            connection = stack.enter_context(socket.create_connection(gateway.address, 20))
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE, 0)
        thread = threading.Thread(target=send, args=(selector,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def seconds_of_a_probe(gateway: LoneGateway) -> float:
    began = time.monotonic()
    gateway.client.get("/healthz").raise_for_status()
    return time.monotonic() - began


def slowest_probe(gateway: LoneGateway, seconds: float) -> float:
    """Send one probe after another for *seconds*; return the seconds of the slowest."""
    until = time.monotonic() + seconds
    slowest = 0.0
    while time.monotonic() < until:
        slowest = max(slowest, seconds_of_a_probe(gateway))
    return slowest


@pytest.mark.parametrize(
    ("request_bytes", "connections", "size"),
    [(GET, 10, 540_000), (GET, 100, 4_000_000), (CHECK, 100, 4_000_000), (PROXY, 100, 4_000_000)],
    ids=["healthz-10", "healthz-100", "check-100", "authorize-100"],
)
def test_pipelines_that_no_one_reads_block_no_one_and_take_little_memory(
    request_bytes: bytes, connections: int, size: int
) -> None:
    with lone_gateway(body_timeout_s=60) as gateway:
        # What others use of this machine delays probes, too.
        others = 3 * slowest_probe(gateway, CONTROL_S)
        before = most = gateway.resident_bytes()
        slowest, until = 0.0, time.monotonic() + ATTACK_S
        with unread_pipelines(gateway, request_bytes, connections, size):
            while time.monotonic() < until:
                slowest = max(slowest, seconds_of_a_probe(gateway))
                most = max(most, gateway.resident_bytes())
            assert gateway.metric("stoplog_http_connections") == connections + 1
        closed = time.monotonic()
        while gateway.metric("stoplog_http_connections") > 1:
            assert time.monotonic() < closed + 1 + others
        after = max(seconds_of_a_probe(gateway) for _ in range(10))
    print(
        f"{connections} connections: the slowest probe took {slowest * 1e3:.0f} ms, "
        f"{after * 1e3:.0f} ms after the end; memory grew by {(most - before) / 1e6:.1f} MB"
    )
    assert slowest < MAX_S + others
    assert most - before < MAX_GROWTH
    assert after < MAX_S + others
