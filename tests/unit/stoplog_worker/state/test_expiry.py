from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, State, encode_marker, encode_state
from stoplog_worker.state.expiry import KEYS, MILESTONES, PASS_S, STEP_S, Sweeper
from stoplog_worker.state.rocksdb import Rocks
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

from stoplog.policy import UNLIMITED, parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import Update
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START

MINUTE, HOUR = 60_000, 3_600_000
LEFT = START + MINUTE + 1_000
"""A charge at START has left a minute by then, whatever its tick."""


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PartitionStore]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        rocks = Rocks(16 << 20)
        made = PartitionStore(0, rocks.open, {table: tmp_path / table for table in TABLES})
        yield made
        made.close()


def charged(offset: int, *lengths: int) -> bytes:
    """A state with a charge at START in windows of these *lengths*."""
    windows = {length: Window(length) for length in lengths}
    for window in windows.values():
        window.charge(START, 1)
    return encode_state(State(offset << POSITION_BITS, windows))


def mark(store: PartitionStore, next_offset: int, clock_ms: int) -> None:
    marker = Marker(next_offset, clock_ms, clock_ms, -1, "topic", UNLIMITED)
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])


def keys(store: PartitionStore) -> set[bytes]:
    return {key for key, _ in store.items(COUNTERS)}


def sweep(store: PartitionStore, passes: int = 2) -> int:
    """A sweeper's first *passes*, the first of which only notes where the marker is."""
    sweeper = Sweeper(store)
    return sum(len(sweeper.advance(PASS_S * number, 1)) for number in range(passes))


def test_what_has_left_all_its_windows_is_removed_and_nothing_else(store: PartitionStore) -> None:
    store.next[COUNTERS] = 17
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
    mark(store, 5, LEFT)
    assert sweep(store) == 3
    assert keys(store) == {b"live", b"half", b"new"}
    assert store.next[COUNTERS] == 17
    assert list(store.counters([b"gone", b"live"])) == [None, charged(0, HOUR)]


def test_to_the_millisecond(store: PartitionStore) -> None:
    window = Window(MINUTE)
    window.charge(START, 1)
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    mark(store, 5, window.leave_ms[-1] - 1)
    assert sweep(store) == 0
    mark(store, 5, window.leave_ms[-1])
    assert sweep(store) == 1


