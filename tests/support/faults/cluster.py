"""Three brokers that can be hurt: a clock of their own each, and a second way to them that can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient

from stoplog.errors import Unavailable
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.topics import CHECKS, DEFAULT_FILE, load_topics
from tests.support.broker import fresh_cluster
from tests.support.network_proxy import ProxiedBroker
from tests.support.programs import path_of
from tests.support.system import eventually

NODES: Final = 3


def shifted(ahead_s: int) -> dict[str, str]:
    """Environment of a Python process whose wall clock is *ahead_s* seconds ahead."""
    return {"PYTHONPATH": str(Path(__file__).with_name("shifted")), "CLOCK_AHEAD_S": str(ahead_s)}


def _faketime(ahead_s: int) -> dict[str, str]:
    """Environment of a JVM whose wall clock is *ahead_s* seconds ahead, and whose monotonic clock is right.

    A test that uses it is marked with ``needs("faketime")``.
    """
    return {
        "LD_PRELOAD": path_of("faketime"),
        "FAKETIME": f"{ahead_s:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # The JVM waits by the monotonic clock; the "fix" takes it for the other and lets it wait an hour.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


class Node(ProxiedBroker):
    """A broker with a clock that can be set, and a listener behind a :class:`~tests.support.network_proxy.NetworkProxy`."""

    ahead_s = 0
    """What its wall clock shows more than ours, from its next start on."""

    def _java(self, jars: Path) -> list[str]:
        clock = _faketime(self.ahead_s) if self.ahead_s else {}
        java, *options = super()._java(jars)
        # Compiled once and lightly: what three of them spend on compiling better is never earned back here.
        quick = ["-XX:TieredStopAtLevel=1"]
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in clock.items()), java, *quick, *options]


class Cluster:
    """The brokers, and the topics file that has everything on all of them."""

    def __init__(self, nodes: list[Node], topics: Path) -> None:
        self.nodes = nodes
        self.topics = topics
        self.bootstrap = ",".join(node.bootstrap for node in nodes)
        self.over_proxies = ",".join(f"127.0.0.1:{node.proxy.port}" for node in nodes)
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def create_lane(self, lane: str) -> None:
        """Create the topics of a further lane."""
        create_topics(self._admin, with_lanes(load_topics(self.topics), [lane]).values())

    def _partitions(self) -> dict[int, Any]:
        return dict(self._admin.list_topics(CHECKS, timeout=10).topics[CHECKS].partitions)

    def leader_of(self, partition: int) -> Node:
        """The node that leads *partition* of ``checks``."""
        leader: int = self._partitions()[partition].leader
        return self.nodes[leader - 1]

    def wait_in_sync(self) -> None:
        """Return when all nodes have all of ``checks``."""

        def in_sync() -> bool:
            return all(len(partition.isrs) == NODES for partition in self._partitions().values())

        eventually("all replicas in sync", in_sync, on_failure=self._told)

    def _told(self) -> str:
        """Who leads and follows, and the ends of the brokers' logs."""
        isrs = {number: (it.leader, it.isrs) for number, it in self._partitions().items()}
        return "\n".join([f"leaders, in sync: {isrs}", *(node.tail() for node in self.nodes)])

    def elect_preferred(self) -> None:
        """Have the partitions of ``checks`` led by the nodes that led them first."""
        places = [TopicPartition(CHECKS, partition) for partition in self._partitions()]
        # Per partition: done, or that nothing had to be.
        self._admin.elect_leaders(ElectionType.PREFERRED, places).result(20)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with topics: replication 3, of which 2 must have a record before it counts as written."""
    topics = folder / "topics.yaml"
    shipped = yaml.safe_load(DEFAULT_FILE.read_text())
    shipped["defaults"] |= {"replication": NODES, "min_insync": NODES - 1}
    topics.write_text(yaml.safe_dump(shipped))
    with ExitStack() as stack:
        nodes = stack.enter_context(fresh_cluster(NODES, kind=Node))
        for node in nodes:
            stack.callback(node.proxy.close)
        cluster = Cluster(nodes, topics)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})

        def made() -> bool:
            # A cluster that has just started may leave a first question unanswered.
            with suppress(Unavailable):
                create_topics(admin, load_topics(topics).values())
                return True
            return False

        eventually("topics", made)
        yield cluster
