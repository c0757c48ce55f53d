from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stoplog.kafka.batch_skipper import BatchSkipper, is_unreadable

BAD, END = KafkaError._BAD_COMPRESSION, KafkaError._PARTITION_EOF


class Message:
    def __init__(self, offset: int, code: int | None = None, partition: int = 0) -> None:
        self._facts = (None if code is None else KafkaError(code), offset, partition)

    def error(self) -> KafkaError | None:
        return self._facts[0]

    def topic(self) -> str:
        return "checks"

    def partition(self) -> int:
        return self._facts[2]

    def offset(self) -> int:
        return self._facts[1]


class Log:
    """A consumer of a partition with batches ``(first offset, offset behind it, whether unreadable)``.

    Offsets between the batches do not exist, as after compaction.
    """

    def __init__(self, *batches: tuple[int, int, bool], most: int = 3) -> None:
        self._batches = batches
        self._most = most
        self.at = batches[0][0]
        self.asked = 0
        self.assigned = True

    def seek(self, place: Any) -> None:
        if not self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.at = place.offset
        self.asked += 1

    def get_watermark_offsets(self, _place: Any, *, cached: bool) -> tuple[int, int]:
        assert cached
        return 0, self._batches[-1][1]

    def consume(self) -> list[Message]:
        """Return some records, or the error twice without moving on, as librdkafka does."""
        found: list[Message] = []
        for first, behind, bad in self._batches:
            if self.at >= behind:
                continue
            if bad:
                return [*found, *[Message(first, BAD)] * 2]
            while self.at < behind:
                found.append(Message(max(first, self.at)))
                self.at = max(first, self.at) + 1
                if len(found) == self._most:
                    return found
        return [*found, Message(self._batches[-1][1], END)]


def read(log: Log) -> tuple[list[int], list[int]]:
    """Return the offsets of all records, and of all errors, up to the end."""
    skipper = BatchSkipper(log)  # type: ignore[arg-type]
    records, errors = [], []
    for _ in range(1_000):
        for message in skipper.keep(log.consume()):
            if message.error() is None:
                records.append(message.offset())
            elif is_unreadable(message):
                errors.append(message.offset())
            else:
                return records, errors
    raise AssertionError("it does not end")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 100])
@pytest.mark.parametrize("behind", [0, 1, 2, 50])
def test_unreadable_batch_is_skipped_and_later_records_are_read_once(count: int, behind: int) -> None:
    batches = [(0, 5, False), (5, 5 + count, True)]
    if behind:
        batches.append((5 + count, 5 + count + behind, False))
    records, errors = read(Log(*batches))
    assert records == [0, 1, 2, 3, 4, *range(5 + count, 5 + count + behind)]
    assert errors == [5]


@pytest.mark.parametrize("first", range(1, 12))
@pytest.mark.parametrize("between", range(4))
def test_two_unreadable_batches_in_a_row_are_both_skipped(first: int, between: int) -> None:
    ends = [first, first + between, first + between + 9]
    batches = [(0, ends[0], True), (ends[0], ends[1], False), (ends[1], ends[2], True), (ends[2], 60, False)]
    records, errors = read(Log(*batches))
    assert records == [*range(ends[0], ends[1]), *range(ends[2], 60)]
    assert errors == [0, ends[1]]


@pytest.mark.parametrize("gap", range(12))
def test_offsets_removed_by_compaction_do_not_end_the_search_wrongly(gap: int) -> None:
    records, errors = read(Log((0, 3, True), (3 + gap, 20, False), (25, 30, True)))
    assert records == list(range(3 + gap, 20))
    assert errors == [0, 25]


def test_search_needs_logarithmically_many_requests() -> None:
    log = Log((0, 10_000, True), (10_000, 50_000, False), most=50_000)
    records, _ = read(log)
    assert len(records) == 40_000
    assert log.asked < 30


def test_searches_of_two_partitions_are_independent() -> None:
    log = Log((7, 9, True), (9, 20, False))
    skipper = BatchSkipper(log)  # type: ignore[arg-type]
    others = [Message(1, partition=1), Message(2, END, partition=1)]
    assert skipper.keep([Message(7, BAD), *others, Message(7, BAD)])[1:] == others
    assert log.at == 8


def test_forgotten_partition_starts_a_new_search() -> None:
    log = Log((7, 90, True))
    skipper = BatchSkipper(log)  # type: ignore[arg-type]
    for _ in range(3):
        skipper.keep([Message(7, BAD)])
    skipper.forget("checks", 0)
    assert len(skipper.keep([Message(7, BAD)])) == 1
    assert log.at == 8


def test_other_errors_pass_unchanged() -> None:
    log = Log((7, 90, True))
    skipper = BatchSkipper(log)  # type: ignore[arg-type]
    skipper.keep([Message(7, BAD)])
    other: Sequence[Any] = [Message(-1001, KafkaError._ALL_BROKERS_DOWN)]
    assert skipper.keep(other) == other
    assert log.asked == 1


def test_partition_that_is_no_longer_assigned_is_ignored() -> None:
    log = Log((7, 90, True))
    log.assigned = False
    skipper = BatchSkipper(log)  # type: ignore[arg-type]
    skipper.keep([Message(7, BAD)])
    assert log.at == 7
