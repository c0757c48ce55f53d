"""Charges and refunds from the call to the answer, over a real batcher: the test replies for the worker."""

from __future__ import annotations

import pytest

from stoplog.client.answer import Answer, unwrap
from stoplog.client.fail_open import DEADLINE, NO_HOLDS
from stoplog.client.refunds import Refund
from stoplog.errors import InvalidId, InvalidInput
from stoplog.wire.checks import Check
from stoplog.wire.holds import (
    CHARGE,
    FIRST_RESERVED_NUMBER,
    NOT_REFUNDABLE,
    REFUND,
    REFUNDED_BEFORE,
    SAME_ID,
    SETTLED_NOW,
    Ask,
    Grant,
    Settlement,
)
from stoplog.wire.replies import HeldDecision
from tests.support.reservation_desk import ALICE, Desk


def test_charge_and_refund_travel_with_a_check_that_costs_nothing() -> None:
    desk = Desk()
    check = Check("alice", 40, "free", "tokens")
    charge = desk.reservations.charge(desk.bench.batcher, check)
    refund = desk.reservations.refund(desk.bench.batcher, check)
    desk.bench.loop.turn()
    assert desk.sent.checks == [Check("alice", 0, "free", "tokens")] * 2
    assert desk.sent.hold_rows is not None
    asks = [row.ask for row in desk.sent.hold_rows]
    assert [(ask.kind, ask.want, ask.ttl_ms) for ask in asks if ask] == [(CHARGE, 40, 1), (REFUND, 40, 1)]
    desk.reply(*[HeldDecision(True, 100, 60, 60_000, 0, 3, 0)] * 2)
    assert not isinstance(charge, Answer)
    assert not isinstance(refund, Answer)
    assert unwrap(charge).remaining == unwrap(refund).remaining == 60
    assert desk.counts() == {}, "they are not checks"


def test_refund_that_is_not_made_is_logged_with_the_remedy_once(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    for _ in range(2):
        desk.reservations.refund(desk.bench.batcher, ALICE)
        desk.bench.loop.turn()
        desk.reply(HeldDecision(True, 100, 60, 60_000, 0, 3, 0, reason=NOT_REFUNDABLE))
        desk.bench.loop.turn()
    assert caplog.messages == [f"a refund to client 'alice' was not made: {NOT_REFUNDABLE}"]


def test_before_holds_are_granted_a_charge_is_published_as_a_check_and_a_refund_is_not() -> None:
    desk = Desk(enabled=False)
    for call in (desk.reservations.refund, desk.reservations.charge):
        answer = call(desk.bench.batcher, ALICE)
        assert isinstance(answer, Answer)
        assert (answer.allowed, answer.reason) == (True, NO_HOLDS)
    desk.bench.loop.turn()
    [(_, sent)] = desk.bench.transport.sent
    assert (sent.checks, sent.partition, sent.hold_rows) == ([ALICE], -1, None)


def decision(units: int | None = None, reason: str = "") -> HeldDecision:
    grant = None if units is None else Grant(units, 0)
    return HeldDecision(True, 100, 60, 60_000, 0, 3, 0, grant, reason=reason)


def ask_of(desk: Desk) -> Ask:
    assert desk.sent.hold_rows is not None
    [row] = desk.sent.hold_rows
    assert row.ask is not None
    return row.ask


def test_refund_with_an_id_asks_the_log_to_remember_it() -> None:
    desk = Desk()
    call = desk.refund(Check("alice", 40, "free", "tokens"))
    assert desk.sent.checks == [Check("alice", 0, "free", "tokens")]
    ask = ask_of(desk)
    assert (ask.kind, ask.number, ask.want, ask.ttl_ms) == (REFUND, 1, 40, 1)
    assert ask.id[1] >= FIRST_RESERVED_NUMBER, "no lease has such an id"
    desk.reply(decision(25))
    assert call.result == Refund("order 7", "refunded", 25)
    assert desk.counts() == {}, "it is no check"


def test_repeated_call_has_the_same_id_in_the_log_at_every_gateway() -> None:
    desks = [Desk(), Desk()]
    ids = []
    for desk in desks:
        desk.refund()
        ids.append(ask_of(desk).id)
    assert ids[0] == ids[1]
    desks[0].reply(decision(1))
    desks[0].refund(refund_id="order 8")
    assert ask_of(desks[0]).id != ids[0]


def test_refund_without_an_id_gets_a_new_one_each_time() -> None:
    desk = Desk()
    found: list[object] = []
    for _ in range(2):
        call = desk.refund(refund_id=None)
        found.append(ask_of(desk).id)
        desk.reply(decision(1))
        found.append(call.result.id)
    assert len(set(found)) == 4
    again = desk.refund(refund_id=str(found[1]))
    assert ask_of(desk).id == found[0], "the id in the answer repeats the call"
    desk.reply(decision(1, REFUNDED_BEFORE))
    assert again.result.repeated


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (decision(0), Refund("order 7", "refunded", 0)),
        (decision(9, REFUNDED_BEFORE), Refund("order 7", "refunded", 9, True)),
        (decision(None, NOT_REFUNDABLE), Refund("order 7", "not_refundable")),
        (HeldDecision(True, None, None, 0, 0, 3, 0), Refund("order 7", "unlimited")),
    ],
)
def test_answer_of_the_log_tells_what_became_of_the_refund(answer: HeldDecision, expected: Refund) -> None:
    desk = Desk()
    call = desk.refund()
    desk.reply(answer)
    assert call.result == expected
    counted = "repeated" if expected.repeated else expected.state
    assert {state for state, count in desk.bench.metrics.refunds.items() if count} == {counted}


