"""Topics get more partitions by Kafka's own tools: the system continues with the number it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, DEAD_LETTERS, REPLIES, UPDATES
from stoplog.wire.partition_count import PartitionCount
from tests.support.broker import fresh_broker, topics_file
from tests.support.meanwhile import meanwhile
from tests.support.system import System, eventually, running_system
from tests.support.up import environment, stoplog

CLIENTS = [f"client-{number}" for number in range(40)]


@pytest.fixture
def broker() -> Iterator[Broker]:
    with fresh_broker() as broker:
        yield broker


def alter(broker: Broker, *topics: str) -> None:
    """Give *topics* eight partitions, as `kafka-topics.sh --alter` does."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.create_partitions([NewPartitions(topic, 8) for topic in topics]).values():
        future.result(30)

    def known() -> bool:
        found = admin.list_topics(timeout=10).topics
        return all(len(found[topic].partitions) == 8 for topic in topics)

    eventually("the broker has eight partitions", known)


def spend(system: System, cost: int = 1) -> list[int]:
    """Check every client; return what remains of each one's limit."""
    answers = [system.gateways[-1].check(client, cost=cost) for client in CLIENTS]
    assert not any(answer["degraded"] for answer in answers), system.logs()
    return [answer["remaining"] for answer in answers]


def test_system_whose_topics_get_more_partitions_continues_with_its_number(
    broker: Broker, tmp_path: Path
) -> None:
    with running_system(broker, tmp_path, deadline_ms=4_000) as system:
        (worker,), (first,) = system.workers, system.gateways
        assert PartitionCountReader(KafkaConnection(broker.bootstrap)).read() == PartitionCount(4)
        assert spend(system, 3) == [97] * len(CLIENTS)

        alter(broker, CHECKS, UPDATES, COUNTERS_CHANGELOG, REPLIES)
        eventually("the gateway reports it", lambda: bool(first.lines("checks has 8")))
        assert spend(system) == [96] * len(CLIENTS)
        assert first.ready(), first.tail(20)

        # A worker that crashes starts again, with its disk and without.
        worker.kill()
        worker.start()
        another = system.add_worker()
        system.add_gateway(deadline_ms=4_000)
        system.wait_ready()
        for client in CLIENTS[:8]:
            first.set_limits(client, "50/hour")
        assert spend(system) == [45] * 8 + [95] * (len(CLIENTS) - 8)

        # A topics.yaml that requires another number changes nothing either.
        other = topics_file(tmp_path / "topics.yaml", 8)
        third = system.add_gateway(deadline_ms=4_000, topics=other)
        last = system.add_worker(topics=other)
        worker.kill()
        another.kill()
        system.wait_ready()
        eventually("the last worker has everything", lambda: third.report()["store"] == "ok")
        assert spend(system) == [44] * 8 + [94] * (len(CLIENTS) - 8)

        env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
        with meanwhile(lambda _: spend(system, 0)):
            verified = stoplog("verify", "--seconds", "2", "--json", env=env)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert len(json.loads(verified.stdout)["partitions"]) == 4

        topics = stoplog("topics", "verify", "--json", env=env)
        report = json.loads(topics.stdout)
        assert (topics.returncode, report["partitions"]) == (0, 4)
        assert "over the 4 partitions" in report["difference"]
        assert "checks has 8" in report["difference"]
        assert len(first.lines("checks has 8")) == 1
        for process in (last, third):
            assert process.lines("topics.yaml requires 8", "Set partitions: 4"), process.tail(20)
        assert not any(process.lines("CRITICAL") for process in (*system.workers, *system.gateways))
        assert end(broker, DEAD_LETTERS) == 0, "the record of the number is no dead letter"


def end(broker: Broker, topic: str) -> int:
    """Return the end of the first partition of *topic*."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test"})
    try:
        _, offset = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
        return int(offset)
    finally:
        consumer.close()
