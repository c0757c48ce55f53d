from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from stoplog_worker.algorithm.fold import Answer, fault_finder, judge
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import encode_state
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import MAX_COST, UNLIMITED, parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import Update, UpdateKey
from stoplog.wire.replies import Decision
from tests.support.ledgers import FIRST_MARKER, checkpoint
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START, STRANGER

A, AB, ZOE = CLIENTS
FAULT = fault_finder(PARTITION, PARTITIONS)


def take(ledger: Ledger, offset: int, *checks: Check, after_ms: int = 0) -> list[Answer]:
    now = ledger.advance(offset, START + after_ms)
    return judge(ledger, offset, now, checks, FAULT)


def fresh() -> Ledger:
    return Ledger(NothingStored(), FIRST_MARKER)


def decisions(answers: list[Answer]) -> list[Decision]:
    found = [answer for answer in answers if isinstance(answer, Decision)]
    assert len(found) == len(answers)
    return found


def test_judge_batch_decides_in_order_for_each_client() -> None:
    ledger = fresh()
    answers = decisions(take(ledger, 0, Check(A, 60), Check(AB, 100), Check(A, 60), Check(A, 40)))
    assert [answer.allowed for answer in answers] == [True, True, False, True]
    assert [answer.remaining for answer in answers] == [40, 0, 40, 0]
    assert ledger.dirty.keys() == {A, AB}


def test_judge_resources_have_separate_counters() -> None:
    answers = decisions(take(fresh(), 0, Check(A, 100), Check(A, 100, "", "login"), Check(A, 1, "", "login")))
    assert [answer.allowed for answer in answers] == [True, True, False]


def test_judge_unlimited_client_charges_nothing() -> None:
    ledger = fresh()
    ledger.apply(Update(4, "client", A, "", UNLIMITED), 0)
    assert (
        decisions(take(ledger, 1, Check(A, MAX_COST), Check(A, MAX_COST)))
        == [Decision(True, None, None, 0, 0, 4)] * 2
    )
    assert not ledger.dirty


@pytest.mark.parametrize("reloaded", [False, True], ids=["in memory", "loaded from disk"])
def test_judge_shorter_window_counts_from_newest_charge(reloaded: bool) -> None:
    """A tick of 31 days is 12.4 hours long. Its charges were read as made at its end."""
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    ledger.apply(Update(0, "client", A, "", parse_policy("1000/31d")), 0)
    take(ledger, 1, Check(A, 5), after_ms=0)
    take(ledger, 2, Check(A, 5), after_ms=600_000)
    ledger.apply(Update(1, "client", A, "", parse_policy("5/minute")), 3 << POSITION_BITS)
    if reloaded:
        checkpoint(ledger, store)
        ledger = Ledger(store, ledger.marker)
    [denied] = decisions(take(ledger, 4, Check(A), after_ms=650_000))
    assert not denied.allowed
    assert denied.retry_after_ms is not None
    assert 10_000 <= denied.retry_after_ms <= 11_000
    assert decisions(take(ledger, 5, Check(A), after_ms=661_000))[0].allowed


def test_judge_shorter_window_of_unknown_newest_charge_counts_from_change() -> None:
    """Workers of release 0.2.0 did not store the time of the newest charge."""
    ledger = fresh()
    ledger.apply(Update(0, "client", A, "", parse_policy("1000/31d")), 0)
    take(ledger, 1, Check(A, 5), after_ms=0)
    ledger.states[A].newest_ms = 0
    ledger.apply(Update(1, "client", A, "", parse_policy("5/minute")), 2 << POSITION_BITS)
    assert not decisions(take(ledger, 3, Check(A), after_ms=650_000))[0].allowed
    assert decisions(take(ledger, 4, Check(A), after_ms=711_000))[0].allowed


def test_judge_replayed_charge_is_not_decided_again() -> None:
    ledger = fresh()
    first = decisions(take(ledger, 5, Check(A, 60), Check(A, 60), Check(A, 30)))
    assert ledger.states[A].position == (5 << POSITION_BITS) + 2
    assert take(ledger, 5, Check(A, 60), Check(A, 60), Check(A, 30), Check(AB, 7)) == [
        None,
        None,
        None,
        Decision(True, 100, 93, first[0].reset_after_ms, 0, -1),
    ]


def test_judge_replayed_denial_is_denied_again() -> None:
    ledger = fresh()
    take(ledger, 0, Check(A, 100))
    first = take(ledger, 1, Check(A), after_ms=5)
    assert take(ledger, 1, Check(A), after_ms=5) == first
    assert not decisions(first)[0].allowed


def test_judge_denial_replayed_over_later_state_is_equal() -> None:
    """The denied check lies between two charges. The first of them has left the window by the second."""
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    limit = Update(0, "client", A, "", parse_policy("2/minute"))
    ledger.apply(limit, 0)
    take(ledger, 1, Check(A))
    take(ledger, 2, Check(A), after_ms=30_000)
    denied = take(ledger, 3, Check(A), after_ms=31_000)
    take(ledger, 4, Check(A, 2), after_ms=62_000)
    _, entries = ledger.take_dirty()
    store.write("counters", list(entries.counters))  # a crash before the marker was written
    again = Ledger(store, FIRST_MARKER)
    again.apply(limit, 0)
    assert take(again, 1, Check(A)) == [None]
    assert take(again, 2, Check(A), after_ms=30_000) == [None]
    assert take(again, 3, Check(A), after_ms=31_000) == denied


