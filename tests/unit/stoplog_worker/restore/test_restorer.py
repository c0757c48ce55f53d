"""The restorer hands partitions over, whatever a broker answers about their changelogs' ends."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import stoplog_worker.restore.changelog_offsets
import stoplog_worker.restore.restorer
from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, TopicPartition
from stoplog_worker.algorithm.state_codec import MARKER_KEY, encode_marker
from stoplog_worker.kafka.assigned_consumer import Consumed
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.errors import NewerFormat, StateError
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG
from stoplog.wire.checks import POSITION_BITS
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import MemoryStore
from tests.support.records import Message

CHANGELOGS = {COUNTERS: COUNTERS_CHANGELOG, POLICIES: POLICIES_CHANGELOG}
WAIT_S = 30
Offset = Callable[[TopicPartition, int], int]
"""Returns the offset of a place, as seen by the client with that number."""


class Silent:
    """A consumer of topics without records."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.places: list[TopicPartition] = []

    def fetch_metadata(self, topics: Iterable[str]) -> None:
        """All are known."""

    def add(self, places: list[TopicPartition]) -> None:
        self.places += places

    def remove(self, places: list[TopicPartition]) -> None:
        self.places = [place for place in self.places if place not in places]

    def consume(self, _wait_s: float) -> Consumed:
        return Consumed([], {}, set())

    def close(self) -> None:
        """Nothing is to be closed."""


class Admin:
    """Answers with the offsets that the test gives."""

    def __init__(self, offset: Offset, number: int) -> None:
        self._offset = offset
        self._number = number

    def list_offsets(self, places: dict[TopicPartition, Any], *, request_timeout: float) -> dict[Any, Any]:
        assert request_timeout > 0
        answers: dict[Any, Future[Any]] = {}
        for place in places:
            answers[place] = Future()
            answers[place].set_result(SimpleNamespace(offset=self._offset(place, self._number)))
        return answers


@contextmanager
def restoring(
    monkeypatch: pytest.MonkeyPatch,
    store: MemoryStore,
    offset: Offset,
    reader: type[Silent] = Silent,
    standby: bool = False,
) -> Iterator[tuple[queue.SimpleQueue[Restored], queue.SimpleQueue[BaseException]]]:
    """Restore *store*, or keep it as a standby; yield what is handed over, and errors that end the thread."""
    monkeypatch.setattr(stoplog_worker.restore.restorer, "AssignedConsumer", reader)
    numbers = count(1)
    monkeypatch.setattr("stoplog.kafka.clients.silent_admin", lambda _: Admin(offset, next(numbers)))
    monkeypatch.setattr(
        stoplog_worker.restore.changelog_offsets,
        "describe",
        lambda _, names, __: {name: SimpleNamespace(topic_id=f"{name}-id") for name in names},
    )
    restored, failures = queue.SimpleQueue[Restored](), queue.SimpleQueue[BaseException]()
    thread = Restorer(
        KafkaConnection("nowhere"),
        CHANGELOGS,
        lambda _: store,
        Metrics(),
        on_restored=restored.put,
        on_ends=lambda _: None,
        on_fatal=failures.put,
    )
    thread.start()
    thread.follow(store)
    thread.activate(None if standby else 1, store.partition)
    try:
        yield restored, failures
    finally:
        thread.stop()


@pytest.mark.parametrize("topic", [COUNTERS_CHANGELOG, CHECKS])
def test_activate_partition_without_leader_asks_again_with_new_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, topic: str
) -> None:
    def offset(place: TopicPartition, client: int) -> int:
        # A client may keep a leader that is gone in its metadata for minutes.
        return OFFSET_INVALID if place.topic == topic and client == 1 else 0

    store = MemoryStore(2)
    with restoring(monkeypatch, store, offset) as (restored, failures):
        found = restored.get(timeout=WAIT_S)
    ids = {table: f"{topic}-id" for table, topic in CHANGELOGS.items()}
    assert found == Restored(1, store, "checks-id", "limit-updates-id", ids, 0)
    assert failures.empty()
    [warning] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "partitions [2] cannot be restored yet: a partition has no leader" in warning


