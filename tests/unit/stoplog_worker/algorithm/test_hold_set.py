"""What a set of holds keeps equals what is computed from all of its holds, after any changes."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm.hold_set import REFUNDED, SETTLED, Hold, HoldSet
from stoplog_worker.algorithm.holds import _free_at_ms
from stoplog_worker.algorithm.sliding_window import Window

from stoplog.wire.holds import LEASE, RESERVATION, HoldId

START = 1_764_000_000_000


def _refund_without_units(hold: Hold) -> Hold:
    return Hold(hold.id, hold.kind, hold.ask, hold.end_ms, 0) if hold.kind == REFUNDED else hold


_ids = st.tuples(st.sampled_from((7, 8)), st.integers(0, 40), st.just(0))
_holds = st.builds(
    Hold,
    _ids,
    st.sampled_from((LEASE, RESERVATION, RESERVATION, SETTLED, REFUNDED)),
    st.integers(0, 3),
    st.integers(0, 30).map(lambda n: START + n * 7),
    st.sampled_from((0, 1, 3, 3, 100)),
).map(_refund_without_units)
_changes = st.one_of(
    st.tuples(st.just("add"), _holds),
    st.tuples(st.just("add"), _holds),
    st.tuples(st.just("remove"), st.integers(0, 50)),
    st.tuples(st.just("shrink"), st.integers(0, 50), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("forget"), st.integers(0, 5)),
    st.tuples(st.just("forget refunds"), st.integers(0, 5)),
    st.tuples(st.just("keep refunds"), st.integers(0, 40)),
)


class Plain:
    """The holds in a list, oldest first."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []

    def add(self, hold: Hold) -> None:
        self.holds = [*(one for one in self.holds if one.id != hold.id), hold]

    def remove(self, id_: HoldId) -> None:
        self.holds = [one for one in self.holds if one.id != id_]

    def shrink(self, hold: Hold, units: int) -> None:
        left = Hold(hold.id, hold.kind, hold.ask, hold.end_ms, units)
        self.holds = [left if one.id == hold.id else one for one in self.holds]

    def remove_ended(self, now_ms: int) -> list[Hold]:
        ended = [one for one in self.holds if one.end_ms <= now_ms]
        self.holds = [one for one in self.holds if one.end_ms > now_ms]
        return sorted(ended, key=lambda hold: (hold.end_ms, hold.id))

    def forget_settled(self, most: int) -> None:
        settled = [one.id for one in self.holds if one.kind == SETTLED]
        for id_ in settled[: max(0, len(settled) - most)]:
            self.remove(id_)

    def forget_refunds(self, most: int) -> None:
        refunds = self.of(REFUNDED)
        for hold in refunds[: max(0, len(refunds) - most)]:
            self.remove(hold.id)

    def keep_refunds(self, until_ms: int) -> None:
        self.holds = [
            Hold(one.id, one.kind, one.ask, max(one.end_ms, until_ms), one.units)
            if one.kind == REFUNDED
            else one
            for one in self.holds
        ]

    def of(self, kind: int) -> list[Hold]:
        return [one for one in self.holds if one.kind == kind]


def check(found: HoldSet, plain: Plain) -> None:
    assert list(found) == plain.holds
    assert len(found) == len(plain.holds)
    assert bool(found) == bool(plain.holds)
    for hold in plain.holds:
        assert found.get(hold.id) == hold
    assert found.units == sum(hold.units for hold in plain.holds)
    assert found.open == len(plain.holds) - len(plain.of(SETTLED)) - len(plain.of(REFUNDED))
    assert set(found.leases) == set(plain.of(LEASE))
    ends = sorted(hold.end_ms for hold in plain.of(RESERVATION))
    assert found.reservations == len(ends)
    assert [found.reservation_ends_ms(index) for index in range(len(ends))] == ends
    charges = sorted((hold.end_ms, hold.units) for hold in plain.holds if hold.units)
    if charges:
        assert found.charged_last_ms() == charges[-1][0]
    sums = list(accumulate(units for _, units in charges))
    for wanted in {*sums, *(one + 1 for one in sums[:-1]), *([1] if sums else [])}:
        expected = next(end_ms for (end_ms, _), sum_ in zip(charges, sums, strict=True) if sum_ >= wanted)
        assert found.charged_ms(wanted) == expected


