"""The state of one request on the fast path."""

from __future__ import annotations

from typing import Final

from stoplog_gateway.http.handlers import Handler


class FastCycle:
    """A request on the fast path: its handler, and the attributes that uvicorn expects of a request cycle."""

    __slots__ = (
        "disconnected",
        "handler",
        "keep_alive",
        "message_event",
        "pieces",
        "response_complete",
    )

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.pieces: list[bytes] = []
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT


class _NoEvent:
    def set(self) -> None:
        """Do nothing: no task waits for messages of a request on the fast path."""


_NO_EVENT: Final = _NoEvent()
