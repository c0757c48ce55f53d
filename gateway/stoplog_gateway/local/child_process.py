"""One process that `stoplog up` keeps running: its log, its end, and its next start."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stoplog_gateway.server.restart_backoff import RestartBackoff

USAGE_EXITS: Final = (2, 78)
"""Exit statuses that say "not with these settings": starting again would end the same way."""

_MAX_LOG: Final = 10 * 1024**2
_SHOWN: Final = (" WARNING ", " ERROR ", " CRITICAL ")


class Child:
    """A process started from *command*, again and again if it must be.

    Args:
        name: What it is called on the terminal.
        command: Program and arguments.
        env: Added to this process's environment.
        log: File that its output is appended to.
    """

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = RestartBackoff()
        self._read = 0

    @property
    def pid(self) -> int | None:
        """Its process id, if it was started."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start it; Ctrl-C in the terminal does not reach it."""
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._read = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                start_new_session=True,
            )
        self._backoff.on_start()

    def delay(self) -> float:
        """Seconds to wait before the next start, having ended once more."""
        return self._backoff.next_delay()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process is not None:
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait for its end; kill it after *timeout_s*."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once; one that has ended is left alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def warnings(self) -> list[str]:
        """Lines logged since the last call that an operator should see."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._read)
                new = log.read()
        except OSError:
            return []
        complete = new[: new.rfind(b"\n") + 1]
        self._read += len(complete)
        lines = complete.decode(errors="replace").splitlines()
        return [line for line in lines if any(level in line for level in _SHOWN)]

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
