"""Records that another worker wrote to a changelog are found and overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocksdict import Options, Rdict
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    PolicyChange,
    State,
    encode_history,
    encode_marker,
    encode_state,
    position_of,
)
from stoplog_worker.partition.changelog_repair import Gap, GapContents, Overtaken, read_in_background
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore, Record

from stoplog.errors import NewerFormat, Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.policy import UNLIMITED
from stoplog.topics import CHECKS
from stoplog.wire.checks import POSITION_BITS, Check
from tests.support.checkpoint_bench import AB, A, CheckpointBench, restored, zombie
from tests.support.ledgers import FIRST_MARKER, resolved
from tests.support.memory_store import Changelogs, MemoryStore, contents
from tests.support.records import Message


def test_foreign_records_before_an_own_write_are_a_gap() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.write_foreign(COUNTERS, (b"a", b"\x01" + bytes(8)), (b"zzz", b"\x01" + bytes(8)))
    bench.check(Check(A, 2))
    bench.checkpoint()
    assert bench.repair.gaps == [Gap(COUNTERS, 1, 3)]
    # If this worker dies before it has overwritten the gap, the next owner reads from there.
    assert bench.store.next_offset[COUNTERS] == 1


def test_foreign_records_at_the_end_are_one_gap() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.note_ends()
    assert bench.repair.gaps == []
    bench.write_foreign(POLICIES, (b"x", b""))
    bench.note_ends()
    bench.note_ends()
    bench.repair.note_end(POLICIES, 1)  # an answer that was in flight for long
    assert bench.repair.gaps == [Gap(POLICIES, 1, 2)]


def test_everything_that_a_zombie_wrote_is_overwritten() -> None:
    awake, late = zombie()
    before = bodies(awake.store)
    for entry in late:
        awake.changelogs.append(*entry)
    assert bodies(restored(awake.changelogs.compacted())) != before, "what compaction would leave"
    awake.note_ends()
    awake.overwrite_gaps()
    awake.checkpoint()
    assert bodies(restored(awake.changelogs.compacted())) == before
    assert bodies(awake.store) == before
    assert awake.metrics.registry.get_sample_value("stoplog_worker_gaps_mended_total") == 4


def bodies(store: MemoryStore) -> dict[str, dict[bytes, bytes]]:
    """Return the entries without their positions."""
    return {
        table: {key: value[9:] for key, value in entries.items()}
        for table, entries in contents(store).items()
    }


FORGED_POLICY = [PolicyChange(0, 0, UNLIMITED)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from((b"a", b"ab", b"ghost", b"client\0a\0", b"client\0ghost\0", MARKER_KEY)),
            st.sampled_from((0, 1, (1 << POSITION_BITS) + 1, (2 << POSITION_BITS) - 1)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
    st.integers(1, 9),
)
def test_repair_wins_over_forged_entries_when_the_disks_are_lost(
    forged: list[tuple[bytes, int]], compacted: bool, batch: int
) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2), Check(AB, 3))
    bench.update(0, A, "50/minute")
    bench.checkpoint()
    for key, position in forged:
        if key == MARKER_KEY:
            marker = msgspec.structs.replace(FIRST_MARKER, next_offset=position >> POSITION_BITS)
            bench.write_foreign(POLICIES, (key, encode_marker(marker)))
        elif b"\0" in key:
            bench.write_foreign(POLICIES, (key, encode_history(FORGED_POLICY, position)))
        else:
            bench.write_foreign(COUNTERS, (key, encode_state(State(position))))
    bench.note_ends()
    bench.overwrite_gaps()
    marker = bench.checkpoint()
    store = MemoryStore()
    (bench.changelogs.compacted() if compacted else bench.changelogs).restore(store, batch)
    assert contents(store) == contents(bench.store)
    assert (store.marker(), bench.stored(A), bench.stored(AB)) == (marker, 2, 3)
    again = CheckpointBench(store)
    assert resolved(again.ledger, Check(A), 9)[1] == 0
    assert resolved(again.ledger, Check("ghost"), 9) == (FIRST_MARKER.default, -1)


AHEAD = [1 << POSITION_BITS, (1 << POSITION_BITS) + 5, 9 << POSITION_BITS, 2**62]


@pytest.mark.parametrize("position", AHEAD)
@pytest.mark.parametrize("compacted", [False, True])
def test_repair_wins_over_entries_ahead_of_the_log(position: int, compacted: bool) -> None:
    """No worker can have judged what is not in the log. A later restore must not prefer it either."""
    bench = CheckpointBench()
    bench.check(Check(A, 2), Check(AB, 3))
    bench.checkpoint()
    bench.changelogs.log_end = 1
    marker = msgspec.structs.replace(FIRST_MARKER, next_offset=(position >> POSITION_BITS) + 1)
    bench.write_foreign(
        COUNTERS, (b"a", encode_state(State(position))), (b"ghost", encode_state(State(position)))
    )
    bench.write_foreign(
        POLICIES,
        (b"client\0a\0", encode_history(FORGED_POLICY, position)),
        (MARKER_KEY, encode_marker(marker)),
    )
    bench.note_ends()
    bench.overwrite_gaps()
    bench.checkpoint()
    for _ in range(12):
        store = MemoryStore()
        (bench.changelogs.compacted() if compacted else bench.changelogs).restore(store, 3)
        assert contents(store) == contents(bench.store)
        assert store.marker() == bench.store.marker()
        # Another client's checks: the log passes the forged position.
        bench.check(Check(AB, 1))
        bench.changelogs.log_end += 1
        if bench.repair.must_repeat:
            bench.repair.repeat()
        bench.checkpoint()
    assert bench.stored(A) == 2


def test_entry_ahead_of_a_worker_that_lags_behind_the_log_overtakes_it() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.changelogs.log_end = 2
    bench.write_foreign(COUNTERS, (b"a", encode_state(State(1 << POSITION_BITS))))
    bench.note_ends()
    with pytest.raises(Overtaken):
        bench.overwrite_gaps()


def test_lone_marker_of_a_zombie_is_overwritten() -> None:
    awake, late = zombie()
    awake.changelogs.append(*late[-1])
    assert not awake.ledger.changed
    awake.note_ends()
    awake.overwrite_gaps()
    assert awake.ledger.changed
    marker = awake.checkpoint()
    assert restored(awake.changelogs.compacted()).marker() == marker


@pytest.mark.parametrize("which", ["entry", "marker"])
def test_worker_that_is_behind_the_writer_is_overtaken(which: str) -> None:
    awake, late = zombie()
    behind = CheckpointBench(changelogs=Changelogs())
    for table, key, value in late:
        if (key == MARKER_KEY) == (which == "marker"):
            behind.changelogs.append(table, key, value)
    behind.note_ends()
    with pytest.raises(Overtaken, match="has judged further"):
        behind.overwrite_gaps()
    assert not behind.ledger.dirty
    assert awake.ledger.next_offset == 4


def test_next_position_of_the_writer_overtakes_and_an_equal_marker_does_not() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    reached = bench.ledger.next_offset << POSITION_BITS
    bench.repair.overwrite(POLICIES, [Record(0, MARKER_KEY, encode_marker(bench.ledger.marker))], 9)
    bench.repair.overwrite(COUNTERS, [Record(0, b"a", b"\x01" + (reached - 1).to_bytes(8) + b"\x90")], 9)
    with pytest.raises(Overtaken):
        bench.repair.overwrite(COUNTERS, [Record(0, b"a", b"\x01" + reached.to_bytes(8) + b"\x90")], 9)


def newer_marker(offset: int) -> bytes:
    """Return the marker of a later release, whose state format is not known here."""
    return b"\x03" + (offset << POSITION_BITS).to_bytes(8) + msgspec.msgpack.encode([offset, {"new": []}])


NEWER: bytes = newer_marker(5)

NOISE: list[Any] = [
    *(b"\x01" + bytes(8), None, b"", b"short", b"\x01" * 90, b"\x02" + bytes(8) + b"\x90"),
    b"\x03" + bytes(8) + b"\x90",  # a version that is not known, and no marker
    b"\x03" + (5 << POSITION_BITS).to_bytes(8) + msgspec.msgpack.encode([6, {}]),
    b"\xff" * 40,
]
"""Values that no worker writes, not even to a marker."""


def noise_found(bench: CheckpointBench) -> float | None:
    return bench.metrics.registry.get_sample_value("stoplog_worker_changelog_noise_total")


def test_noise_under_unknown_keys_is_ignored() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    records = [Record(n, key, value) for n, value in enumerate(NOISE) for key in (None, b"", b"stranger")]
    bench.repair.overwrite(COUNTERS, records, 9)
    assert not bench.ledger.dirty
    assert noise_found(bench) == len(records)


@pytest.mark.parametrize("noise", NOISE)
def test_state_that_noise_would_replace_at_compaction_is_written_again(noise: bytes | None) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.update(0, A, "5/minute")
    bench.checkpoint()
    spoiled: Any = noise
    bench.write_foreign(COUNTERS, (b"a", spoiled))
    bench.write_foreign(POLICIES, (b"client\0a\0", spoiled), (MARKER_KEY, spoiled))
    bench.note_ends()
    bench.overwrite_gaps()
    bench.checkpoint()
    assert contents(restored(bench.changelogs.compacted())) == contents(bench.store)


@pytest.mark.parametrize("noise", NOISE)
def test_state_that_noise_replaced_while_no_worker_ran_is_written_again(noise: bytes | None) -> None:
    before = CheckpointBench()
    before.check(Check(A, 2))
    before.checkpoint()
    spoiled: Any = noise
    before.write_foreign(COUNTERS, (b"a", spoiled))
    bench = CheckpointBench(restored(before.changelogs), before.changelogs)
    bench.checkpoint()
    assert contents(restored(bench.changelogs.compacted())) == contents(bench.store)
    assert bench.stored(A) == 2


def test_value_of_a_newer_format_is_noise_unless_it_is_a_marker() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.update(0, A, "5/minute")
    bench.checkpoint()
    bench.write_foreign(COUNTERS, (b"a", NEWER))
    bench.write_foreign(POLICIES, (b"client\0a\0", NEWER))
    bench.note_ends()
    bench.overwrite_gaps()
    bench.checkpoint()
    assert noise_found(bench) == 2
    assert contents(restored(bench.changelogs.compacted())) == contents(bench.store)


@pytest.mark.parametrize("late", [False, True])
def test_owner_stops_at_the_marker_of_a_newer_format(late: bool) -> None:
    """The other worker is ahead, or it wrote late: it has been the owner, so it may have written more."""
    bench = CheckpointBench()
    for _ in range(9 if late else 1):
        bench.check(Check(A, 2))
    bench.checkpoint()
    written = bench.changelogs.compacted()
    bench.write_foreign(POLICIES, (MARKER_KEY, NEWER))
    bench.note_ends()
    with pytest.raises(NewerFormat, match=r"names the format 3 of values.*upgrade this worker"):
        bench.overwrite_gaps()
    assert contents(restored(written)) == contents(bench.store), "nothing is overwritten"


def test_restore_stops_at_the_marker_of_a_newer_format() -> None:
    before = CheckpointBench()
    before.check(Check(A, 2))
    before.checkpoint()
    before.write_foreign(POLICIES, (MARKER_KEY, NEWER))
    with pytest.raises(NewerFormat):
        restored(before.changelogs)


@pytest.mark.parametrize("ahead", [1, 2**40])
@pytest.mark.parametrize("compacted", [False, True])
def test_owner_overwrites_the_marker_of_a_newer_format_ahead_of_the_log(ahead: int, compacted: bool) -> None:
    """No worker can have written it, so no newer release owns the partition."""
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    marker = bench.checkpoint()
    bench.changelogs.log_end = 1
    bench.write_foreign(POLICIES, (MARKER_KEY, newer_marker(1 + ahead)))
    bench.note_ends()
    bench.overwrite_gaps()
    bench.checkpoint()
    assert noise_found(bench) == 1
    store = restored(bench.changelogs.compacted() if compacted else bench.changelogs)
    assert store.marker() == marker
    assert contents(store) == contents(bench.store)


@pytest.mark.parametrize("ahead", [1, 2**40])
def test_restore_skips_the_marker_of_a_newer_format_ahead_of_the_log(ahead: int) -> None:
    before = CheckpointBench()
    before.check(Check(A, 2))
    marker = before.checkpoint()
    before.changelogs.log_end = 1
    before.write_foreign(POLICIES, (MARKER_KEY, newer_marker(1 + ahead)))
    bench = CheckpointBench(restored(before.changelogs), before.changelogs)
    assert bench.store.marker() == marker
    bench.checkpoint()
    assert restored(bench.changelogs.compacted()).marker() == marker, "the next owner overwrites it"


def test_marker_of_a_newer_format_at_the_end_of_the_log_counts() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.changelogs.log_end = 1
    bench.write_foreign(POLICIES, (MARKER_KEY, newer_marker(1)))
    with pytest.raises(NewerFormat):
        restored(bench.changelogs)
    bench.note_ends()
    with pytest.raises(NewerFormat):
        bench.overwrite_gaps()


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("first", [1, 2])
def test_restore_goes_on_if_a_later_marker_overrides_that_of_a_newer_format(batch: int, first: int) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.write_foreign(POLICIES, (MARKER_KEY, newer_marker(first)), (MARKER_KEY, newer_marker(1)))
    bench.update(0, A, "5/minute")
    marker = bench.checkpoint()
    assert marker.next_offset == 2
    store = MemoryStore()
    bench.changelogs.restore(store, batch)
    assert store.marker() == marker
    assert store.next_offset[POLICIES] == len(bench.changelogs.logs[POLICIES])


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize(("newer", "later"), [((3,), 2), ((3, 1), 2), ((1, 3), 2), ((1,), 2**40), ((1,), 5)])
def test_lower_marker_and_one_ahead_of_the_log_override_none(
    batch: int, newer: tuple[int, ...], later: int
) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.changelogs.log_end = 4
    bench.write_foreign(POLICIES, *((MARKER_KEY, newer_marker(offset)) for offset in newer))
    marker = msgspec.structs.replace(FIRST_MARKER, next_offset=later)
    bench.write_foreign(POLICIES, (MARKER_KEY, encode_marker(marker)), (b"client\0a\0", b"noise"))
    with pytest.raises(NewerFormat):
        bench.changelogs.restore(MemoryStore(), batch)


def test_owner_that_stops_for_a_newer_release_has_the_counters_read_again(tmp_path: Path) -> None:
    """It may have skipped counters of that release before it saw the marker."""

    def opened() -> PartitionStore:
        paths = {table: tmp_path / table for table in TABLES}
        return PartitionStore(0, lambda path: Rdict(str(path), Options(raw_mode=True)), paths)

    store: Any = opened()
    bench = CheckpointBench(store)
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.write_foreign(COUNTERS, (b"ghost", NEWER))
    bench.note_ends()
    bench.overwrite_gaps()
    bench.check(Check(A, 2))
    bench.checkpoint()
    assert store.next_offset[COUNTERS] == 3
    bench.write_foreign(POLICIES, (MARKER_KEY, NEWER))
    bench.note_ends()
    with pytest.raises(NewerFormat):
        bench.overwrite_gaps()
    store.close()
    store = opened()
    assert store.next_offset[COUNTERS] == 0
    store.close()


def test_key_unknown_to_this_worker_is_overwritten_with_an_empty_state() -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    bench.write_foreign(COUNTERS, (b"ghost", b"\x01" + bytes(8) + b"\x90"))
    bench.note_ends()
    bench.overwrite_gaps()
    bench.checkpoint()
    [value] = restored(bench.changelogs).counters([b"ghost"])
    assert value is not None
    assert position_of(value) == (1 << POSITION_BITS) - 1


def test_gap_is_read_in_the_background_and_again_if_no_broker_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = CheckpointBench()
    bench.check(Check(A, 2))
    bench.checkpoint()
    asked: list[tuple[tuple[str, int, int, int], Future[GapContents]]] = []

    def read(*place: Any) -> Future[GapContents]:
        asked.append((place, Future()))
        return asked[-1][1]

    monkeypatch.setattr(bench.repair, "_read", read)
    for _ in range(2):
        bench.write_foreign(COUNTERS, (b"a", b"short"))
        bench.write_foreign(POLICIES, (b"x", b"short"))
        bench.note_ends()
    assert not bench.repair.advance()
    assert [place for place, _ in asked] == [(COUNTERS, bench.store.partition, 1, 3)], "both gaps at once"
    assert not bench.repair.advance(), "the checks go on meanwhile"
    asked[0][1].set_exception(Unavailable("no broker"))
    assert not bench.repair.advance()
    assert "no broker; trying again" in caplog.text
    assert len(bench.repair.gaps) == 4
    bench.repair.advance()
    bench.write_foreign(COUNTERS, (b"a", b"short"))
    bench.note_ends()
    asked[1][1].set_result(GapContents([Record(1, b"a", b"short"), Record(2, b"a", b"short")], 9))
    assert bench.repair.advance()
    assert bench.repair.gaps == [Gap(POLICIES, 1, 2), Gap(POLICIES, 2, 3), Gap(COUNTERS, 3, 4)]
    assert bench.ledger.dirty.keys() == {A}


class Reader:
    """A consumer that fails once it is closed, as the real one does."""

    def __init__(self, *_: Any) -> None:
        self.steps: list[str] = []

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Message]:
        for offset in range(start, end):
            self.steps.append("read")
            yield Message(offset, b"value", b"key", topic=topic, partition=partition)

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        assert (topic, partition) == (CHECKS, 3)
        assert self.steps == ["read", "read"], "after the records, and before the consumer is closed"
        return 0, 42

    def close(self) -> None:
        self.steps.append("close")


def test_end_of_the_log_is_read_after_the_records_of_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoplog_worker.partition.changelog_repair.AssignedConsumer", Reader)
    found = read_in_background(KafkaConnection("nowhere"), "changelog", 3, 7, 9).result(10)
    assert found == GapContents([Record(7, b"key", b"value"), Record(8, b"key", b"value")], 42)
