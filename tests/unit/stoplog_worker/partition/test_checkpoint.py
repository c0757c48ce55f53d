from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, decode_state, encode_marker, position_of
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.checkpoint import CHUNK, Checkpointer, Overtaken
from stoplog_worker.state.store import COUNTERS, POLICIES, Record

from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import Update
from tests.support.memory_store import Changelogs, MemoryStore, contents
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START

FIRST = Marker(0, 0, -1, -1, "topic", parse_policy("100/minute"))
A, AB, ZOE = CLIENTS


class Bench:
    """A partition, its changelogs, and the next offset of its log."""

    def __init__(self, store: MemoryStore | None = None, changelogs: Changelogs | None = None) -> None:
        self.store = store or MemoryStore()
        self.changelogs = changelogs or Changelogs()
        self.metrics = Metrics()
        self.ledger = Ledger(self.store, self.store.marker() or FIRST)
        self.flusher = Checkpointer(self.ledger, self.store, self.changelogs.send, self.metrics)

    def check(self, *checks: Check) -> None:
        offset = self.ledger.next_offset
        now = self.ledger.advance(offset, START)
        judge(self.ledger, offset, now, checks, fault_finder(PARTITION, PARTITIONS))

    def update(self, version: int, client: str, text: str) -> None:
        offset = self.ledger.next_offset
        self.ledger.advance(offset, START)
        self.ledger.apply(Update(version, "client", client, "", parse_policy(text)), offset << POSITION_BITS)

    def sent(self) -> list[tuple[str, bytes]]:
        return [(sent.table, sent.key) for sent in self.changelogs.sent]

    def flush(self) -> Marker:
        self.flusher.begin()
        self.changelogs.arrive_all()
        assert self.flusher.advance() is None
        self.changelogs.arrive_all()
        marker = self.flusher.advance()
        assert marker is not None
        return marker

    def stored(self, client: str) -> int:
        [value] = self.store.counters([client.encode()])
        return sum(w.total for w in decode_state(value).windows.values()) if value else 0

    def foreign(self, table: str, *entries: tuple[bytes, bytes]) -> None:
        for key, value in entries:
            self.changelogs.append(table, key, value)

    def mend(self) -> None:
        gaps, self.flusher.foreign = self.flusher.foreign, []
        for table, start, end in gaps:
            self.flusher.mend(table, self.changelogs.read(table, start, end))

    def look(self) -> None:
        for table, log in self.changelogs.logs.items():
            self.flusher.look_at_end(table, len(log))


def test_entries_then_the_marker_then_the_store() -> None:
    bench = Bench()
    bench.check(Check(A, 2), Check(AB))
    bench.update(0, A, "5/minute")
    flusher = bench.flusher
    assert flusher.idle
    flusher.begin()
    assert not flusher.idle
    assert sorted(bench.sent()) == [(COUNTERS, b"a"), (COUNTERS, b"ab"), (POLICIES, b"client\0a\0")]
    bench.changelogs.arrive(2)
    bench.changelogs.arrive(0)
    assert flusher.advance() is None
    assert len(bench.sent()) == 1, "no marker before all are acknowledged"
    bench.changelogs.arrive()
    assert flusher.advance() is None
    assert bench.sent() == [(POLICIES, MARKER_KEY)]
    assert flusher.advance() is None
    assert contents(bench.store) == {COUNTERS: {}, POLICIES: {}}, "nothing before the marker is acknowledged"
    bench.changelogs.arrive()
    marker = flusher.advance()
    assert marker == bench.store.marker() == bench.ledger.checkpointed == bench.ledger.marker
    assert marker is not None
    assert (marker.next_offset, marker.applied) == (2, 0)
    assert flusher.idle
    assert flusher.advance() is None
    assert (bench.stored(A), bench.stored(AB)) == (2, 1)
    assert bench.store.get(POLICIES, b"client\0a\0") is not None
    assert bench.store.next_offset == {COUNTERS: 2, POLICIES: 2}
    assert not bench.ledger.changed
    assert not flusher.foreign


def test_the_marker_moves_when_nothing_was_counted() -> None:
    bench = Bench()
    bench.check()
    bench.flusher.begin()
    assert bench.sent() == []
    assert bench.flusher.advance() is None
    assert bench.sent() == [(POLICIES, MARKER_KEY)]
    bench.changelogs.arrive()
    assert bench.flusher.advance() == bench.store.marker()


def test_what_is_judged_meanwhile_is_in_the_next_flush() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flusher.begin()
    bench.check(Check(A, 3), Check(AB, 1))
    bench.changelogs.arrive_all()
    bench.flusher.advance()
    bench.check(Check(A, 4))
    bench.changelogs.arrive_all()
    marker = bench.flusher.advance()
    assert marker is not None
    assert marker.next_offset == 1, "as when the flush began"
    assert (bench.stored(A), bench.stored(AB)) == (2, 0)
    assert bench.ledger.changed
    bench.ledger.evict(0)
    assert bench.flush().next_offset == 3
    assert (bench.stored(A), bench.stored(AB)) == (9, 1)


