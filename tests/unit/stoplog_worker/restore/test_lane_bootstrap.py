"""A copy under the lease, broker and clients faked; tests/integration/test_lane_bootstrap.py uses a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from stoplog_worker.kafka.assigned_consumer import Consumed
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.lane_bootstrap import Copier, changelogs
from stoplog_worker.state.store import COUNTERS

SOURCE, TARGET = changelogs(""), changelogs("b")
STATES = 3


class Message:
    """A state of a client's."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def topic(self) -> str:
        return SOURCE[COUNTERS]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"client-%d" % self._offset

    def value(self) -> bytes:
        return b"\x01" + self._offset.to_bytes(8) + b"\x90"


class Broker:
    """Consumer and producer: has a few states, of which one is read at a time, and keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.purged = 0
        self._at = 0
        self._unheard: list[Any] = []

    def offset_range(self, topic: str, _partition: int) -> tuple[int, int]:
        return 0, STATES if topic == SOURCE[COUNTERS] else 0

    def assign(self, _places: object) -> None:
        self._at = 0

    def consume(self, _wait_s: float) -> Consumed:
        self._at += 1
        return Consumed([Message(self._at - 1)], {}, set())

    def produce(self, topic: str, _value: bytes, key: bytes, *, partition: int, on_delivery: Any) -> None:
        assert (topic, partition) == (TARGET[COUNTERS], 0)
        self.written.append(key)
        self._unheard.append(on_delivery)

    def poll(self, _wait_s: float) -> None:
        while self._unheard:
            self._unheard.pop()(None, None)

    def purge(self) -> None:
        self.purged += 1

    def close(self) -> None:
        pass


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(
        "stoplog_worker.restore.lane_bootstrap.AssignedConsumer", lambda *_args, **_kwargs: broker
    )
    monkeypatch.setattr(
        "stoplog_worker.restore.lane_bootstrap.kafka", SimpleNamespace(changelog_producer=lambda *_: broker)
    )
    return broker


def test_without_the_lease_nothing_is_written_and_the_copy_begins_again(broker: Broker) -> None:
    """Another worker may own the partition by then, and have copied and judged it."""
    lease = Lease(6_000, 2_000, clock=lambda: 0.0)
    copier = Copier("nowhere", 2_000, SOURCE, TARGET, Metrics(), lease)
    assert not copier.advance(0)
    assert not broker.written
    lease.extend(0.0)
    while len(broker.written) < 2:
        assert not copier.advance(0)
    lease.end()
    for _ in range(10):
        assert not copier.advance(0)
    assert len(broker.written) == 2
    assert broker.purged == 1
    lease.extend(0.0)
    while not copier.advance(0):
        pass
    assert broker.written[2:] == [b"client-0", b"client-1", b"client-2"]
