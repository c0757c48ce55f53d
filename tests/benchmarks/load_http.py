"""Load through HTTP: wrk, which takes 5 to 20 microseconds a request where a server in Python takes 50."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import LoadFailed

MISSING: Final = "wrk is not on the PATH: install it (Debian: apt-get install wrk)"
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_CHECK: Final = ('{"client_id":"', '"}')


def wrk_missing() -> str | None:
    """Why there can be no load through HTTP; ``None``: there can."""
    return None if shutil.which("wrk") else MISSING


def drive(
    url: str,
    meter: Meter,
    *,
    connections: int,
    seconds: int,
    seed: int,
    clients: int,
    distribution: str = "uniform",
    size: int = 1,
    check: tuple[str, str] = _CHECK,
) -> dict[str, Any]:
    """Have wrk ask as fast as answers come, one request at a time on each connection.

    Args:
        url: What to POST to.
        meter: Runs while wrk does.
        connections: Kept open.
        seconds: Whole seconds.
        seed: Of the clients' sequence.
        clients: How many there are.
        distribution: ``uniform`` or ``zipf``.
        size: Checks a request; more than one makes a list.
        check: What stands in a check before and after the client's id.

    Raises:
        LoadFailed: wrk failed, or an answer was not a success.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT), url]
    arguments = [str(clients), distribution, str(size), str(seed), *check]
    meter.begin()
    with subprocess.Popen(
        [*command, "--", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as wrk:
        assert wrk.stdout is not None
        said = wrk.stdout.read()
        _, status, usage = os.wait4(wrk.pid, 0)
        wrk.returncode = os.waitstatus_to_exitcode(status)
    meter.end()
    if wrk.returncode:
        raise LoadFailed(f"wrk ended with status {wrk.returncode}: {said}")
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    if errors := figures.pop("errors"):
        raise LoadFailed(f"{errors} requests to {url} failed")
    checks = figures.pop("requests") * size
    return {**figures, "checks": checks, "load_cpu_s": usage.ru_utime + usage.ru_stime}
