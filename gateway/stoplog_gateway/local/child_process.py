"""One process that `stoplog up` runs: its log, its exit status and its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stoplog_gateway.local.log_file import LogFile

CONFIG_EXIT: Final = 78
"""Exit status of a worker or gateway that an operator has to repair: a restart would end the same way."""

USAGE_EXITS: Final = (2, CONFIG_EXIT)
"""Exit statuses that end a start: also for unusable settings, and for a port that is taken."""


class Child:
    """A process that can be started again, with its output in a log file.

    Args:
        name: Its name on the terminal.
        command: Program and arguments.
        env: Variables to add to the environment of this process.
        log: File to which its output is appended.
        pass_fds: File descriptors that it inherits, under the same numbers.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._output = LogFile(log)
        self._command = command
        self._env = env
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id; ``None`` before the first start."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status; ``None`` while it runs, negative if a signal ended it."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start the process in a session of its own, which Ctrl-C in the terminal does not reach.

        Raises:
            OSError: The system cannot start a process, or the log cannot be written.
        """
        with self._output.open() as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                pass_fds=self._pass_fds,
                start_new_session=True,
            )

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
        """Return the warnings and errors that were logged since the last call, and bound the log."""
        found = self._output.new_warnings()
        self._output.rotate_if_large()
        return found

    def tail(self, lines: int = 12) -> str:
        """Return the last *lines* of the log."""
        return self._output.tail(lines)
