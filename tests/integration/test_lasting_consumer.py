"""A consumer that knows no broker any more, with a real broker.

Whether librdkafka loses all brokers depends on the order in which two of its threads end, which no test can
choose. A client without bootstrap servers is in the same state from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.topics import CHECKS, REPLIES

PATIENCE_S: Final = 60.0
_LOST: Final = '{"brokers": {"internal": {"source": "internal"}, "coordinator": {"source": "logical"}}}'
"""The part of librdkafka's statistics that names the brokers, when all are lost."""


class Kafka:
    """A broker, and a consumer of ``checks`` whose client can lose all brokers."""

    def __init__(self, broker: Broker) -> None:
        self.producer = Producer({"bootstrap.servers": broker.bootstrap})
        self.config: Callable[[], dict[str, Any]] = lambda: {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "lasting",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
        self.consumers: list[LastingConsumer] = []

    def consumer(self, config: Callable[[], dict[str, Any]] | None = None) -> LastingConsumer:
        consumer = LastingConsumer(config or self.config, statistics_s=0.1)
        self.consumers.append(consumer)
        return consumer

    def write(self, values: str, partition: int = 0, topic: str = CHECKS) -> int:
        """Write a record for each character of *values*; return the offset of the first one."""
        offsets: list[int] = []

        def delivered(_: object, message: Any) -> None:
            offsets.append(message.offset())

        for value in values:
            self.producer.produce(topic, value, partition=partition, on_delivery=delivered)
        assert self.producer.flush(30) == 0
        return offsets[0]


@pytest.fixture
def kafka(fresh_kafka: Broker) -> Iterator[Kafka]:
    kafka = Kafka(fresh_kafka)
    yield kafka
    for consumer in kafka.consumers:
        consumer.close()


def lose(consumer: LastingConsumer) -> None:
    """Have the client of *consumer* report twice that it knows no broker, so that it is replaced."""
    lost = consumer._consumer
    for _ in range(2):
        consumer._on_statistics(consumer._number, _LOST)
    consumer._replace_if_lost()  # as the next poll does
    assert consumer._consumer is not lost


def read(consumer: LastingConsumer, most: int) -> str:
    """Return the values of the next *most* records."""
    values, until = "", time.monotonic() + PATIENCE_S
    while len(values) < most and time.monotonic() < until:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            values += message.value().decode()
    return values


def test_client_that_knows_no_broker_is_replaced_and_reads_what_was_assigned(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    first = kafka.write("abc")
    configs = iter([{"group.id": "lasting"}])
    consumer = kafka.consumer(lambda: next(configs, None) or kafka.config())
    consumer.incremental_assign([TopicPartition(CHECKS, 0, first + 1)])
    assert read(consumer, 2) == "bc"
    assert "checks lost all brokers, so it was replaced" in caplog.text


def test_client_that_only_makes_requests_is_replaced(kafka: Kafka) -> None:
    first = kafka.write("a")
    configs = iter([{"group.id": "lasting", "log_level": 0}])
    consumer = kafka.consumer(lambda: next(configs, None) or kafka.config())
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            _, end = consumer.get_watermark_offsets(TopicPartition(CHECKS, 0), 0.2)
            break
        except KafkaException:
            assert time.monotonic() < until
    assert end == first + 1


def test_client_that_knows_a_broker_stays(kafka: Kafka) -> None:
    first = kafka.write("a")
    consumer = kafka.consumer()
    consumer.assign([TopicPartition(CHECKS, 0, first)])
    client = consumer._consumer
    assert read(consumer, 1) == "a"
    until = time.monotonic() + 1.0  # ten looks
    while time.monotonic() < until:
        consumer.poll(0.1)
    assert consumer._consumer is client
    # A single look without a broker may come at the moment at which the client begins again.
    consumer._on_statistics(consumer._number, _LOST)
    consumer.poll(0)
    assert consumer._consumer is client


def test_new_client_continues_with_each_partition_where_the_old_one_stopped(kafka: Kafka) -> None:
    consumed, sought = kafka.write("abcd", 0), kafka.write("ABCD", 1)
    consumer = kafka.consumer()
    consumer.assign([TopicPartition(CHECKS, 0, consumed)])
    assert read(consumer, 2) == "ab"
    consumer.incremental_assign([TopicPartition(CHECKS, 1, sought)])
    consumer.pause([TopicPartition(CHECKS, 0)])
    assert read(consumer, 3) == "ABC"
    consumer.seek(TopicPartition(CHECKS, 1, sought + 1))
    lose(consumer)
    assert read(consumer, 3) == "BCD"  # partition 0 is still paused
    consumer.resume([TopicPartition(CHECKS, 0)])
    assert read(consumer, 2) == "cd"


def test_new_client_continues_behind_a_seek_that_has_been_read_from(kafka: Kafka) -> None:
    first = kafka.write("abcd")
    consumer = kafka.consumer()
    consumer.assign([TopicPartition(CHECKS, 0, first)])
    assert read(consumer, 1) == "a"
    consumer.seek(TopicPartition(CHECKS, 0, first))
    assert read(consumer, 2) == "ab"
    lose(consumer)
    assert read(consumer, 2) == "cd"


def test_new_client_begins_where_one_without_records_would(kafka: Kafka) -> None:
    kafka.write("old", 2, REPLIES)
    consumer = kafka.consumer()
    consumer.assign([TopicPartition(REPLIES, 2, OFFSET_END), TopicPartition(CHECKS, 3, OFFSET_BEGINNING)])
    lose(consumer)
    kafka.write("x", 3)
    assert read(consumer, 1) == "x"
    until = time.monotonic() + PATIENCE_S
    values = ""
    while not values and time.monotonic() < until:
        kafka.write("new", 2, REPLIES)  # the end is looked up at some time
        values = read(consumer, 3)
    assert set(values) <= set("new")


def test_partition_that_was_given_up_is_not_read_by_the_new_client(kafka: Kafka) -> None:
    given_up, kept = kafka.write("a", 0), kafka.write("b", 1)
    consumer = kafka.consumer()
    consumer.incremental_assign([TopicPartition(CHECKS, 0, given_up), TopicPartition(CHECKS, 1, kept)])
    consumer.incremental_unassign([TopicPartition(CHECKS, 0)])
    lose(consumer)
    assert read(consumer, 1) == "b"
    assert [place.partition for place in consumer.assignment()] == [1]


def test_client_that_cannot_be_replaced_yet_is_replaced_later(kafka: Kafka) -> None:
    first = kafka.write("a")
    answers: list[Any] = [{"group.id": "lasting"}, Unavailable("no token yet")]

    def config() -> dict[str, Any]:
        answer = answers.pop(0) if answers else kafka.config()
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    consumer = kafka.consumer(config)
    consumer.assign([TopicPartition(CHECKS, 0, first)])
    assert read(consumer, 1) == "a"
    assert not answers


@pytest.mark.parametrize("create", [clients.sdk_consumer, lambda kafka: clients.worker_consumer(kafka, "g")])
def test_all_consumers_last(create: Callable[[KafkaConnection], object], fresh_kafka: Broker) -> None:
    consumer = create(KafkaConnection(fresh_kafka.bootstrap))
    assert isinstance(consumer, LastingConsumer)
    consumer.close()
