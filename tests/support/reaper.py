"""Kills the brokers, workers and gateways of a test run when the run ends, even if it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

MARK: Final = "TEST_RUN"
"""Variable in the environment of all processes of a run. It has no prefix ``STOPLOG_``, because tests clear
the variables that have."""


@contextmanager
def reaping() -> Iterator[None]:
    """Kill all processes that are started in this block, at its end or when this process is killed."""
    run = uuid.uuid4().hex
    # In a session of its own, so that Ctrl-C and a kill of the process group do not reach it.
    with subprocess.Popen([sys.executable, __file__, run], stdin=subprocess.PIPE, start_new_session=True):
        os.environ[MARK] = run
        try:
            yield
        finally:
            del os.environ[MARK]


def _kill_all_of(run: str) -> None:
    found = True
    while found:  # a killed process may have started another one meanwhile
        found = False
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == run:
                    process.kill()
                    found = True


if __name__ == "__main__":
    sys.stdin.read()  # blocks until the test run closes the other end, or ends
    _kill_all_of(sys.argv[1])
