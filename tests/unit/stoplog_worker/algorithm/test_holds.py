"""Grants, settlements and ends of holds, one rule at a time."""

from __future__ import annotations

import pytest
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.hold_set import SETTLED
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import (
    Marker,
    State,
    decode_state,
    encode_state,
    expires_at_ms,
)
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import (
    LEASE,
    MAX_LEASE_MS,
    MAX_LEASES,
    MAX_RESERVATIONS,
    MAX_SETTLED,
    NOT_OPEN,
    RESERVATION,
    SAME_ID,
    SETTLED_ID,
    SETTLED_NOW,
    TOO_MANY_RESERVATIONS,
    Ask,
    Grant,
    HoldId,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Decision, HeldDecision

START = 1_764_000_000_000
FAULT = fault_finder(0, 1)
MINUTE = 60_000


class Bench:
    """A partition in which holds are enabled, and one client."""

    def __init__(self, *limits: str, enabled: bool = True) -> None:
        default = parse_policy(list(limits) or ["100/minute"])
        self.ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", default))
        self.offset = self.version = self.after_ms = 0
        if enabled:
            self.append(encode_update(enabling_update()))

    def append(self, value: bytes) -> Folded:
        found = fold(self.ledger, self.offset, START + self.after_ms, value, FAULT)
        self.offset += 1
        return found

    def check(
        self, cost: int = 1, ask: Ask | None = None, *settlements: Settlement, plan: str = ""
    ) -> HeldDecision:
        rows = [HoldRow(0, ask, settlements)] if ask or settlements else []
        [answer] = self.append(encode_batch(Batch(0, 7, 1, [Check("a", cost, plan)], rows))).answers
        if isinstance(answer, HeldDecision):
            return answer
        assert isinstance(answer, Decision), answer
        return HeldDecision(*(getattr(answer, name) for name in Decision.__struct_fields__))

    def reserve(self, cost: int, number: int = 1, ttl_ms: int = 10_000) -> HeldDecision:
        return self.check(cost, reservation(number, ttl_ms))

    def lease(self, want: int = 1_000, number: int = 1, ttl_ms: int = 60_000) -> Grant | None:
        return self.check(0, lease(number, want, ttl_ms)).grant

    def settle(self, *settlements: Settlement) -> tuple[int, ...]:
        batch = SettlementBatch(-1, 7, 1, [SettlementRow("a", "", settlements)])
        [answer] = self.append(encode_settlements(batch)).settled
        assert isinstance(answer, tuple)
        return answer

    def update(self, kind: str, policy: Policy | None) -> None:
        self.version += 1
        self.append(encode_update(Update(self.version, kind, "a", "", policy)))

    @property
    def state(self) -> State:
        return self.ledger.states["a"]

    @property
    def held(self) -> dict[HoldId, int]:
        return {hold.id: hold.units for hold in self.state.holds or () if hold.kind != SETTLED}

    def charged(self, window_ms: int = MINUTE) -> int:
        window = self.state.windows[window_ms]
        window.forget(START + self.after_ms)
        return window.total


def reservation(number: int, ttl_ms: int = 10_000) -> Ask:
    return Ask(RESERVATION, (9, number, 0), 0, 0, ttl_ms)


def lease(number: int, want: int = 1_000, ttl_ms: int = 60_000, holder: int = 7, keep: int = 0) -> Ask:
    kept = ((holder, keep, 0),) if keep else ()
    return Ask(LEASE, (holder, number, 0), number, want, ttl_ms, kept)


# --- the gate ---


def test_records_with_holds_are_refused_until_holds_are_enabled() -> None:
    bench = Bench(enabled=False)
    for value in (
        encode_batch(Batch(0, 7, 1, [Check("a")], [])),
        encode_settlements(SettlementBatch(0, 7, 1, [])),
    ):
        found = bench.append(value)
        assert found.record is None
        assert "not enabled" in found.refused
    assert not bench.ledger.states
    bench.append(encode_update(enabling_update()))
    assert bench.check().allowed


def test_decision_without_holds_has_no_fields_about_them() -> None:
    bench = Bench()
    [answer] = bench.append(encode_batch(Batch(0, 7, 1, [Check("a")], []))).answers
    assert type(answer) is Decision
    bench.reserve(5)
    [answer] = bench.append(encode_batch(Batch(0, 7, 1, [Check("a")]))).answers
    assert type(answer) is Decision, "the sender of a record of version 1 does not know them"
    assert answer.remaining == 93


# --- reservations ---


def test_reservation_counts_from_its_grant_until_a_window_after_its_end() -> None:
    bench = Bench("10/minute")
    assert bench.reserve(6).grant == Grant(6, 10_000)
    assert not bench.check(5).allowed
    assert bench.check(4).allowed
    bench.after_ms = 65_000
    assert not bench.check(5).allowed, "the reservation was charged at its end"
    assert bench.held == {}
    assert bench.check(4).allowed
    bench.after_ms = 71_000
    assert bench.check(6).allowed


def test_settlement_charges_what_was_used_at_that_time() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    bench.after_ms = 5_000
    assert bench.settle(Settlement((9, 1, 0), 2)) == (SETTLED_NOW,)
    assert (bench.held, bench.charged()) == ({}, 2)
    assert bench.check(8).allowed
    bench.after_ms = 65_999
    assert not bench.check(1).allowed
    bench.after_ms = 66_000
    assert bench.check(10).allowed


def test_partial_settlement_shrinks_the_hold() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    assert bench.settle(Settlement((9, 1, 0), 2, True)) == (SETTLED_NOW,)
    assert (bench.held, bench.charged()) == ({(9, 1, 0): 4}, 2)
    assert bench.settle(Settlement((9, 1, 0), 9, True)) == (SETTLED_NOW,)
    assert (bench.held, bench.charged()) == ({(9, 1, 0): 0}, 11), "an oversized settlement is charged"


def test_settlement_of_unknown_ended_or_settled_hold_changes_nothing() -> None:
    bench = Bench()
    bench.reserve(6, 1)
    bench.reserve(3, 2)
    bench.settle(Settlement((9, 1, 0), 1))
    before = encode_state(bench.state)
    assert bench.settle(Settlement((9, 1, 0), 5), Settlement((9, 8, 0), 5)) == (1, NOT_OPEN)
    assert encode_state(bench.state) == before
    bench.after_ms = 10_000
    assert bench.settle(Settlement((9, 2, 0), 0)) == (NOT_OPEN,)
    assert bench.charged() == 4


def test_repeated_reservation_returns_the_open_one() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    bench.after_ms = 4_000
    again = bench.reserve(6)
    assert (again.allowed, again.grant, again.remaining) == (True, Grant(6, 6_000), 4)
    assert bench.held == {(9, 1, 0): 6}


def test_repeated_settlement_returns_what_the_first_one_charged() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    assert bench.settle(Settlement((9, 1, 0), 2)) == (SETTLED_NOW,)
    bench.after_ms = 9_999
    assert bench.settle(Settlement((9, 1, 0), 5), Settlement((9, 1, 0), 0, True)) == (2, 2)
    assert bench.charged() == 2
    bench.after_ms = 10_000
    assert bench.settle(Settlement((9, 1, 0), 5)) == (NOT_OPEN,)
    assert (bench.state.holds, bench.charged()) == (None, 2)


def test_late_duplicate_of_an_ask_does_not_open_a_settled_reservation_again() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    bench.settle(Settlement((9, 1, 0), 0))
    again = bench.reserve(6)
    assert (again.allowed, again.grant, again.reason) == (False, None, SETTLED_ID)
    assert (again.retry_after_ms, again.firm_ms, again.remaining) == (10_000, 0, 10)
    assert bench.held == {}


def test_settled_reservations_hold_nothing_and_take_no_part_of_a_lease() -> None:
    bench = Bench("100/minute")
    for number in (1, 2):
        bench.reserve(20, number)
    bench.settle(*(Settlement((9, number, 0), 0) for number in (1, 2)))
    assert len(bench.state.holds or ()) == 2
    grant = bench.lease()
    assert grant is not None
    assert grant.units == 50


def test_settled_reservation_is_remembered_in_the_stored_state() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    bench.settle(Settlement((9, 1, 0), 3))
    bench.ledger.states["a"] = decode_state(encode_state(bench.state))
    assert bench.settle(Settlement((9, 1, 0), 1)) == (3,)
    assert bench.check(7).allowed
    assert not bench.check(1).allowed


def test_reservation_settled_first_is_forgotten_first() -> None:
    bench = Bench("1000/minute")
    for number in range(MAX_SETTLED + 1):
        bench.reserve(1, number)
    late = tuple(Settlement((9, number, 0), 1) for number in reversed(range(MAX_SETTLED + 1)))
    assert set(bench.settle(*late)) == {SETTLED_NOW}
    assert len(bench.state.holds or ()) == MAX_SETTLED
    assert bench.settle(Settlement((9, MAX_SETTLED, 0), 1), Settlement((9, 0, 0), 1)) == (NOT_OPEN, 1)


def test_reservation_is_granted_by_all_limits_or_none() -> None:
    bench = Bench("100/hour", "5/minute")
    denied = bench.reserve(6)
    assert (denied.allowed, denied.grant, denied.retry_after_ms, denied.firm_ms) == (False, None, None, None)
    assert bench.state.holds is None
    assert bench.reserve(5).allowed


def test_too_many_reservations_are_denied_with_a_reason() -> None:
    bench = Bench("1000000/minute")
    checks = [Check("a")] * MAX_RESERVATIONS
    rows = [HoldRow(index, reservation(index, 5_000)) for index in range(MAX_RESERVATIONS)]
    bench.append(encode_batch(Batch(0, 7, 1, checks, rows)))
    bench.after_ms = 1_000
    denied = bench.reserve(1, MAX_RESERVATIONS)
    assert (denied.allowed, denied.reason) == (False, TOO_MANY_RESERVATIONS)
    assert (denied.retry_after_ms, denied.firm_ms) == (4_000, 0)
    assert bench.reserve(1, 0).allowed, "this one is open"
    assert bench.check().allowed
    bench.settle(Settlement((9, 3, 0), 0))
    assert bench.reserve(1, MAX_RESERVATIONS).allowed


def test_limit_in_flight_bounds_open_reservations_whatever_their_cost() -> None:
    bench = Bench("1000/minute", "2 in flight")
    bench.reserve(500, 1, 5_000)
    assert bench.reserve(0, 2, 8_000).allowed
    denied = bench.reserve(1, 3)
    assert (denied.allowed, denied.grant, denied.retry_after_ms, denied.firm_ms) == (False, None, 5_000, 0)
    assert denied.reason.startswith("2 reservations are open")
    assert (denied.limit, denied.remaining) == (1_000, 500)
    assert bench.check(1).allowed, "a check is not in flight"
    assert bench.reserve(0, 2).allowed, "this one is open"
    bench.settle(Settlement((9, 2, 0), 0))
    assert bench.reserve(1, 3).allowed
    bench.after_ms = 5_000
    assert bench.reserve(1, 4).allowed, "the first one has ended"
    assert not bench.reserve(1, 5).allowed


def test_denial_by_several_limits_waits_for_all_of_them() -> None:
    bench = Bench("10/minute", "1 in flight")
    bench.check(10)
    bench.after_ms = 1_000
    assert bench.reserve(0, 1, 2_000).allowed
    denied = bench.reserve(1, 2)
    assert denied.retry_after_ms is not None
    assert 58_000 < denied.retry_after_ms <= 61_000
    assert denied.firm_ms == 0, "a check that reserves nothing waits for something else"
    assert bench.reserve(11, 2).retry_after_ms is None


def test_limit_in_flight_alone_charges_nothing() -> None:
    bench = Bench("2 in flight")
    for number in (1, 2):
        answer = bench.reserve(1_000, number)
        assert (answer.allowed, answer.grant) == (True, Grant(1_000, 10_000))
        assert (answer.limit, answer.remaining) == (None, None)
    assert not bench.reserve(0, 3).allowed
    assert bench.check(1_000_000).allowed
    assert bench.lease() is None
    bench.ledger.states["a"] = decode_state(encode_state(bench.state))
    assert expires_at_ms(encode_state(bench.state)) == START + 10_000
    assert not bench.reserve(0, 3).allowed
    bench.after_ms = 10_000
    assert bench.reserve(0, 3).allowed
    assert bench.state.windows == {}


def test_reservation_without_windows_leaves_nothing_that_a_reload_would_lose() -> None:
    stored = set()
    for reloads in (False, True):
        bench = Bench("2 in flight")
        bench.reserve(50, 1, 1_000)
        bench.reserve(50, 2, 40_000)
        bench.after_ms = 1_000
        bench.settle()  # ends the first one
        if reloads:
            bench.ledger.states["a"] = decode_state(encode_state(bench.state))
        bench.update("client", parse_policy("100/minute"))
        bench.reserve(10, 3)
        stored.add(encode_state(bench.state))
    assert len(stored) == 1


def test_no_requests_in_flight_means_none() -> None:
    bench = Bench("10/minute", "0 in flight")
    denied = bench.reserve(1)
    assert (denied.allowed, denied.retry_after_ms, denied.firm_ms) == (False, None, 0)


def test_limit_in_flight_that_is_lowered_or_removed_keeps_open_reservations() -> None:
    bench = Bench("100/minute", "3 in flight")
    for number in (1, 2, 3):
        bench.reserve(10, number, 1_000 * number)
    bench.update("client", parse_policy(["100/minute", "1 in flight"]))
    assert bench.reserve(1, 4).retry_after_ms == 3_000
    bench.update("client", parse_policy("100/minute"))
    assert bench.reserve(1, 4).allowed
    assert len(bench.held) == 4


def test_lookup_shows_how_many_requests_are_in_flight() -> None:
    bench = Bench("100/minute", "3 in flight")
    for number in (1, 2):
        bench.reserve(10, number, 4_000 * number)
    bench.settle(Settlement((9, 1, 0), 5))
    bench.check(0)
    windows = bench.ledger.usage_report(Check("a", 0))["windows"]
    assert windows[1] == {"limit": "3 in flight", "used": 1, "reset_after_ms": 8_000, "held": 1}
    assert windows[0]["used"] == 15, "what was settled, and what is held"
    assert 68_000 <= windows[0]["reset_after_ms"] < 70_000, "it is charged at its end"
    bench = Bench("100/minute", "3 in flight")
    bench.check(1)
    assert bench.ledger.usage_report(Check("a", 0))["windows"][1]["used"] == 0


def test_lookup_sums_up_what_is_held() -> None:
    bench = Bench("90000/minute", "90000/hour")
    for number in range(MAX_RESERVATIONS):
        assert bench.reserve(2, number, 9_000 + number).allowed
    leased = bench.lease(50, MAX_RESERVATIONS, ttl_ms=2_000)
    assert leased is not None
    bench.check(7)
    bench.settle(Settlement((9, 0, 0), 1))
    bench.after_ms = 500
    bench.check(0)
    report = bench.ledger.usage_report(Check("a", 0))
    reserved = 2 * MAX_RESERVATIONS - 2
    assert report["holds"] == {
        "reservations": {"open": MAX_RESERVATIONS - 1, "units": reserved, "next_end_ms": 8_501},
        "leases": {"open": 1, "units": leased.units, "next_end_ms": 1_500},
    }
    for window in report["windows"]:
        assert (window["used"] - window["held"], window["held"]) == (8, reserved + leased.units)
    answer = bench.check(0)
    assert answer.remaining == 90_000 - report["windows"][0]["used"]
    bench.after_ms = 20_000
    bench.check(0)
    ended = bench.ledger.usage_report(Check("a", 0))
    nothing = {"open": 0, "units": 0, "next_end_ms": None}
    assert ended["holds"] == {"reservations": nothing, "leases": nothing}
    assert {window["held"] for window in ended["windows"]} == {0}


def test_lookup_without_the_gate_has_the_fields_of_earlier_releases() -> None:
    bench = Bench("100/minute", "3 in flight", enabled=False)
    bench.append(encode_batch(Batch(0, 7, 1, [Check("a", 0)])))
    report = bench.ledger.usage_report(Check("a", 0))
    assert report.keys() == {"held_to", "windows"}
    assert [window.keys() for window in report["windows"]] == [{"limit", "used", "reset_after_ms"}] * 2


def test_id_of_another_kind_of_hold_is_denied() -> None:
    bench = Bench()
    assert bench.lease() is not None
    [id_] = bench.held
    denied = bench.check(1, Ask(RESERVATION, id_, 0, 0, 1_000))
    assert (denied.allowed, denied.grant, denied.reason) == (False, None, SAME_ID)


def test_unlimited_client_gets_no_hold_and_its_holds_still_end() -> None:
    bench = Bench()
    bench.reserve(6)
    bench.update("client", UNLIMITED)
    assert bench.check(1, reservation(2)).grant is None
    bench.after_ms = 10_000
    assert bench.check(1, None, Settlement((9, 1, 0), 1)).settled == (NOT_OPEN,)
    assert bench.charged() == 6


def test_check_with_invalid_plan_still_settles() -> None:
    bench = Bench()
    bench.reserve(6)
    row = HoldRow(0, None, (Settlement((9, 1, 0), 2),))
    [answer] = bench.append(encode_batch(Batch(0, 7, 1, [Check("a", 1, "a\0b")], [row]))).answers
    assert isinstance(answer, str)
    assert (bench.held, bench.charged()) == ({}, 2)


# --- leases ---


@pytest.mark.parametrize(
    ("limits", "want", "units", "ttl_ms"),
    [
        (["100/minute"], 1_000, 50, 3_000),
        (["100/minute"], 30, 30, 3_000),
        (["100/hour"], 1_000, 50, MAX_LEASE_MS),
        (["100/hour", "20/minute"], 1_000, 10, 3_000),
        (["8/minute"], 1_000, 4, 3_000),
        (["100/2s"], 1_000, 50, 100),
    ],
)
def test_lease_gets_half_of_what_is_free(limits: list[str], want: int, units: int, ttl_ms: int) -> None:
    assert Bench(*limits).lease(want) == Grant(units, ttl_ms)


@pytest.mark.parametrize(
    ("limits", "want", "grant"),
    [
        (["512/minute"], 4, Grant(4, 10_000)),
        (["511/minute"], 4, Grant(4, 3_000)),
        (["384/minute"], 3, Grant(3, 10_000)),
        (["383/minute"], 3, None),
        (["128/1s"], 1, Grant(1, 166)),
        (["1000/hour", "384/30s"], 3, Grant(3, 5_000)),
        (["1000/minute"], 0, None),
    ],
)
def test_lease_under_generous_limits_may_be_small_and_lasts_longer(
    limits: list[str], want: int, grant: Grant | None
) -> None:
    assert Bench(*limits).lease(want) == grant


def test_limits_are_less_generous_beside_open_holds() -> None:
    bench = Bench("800/minute")
    assert bench.lease(3) == Grant(3, 10_000)
    assert bench.check(0, lease(1, holder=8, want=3)).grant == Grant(3, 10_000)
    assert bench.check(0, lease(1, holder=9, want=3)).grant is None


@pytest.mark.parametrize("limits", [["7/minute"], ["100/1s"], ["0/minute"]])
def test_lease_too_small_or_too_short_is_not_granted(limits: list[str]) -> None:
    assert Bench(*limits).lease() is None


def test_lease_is_not_granted_for_fewer_units_or_less_time_than_it_is_worth() -> None:
    assert Bench("380/minute").lease(want=3) is None
    assert Bench().lease(ttl_ms=99) is None
    assert Bench().lease(ttl_ms=100) == Grant(50, 100)


def test_lease_is_granted_after_the_charge_of_its_check_and_beside_open_holds() -> None:
    bench = Bench()
    bench.reserve(20)
    answer = bench.check(4, lease(1))
    assert answer.grant == Grant((100 - 4 - 20) // 4, 3_000)
    assert answer.remaining == 100 - 4 - 20 - 19
    assert bench.check(1, lease(1, holder=8)).grant == Grant((100 - 5 - 39) // 6, 3_000)


def test_denied_check_gets_no_lease() -> None:
    bench = Bench()
    bench.check(80)
    answer = bench.check(30, lease(1))
    assert (answer.allowed, answer.grant, bench.held) == (False, None, {}), "half of 20 would be free"


def test_lease_is_not_granted_while_a_dropped_window_is_kept() -> None:
    bench = Bench()
    bench.update("client", parse_policy("1000/hour"))
    assert bench.check(1).allowed
    bench.update("client", parse_policy("100/minute"))
    assert bench.lease() is None
    bench.after_ms = 2 * 3_600_000
    bench.check(1)
    assert bench.lease() is not None


def test_leases_of_one_client_are_bounded() -> None:
    bench = Bench("1000000000/minute")
    for holder in range(MAX_LEASES):
        assert bench.check(0, lease(1, 4, holder=holder)).grant is not None
    assert bench.check(0, lease(1, 4, holder=MAX_LEASES)).grant is None


def test_ask_closes_earlier_leases_of_its_holder_that_it_does_not_name() -> None:
    bench = Bench()
    for number, holder, keep in ((1, 7, 0), (1, 8, 0), (2, 7, 1), (3, 7, 2)):
        bench.check(0, lease(number, 4, holder=holder, keep=keep))
    assert bench.held == {(8, 1, 0): 4, (7, 2, 0): 4, (7, 3, 0): 4}
    assert bench.charged() == 0


def test_late_ask_closes_no_later_lease() -> None:
    bench = Bench()
    bench.check(0, lease(5, 4))
    bench.check(0, lease(4, 4))
    assert (7, 5, 0) in bench.held


def test_ask_with_the_number_of_an_open_lease_grants_nothing() -> None:
    bench = Bench()
    bench.check(0, lease(5, 4))
    same_number = Ask(LEASE, (7, 5, 1), 5, 4, 60_000)
    assert bench.check(0, same_number).grant is None
    assert bench.check(0, lease(5, 4)).grant == Grant(4, 3_000), "the same ask again"
    assert bench.held == {(7, 5, 0): 4}


def test_check_settles_before_it_is_judged() -> None:
    bench = Bench("10/minute")
    bench.lease(5)
    assert not bench.check(8).allowed
    answer = bench.check(8, None, Settlement((7, 1, 0), 2))
    assert (answer.allowed, answer.settled, answer.remaining) == (True, (SETTLED_NOW,), 0)


# --- times of denials ---


def test_denial_states_when_it_ends_with_and_without_the_holds() -> None:
    bench = Bench("10/minute")
    bench.check(4)
    bench.after_ms = 1_000
    bench.reserve(6, ttl_ms=20_000)
    both = bench.check(1)
    assert (both.allowed, both.retry_after_ms, both.firm_ms) == (False, 60_000, 0)
    charges = bench.check(7)
    assert (charges.retry_after_ms, charges.firm_ms) == (81_000, 60_000)
    assert charges.reset_after_ms == 81_000
    never = bench.check(11)
    assert (never.retry_after_ms, never.firm_ms) == (None, None)
    bench.after_ms = 61_000
    assert bench.check(0).remaining == 4
    bench.after_ms = 81_999
    assert not bench.check(7).allowed
    bench.after_ms = 82_000
    assert bench.check(7).allowed


# --- limits and resets ---


def test_reset_keeps_holds_and_drops_charges() -> None:
    bench = Bench("10/minute")
    bench.reserve(6, 1)
    bench.reserve(1, 2, ttl_ms=1_000)
    bench.check(2)
    bench.after_ms = 2_000
    bench.update("reset", None)
    assert (bench.held, bench.charged()) == ({(9, 1, 0): 6}, 0)
    assert bench.settle(Settlement((9, 1, 0), 3)) == (SETTLED_NOW,)
    assert bench.charged() == 3


def test_changed_limit_keeps_holds() -> None:
    bench = Bench("10/minute")
    bench.reserve(6)
    bench.update("client", parse_policy("7/hour"))
    assert not bench.check(2).allowed
    assert bench.check(1).allowed
    bench.after_ms = 20_000
    bench.check(0)
    assert bench.charged(3_600_000) == 7


def test_end_of_hold_on_a_denial_is_stored() -> None:
    bench = Bench("10/minute")
    bench.reserve(10)
    bench.ledger.dirty.clear()
    bench.after_ms = 10_000
    assert not bench.check(1).allowed
    assert "a" in bench.ledger.dirty
    assert bench.state.position == (bench.offset - 1) << 16


def test_state_without_live_charges_is_stored_like_a_new_one() -> None:
    """Another worker may have dropped such a state, so a reservation must store equal bytes in both."""
    old, new = Bench("100/minute"), Bench("100/minute")
    old.check(1)
    new.append(encode_batch(Batch(0, 7, 1, [Check("other")])))
    for bench in (old, new):
        bench.after_ms = 2 * MINUTE
        assert bench.reserve(5).allowed
    assert encode_state(old.state) == encode_state(new.state)


def test_client_whose_holds_have_ended_gets_the_decision_of_one_without_holds() -> None:
    """Its state may have been dropped, and a replay must give the same answer."""
    old, new = Bench("100/minute"), Bench("100/minute")
    old.reserve(5, ttl_ms=1_000)
    new.append(encode_batch(Batch(0, 7, 1, [Check("other")])))
    record = encode_batch(Batch(0, 7, 1, [Check("a")], []))
    for bench in (old, new):
        bench.after_ms = 2 * MINUTE
    assert old.append(record).answers == new.append(record).answers
    assert encode_state(old.state) == encode_state(new.state)
