"""Send the head and the body of a response with one system call."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport
from collections.abc import Callable
from typing import Any


class JoinedWrites:
    """A transport that holds a write back until the next one, or until the end of the event-loop turn.

    Args:
        transport: The transport of the connection.
        loop: The event loop of the connection.
        close: Called instead of closing the transport.
    """

    def __init__(self, transport: Transport, loop: AbstractEventLoop, close: Callable[[], None]) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing
        self.close = close
        """End the connection after the response."""

    def write(self, data: bytes) -> None:
        """Hold *data*, or write it together with the data that is held."""
        if self._held:
            data, self._held = self._held + data, b""
            self._send(data)
        elif data:
            self._held = data
            self._loop.call_soon(self.flush)

    def write_now(self, data: bytes) -> None:
        """Write the data that is held, then *data*."""
        if self._held:
            data, self._held = self._held + data, b""
        self._send(data)

    def flush(self) -> None:
        """Write the data that is held."""
        if self._held:
            data, self._held = self._held, b""
            self._send(data)

    def stop(self) -> None:
        """Write the data that is held, and drop all later data."""
        self.flush()
        self.is_closing = _always

    def _send(self, data: bytes) -> None:
        # The peer can reset the connection while data is held; uvloop's transport would raise then.
        if not self.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _always() -> bool:
    return True