@given(st.lists(_changes, max_size=60))
@settings(max_examples=200)
def test_sums_and_orders_equal_those_of_all_holds(changes: list[tuple[object, ...]]) -> None:
    found, plain = HoldSet(), Plain()
    for name, *args in changes:
        match name, args:
            case "add", [Hold() as hold]:
                found.add(hold)
                plain.add(hold)
            case "end", [int(number)]:
                assert found.remove_ended(START + number * 7) == plain.remove_ended(START + number * 7)
            case "forget", [int(most)]:
                found.forget_settled(most)
                plain.forget_settled(most)
            case "forget refunds", [int(most)]:
                found.forget_refunds(most)
                plain.forget_refunds(most)
            case "keep refunds", [int(number)]:
                found.keep_refunds(START + number * 7)
                plain.keep_refunds(START + number * 7)
            case "remove", [int(number)] if plain.holds:
                hold = plain.holds[number % len(plain.holds)]
                assert found.remove(hold.id) == hold
                plain.remove(hold.id)
            case "shrink", [int(number), int(units)] if plain.holds:
                hold = plain.holds[number % len(plain.holds)]
                units *= hold.kind != REFUNDED
                found.shrink(hold.id, units)
                plain.shrink(hold, units)
        check(found, plain)
    check(HoldSet(plain.holds), plain)


def test_refunds_that_are_kept_longer_end_between_other_holds() -> None:
    first, second = (Hold((7, number, 0), REFUNDED, 2, START + number, 0) for number in (1, 2))
    lease, late = Hold((8, 1, 0), LEASE, 1, START + 9, 4), Hold((7, 3, 0), REFUNDED, 2, START + 8, 0)
    held = HoldSet([first, lease, late, second])
    held.keep_refunds(START + 5)
    kept = [Hold(one.id, REFUNDED, 2, START + 5, 0) for one in (first, second)]
    assert list(held) == [kept[0], lease, late, kept[1]], "each keeps its place"
    assert [held.remove_ended(START + after) for after in (4, 5, 8, 9)] == [[], kept, [late], [lease]]


def test_hold_that_is_not_there_cannot_be_changed() -> None:
    held = HoldSet([Hold((7, 1, 0), LEASE, 1, START, 4)])
    with pytest.raises(KeyError):
        held.remove((7, 2, 0))
    with pytest.raises(KeyError):
        held.shrink((7, 2, 0), 1)
    assert held.get((7, 2, 0)) is None


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 9)), max_size=8),
    st.lists(_holds, max_size=12, unique_by=lambda hold: hold.id),
    st.integers(0, 120),
)
@settings(max_examples=200)
def test_units_are_free_when_enough_charges_and_holds_have_left(
    charges: list[tuple[int, int]], held: list[Hold], ticks_ago: int
) -> None:
    """Charges may lie in the future, as far as a window that takes over the charges of a longer one has."""
    window = Window(60_000)
    begin = START - ticks_ago * 1_000
    for after_ms, cost in sorted(charges):
        window.charge(begin + after_ms, cost)
    window.forget(START - 1)
    leaving = sorted([*window.charges(), *((window.leaves_ms(hold.end_ms), hold.units) for hold in held)])
    holds = HoldSet(held)
    for excess in range(1, window.total + holds.units + 1):
        sums = accumulate(units for _, units in leaving)
        expected = next(at for (at, _), sum_ in zip(leaving, sums, strict=True) if sum_ >= excess)
        assert _free_at_ms(window, holds, excess) == expected
