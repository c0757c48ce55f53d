"""Differences are counted, and equal or incomparable values are not."""

from __future__ import annotations

import pytest
from stoplog_worker.algorithm.hold_set import Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import (
    NEVER_SET,
    PolicyChange,
    State,
    encode_history,
    encode_state,
)
from stoplog_worker.state.store import COUNTERS
from stoplog_worker.verify.compare import (
    Finding,
    changed_entries,
    compare_answers,
    compare_policies,
    compare_states,
)

from stoplog.policy import parse_policy
from stoplog.wire.holds import NOT_OPEN, SETTLED_NOW, Grant
from stoplog.wire.replies import Decision, HeldDecision, as_held
from tests.support.memory_store import MemoryStore

NOW = 1_764_000_000_123
ALLOWED = Decision(True, 3, 2, 60_000, 0, -1)
DENIED = Decision(False, 3, 0, 60_000, 60_000, -1)


@pytest.fixture
def finding() -> Finding:
    return Finding(0, 0, 9)


def charged(
    position: int, *charges: tuple[int, int], newest_ms: int = 0, holds: tuple[Hold, ...] = ()
) -> bytes:
    window = Window(60_000)
    for after_ms, cost in charges:
        window.charge(NOW + after_ms, cost)
    return encode_state(State(position, {60_000: window}, newest_ms, HoldSet(holds) if holds else None))


def history(*positions: int) -> bytes:
    policy = parse_policy("3/minute")
    changes = [PolicyChange(position, position, policy) for position in positions]
    return encode_history(changes or [NEVER_SET], 9)


@pytest.mark.parametrize(
    ("recomputed", "stored", "clock_ms", "differ"),
    [
        (charged(1, (0, 5)), charged(9, (0, 5)), NOW, 0),
        (charged(1, (0, 5)), charged(1, (0, 6)), NOW, 1),
        (charged(1, (0, 5)), None, NOW, 1),
        (charged(1, (0, 5), newest_ms=NOW), charged(1, (0, 5)), NOW, 0),
        (charged(1, (0, 5), newest_ms=NOW), charged(1, (0, 5), newest_ms=NOW), NOW, 0),
        (charged(1, (0, 5), newest_ms=NOW), charged(1, (0, 5), newest_ms=NOW + 1), NOW, 1),
        (charged(1, (0, 5)), None, NOW + 120_000, 0),
        (None, None, NOW, 0),
    ],
)
def test_compare_states_counts_different_live_charges(
    finding: Finding, recomputed: bytes | None, stored: bytes | None, clock_ms: int, differ: int
) -> None:
    compare_states(finding, b"alice\0login", recomputed, stored, clock_ms)
    assert (finding.states, finding.differ) == (1, differ)
    assert all(text.startswith("counters of alice / login: ") for text in finding.differences)


@pytest.mark.parametrize(
    ("recomputed", "stored", "differ"),
    [
        (history(1, 5), history(1, 5), 0),
        (history(1, 5), history(5), 0),
        (history(5), history(1, 5), 0),
        (history(1, 5), history(1, 6), 1),
        (history(5), history(6), 1),
        (history(5), None, 1),
        (None, history(5), 1),
        (None, history(), 0),
        (history(5), history(), 1),
        (None, None, 0),
    ],
)
def test_compare_policies_counts_histories_that_end_differently(
    finding: Finding, recomputed: bytes | None, stored: bytes | None, differ: int
) -> None:
    compare_policies(finding, b"client\0alice\0", recomputed, stored)
    assert (finding.policies, finding.differ) == (1, differ)
    assert all(text.startswith("limits of client alice: ") for text in finding.differences)


def test_compare_answers_counts_different_decisions_and_skips_repeated_checks(finding: Finding) -> None:
    compare_answers(finding, 7, [ALLOWED, DENIED, None, ALLOWED], [ALLOWED, ALLOWED, ALLOWED, None])
    assert (finding.replies, finding.differ) == (2, 1)
    assert finding.differences[0].startswith("offset 7, check 1: recomputed Decision(allowed=False")


def test_compare_answers_of_another_number_is_one_difference(finding: Finding) -> None:
    compare_answers(finding, 7, [ALLOWED], [])
    assert (finding.replies, finding.differ) == (0, 1)


def test_note_describes_the_first_ten_differences(finding: Finding) -> None:
    for number in range(12):
        finding.note(str(number))
    assert finding.differ == 12
    assert finding.differences == [str(number) for number in range(10)]


def test_changed_entries_yields_newer_value_of_each_key() -> None:
    base, later = MemoryStore(), MemoryStore()
    base.write(COUNTERS, [(b"ahead", charged(9)), (b"old", charged(1)), (b"lost", charged(1))])
    later.write(COUNTERS, [(b"ahead", charged(8)), (b"new", charged(2)), (b"old", charged(2))])
    assert list(changed_entries(base, later, COUNTERS, {b"lost": charged(3), b"new": charged(2)})) == [
        (b"ahead", charged(9), charged(9)),
        (b"new", None, charged(2)),
        (b"old", charged(1), charged(2)),
        (b"lost", charged(1), charged(1)),
    ]


def test_compare_states_counts_different_holds(finding: Finding) -> None:
    hold = Hold((7, 1, 0), 0, 1, NOW + 3_000, 5)
    held = charged(1, (0, 5), newest_ms=NOW, holds=(hold,))
    compare_states(finding, b"alice", held, held, NOW)
    assert finding.differ == 0
    compare_states(finding, b"alice", held, charged(1, (0, 5), newest_ms=NOW), NOW)
    assert finding.differ == 1
    assert finding.differences[0].startswith("holds of alice: ")


def test_compare_answers_reads_missing_fields_about_holds_as_nothing_held(finding: Finding) -> None:
    plain = as_held(ALLOWED)
    grant = HeldDecision(True, 3, 2, 60_000, 0, -1, 0, Grant(1, 5))
    compare_answers(finding, 7, [ALLOWED, grant, (SETTLED_NOW,)], [plain, grant, (SETTLED_NOW,)])
    assert (finding.replies, finding.differ) == (3, 0)
    compare_answers(finding, 7, [ALLOWED, grant, (SETTLED_NOW,)], [grant, plain, (NOT_OPEN,)])
    assert finding.differ == 3
