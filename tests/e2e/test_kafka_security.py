"""A whole system on a Kafka with TLS, credentials and ACLs: each role does its work, and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from time import monotonic, sleep, time
from typing import Any, Final

import pytest
import trustme
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from stoplog_gateway.kafka_reachable import ensure_reachable

from stoplog import Limiter
from stoplog.client.settings import read_settings
from stoplog.errors import StoplogError
from stoplog.kafka.acls import ROLES
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.lanes import with_lanes
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES, load_topics
from stoplog.wire.limit_updates import UpdateKey
from tests.support.broker import topics_file
from tests.support.meanwhile import meanwhile
from tests.support.secure_kafka import PASSWORD, SecureKafka, secure_kafka, write_certificate
from tests.support.system import PATIENCE_S, Gateway, Process, System, eventually
from tests.support.up import environment, stoplog

ERROR_S: Final = 30.0
"""Seconds within which a refused connection has to be explained: 10, on a machine three times slower."""

RIGHTS: Final = "grant what `stoplog topics acls` prints"

WRONG: Final = "wrong staple"
CHANGED: Final = "changed staple"

REFUSED: Final = ("TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED")

RIGHTS_TABLE: Final = """
                              gateway  sdk  publisher  admin  worker  operator  grower
checks                        w        w    w          w      rw      r         rwa
limit-updates                 rw       r    -          rw     r       r         rwa
replies                       r        r    r          r      w       r         -
nodes                         rw       rw   -          rw     rw      -         r
audit                         r        -    -          r      w       r         a
dead-letters                  -        -    -          -      w       r         -
stoplog-counters-changelog    -        -    -          -      rwd     r         rwa
stoplog-policies-changelog    -        -    -          -      rw      r         rwa
stoplog-b-counters-changelog  -        -    -          -      rwd     r         rwa
stoplog-b-policies-changelog  -        -    -          -      rw      r         rwa
"""
"""Rights of each role to read (r), write (w) and delete (d) records, and to add partitions (a), by topic.
Written by hand."""

_ROLES, *_ROWS = [line.split() for line in RIGHTS_TABLE.strip().splitlines()]

EXPECTED: Final = {
    role: {topic: set(rights[column]) - {"-"} for topic, *rights in _ROWS}
    for column, role in enumerate(_ROLES)
}

printed: list[str] = []
"""Everything that a command has printed."""


def command(*arguments: str, env: dict[str, str]) -> CompletedProcess[str]:
    """Run a command, and keep what it prints."""
    done = stoplog(*arguments, env=env)
    printed.extend((done.stdout, done.stderr))
    return done


def end_all(system: System) -> None:
    """Have all processes end at the same time."""
    for process in system.processes:
        if process.status is None:
            process.terminate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all processes of this module, and of their logs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def kafka(home: Path) -> Iterator[SecureKafka]:
    """Yield a Kafka without topics that grants what `stoplog topics acls` prints."""
    users = (f"stoplog-{role}" for role in (*_ROLES, "nobody", "blind"))
    with secure_kafka(*users, topics=False) as kafka:
        kafka.grant(command("topics", "acls", "--lanes", "2", env=environment(home)).stdout)
        yield kafka


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"STOPLOG_{name.upper()}": value for name, value in settings.items()}


@pytest.fixture(scope="module")
def system(kafka: SecureKafka, home: Path) -> Iterator[System]:
    """Yield two workers and two gateways whose topics an operator has created."""
    for role, *arguments in (
        ("operator", "create", "--lanes", "2"),
        ("admin", "create"),
        ("operator", "verify"),
    ):
        env = environment(home, **variables(kafka.scram(f"stoplog-{role}")))
        done = command("topics", *arguments, env=env)
        assert done.returncode == 0, done.stderr
        may_not_record = (role, arguments[0]) == ("operator", "create")
        assert ("run this command with the credentials of an administrator" in done.stderr) == may_not_record
    with ExitStack() as stack:
        system = System(
            kafka.broker, home, stack, deadline_ms=2_000, apply_timeout_ms=25_000, session_timeout_ms=6_000
        )
        system.add_worker(**kafka.scram("stoplog-worker"))
        system.add_worker(**kafka.mtls("stoplog-worker"))
        system.add_gateway(**kafka.mtls("stoplog-gateway"))
        system.add_gateway(**kafka.scram("stoplog-gateway", mechanism="SCRAM-SHA-256"))
        system.wait_ready()
        yield system
        end_all(system)


def test_gateway_changes_limits_and_its_checks_are_decided(system: System) -> None:
    gateway, other = system.gateways
    assert gateway.set_limits("alice", "2/hour")["applied"]
    assert [one.check("alice")["allowed"] for one in (gateway, other, other)] == [True, True, False]
    assert gateway.http.get("/v1/limits/alice").json()["limits"] == ["2/hour"]
    eventually(
        "the change is recorded",
        lambda: len(gateway.http.get("/v1/limits/alice/history").json()["items"]) == 1,
    )


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


def test_operator_verifies(system: System, kafka: SecureKafka, home: Path) -> None:
    env = environment(home, **variables(kafka.scram("stoplog-operator")))
    with meanwhile(lambda step: system.gateways[0].check(f"client-{step % 20}")):
        done = command("verify", "--seconds", "3", env=env)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_sdk_that_cannot_read_the_number_of_partitions_publishes_nothing_until_it_can(
    system: System, kafka: SecureKafka, tmp_path: Path
) -> None:
    blind = "kafka-acls.sh --add --allow-principal User:stoplog-blind"
    kafka.grant(
        f"{blind} --operation Write --topic checks --topic nodes\n"
        f"{blind} --operation Read --topic replies --topic nodes\n"
        f"{blind} --operation Describe --group stoplog-gateway"
    )
    other = topics_file(tmp_path / "topics.yaml", 8)
    settings = read_settings(**kafka.scram("stoplog-blind"), topics=str(other), deadline_ms=5_000)
    async with Limiter(settings) as limiter:
        async with asyncio.timeout(PATIENCE_S):
            while RIGHTS not in str((await limiter.ready()).reason):
                await asyncio.to_thread(sleep, 0.05)
        assert (await limiter.check("frank")).degraded
        assert limiter.metrics.batches._sum == 0
        kafka.grant(f"{blind} --operation Read --topic limit-updates")
        await until_ready(limiter)
        assert limiter.status().partitions == 4
        assert not (await limiter.check("frank")).degraded


def test_lanes_and_rebalances_need_no_further_rights(system: System, kafka: SecureKafka) -> None:
    (first, second), gateway = system.workers, system.gateways[0]

    def owners(lane: str) -> set[str]:
        nodes = [node for node in gateway.report()["nodes"] if node["lane"] == lane]
        return {
            node["id"] for node in nodes for one in node["partitions"].values() if one["state"] == "running"
        }

    lane_b = system.add_worker(**kafka.oauth("stoplog-worker"), lane="b")
    eventually("both workers decide", lambda: len(owners("a")) == 2, on_failure=system.logs)
    eventually("lane b decides", lambda: len(owners("b")) == 1, on_failure=system.logs)
    first.kill()
    eventually("one is left", lambda: len(owners("a")) == 1, on_failure=system.logs)
    for number in range(20):
        eventually("all are decided", lambda n=number: not gateway.check(f"client-{n}")["degraded"])  # type: ignore[misc]
    first.start()
    eventually("both workers decide", lambda: len(owners("a")) == 2, on_failure=system.logs)
    assert lane_b.stop() == 0
    assert gateway.metric("stoplog_lane_divergence_total") == 0
    assert second.status is None


def test_no_client_was_refused(system: System) -> None:
    assert not [line for process in system.processes for line in process.lines("uthoriz")]


@pytest.fixture(scope="module")
def rights(system: System, kafka: SecureKafka) -> dict[str, dict[str, set[str]]]:
    """Return what the broker's authorizer permits to each role."""
    with ThreadPoolExecutor(len(_ROLES)) as pool:
        return dict(zip(_ROLES, pool.map(partial(permitted, kafka), _ROLES), strict=True))


