from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import Options, Rdict
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore, Record

from stoplog.errors import NewerFormat
from stoplog.policy import parse_policy
from stoplog.wire.checks import POSITION_BITS
from tests.support.memory_store import MemoryStore


def value(position: int, text: bytes = b"\x90") -> bytes:
    return b"\x01" + position.to_bytes(8) + text


def opened(path: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    return Rdict(str(path), options)


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[[], PartitionStore]]:
    """Return a function that closes the store, if there is one, and opens it again."""
    stores: list[PartitionStore] = []

    def open_again() -> PartitionStore:
        while stores:
            stores.pop().close()
        stores.append(PartitionStore(3, opened, {table: tmp_path / table for table in TABLES}))
        return stores[-1]

    yield open_again
    stores.pop().close()


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest) -> PartitionStore:
    """The real store, and the fake that other tests use."""
    if request.param == "memory":
        return MemoryStore(3)
    made: PartitionStore = request.getfixturevalue("reopen")()
    return made


def test_new_store_is_empty(store: PartitionStore) -> None:
    assert store.partition == 3
    assert store.next_offset == {COUNTERS: 0, POLICIES: 0}
    assert store.marker() is None
    assert store.get(POLICIES, b"client\0a\0") is None
    assert list(store.counters([b"a", b"b"])) == [None, None]
    assert list(store.counters([])) == []
    assert list(store.items(COUNTERS)) == []


