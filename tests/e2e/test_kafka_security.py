"""A whole system on a Kafka with TLS, credentials and ACLs: each role does its work, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import pytest
import trustme
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from stoplog_gateway.kafka_reachable import ensure_reachable

from stoplog import Limiter
from stoplog.client.settings import read_settings
from stoplog.errors import StoplogError
from stoplog.kafka.acls import READ, ROLES, WRITE, grants
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES, load_topics
from stoplog.wire.limit_updates import UpdateKey
from tests.support.secure_kafka import SecureKafka, secure_kafka, write_certificate
from tests.support.system import PATIENCE_S, Process, System, eventually
from tests.support.up import environment, stoplog

ERROR_S: Final = 10.0
"""Seconds within which a refused connection has to be explained."""

RIGHTS: Final = "grant what `stoplog topics acls` prints"

REFUSED: Final = ("TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """Yield a Kafka without topics that grants what `stoplog topics acls` prints."""
    with secure_kafka(*(f"stoplog-{role}" for role in (*ROLES, "nobody")), topics=False) as kafka:
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
        await until_ready(limiter)
        answer = await limiter.check("bob")
        assert (answer.allowed, answer.degraded) == (True, False)
        with pytest.raises(Exception, match="Topic authorization failed"):
            await limiter.set_limits(UpdateKey("client", "bob"), parse_policy("1/hour"))


async def test_admin_changes_limits(system: System, kafka: SecureKafka) -> None:
    async with Limiter(read_settings(**kafka.scram("stoplog-admin"), apply_timeout_ms=25_000)) as limiter:
        await until_ready(limiter)
        assert (await limiter.set_limits(UpdateKey("client", "carol"), parse_policy("1/hour"))).applied
    assert system.gateways[0].check("carol")["limit"] == 1


def test_publisher_writes_checks_that_are_decided(system: System, kafka: SecureKafka) -> None:
    check, partition = b'{"client_id": "dave", "cost": 7}', partition_of("dave", 4)
    assert produce(kafka.scram("stoplog-publisher"), "checks", check, partition) == [None]
    gateway = system.gateways[0]
    eventually("it is charged", lambda: gateway.check("dave", cost=0)["remaining"] == 93)


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


def refused(kafka: SecureKafka, case: str) -> dict[str, Any]:
    """Return the settings of a client that the broker refuses, or that refuses the broker."""
    files, scram = kafka.files, kafka.scram("stoplog-sdk")
    without_ca = {name: value for name, value in scram.items() if name != "kafka_ca_file"}
    match case:
        case "unknown authority":
            trustme.CA().cert_pem.write_to_path(str(files / "other-ca.pem"))
            return {**scram, "kafka_ca_file": str(files / "other-ca.pem")}
        case "foreign client certificate":
            foreign = files / "foreign.pem"
            write_certificate(trustme.CA(), foreign, "sdk.test", common_name="stoplog-sdk")
            return {
                **kafka.mtls("stoplog-sdk"),
                "kafka_cert_file": str(foreign),
                "kafka_key_file": str(foreign),
            }
        case "plaintext SASL to TLS":
            return {**without_ca, "kafka_security_protocol": "SASL_PLAINTEXT"}
        case "SASL to a listener without it":
            return {**scram, "kafka": kafka.broker.address("tls")}
    return {
        "wrong password of SCRAM": kafka.scram("stoplog-sdk", "wrong"),
        "wrong password of PLAIN": kafka.plain("stoplog-sdk", "wrong"),
        "wrong client secret": kafka.oauth("stoplog-sdk", "wrong"),
        "wrong mechanism": {**scram, "kafka_sasl_mechanism": "PLAIN"},
        "expired certificate of the broker": kafka.tls("expired"),
        "expired certificate of the client": kafka.mtls("stoplog-sdk", expired=True),
        "no client certificate": kafka.tls("mtls"),
        "plaintext to TLS": {"kafka": kafka.broker.address("tls")},
        "TLS to plaintext": {**scram, "kafka": kafka.broker.bootstrap},
    }[case]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("wrong password of SCRAM", r"refused the credentials .*: correct STOPLOG_KAFKA_USERNAME"),
        ("wrong password of PLAIN", r"refused the credentials .*: correct STOPLOG_KAFKA_USERNAME"),
        ("wrong client secret", r"answered 401 .*: check STOPLOG_KAFKA_OAUTH_CLIENT_ID"),
        ("wrong mechanism", r"STOPLOG_KAFKA_SASL_MECHANISM=PLAIN: set one that it accepts \(SCRAM-SHA-512\)"),
        ("unknown authority", r"is not trusted .*: set STOPLOG_KAFKA_CA_FILE"),
        ("expired certificate of the broker", r"is not valid now \(certificate has expired\): renew it"),
        ("expired certificate of the client", r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE"),
        ("foreign client certificate", r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE"),
        ("no client certificate", r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE"),
        ("plaintext to TLS", r"expects TLS, .*: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SSL,"),
        ("plaintext SASL to TLS", r"expects TLS, .*: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_SSL,"),
        (
            "TLS to plaintext",
            r"does not use TLS, .*STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_PLAINTEXT",
        ),
        ("SASL to a listener without it", r"does not use SASL: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SSL"),
    ],
)
def test_refused_connection_names_the_setting_and_the_remedy(
    case: str, text: str, kafka: SecureKafka
) -> None:
    began = monotonic()
    with pytest.raises(StoplogError, match=text) as error:
        ensure_reachable(connection(refused(kafka, case)), timeout_s=2)
    assert monotonic() - began < ERROR_S
    assert "wrong" not in str(error.value)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("wrong password of SCRAM", "refused the credentials"),
        ("wrong client secret", "no token for Kafka"),
        ("expired certificate of the broker", "certificate has expired"),
        ("plaintext to TLS", "expects TLS"),
    ],
)
def test_refused_gateway_fails_open_and_refused_worker_tries_again(
    case: str, text: str, kafka: SecureKafka, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        system = System(kafka.broker, tmp_path, stack, **refused(kafka, case), startup_s=1)
        gateway, worker = system.add_gateway(), system.add_worker()
        eventually("the gateway listens", gateway.listens, on_failure=system.logs)
        answer = gateway.check("alice")
        assert (answer["allowed"], answer["degraded"]) == (True, True)
        for process in (gateway, worker):
            eventually("the cause is logged", partial(logs, process, text), on_failure=system.logs)
        assert text in gateway.report()["store_why"]
        assert (gateway.status, worker.status) == (None, None)
        assert not gateway.lines("Traceback")
        assert not worker.lines("Traceback")


def test_gateway_without_rights_fails_open_and_names_the_command(kafka: SecureKafka, tmp_path: Path) -> None:
    with ExitStack() as stack:
        system = System(kafka.broker, tmp_path, stack, **kafka.scram("stoplog-nobody"), startup_s=1)
        gateway, worker = system.add_gateway(), system.add_worker()
        eventually("the gateway listens", gateway.listens, on_failure=system.logs)
        assert gateway.check("alice")["degraded"]
        for process in (gateway, worker):
            eventually("the cause is logged", partial(logs, process, RIGHTS), on_failure=system.logs)
        assert gateway.check("alice")["degraded"]
        assert (gateway.status, worker.status) == (None, None)


def logs(process: Process, text: str) -> bool:
    return bool(process.lines(text))


async def until_ready(limiter: Limiter) -> None:
    """Return once *limiter* receives replies. On a busy machine its first connection takes seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await limiter.ready()).ready:
            await asyncio.to_thread(sleep, 0.05)


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
        # Without the right to describe a topic, this fails. Without the right to read it, the fetch fails.
        if (unknown := consumer.list_topics(topic, 30).topics[topic].error) is not None:
            return str(unknown.name())
        consumer.assign([TopicPartition(topic, 0, 0)])
        while True:
            message: Message | None = consumer.poll(30)
            assert message is not None, f"{topic} was neither read nor refused"
            error = message.error()
            if error is None or error.name() == "_PARTITION_EOF":
                return None
            if "AUTHORIZATION" in error.name() and "GROUP" not in error.name():
                return error.name()
