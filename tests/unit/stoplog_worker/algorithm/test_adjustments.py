"""Charges and refunds that no limit judges."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.hold_set import REFUNDED, Hold
from stoplog_worker.algorithm.ledger import UNSETTLED, Ledger
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import FORMAT, Marker, decode_state, encode_state, expires_at_ms
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_update
from stoplog.wire.holds import (
    CHARGE,
    LEASE,
    MAX_REFUNDS,
    NOT_OPEN,
    NOT_REFUNDABLE,
    REFUND,
    REFUNDED_BEFORE,
    RESERVATION,
    SAME_ID,
    Ask,
    Grant,
    HoldRow,
    Settlement,
)
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Decision, HeldDecision

START = 1_764_000_000_000
MINUTE = 60_000


class Bench:
    """A partition in which holds are enabled, and one client.

    If it *reloads*, each record finds its state as it was stored.
    """

    def __init__(self, *limits: str, reloads: bool = False) -> None:
        self.reloads = reloads
        self.ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", parse_policy(list(limits))))
        self.offset = self.version = self.after_ms = 0
        self.append(encode_update(enabling_update()))

    def append(self, value: bytes) -> list[Decision | str | None]:
        if self.reloads:
            stored = {key: encode_state(state) for key, state in self.ledger.states.items()}
            self.ledger.states = {key: decode_state(value) for key, value in stored.items()}
        found = fold(self.ledger, self.offset, START + self.after_ms, value, fault_finder(0, 1))
        assert not found.refused, found.refused
        self.offset += 1
        return found.answers

    def check(self, cost: int = 1, ask: Ask | None = None, *, old: bool = False) -> Decision:
        rows = None if old else [HoldRow(0, ask)] if ask else []
        [answer] = self.append(encode_batch(Batch(0, 7, 1, [Check("a", cost)], rows)))
        assert isinstance(answer, Decision)
        return answer

    def adjust(
        self, kind: Literal[2, 3], units: int, *, id_: int = 1, remember: bool = False
    ) -> HeldDecision:
        answer = self.check(0, Ask(kind, (9, id_, 0), int(remember), units, 1))
        assert isinstance(answer, HeldDecision)
        assert (answer.allowed, answer.retry_after_ms, answer.firm_ms) == (True, 0, 0)
        return answer

    def refund(self, units: int, id_: int = 1) -> tuple[int | None, bool]:
        """Make a refund whose id is remembered. Return the units returned, and whether it is a repetition."""
        answer = self.adjust(REFUND, units, id_=id_, remember=True)
        assert answer.reason in ("", REFUNDED_BEFORE)
        return None if answer.grant is None else answer.grant.units, answer.reason == REFUNDED_BEFORE

    def set_limits(self, policy: Policy) -> None:
        self.version += 1
        self.append(encode_update(Update(self.version, "client", "a", "", policy)))

    @property
    def left(self) -> int | None:
        return self.check(0).remaining


def test_charge_is_made_although_it_exceeds_the_limits() -> None:
    bench = Bench("10/minute", "100/hour")
    bench.check(9)
    assert bench.adjust(CHARGE, 20).remaining == 0
    assert bench.adjust(CHARGE, 3).reason == ""
    assert not bench.check(1).allowed
    bench.after_ms = 2 * MINUTE
    bench.set_limits(parse_policy("100/hour"))
    assert bench.left == 100 - 9 - 20 - 3


def test_charge_leaves_the_window_as_any_other() -> None:
    bench = Bench("10/minute")
    bench.adjust(CHARGE, 12)
    denied = bench.check(1)
    assert not denied.allowed
    assert denied.retry_after_ms is not None
    bench.after_ms = denied.retry_after_ms - 1
    assert not bench.check(1).allowed
    bench.after_ms += 1
    assert bench.check(10).allowed


def test_refund_reduces_the_newest_charges_and_never_below_zero() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(4)
    bench.after_ms = 30_000
    bench.check(5)
    assert bench.adjust(REFUND, 6).remaining == 7
    bench.after_ms = 59_999
    assert bench.left == 7, "the oldest charges are left"
    bench.after_ms = 61_000
    assert bench.left == 10
    assert bench.adjust(REFUND, 99).remaining == 10
    assert bench.check(10).allowed


def test_refund_under_limits_that_are_not_refundable_changes_nothing_and_says_why() -> None:
    bench = Bench("10/minute")
    bench.check(4)
    before = encode_state(bench.ledger.states["a"])
    assert bench.adjust(REFUND, 2).reason == NOT_REFUNDABLE
    assert encode_state(bench.ledger.states["a"]) == before
    bench.set_limits(parse_policy(["10/minute", "refundable"]))
    assert bench.adjust(REFUND, 2).reason == ""
    assert bench.left == 8
    bench.set_limits(parse_policy("10/minute"))
    assert bench.adjust(REFUND, 1).reason == NOT_REFUNDABLE
    assert bench.left == 8


def test_repeated_refund_changes_nothing_for_one_window_and_says_so() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(8)
    assert bench.refund(3) == (3, False)
    bench.after_ms = 30_000
    assert bench.check(5).allowed
    assert bench.refund(3) == (3, True)
    assert bench.refund(2, id_=2) == (2, False)
    bench.after_ms = MINUTE - 1
    assert bench.refund(9) == (3, True)
    assert bench.left == 2
    bench.after_ms = MINUTE
    assert bench.refund(1) == (1, False), "a window has passed since the first one"


def test_repeated_refund_is_known_although_there_was_nothing_to_return() -> None:
    bench = Bench("10/minute", "refundable")
    assert bench.refund(4) == (0, False)
    bench.check(6)
    assert bench.refund(4) == (0, True)
    assert bench.left == 4


def test_refund_is_remembered_for_the_longest_window() -> None:
    bench = Bench("10/minute", "100/hour", "refundable")
    bench.check(5)
    assert bench.refund(2) == (2, False)
    bench.after_ms = 60 * MINUTE - 1
    bench.check(1)
    assert bench.refund(2) == (2, True)
    bench.after_ms = 60 * MINUTE
    assert bench.refund(2) == (2, False)


def test_refund_is_remembered_as_long_as_a_kept_window_may_come_back() -> None:
    bench = Bench("100/day")
    bench.check(9)
    bench.set_limits(parse_policy(["10/minute", "refundable"]))
    assert bench.refund(3) == (3, False)
    bench.after_ms = 2 * MINUTE
    assert bench.refund(3) == (3, True)
    bench.set_limits(parse_policy(["100/day", "refundable"]))
    bench.after_ms = 24 * 60 * MINUTE - 1
    assert bench.refund(3) == (3, True)
    assert bench.left == 100 - 9 + 3


def test_refund_returns_units_of_a_kept_window_and_reports_those_of_the_policy() -> None:
    bench = Bench("100/day")
    bench.check(9)
    bench.set_limits(parse_policy(["10/minute", "refundable"]))
    bench.check(0)
    bench.after_ms = 2 * MINUTE
    assert bench.adjust(REFUND, 2).grant == Grant(0, 0)
    bench.set_limits(parse_policy(["100/day", "refundable"]))
    assert bench.left == 100 - 9 + 2


def test_refund_of_a_kept_window_is_stored() -> None:
    bench = Bench("100/day")
    bench.check(9)
    bench.set_limits(parse_policy(["10/minute", "refundable"]))
    bench.after_ms = 2 * MINUTE
    bench.check(0)
    bench.ledger.dirty.clear()
    bench.adjust(REFUND, 2)
    assert "a" in bench.ledger.dirty
    stored = decode_state(encode_state(bench.ledger.dirty["a"]))
    assert sum(stored.windows[24 * 60 * MINUTE].counts) == 7


def test_refund_is_remembered_longer_once_a_check_meets_a_longer_window() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(9)
    assert bench.refund(3) == (3, False)
    assert bench.refund(1, id_=2) == (1, False)
    bench.set_limits(parse_policy(["100/day", "refundable"]))
    bench.after_ms = MINUTE - 1
    assert bench.left == 100 - 9 + 4
    state = bench.ledger.dirty["a"]
    day = 24 * 60 * MINUTE
    end_ms = START + MINUTE - 1 + day
    kept = [Hold((9, 1, 0), REFUNDED, 3, end_ms, 0), Hold((9, 2, 0), REFUNDED, 1, end_ms, 0)]
    assert list(decode_state(encode_state(state)).holds or ()) == kept
    for bench.after_ms in (2 * MINUTE, day):
        assert bench.refund(3) == (3, True)
    bench.set_limits(parse_policy(["10/minute", "refundable"]))
    assert bench.refund(3) == (3, True)
    assert list(bench.ledger.states["a"].holds or ()) == kept, "a shorter window changes nothing"
    bench.after_ms = MINUTE - 1 + day
    bench.check(0)
    assert bench.ledger.states["a"].holds is None


_LENGTHS = {"10s": 10_000, "minute": MINUTE, "hour": 60 * MINUTE}


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.sets(st.sampled_from(sorted(_LENGTHS)), min_size=1)),
            st.integers(0, 40_000),
            st.sampled_from(("check", "refund", "wait")),
        ),
        max_size=20,
    )
)
def test_repeated_refund_changes_nothing_within_the_longest_window_of_any_limits(
    steps: list[tuple[set[str] | None, int, str]],
) -> None:
    bench, other = (Bench("50/minute", "refundable", reloads=reloads) for reloads in (False, True))
    longest_ms, end_ms = MINUTE, 0
    made_ms: int | None = None
    bench.check(9)
    other.check(9)
    for change, wait_ms, action in steps:
        other.after_ms = bench.after_ms = bench.after_ms + wait_ms
        if change is not None:
            longest_ms = max(_LENGTHS[one] for one in change)
            limits = [f"{50 + len(one)}/{one}" for one in sorted(change)]
            bench.set_limits(parse_policy([*limits, "refundable"]))
            other.set_limits(parse_policy([*limits, "refundable"]))
        known = made_ms is not None and bench.after_ms < end_ms
        if action == "wait":
            continue
        cost = 3 if action == "check" else 0
        before = bench.check(cost).remaining
        assert other.check(cost).remaining == before
        if known:
            assert made_ms is not None
            end_ms = max(end_ms, made_ms + longest_ms)
        if action == "refund":
            units, repeated = bench.refund(2)
            assert other.refund(2) == (units, repeated)
            assert repeated or not known
            if repeated:
                assert bench.left == other.left == before
            else:
                made_ms, end_ms = bench.after_ms, bench.after_ms + longest_ms
        holds = [list(one.ledger.states["a"].holds or ()) for one in (bench, other)]
        assert holds[0] == holds[1]


def test_refund_whose_id_is_not_remembered_is_made_each_time() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(8)
    for left in (4, 6):
        assert bench.adjust(REFUND, 2).remaining == left
    assert bench.ledger.states["a"].holds is None


def test_refund_of_nothing_is_not_remembered() -> None:
    bench = Bench("10/minute", "refundable")
    assert bench.refund(0) == (0, False)
    assert bench.ledger.dirty == {}


def test_remembered_refund_survives_changes_of_limits_and_resets() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(8)
    bench.refund(3)
    bench.version += 1
    bench.append(encode_update(Update(bench.version, "reset", "a", "", None)))
    bench.set_limits(parse_policy("20/minute"))
    bench.check(9)
    assert bench.refund(3) == (3, True)
    assert bench.adjust(REFUND, 1, id_=2, remember=True).reason == NOT_REFUNDABLE
    assert bench.left == 11


def test_refunds_beyond_the_bound_are_forgotten_the_first_one_first() -> None:
    bench = Bench("5000/hour", "refundable")
    bench.check(5_000)
    for id_ in range(MAX_REFUNDS + 1):
        assert bench.refund(1, id_) == (1, False)
    assert len(bench.ledger.states["a"].holds or ()) == MAX_REFUNDS
    assert bench.refund(1, 1) == (1, True)
    assert bench.refund(1, 0) == (1, False)
    assert bench.left == MAX_REFUNDS + 2
    assert len(encode_state(bench.ledger.states["a"])) < 40_000


def test_remembered_refund_is_no_hold() -> None:
    """It holds no units, divides no lease, is no reservation in flight, and nothing settles it."""
    bench, other = (Bench("100/minute", "1 in flight", "refundable") for _ in range(2))
    for one in (bench, other):
        one.check(8)
    bench.refund(3)
    other.adjust(REFUND, 3)
    settle = HoldRow(0, None, (Settlement((9, 1, 0), 50),))
    [answer] = bench.append(encode_batch(Batch(0, 7, 1, [Check("a", 0)], [settle])))
    assert isinstance(answer, HeldDecision)
    assert answer.settled == (NOT_OPEN,)
    assert bench.refund(3) == (3, True)
    assert bench.ledger.usage_report(Check("a", 0)) == other.ledger.usage_report(Check("a", 0))
    leases = [one.check(1, Ask(LEASE, (7, 5, 0), 5, 90, 9_000)) for one in (bench, other)]
    assert leases[0] == leases[1]
    reservations = [one.check(1, Ask(RESERVATION, (8, 5, 0), 0, 0, 9_000)) for one in (bench, other)]
    assert reservations[0].allowed
    assert reservations[0] == reservations[1]
    bench.after_ms = MINUTE
    bench.check(0)
    assert not bench.ledger.hold_counts[REFUNDED, UNSETTLED]


def test_id_of_an_open_hold_is_refused_and_that_of_a_refund_reserves_nothing() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(4)
    bench.check(2, Ask(RESERVATION, (9, 1, 0), 0, 0, 5_000))
    assert bench.adjust(REFUND, 2, remember=True).reason == SAME_ID
    assert bench.refund(2, id_=2) == (2, False)
    reserved = bench.check(1, Ask(RESERVATION, (9, 2, 0), 0, 0, 5_000))
    assert isinstance(reserved, HeldDecision)
    assert (reserved.allowed, reserved.reason) == (False, SAME_ID)


def test_remembered_refund_is_stored_until_its_window_has_passed() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(8)
    bench.after_ms = 30_000
    bench.refund(8)
    value = encode_state(bench.ledger.states["a"])
    assert expires_at_ms(value) == START + 30_000 + MINUTE
    holds = list(decode_state(value).holds or ())
    assert holds == [Hold((9, 1, 0), REFUNDED, 8, START + 30_000 + MINUTE, 0)]
    bench.after_ms = 30_000 + MINUTE
    bench.check(1)
    assert encode_state(bench.ledger.states["a"])[:1] == FORMAT


def test_refund_reduces_each_window_by_what_it_has() -> None:
    bench = Bench("10/minute", "100/hour", "refundable")
    bench.check(5)
    bench.after_ms = 2 * MINUTE
    bench.check(1)
    bench.adjust(REFUND, 4)
    assert bench.left == 10
    bench.set_limits(parse_policy("100/hour"))
    assert bench.left == 98


def test_unlimited_client_is_neither_charged_nor_refunded() -> None:
    bench = Bench("10/minute")
    bench.set_limits(UNLIMITED)
    assert bench.adjust(CHARGE, 7).limit is None
    assert bench.adjust(REFUND, 7).limit is None
    bench.set_limits(parse_policy("10/minute"))
    assert bench.left == 10


def test_adjustment_of_nothing_stores_nothing() -> None:
    bench = Bench("10/minute", "refundable")
    bench.adjust(CHARGE, 0)
    bench.adjust(REFUND, 5)
    assert bench.ledger.dirty == {}
    assert bench.left == 10


def test_denial_under_refundable_limits_may_end_at_any_time() -> None:
    bench, other = Bench("10/minute", "refundable"), Bench("10/minute")
    for one in (bench, other):
        one.check(10)
    denied = bench.check(1)
    assert isinstance(denied, HeldDecision)
    assert (denied.allowed, denied.firm_ms) == (False, 0)
    assert denied.retry_after_ms == other.check(1).retry_after_ms
    bench.adjust(REFUND, 1)
    assert bench.check(1).allowed
    never = bench.check(11)
    assert isinstance(never, HeldDecision)
    assert never.firm_ms is None, "no refund helps"


def test_record_of_version_1_gets_a_decision_without_fields_about_holds() -> None:
    bench = Bench("10/minute", "refundable")
    assert type(bench.check(3, old=True)) is Decision
    assert bench.left == 7


def test_refund_returns_what_its_row_settles_of_a_lease() -> None:
    bench = Bench("100/minute", "refundable")
    granted = bench.check(1, Ask(LEASE, (7, 1, 0), 1, 20, 9_000))
    assert isinstance(granted, HeldDecision)
    assert granted.grant is not None
    row = HoldRow(0, Ask(REFUND, (9, 1, 0), 1, 4, 1), (Settlement((7, 1, 0), 3),))
    [answer] = bench.append(encode_batch(Batch(0, 7, 1, [Check("a", 0)], [row])))
    assert isinstance(answer, HeldDecision)
    assert answer.grant == Grant(4, 0)
    assert bench.left == 100


def test_refund_leaves_open_reservations_alone() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(2)
    assert bench.check(6, Ask(RESERVATION, (9, 2, 0), 0, 0, 5_000)).allowed
    assert bench.adjust(REFUND, 10).remaining == 4
    assert bench.adjust(CHARGE, 3).remaining == 1
    assert not bench.check(2).allowed


def test_adjusted_state_is_stored_and_read_back() -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(8)
    bench.adjust(CHARGE, 7)
    bench.adjust(REFUND, 9)
    state = bench.ledger.dirty["a"]
    stored = decode_state(encode_state(state))
    assert stored.position == (bench.offset - 1) << 16
    assert sum(stored.windows[MINUTE].counts) == 6
    assert stored.newest_ms == START
    bench.after_ms = 30_000
    bench.adjust(CHARGE, 2)
    bench.after_ms = 70_000
    bench.adjust(CHARGE, 1)
    stored = decode_state(encode_state(state))
    assert stored.windows[MINUTE].counts == [2, 1], "a charge drops what has left"
    assert stored.newest_ms == START + bench.after_ms


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 9)), max_size=30),
    st.integers(0, 60_000),
    st.integers(0, 300),
)
def test_window_after_a_refund_is_as_if_the_newest_charges_were_never_made(
    charges: list[tuple[int, int]], later_ms: int, units: int
) -> None:
    window, now_ms, made = Window(MINUTE), START, []
    for wait_ms, cost in charges:
        now_ms += wait_ms
        window.forget(now_ms)
        window.charge(now_ms, cost)
        made.append((now_ms, cost))
    now_ms += later_ms
    window.forget(now_ms)
    total = window.total
    assert window.refund(now_ms, units) == min(units, total)
    expected, left = Window(MINUTE), total - min(units, total)
    for at_ms, cost in made:
        if window.leaves_ms(at_ms) > now_ms and at_ms - at_ms % 1_000 + 1_000 + MINUTE > now_ms:
            kept = min(cost, left)
            left -= kept
            if kept:
                expected.charge(at_ms, kept)
    assert list(window.charges()) == list(expected.charges())
    assert window.total == expected.total == total - min(units, total)
    for probe_ms in range(now_ms, now_ms + MINUTE + 2_000, 500):
        window.forget(probe_ms)
        expected.forget(probe_ms)
        assert window.total == expected.total


@pytest.mark.parametrize("kind", [CHARGE, REFUND])
def test_later_charges_after_an_adjustment_are_counted(kind: Literal[2, 3]) -> None:
    bench = Bench("10/minute", "refundable")
    bench.check(5)
    bench.adjust(kind, 5)
    bench.after_ms = 1_500
    left = bench.left
    assert left is not None
    assert bench.check(left).allowed
    assert bench.left == 0
