"""Stored values are read back as they were written; test_golden_bytes.py fixes their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.algorithm.hold_set import Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Window, tick_of
from stoplog_worker.algorithm.state_codec import (
    Marker,
    State,
    decode_marker,
    decode_state,
    encode_marker,
    encode_state,
    position_of,
    state_key,
)
from stoplog_worker.state.store import COUNTERS, POLICIES, Record

from stoplog.policy import MAX_COST, UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import Check
from tests.support.ledgers import DEFAULT, NOW, at, charge, fresh

_u64 = st.integers(0, 2**64 - 1)
_holds = st.builds(
    Hold,
    st.tuples(_u64, _u64, _u64),
    st.sampled_from((0, 1)),
    _u64,
    st.integers(0, 2**48),
    st.integers(0, MAX_COST),
)
_ticks = st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 2**53)), max_size=61)


@st.composite
def states(draw: st.DrawFn) -> State:
    windows = {}
    for length in draw(st.lists(st.integers(1_000, 31 * 86_400_000), unique=True, max_size=4)):
        leaves, leave_ms, counts = length + tick_of(length), [], []
        for step, count in draw(_ticks):
            leaves += step * tick_of(length)
            leave_ms.append(leaves)
            counts.append(count)
        windows[length] = Window(length, leave_ms, counts, draw(st.sampled_from((0, NOW))))
    newest_ms = draw(st.integers(0, 2**48)) if windows else 0
    holds = draw(st.lists(_holds, max_size=3, unique_by=lambda hold: hold.id)) if windows else []
    return State(draw(st.integers(0, 2**63 - 1)), windows, newest_ms, HoldSet(holds) if holds else None)


@given(states())
def test_encode_state_round_trips(state: State) -> None:
    value = encode_state(state)
    found = decode_state(value)
    assert position_of(value) == found.position == state.position
    assert (found.newest_ms, list(found.holds or ())) == (state.newest_ms, list(state.holds or ()))
    assert Record(0, b"a", value).entry(COUNTERS) == (b"a", value)
    assert Record(0, b"a", value).entry(POLICIES) is None or not state.holds
    assert list(found.windows) == list(state.windows)
    for length, window in state.windows.items():
        back = found.windows[length]
        assert (back.leave_ms, back.counts, back.total) == (window.leave_ms, window.counts, window.total)
        assert back.kept_until_ms == window.kept_until_ms
    assert encode_state(found) == value


def test_encode_state_is_small() -> None:
    ledger = fresh()
    assert len(encode_state(charge(ledger, Check("a"), 2**40))) <= 30
    busy = State(0, {60_000: Window(60_000)})
    for second in range(70):
        busy.windows[60_000].forget(NOW + second * 1_000)
        busy.windows[60_000].charge(NOW + second * 1_000, MAX_COST)
    assert len(encode_state(busy)) < 500


@given(
    st.integers(0, 2**46),
    st.integers(0, 2**53),
    st.integers(-1, 2**53),
    st.integers(-1, 2**62),
    st.text(max_size=30),
    st.sampled_from((DEFAULT, UNLIMITED, parse_policy(["1/second", "5/1h"]))),
)
def test_encode_marker_round_trips(
    offset: int, clock: int, stamp: int, applied: int, topic: str, default: Policy
) -> None:
    marker = Marker(offset, clock, stamp, applied, topic, default, topic[::-1], {COUNTERS: topic})
    value = encode_marker(marker)
    assert decode_marker(value) == marker
    assert position_of(value) == at(offset)


def test_state_key_keeps_clients_and_resources_apart() -> None:
    assert state_key(Check("a", 1, "", "b")) == ("a", "b")
    assert state_key(Check("a")) == "a"
    assert state_key(Check("a:b")) != state_key(Check("a", 1, "", "b"))
