"""Connections that begin a request and never finish it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Final

BEGINNINGS: Final = (
    b"",
    b"GET /healthz HTTP/1.1\r\nHost: localh",
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
)
"""Nothing, half a head, half a body."""

_TIMEOUT_S: Final = 20.0


@contextmanager
def half_open(address: tuple[str, int], number: int) -> Iterator[None]:
    """Hold *number* connections to *address* that sent one of :data:`BEGINNINGS` each, and read nothing."""
    with ExitStack() as stack:
        for sent in islice(cycle(BEGINNINGS), number):
            stack.enter_context(socket.create_connection(address, _TIMEOUT_S)).sendall(sent)
        yield
