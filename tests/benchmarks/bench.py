"""What all stages of a run share: the system under test, the load, the results so far."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.case import Case, measure
from tests.benchmarks.cases_stoplog import warm
from tests.benchmarks.load_http import wrk_missing
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENTS, Plan
from tests.benchmarks.samples import Result, Skipped
from tests.benchmarks.stoplog_system import FLUSH_MS, GENEROUS, Stoplog, running_stoplog


class Bench:
    """One run.

    Args:
        plan: How much.
        folder: For logs and the peers' data.
        stack: Ends all that is started.
        say: Told what goes on.
    """

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.folder = folder
        self.stack = stack
        self.say = say
        self.results: list[Result] = []
        self.skipped: list[Skipped] = []
        self.disk_bytes: dict[str, float] = {}
        self._no_wrk = wrk_missing()
        say("starting Kafka, a worker and a gateway")
        self.stoplog, self.sdk = self.start(stack)

    def measure(self, cases: Sequence[Case], *, rounds: int | None = None, warm: bool = True) -> list[Result]:
        """Measure *cases* beside each other, in the plan's rounds or in *rounds*; keep what they gave."""
        if not cases:
            return []
        results, skipped = measure(cases, rounds or self.plan.rounds, self.say, warm=warm)
        self.results += results
        self.skipped += skipped
        return results

    def skip(self, key: str, what: str, why: str) -> None:
        """A case that cannot be measured here."""
        self.skipped.append(Skipped(key, what, why))

    def has_wrk(self, key: str, what: str) -> bool:
        """Whether load can come through HTTP; if not, the case is skipped with what to install."""
        if self._no_wrk:
            self.skip(key, what, self._no_wrk)
        return not self._no_wrk

    def loader(self, name: str, command: Sequence[str]) -> Loader:
        """A load process, to be entered."""
        return Loader(command, self.folder / f"{name}.log")

    def start(
        self,
        stack: ExitStack,
        *,
        partitions: int = 4,
        workers: int = 1,
        limits: str = GENEROUS,
        clients: int = CLIENTS,
        flush_ms: int = FLUSH_MS,
    ) -> tuple[Stoplog, Loader]:
        """A system, warmed up, and a process that loads it through the SDK; *stack* ends them.

        Args:
            stack: Ends what is started.
            partitions: Of ``checks``.
            workers: How many.
            limits: Its default.
            clients: How many ask while it warms up.
            flush_ms: The workers' flush interval.
        """
        stoplog = stack.enter_context(
            running_stoplog(partitions=partitions, workers=workers, limits=limits, flush_ms=flush_ms)
        )
        module = [sys.executable, "-m", "tests.benchmarks.load_sdk"]
        command = [*module, stoplog.system.bootstrap, str(stoplog.topics)]
        sdk = stack.enter_context(self.loader("load-sdk", command))
        warm(sdk, self.plan, clients)
        return stoplog, sdk
