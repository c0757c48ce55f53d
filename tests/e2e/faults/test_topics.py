"""A topic deleted and made again under load, on the cluster: a clear stop that says what to do, or going on.

Never a crash loop, and never a silent loss. What the stop says is then done, and all is well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from stoplog_gateway.local.child_process import USAGE_EXITS
from stoplog_worker.worker import EXIT_CONFIG

from stoplog.kafka.topic_admin import create_topics
from stoplog.partitioning import partition_of
from stoplog.topics import (
    CHECKS,
    COUNTERS_CHANGELOG,
    DEAD_LETTERS,
    NODES,
    POLICIES_CHANGELOG,
    REPLIES,
    UPDATES,
    load_topics,
)
from stoplog.wire.format import headers_of
from tests.support.faults.cluster import Cluster, running_cluster
from tests.support.faults.load import PARTITIONS, Load, running_load
from tests.support.faults.oracle import Oracle, check_state, checkpointed
from tests.support.faults.rig import HEALTHY_S
from tests.support.system import System, eventually

CLIENT: Final = "misplaced"


class Place(NamedTuple):
    """A cluster of the module's own, with a worker and a gateway."""

    cluster: Cluster
    system: System

    @contextmanager
    def without(self, *topics: str) -> Iterator[None]:
        """Delete *topics*, and create them, empty, after the block."""
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap, "log_level": 0})
        for future in admin.delete_topics(list(topics)).values():
            future.result(30)
        eventually("they are gone", lambda: not admin.list_topics(timeout=10).topics.keys() & set(topics))
        yield
        create_topics(admin, load_topics(self.cluster.topics).values())

    def make_again(self, *topics: str) -> None:
        """Delete *topics*, and create them, empty."""
        with self.without(*topics):
            pass

    def misplace(self) -> None:
        """Publish a check to a partition that is not its client's: it is to be a dead letter."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap})
        value = json.dumps({"client_id": CLIENT}).encode()
        producer.produce(CHECKS, value, partition=(partition_of(CLIENT, PARTITIONS) + 1) % PARTITIONS)
        assert producer.flush(30) == 0

    def last_letter(self) -> dict[str, bytes]:
        """The headers of the last dead letter; none if there is none."""
        consumer = Consumer({"bootstrap.servers": self.cluster.bootstrap, "group.id": "letters"})
        try:
            _, end = consumer.get_watermark_offsets(TopicPartition(DEAD_LETTERS, 0), timeout=30)
            if not end:
                return {}
            consumer.assign([TopicPartition(DEAD_LETTERS, 0, end - 1)])
            message = consumer.poll(30)
            assert message is not None
            assert message.error() is None
            return dict(headers_of(message) or ())
        finally:
            consumer.close()

    def misplaced_arrives(self) -> bool:
        """Whether a misplaced check has become a dead letter."""
        self.misplace()
        return self.last_letter().get("topic") == CHECKS.encode()

    def lose_a_letter(self) -> str:
        """Misplace a check while its dead letter has no topic; returns what the worker says of it."""
        (worker,) = self.system.workers

        def lost() -> list[str]:
            return worker.lines("ERROR", "the dead letter of checks")

        before = len(lost())
        self.misplace()
        eventually("the loss is logged", lambda: len(lost()) > before, on_failure=self.system.logs)
        return lost()[-1]

    def roles(self) -> list[str]:
        """Of the nodes that the gateway tells of; its metric says as many."""
        (gateway,) = self.system.gateways
        roles = [node["role"] for node in gateway.report()["nodes"]]
        return roles if gateway.metric("stoplog_nodes") == len(roles) else []

    def check(self) -> None:
        """What is stored follows from what the log holds now."""
        oracle = Oracle(self.cluster.bootstrap)
        eventually("all is flushed", lambda: checkpointed(oracle.read(), oracle.stored()))
        for partition, (truth, stored) in enumerate(zip(oracle.read(), oracle.stored(), strict=True)):
            check_state(partition, truth, stored, "changelog")

    def await_well(self, load: Load) -> None:
        eventually("all is well", lambda: load.healthy_for(HEALTHY_S), on_failure=self.system.logs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder: Path = tmp_path_factory.mktemp("topics")
    with running_cluster(folder) as cluster, ExitStack() as stack:
        settings = {"kafka": cluster.bootstrap, "topics": cluster.topics, "deny_cache": 0}
        system = System(cluster.nodes[0], folder, stack, **settings)
        system.add_worker()
        system.add_gateway()
        system.wait_ready()
        yield Place(cluster, system)


NAMED = {COUNTERS_CHANGELOG: "counters", POLICIES_CHANGELOG: "policies"}
"""What a stop may call a topic."""


@pytest.mark.parametrize("topic", [CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES])
def test_worker_after_topic_recreated_stops_with_remedy(place: Place, topic: str) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    with running_load([gateway.url]) as load:
        place.await_well(load)
        # Versions are offsets: those of a topic that was made again are lower than these for long.
        for _ in range(20):
            gateway.set_limits("client-1", "7/minute")
        said = len(worker.lines("CRITICAL"))
        place.make_again(topic)
        eventually("the worker stops", lambda: worker.status is not None, on_failure=place.system.logs)
        assert worker.status == EXIT_CONFIG
        assert EXIT_CONFIG in USAGE_EXITS  # `stoplog up` does not start it again
        # As it is, started again, and with its disk lost.
        for start in (1, 2, 3):
            (line,) = worker.lines("CRITICAL")[said + start - 1 :]
            assert NAMED.get(topic, topic) in line
            assert "stop all workers, delete their tables and the topics of the changelogs" in line
            if start == 2:
                shutil.rmtree(worker.tables)
            if start < 3:
                worker.start()
                worker.join(60)
                assert worker.status == EXIT_CONFIG
        shutil.rmtree(worker.tables)
        place.make_again(COUNTERS_CHANGELOG, POLICIES_CHANGELOG, *([CHECKS] if topic == UPDATES else []))
        worker.start()
        place.await_well(load)
    place.check()
    gateway.set_limits("client-1", "9/minute")
    assert gateway.check("client-1", cost=0)["limit"] == 9


def test_gateway_after_replies_recreated_is_answered_again(place: Place) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    with running_load([gateway.url]) as load:
        place.await_well(load)
        place.make_again(REPLIES)
        place.await_well(load)
    assert worker.status is None
    place.check()
    oracle = Oracle(place.cluster.bootstrap)
    assert oracle.check_replies(oracle.read()) > 0


def test_system_without_nodes_and_dead_letters_keeps_answering(place: Place) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    pids = worker.pid, gateway.pid
    both = ["gateway", "worker"]
    with running_load([gateway.url]) as load:
        place.await_well(load)
        # Producers know the old topics.
        eventually("a dead letter", place.misplaced_arrives, on_failure=place.system.logs)
        eventually("nodes are seen", lambda: place.roles() == both)
        with place.without(NODES, DEAD_LETTERS):
            eventually("nodes are missed", lambda: not gateway.report()["nodes"])
            # For half a minute librdkafka takes records for a topic that is gone, then it refuses them.
            eventually("a letter is refused", lambda: "_UNKNOWN_TOPIC" in place.lose_a_letter())
            assert gateway.metric("stoplog_nodes") == 0
            place.await_well(load)
        eventually("nodes are seen again", lambda: place.roles() == both, on_failure=place.system.logs)
        eventually("a dead letter again", place.misplaced_arrives, on_failure=place.system.logs)
        place.await_well(load)
    assert (worker.status, gateway.status) == (None, None)
    assert (worker.pid, gateway.pid) == pids
    place.check()
    oracle = Oracle(place.cluster.bootstrap)
    assert oracle.check_replies(oracle.read()) > 0
