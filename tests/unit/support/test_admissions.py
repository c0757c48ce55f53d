"""The comparison of admissions by leases with the log."""

from __future__ import annotations

from collections import Counter

import pytest
from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.verify.replay import Record

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import LEASE, Ask, Grant, HoldRow, Settlement, SettlementBatch, SettlementRow
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import HeldDecision
from tests.support.faults.admissions import Shown, check_windows, permits, without_decision
from tests.support.faults.load import SentCheck

FIRST, SECOND = (7, 1, 0), (7, 2, 0)


def batch(offset: int, *settlements: Settlement, ask: Ask | None = None) -> Record:
    value = encode_batch(Batch(0, 7, offset, [Check("a")], [HoldRow(0, ask, settlements)]))
    return Record(offset, 0, value)


def answer(grant: Grant | None) -> list[Answer]:
    return [HeldDecision(True, 100, 50, 0, 0, 3, 0, grant)]


def test_permits_are_those_granted_less_those_given_back() -> None:
    records = [
        batch(0, ask=Ask(LEASE, FIRST, 1, 20, 3_000)),
        batch(1, Settlement(FIRST, 5, True), ask=Ask(LEASE, SECOND, 2, 20, 3_000, (FIRST,))),
        Record(2, 0, encode_settlements(SettlementBatch(-1, 7, 0, [SettlementRow("a", "", ())]))),
        Record(
            3,
            0,
            encode_settlements(
                SettlementBatch(-1, 7, 0, [SettlementRow("a", "", (Settlement(FIRST, 2),))]),
            ),
        ),
        batch(4, Settlement(FIRST, 2)),
    ]
    decided = {
        0: answer(Grant(20, 3_000)),
        1: answer(Grant(16, 3_000)),
        4: answer(None),
    }
    assert permits(records[:2], decided) == {"a": 36}
    assert permits(records, decided) == {"a": 5 + 2 + 16}, "a settlement that is repeated counts once"


def shown(remaining: int | None, *, allowed: bool = True, reset_ms: int = 60_000) -> Shown:
    return (allowed, remaining and 100, remaining, reset_ms, 0, 3)


def test_decision_accounts_for_one_answer_which_may_leave_more_by_the_permits_of_the_gateway() -> None:
    decisions = Counter([shown(40), shown(50), shown(None)])
    assert not without_decision(Counter([shown(60), shown(40), shown(None)]), decisions)
    assert not without_decision(Counter([shown(50), shown(45)]), decisions)
    for wrong in (shown(39), shown(60, reset_ms=1), shown(60, allowed=False)):
        assert without_decision(Counter([wrong]), decisions) == Counter([wrong])
    assert without_decision(Counter([shown(60)] * 3), decisions).total() == 1


def sent(sent_at: float, ended_at: float, *, allowed: bool = True, client: str = "a") -> SentCheck:
    return SentCheck(
        "g", client, sent_at, ended_at, {"allowed": allowed, "degraded": False, "policy_version": 4}
    )


LIMITS = Record(0, 0, encode_update(Update(4, "client", "a", "", parse_policy("2/10s"))))
RESET = Record(1, 0, encode_update(Update(5, "reset", "a", "", None)))
DEFAULT = parse_policy("100/minute")


def test_admissions_above_a_limit_within_an_interval_are_found() -> None:
    above = [sent(0, 1), sent(4, 5), sent(8, 9.9)]
    with pytest.raises(AssertionError, match="a was admitted 3 times"):
        check_windows([LIMITS], DEFAULT, above)
    assert check_windows([LIMITS, RESET], DEFAULT, above) == 0, "the client was reset"
    assert check_windows([LIMITS], DEFAULT, [*above[:2], sent(8, 9, allowed=False)]) == 2
    assert check_windows([LIMITS], DEFAULT, [*above[:2], sent(8, 10.1)]) == 3, "it may be admitted later"
