"""Ends what a test run has started, should the run be killed: brokers, workers and gateways would stay."""

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
"""In the environment of every process of a run, and so of those that they start; no ``STOPLOG_*`` variable, as
tests clear these."""


@contextmanager
def reaping() -> Iterator[None]:
    """Whatever is started meanwhile is killed when this process ends, however it ends, or is done here."""
    run = uuid.uuid4().hex
    # Of a session of its own: Ctrl-C, and kills of the run's process group, do not reach it.
    with subprocess.Popen([sys.executable, __file__, run], stdin=subprocess.PIPE, start_new_session=True):
        os.environ[MARK] = run
        try:
            yield
        finally:
            del os.environ[MARK]


def _kill_all_of(run: str) -> None:
    found = True
    while found:  # what is killed may have started something meanwhile
        found = False
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == run:
                    process.kill()
                    found = True


if __name__ == "__main__":
    sys.stdin.read()  # to its end, which is that of whoever holds the other end
    _kill_all_of(sys.argv[1])
