"""Only workers can change limits through ``checks``, no other producer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.partitioning import partition_of
from stoplog.policy import UNLIMITED
from stoplog.topics import CHECKS, DEAD_LETTERS, load_topics
from stoplog.wire.checks import decode_checks_record, encode_update
from stoplog.wire.limit_updates import Signature, Update
from tests.support.broker import fresh_broker
from tests.support.relay import NEW, OLD, OTHER, authority
from tests.support.system import System, eventually, running_system
from tests.support.up import environment, stoplog

PARTITIONS: Final = 4
BLOCKED: Final = "mallory"
HOME: Final = partition_of(BLOCKED, PARTITIONS)
LATE_MS: Final = 20_000
"""A check waits for its answer while workers restart, on a slow machine."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with fresh_broker() as broker:
        admin = silent_admin(KafkaConnection(broker.bootstrap))
        create_topics(admin, with_lanes(load_topics(), ["b"]).values())
        yield broker


def forge(system: System, update: Update, partition: int = HOME) -> None:
    """Write *update* to ``checks``, as any producer of checks may."""
    producer = Producer({"bootstrap.servers": system.bootstrap})
    producer.produce(CHECKS, encode_update(update), partition=partition)
    assert producer.flush(30) == 0


def updates(system: System, partition: int = HOME) -> list[Update]:
    """Return the updates in a partition of ``checks``."""
    contents = [decode_checks_record(record.value) for record in system.records(partition)]
    return [content for content in contents if isinstance(content, Update)]


def last_key(system: System) -> str | None:
    """Return the id of the key that signed the last update; ``None`` if it was not signed."""
    signature = updates(system)[-1].signature
    return signature.key_id if signature is not None else None


def change(system: System, limit: str) -> int:
    """Change the client's limit; return the version."""
    version: int = system.gateways[0].set_limits(BLOCKED, limit)["policy_version"]
    return version


def remaining(system: System) -> int:
    answer = system.gateways[0].check(BLOCKED, cost=0)
    assert not answer["degraded"], system.logs()
    left: int = answer["remaining"]
    return left


def refusals(system: System) -> list[str]:
    """Return the reason of each dead letter."""
    consumer = Consumer({"bootstrap.servers": system.bootstrap, "group.id": "letters"})
    place = TopicPartition(DEAD_LETTERS, 0, 0)
    try:
        _, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([place])
        found: list[Any] = [consumer.poll(30) for _ in range(end)]
        return [dict(message.headers())["reason"].decode() for message in found]
    finally:
        consumer.close()


def test_forged_version_neither_frees_a_client_nor_stops_later_changes(
    broker: Broker, tmp_path: Path
) -> None:
    with running_system(broker, tmp_path, deadline_ms=LATE_MS, apply_timeout_ms=LATE_MS) as system:
        version = change(system, "0/minute")
        for forged in (2**62, version + 2**32 + 1):
            forge(system, Update(forged, "client", BLOCKED, "", UNLIMITED))
        assert not system.gateways[0].check(BLOCKED)["allowed"]
        change(system, "5/minute")
        assert remaining(system) == 5
        assert sum("more than 4,294,967,296 above" in reason for reason in refusals(system)) == 2


