"""Reservations from the call to the answer, over a real batcher: the test replies for the worker."""

from __future__ import annotations

import asyncio
import time
from base64 import urlsafe_b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.answer import Answer
from stoplog.client.fail_open import (
    BREAKER_OPEN,
    BROKER,
    DEADLINE,
    NO_HOLDS,
    OVERLOAD,
    REJECTED_BATCH,
    REPLAYED,
    STOPPING,
    UNPUBLISHED,
)
from stoplog.client.partition_queue import GATHER_S
from stoplog.client.reservations import (
    Reservation,
    ReservationId,
    Reservations,
    Settled,
    check_ttl,
    decode_id,
    encode_id,
)
from stoplog.errors import InvalidCost, InvalidId, InvalidInput, UpgradeFirst
from stoplog.wire.checks import Check
from stoplog.wire.holds import (
    NOT_OPEN,
    RESERVATION,
    SETTLED_NOW,
    TOO_MANY_RESERVATIONS,
    Ask,
    HoldRow,
    Settlement,
)
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.reservation_desk import ALICE, GRANTED, Call, Desk


def test_reservation_asks_with_a_check_and_carries_the_grant() -> None:
    desk = Desk()
    call = desk.open(Check("alice", 40, "free", "tokens"))
    assert desk.sent.checks == [Check("alice", 40, "free", "tokens")]
    assert desk.sent.hold_rows is not None
    [row] = desk.sent.hold_rows
    assert row.ask is not None
    assert row == HoldRow(0, Ask(RESERVATION, row.ask.id, 0, 0, 5_000))
    desk.reply(GRANTED)
    answer = call.result
    assert answer == Reservation(True, 100, 60, 60_000, 0, 3, id=answer.id, held=40, ttl_ms=5_000)
    assert answer.id is not None
    content = decode_id(answer.id)
    assert (content.hold, content.client, content.plan, content.resource) == (
        row.ask.id,
        "alice",
        "free",
        "tokens",
    )
    assert content.expires_ms == desk.now_ms + 5_000
    assert desk.counts() == {"received": 1, "allowed": 1}
    assert desk.bench.metrics.reservations == {"granted": 1, "denied": 0, "degraded": 0}


