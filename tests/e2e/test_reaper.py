"""A test run that is killed leaves nothing running."""

from __future__ import annotations

import subprocess
import sys

import psutil

from tests.support.system import PATIENCE_S

RUN = """
import subprocess, sys
from tests.support.reaper import reaping
with reaping():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_processes_of_killed_run_are_reaped() -> None:
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = psutil.Process(int(run.stdout.readline()))
        assert left.is_running()
        run.kill()
        run.wait(PATIENCE_S)
        left.wait(PATIENCE_S)
