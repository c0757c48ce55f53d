from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from streams.contract.policy import parse_policy
from streams.contract.records import Batch, Check, encode_batch
from streams.judge import fault_finder, judge
from streams.ledger import MARKER_KEY, Marker, encode_marker
from streams.metrics import Metrics
from streams.owned import Owned
from streams.settings import Settings
from streams.store import COUNTERS, POLICIES
from tests.unit.streams.memory import Changelogs, MemoryStore
from tests.unit.streams.partition_log import CLIENTS, PARTITION, PARTITIONS, START


def test_a_flush_waits_for_its_time_or_for_enough_checks_but_a_second_at_least(tmp_path: Path) -> None:
    store, changelogs = MemoryStore(PARTITION), Changelogs()
    outbox: Any = SimpleNamespace(
        changelog=lambda _, *rest: changelogs.send(*rest), reply=print, update=print, shorten=print
    )
    settings = Settings(kafka="127.0.0.1:1", home=tmp_path, flush_interval_ms=5_000)
    marker = Marker(0, 0, -1, -1, "topic", parse_policy("1000/minute"))
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
    owned = Owned(settings, PARTITIONS, store, marker, outbox, Metrics())
    now, offset = 0.0, 0

    def take(checks: int) -> None:
        nonlocal offset
        batch = Batch(-1, 7, 1, [Check(CLIENTS[0])] * checks)
        owned.take(Message(offset, encode_batch(batch)))
        offset += 1

    def passes(until: float) -> list[float]:
        """When flushes began until then, looked at ten times a second; each is over at once."""
        nonlocal now
        begun = []
        while now < until:
            now = round(now + 0.1, 1)
            owned.tend(now, now, 100)
            if changelogs.sent:
                begun.append(now)
            while changelogs.sent:
                changelogs.arrive_all()
                owned.tend(now, now, 100)
        return begun

    owned.begin(now)
    take(1)
    [first] = passes(2)
    take(1)
    assert passes(first + 4.9) == []
    [second] = passes(first + 5)
    assert second == first + 5
    take(100)
    assert passes(second + 0.9) == []
    assert passes(second + 1) == [second + 1]
    take(99)
    assert passes(second + 5.9) == []
    assert passes(second + 6) == [second + 6]


class Message:
    """A record of ``checks``."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 2, START


def test_a_partitions_marker_is_acknowledged_before_its_first_counter_is_written(tmp_path: Path) -> None:
    changelogs = Changelogs()
    first = Marker(40, 0, -1, -1, "topic", parse_policy("100/minute"))
    outbox: Any = SimpleNamespace(
        changelog=lambda _, *rest: changelogs.send(*rest), update=print, shorten=print
    )
    settings = Settings(kafka="127.0.0.1:1", home=tmp_path)
    owned = Owned(settings, PARTITIONS, MemoryStore(PARTITION), first, outbox, Metrics())
    ledger = owned.ledger
    judge(
        ledger,
        40,
        ledger.advance(40, 1_000),
        [Check(name) for name in CLIENTS],
        fault_finder(PARTITION, PARTITIONS),
    )
    at = 0.0

    def flush() -> None:
        nonlocal at
        at += 1_000
        for _ in range(2):
            owned.tend(at, at, 1_000)

    for _ in range(2):
        flush()
        assert [sent.key for sent in changelogs.sent] == [MARKER_KEY]
        changelogs.fail()
        owned.tend(at, at, 1_000)
    flush()
    changelogs.arrive_all()
    owned.tend(at, at, 1_000)
    assert owned.store.marker() == first
    flush()
    assert {sent.table for sent in changelogs.sent} == {COUNTERS}
    changelogs.arrive_all()
    owned.tend(at, at, 1_000)
    changelogs.arrive_all()
    owned.tend(at, at, 1_000)
    assert cast(Marker, owned.store.marker()).next_offset == 41
