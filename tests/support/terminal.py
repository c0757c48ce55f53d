"""A command in a pseudo-terminal, for tests."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

CTRL_C: Final = b"\x03"

_PATIENCE_S: Final = 90.0
"""Time for any output; a tenth of it is enough on an idle machine."""

_TOKENS: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+")


class Terminal:
    """A terminal of 80 columns and 24 lines that runs `stoplog`; ``printed`` has all output."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self._screen, keyboard = pty.openpty()
        termios.tcsetwinsize(keyboard, (24, 80))
        self._keyboard, self._before = keyboard, termios.tcgetattr(keyboard)
        # The controlling terminal of the command, so that Ctrl-C sends a signal.
        command = ["setsid", "--ctty", sys.executable, "-m", "stoplog_gateway", *arguments]
        plain = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command, env={**plain, "TERM": "xterm"}, stdin=keyboard, stdout=keyboard, stderr=keyboard
        )
        self.printed = ""

    def wait_for(self, *texts: str) -> str:
        """Read until all of *texts* were printed since the last call; return what was read."""
        began, read = monotonic(), ""
        while not all(text in read for text in texts):
            assert monotonic() - began < _PATIENCE_S, read
            if select.select([self._screen], [], [], 0.1)[0]:
                read += os.read(self._screen, 65_536).decode(errors="replace")
        self.printed += read
        return read

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._screen, key)

    def ended(self) -> int:
        """Wait until the command ends; return its exit status."""
        self.wait_for("\x1b[?1049l")
        return self.process.wait(_PATIENCE_S)

    @property
    def as_before(self) -> bool:
        """Whether cursor, screen and keyboard mode are as before the command."""
        shown = self.printed.rfind("\x1b[?25h") > self.printed.rfind("\x1b[?25l")
        first = self.printed.rfind("\x1b[?1049l") > self.printed.rfind("\x1b[?1049h")
        return shown and first and termios.tcgetattr(self._keyboard) == self._before

    def lines(self) -> list[str]:
        """Return the lines on screen, for output that erases lines and moves up. Long lines stay whole."""
        lines, row, column = [""], 0, 0
        for token in _TOKENS.findall(self.printed):
            if token == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif token == "\r":
                column = 0
            elif token == "\x1b[2K":
                lines[row] = ""
            elif token[0] == "\x1b":
                row -= int(token[2:-1] or 1) if token[-1] == "A" else 0
            else:
                before, after = lines[row][:column], lines[row][column + len(token) :]
                lines[row], column = before.ljust(column) + token + after, column + len(token)
        return [line.rstrip() for line in lines if line.strip()]

    def close(self) -> None:
        """Kill the command if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)
        os.close(self._keyboard)


@contextmanager
def terminal(*arguments: str, env: dict[str, str]) -> Iterator[Terminal]:
    """Run `stoplog` with *arguments* in a terminal of its own."""
    opened = Terminal(*arguments, env=env)
    try:
        yield opened
    finally:
        opened.close()
