"""The worker's start finds, records and keeps the number of partitions, on a real broker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.partition_count import verified_specs
from stoplog_worker.settings import Settings

from stoplog.errors import TopicError
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES
from stoplog.wire.partition_count import KEY, PartitionCount
from tests.support.broker import fresh_broker, topics_file
from tests.support.system import eventually


@pytest.fixture
def broker() -> Iterator[Broker]:
    with fresh_broker() as broker:
        yield broker


def alter(admin: AdminClient, topic: str, partitions: int) -> None:
    """Add partitions to *topic*, as `kafka-topics.sh --alter` does."""
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)
    eventually(
        "the broker has the partitions",
        lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == partitions,
    )


def test_first_worker_records_the_number_with_which_the_changelogs_were_created(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    admin = silent_admin(KafkaConnection(broker.bootstrap))
    reader = PartitionCountReader(KafkaConnection(broker.bootstrap))
    ours = Settings(kafka=broker.bootstrap)
    theirs = Settings(kafka=broker.bootstrap, topics=topics_file(tmp_path / "topics.yaml", 8))

    # A system of an older release, whose `checks` was altered: the changelogs show how it began.
    alter(admin, CHECKS, 8)
    alter(admin, UPDATES, 8)
    with pytest.raises(TopicError, match=rf"{COUNTERS_CHANGELOG} has 4 partitions.*set partitions: 4"):
        verified_specs(theirs, admin, starting=True)
    verified_specs(ours, admin, starting=False)
    assert reader.read() is None
    specs, _ = verified_specs(ours, admin, starting=True)
    assert {specs[name].partitions for name in (CHECKS, UPDATES, COUNTERS_CHANGELOG)} == {4}
    assert "recorded in limit-updates that clients are hashed over 4 partitions" in caplog.text
    assert reader.read() == PartitionCount(4)

    # From now on the record decides.
    alter(admin, COUNTERS_CHANGELOG, 8)
    caplog.clear()
    assert verified_specs(theirs, admin, starting=True)[0][CHECKS].partitions == 4
    [warning] = [record.message for record in caplog.records]
    assert f"checks has 8 and limit-updates has 8 and {COUNTERS_CHANGELOG} has 8" in warning
    assert reader.read() == PartitionCount(4)

    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(UPDATES, b'{"version":3,"shards":4}', KEY, 0)
    assert producer.flush(30) == 0
    with pytest.raises(TopicError, match=r"format version 3 is not known here.*upgrade Stoplog"):
        verified_specs(ours, admin, starting=True)


def test_worker_without_a_record_refuses_changelogs_that_differ(broker: Broker) -> None:
    admin = silent_admin(KafkaConnection(broker.bootstrap))
    alter(admin, POLICIES_CHANGELOG, 8)
    with pytest.raises(TopicError, match=rf"{POLICIES_CHANGELOG} has 8 partitions.*has no record"):
        verified_specs(Settings(kafka=broker.bootstrap), admin, starting=True)