@pytest.mark.parametrize("role", EXPECTED)
def test_role_may_do_its_work_and_nothing_else(role: str, rights: dict[str, dict[str, set[str]]]) -> None:
    assert rights[role] == EXPECTED[role]


def test_table_covers_all_roles_and_topics() -> None:
    assert EXPECTED.keys() == ROLES.keys()
    assert all(rights.keys() == with_lanes(load_topics(), ["", "b"]).keys() for rights in EXPECTED.values())
    assert {role for role, rights in EXPECTED.items() if "w" in rights[UPDATES]} == {
        "gateway",
        "admin",
        "grower",
    }


@pytest.mark.parametrize("role", EXPECTED)
def test_role_may_not_create_foreign_topics_delete_any_or_use_groups_of_workers(
    role: str, system: System, kafka: SecureKafka
) -> None:
    settings = kafka.scram(f"stoplog-{role}")
    admin = silent_admin(connection(settings))
    futures = [*admin.create_topics([NewTopic("foreign", 1, 1)]).values()]
    futures += admin.delete_topics(["checks"]).values()
    for future in futures:
        with pytest.raises(KafkaException) as refused:
            future.result(30)
        assert refused.value.args[0].name() in REFUSED
    place = ConsumerGroupTopicPartitions("stoplog-owner", [TopicPartition("checks", 0)])
    offsets = admin.list_consumer_group_offsets([place])["stoplog-owner"]
    if role == "worker":
        assert offsets.result(30).group_id == "stoplog-owner"
    else:
        with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
            offsets.result(30)


