"""Turns of the consumer thread: how it waits, makes checkpoints, and drops partitions without a lease."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from confluent_kafka import TopicPartition
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.consumer.consumer_thread import UNWRITTEN_S, ConsumerThread
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.audit_log import AuditLog
from stoplog_worker.partition.checkpoint import CHUNK
from stoplog_worker.partition.checkpoint_schedule import RETRY_S
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, UPDATES
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey, encode_update_key
from stoplog.wire.partition_count import PartitionCount
from tests.support.memory_store import Changelogs, MemoryStore
from tests.support.records import Message
from tests.support.relay import alone, unkeyed

CLIENTS = [name for name in map("c-{}".format, range(20_000)) if partition_of(name, 4) == 0]


class Lease:
    held = True
    over_s = 60.0

    def holds(self) -> bool:
        return self.held

    def over_for_s(self) -> float:
        return self.over_s


class Waits:
    """Stands for the consumer's drain: it returns nothing and keeps the timeouts."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def __call__(self, _consumer: Any, _most: int, timeout_s: float) -> list[Any]:
        self.timeouts.append(timeout_s)
        return []


class Bench(NamedTuple):
    """A consumer thread with one active partition, and the fakes around it."""

    thread: ConsumerThread
    partition: Partition
    lease: Lease
    waits: Waits
    changelogs: Changelogs

    def judge(self, clients: list[str]) -> None:
        ledger = self.partition.ledger
        offset = ledger.next_offset
        judge(ledger, offset, ledger.advance(offset, 1_000), [*map(Check, clients)], fault_finder(0, 4))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    waits, lease, changelogs = Waits(), Lease(), Changelogs()
    monkeypatch.setattr("stoplog_worker.consumer.consumer_thread.drain", waits)
    settings, metrics = Settings(kafka="127.0.0.1:1", home=tmp_path), Metrics()
    ignore: Any = lambda *_: None  # noqa: E731
    topics = {"counters": "c", "policies": "p"}
    thread = ConsumerThread(settings, PartitionCount(4), topics, lease, metrics, ignore, ignore)  # type: ignore[arg-type]
    producers: Any = thread._producers
    monkeypatch.setattr(producers, "write_changelog", lambda _, *rest: changelogs.send(*rest))
    marker = Marker(0, 0, -1, -1, "topic", parse_policy("100/minute"))
    store = MemoryStore(0)
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
    partition = Partition(
        settings, PartitionCount(4), store, marker, producers, metrics, keys=unkeyed(), workers=alone()
    )
    thread._partitions.add(partition, monotonic() - 1_000)  # its first checkpoint is due
    thread._reported_at = monotonic() + 1_000  # no broker knows the lag
    yield Bench(thread, partition, lease, waits, changelogs)
    thread._consumer.close()


def test_turn_waits_for_records_while_a_checkpoint_may_not_go_on(bench: Bench) -> None:
    thread, waits, changelogs = bench.thread, bench.waits, bench.changelogs
    bench.judge(CLIENTS[:1])
    thread._turn()
    assert changelogs.sent, "the checkpoint has begun"
    changelogs.arrive_all()
    thread._turn()
    assert waits.timeouts[-1] > 0, "without the acknowledgment there was nothing to do"
    changelogs.fail()  # the marker
    bench.lease.held = False
    thread._turn()
    thread._turn()
    assert waits.timeouts[-1] > 0, "the checkpoint must begin again, but not now"
    bench.lease.held = True
    thread._turn()
    assert bench.partition.ledger.changed, "it will be written again"


@pytest.mark.parametrize("over_budget", [False, True])
def test_checkpoint_completes_at_once_only_when_memory_is_short(bench: Bench, over_budget: bool) -> None:
    bench.judge(CLIENTS)
    if over_budget:
        bench.partition.ledger.size *= 1_000
    bench.thread._turn()  # the checkpoint begins
    bench.thread._turn()
    assert (len(bench.changelogs.sent) == len(CLIENTS)) == over_budget


def test_checkpoint_that_holds_up_all_checks_stops_with_the_lease(bench: Bench) -> None:
    bench.judge(CLIENTS)
    bench.partition.ledger.size *= 1_000
    holds = iter([True] * 3)
    bench.lease.holds = lambda: next(holds, False)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoplog_worker.consumer.consumer_thread._OVER_BUDGET_S", 0.0)
        bench.thread._turn()
    assert len(bench.changelogs.sent) == 3 * CHUNK, "a step for each time that the lease held"


def test_failed_last_checkpoint_begins_again_only_after_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, waits, changelogs = bench.thread, bench.waits, bench.changelogs
    now = monotonic()
    monkeypatch.setattr("stoplog_worker.consumer.consumer_thread.monotonic", lambda: now)
    bench.judge(CLIENTS[:1])
    done: Future[None] = Future()
    thread._revoke(60, done)
    for _ in range(3):
        thread._turn()
        assert [sent.table for sent in changelogs.sent] == [COUNTERS]
        changelogs.fail()
        waits.timeouts.clear()
        for _ in range(10):
            thread._turn()
        assert not changelogs.sent
        assert min(waits.timeouts[2:]) > 0, "it waits for records meanwhile"
        now += RETRY_S
    while not done.done():
        thread._turn()
        changelogs.arrive_all()
    assert changelogs.logs[POLICIES][-1][0] == MARKER_KEY


