"""Load over HTTP: wrk, which uses less CPU per request than the servers that it measures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict, Unpack

from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import LoadGeneratorFailed

MISSING: Final = "wrk is not on the PATH: install it (Debian: apt-get install wrk)"
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
CHECK_TEXT: Final = ('{"client_id":"', '"}')


def wrk_missing() -> str | None:
    """Return why there can be no load over HTTP; ``None`` if there can."""
    return None if shutil.which("wrk") else MISSING


class WrkLoad(TypedDict):
    """The arguments of :func:`run_wrk` by name."""

    connections: int
    seconds: int
    seed: int
    clients: int
    distribution: NotRequired[str]
    size: NotRequired[int]
    check: NotRequired[tuple[str, str]]
    method: NotRequired[str]
    token: NotRequired[str | None]


def drive(url: str, meter: Meter, **load: Unpack[WrkLoad]) -> dict[str, Any]:
    """Run wrk as :func:`run_wrk` does.

    Raises:
        LoadGeneratorFailed: wrk failed, or a response was not a success.
    """
    figures = run_wrk(url, meter, **load)
    if errors := figures.pop("errors"):
        raise LoadGeneratorFailed(f"{errors} requests to {url} failed")
    return figures


def run_wrk(
    url: str,
    meter: Meter,
    *,
    connections: int,
    seconds: int,
    seed: int,
    clients: int,
    distribution: str = "uniform",
    size: int = 1,
    check: tuple[str, str] = CHECK_TEXT,
    method: str = "POST",
    token: str | None = None,
) -> dict[str, Any]:
    """Run wrk: each connection sends its next request as soon as it has the response.

    Args:
        url: URL of the requests.
        meter: Runs while wrk does.
        connections: Number of open connections.
        seconds: Duration, in whole seconds.
        seed: Seed of the sequence of clients.
        clients: Number of clients.
        distribution: ``uniform``, ``zipf``, or ``repeated``: each client in turn, eight times in a row.
        size: Checks per request; more than one are sent as a list.
        check: Text of a check before and after the client's id: in the body, or with GET, the last line of
            the head.
        method: ``POST`` or ``GET``.
        token: Bearer token of each request; ``None`` for none.

    Raises:
        LoadGeneratorFailed: wrk failed.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT), url]
    arguments = [str(clients), distribution, str(size), str(seed), *check, method]
    if token is not None:
        command += ["-H", f"Authorization: Bearer {token}"]
    meter.begin()
    with subprocess.Popen(
        [*command, "--", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as wrk:
        assert wrk.stdout is not None
        output = wrk.stdout.read()
        _, status, usage = os.wait4(wrk.pid, 0)
        wrk.returncode = os.waitstatus_to_exitcode(status)
    meter.end()
    if wrk.returncode:
        raise LoadGeneratorFailed(f"wrk ended with status {wrk.returncode}: {output}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    checks = figures.pop("requests") * size
    return {**figures, "checks": checks, "load_cpu_s": usage.ru_utime + usage.ru_stime}
