"""Load over HTTP at a steady pace on one connection. Each request waits for the response before it.

``port`` is the server's port. The request is ``method`` and ``path`` with the text of a check, ``check``, as
wrk.lua puts it together: in the body, or with GET, in the last line of the head.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final

from tests.benchmarks.client_ids import client_id, picker
from tests.benchmarks.orders import Pace, carry_out_orders, latency_figures, say

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_DENIED: Final = b'"allowed":false'


class HttpConnection:
    """A keep-alive connection to a port of loopback. It reads responses with a ``Content-Length``."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def __enter__(self) -> HttpConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """Send a request; return the body of the response.

        Raises:
            RuntimeError: The status is not 200, or the connection ended.
        """
        self._socket.sendall(request)
        while (end := self._unread.find(_HEAD_END)) < 0:
            self._receive()
        head, at = self._unread[:end].lower(), end + len(_HEAD_END)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"expected status 200: {head.decode()}")
        length = next(int(line[len(_LENGTH) :]) for line in head.split(b"\r\n") if line.startswith(_LENGTH))
        while len(self._unread) < at + length:
            self._receive()
        body, self._unread = self._unread[at : at + length], self._unread[at + length :]
        return body

    def _receive(self) -> None:
        if not (piece := self._socket.recv(65_536)):
            raise RuntimeError("the server closed the connection")
        self._unread += piece


def requests_for(order: dict[str, Any]) -> Callable[[], bytes]:
    """Return a function that returns the next request of *order*."""
    before, after = order["check"]
    start = f"{order['method']} {order['path']} HTTP/1.1\r\nHost: 127.0.0.1:{order['port']}\r\n"
    pick = picker(order["clients"], "uniform", order["seed"])

    def get() -> bytes:
        line = f"{before}{client_id(pick())}{after}\r\n" if before else ""
        return f"{start}{line}\r\n".encode()

    def post() -> bytes:
        body = f"{before}{client_id(pick())}{after}"
        return f"{start}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    return get if order["method"] == "GET" else post


def busiest_window(admitted: Iterator[tuple[float, float]], window_s: float) -> int:
    """Return the most checks that were certainly admitted within one window.

    Args:
        admitted: When each admitted check was sent, and when its answer came, in their order. It was admitted
            in between.
        window_s: Seconds of the window.

    >>> busiest_window(iter([(0.0, 0.1), (0.5, 0.6), (1.0, 1.1)]), 1.0)
    2
    """
    most, within = 0, deque[float]()
    for sent_at, answered_at in admitted:
        within.append(sent_at)
        while answered_at - within[0] > window_s:
            within.popleft()
        most = max(most, len(within))
    return most


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Send ``checks`` requests at ``rate`` per second, after ``warmup`` ones that are not counted.

    With ``window_s``, count how many checks are allowed and denied, and the most in a window.
    """
    request = requests_for(order)
    latencies: list[float] = []
    admitted: list[tuple[float, float]] = []
    with HttpConnection(order["port"]) as connection:
        pace = Pace(order["rate"])
        for _ in range(order["warmup"]):
            pace.wait()
            connection.ask(request())
        say("begin")
        began, pace = perf_counter(), Pace(order["rate"])  # a late warm-up makes no check of the window late
        for _ in range(order["checks"]):
            content = request()
            due = pace.wait()
            sent_at = perf_counter()
            body = connection.ask(content)
            answered_at = perf_counter()
            latencies.append(answered_at - due)
            if _DENIED not in body:
                admitted.append((sent_at, answered_at))
        seconds = perf_counter() - began
        say("end")
    figures = {"checks": order["checks"], "seconds": seconds, **latency_figures(latencies)}
    if window_s := order.get("window_s"):
        figures["allowed"], figures["denied"] = len(admitted), order["checks"] - len(admitted)
        figures["busiest_window"] = busiest_window(iter(admitted), window_s)
    return figures


if __name__ == "__main__":
    carry_out_orders(run)
