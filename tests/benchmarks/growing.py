"""How long checks are answered without the store while the number of partitions doubles.

``python -m tests.benchmarks.growing 1000 250000 1000000`` starts a broker, a worker and a gateway for each
number of clients, checks each client once, and runs ``stoplog topics grow 2``. It prints how long the pause
lasted, and what the command's estimate was.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from stoplog.client.limiter import Limiter
from stoplog.wire.checks import Check
from tests.support.broker import fresh_broker, topics_file
from tests.support.system import System
from tests.support.up import environment

AT_A_TIME: Final = 50_000
"""Clients that are checked at a time."""

PATIENCE_S: Final = 600.0


class Pause(NamedTuple):
    """A step of growing from one partition to two.

    Attributes:
        clients: Clients with a state; half of them move.
        states: Those that moved.
        pause_s: Seconds from the beginning of the pause until all checks were answered again.
        expected_s: What the dry run had estimated.
    """

    clients: int
    states: int
    pause_s: float
    expected_s: float

    def __str__(self) -> str:
        return (
            f"{self.clients:>9,} clients, {self.states:>7,} moved: {self.pause_s:.1f} s of pause "
            f"(estimate: {self.expected_s:.0f} s)"
        )


def measure(clients: int, folder: Path) -> Pause:
    """Measure a system with so many *clients*."""
    topics = topics_file(folder / "topics.yaml", 1)
    with fresh_broker(topics=False) as broker, ExitStack() as stack:
        env = environment(folder, STOPLOG_KAFKA=broker.bootstrap, STOPLOG_TOPICS=str(topics))
        _run("create", env=env)
        system = System(broker, folder, stack, topics=topics, default_limits="100/day")
        system.add_worker()
        system.add_gateway()
        system.wait_ready()
        asyncio.run(_check_each(broker.bootstrap, topics, clients))
        planned = _dry_run(env)
        while planned["states"] < 0.49 * clients:  # until the worker has written them to its changelog
            planned = _dry_run(env)
        grown = json.loads(_run("grow", "2", "--json", env=env))
        return Pause(clients, grown["states"], grown["pause_seconds"], planned["pause_seconds"])


async def _check_each(bootstrap: str, topics: Path, clients: int) -> None:
    async with Limiter(bootstrap, topics=topics, deadline_ms=60_000, lease_max_ms=0) as limiter:
        for start in range(0, clients, AT_A_TIME):
            numbers = range(start, min(start + AT_A_TIME, clients))
            answers = await limiter.check_many([Check(f"client-{number}") for number in numbers])
            assert not any(answer.degraded for answer in answers)


def _dry_run(env: dict[str, str]) -> dict[str, Any]:
    planned: dict[str, Any] = json.loads(_run("grow", "2", "--dry-run", "--json", env=env))
    return planned


def _run(*arguments: str, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "stoplog_gateway", "topics", *arguments]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def main() -> None:
    """Measure each number of clients in the arguments."""
    for argument in sys.argv[1:] or ["1000", "250000", "1000000"]:
        with TemporaryDirectory(prefix="stoplog-bench-") as folder:
            print(measure(int(argument), Path(folder)), flush=True)


if __name__ == "__main__":
    main()
