from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, State, encode_marker, encode_state
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, Record

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch
from tests.support.memory_store import Changelogs, MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS
from tests.support.records import Message


class Flushing:
    """An owned partition with an interval of 5 s; each of its flushes is over at once."""

    def __init__(self, folder: Path) -> None:
        store, self.changelogs = MemoryStore(PARTITION), Changelogs()
        outbox: Any = SimpleNamespace(
            changelog=lambda _, *rest: self.changelogs.send(*rest),
            changelogs=dict.fromkeys(TABLES, "changelog"),
            reply=print,
            update=print,
            shorten=print,
        )
        settings = Settings(kafka="127.0.0.1:1", home=folder, flush_interval_ms=5_000)
        marker = Marker(0, 0, -1, -1, "topic", parse_policy("1000/minute"))
        store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
        self.owned = Partition(settings, PARTITIONS, store, marker, outbox, Metrics())
        self.now, self.offset = 0.0, 0
        self.owned.begin(self.now)

    def take(self, checks: int, client: str = CLIENTS[0]) -> None:
        batch = Batch(-1, 7, 1, [Check(client)] * checks)
        self.owned.take(Message(self.offset, encode_batch(batch)))
        self.offset += 1

    def passes(self, until: float) -> list[float]:
        """When flushes began until then, looked at ten times a second; enough: 100 checks or 2 clients."""
        begun = []
        while self.now < until:
            self.now = round(self.now + 0.1, 1)
            self.owned.tend(self.now, self.now, 100, 2)
            if self.changelogs.sent:
                begun.append(self.now)
            while self.changelogs.sent:
                self.changelogs.arrive_all()
                self.owned.tend(self.now, self.now, 100, 2)
        return begun


def test_a_flush_waits_for_its_time_or_for_enough_checks_but_a_second_at_least(tmp_path: Path) -> None:
    one = Flushing(tmp_path)
    one.take(1)
    [first] = one.passes(2)
    one.take(1)
    assert one.passes(first + 4.9) == []
    [second] = one.passes(first + 5)
    assert second == first + 5
    one.take(100)
    assert one.passes(second + 0.9) == []
    assert one.passes(second + 1) == [second + 1]
    one.take(99)
    assert one.passes(second + 5.9) == []
    assert one.passes(second + 6) == [second + 6]
    one.take(1, CLIENTS[1])
    one.take(1)
    assert one.passes(second + 6.9) == []
    assert one.passes(second + 7) == [second + 7]


def test_what_somebody_else_wrote_is_written_over_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Flushing(tmp_path)
    one.take(1)
    [first] = one.passes(2)
    found = Future[list[Record]]()
    found.set_result([Record(1, CLIENTS[0].encode(), encode_state(State(0)))])
    monkeypatch.setattr(one.owned, "_read_aside", lambda *_: found)
    one.changelogs.append(COUNTERS, CLIENTS[0].encode(), encode_state(State(0)))
    one.owned.look_at_end(COUNTERS, 2)
    [mended] = one.passes(first + 4)
    assert mended < first + 3.5, "a second until it is read, one until it is there, one until it is mended"
    assert one.changelogs.logs[COUNTERS][-1][1] == one.changelogs.logs[COUNTERS][0][1]


def test_a_partitions_marker_is_acknowledged_before_its_first_counter_is_written(tmp_path: Path) -> None:
    changelogs = Changelogs()
    first = Marker(40, 0, -1, -1, "topic", parse_policy("100/minute"))
    outbox: Any = SimpleNamespace(
        changelog=lambda _, *rest: changelogs.send(*rest), update=print, shorten=print
    )
    settings = Settings(kafka="127.0.0.1:1", home=tmp_path)
    owned = Partition(settings, PARTITIONS, MemoryStore(PARTITION), first, outbox, Metrics())
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
            owned.tend(at, at, 1_000, 1_000)

    for _ in range(2):
        flush()
        assert [sent.key for sent in changelogs.sent] == [MARKER_KEY]
        changelogs.fail()
        owned.tend(at, at, 1_000, 1_000)
    flush()
    changelogs.arrive_all()
    owned.tend(at, at, 1_000, 1_000)
    assert owned.store.marker() == first
    flush()
    assert {sent.table for sent in changelogs.sent} == {COUNTERS}
    changelogs.arrive_all()
    owned.tend(at, at, 1_000, 1_000)
    changelogs.arrive_all()
    owned.tend(at, at, 1_000, 1_000)
    assert cast(Marker, owned.store.marker()).next_offset == 41