def test_worker_that_may_not_canonicalize_a_key_applies_the_update_and_says_so(
    system: System, kafka: SecureKafka
) -> None:
    producer = Producer({**connection(kafka.scram("stoplog-admin")).client_config(), "log_level": 0})
    key, partition = b'["client", "erin", ""]', partition_of("erin", 4)
    producer.produce(UPDATES, b'{"limits": ["3/hour"]}', key, partition)
    assert producer.flush(30) == 0
    gateway, warning = system.gateways[0], "allow workers to write to limit-updates"
    eventually("it applies", lambda: gateway.check("erin", cost=0)["limit"] == 3, on_failure=system.logs)
    eventually(
        "its worker says what it lacks",
        lambda: any(worker.lines("WARNING", warning) for worker in system.workers),
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
        "wrong password of SCRAM": kafka.scram("stoplog-sdk", WRONG),
        "wrong password of PLAIN": kafka.plain("stoplog-sdk", WRONG),
        "wrong client secret": kafka.oauth("stoplog-sdk", WRONG),
        "wrong mechanism": {**scram, "kafka_sasl_mechanism": "PLAIN"},
        "expired certificate of the broker": kafka.tls("expired"),
        "expired certificate of the client": kafka.mtls("stoplog-sdk", expired=True),
        "no client certificate": kafka.tls("mtls"),
        "plaintext to TLS": {"kafka": kafka.broker.address("tls")},
        "TLS to plaintext": {**scram, "kafka": kafka.broker.bootstrap},
    }[case]


CASES: Final = {
    "wrong password of SCRAM": r"refused the credentials .*: correct STOPLOG_KAFKA_USERNAME",
    "wrong password of PLAIN": r"refused the credentials .*: correct STOPLOG_KAFKA_USERNAME",
    "wrong client secret": r"answered 401 .*: check STOPLOG_KAFKA_OAUTH_CLIENT_ID",
    "wrong mechanism": r"STOPLOG_KAFKA_SASL_MECHANISM=PLAIN: set one that it accepts \(SCRAM-SHA",
    "unknown authority": r"is not trusted .*: set STOPLOG_KAFKA_CA_FILE",
    "expired certificate of the broker": r"is not valid now \(certificate has expired\): renew it",
    "expired certificate of the client": r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE",
    "foreign client certificate": r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE",
    "no client certificate": r"refused this client's .*: set STOPLOG_KAFKA_CERT_FILE",
    "plaintext to TLS": r"expects TLS, .*: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SSL,",
    "plaintext SASL to TLS": r"expects TLS, .*: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_SSL,",
    "TLS to plaintext": r"does not use TLS, .*STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_PLAINTEXT",
    "SASL to a listener without it": r"does not use SASL: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SSL",
}


@pytest.mark.parametrize(("case", "text"), CASES.items(), ids=list(CASES))
def test_refused_connection_names_the_setting_and_the_remedy(
    case: str, text: str, refusals: dict[str, Future[tuple[float, str]]]
) -> None:
    seconds, error = refusals[case].result()
    assert re.search(text, error), error
    assert seconds < ERROR_S
    printed.append(error)


@pytest.fixture(scope="module")
def refusals(kafka: SecureKafka) -> Iterator[dict[str, Future[tuple[float, str]]]]:
    """Yield, for each case, after how many seconds an error came, and its text. All connect at once."""

    def attempt(case: str) -> tuple[float, str]:
        target, began = connection(refused(kafka, case)), monotonic()
        with pytest.raises(StoplogError) as error:
            ensure_reachable(target, timeout_s=3)
        return monotonic() - began, str(error.value)

    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {case: pool.submit(attempt, case) for case in CASES}


