"""One process that `stoplog up` keeps running: its log, its exit status and its restarts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stoplog_gateway.server.restart_backoff import RestartBackoff

USAGE_EXITS: Final = (2, 78)
"""Exit statuses for unusable settings or topics: a restart would end the same way."""

_MAX_LOG: Final = 10 * 1024**2
_SHOWN: Final = (" WARNING ", " ERROR ", " CRITICAL ")


class Child:
    """A process that can be started again, with its output in a log file.

    Args:
        name: Its name on the terminal.
        command: Program and arguments.
        env: Variables to add to the environment of this process.
        log: File to which its output is appended.
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
        """The process id; ``None`` before the first start."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status; ``None`` while it runs, negative if a signal ended it."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start the process in a session of its own, which Ctrl-C in the terminal does not reach."""
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

    def next_delay(self) -> float:
        """Record that the process has ended; return the seconds to wait before the next start."""
        return self._backoff.next_delay()

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait until the process ends; kill it after *timeout_s*."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def warnings(self) -> list[str]:
        """Return the warnings and errors that were logged since the last call."""
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
        """Return the last lines of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
