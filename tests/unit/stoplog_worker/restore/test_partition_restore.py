"""Every edge in the table of restore phases, and the set of edges that the table states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from stoplog_worker.algorithm.state_codec import MARKER_KEY, encode_marker
from stoplog_worker.restore.lane_bootstrap import LaneCopier
from stoplog_worker.restore.partition_restore import PartitionRestore, RestorePhase
from stoplog_worker.state.store import COUNTERS, POLICIES, Record

from stoplog.errors import Unavailable
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import MemoryStore
from tests.support.phase_table import edges_of

PARTITION, OTHER = 2, 3
NEWER = b"\x03" + bytes(8) + b"\x91\x00"
"""The marker of a release whose format is not known here."""
ENDS = {COUNTERS: 0, POLICIES: 0}
P = RestorePhase


class Copier:
    """A copier: ``result`` is the outcome of the next step, ``None`` a broker that does not answer."""

    def __init__(self) -> None:
        self.partition: int | None = None
        self.result: bool | None = None
        self.dropped: list[int] = []

    def advance(self, partition: int, _stored: Any) -> bool:
        if self.result is None:
            self.partition = None
            raise Unavailable("no broker")
        self.partition = None if self.result else partition
        return self.result

    def drop(self, partition: int) -> None:
        self.dropped.append(partition)


class Restore:
    """A partition's restore in a further lane, with its copier and the edges it has taken."""

    def __init__(self, copier: Copier | None) -> None:
        self.copier = copier or Copier()
        self.store = MemoryStore(PARTITION)
        self.restore = PartitionRestore(self.store, cast("LaneCopier | None", copier))
        self.path = [self.restore.phase]

    def do(self, step: Callable[[], None]) -> RestorePhase:
        try:
            step()
        finally:
            if self.restore.phase is not self.path[-1]:
                self.path.append(self.restore.phase)
        return self.restore.phase

    def activate(self, generation: int | None = 1) -> RestorePhase:
        return self.do(lambda: self.restore.activate(generation))

    def found_ends(self, **ends: int) -> RestorePhase:
        return self.do(lambda: self.restore.found_ends({**ENDS, **ends}))

    def advance(self) -> RestorePhase:
        return self.do(self.restore.advance)

    def write_marker(self) -> None:
        self.store.write(POLICIES, [(MARKER_KEY, encode_marker(FIRST_MARKER))])

    def reach(self, phase: RestorePhase) -> None:
        """Enter *phase*, one of those before the end of a copy."""
        self.copier.partition = OTHER
        if phase in (P.FINDING_ENDS, P.CATCHING_UP, P.AWAITING_COPY):
            self.activate()
        if phase in (P.CATCHING_UP, P.AWAITING_COPY):
            self.found_ends()
        if phase is P.AWAITING_COPY:
            self.advance()
        if phase in (P.FINDING_LEFTOVERS, P.READING_LEFTOVERS, P.COPYING, P.FINDING_COPY, P.READING_COPY):
            self.reach(P.AWAITING_COPY)
            self.copier.partition = None
            self.advance()
        if phase in (P.READING_LEFTOVERS, P.COPYING, P.FINDING_COPY, P.READING_COPY):
            self.found_ends()
        if phase in (P.COPYING, P.FINDING_COPY, P.READING_COPY):
            self.copier.result = phase is not P.COPYING
            self.advance()
        if phase is P.READING_COPY:
            self.found_ends()
        assert self.restore.phase is phase


@pytest.fixture
def lane() -> Restore:
    """A restore in a further lane."""
    return Restore(Copier())


def test_default_lane_partition_catches_up_and_is_ready() -> None:
    restore = Restore(None)
    restore.activate()
    assert restore.restore.finding_ends
    restore.found_ends(counters=3)
    assert restore.advance() is P.CATCHING_UP
    restore.store.next_offset[COUNTERS] = 3
    assert restore.advance() is P.READY
    assert restore.path == [P.STANDBY, P.FINDING_ENDS, P.CATCHING_UP, P.READY]


def test_further_lane_partition_with_marker_is_ready_without_copy(lane: Restore) -> None:
    lane.activate()
    lane.found_ends()
    lane.write_marker()
    assert lane.advance() is P.READY


def test_ready_with_truncated_changelog_catches_up_again(lane: Restore) -> None:
    lane.write_marker()
    lane.activate()
    lane.store.next_offset[COUNTERS] = 5
    lane.found_ends(counters=5)
    assert lane.advance() is P.READY
    lane.store.clear_counters()
    assert lane.advance() is P.CATCHING_UP
    lane.store.next_offset[COUNTERS] = 5
    assert lane.advance() is P.READY


