"""A fake transport of an HTTP connection."""

from __future__ import annotations

import asyncio


class FakeHttpTransport(asyncio.Transport):
    """Keeps what the protocol writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711)})
        self.written: list[bytes] = []
        self.late: list[bytes] = []
        """Bytes written after the connection had been closed."""
        self.ended = asyncio.Event()
        self.reading: list[bool] = []
        """``True`` for each call of ``resume_reading``, ``False`` for each of ``pause_reading``."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        (self.late if self.ended.is_set() else self.written).append(bytes(data))

    def pause_reading(self) -> None:
        self.reading.append(False)

    def resume_reading(self) -> None:
        self.reading.append(True)

    def write_eof(self) -> None:
        """Take the end of the responses for the end of the connection: no client reads on."""
        self.close()

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Never ask the protocol to pause: everything is written at once."""

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def close(self) -> None:
        self.ended.set()
