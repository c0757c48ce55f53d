"""A topic is deleted and created again under load, on the cluster.

The system either keeps working, or the worker stops and logs the recovery procedure. There is no crash loop
and no silent loss. The test then follows the procedure, and the system works again.
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
from stoplog_gateway.local.child_process import USAGE_EXITS
from stoplog_worker.worker import EXIT_CONFIG

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
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
from tests.support.faults.oracle import Oracle, Truth, check_state, checkpointed
from tests.support.faults.partition_fold import Table
from tests.support.faults.rig import HEALTHY_S
from tests.support.system import PATIENCE_S, System, eventually

CLIENT: Final = "misplaced"


class TopicsBench(NamedTuple):
    """A cluster with a worker and a gateway, and the operations of these tests."""

    cluster: Cluster
    system: System

    @contextmanager
    def without(self, *topics: str) -> Iterator[None]:
        """Delete *topics*, and create them, empty, after the block."""
        admin = silent_admin(KafkaConnection(self.cluster.bootstrap))
        for future in admin.delete_topics(list(topics)).values():
            future.result(30)
        eventually(
            "the topics are gone", lambda: not admin.list_topics(timeout=10).topics.keys() & set(topics)
        )
        yield
        create_topics(admin, load_topics(self.cluster.topics).values())

    def recreate(self, *topics: str) -> None:
        """Delete *topics*, and create them, empty."""
        with self.without(*topics):
            pass

    def misplace_check(self) -> None:
        """Publish a check to another partition than its client's, so that it becomes a dead letter."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap})
        value = json.dumps({"client_id": CLIENT}).encode()
        producer.produce(CHECKS, value, partition=(partition_of(CLIENT, PARTITIONS) + 1) % PARTITIONS)
        assert producer.flush(30) == 0

    def last_dead_letter(self) -> dict[str, bytes]:
        """Return the headers of the last dead letter, or an empty dict if there is none."""
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

    def dead_letter_arrives(self) -> bool:
        """Misplace a check; return whether a misplaced check has become a dead letter."""
        self.misplace_check()
        return self.last_dead_letter().get("topic") == CHECKS.encode()

    def lose_dead_letter(self) -> str:
        """Misplace a check while its dead letter has no topic; return the worker's log line."""
        (worker,) = self.system.workers

        def lost() -> list[str]:
            return worker.lines("ERROR", "the dead letter of checks")

        before = len(lost())
        self.misplace_check()
        eventually("the loss is logged", lambda: len(lost()) > before, on_failure=self.system.logs)
        return lost()[-1]

    def roles(self) -> list[str]:
        """Return the roles of the nodes that the gateway lists, if its metric shows the same number."""
        (gateway,) = self.system.gateways
        roles = [node["role"] for node in gateway.report()["nodes"]]
        return roles if gateway.metric("stoplog_nodes") == len(roles) else []

    def check(self) -> None:
        """Check that the stored state follows from the present log."""
        oracle = Oracle(self.cluster.bootstrap)
        truths: list[Truth] = []
        stored: list[dict[str, Table]] = []

        def complete() -> bool:
            truths[:], stored[:] = oracle.read_with_stored()
            return checkpointed(truths, stored)

        eventually("the checkpoints are complete", complete)
        for partition, (truth, tables) in enumerate(zip(truths, stored, strict=True)):
            check_state(partition, truth, tables, "changelog")

    def await_healthy(self, load: Load) -> None:
        eventually(
            "the store answers all partitions",
            lambda: load.healthy_for(HEALTHY_S),
            on_failure=self.system.logs,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TopicsBench]:
    folder: Path = tmp_path_factory.mktemp("topics")
    with running_cluster(folder) as cluster, ExitStack() as stack:
        settings = {"kafka": cluster.bootstrap, "topics": cluster.topics, "deny_cache": 0}
        system = System(cluster.nodes[0], folder, stack, **settings)
        system.add_worker()
        system.add_gateway()
        system.wait_ready()
        yield TopicsBench(cluster, system)


NAMED = {COUNTERS_CHANGELOG: "counters", POLICIES_CHANGELOG: "policies"}
"""Names of topics in the log line of a stop."""


@pytest.mark.parametrize("topic", [CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES])
def test_worker_after_topic_recreated_stops_with_remedy(place: TopicsBench, topic: str) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    with running_load([gateway.url]) as load:
        place.await_healthy(load)
        # Versions are offsets: in the recreated topic, they are lower than these at first.
        for _ in range(20):
            gateway.set_limits("client-1", "7/minute")
        before = len(worker.lines("CRITICAL"))
        place.recreate(topic)
        eventually("the worker stops", lambda: worker.status is not None, on_failure=place.system.logs)
        assert worker.status == EXIT_CONFIG
        assert EXIT_CONFIG in USAGE_EXITS  # `stoplog up` does not start it again
        # The worker stops at each start: with its disk, and without.
        for start in (1, 2, 3):
            (line,) = worker.lines("CRITICAL")[before + start - 1 :]
            assert NAMED.get(topic, topic) in line
            assert "stop all workers, delete their tables and the topics of the changelogs" in line
            if start == 2:
                shutil.rmtree(worker.tables)
            if start < 3:
                worker.start()
                worker.join(PATIENCE_S)
                assert worker.status == EXIT_CONFIG
        shutil.rmtree(worker.tables)
        place.recreate(COUNTERS_CHANGELOG, POLICIES_CHANGELOG, *([CHECKS] if topic == UPDATES else []))
        worker.start()
        place.await_healthy(load)
    place.check()
    gateway.set_limits("client-1", "9/minute")
    assert gateway.check("client-1", cost=0)["limit"] == 9


def test_gateway_after_replies_recreated_gets_replies_again(place: TopicsBench) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    with running_load([gateway.url]) as load:
        place.await_healthy(load)
        place.recreate(REPLIES)
        place.await_healthy(load)
    assert worker.status is None
    place.check()
    oracle = Oracle(place.cluster.bootstrap)
    assert oracle.check_replies(oracle.read()) > 0


def test_system_without_nodes_and_dead_letters_keeps_answering(place: TopicsBench) -> None:
    (worker,), (gateway,) = place.system.workers, place.system.gateways
    pids = worker.pid, gateway.pid
    both = ["gateway", "worker"]
    with running_load([gateway.url]) as load:
        place.await_healthy(load)
        # The producers must know the topics before these are deleted.
        eventually("a dead letter arrives", place.dead_letter_arrives, on_failure=place.system.logs)
        eventually("the nodes are listed", lambda: place.roles() == both)
        with place.without(NODES, DEAD_LETTERS):
            eventually("no nodes are listed", lambda: not gateway.report()["nodes"])
            # For half a minute librdkafka accepts records for a deleted topic, then it refuses them.
            eventually("a dead letter is refused", lambda: "Unknown topic" in place.lose_dead_letter())
            assert gateway.metric("stoplog_nodes") == 0
            place.await_healthy(load)
        eventually("the nodes are listed again", lambda: place.roles() == both, on_failure=place.system.logs)
        eventually("a dead letter arrives again", place.dead_letter_arrives, on_failure=place.system.logs)
        place.await_healthy(load)
    assert (worker.status, gateway.status) == (None, None)
    assert (worker.pid, gateway.pid) == pids
    place.check()
    oracle = Oracle(place.cluster.bootstrap)
    assert oracle.check_replies(oracle.read()) > 0
