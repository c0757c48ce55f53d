"""Checks from other Kafka producers, and the metrics of a worker, with a real broker, worker and gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import stoplog_worker.metrics
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, REPLIES
from tests.support.other_producer import OtherProducer, dead_letters, read
from tests.support.system import System, running_system

PARTITIONS = 4
REPLY_PARTITION = 3
FAUST_WEB_PORT = 6066
"""Port of Faust's own web server, which Stoplog switches off."""


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    # A busy machine does not miss this deadline, so no check fails open.
    with running_system(fresh_kafka, folder, deadline_ms=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def producer(fresh_kafka: Broker) -> OtherProducer:
    return OtherProducer(fresh_kafka.bootstrap)


def answer(bootstrap: str, id_: str) -> dict[str, Any]:
    """Return the reply with *id_*. The topic also has replies to gateways."""
    for message in read(bootstrap, TopicPartition(REPLIES, REPLY_PARTITION, OFFSET_BEGINNING)):
        value = message.value() or b""
        if value.startswith(b"{"):
            reply: dict[str, Any] = json.loads(value)
            if reply["id"] == id_:
                return reply
    raise AssertionError


def test_published_check_is_answered_on_its_reply_partition(system: System, producer: OtherProducer) -> None:
    client = "zoë"
    to = {"partition": REPLY_PARTITION, "id": "request-17"}
    partition, _ = producer.check(client, cost=2, reply_to=to)
    assert partition == partition_of(client, PARTITIONS)
    reply = answer(system.bootstrap, "request-17")
    assert 0 < reply.pop("reset_after_ms") <= 62_000
    assert reply == {
        "id": "request-17",
        "allowed": True,
        "limit": 100,
        "remaining": 98,
        "retry_after_ms": 0,
        "policy_version": -1,
    }
    producer.check(client, cost=99, reply_to={**to, "id": "request-18"})
    assert not answer(system.bootstrap, "request-18")["allowed"]
    assert system.gateways[0].check(client, cost=0)["remaining"] == 98


def test_published_peek_describes_every_window(system: System, producer: OtherProducer) -> None:
    system.gateways[0].set_limits("peeker", "5/second", "200/hour")
    producer.check("peeker", cost=3)
    producer.check("peeker", cost=0, reply_to={"partition": REPLY_PARTITION, "id": "peek"})
    reply = answer(system.bootstrap, "peek")
    assert reply["held_to"] == ["client", "peeker", ""]
    hour, second = reply["windows"]
    assert 0 < hour.pop("reset_after_ms") <= 3_660_000
    assert hour == {"limit": "200/hour", "used": 3}
    assert second["limit"] == "5/second"


def test_published_check_without_reply_to_is_counted(system: System, producer: OtherProducer) -> None:
    producer.check("silent", cost=7)
    producer.check("silent")
    # The checks are in the log before the gateway's, so the worker judges them first.
    assert system.gateways[0].check("silent", cost=0)["remaining"] == 92


def test_invalid_published_check_is_dead_lettered_and_others_judged(
    system: System, producer: OtherProducer
) -> None:
    client = "steady"
    home = partition_of(client, PARTITIONS)
    elsewhere = next(name for name in map(str, range(99)) if partition_of(name, PARTITIONS) != home)
    stray = json.dumps({"client_id": elsewhere}).encode()
    bad = {
        stray: "partition",
        b"\xff garbage": "version 255",
        b'{"client_id": ': "not a check",
        b'{"client_id": "steady", "cots": 1}': "cots",
        b'{"client_id": "steady", "cost": -1}': "cost",
        b'{"client_id": "\xff"}': "not a check",
        b"": "no value",
    }
    expected = {}
    producer.check(client)
    for value, reason in bad.items():
        expected[producer.publish(client, value, partition=home)] = (value, reason)
        producer.check(client)

    for source, letter in dead_letters(system.bootstrap):
        value, reason = expected.pop(source)
        assert (letter.topic, letter.key, letter.value) == (CHECKS, client.encode(), value)
        assert reason in letter.reason
        if not expected:
            break
    assert system.gateways[0].check(client, cost=0)["remaining"] == 100 - 1 - len(bad)
    assert system.gateways[0].check(elsewhere, cost=0)["remaining"] == 100


def test_worker_listens_only_for_metrics_on_loopback(system: System) -> None:
    assert system.workers[0].pid is not None
    connections = psutil.Process(system.workers[0].pid).net_connections(kind="all")
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    [(host, port)] = listening
    assert host == "127.0.0.1"
    assert port != FAUST_WEB_PORT

    page = httpx.get(f"http://{host}:{port}/metrics", trust_env=False).raise_for_status().text
    shown = {name for name in re.findall(r"# TYPE (\S+) ", page) if not name.endswith("_created")}
    documented = set(re.findall(r"^``(\w+)``", stoplog_worker.metrics.__doc__ or "", re.MULTILINE))
    assert len(documented) > 10
    # The library chooses the `process_*` metrics, so they are documented as a group.
    assert {name for name in shown if not name.startswith("process_")} == documented
    assert shown > documented
