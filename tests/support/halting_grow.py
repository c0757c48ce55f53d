"""``stoplog topics grow`` that halts in each state of a step until the test lets it go on.

``python -m tests.support.halting_grow NUMBER`` runs the command as a process of its own. It prints each state
when it is reached, and goes on after a line on standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

from stoplog_worker.growth import grow
from stoplog_worker.growth.command import main
from stoplog_worker.growth.owned_record import OwnedRecord
from stoplog_worker.growth.step import Step

from stoplog.wire.partition_count import GrowthStep, PartitionCount
from tests.support.broker import CHECKOUT

GROWING: Final = "growing"
DRAINING: Final = "draining"
COPYING: Final = "copying"
COPIED: Final = "copied"
IN_FORCE: Final = "in force"

STATES: Final = (GROWING, DRAINING, COPYING, COPIED, IN_FORCE)
"""The states of a step: the record is growing; it is draining; one old partition is copied; everything is
copied, and the old number in force; the new number is in force, and gateways and workers continue."""


class HaltingGrow:
    """The command, as a process.

    Attributes:
        report: What it has printed at the end.
        status: Its exit status; ``None`` before the end.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.report: dict[str, Any] = {}
        self.status: int | None = None
        self._process = process
        self._halts = False
        self._log = log

    def states(self) -> Iterator[str]:
        """Yield each state, up to the end. The command halts until the caller takes the next one."""
        assert self._process.stdout is not None
        while True:
            self._go_on()
            line = self._process.stdout.readline()
            if line.startswith("{"):
                self.report = json.loads(line)
            elif line:
                self._halts = True
                yield line.strip()
            else:
                break
        self.status = self._process.wait()

    def _go_on(self) -> None:
        if self._halts:
            self._halts = False
            assert self._process.stdin is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    @property
    def errors(self) -> str:
        """What it has printed about a failure."""
        return self._log.read_text()

    def reach(self, state: str) -> None:
        """Let it go on up to *state*."""
        assert state in self.states(), self.errors

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self._process.kill()
        self.status = self._process.wait()


@contextmanager
def halting_grow(number: int, env: Mapping[str, str], log: Path) -> Iterator[HaltingGrow]:
    """Run the command, and kill it at the end of the block if it still runs. *log* gets its errors."""
    command = [sys.executable, "-m", __name__, str(number), "--json"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield HaltingGrow(process, log)
        finally:
            process.kill()


def _halt(state: str) -> None:
    print(state, flush=True)
    sys.stdin.readline()


def _halting_replace(replace: Callable[..., None]) -> Callable[..., None]:
    @wraps(replace)
    def wrapped(self: OwnedRecord, count: PartitionCount, step: GrowthStep) -> None:
        replace(self, count, step)
        if step.under_way:
            _halt(DRAINING if step.draining else GROWING)

    return wrapped


def _halting_split(split: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(split)
    def wrapped(self: Any, number: int, marker: Any) -> Any:
        copied = split(self, number, marker)
        if number == 0:
            _halt(COPYING)
        return copied

    return wrapped


def _halting_finish(finish: Callable[..., None]) -> Callable[..., None]:
    @wraps(finish)
    def wrapped(self: Step, copied: tuple[int, ...]) -> None:
        _halt(COPIED)
        finish(self, copied)
        _halt(IN_FORCE)

    return wrapped


if __name__ == "__main__":
    OwnedRecord.replace = _halting_replace(OwnedRecord.replace)  # type: ignore[method-assign]
    grow._Split._split = _halting_split(grow._Split._split)  # type: ignore[method-assign]
    Step.finish = _halting_finish(Step.finish)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