def test_refund_without_an_answer_in_time_is_unconfirmed() -> None:
    desk = Desk()
    call = desk.refund()
    desk.bench.loop.advance(desk.bench.deadline_s)
    assert call.result == Refund("order 7", "unconfirmed", reason=DEADLINE)
    assert desk.bench.metrics.refunds["unconfirmed"] == 1


def test_refund_before_holds_are_granted_sends_nothing_and_says_so() -> None:
    desk = Desk(enabled=False)
    assert desk.refund().result == Refund("order 7", "unconfirmed", reason=NO_HOLDS)
    assert not desk.bench.transport.sent


def test_refund_with_the_id_of_a_reservation_is_an_error_of_the_caller() -> None:
    desk = Desk()
    call = desk.refund()
    desk.reply(decision(None, SAME_ID))
    with pytest.raises(InvalidInput, match="another id") as caught:
        call.result  # noqa: B018
    assert caught.value.field == "refund_id"


@pytest.mark.parametrize("refund_id", ["", "x" * 257, "a\nb"])
def test_invalid_id_of_a_refund_is_refused_before_anything_is_sent(refund_id: str) -> None:
    desk = Desk()
    with pytest.raises(InvalidId) as caught:
        desk.refund(refund_id=refund_id)
    assert caught.value.field == "refund_id"
    assert not desk.bench.transport.sent


def test_refund_settles_first_what_was_spent_of_the_lease_of_its_client() -> None:
    desk = Desk(lease_max_ms=10_000)
    lease = desk.lease(20)
    for _ in range(3):
        assert isinstance(desk.bench.batcher.ask(Check("alice")), Answer), "a permit answers it"
    call = desk.refund(Check("alice", 3))
    assert desk.sent.hold_rows is not None
    [row] = desk.sent.hold_rows
    assert row.ask is not None
    assert (row.ask.kind, row.ask.want) == (REFUND, 3)
    assert row.settlements == (Settlement(lease, 3),)
    desk.reply(HeldDecision(True, 100, 60, 60_000, 0, 3, 0, Grant(3, 0), (SETTLED_NOW,)))
    assert call.result == Refund("order 7", "refunded", 3)
    assert not isinstance(desk.bench.batcher.ask(Check("alice")), Answer), "no permit is left"


def test_refund_gives_back_a_lease_that_was_being_granted() -> None:
    desk = Desk(lease_max_ms=10_000)
    for _ in range(50):
        desk.bench.batcher.ask(Check("alice"))
    desk.bench.loop.turn()
    assert desk.sent.hold_rows is not None
    [asked] = desk.sent.hold_rows
    assert asked.ask is not None
    answers = [HeldDecision(True, 100, 50, 60_000, 0, 3, 0)] * len(desk.sent.checks)
    answers[asked.index] = HeldDecision(True, 100, 50, 60_000, 0, 3, 0, Grant(20, 3_000))
    desk.reservations.refund(desk.bench.batcher, ALICE)
    desk.bench.leases.on_proof([0], desk.bench.loop.now)
    desk.reply(*answers)
    desk.bench.loop.turn()
    assert desk.sent.hold_rows is not None
    assert [row.settlements for row in desk.sent.hold_rows] == [(Settlement(asked.ask.id, 0),)]


def test_charge_leaves_the_lease_of_its_client_alone() -> None:
    desk = Desk(lease_max_ms=10_000)
    desk.lease(20)
    desk.reservations.charge(desk.bench.batcher, ALICE)
    desk.bench.loop.turn()
    assert ask_of(desk).kind == CHARGE
    assert isinstance(desk.bench.batcher.ask(Check("alice")), Answer)


def test_refunds_of_envoy_are_counted_by_their_result() -> None:
    desk = Desk()
    for reason in ("", NOT_REFUNDABLE):
        desk.reservations.refund(desk.bench.batcher, ALICE)
        desk.bench.loop.turn()
        assert ask_of(desk).number == 0, "the log does not remember it"
        desk.reply(decision(None if reason else 40, reason))
        desk.bench.loop.turn()
    counts = desk.bench.metrics.refunds
    assert (counts["refunded"], counts["not_refundable"]) == (1, 1)
