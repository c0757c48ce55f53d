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
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START, STRANGER
from tests.unit.stoplog_worker.algorithm.test_ledger import FIRST, flush

A, AB, ZOE = CLIENTS
FAULT = fault_finder(PARTITION, PARTITIONS)


def take(ledger: Ledger, offset: int, *checks: Check, after_ms: int = 0) -> list[Answer]:
    now = ledger.advance(offset, START + after_ms)
    return judge(ledger, offset, now, checks, FAULT)


def fresh() -> Ledger:
    return Ledger(NothingStored(), FIRST)


def decisions(answers: list[Answer]) -> list[Decision]:
    found = [answer for answer in answers if isinstance(answer, Decision)]
    assert len(found) == len(answers)
    return found


def test_in_the_order_of_the_batch_each_client_by_itself() -> None:
    ledger = fresh()
    answers = decisions(take(ledger, 0, Check(A, 60), Check(AB, 100), Check(A, 60), Check(A, 40)))
    assert [answer.allowed for answer in answers] == [True, True, False, True]
    assert [answer.remaining for answer in answers] == [40, 0, 40, 0]
    assert ledger.dirty.keys() == {A, AB}


def test_resources_have_counters_of_their_own() -> None:
    answers = decisions(take(fresh(), 0, Check(A, 100), Check(A, 100, "", "login"), Check(A, 1, "", "login")))
    assert [answer.allowed for answer in answers] == [True, True, False]


def test_unlimited_counts_nothing() -> None:
    ledger = fresh()
    ledger.apply(Update(4, "client", A, "", UNLIMITED), 0)
    assert (
        decisions(take(ledger, 1, Check(A, MAX_COST), Check(A, MAX_COST)))
        == [Decision(True, None, None, 0, 0, 4)] * 2
    )
    assert not ledger.dirty


def test_what_the_ledger_holds_is_not_judged_again() -> None:
    ledger = fresh()
    first = decisions(take(ledger, 5, Check(A, 60), Check(A, 60), Check(A, 30)))
    assert ledger.states[A].position == (5 << POSITION_BITS) + 2
    assert take(ledger, 5, Check(A, 60), Check(A, 60), Check(A, 30), Check(AB, 7)) == [
        None,
        None,
        None,
        Decision(True, 100, 93, first[0].reset_after_ms, 0, -1),
    ]


def test_a_refusal_that_comes_by_again_is_refused_again() -> None:
    ledger = fresh()
    take(ledger, 0, Check(A, 100))
    first = take(ledger, 1, Check(A), after_ms=5)
    assert take(ledger, 1, Check(A), after_ms=5) == first
    assert not decisions(first)[0].allowed


def test_a_refusal_is_answered_the_same_when_replayed_over_a_later_state() -> None:
    """Two charges half a minute apart; what is refused between must be, though the first has left since."""
    store = MemoryStore()
    ledger = Ledger(store, FIRST)
    limit = Update(0, "client", A, "", parse_policy("2/minute"))
    ledger.apply(limit, 0)
    take(ledger, 1, Check(A))
    take(ledger, 2, Check(A), after_ms=30_000)
    refused = take(ledger, 3, Check(A), after_ms=31_000)
    take(ledger, 4, Check(A, 2), after_ms=62_000)
    _, entries = ledger.take_dirty()
    store.write("counters", list(entries.counters))  # and then it died: no marker
    again = Ledger(store, FIRST)
    again.apply(limit, 0)
    assert take(again, 1, Check(A)) == [None]
    assert take(again, 2, Check(A), after_ms=30_000) == [None]
    assert take(again, 3, Check(A), after_ms=31_000) == refused


def test_the_plan_named_by_the_check_decides() -> None:
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
def test_an_unfit_check_is_told_why_and_the_rest_is_judged(check: Check, reason: str) -> None:
    ledger = fresh()
    first, unfit, last = take(ledger, 0, Check(A), check, Check(A))
    assert isinstance(unfit, str)
    assert reason in unfit
    assert [d.remaining for d in decisions([first, last])] == [99, 98]


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_unfit_plan_is_refused_whether_or_not_its_client_is_in_memory(in_memory: bool) -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST)
    take(ledger, 0, Check(A))
    flush(ledger, store)
    if not in_memory:
        ledger.evict(0)
    bad, good = take(ledger, 1, Check(A, 1, "a\nb"), Check(A))
    assert isinstance(bad, str)
    assert decisions([good])[0].remaining == 98


