from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.hold_set import Hold, HoldSet
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, State, encode_marker, encode_state
from stoplog_worker.state.expiry import KEYS_PER_STEP, MAX_MILESTONES, PASS_S, STEP_S, StateExpirer
from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

from stoplog.policy import UNLIMITED, parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.holds import LEASE
from stoplog.wire.limit_updates import Update
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START

MINUTE, HOUR = 60_000, 3_600_000
EXPIRED = START + MINUTE + 1_000
"""By then a charge at START has left a window of a minute, whatever its tick."""


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PartitionStore]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        rocks = RocksDbFactory(16 << 20, 1)
        made = PartitionStore(0, rocks.open, {table: tmp_path / table for table in TABLES})
        yield made
        made.close()


def charged(offset: int, *lengths: int) -> bytes:
    """Return an encoded state with a charge at START in windows of these *lengths*."""
    windows = {length: Window(length) for length in lengths}
    for window in windows.values():
        window.charge(START, 1)
    return encode_state(State(offset << POSITION_BITS, windows))


def mark(store: PartitionStore, next_offset: int, clock_ms: int) -> None:
    marker = Marker(next_offset, clock_ms, clock_ms, -1, "topic", UNLIMITED)
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])


def keys(store: PartitionStore) -> set[bytes]:
    return {key for key, _ in store.items(COUNTERS)}


def expire(store: PartitionStore, passes: int = 2) -> int:
    """Make the first *passes*; the first of them only notes the marker. Return how many states it
    removed."""
    expirer = StateExpirer(store)
    return sum(len(expirer.advance(PASS_S * number, 1)) for number in range(passes))


def test_expiry_removes_only_states_without_live_charges(store: PartitionStore) -> None:
    store.next_offset[COUNTERS] = 17
    store.write(
        COUNTERS,
        [
            (b"gone", charged(0, MINUTE)),
            (b"gone\0login", charged(0, MINUTE, 1_000)),
            (b"reset", charged(0)),
            (b"live", charged(0, HOUR)),
            (b"half", charged(0, MINUTE, HOUR)),
            (b"new", charged(5, MINUTE)),
        ],
    )
    mark(store, 5, EXPIRED)
    assert expire(store) == 3
    assert keys(store) == {b"live", b"half", b"new"}
    assert store.next_offset[COUNTERS] == 17
    assert list(store.counters([b"gone", b"live"])) == [None, charged(0, HOUR)]


def test_expiry_removes_state_at_the_millisecond_of_expiry(store: PartitionStore) -> None:
    window = Window(MINUTE)
    window.charge(START, 1)
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    mark(store, 5, window.leave_ms[-1] - 1)
    assert expire(store) == 0
    mark(store, 5, window.leave_ms[-1])
    assert expire(store) == 1


def test_expiry_keeps_state_with_hold_until_a_window_after_its_end(store: PartitionStore) -> None:
    window = Window(MINUTE)
    window.charge(START, 1)
    held = Hold((7, 1, 0), LEASE, 1, START + HOUR, 5)
    store.write(COUNTERS, [(b"a", encode_state(State(0, {MINUTE: window}, START, HoldSet([held]))))])
    mark(store, 5, window.leaves_ms(held.end_ms) - 1)
    assert expire(store) == 0
    mark(store, 5, window.leaves_ms(held.end_ms))
    assert expire(store) == 1


