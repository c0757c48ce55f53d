"""In place of a connection's transport."""

from __future__ import annotations

import asyncio


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.late: list[bytes] = []
        """Written after the end."""
        self.ended = asyncio.Event()
        self.reading: list[bool] = []
        """As it was told."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        (self.late if self.ended.is_set() else self.written).append(bytes(data))

    def pause_reading(self) -> None:
        self.reading.append(False)

    def resume_reading(self) -> None:
        self.reading.append(True)

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def close(self) -> None:
        self.ended.set()
