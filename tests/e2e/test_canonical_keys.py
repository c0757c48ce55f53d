"""A limit whose key a producer spelled with blanks, after its deletion and the broker's compaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.partitioning import partition_of
from stoplog.topics import UPDATES
from stoplog.wire.limit_updates import MOVED, UpdateKey, encode_update_key
from tests.support.broker import compact_at_once
from tests.support.system import System, eventually, running_system

CLIENT: Final = "spelled"
HOME: Final = partition_of(CLIENT, 4)
NEIGHBOR: Final = next(f"n-{n}" for n in range(99) if partition_of(f"n-{n}", 4) == HOME)
KEY: Final = encode_update_key(UpdateKey("client", CLIENT))
WITH_BLANKS: Final = b'["client", "spelled", ""]'


def topic(system: System) -> list[tuple[bytes, bytes | None]]:
    """Return key and value of every record in the client's partition of ``limit-updates``."""
    consumer = Consumer(
        {"bootstrap.servers": system.bootstrap, "group.id": "t", "enable.partition.eof": True}
    )
    try:
        consumer.assign([TopicPartition(UPDATES, HOME, 0)])
        found: list[Any] = []
        while True:
            message: Any = consumer.poll(30)
            assert message is not None
            if message.error() is not None:
                return found
            found.append((message.key(), message.value()))
    finally:
        consumer.close()


@pytest.mark.timeout(240)
def test_limit_spelled_with_blanks_stays_deleted_after_compaction(
    fresh_kafka: Broker, tmp_path: Path
) -> None:
    compact_at_once(fresh_kafka, UPDATES)
    with running_system(fresh_kafka, tmp_path, deadline_ms=20_000, apply_timeout_ms=20_000) as system:
        gateway = system.gateways[0]
        producer = Producer({"bootstrap.servers": system.bootstrap})
        producer.produce(UPDATES, b'{"limits": ["5/minute"]}', WITH_BLANKS, partition=HOME)
        assert producer.flush(30) == 0
        limits = [(KEY, b'{"limits":["5/minute"]}'), (WITH_BLANKS, MOVED)]
        eventually("it has the canonical key", lambda: topic(system)[-2:] == limits, on_failure=system.logs)
        assert gateway.check(CLIENT, cost=0)["limit"] == 5
        assert gateway.http.get(f"/v1/limits/{CLIENT}").status_code == 200
        version = gateway.check(CLIENT, cost=0)["policy_version"]
        assert gateway.http.delete(f"/v1/limits/{CLIENT}").status_code == 200

        numbers = iter(range(1, 10_000))

        def compacted() -> bool:
            # The broker compacts closed segments only. Each change begins a new segment.
            gateway.set_limits(NEIGHBOR, f"{next(numbers)}/minute")
            return all(key != KEY for key, _ in topic(system))

        eventually("the deletion is compacted away", compacted, on_failure=lambda: str(topic(system)))
        assert [value for key, value in topic(system) if key == WITH_BLANKS] == [MOVED]
        assert gateway.http.get(f"/v1/limits/{CLIENT}").status_code == 404
        listed = gateway.http.get("/v1/limits").json()["items"]
        assert CLIENT not in {item["id"] for item in listed}
        assert gateway.check(CLIENT, cost=0)["limit"] == 100
        assert version == 0, "the copy changed nothing"
