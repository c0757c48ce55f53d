"""The log of one child process: bounded in size, and read for warnings.

The child writes to the file itself. It never waits for `stoplog up`, which may be slow, stopped or killed; a
pipe would make it wait. So `stoplog up` bounds the file from outside: it copies a large one and empties it.
The child appends, so it goes on at the beginning. A line that it writes between the copy and the emptying is
lost: a few microseconds in 10 MB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO, Final

MAX_BYTES: Final = 10 * 1024**2
"""Size from which a log is rotated. The one before it is kept, so a child has at most about twice as much."""

SHOWN_LEVELS: Final = (" WARNING ", " ERROR ", " CRITICAL ")
"""The terminal shows each line of the log that contains one of these texts."""

_MOST_READ: Final = 1024**2
"""Bytes that are searched for warnings at a time. The rest of a flood is only in the file."""

_TAIL_BYTES: Final = 16 * 1024


class LogFile:
    """A log file that another process appends to.

    Args:
        path: The file. The one before it is ``<path>.1``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def open(self) -> IO[bytes]:
        """Return the file for a new process. Earlier lines are not searched for warnings."""
        self.rotate_if_large()
        file = self.path.open("ab")
        self._read = file.tell()
        return file

    def rotate_if_large(self) -> None:
        """Move the content to ``<path>.1`` if there is more than :data:`MAX_BYTES` of it.

        Raises:
            OSError: The file cannot be emptied.
        """
        if self._size() <= MAX_BYTES:
            return
        before = self.path.with_name(f"{self.path.name}.1")
        try:
            shutil.copyfile(self.path, before)
        except OSError:  # a full disk: the bound matters more than the old lines
            before.unlink(missing_ok=True)
        os.truncate(self.path, 0)
        self._read = 0

    def new_warnings(self) -> list[str]:
        """Return the warnings and errors that were logged since the last call."""
        size = self._size()
        if size == self._read:
            return []
        try:
            with self.path.open("rb") as file:
                file.seek(max(min(self._read, size), size - _MOST_READ))
                new = file.read(_MOST_READ)
                complete = new[: new.rfind(b"\n") + 1]
                self._read = file.tell() - len(new) + len(complete)
        except OSError:
            return []
        lines = complete.decode(errors="replace").splitlines()
        return [line for line in lines if any(level in line for level in SHOWN_LEVELS)]

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def tail(self, lines: int = 12) -> str:
        """Return the last *lines*."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])