def test_one_read_brings_in_all_clients_of_a_batch() -> None:
    class Counting(NothingStored):
        def __init__(self) -> None:
            self.reads: list[list[bytes]] = []

        def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
            self.reads.append(list(keys))
            return super().counters(keys)

    reader = Counting()
    ledger = Ledger(reader, FIRST)
    take(ledger, 0, Check(A), Check(ZOE, 1, "", "login"), Check(A), Check(STRANGER), Check(ZOE))
    take(ledger, 1, Check(A), Check(ZOE))
    assert reader.reads == [[b"a", "zoë\0login".encode(), "zoë".encode()]]


def test_what_charges_nothing_to_a_client_without_charges_is_not_stored() -> None:
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


def test_who_has_no_charges_left_is_as_one_never_seen() -> None:
    """Else 5 an hour would still be counted on, for a client that has not been here for hours."""
    ledger = fresh()
    ledger.apply(Update(0, "client", A, "", parse_policy("5/hour")), 0)
    take(ledger, 1, Check(A, 5))
    ledger.apply(Update(1, "client", A, "", parse_policy("100/minute")), 2 << POSITION_BITS)
    take(ledger, 2, Check(A, 50), after_ms=2 * 3_600_000)
    assert list(ledger.states[A].windows) == [60_000]


def test_a_peek_leaves_what_has_left_as_it_was() -> None:
    """A replay may ask for the time before; what is in memory may be written with the position it has."""
    ledger = fresh()
    take(ledger, 0, Check(A, 100))
    before = encode_state(ledger.states[A])
    ledger.apply(Update(0, "client", A, "", parse_policy("3/hour")), 1 << POSITION_BITS)
    [peek] = decisions(take(ledger, 2, Check(A, 0), after_ms=7_200_000))
    assert peek.remaining == 3
    assert encode_state(ledger.states[A]) == before


def test_a_standing_tells_whose_limits_hold_and_what_counts_against_each() -> None:
    ledger = fresh()
    check = Check(A, 0, "gold")

    def standing(offset: int, check: Check, *, after_ms: int) -> dict[str, Any]:
        take(ledger, offset, check, after_ms=after_ms)
        return ledger.usage_report(check)

    take(ledger, 0, Check(A, 60))
    before = {"limit": "100/minute", "used": 60, "reset_after_ms": 60_000 - START % 1_000}
    assert standing(1, check, after_ms=1_000) == {"held_to": None, "windows": [before]}
    ledger.apply(Update(1, "default", "", "", parse_policy("9/day")), 2 << POSITION_BITS)
    ledger.advance(2, START + 1_000)
    assert standing(3, check, after_ms=1_000)["held_to"] == UpdateKey("default")
    ledger.apply(Update(2, "plan", "gold", "", parse_policy(["90/day", "70/minute"])), 4 << POSITION_BITS)
    ledger.advance(4, START + 1_000)
    found = standing(5, check, after_ms=1_000)
    assert found["held_to"] == UpdateKey("plan", "gold")
    assert [(w["limit"], w["used"]) for w in found["windows"]] == [("90/day", 60), ("70/minute", 60)]
    ledger.apply(Update(3, "client", A, "", UNLIMITED), 6 << POSITION_BITS)
    ledger.advance(6, START + 1_000)
    assert standing(7, check, after_ms=1_000) == {"held_to": UpdateKey("client", A), "windows": []}
    ledger.apply(Update(4, "client", A, "", None), 8 << POSITION_BITS)
    ledger.apply(Update(5, "plan", "gold", "login", parse_policy("1/day")), 9 << POSITION_BITS)
    ledger.advance(9, START + 1_000)
    assert standing(10, check, after_ms=1_000)["held_to"] == UpdateKey("plan", "gold")
    login = standing(11, Check(A, 0, "gold", "login"), after_ms=1_000)
    assert login["held_to"] == UpdateKey("plan", "gold", "login")
    assert login["windows"] == [{"limit": "1/day", "used": 0, "reset_after_ms": 0}]
