"""``make bench``: measure, print the table, and write the run as JSON and as a plot.

``python -m tests.benchmarks.run [--full] [stage ...]``. Stages select a part, which goes to a JSON file of
its own, without a plot. A run that is interrupted leaves its complete stages in a ``.part.json`` file. The
first run downloads the peers' programs into a cache directory, which takes some minutes more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final, NoReturn

import msgspec
from rich.console import Console

from tests.benchmarks.context import BenchContext
from tests.benchmarks.facts import machine_facts
from tests.benchmarks.growth import growth_markdown
from tests.benchmarks.peers.environment import (
    PeerMissing,
    envoy_ratelimit_server,
    peers_python,
    throttlecrab_server,
)
from tests.benchmarks.plan import FULL, QUICK, BenchPlan
from tests.benchmarks.samples import Run
from tests.benchmarks.stages import (
    apps,
    callers,
    client_counts,
    hot,
    last_release,
    leases,
    pace,
    proxied,
    recovery,
    scaling,
)
from tests.benchmarks.table import rich_table
from tests.support.broker import CHECKOUT

_OUTPUT_FOLDER: Final = CHECKOUT / "build" / "bench"
_WIDTH: Final = 200
"""Columns of the output if it does not go to a terminal."""

stderr_console: Final = Console(stderr=True)


STAGE_RUNS: Final[dict[str, Callable[[BenchContext], None]]] = {
    "callers": callers.run,
    "leases": leases.run,
    "pace": pace.run,
    "apps": apps.run,
    "proxies": proxied.run,
    "release": last_release.run,
    "hot": hot.run,
    "partitions": scaling.partitions,
    scaling.HTTP_STAGE: scaling.http_partitions,
    "workers": scaling.workers,
    "recovery": recovery.run,
    "clients": client_counts.run,
}
"""The stages in their order. A quick run leaves out :data:`_FULL_ONLY`."""

_FULL_ONLY: Final = frozenset({"partitions", scaling.HTTP_STAGE, "workers", "recovery"})


def main(plan: BenchPlan, only: Sequence[str] = ()) -> None:
    """Measure the stages *only*, or all of *plan*."""
    chosen = only or [stage for stage in STAGE_RUNS if plan.full or stage not in _FULL_ONLY]
    signal.signal(signal.SIGTERM, _interrupted)  # so that all started processes are stopped
    _prepare()
    facts, began = machine_facts(), time.monotonic()

    def say(what: str) -> None:
        stderr_console.print(f"[dim]{time.monotonic() - began:4.0f} s[/] {what}", highlight=False)

    file = _OUTPUT_FOLDER / f"{'-'.join((plan.name, *only))}.json"
    unfinished = file.with_suffix(".part.json")
    with TemporaryDirectory(prefix="stoplog-bench-") as folder, ExitStack() as stack:
        bench = BenchContext(plan, Path(folder), stack, say)
        for stage in chosen:
            STAGE_RUNS[stage](bench)
            run = Run(
                facts=facts,
                rounds=plan.rounds,
                seconds=plan.seconds,
                results=bench.results,
                skipped=bench.skipped,
                disk_bytes=bench.disk_bytes,
            )
            _write(unfinished, run)
        say("stopping")
    unfinished.replace(file)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(rich_table(run))
    if plan.full:
        console.print(growth_markdown(run), highlight=False, markup=False)
    stderr_console.print(f"written: {file}", highlight=False)
    if not only:
        _plot(file)


def _write(file: Path, run: Run) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def _interrupted(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _prepare() -> None:
    """Download the peers' programs before anything is measured. The table names the missing ones."""
    for fetch in (peers_python, throttlecrab_server, envoy_ratelimit_server):
        stderr_console.print(f"[dim]{fetch.__name__}: ready, or fetched once (minutes)", highlight=False)
        try:
            fetch()
        except PeerMissing as exc:
            stderr_console.print(str(exc), highlight=False, markup=False)


def _plot(file: Path) -> None:
    """Plot a whole run beside its *file*."""
    picture = file.with_suffix(".png")
    try:
        plot = [peers_python(), "-m", "tests.benchmarks.plot", str(file), str(picture)]
        subprocess.run(plot, cwd=CHECKOUT, check=True, timeout=120)
    except PeerMissing as exc:
        stderr_console.print(f"no plot: {exc}", highlight=False)
    stderr_console.print("`make bench-readme` puts the last full run into README and docs", highlight=False)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--full"]
    if unknown := set(given) - STAGE_RUNS.keys():
        sys.exit(f"unknown stages: {' '.join(sorted(unknown))}; choose from {' '.join(STAGE_RUNS)}")
    main(FULL if "--full" in sys.argv[1:] else QUICK, given)
