"""When a partition writes checkpoints, and what its first one holds."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    State,
    encode_marker,
    encode_state,
    position_of,
)
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.changelog_repair import GapContents
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, Record

from stoplog.policy import parse_policy
from stoplog.wire.checks import POSITION_BITS, Batch, Check, encode_batch
from stoplog.wire.partition_count import PartitionCount
from tests.support.memory_store import Changelogs, MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS
from tests.support.records import Message
from tests.support.relay import alone, unkeyed


def producers_to(changelogs: Changelogs) -> Any:
    """Return producers whose changelog records the test acknowledges."""
    return SimpleNamespace(
        write_changelog=lambda _, *rest: changelogs.send(*rest),
        changelogs=dict.fromkeys(TABLES, "changelog"),
        reply=print,
        relay_update=print,
        publish_update=print,
        truncate_changelog=print,
    )


class Checkpointing:
    """A partition with an interval of 5 s. Each of its checkpoints completes at once."""

    def __init__(self, folder: Path) -> None:
        store, self.changelogs = MemoryStore(PARTITION), Changelogs()
        settings = Settings(kafka="127.0.0.1:1", home=folder, flush_interval_ms=5_000)
        marker = Marker(0, 0, -1, -1, "topic", parse_policy("1000/minute"))
        store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
        producers = producers_to(self.changelogs)
        self.partition = Partition(
            settings,
            PartitionCount(PARTITIONS),
            store,
            marker,
            producers,
            Metrics(),
            keys=unkeyed(),
            workers=alone(),
        )
        self.now, self.offset = 0.0, 0
        self.partition.schedule.start(self.now)

    def take(self, checks: int, client: str = CLIENTS[0]) -> None:
        batch = Batch(-1, 7, 1, [Check(client)] * checks)
        self.partition.take(Message(self.offset, encode_batch(batch)))
        self.offset += 1

    def begun_until(self, until: float) -> list[float]:
        """Advance ten times a second; return when checkpoints began. 100 checks or 2 clients are urgent."""
        begun = []
        while self.now < until:
            self.now = round(self.now + 0.1, 1)
            self.partition.advance(self.now, self.now, 100, 2)
            if self.changelogs.sent:
                begun.append(self.now)
            while self.changelogs.sent:
                self.changelogs.arrive_all()
                self.partition.advance(self.now, self.now, 100, 2)
        return begun


def test_checkpoint_waits_for_its_interval_or_for_much_to_write_but_a_second_at_least(
    tmp_path: Path,
) -> None:
    one = Checkpointing(tmp_path)
    one.take(1)
    [first] = one.begun_until(2)
    one.take(1)
    assert one.begun_until(first + 4.9) == []
    [second] = one.begun_until(first + 5)
    assert second == first + 5
    one.take(100)
    assert one.begun_until(second + 0.9) == []
    assert one.begun_until(second + 1) == [second + 1]
    one.take(99)
    assert one.begun_until(second + 5.9) == []
    assert one.begun_until(second + 6) == [second + 6]
    one.take(1, CLIENTS[1])
    one.take(1)
    assert one.begun_until(second + 6.9) == []
    assert one.begun_until(second + 7) == [second + 7]


def test_foreign_record_is_overwritten_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Future[GapContents]()
    found.set_result(GapContents([Record(1, CLIENTS[0].encode(), encode_state(State(0)))], 1))
    monkeypatch.setattr("stoplog_worker.partition.partition.read_in_background", lambda *_: found)
    one = Checkpointing(tmp_path)
    one.take(1)
    [first] = one.begun_until(2)
    one.changelogs.append(COUNTERS, CLIENTS[0].encode(), encode_state(State(0)))
    one.partition.note_changelog_end(COUNTERS, 2)
    [repaired] = one.begun_until(first + 4)
    assert repaired < first + 3.5, "a second each to begin the read, to use its result and to write"
    (_, own), *_, (_, again) = one.changelogs.logs[COUNTERS]
    assert (again[9:], position_of(again)) == (own[9:], (1 << POSITION_BITS) - 1)


def test_first_checkpoint_writes_the_marker_before_any_counter(tmp_path: Path) -> None:
    changelogs = Changelogs()
    first = Marker(40, 0, -1, -1, "topic", parse_policy("100/minute"))
    settings = Settings(kafka="127.0.0.1:1", home=tmp_path)
    store = MemoryStore(PARTITION)
    partition = Partition(
        settings,
        PartitionCount(PARTITIONS),
        store,
        first,
        producers_to(changelogs),
        Metrics(),
        keys=unkeyed(),
        workers=alone(),
    )
    ledger = partition.ledger
    now = ledger.advance(40, 1_000)
    judge(ledger, 40, now, [Check(name) for name in CLIENTS], fault_finder(PARTITION, PARTITIONS))
    at = 0.0

    def checkpoint() -> None:
        nonlocal at
        at += 1_000
        for _ in range(2):
            partition.advance(at, at, 1_000, 1_000)

    for _ in range(2):
        checkpoint()
        assert [sent.key for sent in changelogs.sent] == [MARKER_KEY]
        changelogs.fail()
        partition.advance(at, at, 1_000, 1_000)
    checkpoint()
    changelogs.arrive_all()
    partition.advance(at, at, 1_000, 1_000)
    assert partition.store.marker() == first
    checkpoint()
    assert {sent.table for sent in changelogs.sent} == {COUNTERS}
    changelogs.arrive_all()
    partition.advance(at, at, 1_000, 1_000)
    changelogs.arrive_all()
    partition.advance(at, at, 1_000, 1_000)
    assert cast(Marker, partition.store.marker()).next_offset == 41


def test_partition_is_drained_once_everything_is_decided_and_in_a_checkpoint(tmp_path: Path) -> None:
    one = Checkpointing(tmp_path)
    one.take(1)
    [first] = one.begun_until(2)
    assert one.partition.drained(1, 0)
    assert not one.partition.drained(2, 0), "a record of checks is not read yet"
    assert not one.partition.drained(1, 1), "a record of limit-updates is not read yet"
    one.take(1)
    assert not one.partition.drained(2, 0), "the checkpoint is missing"
    [second] = one.begun_until(first + 4)
    assert second < first + 1.5, "it begins earlier than planned"
    assert one.partition.drained(2, 0)
