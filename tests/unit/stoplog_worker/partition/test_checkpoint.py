"""The steps of a checkpoint, and what follows a failed write."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import product
from math import inf

import pytest
from stoplog_worker.algorithm.state_codec import MARKER_KEY
from stoplog_worker.partition.checkpoint import CHUNK, TRANSITIONS, Checkpointer, CheckpointPhase
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.partitioning import partition_of
from stoplog.wire.checks import Check
from tests.support.checkpoint_bench import AB, ZOE, A, CheckpointBench, restored
from tests.support.memory_store import contents
from tests.support.partition_log import PARTITION, PARTITIONS

IDLE, PRODUCING_ENTRIES, AWAITING_ENTRIES, AWAITING_MARKER, STORING = CheckpointPhase
LATER_CLIENTS = [
    name for name in map("client-{}".format, range(1_000)) if partition_of(name, PARTITIONS) == PARTITION
]


def test_checkpoint_writes_entries_then_the_marker_then_the_store() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2), Check(AB))
    bench.update(0, A, "5/minute")
    checkpointer = bench.checkpointer
    assert checkpointer.idle
    checkpointer.begin()
    assert not checkpointer.idle
    assert sorted(bench.sent()) == [(COUNTERS, b"a"), (COUNTERS, b"ab"), (POLICIES, b"client\0a\0")]
    bench.changelogs.arrive(2)
    bench.changelogs.arrive(0)
    assert checkpointer.advance() is None
    assert len(bench.sent()) == 1, "no marker before all entries are acknowledged"
    bench.changelogs.arrive()
    assert checkpointer.advance() is None
    assert bench.sent() == [(POLICIES, MARKER_KEY)]
    assert checkpointer.advance() is None
    assert contents(bench.store) == {COUNTERS: {}, POLICIES: {}}, "no store before the marker is acknowledged"
    bench.changelogs.arrive()
    marker = checkpointer.advance()
    assert marker == bench.store.marker() == bench.ledger.checkpointed == bench.ledger.marker
    assert marker is not None
    assert (marker.next_offset, marker.applied) == (2, 0)
    assert checkpointer.idle
    assert checkpointer.advance() is None
    assert (bench.stored(A), bench.stored(AB)) == (2, 1)
    assert bench.store.get(POLICIES, b"client\0a\0") is not None
    assert bench.store.next_offset == {COUNTERS: 2, POLICIES: 2}
    assert not bench.ledger.changed
    assert not bench.repair.gaps


def test_checkpoint_without_charges_moves_the_marker() -> None:
    bench = CheckpointBench()
    bench.check()
    bench.checkpointer.begin()
    assert bench.sent() == []
    assert bench.checkpointer.advance() is None
    assert bench.sent() == [(POLICIES, MARKER_KEY)]
    bench.changelogs.arrive()
    assert bench.checkpointer.advance() == bench.store.marker()


def test_check_judged_during_a_checkpoint_is_in_the_next_one() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpointer.begin()
    bench.check(Check(A, 3), Check(AB, 1))
    bench.changelogs.arrive_all()
    bench.checkpointer.advance()
    bench.check(Check(A, 4))
    bench.changelogs.arrive_all()
    marker = bench.checkpointer.advance()
    assert marker is not None
    assert marker.next_offset == 1, "as when the checkpoint began"
    assert (bench.stored(A), bench.stored(AB)) == (2, 0)
    assert bench.ledger.changed
    bench.ledger.evict(0)
    assert bench.checkpoint().next_offset == 3
    assert (bench.stored(A), bench.stored(AB)) == (9, 1)


def test_large_checkpoint_takes_steps_and_includes_checks_judged_meanwhile() -> None:
    bench, clients = CheckpointBench(), LATER_CLIENTS
    assert len(clients) > 3 * CHUNK
    bench.check(*map(Check, clients))
    bench.checkpointer.begin()
    assert len(bench.sent()) == CHUNK
    assert bench.checkpointer.ready
    bench.check(Check(clients[0], 5), Check(clients[-1], 5))  # one produced already, one not yet
    steps = 0
    while bench.checkpointer.ready:
        assert bench.checkpointer.advance() is None
        steps += 1
    assert steps == len(clients) // CHUNK, "and then it waits for acknowledgments"
    assert len(bench.sent()) == len(clients)
    bench.changelogs.arrive_all()
    assert bench.checkpointer.advance() is None
    bench.changelogs.arrive_all()
    before = dict(bench.store.next_offset)
    assert bench.checkpointer.advance() is None
    assert bench.stored(clients[0]) == 1
    assert bench.store.next_offset == before, "not all of the changelog is in the tables yet"
    marker = bench.checkpointer.advance(until=inf)
    assert marker == bench.store.marker()
    assert marker is not None
    assert marker.next_offset == 1
    assert (bench.stored(clients[0]), bench.stored(clients[-1])) == (1, 6)
    assert bench.ledger.dirty.keys() == {clients[0]}
    # A crash now: the replay does not charge again what the last client's state holds.
    again = CheckpointBench(bench.store, bench.changelogs)
    again.check(Check(clients[0], 5), Check(clients[-1], 5))
    again.checkpoint()
    assert (again.stored(clients[0]), again.stored(clients[-1])) == (6, 6)


def refuse(bench: CheckpointBench, index: int) -> None:
    bench.changelogs.fail(index)


def lose_acknowledgment(bench: CheckpointBench, index: int) -> None:
    bench.changelogs.fail(index, arrives=True)


def test_checkpoints_that_fail_for_the_same_reason_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    bench = CheckpointBench()
    for _ in range(3):
        bench.check(Check(A))
        bench.checkpointer.begin()
        bench.changelogs.fail(0)
        assert bench.checkpointer.failed
        bench.changelogs.arrive_all()
        bench.checkpointer.advance()
        assert bench.checkpointer.idle
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fail", [refuse, lose_acknowledgment])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_unacknowledged_entry_is_written_again(
    fail: Callable[[CheckpointBench, int], None], index: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2), Check(AB))
    bench.update(0, ZOE, "5/minute")
    bench.checkpointer.begin()
    with caplog.at_level(logging.WARNING, "stoplog.checkpoint"):
        fail(bench, index)
        fail(bench, 0)
    assert len(caplog.records) == 1, "one line a checkpoint"
    assert "will be repeated" in caplog.text
    bench.check(Check(A, 5))
    assert bench.checkpointer.advance() is None
    assert not bench.checkpointer.idle, "an acknowledgment is missing"
    bench.changelogs.arrive_all()
    assert bench.checkpointer.advance() is None
    assert bench.checkpointer.idle
    assert bench.sent() == [], "no marker"
    assert bench.store.marker() is None
    assert bench.checkpoint().next_offset == 3
    assert (bench.stored(A), bench.stored(AB)) == (7, 1)
    assert bench.store.get(POLICIES, b"client\0zo\xc3\xab\0") is not None
    assert bench.metrics.registry.get_sample_value("stoplog_worker_flush_failures_total") == 1


def test_unacknowledged_marker_is_written_again() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpointer.begin()
    bench.changelogs.arrive_all()
    bench.checkpointer.advance()
    bench.changelogs.fail()
    assert bench.checkpointer.advance() is None
    assert bench.checkpointer.idle
    assert (bench.store.marker(), bench.stored(A)) == (None, 0)
    assert bench.ledger.changed
    assert bench.checkpoint().next_offset == 1
    assert bench.stored(A) == 2


def test_checkpoint_continues_where_the_store_had_read() -> None:
    first = CheckpointBench()
    first.check(Check(A, 2))
    first.checkpoint()
    second = CheckpointBench(restored(first.changelogs), first.changelogs)
    assert second.ledger.next_offset == 1
    second.check(Check(A, 3))
    second.checkpoint()
    assert second.repair.gaps == []
    assert second.stored(A) == 5


# --- phases ---------------------------------------------------------------------------------


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CheckpointPhase, CheckpointPhase]]:
    """The edges that every checkpoint walks."""
    edges: list[tuple[CheckpointPhase, CheckpointPhase]] = []
    enter = Checkpointer._enter

    def spy(checkpointer: Checkpointer, phase: CheckpointPhase) -> None:
        edges.append((checkpointer.phase, phase))
        enter(checkpointer, phase)

    monkeypatch.setattr(Checkpointer, "_enter", spy)
    return edges


def complete(bench: CheckpointBench) -> None:
    while not bench.checkpointer.idle:
        bench.changelogs.arrive_all()
        bench.checkpointer.advance()


def test_checkpoints_walk_every_edge_of_the_table(
    walked: list[tuple[CheckpointPhase, CheckpointPhase]],
) -> None:
    complete_path = [AWAITING_ENTRIES, AWAITING_MARKER, STORING, IDLE]

    def path() -> list[CheckpointPhase]:
        phases = [to for _, to in walked]
        walked_edges.update(walked)
        walked.clear()
        return phases

    walked_edges: set[tuple[CheckpointPhase, CheckpointPhase]] = set()
    bench = CheckpointBench()
    bench.check(*map(Check, LATER_CLIENTS))
    bench.checkpointer.begin_with_marker()
    complete(bench)
    assert path() == complete_path
    assert bench.changelogs.logs[COUNTERS] == [], "the marker alone"

    bench.checkpointer.begin()
    assert bench.checkpointer.phase is PRODUCING_ENTRIES
    bench.changelogs.fail()
    complete(bench)
    assert path() == [PRODUCING_ENTRIES, AWAITING_ENTRIES, IDLE]

    bench.checkpointer.begin()
    while bench.checkpointer.phase is not AWAITING_MARKER:
        bench.changelogs.arrive_all()
        bench.checkpointer.advance()
    bench.changelogs.fail()
    complete(bench)
    assert path() == [PRODUCING_ENTRIES, AWAITING_ENTRIES, AWAITING_MARKER, IDLE]

    bench.checkpointer.begin()
    while bench.checkpointer.phase is not STORING:
        bench.changelogs.arrive_all()
        bench.checkpointer.advance()
    assert 0 < len(contents(bench.store)[COUNTERS]) < len(LATER_CLIENTS), "a chunk is stored in a step"
    complete(bench)
    assert path() == [PRODUCING_ENTRIES, *complete_path]
    assert walked_edges == TRANSITIONS


@pytest.mark.parametrize("edge", sorted(set(product(CheckpointPhase, repeat=2)) - TRANSITIONS, key=str))
def test_edge_outside_the_table_is_refused(edge: tuple[CheckpointPhase, CheckpointPhase]) -> None:
    checkpointer = CheckpointBench().checkpointer
    checkpointer.phase = edge[0]
    with pytest.raises(ValueError, match=f"from {edge[0].name} to {edge[1].name}"):
        checkpointer._enter(edge[1])
    assert checkpointer.phase is edge[0]


def test_table_in_the_docstring_lists_every_edge() -> None:
    rows = [line.split() for line in (CheckpointPhase.__doc__ or "").splitlines() if line.strip()]
    names = CheckpointPhase.__members__
    edges = {(names[row[0]], names[row[-1]]) for row in rows if row[0] in names and row[-1] in names}
    assert edges == TRANSITIONS