def test_a_large_flush_is_done_in_steps_and_takes_with_it_what_is_judged_meanwhile() -> None:
    bench = Bench()
    clients = [
        name for name in map("client-{}".format, range(1_000)) if partition_of(name, PARTITIONS) == PARTITION
    ]
    assert len(clients) > 3 * CHUNK
    bench.check(*map(Check, clients))
    bench.flusher.begin()
    assert len(bench.sent()) == CHUNK
    assert bench.flusher.ready
    bench.check(Check(clients[0], 5), Check(clients[-1], 5))  # one produced already, one not yet
    steps = 0
    while bench.flusher.ready:
        assert bench.flusher.advance() is None
        steps += 1
    assert steps == len(clients) // CHUNK, "and then it waits for acknowledgments"
    assert len(bench.sent()) == len(clients)
    bench.changelogs.arrive_all()
    assert bench.flusher.advance() is None
    bench.changelogs.arrive_all()
    before = dict(bench.store.next_offset)
    assert bench.flusher.advance() is None
    assert bench.stored(clients[0]) == 1
    assert bench.store.next_offset == before, "not all of the changelog is in the tables yet"
    marker = bench.flusher.advance(until=inf)
    assert marker == bench.store.marker()
    assert marker is not None
    assert marker.next_offset == 1
    assert (bench.stored(clients[0]), bench.stored(clients[-1])) == (1, 6)
    assert bench.ledger.dirty.keys() == {clients[0]}
    # A crash now: what the last one's state holds is not charged again.
    again = Bench(bench.store, bench.changelogs)
    again.check(Check(clients[0], 5), Check(clients[-1], 5))
    again.flush()
    assert (again.stored(clients[0]), again.stored(clients[-1])) == (6, 6)


def refuse(bench: Bench, index: int) -> None:
    bench.changelogs.fail(index)


def lose_the_word(bench: Bench, index: int) -> None:
    bench.changelogs.fail(index, arrives=True)