def test_only_what_had_left_a_pass_ago_is_removed(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    sweeper = Sweeper(store)
    assert sweeper.advance(0, 1) == []
    mark(store, 5, LEFT)
    assert sweeper.advance(PASS_S - 1, 1) == [], "no time for a pass"
    assert sweeper.advance(PASS_S, 1) == [], "a pass ago there was no marker"
    assert sweeper.advance(PASS_S * 2, 1) == [b"a"]


def test_without_a_marker_nothing_is_removed(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", charged(0, MINUTE))])
    assert sweep(store, 4) == 0


def test_a_large_table_takes_many_steps_at_a_pace_shared_with_other_partitions() -> None:
    store = MemoryStore()
    store.write(COUNTERS, [(b"client-%d" % n, charged(0, MINUTE)) for n in range(KEYS * 2 + 1)])
    mark(store, 5, LEFT)
    sweeper = Sweeper(store)
    assert sweeper.advance(0, 4) == []
    assert [len(sweeper.advance(PASS_S + STEP_S * step, 4)) for step in range(0, 13, 2)] == [
        KEYS, 0, KEYS, 0, 1, 0, 0
    ]  # fmt: skip
    assert keys(store) == set()


class Passing:
    """Passes over a table, whose changelog grows meanwhile."""

    def __init__(self, store: PartitionStore) -> None:
        self.store, self.now, self.told = store, 0.0, list[int]()
        self.sweeper = Sweeper(store, self.told.append)

    def write(self, offset: int, **lengths: int) -> None:
        """Clients, each charged at START in a window so long, by a check at *offset*."""
        self.store.next[COUNTERS] += len(lengths)
        self.store.write(COUNTERS, [(name.encode(), charged(offset, ms)) for name, ms in lengths.items()])

    def passes(self, clock_ms: int, count: int = 1) -> list[int]:
        """The offsets that the changelog may begin at, by *count* passes of that time."""
        before = len(self.told)
        for _ in range(count):
            mark(self.store, 100, clock_ms)
            self.now += PASS_S
            self.sweeper.advance(self.now, 1)
        return self.told[before:]


def test_a_changelog_loses_what_all_have_left_or_written_again(store: PartitionStore) -> None:
    passing = Passing(store)
    passing.write(1, short=MINUTE, long=HOUR, comes_again=HOUR)
    assert passing.passes(START, 3) == [], "all of it counts"
    passing.write(2, comes_again=HOUR)
    passing.write(3, late=HOUR)
    assert passing.passes(START + 2 * MINUTE, 3) == [], "one of the first pass still counts"
    assert keys(store) == {b"long", b"comes_again", b"late"}
    passing.write(4, long=HOUR)
    assert passing.passes(START + 2 * MINUTE) == [3], "what came first; what came then is not behind us yet"
    assert passing.passes(START + 3 * HOUR, 3)[-1] == 6, "nobody is left"
    assert keys(store) == set()


def test_how_far_a_changelog_says_nothing_is_known_to_who_opens_the_store_next(tmp_path: Path) -> None:
    rocks = Rocks(16 << 20)
    paths = {table: tmp_path / table for table in TABLES}
    first = PartitionStore(0, rocks.open, paths)
    passing = Passing(first)
    passing.write(1, a=MINUTE, b=MINUTE)
    passing.passes(START, 2)
    first.close()
    second = PartitionStore(0, rocks.open, paths)
    assert second.milestones == first.milestones != []
    passing = Passing(second)
    assert passing.passes(LEFT, 3)[-1] == 2
    second.clear_counters()
    assert (second.next[COUNTERS], second.milestones, keys(second)) == (0, [], set())
    second.close()


def test_milestones_are_few_and_the_oldest_stays() -> None:
    store = MemoryStore()
    passing = Passing(store)
    passing.write(0, first=HOUR)
    passing.passes(START, 2)
    for offset in range(1, 10 * MILESTONES):
        passing.write(offset, other=HOUR)
        assert passing.passes(START) == []
        assert len(store.milestones) <= MILESTONES
    passing.write(10 * MILESTONES, first=HOUR)
    [end] = passing.passes(START)
    assert end > 9 * MILESTONES, "a few passes' worth of it is left"


def test_a_changelog_follows_its_longest_window_at_a_sixteenth_of_it() -> None:
    """However many passes fit into the window: here three times as many as milestones are kept."""
    store, window = MemoryStore(), 3 * MILESTONES
    passing = Passing(store)
    clock = START
    for offset in range(1, 5 * window):
        # Each comes once, and has left a window later.
        state = Window(window * MINUTE)
        state.charge(clock, 1)
        value = encode_state(State(offset << POSITION_BITS, {state.window_ms: state}))
        store.next[COUNTERS] += 1
        store.write(COUNTERS, [(b"client-%d" % offset, value)])
        mark(store, offset + 1, clock)
        passing.now += PASS_S
        passing.sweeper.advance(passing.now, 1)
        assert len(store.milestones) <= MILESTONES
        clock += MINUTE
        if offset > 2 * window:
            behind = store.next[COUNTERS] - passing.told[-1]
            assert behind <= window * 17 / 16 + 5, behind


def test_a_client_that_is_swept_is_judged_as_if_it_were_not() -> None:
    """Policies changed meanwhile: what a stored window had been kept for does not show."""
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
            assert sweep(store) == 1
        ledger.evict(0)
        limit(1, "100/minute")
        told = [ask(60, 3 * HOUR + 1), ask(0, 3 * HOUR + 2)]
        limit(2, "5/hour")
        told += [ask(1, 3 * HOUR + 120_000), ask(0, 5 * HOUR)]
        answers.append(told)
    assert answers[0] == answers[1]
