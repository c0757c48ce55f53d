"""Pause and resume the reading of a connection."""

from __future__ import annotations

from asyncio import Transport

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Uvicorn's flow control, which does not resume reading while requests wait."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self) -> None:
        """Read no more until :meth:`release`."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read again."""
        self._held = False
        super().resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless requests wait."""
        if not self._held:
            super().resume_reading()
