"""A load process, as the one who gives it orders sees it."""

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
"""Longest that an order may take; filling 10,000,000 clients takes minutes."""


class LoadFailed(Exception):
    """A load generator did not do its work; the text says what it said."""


class Loader:
    """A process that runs :func:`tests.benchmarks.orders.serve`; a context manager.

    Args:
        command: Program and arguments.
        log: File for what it says beside its answers.
        env: Its whole environment; ``None``: this one's.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._said = b""  # and not yet read as a line
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
        """Its process id."""
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
        """Give an order; *meter* runs during its measured window.

        Raises:
            LoadFailed: it ended, or took too long.
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
            raise LoadFailed(f"expected {word!r}, got {line!r}; see {self._log}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.fileno()
        while b"\n" not in self._said:
            if not select([said], [], [], _PATIENCE_S)[0]:
                raise LoadFailed(f"no word for {_PATIENCE_S:g} s; see {self._log}")
            chunk = os.read(said, 65_536)
            if not chunk:
                raise LoadFailed(f"it ended: {self._log.read_text(errors='replace')[-2_000:]}")
            self._said += chunk
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()