@pytest.mark.parametrize("fails", [refuse, lose_the_word])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_entry_not_acknowledged_is_written_again(
    fails: Callable[[Bench, int], None], index: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.check(Check(A, 2), Check(AB))
    bench.update(0, ZOE, "5/minute")
    bench.flusher.begin()
    with caplog.at_level(logging.WARNING, "stoplog.flush"):
        fails(bench, index)
        fails(bench, 0)
    assert len(caplog.records) == 1, "one word a flush"
    assert "will be done again" in caplog.text
    bench.check(Check(A, 5))
    assert bench.flusher.advance() is None
    assert not bench.flusher.idle, "first all must be known"
    bench.changelogs.arrive_all()
    assert bench.flusher.advance() is None
    assert bench.flusher.idle
    assert bench.sent() == [], "no marker"
    assert bench.store.marker() is None
    assert bench.flush().next_offset == 3
    assert (bench.stored(A), bench.stored(AB)) == (7, 1)
    assert bench.store.get(POLICIES, b"client\0zo\xc3\xab\0") is not None
    assert bench.metrics.registry.get_sample_value("stoplog_worker_flush_failures_total") == 1


def test_a_marker_not_acknowledged_is_written_again() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flusher.begin()
    bench.changelogs.arrive_all()
    bench.flusher.advance()
    bench.changelogs.fail()
    assert bench.flusher.advance() is None
    assert bench.flusher.idle
    assert (bench.store.marker(), bench.stored(A)) == (None, 0)
    assert bench.ledger.changed
    assert bench.flush().next_offset == 1
    assert bench.stored(A) == 2


def test_what_others_wrote_shows_as_a_gap() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flush()
    bench.foreign(COUNTERS, (b"a", b"\x01" + bytes(8)), (b"zzz", b"\x01" + bytes(8)))
    bench.check(Check(A, 2))
    bench.flush()
    assert bench.flusher.foreign == [(COUNTERS, 1, 3)]
    # Should this worker die before it has mended the gap, the next reads from there.
    assert bench.store.next_offset[COUNTERS] == 1


def test_what_others_wrote_is_found_at_the_end_too_and_once() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flush()
    bench.look()
    assert bench.flusher.foreign == []
    bench.foreign(POLICIES, (b"x", b""))
    bench.look()
    bench.look()
    bench.flusher.look_at_end(POLICIES, 1)  # an answer that was long on its way
    assert bench.flusher.foreign == [(POLICIES, 1, 2)]


def zombie() -> tuple[Bench, list[tuple[str, bytes, bytes]]]:
    """A worker two records on, and what one stopped at the first writes when it wakes."""
    changelogs = Changelogs()
    asleep = Bench(changelogs=changelogs)
    asleep.check(Check(A, 2), Check(AB))
    asleep.update(0, A, "50/minute")
    asleep.flusher.begin()
    late = [(sent.table, sent.key, sent.value) for sent in changelogs.sent]
    late.append((POLICIES, MARKER_KEY, encode_marker(asleep.ledger.marker)))
    changelogs.sent.clear()
    awake = Bench(changelogs=changelogs)
    awake.check(Check(A, 2), Check(AB))
    awake.update(0, A, "50/minute")
    awake.check(Check(A, 7))
    awake.update(1, A, "40/minute")
    awake.flush()
    return awake, late


def restored(changelogs: Changelogs) -> MemoryStore:
    store = MemoryStore()
    changelogs.restore(store)
    return store


def test_all_that_a_zombie_wrote_is_written_over() -> None:
    awake, late = zombie()
    before = contents(awake.store)
    for entry in late:
        awake.changelogs.append(*entry)
    assert contents(restored(awake.changelogs.compacted())) != before, "what compaction would leave"
    awake.look()
    awake.mend()
    awake.flush()
    assert contents(restored(awake.changelogs.compacted())) == before
    assert contents(awake.store) == before
    assert awake.metrics.registry.get_sample_value("stoplog_worker_gaps_mended_total") == 4


def test_a_lone_marker_of_a_zombie_is_written_over() -> None:
    awake, late = zombie()
    awake.changelogs.append(*late[-1])
    assert not awake.ledger.changed
    awake.look()
    awake.mend()
    assert awake.ledger.changed
    marker = awake.flush()
    assert restored(awake.changelogs.compacted()).marker() == marker


@pytest.mark.parametrize("which", ["entry", "marker"])
def test_who_finds_itself_overtaken_says_so(which: str) -> None:
    awake, late = zombie()
    behind = Bench()
    behind.changelogs = Changelogs()
    for table, key, value in late:
        if (key == MARKER_KEY) == (which == "marker"):
            behind.changelogs.append(table, key, value)
    behind.look()
    with pytest.raises(Overtaken, match="has judged further"):
        behind.mend()
    assert not behind.ledger.dirty
    assert awake.ledger.next_offset == 4


def test_the_very_next_position_of_another_is_ahead_and_an_equal_marker_is_not() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    reached = bench.ledger.next_offset << POSITION_BITS
    bench.flusher.mend(POLICIES, [Record(0, MARKER_KEY, encode_marker(bench.ledger.marker))])
    bench.flusher.mend(COUNTERS, [Record(0, b"a", b"\x01" + (reached - 1).to_bytes(8) + b"\x90")])
    with pytest.raises(Overtaken):
        bench.flusher.mend(COUNTERS, [Record(0, b"a", b"\x01" + reached.to_bytes(8) + b"\x90")])


NOISE: list[Any] = [b"\x01" + bytes(8), None, b"", b"short", b"\x01" * 90, b"\x02" + bytes(8) + b"\x90"]


def test_mending_passes_over_what_no_worker_writes() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flush()
    records = [Record(n, key, value) for n, value in enumerate(NOISE) for key in (None, b"", b"stranger")]
    bench.flusher.mend(COUNTERS, records)
    assert not bench.ledger.dirty


@pytest.mark.parametrize("noise", NOISE)
def test_what_noise_would_replace_at_compaction_is_written_again(noise: bytes | None) -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.update(0, A, "5/minute")
    bench.flush()
    spoiled: Any = noise
    bench.foreign(COUNTERS, (b"a", spoiled))
    bench.foreign(POLICIES, (b"client\0a\0", spoiled), (MARKER_KEY, spoiled))
    bench.look()
    bench.mend()
    bench.flush()
    assert contents(restored(bench.changelogs.compacted())) == contents(bench.store)


@pytest.mark.parametrize("noise", NOISE)
def test_what_noise_replaced_while_no_worker_ran_is_written_again(noise: bytes | None) -> None:
    before = Bench()
    before.check(Check(A, 2))
    before.flush()
    spoiled: Any = noise
    before.foreign(COUNTERS, (b"a", spoiled))
    bench = Bench(restored(before.changelogs), before.changelogs)
    bench.flush()
    assert contents(restored(bench.changelogs.compacted())) == contents(bench.store)
    assert bench.stored(A) == 2


def test_a_key_never_held_here_is_written_over_with_nothing() -> None:
    bench = Bench()
    bench.check(Check(A, 2))
    bench.flush()
    bench.foreign(COUNTERS, (b"ghost", b"\x01" + bytes(8) + b"\x90"))
    bench.look()
    bench.mend()
    bench.flush()
    [value] = restored(bench.changelogs).counters([b"ghost"])
    assert value is not None
    assert position_of(value) == (1 << POSITION_BITS) - 1


def test_a_flush_goes_on_from_where_the_store_had_read() -> None:
    first = Bench()
    first.check(Check(A, 2))
    first.flush()
    second = Bench(restored(first.changelogs), first.changelogs)
    assert second.ledger.next_offset == 1
    second.check(Check(A, 3))
    second.flush()
    assert second.flusher.foreign == []
    assert second.stored(A) == 5
