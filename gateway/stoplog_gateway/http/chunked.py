"""Find the end of a chunked body."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\n]*)?\r")


class BadChunk(Exception):
    """The body is not encoded in chunks."""


class ChunkedBody:
    """Find the end of one chunked body in data that arrives in pieces.

    The parser decodes the body and checks its syntax. It does not tell how many bytes it used. The protocol
    must know, because bytes after the body belong to the next request.
    """

    __slots__ = ("_in_trailers", "_line", "_skip")

    def __init__(self) -> None:
        self._skip = 0  # bytes of the current chunk, with its line end, that have not arrived
        self._line = b""  # the beginning of a line that has not arrived completely
        self._in_trailers = False

    def end_in(self, data: bytes, start: int) -> int:
        """Return the index after the body's last byte in *data*, or -1 if the body goes on after *data*.

        Args:
            data: Data that arrived.
            start: Index of the first byte that earlier calls have not seen.

        Raises:
            BadChunk: The size of a chunk is invalid.
        """
        end = len(data)
        while True:
            if self._skip >= end - start:
                self._skip -= end - start
                return -1
            start += self._skip
            self._skip = 0
            newline = data.find(b"\n", start)
            if newline < 0:
                self._line += data[start:]
                return -1
            line = self._line + data[start:newline]
            self._line = b""
            start = newline + 1
            if self._in_trailers:
                if line == b"\r":
                    return start
            else:
                self._begin_chunk(line)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadChunk
        size = int(match[1], 16)
        if size:
            self._skip = size + 2
        else:
            self._in_trailers = True