def test_urgency_limits_are_shared_among_the_active_partitions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(
        bench.partition, "advance", lambda _now, _until, replay, dirty: limits.append((replay, dirty))
    )
    bench.thread._write_active(0.0, 0.0)
    for number in (1, 2, 3):
        other: Any = SimpleNamespace(
            number=number,
            phase=None,
            schedule=bench.partition.schedule,
            ledger=bench.partition.ledger,
            advance=lambda *_: None,
            busy=False,
            rests=False,
            audit=bench.partition.audit,
            relay=bench.partition.relay,
        )
        bench.thread._partitions.add(other, 0.0)
    bench.thread._write_active(1.0, 1.0)
    assert limits == [(80_000, 150_000 // 8), (20_000, 150_000 // 4 // 8)]


def test_checks_are_not_read_while_the_audit_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    consumer = SimpleNamespace(
        pause=lambda places: calls.append(("pause", places[0].topic, places[0].partition)),
        resume=lambda places: calls.append(("resume", places[0].topic, places[0].partition)),
    )
    with monkeypatch.context() as patched:
        patched.setattr(bench.thread, "_consumer", consumer)
        for now, full in enumerate((False, True, True, False, False)):
            patched.setattr(AuditLog, "full", full)
            bench.thread._write_active(now, now)
    assert calls == [("pause", CHECKS, 0), ("resume", CHECKS, 0)]


def test_active_partitions_are_dropped_when_the_lease_stays_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    thread, dropped = bench.thread, list[Any]()
    monkeypatch.setattr(thread, "_on_dropped", dropped.append)
    thread._consumer.incremental_assign([TopicPartition(topic, 0) for topic in (CHECKS, UPDATES)])
    now = monotonic()

    def turn(after_s: float) -> None:
        thread._write_active(now + after_s, now + after_s)

    bench.lease.held = False
    turn(0.0)
    turn(UNWRITTEN_S - 0.1)
    lines = [record for record in caplog.records if record.name == "stoplog.consumer"]
    assert len(lines) == thread._metrics.lapses._value.get() == 1, "one line a lapse"
    bench.lease.held = True
    turn(UNWRITTEN_S)
    bench.lease.held = False
    turn(UNWRITTEN_S + 1.0)
    turn(2 * UNWRITTEN_S)
    assert not dropped, "the time of the second lapse starts anew"
    turn(2 * UNWRITTEN_S + 1.0)
    assert dropped == [[bench.partition.store]]
    assert thread.partition_states() == {}


def test_log_names_no_lapse_that_is_short_and_the_end_of_a_longer_one(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seconds = count()

    def turn() -> list[str]:
        caplog.clear()
        now = next(seconds)
        bench.thread._write_active(now, now)
        return [record.getMessage() for record in caplog.records if record.name == "stoplog.consumer"]

    bench.lease.held, bench.lease.over_s = False, 1.9
    assert turn() == []
    bench.lease.held = True
    assert turn() == []
    bench.lease.held = False
    assert turn() == []
    bench.lease.over_s = 2.0
    [line] = turn()
    assert line.startswith("the group lease ran out")
    assert turn() == []
    bench.lease.held = True
    assert turn() == ["the group answers again: checkpoints continue"]
    assert turn() == []


def test_partition_at_rest_is_looked_at_now_and_then_and_a_busy_one_in_each_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    advance = Partition.advance

    def look(partition: Partition, now: float, *rest: Any) -> Marker | None:
        looks.append(now)
        return advance(partition, now, *rest)

    monkeypatch.setattr(Partition, "advance", look)
    began = monotonic()

    def turns(*times_ms: int) -> list[int]:
        looks.clear()
        for ms in times_ms:
            bench.thread._write_active(began + ms / 1_000, 0.0)
        return [round((now - began) * 1_000) for now in looks]

    assert turns(0, 1, 19, 21, 30, 42) == [0, 21, 42]
    bench.judge(CLIENTS[:1])
    assert turns(8_000) == [8_000], "a checkpoint begins"
    assert turns(8_001, 8_002) == [8_001, 8_002], "it waits for an acknowledgment"
    while not bench.partition.checkpointer.idle:
        bench.changelogs.arrive_all()
        turns(8_003)
    turns(8_004)
    assert turns(8_005, 8_006) == []
    bench.partition.take(Message(0, None))  # judged already
    assert turns(8_007, 8_008) == [8_007]
    update = Message(7, None, encode_update_key(UpdateKey("client", CLIENTS[0])), topic=UPDATES)
    bench.partition.take_update(update)
    assert turns(8_009, 8_010, 8_011) == [8_009, 8_010, 8_011], "the relay waits until the update is applied"
