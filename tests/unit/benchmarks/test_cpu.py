from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.cpu import Meter, cpu_seconds

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


_IDLE = "import sys; print('done', flush=True); sys.stdin.read()"


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def done(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"


def test_process_cpu_includes_only_its_own_children() -> None:
    with running(_IDLE) as idle:
        done(idle)
        with running(_PARENT) as busy:
            meter = Meter({"busy": [busy.pid], "idle": [idle.pid]})
            meter.begin()
            done(busy)
            meter.end()
            assert 0.18 < meter.cpu_s["busy"] < 1.0
            assert meter.cpu_s["idle"] < 0.01
            assert 5 < meter.rss_mb()["busy"] < 100


def test_process_cpu_is_finer_than_proc_ticks() -> None:
    before = cpu_seconds([os.getpid()])
    until = time.process_time() + 0.0025
    while time.process_time() < until:
        pass
    spent = cpu_seconds([os.getpid()]) - before
    assert spent >= 0.0025
    assert abs(spent - round(spent, 2)) > 1e-6
