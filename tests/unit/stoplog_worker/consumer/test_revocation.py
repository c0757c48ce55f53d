"""The last checkpoints of revoked partitions."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from stoplog_worker.consumer.revocation import Revocation
from stoplog_worker.partition.phase import PartitionPhase


class FakePartition:
    """A partition whose last checkpoint completes when the test sets ``complete``."""

    phase = PartitionPhase.REVOKING
    busy = True
    complete = False

    def __init__(self) -> None:
        self.goals: list[int] = []

    def checkpoint_to(self, goal: int, _now: float, _until: float) -> bool:
        self.goals.append(goal)
        return self.complete


class Case:
    """Two revoked partitions with goals, until second 5, dropped at second 30."""

    def __init__(self) -> None:
        self.one, self.other = FakePartition(), FakePartition()
        self.partitions: Any = SimpleNamespace(by_number={1: self.one, 2: self.other})
        self.held = True
        self.done: Future[None] = Future()
        self.revocation = Revocation(self.done, {1: 10, 2: 20}, write_until=5.0, drop_at=30.0)

    def advance(self, now: float) -> bool:
        lease: Any = SimpleNamespace(holds=lambda: self.held)
        return self.revocation.advance(self.partitions, lease, now, now)


def test_revocation_ends_when_every_goal_is_reached() -> None:
    case = Case()
    assert case.advance(0.0), "a checkpoint can go on at once"
    case.one.complete = True
    case.other.busy = False
    assert not case.advance(0.1), "the other one waits for acknowledgments"
    assert not case.done.done()
    case.other.complete = True
    case.advance(0.2)
    assert case.done.done()
    assert (case.one.goals, case.other.goals) == ([10, 10], [20, 20, 20])


def test_revocation_ends_when_time_is_up() -> None:
    case = Case()
    case.advance(4.9)
    assert case.revocation.writing
    case.advance(5.0)
    assert not case.revocation.writing


def test_revocation_without_lease_writes_nothing_and_ends() -> None:
    case = Case()
    case.held = False
    assert not case.advance(0.0)
    assert case.done.done()
    assert case.one.goals == []


def test_partition_that_left_the_phase_has_no_goal_any_more() -> None:
    case = Case()
    case.one.phase = PartitionPhase.HANDING_OVER
    del case.partitions.by_number[2]
    case.advance(0.0)
    assert case.done.done()
    assert case.one.goals == []


def test_unfinished_goals_go_to_the_next_rebalance_only_while_writing() -> None:
    case = Case()
    assert case.revocation.unfinished_goals() == {1: 10, 2: 20}
    case.revocation.end()
    assert case.revocation.unfinished_goals() == {}


def test_rebalance_is_overdue_once_nothing_is_written_and_its_time_is_up() -> None:
    case = Case()
    assert not case.revocation.overdue(30.0)
    case.revocation.end()
    assert not case.revocation.overdue(29.9)
    assert case.revocation.overdue(30.0)
