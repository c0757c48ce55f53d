"""Read one partition from an offset to its present end, or to another offset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic, sleep
from typing import Any, Final, Self, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.batch_skipper import BatchSkipper, drain, is_unreadable
from stoplog.kafka.connection import KafkaConnection

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""Seconds without an answer or a record after which a read fails."""

_CONNECT_S: Final = 5.0
"""Seconds to wait for the first answer of a broker, so that a failure is explained within 10 s."""

_LEADER_S: Final = 10.0
"""Seconds to wait for the leader of a partition. A new topic has none at first, a restarted broker does not
lead at once, and a broker may leave before it answers."""

_RETRY_S: Final = 0.1
"""Seconds between two attempts while there is no leader."""

_LEADERLESS: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._DESTROY_BROKER,
)

_FETCH_WAIT_MS: Final = 10
"""Milliseconds that the broker may wait for more records."""


class PartitionReader:
    """A consumer that reads one partition at a time. All its calls block. Use it as a context manager.

    Args:
        connection: How to reach Kafka.
        most: Records taken at once.
        rest_s: Seconds of rest after they were taken, in which other threads run.
    """

    def __init__(self, connection: KafkaConnection, *, most: int, rest_s: float = 0.0) -> None:
        self._consumer = clients.sdk_consumer(connection, report_end=True, fetch_wait_ms=_FETCH_WAIT_MS)
        self._most = most
        self._rest_s = rest_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def fetch_metadata(self, topics: Iterable[str]) -> None:
        """Look up *topics*, so that a topic that does not exist is an error at once.

        Raises:
            KafkaException: No broker answered, or a topic does not exist or may not be described. Later calls
                do not tell these two apart.
        """
        for topic in topics:
            self._with_leader(partial(self._describe, topic))

    def _describe(self, topic: str) -> None:
        error = self._consumer.list_topics(topic, _CONNECT_S).topics[topic].error
        if error is not None:
            raise KafkaException(error)

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the partition's first offset, and the one after its last.

        Raises:
            KafkaException: The broker did not answer, or there is no such partition.
        """
        place = TopicPartition(topic, partition)
        low, high = self._with_leader(lambda: self._consumer.get_watermark_offsets(place, TIMEOUT_S))
        return low, high

    def _with_leader(self, ask: Callable[[], T]) -> T:
        """Return what *ask* returns, once the partition has a leader.

        Raises:
            KafkaException: It has failed, or there is no leader after :data:`_LEADER_S`. The errors of
                connections, which explain it, were reported before.
        """
        give_up_at = monotonic() + _LEADER_S
        while True:
            try:
                return ask()
            except KafkaException as exc:
                if exc.args[0].code() not in _LEADERLESS or monotonic() > give_up_at:
                    self._consumer.poll(0)
                    raise
            sleep(_RETRY_S)

    def read(self, topic: str, partition: int, start: int, end: int | None = None) -> Iterator[Any]:
        """Yield the records of a partition. Batches that cannot be decompressed are skipped.

        Args:
            topic: The topic.
            partition: The partition.
            start: Offset of the first record. A logical offset (the beginning) would take half a second.
            end: Offset to stop before; ``None`` for the present end.

        Raises:
            KafkaException: The partition cannot be read.
            Unavailable: The broker sent no record for :data:`TIMEOUT_S`.
        """
        self._consumer.assign([TopicPartition(topic, partition, start)])
        skipper = BatchSkipper(self._consumer)
        while messages := drain(self._consumer, self._most, TIMEOUT_S):
            for message in skipper.keep(messages):
                error = message.error()
                if error is None:
                    if end is None or message.offset() < end:
                        yield message
                    if end is not None and message.offset() >= end - 1:
                        return
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not is_unreadable(message):
                    raise KafkaException(error)
            sleep(self._rest_s)
        raise Unavailable(f"the broker returned no record of {topic} for {TIMEOUT_S:g} s: see its log")