REFUSED_PARTS: Final = {
    "wrong password of SCRAM": "refused the credentials",
    "wrong client secret": "no token for Kafka",
    "expired certificate of the broker": "certificate has expired",
    "plaintext to TLS": "expects TLS",
    "no rights": RIGHTS,
}


@pytest.fixture(scope="module")
def parts(kafka: SecureKafka, system: System, home: Path) -> Iterator[dict[str, tuple[Gateway, Process]]]:
    """Yield a gateway and a worker for each case. All start at once."""
    folder = home / "refused"
    folder.mkdir()
    with ExitStack() as stack:
        refusing = System(kafka.broker, folder, stack, startup_s=1)
        found = {}
        for case in REFUSED_PARTS:
            settings = kafka.scram("stoplog-nobody") if case == "no rights" else refused(kafka, case)
            found[case] = refusing.add_gateway(**settings), refusing.add_worker(**settings)
        yield found
        end_all(refusing)


@pytest.mark.parametrize("case", REFUSED_PARTS)
def test_refused_gateway_fails_open_and_refused_worker_tries_again(
    case: str, parts: dict[str, tuple[Gateway, Process]]
) -> None:
    text, (gateway, worker) = REFUSED_PARTS[case], parts[case]
    eventually("the gateway listens", gateway.listens, on_failure=lambda: gateway.tail(20))
    answer = gateway.check("alice")
    assert (answer["allowed"], answer["degraded"]) == (True, True)
    for process in (gateway, worker):
        eventually(
            "the cause is logged",
            lambda process=process: bool(process.lines(text)),  # type: ignore[misc]
            on_failure=lambda process=process: process.tail(20),  # type: ignore[misc]
        )
    # A worker locks its folder once it has been loaded, and a gateway listens.
    began = (worker.tables / "lock").stat().st_mtime
    assert logged_at(worker.lines(text)[0]) - began < ERROR_S
    assert logged_at(gateway.lines(text)[0]) - logged_at(gateway.lines("the gateway listens")[0]) < ERROR_S
    eventually("the status has it", lambda: text in str(gateway.report()["store_why"]))
    for process in (gateway, worker):
        assert process.status is None
        assert not process.lines("Traceback")
        assert not process.lines("CRITICAL")


def test_credentials_that_change_while_parts_run_are_explained_and_used_again_once_restored(
    system: System, kafka: SecureKafka
) -> None:
    (by_certificate, by_password), (worker, worker_by_certificate, *_) = system.gateways, system.workers
    causes = {
        by_certificate: "certificate has expired",
        worker_by_certificate: "certificate has expired",
        by_password: "refused the credentials",
        worker: "refused the credentials",
    }
    pids = [process.pid for process in causes]
    kafka.set_password(("stoplog-gateway", "stoplog-worker"), CHANGED)
    write_certificate(kafka.authority, kafka.files / "broker-mtls.pem", "127.0.0.1", expired=True)
    kafka.broker.stop()
    kafka.broker.start()
    ready_at = time()
    for process, text in causes.items():
        eventually(
            "the cause is logged",
            lambda process=process, text=text: bool(process.lines(text)),  # type: ignore[misc]
            on_failure=system.logs,
        )
        assert logged_at(process.lines(text)[0]) - ready_at < ERROR_S, process.tail(30)
    for gateway in system.gateways:
        answer = gateway.check("alice")
        assert (answer["allowed"], answer["degraded"]) == (True, True)
    kafka.set_password(("stoplog-gateway", "stoplog-worker"), PASSWORD)
    eventually("the gateway is ready", by_password.ready, on_failure=system.logs)
    assert [process.pid for process in causes] == pids, "no process has ended"
    assert not [process.name for process in causes if process.lines("Traceback")]


