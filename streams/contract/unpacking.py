"""What to do where librdkafka cannot unpack a batch: it would ask for the same one again forever.

A broker takes any batch whose *packed* size is allowed, and a few KiB of zstd can hold gigabytes. librdkafka
unpacks zstd up to ``receive.message.max.bytes``; beyond it reports an error and stays where it is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

BOUNDS: Final = {
    # Bytes in one answer of a broker, packed; and what zstd may unpack to.
    "fetch.max.bytes": 8 * 1024 * 1024,
    "receive.message.max.bytes": 16 * 1024 * 1024,
}
"""Settings of every consumer."""

_UNREADABLE: Final = (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)


class Steps:
    """A consumer's steps over what it cannot unpack, record by record to the end of the batch.

    Note all errors of what was consumed at once, then take the steps: of two errors the second is no news.

    Args:
        consumer: Whose steps they are.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._next: dict[tuple[str, int], int] = {}
        self._sought: dict[tuple[str, int], int] = {}

    def note(self, message: Any) -> bool:
        """Whether *message*, an error, is one to step over."""
        if message.error().code() not in _UNREADABLE:
            return False
        place = message.topic(), message.partition()
        # The error names the batch's first record, even if one further on was asked for.
        self._next[place] = max(message.offset(), self._sought.get(place, -1)) + 1
        return True

    def take(self) -> None:
        """Go on behind what was noted."""
        while self._next:
            (topic, partition), offset = self._next.popitem()
            self._sought[topic, partition] = offset
            with suppress(KafkaException):  # no longer assigned
                self._consumer.seek(TopicPartition(topic, partition, offset))

    def forget(self, topic: str, partition: int) -> None:
        """The partition is left: who reads it again may begin before what was stepped over."""
        self._next.pop((topic, partition), None)
        self._sought.pop((topic, partition), None)
