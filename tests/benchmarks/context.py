"""The context of a run, shared by all its stages: the system under test, the load, the results so far."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from tests.benchmarks.bench_case import BenchCase, measure
from tests.benchmarks.cases_stoplog import warm
from tests.benchmarks.echo import create_echo_topics
from tests.benchmarks.load_http import wrk_missing
from tests.benchmarks.loader import Loader
from tests.benchmarks.peers.servers import PeerServer, envoy_ratelimit, redis
from tests.benchmarks.plan import CLIENT_COUNT, BenchPlan
from tests.benchmarks.samples import Result, Skipped
from tests.benchmarks.stoplog_system import FLUSH_MS, NEVER_REACHED, Stoplog, running_stoplog


class BenchContext:
    """The context of one run.

    Args:
        plan: How much is measured.
        folder: Directory for logs and the peers' data.
        stack: Stops everything that the run starts.
        say: Receives a line on the progress.
    """

    def __init__(self, plan: BenchPlan, folder: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
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
        command = [sys.executable, "-m", "tests.benchmarks.load_grpc"]
        self.grpc = stack.enter_context(self.loader("load-grpc", command))

    @cached_property
    def echo(self) -> tuple[Loader, int, int]:
        """The echo through the system's broker: its caller, and process ids of its server and the broker."""
        broker = self.stoplog.system.broker
        assert broker.pid is not None
        create_echo_topics(broker.bootstrap)
        module = [sys.executable, "-m", "tests.benchmarks.echo"]
        server = self.stack.enter_context(self.loader("echo", [*module, "server", broker.bootstrap]))
        caller = self.stack.enter_context(self.loader("echo-caller", [*module, "caller", broker.bootstrap]))
        return caller, server.pid, broker.pid

    @cached_property
    def paced(self) -> Loader:
        """The process that sends requests at a steady pace."""
        module = [sys.executable, "-m", "tests.benchmarks.load_paced"]
        return self.stack.enter_context(self.loader("load-paced", module))

    @cached_property
    def redis(self) -> PeerServer:
        """The Redis of the peers, which is started at the first use.

        Raises:
            PeerMissing: Redis is not installed.
        """
        return self.stack.enter_context(redis(self.folder))

    @cached_property
    def ratelimit(self) -> PeerServer:
        """envoyproxy/ratelimit with :attr:`redis`, which is started at the first use.

        Raises:
            PeerMissing: One of them cannot run here.
        """
        return self.stack.enter_context(envoy_ratelimit(self.folder, self.redis.port))

    def measure(self, cases: Sequence[BenchCase], *, rounds: int | None = None) -> list[Result]:
        """Measure *cases* in interleaved rounds, as many as the plan has or *rounds*; keep the results."""
        if not cases:
            return []
        results, skipped = measure(cases, rounds or self.plan.rounds, self.say)
        self.results += results
        self.skipped += skipped
        return results

    def skip(self, key: str, what: str, why: str) -> None:
        """Record that a case cannot be measured on this machine."""
        self.skipped.append(Skipped(key, what, why))

    def has_wrk(self, key: str, what: str) -> bool:
        """Return whether wrk can create load over HTTP; without it, skip the case and name the package."""
        if self._no_wrk:
            self.skip(key, what, self._no_wrk)
        return not self._no_wrk

    def loader(self, name: str, command: Sequence[str]) -> Loader:
        """Return a load process, a context manager."""
        return Loader(command, self.folder / f"{name}.log")

    def start(
        self,
        stack: ExitStack,
        *,
        partitions: int = 4,
        workers: int = 1,
        limits: str = NEVER_REACHED,
        clients: int = CLIENT_COUNT,
        flush_ms: int = FLUSH_MS,
        lease_max_ms: int = 0,
        worker_env: Mapping[str, str] | None = None,
    ) -> tuple[Stoplog, Loader]:
        """Start a system and a process that loads it through the SDK, and warm them up.

        Args:
            stack: Stops what is started.
            partitions: Partitions of ``checks``.
            workers: Number of workers.
            limits: Default limits of the system.
            clients: Number of clients during the warm-up.
            flush_ms: Checkpoint interval of the workers, in milliseconds.
            lease_max_ms: The longest lease that the gateway and the load process ask for; 0 turns leases off.
            worker_env: Environment of the workers, as that of an earlier release.
        """
        stoplog = stack.enter_context(
            running_stoplog(
                partitions=partitions,
                workers=workers,
                limits=limits,
                flush_ms=flush_ms,
                lease_max_ms=lease_max_ms,
                worker_env=worker_env,
            )
        )
        module = [sys.executable, "-m", "tests.benchmarks.load_sdk"]
        command = [*module, stoplog.system.bootstrap, str(stoplog.topics), str(lease_max_ms)]
        sdk = stack.enter_context(self.loader("load-sdk", command))
        warm(sdk, self.plan, clients)
        return stoplog, sdk