def test_activate_changelog_created_again_ends_worker_with_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore(2)
    store.next_offset[POLICIES] = 8
    with restoring(monkeypatch, store, lambda *_: 7) as (restored, failures):
        failure = failures.get(timeout=WAIT_S)
    assert isinstance(failure, StateError)
    for word in ("to offset 8", "ends at 7", POLICIES_CHANGELOG, "stoplog topics create"):
        assert word in str(failure)
    assert restored.empty()


@pytest.mark.parametrize(("start", "left"), [(9, []), (0, [b"zoe"])])
def test_read_truncated_changelog_clears_counters_only_if_it_is_further_on(
    monkeypatch: pytest.MonkeyPatch, start: int, left: list[bytes]
) -> None:
    """A changelog that ends before the read offset was created again. The store may be the last copy."""
    read_again = queue.SimpleQueue[list[bytes]]()

    class Losing(Silent):
        lost: frozenset[tuple[str, int]] = frozenset()

        def add(self, places: list[TopicPartition]) -> None:
            if [place.offset for place in places] == [OFFSET_BEGINNING]:
                read_again.put([key for key, _ in store.items(COUNTERS)])
            else:
                self.lost = frozenset({(COUNTERS_CHANGELOG, 2)})

        def consume(self, _wait_s: float) -> Consumed:
            lost, self.lost = self.lost, frozenset()
            return Consumed([], {}, set(lost))

    store = MemoryStore(2)
    store.next_offset[COUNTERS] = 8
    store.write(COUNTERS, [(b"zoe", b"charged")])
    with restoring(monkeypatch, store, lambda *_: start, reader=Losing, standby=True):
        assert read_again.get(timeout=WAIT_S) == left


NEWER = b"\x03" + (5 << POSITION_BITS).to_bytes(8) + b"\x91\x05"
"""The marker of a release whose format is not known here."""


def reader_of(values: list[bytes]) -> type[Silent]:
    """Return a consumer of a changelog with these values of the marker, which arrive one by one."""

    class Reader(Silent):
        at = 0

        def consume(self, _wait_s: float) -> Consumed:
            if not self.places or self.at == len(values):
                return Consumed([], {}, set())
            message = Message(self.at, values[self.at], MARKER_KEY, topic=POLICIES_CHANGELOG, partition=2)
            self.at += 1
            ends = {(POLICIES_CHANGELOG, 2): self.at} if self.at == len(values) else {}
            return Consumed([message], ends, set())

    return Reader


def offset_of_policies(end: int) -> Offset:
    return lambda place, _: {POLICIES_CHANGELOG: end, CHECKS: 9}.get(place.topic, 0)


@pytest.mark.parametrize("standby", [False, True])
def test_marker_of_a_newer_format_at_the_end_of_the_changelog_ends_worker(
    monkeypatch: pytest.MonkeyPatch, standby: bool
) -> None:
    reader, offset = reader_of([NEWER]), offset_of_policies(1)
    with restoring(monkeypatch, MemoryStore(2), offset, reader, standby) as (restored, failures):
        assert isinstance(failures.get(timeout=WAIT_S), NewerFormat)
    assert restored.empty()


def test_marker_of_a_newer_format_before_one_that_overrides_it_is_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = msgspec.structs.replace(FIRST_MARKER, next_offset=5)
    reader, offset = reader_of([NEWER, encode_marker(marker)]), offset_of_policies(2)
    with restoring(monkeypatch, MemoryStore(2), offset, reader) as (restored, failures):
        assert restored.get(timeout=WAIT_S).store.marker() == marker
    assert failures.empty()


def test_follow_half_cleared_table_clears_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore(2)
    store.write(COUNTERS, [(b"zoe", b"charged")])
    with restoring(monkeypatch, store, lambda *_: 0) as (restored, _):
        assert list(restored.get(timeout=WAIT_S).store.items(COUNTERS)) == []
