"""Which errors of a broker are waited out; tests/integration/test_assigned_consumer.py uses a real one."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from stoplog_worker.kafka.assigned_consumer import AssignedConsumer

from stoplog.errors import Unavailable
from stoplog.kafka.connection import KafkaConnection

MODULE = "stoplog_worker.kafka.assigned_consumer"


class Failing:
    """A consumer whose broker answers with errors, and then with offsets."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def get_watermark_offsets(self, *_: Any) -> tuple[int, int]:
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return 3, 7


def consumer(monkeypatch: pytest.MonkeyPatch, failing: Failing) -> tuple[AssignedConsumer, list[list[str]]]:
    """Return a consumer, and the lists of topics that it looks up."""
    looked_up: list[list[str]] = []
    monkeypatch.setattr(f"{MODULE}.kafka.worker_consumer", lambda *_, **__: failing)
    monkeypatch.setattr(f"{MODULE}.kafka.fetch_metadata", lambda _, topics: looked_up.append(topics))
    monkeypatch.setattr(f"{MODULE}._RETRY_S", 0.0)
    return AssignedConsumer(KafkaConnection("nowhere:1"), silence_s=60), looked_up


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
    ],
)
def test_offsets_of_a_partition_without_a_leader_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    patient, looked_up = consumer(monkeypatch, Failing(code, code))
    assert patient.offset_range("checks", 1) == (3, 7)
    assert looked_up == [["checks"], ["checks"]]


def test_offsets_that_may_not_be_read_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    patient, _ = consumer(monkeypatch, failing)
    with pytest.raises(Unavailable, match=r"checks\[1\]: "):
        patient.offset_range("checks", 1)
    assert len(failing.codes) == 1
