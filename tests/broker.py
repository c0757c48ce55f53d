"""Kafka for tests: the embedded broker, alone or as a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from confluent_kafka.admin import AdminClient

from gateway.broker import Broker, new_cluster_id
from gateway.jars import fetch_jars, jars_folder
from gateway.ports import free_port
from streams.contract.topics import create_topics, load_topics

AnyBroker = TypeVar("AnyBroker", bound=Broker)

CHECKOUT: Final = Path(__file__).resolve().parents[1]


def home_with_jars(folder: Path) -> Path:
    """Make *folder* a home that finds Kafka's jars in the checkout's ``.sluice``: fetched once for all."""
    cached = fetch_jars(CHECKOUT / ".sluice")
    jars = jars_folder(folder)
    jars.parent.mkdir(parents=True, exist_ok=True)
    jars.symlink_to(cached)
    return folder


def make_topics(bootstrap: str) -> None:
    """Create the topics of topics.yaml."""
    create_topics(AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}), load_topics().values())


@contextmanager
def fresh_broker(*, topics: bool = True) -> Iterator[Broker]:
    """A running broker of the caller's own, on free ports, its data gone afterwards.

    It starts in about 3 s, so a module (or a test that stops or pauses it) can have one for itself.
    """
    with TemporaryDirectory(prefix="sluice-test-") as folder:
        broker = Broker(home_with_jars(Path(folder)), port=free_port())
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
    kind: type[AnyBroker] = Broker,  # type: ignore[assignment]
) -> Iterator[list[AnyBroker]]:
    """Several brokers that replicate to each other; any of them may be stopped, killed or paused."""
    voters = [(node, free_port()) for node in range(1, nodes + 1)]
    cluster_id = new_cluster_id()
    with TemporaryDirectory(prefix="sluice-test-") as folder:
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
