"""What the outbox hands to librdkafka, which is never reached here."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import Metrics
from stoplog_worker.state.store import COUNTERS

from stoplog.errors import TopicError
from stoplog.topics import COUNTERS_CHANGELOG, DEAD_LETTERS


class Message:
    """A record as librdkafka hands it over."""

    def __init__(self, key: bytes | None, value: bytes | None) -> None:
        self._key, self._value = key, value

    def topic(self) -> str:
        return "checks"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 17

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value


class Producer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.produced: list[tuple[Any, ...]] = []

    def produce(self, topic: str, value: Any, key: Any, *_: Any, headers: dict[str, bytes]) -> None:
        self.produced.append((topic, key, value, headers))


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    made = Producer()
    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: made)
    return made


def test_a_dead_letter_says_where_it_came_from(producer: Producer) -> None:
    Producers("nowhere:1", 100, {}, Metrics()).dead_letter(Message(b"k", b"v"), "no check")
    facts = {"reason": b"no check", "topic": b"checks", "partition": b"3", "offset": b"17"}
    assert producer.produced == [(DEAD_LETTERS, b"k", b"v", facts)]


def test_of_a_large_record_the_beginning_and_the_size(producer: Producer) -> None:
    Producers("nowhere:1", 100, {}, Metrics()).dead_letter(Message(b"k" * 2**20, b"v" * 2**24), "é" * 10_000)
    [(_, key, value, headers)] = producer.produced
    assert (headers["key-bytes"], headers["value-bytes"]) == (b"1048576", b"16777216")
    assert set(key) == {ord("k")}
    assert set(value) == {ord("v")}
    assert len(key) + len(value) + sum(map(len, headers.values())) < 2**20
    assert len(headers["reason"]) == 4_000


def test_nothing_of_a_record_without_anything(producer: Producer) -> None:
    Producers("nowhere:1", 100, {}, Metrics()).dead_letter(Message(None, None), "empty")
    assert producer.produced[0][1:3] == (None, None)


def test_a_dead_letter_without_a_topic_is_lost_and_told_of_and_that_is_all(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC, "no such topic"))

    monkeypatch.setattr(producer, "produce", refuse)
    Producers("nowhere:1", 100, {}, Metrics()).dead_letter(Message(b"k", b"v"), "no check")
    assert "the dead letter of checks[3]@17 was lost" in caplog.text
    assert "no such topic" in caplog.text


def test_a_changelog_that_may_not_be_shortened_is_told_of_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Future[Any]()
    places = []

    class Admin:
        def delete_records(self, asked: list[TopicPartition]) -> dict[TopicPartition, Future[Any]]:
            places.extend(asked)
            return {asked[0]: refused}

    monkeypatch.setattr("stoplog.kafka.clients.worker_admin", lambda _: Admin())
    Producers("nowhere:1", 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics()).shorten(COUNTERS, 2, 4711)
    refused.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
    assert [(place.topic, place.partition, place.offset) for place in places] == [
        (COUNTERS_CHANGELOG, 2, 4711)
    ]
    for word in (f"{COUNTERS_CHANGELOG}[2]", "4711", "allow the worker to delete records"):
        assert word in caplog.text


def test_a_changelog_that_is_gone_ends_the_worker_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def produce(self, *_: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))

    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: Gone())
    outbox = Producers("nowhere:1", 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics())
    with pytest.raises(TopicError, match=f"{COUNTERS_CHANGELOG} .* deleted.* `stoplog topics create`"):
        outbox.changelog(0, COUNTERS, b"key", b"value", lambda *_: None)
    with pytest.raises(TopicError, match="topic checks "):
        outbox.update(0, b"value", lambda *_: None)


def test_a_changelog_that_refuses_for_another_reason_is_no_reason_to_delete_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failed:
        def produce(self, *_: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL))

    monkeypatch.setattr("stoplog.kafka.clients.changelog_producer", lambda *_: Failed())
    with pytest.raises(KafkaException):
        Producers("nowhere:1", 100, {COUNTERS: COUNTERS_CHANGELOG}, Metrics()).changelog(
            0, COUNTERS, b"key", b"value", lambda *_: None
        )