def test_expiry_removes_only_states_expired_a_pass_ago(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    expirer = StateExpirer(store)
    assert expirer.advance(0, 1) == []
    mark(store, 5, EXPIRED)
    assert expirer.advance(PASS_S - 1, 1) == [], "not yet time for a pass"
    assert expirer.advance(PASS_S, 1) == [], "a pass ago there was no marker"
    assert expirer.advance(PASS_S * 2, 1) == [b"a"]


def test_expiry_without_marker_removes_nothing(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    assert expire(store, 4) == 0


def test_expiry_large_table_takes_steps_at_pace_shared_with_other_partitions() -> None:
    store = MemoryStore()
    store.write(COUNTERS, [(b"client-%d" % n, charged(0, MINUTE)) for n in range(KEYS_PER_STEP * 2 + 1)])
    mark(store, 5, EXPIRED)
    expirer = StateExpirer(store)
    assert expirer.advance(0, 4) == []
    assert [len(expirer.advance(PASS_S + STEP_S * step, 4)) for step in range(0, 13, 2)] == [
        KEYS_PER_STEP, 0, KEYS_PER_STEP, 0, 1, 0, 0
    ]  # fmt: skip
    assert keys(store) == set()


class Passing:
    """Passes over a table whose changelog grows in the meantime."""

    def __init__(self, store: PartitionStore) -> None:
        self.store, self.now, self.obsolete = store, 0.0, list[int]()
        self.expirer = StateExpirer(store, self.obsolete.append)

    def write(self, offset: int, **lengths: int) -> None:
        """Store clients, each charged at START in a window of the given length, by a check at *offset*."""
        self.store.next_offset[COUNTERS] += len(lengths)
        self.store.write(COUNTERS, [(name.encode(), charged(offset, ms)) for name, ms in lengths.items()])

    def passes(self, clock_ms: int, count: int = 1) -> list[int]:
        """Make *count* passes at *clock_ms*; return the offsets at which the changelog may begin."""
        before = len(self.obsolete)
        for _ in range(count):
            mark(self.store, 100, clock_ms)
            self.now += PASS_S
            self.expirer.advance(self.now, 1)
        return self.obsolete[before:]


def test_pass_releases_changelog_before_expired_and_rewritten_states(store: PartitionStore) -> None:
    passing = Passing(store)
    passing.write(1, short=MINUTE, long=HOUR, comes_again=HOUR)
    assert passing.passes(START, 3) == [], "every state is needed"
    passing.write(2, comes_again=HOUR)
    passing.write(3, late=HOUR)
    assert passing.passes(START + 2 * MINUTE, 3) == [], "one state of the first pass is still needed"
    assert keys(store) == {b"long", b"comes_again", b"late"}
    passing.write(4, long=HOUR)
    assert passing.passes(START + 2 * MINUTE) == [3], (
        "only the first records: the later ones are not behind a milestone yet"
    )
    assert passing.passes(START + 3 * HOUR, 3)[-1] == 6, "no state is left"
    assert keys(store) == set()


def test_milestones_survive_reopening_and_clear_counters_removes_them(tmp_path: Path) -> None:
    rocks = RocksDbFactory(16 << 20, 1)
    paths = {table: tmp_path / table for table in TABLES}
    first = PartitionStore(0, rocks.open, paths)
    passing = Passing(first)
    passing.write(1, a=MINUTE, b=MINUTE)
    passing.passes(START, 2)
    first.close()
    second = PartitionStore(0, rocks.open, paths)
    assert second.milestones == first.milestones != []
    passing = Passing(second)
    assert passing.passes(EXPIRED, 3)[-1] == 2
    second.clear_counters()
    assert (second.next_offset[COUNTERS], second.milestones, keys(second)) == (0, [], set())
    second.close()


def test_milestones_are_bounded_and_oldest_stays() -> None:
    store = MemoryStore()
    passing = Passing(store)
    passing.write(0, first=HOUR)
    passing.passes(START, 2)
    for offset in range(1, 10 * MAX_MILESTONES):
        passing.write(offset, other=HOUR)
        assert passing.passes(START) == []
        assert len(store.milestones) <= MAX_MILESTONES
    passing.write(10 * MAX_MILESTONES, first=HOUR)
    [end] = passing.passes(START)
    assert end > 9 * MAX_MILESTONES, "only a few passes' records are left"


def test_changelog_is_at_most_a_sixteenth_longer_than_longest_window() -> None:
    """The window here has three times as many passes as milestones are kept."""
    store, window = MemoryStore(), 3 * MAX_MILESTONES
    passing = Passing(store)
    clock = START
    for offset in range(1, 5 * window):
        # Each client comes once, and its charge leaves a window later.
        state = Window(window * MINUTE)
        state.charge(clock, 1)
        value = encode_state(State(offset << POSITION_BITS, {state.window_ms: state}))
        store.next_offset[COUNTERS] += 1
        store.write(COUNTERS, [(b"client-%d" % offset, value)])
        mark(store, offset + 1, clock)
        passing.now += PASS_S
        passing.expirer.advance(passing.now, 1)
        assert len(store.milestones) <= MAX_MILESTONES
        clock += MINUTE
        if offset > 2 * window:
            behind = store.next_offset[COUNTERS] - passing.obsolete[-1]
            assert behind <= window * 17 / 16 + 5, behind


def test_swept_client_gets_the_same_decisions() -> None:
    """The policy changes in between. A window kept in the stored state must make no difference."""
    client = CLIENTS[0]
    answers = []
    for swept in (False, True):
        store = MemoryStore()
        ledger = Ledger(store, Marker(0, 0, -1, -1, "", parse_policy("100/minute")))

        def ask(cost: int, after_ms: int, ledger: Ledger = ledger) -> object:
            offset = ledger.next_offset
            now = ledger.advance(offset, START + after_ms)
            return judge(ledger, offset, now, [Check(client, cost)], fault_finder(PARTITION, PARTITIONS))

        def limit(version: int, text: str, ledger: Ledger = ledger) -> None:
            ledger.apply(
                Update(version, "client", client, "", parse_policy(text)),
                ledger.next_offset << POSITION_BITS,
            )

        limit(0, "5/hour")
        ask(5, 0)
        ask(1, HOUR + 60_000)
        ledger.checkpointed, entries = ledger.take_dirty()
        store.write(COUNTERS, list(entries.counters))
        store.write(POLICIES, [*entries.policies, (MARKER_KEY, encode_marker(ledger.checkpointed))])
        ledger.evict(0)
        ask(0, 3 * HOUR)
        if swept:
            mark(store, ledger.next_offset, 3 * HOUR + START)
            assert expire(store) == 1
        ledger.evict(0)
        limit(1, "100/minute")
        told = [ask(60, 3 * HOUR + 1), ask(0, 3 * HOUR + 2)]
        limit(2, "5/hour")
        told += [ask(1, 3 * HOUR + 120_000), ask(0, 5 * HOUR)]
        answers.append(told)
    assert answers[0] == answers[1]
