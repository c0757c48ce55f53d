"""A test run that is killed leaves nothing running."""

from __future__ import annotations

import subprocess
import sys

import psutil

RUN = """
import subprocess, sys
from tests.support.reaper import reaping
with reaping():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_has_started_is_killed() -> None:
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = psutil.Process(int(run.stdout.readline()))
        assert left.is_running()
        run.kill()
        run.wait(30)
        left.wait(30)
