"""A whole system on a Kafka with TLS, credentials and ACLs: each role does its work, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from stoplog import Limiter
from stoplog.client.settings import read_settings
from stoplog.kafka.acls import READ, ROLES, WRITE, grants
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES, load_topics
from stoplog.wire.limit_updates import UpdateKey
from tests.support.secure_kafka import SecureKafka, secure_kafka
from tests.support.system import System, eventually
from tests.support.up import environment, stoplog

REFUSED: Final = ("TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """Yield a Kafka without topics that grants what `stoplog topics acls` prints."""
    with secure_kafka(*(f"stoplog-{role}" for role in ROLES), topics=False) as kafka:
        printed = stoplog("topics", "acls", env=environment(tmp_path_factory.mktemp("home")))
        kafka.grant(printed.stdout)
        yield kafka


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"STOPLOG_{name.upper()}": value for name, value in settings.items()}


@pytest.fixture(scope="module")
def system(kafka: SecureKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a worker and a gateway whose topics an operator has created."""
    home = tmp_path_factory.mktemp("system")
    for role, command in (("operator", "create"), ("admin", "create"), ("operator", "verify")):
        env = environment(home, **variables(kafka.scram(f"stoplog-{role}")))
        done = stoplog("topics", command, env=env)
        assert done.returncode == 0, done.stderr
    with ExitStack() as stack:
        system = System(kafka.broker, home, stack, deadline_ms=2_000, apply_timeout_ms=25_000)
        system.add_worker(**kafka.scram("stoplog-worker"))
        system.add_gateway(**kafka.mtls("stoplog-gateway"))
        system.wait_ready()
        yield system


def test_gateway_changes_limits_and_its_checks_are_decided(system: System) -> None:
    gateway = system.gateways[0]
    assert gateway.set_limits("alice", "2/hour")["applied"]
    assert [gateway.check("alice")["allowed"] for _ in range(3)] == [True, True, False]
    assert gateway.http.get("/v1/limits/alice").json()["limits"] == ["2/hour"]


async def test_sdk_checks_and_may_not_change_limits(system: System, kafka: SecureKafka) -> None:
    async with Limiter(read_settings(**kafka.oauth("stoplog-sdk"), deadline_ms=5_000)) as limiter:
        answer = await limiter.check("bob")
        assert (answer.allowed, answer.degraded) == (True, False)
        with pytest.raises(Exception, match="Topic authorization failed"):
            await limiter.set_limits(UpdateKey("client", "bob"), parse_policy("1/hour"))


async def test_admin_changes_limits(system: System, kafka: SecureKafka) -> None:
    async with Limiter(read_settings(**kafka.scram("stoplog-admin"), apply_timeout_ms=25_000)) as limiter:
        assert (await limiter.set_limits(UpdateKey("client", "carol"), parse_policy("1/hour"))).applied
    assert system.gateways[0].check("carol")["limit"] == 1


def test_publisher_writes_checks_that_are_decided(system: System, kafka: SecureKafka) -> None:
    errors = produce(kafka.scram("stoplog-publisher"), "checks", b'{"client_id": "dave", "cost": 7}', 0)
    assert errors == [None]


def test_operator_verifies(system: System, kafka: SecureKafka, tmp_path: Path) -> None:
    env = environment(tmp_path, **variables(kafka.scram("stoplog-operator")))
    done = stoplog("verify", "--seconds", "1", env=env)
    assert done.returncode in (0, 3), done.stderr  # 3: no check was decided in this second
    assert "uthoriz" not in done.stderr


def test_worker_commits_its_lag_and_no_client_is_refused(system: System, kafka: SecureKafka) -> None:
    assert not [line for line in system.logs().splitlines() if "uthoriz" in line]


@pytest.mark.parametrize("role", ROLES)
def test_role_may_write_and_read_only_what_it_needs(role: str, system: System, kafka: SecureKafka) -> None:
    granted = {grant.name: grant.operations for grant in grants(role, load_topics(), [""])}
    settings = kafka.scram(f"stoplog-{role}")
    for topic in load_topics():
        if WRITE not in granted.get(topic, ()):
            assert set(produce(settings, topic, b"forged", 0)) <= {*REFUSED}, topic
        if READ not in granted.get(topic, ()):
            assert consume(settings, topic) in REFUSED, topic


@pytest.mark.parametrize("role", sorted(ROLES.keys() - {"gateway", "admin"}))
def test_only_gateways_and_administrators_write_limit_updates(
    role: str, system: System, kafka: SecureKafka
) -> None:
    [error] = produce(kafka.scram(f"stoplog-{role}"), UPDATES, b"{}", 0)
    assert error in REFUSED


@pytest.mark.parametrize("role", ROLES)
def test_role_may_not_create_foreign_topics_or_delete_any(
    role: str, system: System, kafka: SecureKafka
) -> None:
    admin = silent_admin(connection(kafka.scram(f"stoplog-{role}")))
    futures = [*admin.create_topics([NewTopic("foreign", 1, 1)]).values()]
    futures += admin.delete_topics(["checks"]).values()
    for future in futures:
        with pytest.raises(KafkaException) as refused:
            future.result(30)
        assert refused.value.args[0].name() in REFUSED


def test_worker_that_may_not_canonicalize_a_key_applies_the_update_and_says_so(
    system: System, kafka: SecureKafka
) -> None:
    producer = Producer({**connection(kafka.scram("stoplog-admin")).client_config(), "log_level": 0})
    key, partition = b'["client", "erin", ""]', partition_of("erin", 4)
    producer.produce(UPDATES, b'{"limits": ["3/hour"]}', key, partition)
    assert producer.flush(30) == 0
    gateway, worker = system.gateways[0], system.workers[0]
    eventually("it applies", lambda: gateway.check("erin", cost=0)["limit"] == 3, on_failure=system.logs)
    eventually(
        "the worker says what it lacks",
        lambda: bool(worker.lines("WARNING", "allow workers to write to limit-updates")),
        on_failure=system.logs,
    )
    assert gateway.set_limits("erin", "4/hour")["applied"]
    assert gateway.check("erin")["limit"] == 4


def connection(settings: Mapping[str, Any]) -> KafkaConnection:
    return read_settings(**settings).connection


def produce(settings: Mapping[str, Any], topic: str, value: bytes, partition: int) -> list[str | None]:
    """Return the name of the error of one record, or ``None``."""
    producer = Producer({**connection(settings).client_config(), "log_level": 0})
    errors: list[str | None] = []
    producer.produce(
        topic,
        value,
        b"key",
        partition,
        on_delivery=lambda error, _: errors.append(None if error is None else error.name()),
    )
    producer.flush(30)
    return errors


def consume(settings: Mapping[str, Any], topic: str) -> str | None:
    """Return the name of the error when *topic* is read, or ``None``."""
    config = {
        **connection(settings).client_config(),
        "log_level": 0,
        "group.id": "stoplog-gateway",
    }
    with closing(Consumer({**config, "enable.partition.eof": True})) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while True:
            message: Message | None = consumer.poll(30)
            assert message is not None, f"{topic} was neither read nor refused"
            error = message.error()
            if error is None or error.name() == "_PARTITION_EOF":
                return None
            if "AUTHORIZATION" in error.name() and "GROUP" not in error.name():
                return error.name()
