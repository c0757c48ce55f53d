"""A load process, seen from the process that gives it orders."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from select import select
from typing import Any, Final

from tests.benchmarks.cpu import Meter
from tests.support.broker import CHECKOUT

_PATIENCE_S: Final = 600.0
"""Seconds that an order may take. Storing 10,000,000 clients takes minutes."""


class LoadGeneratorFailed(Exception):
    """A load generator failed. The text contains its output."""


class Loader:
    """A process that runs :func:`tests.benchmarks.orders.carry_out_orders`; a context manager.

    Args:
        command: Program and arguments.
        log: File for its standard error.
        env: Its whole environment; ``None`` inherits this process's.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._unread = b""
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def __enter__(self) -> Loader:
        self._expect("ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, meter: Meter, **order: Any) -> dict[str, Any]:
        """Give an order, and run *meter* during its measured window.

        Raises:
            LoadGeneratorFailed: The process ended, or took too long.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._expect("begin")
        meter.begin()
        self._expect("end")
        meter.end()
        figures: dict[str, Any] = json.loads(self._line())
        return figures

    def _expect(self, word: str) -> None:
        if (line := self._line()) != word:
            raise LoadGeneratorFailed(f"expected {word!r}, got {line!r}; see {self._log}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        stdout = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select([stdout], [], [], _PATIENCE_S)[0]:
                raise LoadGeneratorFailed(f"no output for {_PATIENCE_S:g} s; see {self._log}")
            chunk = os.read(stdout, 65_536)
            if not chunk:
                log = self._log.read_text(errors="replace")[-2_000:]
                raise LoadGeneratorFailed(f"the load process ended: {log}")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()
