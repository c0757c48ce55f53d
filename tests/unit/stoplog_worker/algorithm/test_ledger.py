"""Time, memory, resets and entries of the ledger."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import fold, judge
from stoplog_worker.algorithm.ledger import IDLE_CLIENT_BYTES, Ledger, UpdateEffect
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import (
    NEVER_SET,
    State,
    decode_history,
    decode_marker,
    decode_state,
    encode_marker,
    encode_state,
    position_of,
    state_key,
)
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.policy import MAX_COST, parse_policy
from stoplog.wire.checks import Check, encode_update
from stoplog.wire.limit_updates import Update
from tests.support.ledgers import DEFAULT, FIRST_MARKER, NOW, at, charge, checkpoint, fresh, resolved, spent
from tests.support.memory_store import MemoryStore

# --- time -------------------------------------------------------------------------------------


def test_advance_from_first_record_moves_by_timestamp_difference() -> None:
    ledger = fresh()
    assert ledger.advance(0, NOW) == NOW
    assert ledger.advance(1, NOW + 250) == NOW + 250


def test_advance_clock_set_back_has_no_effect() -> None:
    ledger = fresh()
    ledger.advance(0, NOW)
    assert ledger.advance(1, NOW - 3_600_000) == NOW
    assert ledger.advance(2, NOW - 3_600_000 + 7) == NOW + 7


def test_advance_clock_set_forward_moves_time_once() -> None:
    ledger = fresh()
    ledger.advance(0, NOW)
    assert ledger.advance(1, NOW + 3_600_000) == NOW + 3_600_000
    assert ledger.advance(2, NOW + 10) == NOW + 3_600_000
    assert ledger.advance(3, NOW + 20) == NOW + 3_600_010


@given(st.lists(st.integers(0, 2**42), min_size=1), st.integers(0, 50))
def test_advance_any_timestamps_and_restart_is_monotonic_and_equal(stamps: list[int], cut: int) -> None:
    whole, ledger = fresh(), fresh()
    times = [whole.advance(offset, stamp) for offset, stamp in enumerate(stamps)]
    assert times == sorted(times)
    for offset, stamp in enumerate(stamps):
        if offset == cut:
            ledger = fresh(decode_marker(encode_marker(ledger.marker)))
        assert ledger.advance(offset, stamp) == times[offset]
    assert ledger.marker == whole.marker


# --- resets -----------------------------------------------------------------------------------


def test_reset_without_resource_empties_all_of_the_client_only() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    checks = [Check("a"), Check("a", 1, "", "login"), Check("a", 1, "", "z"), Check("ab"), Check("b")]
    for offset, check in enumerate(checks[:4]):
        charge(ledger, check, offset)
    checkpoint(ledger, store)
    ledger.evict(1)
    charge(ledger, checks[4], 4)
    ledger.apply(Update(0, "reset", "a", "", None), at(5))
    ledger.load(key for check in checks if (key := state_key(check)) not in ledger.states)
    assert [spent(ledger.states[state_key(check)]) for check in checks] == [0, 0, 0, 1, 1]
    assert ledger.dirty.keys() == {"a", ("a", "login"), ("a", "z"), "b"}
    assert ledger.states["a"].position == at(5)


def existed(effect: UpdateEffect | None) -> bool | None:
    return None if effect is None else effect.existed


def test_replay_from_the_marker_of_an_effect_applies_the_update_again_at_the_same_time() -> None:
    ledger = fresh()
    ledger.advance(0, NOW)
    first = Update(4, "client", "a", "", parse_policy("5/minute"))
    fold(ledger, 1, NOW + 500, encode_update(first), lambda _: None)
    second = Update(7, "client", "a", "", parse_policy("9/minute"))
    effect = fold(ledger, 2, NOW + 900, encode_update(second), lambda _: None).effect
    assert effect is not None
    assert (effect.replay_from.next_offset, effect.replay_from.applied) == (2, 4)
    again = fresh(effect.replay_from)
    repeated = fold(again, 2, NOW + 900, encode_update(second), lambda _: None).effect
    assert repeated is not None
    assert (again.marker, repeated.replay_from) == (ledger.marker, effect.replay_from)


def test_effect_of_reset_states_whether_anything_was_spent() -> None:
    ledger = fresh()
    ledger.advance(0, NOW)
    assert existed(ledger.apply(Update(0, "reset", "a", "", None), at(1))) is False
    ledger.advance(2, NOW)
    judge(ledger, 2, NOW, [Check("a", 1, "", "login")], lambda _: None)
    assert existed(ledger.apply(Update(1, "reset", "a", "z", None), at(3))) is False
    assert existed(ledger.apply(Update(2, "reset", "a", "", None), at(4))) is True
    assert ledger.apply(Update(2, "reset", "a", "", None), at(5)) is None
    judge(ledger, 6, NOW, [Check("a")], lambda _: None)
    ledger.advance(7, NOW + 3_600_000)
    expired = ledger.apply(Update(3, "reset", "a", "", None), at(8))
    assert existed(expired) is False, "the charge has left its window"


def test_reset_of_resource_leaves_other_resources() -> None:
    ledger = fresh()
    for check in (Check("a"), Check("a", 1, "", "login"), Check("a", 1, "", "z")):
        charge(ledger, check, 0)
    ledger.apply(Update(0, "reset", "a", "login", None), at(5))
    assert [spent(ledger.states[key]) for key in ("a", ("a", "login"), ("a", "z"))] == [1, 0, 1]


def test_reset_replayed_over_later_charges_keeps_them() -> None:
    """The state was stored with a charge made after the reset; the marker was not stored."""
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    charge(ledger, Check("a", 5), 0)
    ledger.apply(Update(0, "reset", "a", "", None), at(1))
    charge(ledger, Check("a", 2), 2)
    _, entries = ledger.take_dirty()
    store.write(COUNTERS, list(entries.counters))
    again = Ledger(store, FIRST_MARKER)
    assert again.apply(Update(0, "reset", "a", "", None), at(1))
    assert spent(again.states["a"]) == 2
    assert not again.dirty


# --- memory and entries to be written ---------------------------------------------------------------


def test_evict_keeps_dirty_states() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    for offset, client in enumerate("abc"):
        charge(ledger, Check(client), offset)
    marker, entries = ledger.take_dirty()
    counters = list(entries.counters)
    charge(ledger, Check("b"), 3)  # decided while the checkpoint was being written
    store.write(COUNTERS, counters)
    ledger.checkpointed = marker
    ledger.evict(0)
    assert ledger.states.keys() == {"b"}
    assert spent(charge(ledger, Check("b"), 4)) == 3
    assert spent(charge(ledger, Check("a"), 5)) == 2


def stored(clients: int, ticks: int, cost: int = 1) -> MemoryStore:
    """Return a store of *clients*, each charged *cost* in each of *ticks*."""
    window = Window(60_000)
    for tick in range(ticks):
        window.charge(NOW + tick * 1_000, cost)
    store = MemoryStore()
    value = encode_state(State(0, {60_000: window}, NOW + ticks * 1_000 - 1))
    store.write(COUNTERS, [(f"client-{n:04}".encode(), value) for n in range(clients)])
    return store


def test_evict_idle_clients_keeps_about_the_given_number() -> None:
    names = [f"client-{n:04}" for n in range(10)]
    ledger = Ledger(stored(10, 1), FIRST_MARKER)
    ledger.load(names)
    ledger.evict(5)
    assert list(ledger.states) == names[-4:]
    ledger.evict(5)
    assert len(ledger.states) == 4
    ledger.evict(0)
    assert ledger.size == 0


@pytest.mark.parametrize(
    ("ticks", "cost"), [(1, 1), (20, 1), (61, 1), (61, 200), (61, 1_000), (61, MAX_COST)]
)
def test_evict_busy_clients_bounds_memory(ticks: int, cost: int) -> None:
    ledger = Ledger(stored(2_000, ticks, cost), FIRST_MARKER)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for start in range(0, 2_000, 100):
        ledger.load([f"client-{n:04}" for n in range(start, start + 100)])
    loaded, _ = tracemalloc.get_traced_memory()
    ledger.evict(500)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded - before > 2_000 * 700
    table = 2_000 * 100  # a dict does not shrink when keys leave it
    assert 0.4 * 500 * IDLE_CLIENT_BYTES < kept - before < 500 * IDLE_CLIENT_BYTES + table


def test_size_of_growing_state_is_updated_by_checkpoint() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    for client in "ab":
        charge(ledger, Check(client), 0)
    checkpoint(ledger, store)
    small = ledger.size
    for tick in range(60):
        ledger.states["a"].windows[60_000].charge(NOW + tick * 1_000, 1)
    ledger.dirty["a"] = ledger.states["a"]
    checkpoint(ledger, store)
    assert ledger.size > small + 60 * 48
    ledger.evict(5)
    assert ledger.states.keys() == {"a"}
    ledger.evict(4)
    ledger.evict(4)
    assert not ledger.states


def test_evict_spares_constantly_charged_client() -> None:
    store = stored(1_000, 1)
    ledger = Ledger(store, FIRST_MARKER)
    read: list[str] = []
    for round_ in range(100):
        for name in ("hot", *(f"client-{n:04}" for n in range(10 * round_, 10 * round_ + 10))):
            if name not in ledger.states:
                read.append(name)
            charge(ledger, Check(name), round_)
        checkpoint(ledger, store)
        ledger.evict(30)
        assert ledger.size == sum(state.size for state in ledger.states.values())
    assert read.count("hot") == 1
    assert 20 <= len(ledger.states) <= 30


def test_load_with_resource_does_not_read_client_limits() -> None:
    store = MemoryStore()
    asked: list[bytes] = []

    class Watched(MemoryStore):
        def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
            asked.extend(keys)
            return store.policies(keys)

    Ledger(Watched(), FIRST_MARKER).load(["a", ("a", "login"), ("b", "login")])
    assert asked == [b"client\0a\0"]


def test_changed_is_true_until_dirty_is_taken() -> None:
    ledger = fresh()
    assert not ledger.changed
    ledger.advance(0, NOW)
    assert ledger.changed, "the marker moves even when nothing was counted"
    ledger.checkpointed, entries = ledger.take_dirty()
    assert (list(entries.counters), entries.policies) == ([], [])
    assert not ledger.changed
    ledger.rewrite([], [])
    assert ledger.changed, "another worker's marker must be overwritten"
    ledger.take_dirty()
    assert not ledger.changed


def test_rewrite_returns_entries_as_of_the_last_record_and_empty_unknown_ones() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    charge(ledger, Check("a", 3), 0)
    charge(ledger, Check("a", 1, "", "login"), 1)
    ledger.apply(Update(0, "plan", "gold", "login", DEFAULT), at(2))
    ledger.advance(2, NOW)
    checkpoint(ledger, store)
    before = {**dict(store.items(COUNTERS)), **dict(store.items(POLICIES))}
    again = Ledger(store, ledger.checkpointed)
    again.rewrite([b"a", b"a\0login", b"never"], [b"plan\0gold\0login", b"client\0x\0"])
    _, entries = again.take_dirty()
    written = {**dict(entries.counters), **dict(entries.policies)}
    assert {position_of(value) for value in written.values()} == {at(3) - 1}
    never, unset = written.pop(b"never"), written.pop(b"client\0x\0")
    assert decode_state(never).windows == {}
    assert decode_history(unset) == [NEVER_SET]
    assert resolved(again, Check("x"), 9) == (DEFAULT, -1)
    assert {key: value[9:] for key, value in written.items()} == {
        key: before[key][9:] for key in (b"a", b"a\0login", b"plan\0gold\0login")
    }


def test_rewrite_leaves_the_positions_of_entries_ahead_of_the_ledger() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    charge(ledger, Check("a", 3), 7)
    ledger.apply(Update(0, "client", "a", "", DEFAULT), at(8))
    checkpoint(ledger, store)
    before = {**dict(store.items(COUNTERS)), **dict(store.items(POLICIES))}
    behind = Ledger(store, msgspec.structs.replace(FIRST_MARKER, next_offset=5))
    behind.rewrite([b"a"], [b"client\0a\0"])
    _, entries = behind.take_dirty()
    written = {**dict(entries.counters), **dict(entries.policies)}
    assert written == {key: before[key] for key in (b"a", b"client\0a\0")}


def test_policy_changed_after_a_rewrite_has_the_position_of_the_change() -> None:
    ledger = fresh()
    ledger.advance(2, NOW)
    ledger.rewrite([], [b"client\0x\0"])
    ledger.apply(Update(0, "client", "x", "", DEFAULT), at(3))
    _, entries = ledger.take_dirty()
    assert position_of(dict(entries.policies)[b"client\0x\0"]) == at(3)