def test_write_stores_entries_in_their_table_only(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", value(1)), (b"b", value(2)), (b"a", value(3))])
    assert list(store.counters([b"b", b"x", b"a"])) == [value(2), None, value(3)]
    assert dict(store.items(COUNTERS)) == {b"a": value(3), b"b": value(2)}
    assert store.get(POLICIES, b"a") is None, "the tables are separate"


def test_merge_keeps_highest_position_of_each_key(store: PartitionStore) -> None:
    store.merge(COUNTERS, [Record(0, b"a", value(5)), Record(1, b"a", value(4)), Record(2, b"b", value(1))])
    assert list(store.counters([b"a", b"b"])) == [value(5), value(1)]
    store.merge(COUNTERS, [Record(3, b"a", value(3)), Record(4, b"b", value(2))])
    assert list(store.counters([b"a", b"b"])) == [value(5), value(2)]
    store.merge(COUNTERS, [Record(5, b"a", value(5, b"\x91\x92\x01\x00"))])
    assert list(store.counters([b"a"])) == [value(5, b"\x91\x92\x01\x00")], (
        "of two equal positions, the later record wins"
    )
    assert store.next_offset == {COUNTERS: 6, POLICIES: 0}


def test_merge_prefers_the_later_record_to_one_ahead_of_the_log(store: PartitionStore) -> None:
    asked: list[int] = []

    def log_end() -> int:
        asked.append(9)
        return 9

    store.log_end = log_end
    ahead, last = value(9 << POSITION_BITS), value((9 << POSITION_BITS) - 1)
    store.merge(COUNTERS, [Record(0, b"a", ahead), Record(1, b"b", last)])
    assert not asked, "only a later record tells that something is wrong"
    store.merge(COUNTERS, [Record(2, b"a", value(5)), Record(3, b"b", value(5)), Record(4, b"b", value(6))])
    assert list(store.counters([b"a", b"b"])) == [value(5), last]
    assert store.outdated[COUNTERS] == {b"b"}
    assert len(asked) == 1, "the broker is asked once for each batch"


def test_merge_keeps_highest_position_while_the_end_of_the_log_is_unknown(store: PartitionStore) -> None:
    store.merge(COUNTERS, [Record(0, b"a", value(2**62)), Record(1, b"a", value(5))])
    assert list(store.counters([b"a"])) == [value(2**62)]
    assert store.outdated[COUNTERS] == {b"a"}


def test_merge_skips_foreign_records(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a", value(1))])
    foreign = [(None, value(9)), (b"a", None), (b"", value(9)), (b"a", b""), (b"a", b"\x01short")]
    noise = store.merge(COUNTERS, [Record(offset, *entry) for offset, entry in enumerate(foreign, 7)])
    assert noise == 3, "of those with a key"
    assert dict(store.items(COUNTERS)) == {b"a": value(1)}
    assert store.next_offset[COUNTERS] == 12


def test_merge_older_record_does_not_move_offset_back(store: PartitionStore) -> None:
    store.merge(POLICIES, [Record(9, b"k", value(1))])
    store.merge(POLICIES, [Record(4, b"k", value(1))])
    assert store.next_offset[POLICIES] == 10


def test_counters_of_returns_client_with_its_resources_only(store: PartitionStore) -> None:
    mine = [b"a", b"a\0", b"a\0login", b"a\0\xc3\xa9", b"a\0\xff"]
    others = [b"A", b"a!", b"a\x01", b"a\xff", b"ab", b"ab\0login", b"b", b"\xc3\xa9", b"\xff\xff"]
    store.write(COUNTERS, [(key, value(1)) for key in mine + others])
    assert [key for key, _ in store.counters_of(b"a")] == sorted(mine)
    assert [key for key, _ in store.counters_of(b"ab")] == [b"ab", b"ab\0login"]
    assert [key for key, _ in store.counters_of(b"\xff\xff")] == [b"\xff\xff"]
    assert list(store.counters_of(b"aa")) == []


def test_counters_of_client_with_resources_only_returns_them(store: PartitionStore) -> None:
    store.write(COUNTERS, [(b"a\0login", value(1)), (b"b", value(1))])
    assert [key for key, _ in store.counters_of(b"a")] == [b"a\0login"]


def test_marker_is_not_replaced_by_older_one(store: PartitionStore) -> None:
    marker = Marker(17, 5, 4, 3, "topic", parse_policy("100/minute"))
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
    assert store.marker() == marker
    store.merge(
        POLICIES, [Record(0, MARKER_KEY, encode_marker(Marker(16, 9, 9, 9, "topic", marker.default)))]
    )
    assert store.marker() == marker


def test_reopened_store_has_entries_offsets_and_marker(reopen: Callable[[], PartitionStore]) -> None:
    store = reopen()
    marker = Marker(17, 5, 4, 3, "topic", parse_policy("100/minute"))
    store.next_offset.update({COUNTERS: 2**40, POLICIES: 7})
    store.write(COUNTERS, [(b"a", value(1)), (b"a\0login", value(2))])
    store.write(POLICIES, [(b"client\0a\0", value(3)), (MARKER_KEY, encode_marker(marker))])
    store = reopen()
    assert store.next_offset == {COUNTERS: 2**40, POLICIES: 7}
    assert dict(store.items(COUNTERS)) == {b"a": value(1), b"a\0login": value(2)}
    assert store.get(POLICIES, b"client\0a\0") == value(3)
    assert store.marker() == marker
    assert Ledger(store, marker).next_offset == 17


def test_merge_stores_offset_with_records(
    reopen: Callable[[], PartitionStore],
) -> None:
    store = reopen()
    store.merge(COUNTERS, [Record(41, b"a", value(1))])
    assert reopen().next_offset == {COUNTERS: 42, POLICIES: 0}


NEWER = b"\x03" + (5 << POSITION_BITS).to_bytes(8) + b"\x91\x05"
"""The marker of a release whose format is not known here."""


@pytest.mark.parametrize("counters_follow", [False, True])
def test_merge_stops_before_the_marker_of_a_newer_format(
    reopen: Callable[[], PartitionStore], counters_follow: bool
) -> None:
    """The release that knows the format reads on from there, and reads all counters again."""
    store = reopen()
    store.log_end = lambda: 9
    store.merge(COUNTERS, [Record(0, b"a", value(1)), Record(1, b"a", b"\x03" + bytes(8) + b"\x90")])
    assert reopen().next_offset == {COUNTERS: 2, POLICIES: 0}
    for _ in range(2):
        store = reopen()
        store.log_end = lambda: 9
        store.merge(POLICIES, [Record(5, b"k", value(1)), Record(6, MARKER_KEY, NEWER)])
        store.merge(POLICIES, [Record(7, MARKER_KEY, NEWER), Record(8, b"m", value(1))])
        if counters_follow:
            store.merge(COUNTERS, [Record(2, b"b", value(1))])
        store.reach(POLICIES, 6)
        with pytest.raises(NewerFormat, match=r"names the format 3 of values.*upgrade this worker"):
            store.reach(POLICIES, 9)
        assert store.next_offset[POLICIES] == 6
    assert reopen().next_offset == {COUNTERS: 0, POLICIES: 6}


def test_merge_passes_the_marker_of_a_newer_format_once_a_later_one_overrides_it(
    reopen: Callable[[], PartitionStore],
) -> None:
    store = reopen()
    store.log_end = lambda: 9
    marker = Marker(5, 5, 4, 3, "topic", parse_policy("100/minute"))
    store.merge(POLICIES, [Record(6, MARKER_KEY, NEWER)])
    store.merge(POLICIES, [Record(7, MARKER_KEY, encode_marker(marker))])
    store.merge(COUNTERS, [Record(2, b"b", value(1))])
    store.reach(POLICIES, 8)
    assert store.marker() == marker
    assert reopen().next_offset == {COUNTERS: 3, POLICIES: 8}


def test_merge_many_records_keeps_last_of_each_key(store: PartitionStore) -> None:
    records = [Record(n, b"client-%d" % (n % 700), value(n)) for n in range(5_000)]
    store.merge(COUNTERS, records)
    found = dict(store.items(COUNTERS))
    assert len(found) == 700
    assert found[b"client-0"] == value(4_900)
