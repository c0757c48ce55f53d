"""The brokers of compose.yaml: three real brokers get their properties, and the topics are created there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from confluent_kafka.admin import ConfigResource

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import describe
from stoplog.topics import load_topics
from tests.support.broker import CHECKOUT, QuickBroker, fresh_cluster
from tests.support.up import stoplog

COMPOSE: Final[dict[str, Any]] = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text())
SERVICES: Final = COMPOSE["services"]
TOPICS: Final = CHECKOUT / "docker" / "topics.yaml"
IMAGES: Final = ("KAFKA_HEAP_OPTS",)
"""Variables of the image's scripts. All other variables that begin with KAFKA_ become properties."""


def properties(node: int) -> dict[str, str]:
    """Return the properties that the image derives from a broker's environment: KAFKA_NODE_ID is node.id."""
    environment = SERVICES[f"kafka-{node}"]["environment"]
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name not in IMAGES
    }


class ComposeBroker(QuickBroker):
    """A node with the properties of compose.yaml, and with hosts, ports and folder of this machine."""

    def _write_properties(self) -> Path:
        assert self._voters
        ours = properties(self._node_id)
        voters = ours["controller.quorum.voters"]
        assert voters == ",".join(f"{node}@kafka-{node}:9093" for node, _ in self._voters)
        ours["controller.quorum.voters"] = ",".join(f"{node}@127.0.0.1:{port}" for node, port in self._voters)
        ports = {"9092": self.port, "9093": self._controller_port, "9094": 0}
        listeners = re.sub(r"://:(\d+)", lambda it: f"://127.0.0.1:{ports[it[1]]}", ours["listeners"])
        ours["listeners"] = listeners
        advertised = re.fullmatch(
            rf"BROKER://kafka-{self._node_id}:9092,HOST://127\.0\.0\.1:(\d+)", ours["advertised.listeners"]
        )
        assert advertised, ours["advertised.listeners"]
        assert f"127.0.0.1:{advertised[1]}:9094" in SERVICES[f"kafka-{self._node_id}"]["ports"]
        ours["advertised.listeners"] = f"BROKER://{self.bootstrap},HOST://127.0.0.1:{advertised[1]}"
        ours["log.dirs"] = str(self._folder / "data")
        path = self._folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in ours.items()))
        return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[ComposeBroker]]:
    with fresh_cluster(3, kind=ComposeBroker) as brokers:
        yield brokers


def test_compose_broker_properties_are_known_and_in_force(cluster: list[ComposeBroker]) -> None:
    broker = cluster[0]
    admin = silent_admin(KafkaConnection(broker.bootstrap))
    resource = ConfigResource(ConfigResource.Type.BROKER, "1")
    (future,) = admin.describe_configs([resource]).values()
    known = {name: entry.value for name, entry in future.result(30).items()}
    here = ("listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs")
    for name, value in properties(1).items():
        assert name in known, f"no such property: {name}"
        assert name in here or known[name] == value, name


def test_compose_brokers_accept_worker_session_timeout() -> None:
    timeouts = {
        int(it["environment"]["STOPLOG_SESSION_TIMEOUT_MS"])
        for name, it in SERVICES.items()
        if name.startswith("worker-")
    }
    assert min(timeouts) >= int(properties(1)["group.min.session.timeout.ms"])


def test_compose_topics_are_created(cluster: list[ComposeBroker]) -> None:
    broker = cluster[0]
    env = {**os.environ, "STOPLOG_KAFKA": broker.bootstrap, "STOPLOG_TOPICS": str(TOPICS)}
    done = stoplog(*SERVICES["topics"]["command"], env=env)
    assert done.returncode == 0, done.stderr
    specs = load_topics(TOPICS)
    found = describe(silent_admin(KafkaConnection(broker.bootstrap)), specs)
    for name, spec in specs.items():
        assert len(found[name].partitions) == spec.partitions
        assert {len(partition.replicas) for partition in found[name].partitions} == {3}
