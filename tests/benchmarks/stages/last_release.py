"""The worker beside that of the last release: the same batches for the same clients, two systems."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.benchmarks import cases_stoplog
from tests.benchmarks.context import BenchContext
from tests.support.old_release import OldRelease

STAGE: Final = "release"
RELEASE: Final = "0.2.0"
_CLIENTS: Final = 8_000


def released_worker(stack: ExitStack) -> dict[str, str]:
    """Return the environment in which a worker is that of the last release, until *stack* exits."""
    folder = stack.enter_context(TemporaryDirectory(prefix="stoplog-bench-"))
    return OldRelease(RELEASE, Path(folder)).env


def run(bench: BenchContext) -> None:
    """Measure both workers in the same rounds. There are more than usual, because they differ by little."""
    with ExitStack() as stack:
        systems = {
            "present": bench.start(stack),
            RELEASE: bench.start(stack, worker_env=released_worker(stack)),
        }
        cases = [
            cases_stoplog.published(
                stoplog,
                bench.plan,
                sdk,
                stage=STAGE,
                key=f"release-{version}",
                what=f"SDK, published, batches of 100, {_CLIENTS:,} clients, worker: {version}",
                clients=_CLIENTS,
            )
            for version, (stoplog, sdk) in systems.items()
        ]
        bench.measure(cases, rounds=2 * bench.plan.rounds)
