"""Three brokers for fault tests. Each has a clock that can be set, and a listener that can be cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import NewPartitions

from stoplog.errors import Unavailable
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.topics import CHECKS, DEFAULT_FILE, load_topics
from tests.support.broker import fresh_cluster
from tests.support.network_proxy import ProxiedBroker
from tests.support.programs import path_of
from tests.support.system import eventually

NODES: Final = 3


def shifted(ahead_s: int) -> dict[str, str]:
    """Return the environment of a Python process whose wall clock is *ahead_s* seconds ahead."""
    return {"PYTHONPATH": str(Path(__file__).with_name("shifted")), "CLOCK_AHEAD_S": str(ahead_s)}


def _faketime(ahead_s: int) -> dict[str, str]:
    """Return the environment of a JVM whose wall clock is *ahead_s* seconds ahead.

    Its monotonic clock stays right.

    A test that uses it is marked with ``needs("faketime")``.
    """
    return {
        "LD_PRELOAD": path_of("faketime"),
        "FAKETIME": f"{ahead_s:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # The JVM waits by the monotonic clock. The "fix" would shift these waits too, by up to an hour.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


class Node(ProxiedBroker):
    """A broker with a clock that can be set.

    It has a second listener behind a :class:`~tests.support.network_proxy.NetworkProxy`.
    """

    ahead_s = 0
    """Seconds by which its wall clock is ahead, from its next start on."""

    def _java(self, jars: Path) -> list[str]:
        clock = _faketime(self.ahead_s) if self.ahead_s else {}
        java, *options = super()._java(jars)
        # The light compiler only: a test is too short for the better one to pay off in three brokers.
        light = ["-XX:TieredStopAtLevel=1"]
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in clock.items()), java, *light, *options]


class Cluster:
    """The brokers, and a topics file that places a replica of every topic on each of them."""

    def __init__(self, nodes: list[Node], topics: Path) -> None:
        self.nodes = nodes
        self.topics = topics
        self.bootstrap = ",".join(node.bootstrap for node in nodes)
        self.over_proxies = ",".join(f"127.0.0.1:{node.proxy.port}" for node in nodes)
        self._admin = silent_admin(KafkaConnection(self.bootstrap))

    def create_lane(self, lane: str) -> None:
        """Create the topics of a further lane."""
        create_topics(self._admin, with_lanes(load_topics(self.topics), [lane]).values())

    def _partitions(self) -> dict[int, Any]:
        return dict(self._admin.list_topics(CHECKS, timeout=10).topics[CHECKS].partitions)

    def leader_of(self, partition: int) -> Node:
        """Return the node that leads *partition* of ``checks``."""
        leader: int = self._partitions()[partition].leader
        return self.nodes[leader - 1]

    def wait_in_sync(self) -> None:
        """Return once every node is an in-sync replica of every partition of ``checks``."""

        def in_sync() -> bool:
            return all(len(partition.isrs) == NODES for partition in self._partitions().values())

        eventually("all replicas in sync", in_sync, on_failure=self._describe)

    def _describe(self) -> str:
        """Return leaders and in-sync replicas, and the last lines of the brokers' logs."""
        isrs = {number: (it.leader, it.isrs) for number, it in self._partitions().items()}
        return "\n".join([f"leaders, in sync: {isrs}", *(node.tail() for node in self.nodes)])

    def add_partition(self) -> int:
        """Give ``checks`` one more partition, as Kafka's own tools do.

        Returns:
            How many it has now.
        """
        wanted = len(self._partitions()) + 1
        self._admin.create_partitions([NewPartitions(CHECKS, wanted)])[CHECKS].result(30)
        eventually(
            "the partition exists", lambda: len(self._partitions()) == wanted, on_failure=self._describe
        )
        self.wait_in_sync()
        return wanted

    def elect_preferred(self) -> None:
        """Move the leadership of ``checks`` back to the nodes that led the partitions first."""
        places = [TopicPartition(CHECKS, partition) for partition in self._partitions()]
        # The result of a partition that its preferred node already leads is an error: ignore it.
        self._admin.elect_leaders(ElectionType.PREFERRED, places).result(20)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster with topics of replication 3. A record counts as written once 2 replicas have it."""
    topics = folder / "topics.yaml"
    shipped = yaml.safe_load(DEFAULT_FILE.read_text())
    shipped["defaults"] |= {"replication": NODES, "min_insync": NODES - 1}
    topics.write_text(yaml.safe_dump(shipped))
    with ExitStack() as stack:
        nodes = stack.enter_context(fresh_cluster(NODES, kind=Node))
        for node in nodes:
            stack.callback(node.proxy.close)
        cluster = Cluster(nodes, topics)
        admin = silent_admin(KafkaConnection(cluster.bootstrap))

        def created() -> bool:
            # A cluster that has just started may not answer a first request.
            with suppress(Unavailable):
                create_topics(admin, load_topics(topics).values())
                return True
            return False

        eventually("the topics are created", created)
        yield cluster
