from __future__ import annotations

import re

import pytest

import stoplog.client.fail_open
from stoplog.client.answer import Answer
from stoplog.client.fail_open import (
    FAIL_CLOSED,
    FAIL_OPEN,
    REASONS,
    Deadlines,
    degraded_answer,
    fails_closed,
)
from stoplog.client.pending_batch import PendingBatch
from stoplog.errors import InvalidInput
from tests.support.clockwork import Clockwork


def test_degraded_answer_allows_and_states_only_its_reason() -> None:
    for reason in REASONS:
        assert FAIL_OPEN[reason] == Answer(True, None, None, 0, 0, -1, True, reason)
        assert degraded_answer(reason, False) is FAIL_OPEN[reason]


def test_degraded_answer_that_fails_closed_denies_and_asks_to_retry() -> None:
    for reason in REASONS:
        assert degraded_answer(reason, True) is FAIL_CLOSED[reason]
        assert FAIL_CLOSED[reason] == Answer(False, None, None, 0, 1_000, -1, True, reason)


def test_only_allow_and_deny_state_what_a_check_asks_for() -> None:
    assert (fails_closed("allow"), fails_closed("deny")) == (False, True)
    for other in ("", "Deny", "denied", "true"):
        with pytest.raises(InvalidInput, match="use allow or deny"):
            fails_closed(other)


def test_table_of_the_rule_lists_every_reason() -> None:
    rows = re.findall(r"^``(\w+)``  ", stoplog.client.fail_open.__doc__ or "", re.MULTILINE)
    assert set(rows) == set(REASONS)


def test_deadline_of_batch_is_reported_once_at_its_time() -> None:
    loop, expired = Clockwork(), list[PendingBatch]()
    batch = PendingBatch(1, 0)
    Deadlines(loop, 0.25, expired.append).start(batch)
    loop.advance(0.2499)
    assert not expired
    loop.advance(1)
    assert expired == [batch]
    assert batch.timer is None


def test_batch_answered_in_the_turn_of_its_timer_has_no_deadline() -> None:
    loop, expired = Clockwork(), list[PendingBatch]()
    batch = PendingBatch(1, 0)
    Deadlines(loop, 0.25, expired.append).start(batch)
    loop.now += 1
    loop.call_soon(batch.cancel_timer)
    loop.timers[0]._run()
    loop.turn()
    assert not expired
