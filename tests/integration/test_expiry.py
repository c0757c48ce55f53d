"""Expired clients are deleted at the owner, at a standby and in the changelog, on a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import State, encode_state
from stoplog_worker.state.store import COUNTERS, PartitionStore

from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG
from stoplog.wire.checks import Batch, Check, encode_batch
from tests.support.system import eventually
from tests.support.worker_bench import (
    CLIENTS,
    FAST,
    PARTITIONS,
    WAIT_S,
    Bench,
    open_store,
    running_restorer,
)

PARTITION = 2
IDLE = next(
    name
    for name in (f"idle-{number}" for number in range(100))
    if partition_of(name, PARTITIONS) == PARTITION
).encode()
MINUTE = 60_000
LATER = 2_000 * MINUTE


def test_idle_client_expires_at_owner_and_standby(fresh_kafka: Broker, tmp_path: Path) -> None:
    bench = Bench(
        fresh_kafka, tmp_path / "owner", PARTITION, expiry_pass_s=0, default_limits="5/second", **FAST
    )
    standby = open_store(PARTITION, tmp_path / "standby")
    busy = CLIENTS[PARTITION].encode()

    def holds(store: PartitionStore, client: bytes) -> bool:
        return store.get(COUNTERS, client) is not None

    def gone() -> bool:
        bench.check(1)  # the partition's time advances only with the log
        return not holds(bench.store, IDLE) and not holds(standby, IDLE)

    try:
        with running_restorer(fresh_kafka, standby, expiry_pass_s=0):
            assert bench.start()
            batch = Batch(PARTITION, 4711, 0, [Check(IDLE.decode())])
            bench.produce(CHECKS, encode_batch(batch))
            bench.check(1)
            eventually("the client is stored", lambda: holds(bench.store, IDLE) and holds(standby, IDLE))
            eventually("the client has expired", gone)
            eventually("the busy client is stored", lambda: holds(bench.store, busy) and holds(standby, busy))
            eventually("the changelog has lost the client", lambda: IDLE not in changelog(bench))
            assert busy in changelog(bench)
        assert bench.metrics.registry.get_sample_value("stoplog_worker_swept_clients_total") == 1
    finally:
        bench.close()


def changelog(bench: Bench) -> set[bytes]:
    """Return the clients that a worker without a disk would restore."""
    bench.check(1)
    return {key for key, _ in bench.changelog(COUNTERS_CHANGELOG)}


@pytest.mark.parametrize("bench", [(0, FAST)], indirect=True)
def test_standby_behind_changelog_beginning_restores_from_scratch(
    bench: Bench, fresh_kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def state(position: int, *charges: int) -> bytes:
        return encode_state(State(position, {MINUTE: Window(MINUTE, [LATER] * len(charges), list(charges))}))

    def write(key: bytes, value: bytes) -> None:
        bench.produce(COUNTERS_CHANGELOG, value, key)

    standby = open_store(0, tmp_path / "standby")
    write(b"zoe", state(1, 9))
    with running_restorer(fresh_kafka, standby) as hand_over:
        assert hand_over().get(COUNTERS, b"zoe") == state(1, 9)
    # While the standby is away, one client is reset, which may then expire, and another one is charged.
    write(b"zoe", state(2))
    write(b"amy", state(3, 1))
    admin = AdminClient({"bootstrap.servers": fresh_kafka.bootstrap})
    [deleted] = admin.delete_records([TopicPartition(COUNTERS_CHANGELOG, 0, 2)]).values()
    deleted.result(WAIT_S)
    with running_restorer(fresh_kafka, standby) as hand_over:
        assert dict(hand_over().items(COUNTERS)) == {b"amy": state(3, 1)}
        assert standby.next_offset[COUNTERS] == 3
    assert "now begins at 2" in caplog.text
