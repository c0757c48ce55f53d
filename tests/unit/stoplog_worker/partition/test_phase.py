"""Every move of a partition between two phases."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from stoplog_worker.consumer.partition_set import PartitionSet
from stoplog_worker.partition.phase import TRANSITIONS, PartitionPhase

ACTIVE, REVOKING, HANDING_OVER = PartitionPhase
PHASES = (None, *PartitionPhase)


class FakePartition:
    """The attributes that a set needs of a partition."""

    number = 3
    phase: PartitionPhase | None = None
    answer_until = 0.0

    def __init__(self) -> None:
        self.started: list[float] = []
        self.schedule: Any = self
        self.ledger: Any = self
        self.next_offset = 17

    def start(self, now: float) -> None:
        self.started.append(now)


def partition_in(phase: PartitionPhase | None) -> tuple[PartitionSet, Any]:
    """Return a set with one partition that has come to *phase* along the table's edges."""
    partitions, partition = PartitionSet(), FakePartition()
    one: Any = partition
    if phase is not None:
        partitions.add(one, 0.0)
    if phase in (REVOKING, HANDING_OVER):
        partitions.revoke()
    if phase is HANDING_OVER:
        partitions.hand_over([3], 5.0)
    assert partition.phase is phase
    return partitions, one


MOVES: dict[str, Callable[[PartitionSet, Any], object]] = {
    "add": lambda partitions, partition: partitions.add(partition, 1.0),
    "revoke": lambda partitions, _: partitions.revoke(),
    "resume": lambda partitions, _: partitions.resume([3], 1.0),
    "hand_over": lambda partitions, _: partitions.hand_over([3], 9.0),
    "remove": lambda partitions, partition: partitions.remove(partition),
}
LEADS_TO = {
    ("add", None): ACTIVE,
    ("revoke", ACTIVE): REVOKING,
    ("resume", REVOKING): ACTIVE,
    ("hand_over", REVOKING): HANDING_OVER,
    ("remove", ACTIVE): None,
    ("remove", REVOKING): None,
    ("remove", HANDING_OVER): None,
}
REFUSED = {("add", ACTIVE), ("add", REVOKING), ("add", HANDING_OVER), ("remove", None)}
"""Moves of one partition in the wrong phase are errors; moves of several skip those in another phase."""


@pytest.mark.parametrize(("move", "phase"), list(product(MOVES, PHASES)))
def test_move_from_each_phase_follows_the_table(move: str, phase: PartitionPhase | None) -> None:
    partitions, partition = partition_in(phase)
    if (move, phase) in REFUSED:
        with pytest.raises(ValueError, match="partition 3"):
            MOVES[move](partitions, partition)
        expected = phase
    else:
        MOVES[move](partitions, partition)
        expected = LEADS_TO.get((move, phase), phase)
    assert partition.phase is expected
    assert (partitions.by_number.get(3) is partition) == (expected is not None)
    assert (partition in partitions.active) == (expected is ACTIVE)
    assert (partition in partitions.handing_over) == (expected is HANDING_OVER)


def test_moves_walk_every_edge_of_the_table_and_no_other() -> None:
    assert {(phase, to) for (_, phase), to in LEADS_TO.items()} == TRANSITIONS


@pytest.mark.parametrize("edge", sorted(set(product(PHASES, PHASES)) - TRANSITIONS, key=str))
def test_edge_outside_the_table_is_refused(
    edge: tuple[PartitionPhase | None, PartitionPhase | None],
) -> None:
    partitions, partition = partition_in(edge[0])
    with pytest.raises(ValueError, match="partition 3 cannot go from"):
        partitions._move([partition], edge[1])
    assert partition.phase is edge[0]


def test_table_in_the_docstring_lists_every_edge() -> None:
    doc = PartitionPhase.__doc__ or ""
    rows = [line.split() for line in doc.split("Transitions;")[1].splitlines() if line.strip()]
    names = {"absent": None, **{phase.name: phase for phase in PartitionPhase}}
    edges = {(names[row[0]], names[row[-1]]) for row in rows if row[0] in names and row[-1] in names}
    assert edges == TRANSITIONS


def test_activation_starts_the_schedule_and_revocation_returns_the_goal() -> None:
    partitions, partition = partition_in(None)
    partitions.add(partition, 1.0)
    assert partitions.revoke() == {3: 17}
    assert partitions.revoke() == {}, "a partition gets one goal in a rebalance"
    assert partitions.resume([3, 4], 2.0) == {3}
    assert partition.started == [1.0, 2.0]


def test_handed_over_partition_is_answered_until_its_time() -> None:
    partitions, partition = partition_in(HANDING_OVER)
    assert partition.answer_until == 5.0
    assert partitions.handed_over([2, 3]) == [partition]
    assert partitions.handed_over([2]) == []
    assert partitions.in_phase(ACTIVE, REVOKING) == []
    assert partitions.in_phase(HANDING_OVER) == partitions.all() == [partition]
    assert (partitions.active, partitions.handing_over) == ((), (partition,))
