from __future__ import annotations

import os
import subprocess
import sys

from tests.benchmarks.cpu import Meter

_BURN = """
import time
until = time.process_time() + {}
while time.process_time() < until: pass
print("done", flush=True)
"""
_PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {_BURN.format(0.1)!r}], stdout=subprocess.DEVNULL)
{_BURN.format(0.1)}
sys.stdin.read()
"""


def test_a_process_is_charged_with_its_children_and_only_with_its_own() -> None:
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = Meter({"busy": [process.pid], "me": [os.getpid()]})
        meter.begin()
        assert process.stdout.readline() == b"done\n"
        meter.end()
        assert 0.18 < meter.cpu_s["busy"] < 1.0
        assert meter.cpu_s["me"] < 0.15
        assert 5 < meter.rss_mb()["busy"] < 100
        process.stdin.close()
