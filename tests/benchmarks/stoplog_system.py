"""The measured system: the embedded broker, worker and gateway processes, as `stoplog up` starts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx
from confluent_kafka import Consumer, TopicPartition
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import add_token
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port
from stoplog_worker.settings import Settings

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.topics import CHECKS, load_topics
from tests.support.broker import CHECKOUT, home_with_jars
from tests.support.system import Process, System

_REJECTED_CHECKS: Final = 'stoplog_worker_checks_total{result="rejected"}'

NEVER_REACHED: Final = "1000000/minute"
"""The default limit of all cases, including the peers': a denial would be cheaper than an allowed check."""

LEASE_MAX_MS: Final = 10_000
"""The longest lease where leases are on."""

FLUSH_MS: Final[int] = Settings.model_fields["flush_interval_ms"].default
"""Default checkpoint interval of a worker, in milliseconds."""


class Stoplog:
    """One running system.

    Args:
        system: The processes.
        topics: The topics file.
        metrics: Ports of the workers' metrics.
        grpc_address: Address of Envoy's rate limit service at the first gateway.
        token: A token that the first gateway accepts with checks, and does not require.
    """

    def __init__(
        self, system: System, topics: Path, metrics: list[int], token: str, grpc_address: str
    ) -> None:
        self.system = system
        self.grpc_address = grpc_address
        self.token = token
        self._metrics = metrics
        self.topics = topics
        self.partitions = load_topics(topics)[CHECKS].partitions

    @property
    def url(self) -> str:
        """Return the URL of the first gateway."""
        return self.system.gateways[0].url

    def pids(self, gateway: int | None = 0) -> dict[str, list[int]]:
        """Return the process ids by part, with one *gateway*, or with none if the load is in its place."""
        broker = self.system.broker.pid
        assert broker is not None
        parts = {"worker": [_pid(worker) for worker in self.system.workers], "broker": [broker]}
        return parts if gateway is None else {"gateway": [_pid(self.system.gateways[gateway])], **parts}

    def disk_bytes(self) -> int:
        """Return the bytes of the workers' tables on disk."""
        folders = (self.system.folder / worker.name for worker in self.system.workers)
        files = (file for folder in folders for file in folder.rglob("*"))
        return sum(_allocated(file) for file in files)

    def records_of_checks(self) -> int:
        """Return how many records ``checks`` contains so far."""
        consumer = Consumer({"bootstrap.servers": self.system.bootstrap, "group.id": "bench"})
        try:
            places = [TopicPartition(CHECKS, partition) for partition in range(self.partitions)]
            return sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
        finally:
            consumer.close()

    def denied_by_workers(self) -> int:
        """Return how many checks the workers have denied so far."""
        pages = (
            httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text for port in self._metrics
        )
        lines = (line for page in pages for line in page.splitlines())
        return sum(int(float(line.split()[1])) for line in lines if line.startswith(_REJECTED_CHECKS))

    def partitions_of(self, worker: Process) -> list[int]:
        """Return the partitions that *worker* judges."""
        nodes = self.system.gateways[0].report()["nodes"]
        (node,) = (node for node in nodes if node["id"].startswith(f"{worker.name}@"))
        running = (p for p, state in node["partitions"].items() if state["state"] == "running")
        return sorted(map(int, running))


@contextmanager
def running_stoplog(
    *,
    partitions: int = 4,
    workers: int = 1,
    limits: str = NEVER_REACHED,
    flush_ms: int = FLUSH_MS,
    lease_max_ms: int = 0,
    worker_env: Mapping[str, str] | None = None,
) -> Iterator[Stoplog]:
    """Run a system on free ports; yield it ready, then delete its data.

    Args:
        partitions: Partitions of ``checks``.
        workers: Number of workers.
        limits: Its default limits.
        flush_ms: Checkpoint interval of the workers, in milliseconds.
        lease_max_ms: The longest lease that its gateway asks for. With leases, the system is ready once all
            partitions grant them.
        worker_env: Environment of the workers, as that of an earlier release.
    """
    with TemporaryDirectory(prefix="stoplog-bench-") as folder, ExitStack() as stack:
        home = home_with_jars(Path(folder, "home"))
        topics = home / "topics.yaml"
        text = (CHECKOUT / "topics.yaml").read_text()
        topics.write_text(text.replace("partitions: 4\n", f"partitions: {partitions}\n"))
        broker = Broker(home, port=free_port())
        stack.callback(broker.stop)
        broker.start()
        admin = silent_admin(KafkaConnection(broker.bootstrap))
        create_topics(admin, load_topics(topics).values())
        system = System(broker, home, stack, topics=topics, default_limits=limits, flush_interval_ms=flush_ms)
        metrics = [free_port() for _ in range(workers)]
        for port in metrics:
            system.add_worker(metrics_port=port, env=worker_env)
        tokens = home / "tokens"
        token = add_token(tokens, "bench", frozenset({Scope.ADMIN}))
        grpc_address = f"127.0.0.1:{free_port()}"
        measured = system.add_gateway(tokens_file=tokens, envoy=grpc_address, lease_max_ms=lease_max_ms)
        measured.http.headers["Authorization"] = f"Bearer {token}"
        system.wait_ready()
        if lease_max_ms:
            system.wait_reservations()
        yield Stoplog(system, topics, metrics, token, grpc_address)


def _pid(process: Process) -> int:
    assert process.pid is not None
    return process.pid


def _allocated(file: Path) -> int:
    try:
        return file.lstat().st_blocks * 512
    except FileNotFoundError:  # RocksDB has just replaced it
        return 0