def test_ids_of_reservations_cannot_be_guessed() -> None:
    desk = Desk()
    for _ in range(2):
        desk.open()
    rows = [row for _, batch in desk.bench.transport.sent for row in batch.hold_rows or ()]
    numbers = [row.ask.id[1] for row in rows if row.ask is not None]
    assert all(number >= 1 << 63 for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_caller_that_gives_up_gives_back_what_may_still_be_granted() -> None:
    desk = Desk()
    call = Reservations.open(
        desk.reservations, desk.bench.batcher, Check("alice", 40, "free", "a"), 5_000, False
    )
    call.send(None)
    desk.bench.loop.turn()
    assert desk.sent.hold_rows is not None
    [asked] = desk.sent.hold_rows
    assert asked.ask is not None
    with pytest.raises(asyncio.CancelledError):
        call.throw(asyncio.CancelledError())
    desk.reply(GRANTED)
    desk.bench.loop.turn()
    assert desk.sent.checks == [Check("alice", 0, "free", "a")]
    assert desk.sent.hold_rows == [HoldRow(0, None, (Settlement(asked.ask.id, 0),))]


def test_denied_reservation_has_no_id() -> None:
    desk = Desk()
    call = desk.open()
    desk.reply(HeldDecision(False, 100, 3, 60_000, 4_000, 3, 0, None, (), TOO_MANY_RESERVATIONS))
    assert call.result == Reservation(False, 100, 3, 60_000, 4_000, 3, detail=TOO_MANY_RESERVATIONS)
    assert desk.counts() == {"received": 1, "rejected": 1}
    assert list(desk.bench.rejections.summary()) == ["alice"]


def test_denial_that_stands_whatever_is_given_back_is_answered_by_the_deny_cache() -> None:
    desk = Desk()
    desk.bench.denials.on_proof([0], desk.bench.loop.now)
    call, sent = desk.open(), len(desk.bench.transport.sent)
    desk.reply(HeldDecision(False, 100, 3, 60_000, 4_000, 3, 3_000))
    assert not call.result.allowed
    again = desk.open().result
    assert (again.allowed, again.id, again.retry_after_ms) == (False, None, 4_000)
    assert len(desk.bench.transport.sent) == sent
    assert desk.counts() == {"received": 2, "rejected": 2}


def test_unlimited_client_holds_nothing_and_its_settlement_is_not_sent() -> None:
    desk = Desk()
    call = desk.open()
    desk.reply(HeldDecision(True, None, None, 0, 0, 3, 0))
    answer, sent = call.result, len(desk.bench.transport.sent)
    assert (answer.allowed, answer.held, answer.ttl_ms) == (True, 0, 0)
    settled = desk.settle(answer.id, 9).result
    assert settled == Settled(str(answer.id), "unlimited")
    assert len(desk.bench.transport.sent) == sent


def test_settlement_is_sent_with_a_check_that_charges_nothing() -> None:
    desk = Desk()
    answer = desk.opened()
    call = desk.settle(answer.id, 9)
    assert answer.id is not None
    assert desk.sent.checks == [Check("alice", 0)]
    assert desk.sent.hold_rows == [HoldRow(0, None, (Settlement(decode_id(answer.id).hold, 9),))]
    desk.reply(HeldDecision(True, 100, 91, 60_000, 0, 3, 0, None, (SETTLED_NOW,)))
    assert call.result == Settled(answer.id, "settled", 9)
    assert desk.counts() == {"received": 1, "allowed": 1}, "a settlement is no check"


def test_result_says_what_became_of_the_reservation() -> None:
    assert Desk().answered(SETTLED_NOW).used == 9
    found = Desk().answered(4)
    assert (found.state, found.used, found.repeated) == ("settled", 4, True)
    found = Desk().answered(0)
    assert (found.state, found.used, found.repeated) == ("settled", 0, True)
    desk = Desk()
    assert desk.answered(NOT_OPEN).state == "unknown"
    id_ = desk.opened().id
    desk.now_ms += 5_000
    call = desk.settle(id_, 9)
    desk.reply(HeldDecision(False, 100, 0, 60_000, 5, 3, 0, None, (NOT_OPEN,)))
    assert call.result == Settled(str(id_), "over")
    assert desk.bench.metrics.rejected == 0, "a settlement is not rejected"
    counts = desk.bench.metrics.settlements
    assert (counts["unknown"], counts["over"], counts["settled"]) == (1, 1, 0)


def test_reservation_that_has_ended_in_the_log_is_over_although_its_reply_took_time() -> None:
    """Its time to live runs from its record on, and the reply came later."""
    desk = Desk()
    call = desk.open()
    desk.now_ms += 40
    desk.reply(GRANTED)
    desk.now_ms += 4_960
    late = desk.settle(call.result.id, 9)
    desk.reply(HeldDecision(True, 100, 60, 60_000, 0, 3, 0, None, (NOT_OPEN,)))
    assert late.result.state == "over"


@pytest.mark.parametrize("closed", [False, True])
def test_reservation_that_the_store_does_not_decide_is_degraded_and_has_an_id(closed: bool) -> None:
    desk = Desk()
    call = desk.open(closed=closed)
    desk.bench.loop.advance(desk.bench.deadline_s)
    answer = call.result
    assert (answer.allowed, answer.degraded, answer.reason) == (not closed, True, DEADLINE)
    assert (answer.held, answer.ttl_ms) == (0, 0)
    assert answer.id is not None
    assert desk.sent.hold_rows is not None
    assert desk.sent.hold_rows[0].ask is not None
    assert decode_id(answer.id).hold == desk.sent.hold_rows[0].ask.id
    metrics = desk.bench.metrics
    assert (metrics.degraded[DEADLINE], metrics.failed_closed[DEADLINE]) == (not closed, closed)
    assert metrics.in_flight == 0
    call2 = desk.settle(answer.id, 9)
    desk.bench.loop.advance(desk.bench.deadline_s)
    assert call2.result == Settled(answer.id, "unconfirmed", reason=DEADLINE)
    assert metrics.degraded[DEADLINE] == (not closed), "a settlement is no check"


def test_reservations_and_settlements_are_published_while_the_breaker_is_open() -> None:
    desk = Desk()
    id_ = desk.opened().id
    desk.bench.open_breaker()
    desk.bench.loop.advance(GATHER_S)
    sent = len(desk.bench.transport.sent)
    assert desk.open().result.reason == BREAKER_OPEN
    assert desk.settle(id_, 9).result.reason == BREAKER_OPEN
    desk.bench.loop.advance(GATHER_S)
    [(_, batch)] = desk.bench.transport.sent[sent:]
    assert [check.cost for check in batch.checks] == [40, 0]
    assert batch.hold_rows is not None
    assert [(row.index, row.ask is None, len(row.settlements)) for row in batch.hold_rows] == [
        (0, False, 0),
        (1, True, 1),
    ]


def test_partition_that_grants_no_holds_gets_a_check_instead() -> None:
    desk = Desk(enabled=False)
    answer = desk.open().result
    assert (answer.allowed, answer.reason) == (True, NO_HOLDS)
    assert (desk.sent.partition, desk.sent.checks, desk.sent.hold_rows) == (-1, [ALICE], None)
    sent = len(desk.bench.transport.sent)
    assert desk.settle(answer.id, 9).result.reason == NO_HOLDS
    assert len(desk.bench.transport.sent) == sent


def test_reservation_names_the_workers_that_keep_its_partition_from_granting_any() -> None:
    desk = Desk(enabled=False)
    desk.old_workers = ["w1@old", "w2@old"]
    with pytest.raises(UpgradeFirst, match="upgrade worker w1@old and worker w2@old first") as raised:
        desk.open()
    with pytest.raises(UpgradeFirst, match="refunds need"):
        desk.refund()
    assert str(raised.value).endswith(raised.value.remedy)
    assert not desk.bench.transport.sent
    assert desk.counts() == {}


def test_reservation_is_granted_beside_an_old_worker_that_came_too_late() -> None:
    desk = Desk()
    desk.old_workers = ["w1@old"]
    call = desk.open()
    desk.reply(GRANTED)
    assert call.result.held == 40


def test_batch_that_is_sent_after_holds_were_disabled_is_degraded() -> None:
    desk = Desk()
    id_ = desk.opened().id
    call = Call(desk.reservations.open(desk.bench.batcher, ALICE, 5_000, False))
    later = Call(desk.reservations.settle(desk.bench.batcher, str(id_), 9))
    desk.bench.leases.enable([])
    desk.bench.loop.turn()
    assert desk.sent.hold_rows is None
    desk.reply(Decision(True, 100, 60, 1, 0, 3), Decision(True, 100, 60, 1, 0, 3))
    assert call.result.reason == later.result.reason == NO_HOLDS
    assert desk.counts() == {"received": 2, "allowed": 1, NO_HOLDS: 1}


@pytest.mark.parametrize("reason", [REPLAYED, REJECTED_BATCH, UNPUBLISHED, BROKER, OVERLOAD, STOPPING])
def test_every_reason_of_a_check_is_one_of_a_reservation(reason: str) -> None:
    desk = Desk(max_in_flight=0 if reason == OVERLOAD else 10)
    bench = desk.bench
    bench.transport.broken = reason == UNPUBLISHED
    if reason == BROKER:
        bench.batcher.on_broker_down("no broker")
    if reason == STOPPING:
        bench.batcher.close()
    call = desk.open()
    if reason == REPLAYED:
        desk.reply(None)
    if reason == REJECTED_BATCH:
        desk.reply(error="unreadable")
    answer = call.result
    assert (answer.allowed, answer.reason) == (True, reason)
    assert answer.id is not None
    assert desk.counts() == {"received": 1, reason: 1}


@pytest.mark.parametrize("closed", [False, True])
def test_reservation_without_time_is_degraded_and_published(closed: bool) -> None:
    desk = Desk()
    answer = desk.reservations.open_at_once(desk.bench.batcher, ALICE, 5_000, closed)
    assert (answer.allowed, answer.reason, answer.held) == (not closed, OVERLOAD, 0)
    desk.bench.loop.turn()
    assert (desk.sent.partition, desk.sent.checks) == (-1, [ALICE])
    id_ = decode_id(str(answer.id))
    assert desk.sent.hold_rows == [HoldRow(0, Ask(RESERVATION, id_.hold, 0, 0, 5_000))]
    assert id_.expires_ms == 1_005_000
    later = desk.settle(answer.id, 7)
    desk.reply(HeldDecision(True, 100, 93, 60_000, 0, 3, 0, None, (SETTLED_NOW,)))
    assert later.result == Settled(str(answer.id), "settled", 7)
    assert desk.counts() == ({"received": 1} if closed else {"received": 1, OVERLOAD: 1})
    assert desk.bench.metrics.failed_closed[OVERLOAD] == closed


def test_settlement_without_time_is_unconfirmed_and_published() -> None:
    desk = Desk()
    id_ = str(desk.opened().id)
    settled = desk.reservations.settle_at_once(desk.bench.batcher, id_, 7)
    assert settled == Settled(id_, "unconfirmed", reason=OVERLOAD)
    desk.bench.loop.turn()
    assert (desk.sent.partition, desk.sent.checks) == (-1, [Check("alice", 0)])
    assert desk.sent.hold_rows == [HoldRow(0, None, (Settlement(decode_id(id_).hold, 7),))]
    assert desk.counts() == {"received": 1, "allowed": 1}


def test_reservation_without_time_has_the_reasons_of_others() -> None:
    closed = Desk(enabled=False)
    answer = closed.reservations.open_at_once(closed.bench.batcher, ALICE, 5_000, False)
    assert answer.reason == NO_HOLDS
    down = Desk()
    down.bench.batcher.on_broker_down("no broker")
    assert down.reservations.open_at_once(down.bench.batcher, ALICE, 5_000, False).reason == BROKER
    down.bench.batcher.close()
    assert down.reservations.open_at_once(down.bench.batcher, ALICE, 5_000, False).reason == STOPPING


def test_reservation_that_a_worker_refuses_fails_open(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        desk = Desk()
        call = desk.open()
        desk.reply("client 'alice' belongs to partition 3")
        assert (call.result.allowed, call.result.reason) == (True, REJECTED_BATCH)
        assert desk.counts() == {"received": 1, "rejected_batch": 1}
        assert "belongs to partition 3" in caplog.messages[-1]


def test_checks_in_the_same_batch_get_their_own_answers() -> None:
    desk = Desk()
    id_ = desk.opened().id
    batcher = desk.bench.batcher
    before = batcher.ask(Check("bob", 1))
    call = Call(desk.reservations.open(batcher, ALICE, 5_000, False))
    between = batcher.ask(Check("bob", 2), True)
    settling = Call(desk.reservations.settle(batcher, str(id_), 9))
    after = batcher.ask(Check("bob", 3))
    desk.bench.loop.turn()
    plain = [Decision(True, 100, left, 1, 0, 3) for left in (1, 2, 3)]
    settled = HeldDecision(True, 100, 91, 1, 0, 3, 0, None, (SETTLED_NOW,))
    desk.reply(plain[0], GRANTED, plain[1], settled, plain[2])
    assert call.result.held == 40
    assert settling.result.state == "settled"
    for expected, future in enumerate((before, between, after), 1):
        assert isinstance(future, asyncio.Future)
        answer = future.result()
        assert type(answer) is Answer
        assert answer.remaining == expected
    assert desk.counts() == {"received": 5, "allowed": 5}


async def test_calls_wait_for_heartbeats_until_the_first_one_has_waited_long_enough() -> None:
    desk, for_ever = Desk(enabled=False), float("inf")
    slow = desk.reservations_after(60)
    waits = asyncio.create_task(slow.wait_for_heartbeats(for_ever))
    await asyncio.sleep(0)
    await slow.wait_for_heartbeats(time.monotonic() + 0.01)  # of a call that has no more time
    assert not waits.done()
    slow.heard.set()
    await waits
    quick = desk.reservations_after(0.01)
    await quick.wait_for_heartbeats(for_ever)
    with pytest.raises(StopIteration):  # it does not suspend
        quick.wait_for_heartbeats(for_ever).send(None)


# --- leases ---


def test_reservation_takes_the_lease_of_its_client_back_to_the_log() -> None:
    desk = Desk(lease_max_ms=10_000)
    lease = desk.lease(20)
    call = desk.open()
    assert desk.sent.hold_rows is not None
    [row] = desk.sent.hold_rows
    assert row.ask is not None
    assert row.ask.kind == RESERVATION
    assert [one.id for one in row.settlements] == [lease]
    desk.reply(msgspec.structs.replace(GRANTED, settled=(SETTLED_NOW,)))
    assert call.result.held == 40
    assert isinstance(desk.bench.batcher.ask(Check("alice")), asyncio.Future), "no permit is left"


def test_record_with_a_reservation_asks_for_no_lease_of_its_client() -> None:
    desk = Desk(lease_max_ms=10_000)
    batcher = desk.bench.batcher
    for _ in range(50):
        batcher.ask(Check("alice"))
        batcher.ask(Check("bob"))
    Call(desk.reservations.open(batcher, ALICE, 5_000, False))
    desk.bench.loop.turn()
    assert desk.sent.hold_rows is not None
    asks = {desk.sent.checks[row.index]: row.ask.kind for row in desk.sent.hold_rows if row.ask is not None}
    assert asks == {ALICE: RESERVATION, Check("bob"): 0}


# --- ids ---

U64 = st.integers(0, 2**64 - 1)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64)
MAYBE = st.just("") | NAMES
NUMBERS = st.integers(2**63, 2**64 - 1)
IDS = st.builds(ReservationId, st.just(1), U64, NUMBERS, NAMES, MAYBE, MAYBE, st.integers(0, 2**50))


@given(IDS)
def test_id_survives_its_text(id_: ReservationId) -> None:
    text = encode_id(id_)
    assert decode_id(text) == id_
    assert all(char.isascii() and (char.isalnum() or char in "-_") for char in text)


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_other_text_is_no_id(text: str) -> None:
    with pytest.raises(
        InvalidId, match="reservation_id: not an id of a reservation; use the id in the answer"
    ):
        decode_id(text)


def test_id_has_one_text_only() -> None:
    text = encode_id(ReservationId(1, 7, 1 << 63, "alice", "", "", 1_000))
    padded = text + "=" * (-len(text) % 4)
    for other in (f"{text}=", f"{text}\n", f" {text}", padded + "AAAA", text[:-1], text.lower()):
        with pytest.raises(InvalidId):
            decode_id(other)


def test_id_with_an_invalid_client_or_number_is_refused() -> None:
    first = 1 << 63
    decode_id(encode_id(ReservationId(1, 7, first, "a", "", "", 1)))
    for bad in (
        ReservationId(1, 7, first, "", "", "", 1),
        ReservationId(1, 7, first, "a\nb", "", "", 1),
        ReservationId(1, 7, first, "a", "\x00", "", 1),
        ReservationId(1, 7, first, "a", "", "p" * 257, 1),
        ReservationId(2, 7, first, "a", "", "", 1),  # type: ignore[arg-type]
        ReservationId(1, 7, first - 1, "a", "", "", 1),  # as that of a lease
    ):
        with pytest.raises(InvalidId):
            decode_id(encode_id(bad))


def test_id_that_is_no_utf_8_is_refused() -> None:
    packed = msgspec.msgpack.encode(ReservationId(1, 7, 1 << 63, "?lice", "", "", 1))
    text = urlsafe_b64encode(packed.replace(b"?lice", b"\xfflice")).rstrip(b"=").decode()
    with pytest.raises(InvalidId, match="not an id of a reservation"):
        decode_id(text)


def test_invalid_arguments_name_their_field() -> None:
    for bad in (0, -1, 3_600_001, 1.5, True, "7"):
        with pytest.raises(InvalidInput, match=r"^ttl_ms: .*1 to 3,600,000 milliseconds"):
            check_ttl(bad)  # type: ignore[arg-type]
    assert check_ttl(3_600_000) == 3_600_000
    desk = Desk()
    id_ = desk.opened().id
    for bad in (-1, 1_000_001, 1.5):
        with pytest.raises(InvalidCost, match=r"^used: "):
            desk.settle(id_, bad)  # type: ignore[arg-type]