def test_no_log_no_error_and_no_help_contains_a_secret(
    system: System, parts: object, kafka: SecureKafka, home: Path
) -> None:
    env = environment(
        home,
        STOPLOG_KAFKA_PASSWORD=PASSWORD,
        STOPLOG_KAFKA_OAUTH_CLIENT_SECRET=PASSWORD,
        STOPLOG_KAFKA_KEY_PASSWORD=PASSWORD,
    )
    with ThreadPoolExecutor() as pool:
        help_of = ("gateway", "worker", "topics")
        for done in pool.map(lambda name: command(name, "--help", env=env), help_of):
            assert "usage" in done.stdout.lower()
    by_token = command(
        "topics", "verify", env=environment(home, **variables(kafka.oauth("stoplog-operator")))
    )
    assert by_token.returncode == 0, by_token.stderr
    logs = [*home.rglob("*.log"), *home.rglob("*.log.*")]
    assert len(logs) >= len(system.processes) + 2 * len(REFUSED_PARTS)
    texts = [*printed, *(log.read_text(errors="replace") for log in logs)]
    assert kafka.endpoint.issued
    # A signed token ends with its signature.
    secrets = [PASSWORD, WRONG, CHANGED, *(token.rsplit(".", 1)[1] for token in kafka.endpoint.issued)]
    assert not [secret for secret in secrets for text in texts if secret in text]


def logged_at(line: str) -> float:
    """Return the time of a log line, seconds since the Unix epoch."""
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


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
    return [write(producer, topic, value, b"key", partition)]


def write(producer: Producer, topic: str, value: bytes, key: bytes | None, partition: int) -> str | None:
    """Return the name of the error of one record, or ``None``."""
    errors: list[str | None] = []
    try:
        producer.produce(
            topic,
            value,
            key,
            partition,
            on_delivery=lambda error, _: errors.append(None if error is None else error.name()),
        )
    except KafkaException as exc:  # the producer knows already that it may not write there
        name: str = exc.args[0].name()
        return name
    assert producer.flush(60) == 0
    return errors[0]


def permitted(kafka: SecureKafka, role: str) -> dict[str, set[str]]:
    """Try what the table is about; return what the authorizer permits to *role* in each topic."""
    config = {**connection(kafka.scram(f"stoplog-{role}")).client_config(), "log_level": 0}
    admin, producer = AdminClient(config), Producer(config)
    found: dict[str, set[str]] = {}
    reading = {
        "group.id": "stoplog-gateway",
        "enable.auto.commit": False,  # close() would try long to commit for a group that may not be used
        "enable.partition.eof": True,
    }
    with closing(Consumer({**config, **reading})) as consumer:
        for topic, spec in with_lanes(load_topics(), ["", "b"]).items():
            # The broker refuses a record without a key in a compacted topic, but first one without the right.
            compacted = "compact" in spec.cleanup
            outcomes = {"w": write(producer, topic, b"{", None, 0)}
            if (unknown := consumer.list_topics(topic, 60).topics[topic].error) is None:
                outcomes |= {"r": read_error(consumer, topic), "d": delete_error(admin, topic)}
                outcomes["a"] = alter_error(admin, topic, spec.partitions)
            else:  # the authorizer lets a principal describe what it may read, delete or alter
                outcomes |= dict.fromkeys("rda", unknown.name())
            harmless = {"w": "INVALID_RECORD"} if compacted else {"d": "POLICY_VIOLATION"}
            harmless["a"] = "INVALID_PARTITIONS"
            found[topic] = set()
            for right, error in outcomes.items():
                if error is None or error == harmless.get(right):
                    found[topic].add(right)
                else:
                    assert error in REFUSED, (role, topic, right, error)
    return found


def delete_error(admin: AdminClient, topic: str) -> str | None:
    """Return the name of the error when no record of *topic* is deleted, or ``None``."""
    try:
        admin.delete_records([TopicPartition(topic, 0, 0)])[TopicPartition(topic, 0)].result(60)
    except KafkaException as exc:
        return str(exc.args[0].name())
    return None


def alter_error(admin: AdminClient, topic: str, partitions: int) -> str | None:
    """Return the name of the error when *topic* gets the number of partitions that it has."""
    try:
        admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(60)
    except KafkaException as exc:
        return str(exc.args[0].name())
    return None


def read_error(consumer: Consumer, topic: str) -> str | None:
    """Return the name of the error when *topic*, which may be described, is read; or ``None``."""
    consumer.assign([TopicPartition(topic, 0, 0)])
    while True:
        message: Message | None = consumer.poll(60)
        assert message is not None, f"{topic} was neither read nor refused"
        error = message.error()
        if error is None or error.name() == "_PARTITION_EOF":
            return None
        if "AUTHORIZATION" in error.name() and "GROUP" not in error.name():
            return error.name()