def test_new_lane_copies_and_is_ready_even_without_a_marker(lane: Restore) -> None:
    lane.reach(P.READING_COPY)
    assert lane.advance() is P.READY
    assert lane.path == [
        P.STANDBY,
        P.FINDING_ENDS,
        P.CATCHING_UP,
        P.AWAITING_COPY,
        P.FINDING_LEFTOVERS,
        P.READING_LEFTOVERS,
        # advance() passes COPYING within one step
        P.FINDING_COPY,
        P.READING_COPY,
        P.READY,
    ]


def test_awaiting_copy_while_copier_is_busy_stays(lane: Restore) -> None:
    lane.reach(P.AWAITING_COPY)
    assert lane.advance() is P.AWAITING_COPY


def test_reading_leftovers_with_marker_is_ready(lane: Restore) -> None:
    lane.reach(P.READING_LEFTOVERS)
    lane.write_marker()
    assert lane.advance() is P.READY


def test_reading_leftovers_while_copier_was_taken_awaits_copy(lane: Restore) -> None:
    lane.reach(P.READING_LEFTOVERS)
    lane.copier.partition = OTHER
    assert lane.advance() is P.AWAITING_COPY


def test_copying_ignores_the_marker_until_the_copy_is_complete(lane: Restore) -> None:
    """The marker may be read from the changelog before the counters below it."""
    lane.reach(P.COPYING)
    lane.write_marker()
    assert lane.advance() is P.COPYING
    lane.copier.result = True
    assert lane.advance() is P.FINDING_COPY


def test_copying_interrupted_by_broker_awaits_copy(lane: Restore) -> None:
    lane.reach(P.COPYING)
    lane.copier.result = None
    with pytest.raises(Unavailable):
        lane.advance()
    assert lane.restore.phase is P.AWAITING_COPY
    assert lane.advance() is P.FINDING_LEFTOVERS


def test_copying_without_lease_awaits_copy(lane: Restore, monkeypatch: pytest.MonkeyPatch) -> None:
    lane.reach(P.COPYING)

    def without_lease(_partition: int, _stored: Any) -> bool:
        lane.copier.partition = None
        return False

    monkeypatch.setattr(lane.copier, "advance", without_lease)
    assert lane.advance() is P.AWAITING_COPY


def test_activate_while_copying_continues_the_copy(lane: Restore) -> None:
    lane.reach(P.COPYING)
    assert lane.activate(2) is P.FINDING_ENDS
    lane.found_ends()
    assert lane.advance() is P.COPYING
    assert not lane.copier.dropped


@pytest.mark.parametrize("phase", [phase for phase in P if phase not in (P.STANDBY, P.READY)])
def test_activate_without_generation_is_standby_and_drops_the_copy(
    lane: Restore, phase: RestorePhase
) -> None:
    lane.reach(phase)
    assert lane.activate(None) is P.STANDBY
    assert lane.copier.dropped == [PARTITION]
    assert lane.advance() is P.STANDBY


def test_phase_table_states_exactly_the_edges_of_the_code() -> None:
    """Edges that one call of advance() passes through are counted one by one."""
    expected = {
        (P.FINDING_ENDS, P.CATCHING_UP),
        (P.CATCHING_UP, P.READY),
        (P.CATCHING_UP, P.AWAITING_COPY),
        (P.AWAITING_COPY, P.FINDING_LEFTOVERS),
        (P.AWAITING_COPY, P.COPYING),
        (P.FINDING_LEFTOVERS, P.READING_LEFTOVERS),
        (P.READING_LEFTOVERS, P.READY),
        (P.READING_LEFTOVERS, P.COPYING),
        (P.READING_LEFTOVERS, P.AWAITING_COPY),
        (P.COPYING, P.FINDING_COPY),
        (P.COPYING, P.AWAITING_COPY),
        (P.FINDING_COPY, P.READING_COPY),
        (P.READING_COPY, P.READY),
        (P.READY, P.CATCHING_UP),
        ("any", P.FINDING_ENDS),
        ("any", P.STANDBY),
    }
    assert edges_of(RestorePhase) == expected


def test_marker_of_a_newer_format_behind_the_ends_is_waited_out() -> None:
    """It may be in the same batch as the last record before these ends."""
    restore = Restore(None)
    restore.store.log_end = lambda: 9
    restore.activate()
    restore.restore.found_ends(ENDS | {POLICIES: 1})
    marker = encode_marker(FIRST_MARKER)
    restore.store.merge(POLICIES, [Record(0, MARKER_KEY, marker), Record(1, MARKER_KEY, NEWER)])
    assert restore.do(restore.restore.advance) is P.CATCHING_UP
    restore.store.merge(POLICIES, [Record(2, MARKER_KEY, marker)])
    assert restore.do(restore.restore.advance) is P.READY
