"""Clients that no longer come leave the disk of the owner and of a standby; a real broker between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.broker import Broker
from streams import sweep
from streams.contract.records import Batch, Check, encode_batch
from streams.contract.topics import CHECKS, partition_of
from streams.store import COUNTERS, PartitionStore
from tests.integration.bench import CLIENTS, FAST, PARTITIONS, Bench, open_store
from tests.integration.test_guards import restorer
from tests.system import eventually

PARTITION = 2
IDLE = next(
    name
    for name in (f"idle-{number}" for number in range(100))
    if partition_of(name, PARTITIONS) == PARTITION
).encode()


def test_an_idle_client_leaves_the_owner_and_its_standby(
    fresh_kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PASS_S", 0.0)
    bench = Bench(fresh_kafka, tmp_path / "owner", PARTITION, default_limits="5/second", **FAST)
    standby = open_store(PARTITION, tmp_path / "standby")
    busy = CLIENTS[PARTITION].encode()

    def holds(store: PartitionStore, client: bytes) -> bool:
        return store.get(COUNTERS, client) is not None

    def gone() -> bool:
        bench.check(1)  # partition time goes on with the log
        return not holds(bench.store, IDLE) and not holds(standby, IDLE)

    try:
        with restorer(fresh_kafka, standby):
            assert bench.start()
            batch = Batch(PARTITION, 4711, 0, [Check(IDLE.decode())])
            bench.produce(CHECKS, encode_batch(batch))
            bench.check(1)
            eventually("the client is stored", lambda: holds(bench.store, IDLE) and holds(standby, IDLE))
            eventually("the client is swept", gone)
            eventually("the other is stored", lambda: holds(bench.store, busy) and holds(standby, busy))
        assert bench.metrics.registry.get_sample_value("sluice_worker_swept_clients_total") == 1
        assert any(key == IDLE for key, _ in bench.changelog("sluice-counters-changelog"))
    finally:
        bench.close()
