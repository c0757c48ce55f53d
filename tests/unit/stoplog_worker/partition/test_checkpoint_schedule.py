"""When checkpoints are due."""

from __future__ import annotations

import pytest
from stoplog_worker.partition.checkpoint_schedule import RETRY_S, URGENT_INTERVAL_S, CheckpointSchedule


def test_regular_checkpoint_is_due_an_interval_after_the_one_before() -> None:
    schedule = CheckpointSchedule(5.0)
    schedule.begun(100.0)
    assert not schedule.is_due(104.9, urgent=False)
    assert schedule.is_due(105.0, urgent=False)


def test_urgent_checkpoint_is_due_a_second_after_the_one_before() -> None:
    schedule = CheckpointSchedule(5.0)
    schedule.begun(100.0)
    assert not schedule.is_due(100.9, urgent=True)
    assert schedule.is_due(101.0, urgent=True)


def test_interval_below_a_second_also_holds_for_urgent_checkpoints() -> None:
    schedule = CheckpointSchedule(0.05)
    schedule.begun(100.0)
    assert not schedule.is_due(100.04, urgent=True)
    assert schedule.is_due(100.05, urgent=True)
    assert schedule.is_due(100.05, urgent=False)


@pytest.mark.parametrize("urgent", [False, True])
@pytest.mark.parametrize("stagger", [0.0, 0.25, 0.75])
def test_first_checkpoint_is_staggered_by_partition(stagger: float, urgent: bool) -> None:
    schedule = CheckpointSchedule(5.0, stagger)
    schedule.start(100.0)
    due = 100.0 + (1 + stagger) * URGENT_INTERVAL_S
    assert not schedule.is_due(due - 0.01, urgent=urgent)
    assert schedule.is_due(due, urgent=urgent)


def test_expedited_checkpoint_is_due_like_an_urgent_one() -> None:
    schedule = CheckpointSchedule(5.0)
    schedule.begun(100.0)
    schedule.expedite()
    assert not schedule.is_due(100.9, urgent=False)
    assert schedule.is_due(101.0, urgent=False)


def test_last_checkpoint_is_due_at_once_and_after_a_failure_half_a_second_later() -> None:
    schedule = CheckpointSchedule(5.0)
    assert schedule.last_is_due(100.0, failed=False)
    assert schedule.last_is_due(100.0, failed=True), "the failure of a regular checkpoint delays nothing"
    schedule.last_begun(100.0)
    assert not schedule.last_is_due(100.0 + RETRY_S - 0.01, failed=True)
    assert schedule.last_is_due(100.0 + RETRY_S, failed=True)
    assert schedule.last_is_due(100.1, failed=False)
