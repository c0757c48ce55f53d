"""A program that uses Kafka without Stoplog: it writes checks, and reads replies and dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, DEAD_LETTERS, UPDATES, load_topics
from stoplog.wire.limit_updates import UpdateKey, encode_update_key, encode_update_value

BY_KEY: Final = -1
"""In place of a partition: the one to which the producer hashes the key."""


class OtherProducer:
    """A producer of another program: librdkafka, with keys hashed as by the Java client."""

    def __init__(self, bootstrap: str, **settings: Any) -> None:
        own = {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"}
        self._producer = Producer({**own, **settings})

    def publish(self, client: str, value: bytes, partition: int = BY_KEY) -> tuple[int, int]:
        """Publish to ``checks`` under the key *client*; return partition and offset."""
        return self._publish(CHECKS, client.encode(), value, partition)

    def update(self, key: UpdateKey, limits: list[str], partition: int) -> tuple[int, int]:
        """Publish to ``limit-updates``; return partition and offset."""
        value = encode_update_value(parse_policy(limits))
        return self._publish(UPDATES, encode_update_key(key), value, partition)

    def _publish(self, topic: str, key: bytes, value: bytes | None, partition: int) -> tuple[int, int]:
        reports: list[Message] = []

        def report(error: object, message: Message) -> None:
            assert error is None
            reports.append(message)

        self._producer.produce(topic, value, key, partition, on_delivery=report)
        assert self._producer.flush(30) == 0
        [message] = reports
        written_to, offset = message.partition(), message.offset()
        assert written_to is not None
        assert offset is not None
        return written_to, offset

    def check(self, client: str, partition: int = BY_KEY, **fields: Any) -> tuple[int, int]:
        """Publish a check in JSON; return partition and offset."""
        return self.publish(client, json.dumps({"client_id": client, **fields}).encode(), partition)


def read(bootstrap: str, *places: TopicPartition) -> Iterator[Message]:
    """Yield records from these places on, as they arrive."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "a-test"})
    try:
        consumer.assign(list(places))
        while True:
            message = consumer.poll(60)
            assert message is not None, "no more records arrived"
            assert message.error() is None, message.error()
            yield message
    finally:
        consumer.close()


def count_records(bootstrap: str, topic: str) -> int:
    """Return how many records *topic* has, if none has been deleted."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "a-test"})
    try:
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        places = [TopicPartition(topic, partition) for partition in partitions]
        return sum(
            high - low for low, high in (consumer.get_watermark_offsets(place, 30) for place in places)
        )
    finally:
        consumer.close()


class DeadLetter(NamedTuple):
    """A record that a worker has copied to ``dead-letters``."""

    topic: str
    key: bytes | None
    value: bytes | None
    reason: str


def dead_letters(bootstrap: str) -> Iterator[tuple[tuple[int, int], DeadLetter]]:
    """Yield partition and offset that each dead letter had, with its content, as they arrive."""
    partitions = range(load_topics()[DEAD_LETTERS].partitions)
    places = (TopicPartition(DEAD_LETTERS, partition, OFFSET_BEGINNING) for partition in partitions)
    for letter in read(bootstrap, *places):
        headers: dict[str, bytes] = dict(letter.headers() or ())  # type: ignore[arg-type]
        key: Any = letter.key()
        found = DeadLetter(headers["topic"].decode(), key, letter.value(), headers["reason"].decode())
        yield (int(headers["partition"]), int(headers["offset"])), found