def test_keys_are_switched_on_and_rotated_over_two_lanes_under_load(broker: Broker, tmp_path: Path) -> None:
    with running_system(broker, tmp_path, deadline_ms=LATE_MS, apply_timeout_ms=LATE_MS) as system:
        gateway, lane_a = system.gateways[0], system.workers[0]
        lane_b = system.add_worker(lane="b")
        eventually("both lanes run", lambda: lanes(system) == {"a", "b"}, on_failure=system.logs)
        changes = iter(range(10, 1_000))
        with load(system):
            change(system, f"{next(changes)}/minute")
            assert last_key(system) is None

            lane_a.restart(relay_keys=OLD)
            change(system, f"{next(changes)}/minute")
            assert last_key(system) is None, "lane b could not verify it"

            lane_b.restart(relay_keys=OLD)

            def signed_with(key_id: str) -> bool:
                change(system, f"{next(changes)}/minute")
                return last_key(system) == key_id

            eventually("updates are signed", lambda: signed_with("old"), on_failure=system.logs)

            # Half-rotated lanes: both accept the new key before one signs with it.
            lane_a.restart(relay_keys=f"{OLD},{NEW}")
            lane_b.restart(relay_keys=f"{NEW},{OLD}")
            eventually("the new key signs", lambda: signed_with("new"), on_failure=system.logs)
            lane_a.restart(relay_keys=f"{NEW},{OLD}")
            limit = next(changes)
            change(system, f"{limit}/minute")
        assert gateway.metric("stoplog_lane_divergence_total") == 0
        assert remaining(system) == limit

        before = len(refusals(system))
        at_rest = updates(system)[-1]
        forged = msgspec.structs.replace(at_rest, version=at_rest.version + 1, policy=UNLIMITED)
        unknown = authority(OTHER).sign(forged, "other")
        unsigned = msgspec.structs.replace(forged, signature=None)
        for update in (
            unsigned,
            unknown,
            forged,
            msgspec.structs.replace(forged, signature=Signature("old", b"")),
        ):
            forge(system, update)
        # A copy of a plan's update would be as valid in another partition.
        assert gateway.http.put("/v1/plans/gold", json={"limits": ["7/minute"]}).status_code == 200
        plan = next(update for update in updates(system) if update.kind == "plan")
        forge(system, plan, partition=(HOME + 1) % PARTITIONS)
        expected = {
            "has no signature": 2,
            "relay key 'other', which is not in": 2,
            "is forged, or was copied": 6,
        }

        def counts() -> dict[str, int]:
            reasons = refusals(system)[before:]
            return {text: sum(text in reason for reason in reasons) for text in expected}

        eventually("both lanes refuse each", lambda: counts() == expected, on_failure=lambda: str(counts()))
        assert remaining(system) == limit
        change(system, "3/minute")
        assert remaining(system) == 3
        assert gateway.metric("stoplog_lane_divergence_total") == 0

        verified(system, tmp_path, 0, changes, STOPLOG_RELAY_KEYS=f"{OLD},{NEW}")
        error = verified(system, tmp_path, 3, changes)
        assert "relay key 'new'" in error


def lanes(system: System) -> set[str]:
    """Return the lanes whose workers decide every partition."""
    return {
        node["lane"]
        for node in system.gateways[0].report()["nodes"]
        if [p["state"] for p in node["partitions"].values()] == ["running"] * PARTITIONS
    }


class load:  # noqa: N801 - a context manager
    """Send checks of many clients during the block. None of them may fail open."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._stopping = threading.Event()
        self._answers: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._stopping.wait(0.01):
            number += 1
            self._answers.append(self._system.gateways[0].check(f"client-{number % 40}"))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        assert self._answers
        assert not any(answer["degraded"] for answer in self._answers), self._system.logs()


def verified(system: System, tmp_path: Path, status: int, changes: Iterator[int], **env: str) -> str:
    """Run ``stoplog verify`` while limits change, and expect its exit *status*; return its errors."""
    stopping = threading.Event()

    def keep_changing() -> None:
        while not stopping.wait(0.2):
            change(system, f"{next(changes)}/minute")
            system.gateways[0].check(BLOCKED)

    thread = threading.Thread(target=keep_changing)
    thread.start()
    try:
        env = environment(tmp_path, STOPLOG_KAFKA=system.bootstrap, **env)
        done = stoplog("verify", "--seconds", "2", "--json", env=env)
    finally:
        stopping.set()
        thread.join()
    assert done.returncode == status, done.stdout + done.stderr
    if status == 0:
        assert json.loads(done.stdout)["policies"] > 0
    return done.stderr
