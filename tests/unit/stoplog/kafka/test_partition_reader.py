"""A partition that has no leader for a moment can be read all the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stoplog.kafka import partition_reader
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_reader import PartitionReader

NOWHERE = "127.0.0.1:9"


class Consumer:
    """Answers with the errors that it was given, then with offsets."""

    def __init__(self, *codes: int) -> None:
        self.errors = [KafkaError(code) for code in codes]
        self.polls = 0

    def get_watermark_offsets(self, *_: Any) -> tuple[int, int]:
        if self.errors:
            raise KafkaException(self.errors.pop(0))
        return 3, 8

    def list_topics(self, topic: str, _: float) -> Any:
        error = self.errors.pop(0) if self.errors else None
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error)})

    def poll(self, _: float) -> None:
        self.polls += 1


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> PartitionReader:
    monkeypatch.setattr(partition_reader, "_RETRY_S", 0.0)
    return PartitionReader(KafkaConnection(NOWHERE), most=1)


def test_partition_that_waits_for_its_leader_is_asked_again(reader: PartitionReader) -> None:
    leaderless = KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE
    reader._consumer = Consumer(*leaderless)  # type: ignore[assignment]
    assert reader.offset_range("audit", 0) == (3, 8)
    reader._consumer = Consumer(*leaderless)  # type: ignore[assignment]
    reader.fetch_metadata(["audit"])


def test_other_errors_and_a_leader_that_never_comes_are_reported_with_what_explains_them(
    reader: PartitionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = Consumer(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    reader._consumer = denied  # type: ignore[assignment]
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        reader.offset_range("audit", 0)
    assert denied.polls == 1
    monkeypatch.setattr(partition_reader, "_LEADER_S", -1.0)
    reader._consumer = Consumer(KafkaError.NOT_LEADER_FOR_PARTITION)  # type: ignore[assignment]
    with pytest.raises(KafkaException, match="NOT_LEADER_FOR_PARTITION"):
        reader.offset_range("audit", 0)