def test_judge_uses_plan_of_each_check() -> None:
    ledger = fresh()
    ledger.apply(Update(0, "plan", "gold", "", parse_policy("1000/minute")), 0)
    answers = decisions(
        take(ledger, 1, Check(A, 1, "gold"), Check(A), Check(A, 1, "tin"), Check(A, 1, "gold"))
    )
    assert [answer.limit for answer in answers] == [1000, 100, 100, 1000]
    assert [answer.remaining for answer in answers] == [999, 98, 97, 996]


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (Check(""), "client_id: empty"),
        (Check("a\x00b"), "client_id: contains a control character"),
        (Check("é" * 129), "client_id: longer than 256 bytes"),
        (Check(A, 1, "a\x00b"), "plan: contains a control character"),
        (Check(A, 1, "", "x\n"), "resource: contains a control character"),
        (Check(STRANGER), "murmur2_random"),
    ],
)
def test_judge_invalid_check_returns_reason_and_decides_the_rest(check: Check, reason: str) -> None:
    ledger = fresh()
    first, invalid, last = take(ledger, 0, Check(A), check, Check(A))
    assert isinstance(invalid, str)
    assert reason in invalid
    assert [d.remaining for d in decisions([first, last])] == [99, 98]


@pytest.mark.parametrize("in_memory", [True, False])
def test_judge_invalid_plan_is_refused_with_client_in_memory_or_not(in_memory: bool) -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    take(ledger, 0, Check(A))
    checkpoint(ledger, store)
    if not in_memory:
        ledger.evict(0)
    bad, good = take(ledger, 1, Check(A, 1, "a\nb"), Check(A))
    assert isinstance(bad, str)
    assert decisions([good])[0].remaining == 98


def test_judge_batch_loads_all_clients_in_one_read() -> None:
    class Counting(NothingStored):
        def __init__(self) -> None:
            self.reads: list[list[bytes]] = []

        def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
            self.reads.append(list(keys))
            return super().counters(keys)

    reader = Counting()
    ledger = Ledger(reader, FIRST_MARKER)
    take(ledger, 0, Check(A), Check(ZOE, 1, "", "login"), Check(A), Check(STRANGER), Check(ZOE))
    take(ledger, 1, Check(A), Check(ZOE))
    assert reader.reads == [[b"a", "zoë\0login".encode(), "zoë".encode()]]


def test_judge_without_charge_stores_nothing() -> None:
    ledger = fresh()
    ledger.apply(Update(0, "client", A, "", parse_policy("0/minute")), 0)
    assert [d.allowed for d in decisions(take(ledger, 1, Check(A), Check(A, 0), Check(AB, 0)))] == [
        False,
        True,
        True,
    ]
    assert not ledger.dirty
    take(ledger, 2, Check(AB))
    assert ledger.dirty.keys() == {AB}


def test_judge_client_without_live_charges_is_like_a_new_one() -> None:
    """Otherwise the hour window of the old policy would still be kept and charged."""
    ledger = fresh()
    ledger.apply(Update(0, "client", A, "", parse_policy("5/hour")), 0)
    take(ledger, 1, Check(A, 5))
    ledger.apply(Update(1, "client", A, "", parse_policy("100/minute")), 2 << POSITION_BITS)
    take(ledger, 2, Check(A, 50), after_ms=2 * 3_600_000)
    assert list(ledger.states[A].windows) == [60_000]


def test_judge_check_of_cost_0_leaves_expired_charges() -> None:
    """A replay may decide earlier checks against this state, which is stored under its old position."""
    ledger = fresh()
    take(ledger, 0, Check(A, 100))
    before = encode_state(ledger.states[A])
    ledger.apply(Update(0, "client", A, "", parse_policy("3/hour")), 1 << POSITION_BITS)
    [look] = decisions(take(ledger, 2, Check(A, 0), after_ms=7_200_000))
    assert look.remaining == 3
    assert encode_state(ledger.states[A]) == before


def test_usage_report_names_policy_and_usage_of_each_limit() -> None:
    ledger = fresh()
    check = Check(A, 0, "gold")

    def report(offset: int, check: Check, *, after_ms: int) -> dict[str, Any]:
        take(ledger, offset, check, after_ms=after_ms)
        return ledger.usage_report(check)

    take(ledger, 0, Check(A, 60))
    before = {"limit": "100/minute", "used": 60, "reset_after_ms": 60_000 - START % 1_000}
    assert report(1, check, after_ms=1_000) == {"held_to": None, "windows": [before]}
    ledger.apply(Update(1, "default", "", "", parse_policy("9/day")), 2 << POSITION_BITS)
    ledger.advance(2, START + 1_000)
    assert report(3, check, after_ms=1_000)["held_to"] == UpdateKey("default")
    ledger.apply(Update(2, "plan", "gold", "", parse_policy(["90/day", "70/minute"])), 4 << POSITION_BITS)
    ledger.advance(4, START + 1_000)
    found = report(5, check, after_ms=1_000)
    assert found["held_to"] == UpdateKey("plan", "gold")
    assert [(w["limit"], w["used"]) for w in found["windows"]] == [("90/day", 60), ("70/minute", 60)]
    ledger.apply(Update(3, "client", A, "", UNLIMITED), 6 << POSITION_BITS)
    ledger.advance(6, START + 1_000)
    assert report(7, check, after_ms=1_000) == {"held_to": UpdateKey("client", A), "windows": []}
    ledger.apply(Update(4, "client", A, "", None), 8 << POSITION_BITS)
    ledger.apply(Update(5, "plan", "gold", "login", parse_policy("1/day")), 9 << POSITION_BITS)
    ledger.advance(9, START + 1_000)
    assert report(10, check, after_ms=1_000)["held_to"] == UpdateKey("plan", "gold")
    login = report(11, Check(A, 0, "gold", "login"), after_ms=1_000)
    assert login["held_to"] == UpdateKey("plan", "gold", "login")
    assert login["windows"] == [{"limit": "1/day", "used": 0, "reset_after_ms": 0}]
