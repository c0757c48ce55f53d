"""The records that the worker's producers hand to librdkafka, without a broker."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import Metrics
from stoplog_worker.state.store import COUNTERS

from stoplog.errors import TopicError
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import COUNTERS_CHANGELOG, DEAD_LETTERS
from tests.support.records import Message

NOWHERE = KafkaConnection("nowhere:1")


def dead(key: bytes | None, value: bytes | None) -> Message:
    return Message(17, value, key, partition=3)


class Producer:
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        self.produced: list[tuple[Any, ...]] = []

    def produce(self, topic: str, value: Any, key: Any, *_: Any, headers: dict[str, bytes]) -> None:
        self.produced.append((topic, key, value, headers))


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    made = Producer()
    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: made)
    return made


def test_dead_letter_headers_hold_origin_and_reason(producer: Producer) -> None:
    Producers(NOWHERE, 100, {}, Metrics()).dead_letter(dead(b"k", b"v"), "no check")
    facts = {"reason": b"no check", "topic": b"checks", "partition": b"3", "offset": b"17"}
    assert producer.produced == [(DEAD_LETTERS, b"k", b"v", facts)]


def test_dead_letter_of_a_large_record_holds_its_beginning_and_its_size(producer: Producer) -> None:
    Producers(NOWHERE, 100, {}, Metrics()).dead_letter(dead(b"k" * 2**20, b"v" * 2**24), "é" * 10_000)
    [(_, key, value, headers)] = producer.produced
    assert (headers["key-bytes"], headers["value-bytes"]) == (b"1048576", b"16777216")
    assert set(key) == {ord("k")}
    assert set(value) == {ord("v")}
    assert len(key) + len(value) + sum(map(len, headers.values())) < 2**20
    assert len(headers["reason"]) == 4_000


def test_dead_letter_of_an_empty_record_is_empty(producer: Producer) -> None:
    Producers(NOWHERE, 100, {}, Metrics()).dead_letter(dead(None, None), "empty")
    assert producer.produced[0][1:3] == (None, None)


def test_dead_letter_without_topic_is_logged_and_dropped(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC, "no such topic"))

    monkeypatch.setattr(producer, "produce", refuse)
    Producers(NOWHERE, 100, {}, Metrics()).dead_letter(dead(b"k", b"v"), "no check")
    assert "the dead letter of checks[3]@17 was lost" in caplog.text
    assert "no such topic" in caplog.text


def test_refused_truncation_is_logged_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Future[Any]()
    places = []

    class Admin:
        def delete_records(self, asked: list[TopicPartition]) -> dict[TopicPartition, Future[Any]]:
            places.extend(asked)
            return {asked[0]: refused}

    monkeypatch.setattr("stoplog.kafka.clients.silent_admin", lambda _: Admin())
    Producers(
        KafkaConnection("nowhere:1"), 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics()
    ).truncate_changelog(COUNTERS, 2, 4711)
    refused.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
    assert [(place.topic, place.partition, place.offset) for place in places] == [
        (COUNTERS_CHANGELOG, 2, 4711)
    ]
    for word in (f"{COUNTERS_CHANGELOG}[2]", "4711", "allow it to delete records"):
        assert word in caplog.text


def test_write_to_a_deleted_topic_raises_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def produce(self, *_: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))

    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: Gone())
    producers = Producers(NOWHERE, 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics())
    with pytest.raises(TopicError, match=f"{COUNTERS_CHANGELOG} .* deleted.* `stoplog topics create`"):
        producers.write_changelog(0, COUNTERS, b"key", b"value", lambda *_: None)
    with pytest.raises(TopicError, match="topic checks "):
        producers.relay_update(0, b"value", [], lambda *_: None)
    errors: list[Any] = []
    producers.write_audit(0, b"key", b"value", lambda error, _: errors.append(error.name()))
    assert errors == ["_UNKNOWN_TOPIC"], "a missing audit stops nothing"


def test_write_that_fails_for_another_reason_raises_without_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failed:
        def produce(self, *_: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL))

    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: Failed())
    with pytest.raises(KafkaException):
        Producers(
            KafkaConnection("nowhere:1"), 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics()
        ).write_changelog(0, COUNTERS, b"key", b"value", lambda *_: None)
