"""Topics are created and compared on a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import ConfigResource
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.errors import TopicError
from stoplog.kafka.clients import ExplainingAdmin, silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics, describe, verify_topics
from stoplog.topics import TopicSpec, load_topics
from tests.support.broker import fresh_broker, topics_file
from tests.support.up import environment, stoplog


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with fresh_broker(topics=False) as broker:
        yield broker


@pytest.fixture(scope="module")
def admin(broker: Broker) -> ExplainingAdmin:
    return silent_admin(KafkaConnection(broker.bootstrap))


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> TopicSpec:
    """Return the spec of ``checks`` under a name of the test's own."""
    return msgspec.structs.replace(load_topics()["checks"], name=request.node.name[:200])


def test_verify_topics_with_missing_topic_names_remedy(admin: ExplainingAdmin, spec: TopicSpec) -> None:
    with pytest.raises(TopicError, match=rf"topic {spec.name} does not exist: run `stoplog topics create`"):
        verify_topics(admin, [spec])


def test_create_topics_twice_is_idempotent_and_applies_settings(admin: ExplainingAdmin) -> None:
    specs = load_topics()

    assert sorted(create_topics(admin, specs.values())) == sorted(specs)

    assert create_topics(admin, specs.values()) == []
    for name, found in describe(admin, specs).items():
        assert len(found.partitions) == specs[name].partitions
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        config = admin.describe_configs([resource])[resource].result(timeout=10)
        assert {key: config[key].value for key in specs[name].config()} == specs[name].config()


def test_create_topics_of_lane_creates_its_changelogs(broker: Broker, tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
    assert stoplog("topics", "create", env=env).returncode == 0
    missing = stoplog("topics", "verify", "--lanes", "2", env=env)
    assert missing.returncode == 1
    assert "run `stoplog topics create --lane b`" in missing.stderr

    created = stoplog("topics", "create", "--lanes", "2", "--lane", "blue", "--json", env=env)
    assert sorted(json.loads(created.stdout)["created"]) == [
        f"stoplog-{lane}-{table}-changelog" for lane in ("b", "blue") for table in ("counters", "policies")
    ]
    assert stoplog("topics", "verify", "--lanes", "2", "--lane", "blue", env=env).returncode == 0
    refused = stoplog("topics", "create", "--lane", "B", env=env)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


def test_verify_topics_with_too_few_partitions_is_refused(admin: ExplainingAdmin, spec: TopicSpec) -> None:
    create_topics(admin, [spec])
    larger = msgspec.structs.replace(spec, partitions=8)
    with pytest.raises(TopicError, match=r"has 4 partitions, but topics\.yaml requires 8: set partitions: 4"):
        verify_topics(admin, [larger])
    with pytest.raises(TopicError, match=r"has 4 partitions, but clients are hashed over 8\..* delete it"):
        verify_topics(admin, [larger], recorded=True)
    with pytest.raises(TopicError, match=r"or run `kafka-topics.sh --alter --topic .* --partitions 8`"):
        verify_topics(admin, [msgspec.structs.replace(larger, copartitioned=False)])


def test_verify_topics_with_further_partitions_returns_their_number(
    admin: ExplainingAdmin, spec: TopicSpec
) -> None:
    create_topics(admin, [spec])
    assert verify_topics(admin, [msgspec.structs.replace(spec, partitions=2)]) == {spec.name: 4}


def test_verify_topics_with_other_timestamp_type_is_refused(admin: ExplainingAdmin, spec: TopicSpec) -> None:
    create_topics(admin, [msgspec.structs.replace(spec, timestamp="CreateTime")])
    with pytest.raises(TopicError, match=r"message\.timestamp\.type=CreateTime and needs LogAppendTime"):
        verify_topics(admin, [spec])


def test_create_topics_with_too_many_replicas_is_refused(admin: ExplainingAdmin, spec: TopicSpec) -> None:
    with pytest.raises(TopicError, match=rf"refused to create topic {spec.name} "):
        create_topics(admin, [msgspec.structs.replace(spec, replication=3)])


def test_topics_commands_create_and_verify(broker: Broker, admin: ExplainingAdmin, tmp_path: Path) -> None:
    other = load_topics()
    env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
    assert stoplog("topics", "create", env=env).returncode == 0

    again = stoplog("topics", "create", "--json", env=env)
    report = {"created": [], "partitions": 4, "difference": None}
    assert (again.returncode, json.loads(again.stdout)) == (0, report)
    verified = stoplog("topics", "verify", "--json", env=env)
    report = {"verified": list(other), "partitions": 4, "difference": None}
    assert (verified.returncode, json.loads(verified.stdout)) == (0, report)
    assert "they agree with" in stoplog("topics", "verify", env=env).stdout

    # The number is recorded: a lane that is added later gets it, whatever topics.yaml requires.
    env["STOPLOG_TOPICS"] = str(topics_file(tmp_path / "topics.yaml", 8))
    added = stoplog("topics", "create", "--lane", "c", env=env)
    assert added.returncode == 0, added.stderr
    assert "although topics.yaml requires 8. Set partitions: 4" in added.stdout
    assert len(describe(admin, ["stoplog-c-counters-changelog"]).popitem()[1].partitions) == 4
