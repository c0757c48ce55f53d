"""Uvicorn's HTTP protocol, with one write a response.

Uvicorn writes a response's head and body one after the other. Each is a system call and a segment on the
wire, which for a small answer is a tenth of all that a request costs here.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport, get_running_loop
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class GatheredProtocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=...)``."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin, with a transport that gathers."""
        super().connection_made(_Gathered(transport, get_running_loop()))  # type: ignore[arg-type]


class _Gathered:
    """A transport that writes at the end of the event-loop turn, or with the next piece, all it was given."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Take *data*; at the latest it is written when this turn ends."""
        if self._held:
            data, self._held = self._held + data, b""
            self._send(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._send(data)

    def _send(self, data: bytes) -> None:
        # The connection may be reset in the turn in which data was held; uvloop's transport then raises.
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
