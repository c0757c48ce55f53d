"""Consume partitions outside any group: continuously, or once from one offset to another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.errors import OffsetGone, Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.batch_skipper import BatchSkipper, drain, is_unreadable
from stoplog.kafka.connection import KafkaConnection

_log = logging.getLogger("stoplog.consumer")

_POLL_S: Final = 0.5
SILENCE_S: Final = 15.0
"""Seconds that a broker may take for the next records of a topic that has more."""
_ASK_S: Final = 5.0
"""Seconds until offsets are requested again: another broker may lead the partition meanwhile."""
_RETRY_S: Final = 0.1
_CHANGING_LEADER: Final = (
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._DESTROY_BROKER,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
"""Errors while a partition has no leader that answers. A broker that has just started knows no partition. A
new leader does not know the end of a partition, nor an epoch that the client has heard of, at once."""
_MISSING_OFFSET: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class Consumed(NamedTuple):
    """The result of one call of :meth:`AssignedConsumer.consume`.

    ``records``: messages without an error. ``ends``: the next offset of each ``(topic, partition)`` that was
    read to its end; the broker reports it, because the last records may be compacted or expired. ``gone``:
    each ``(topic, partition)`` that no longer holds the next offset, and is not read any further.
    """

    records: list[Any]
    ends: dict[tuple[str, int], int]
    gone: set[tuple[str, int]]


class AssignedConsumer:
    """A consumer with manual assignment. It skips batches that it cannot decompress.

    Args:
        connection: How to reach Kafka.
        on_missing: Reaction to an offset that is gone: continue at the ``earliest``, or ``error``.
        most: Records returned by one call at most.
        silence_s: Seconds without an answer, or without a leader, after which the broker counts as
            unavailable.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        on_missing: str = "earliest",
        most: int = 10_000,
        silence_s: float = SILENCE_S,
    ) -> None:
        # The group's name is part of no contract: nothing is committed under it.
        self._consumer = kafka.worker_consumer(connection, "stoplog-reader", on_missing=on_missing)
        self._skipper = BatchSkipper(self._consumer)
        self._most = most
        self._silence_s = silence_s

    def fetch_metadata(self, topics: Iterable[str]) -> None:
        """Look up *topics* before they are assigned. Blocks up to a second a topic."""
        kafka.fetch_metadata(self._consumer, topics)

    def add(self, places: Sequence[TopicPartition]) -> None:
        """Consume *places* from their offsets, in addition to the others."""
        self._consumer.incremental_assign(list(places))

    def remove(self, places: Sequence[TopicPartition]) -> None:
        """Stop consuming *places*."""
        self._consumer.incremental_unassign(list(places))
        for place in places:
            self._skipper.forget(place.topic, place.partition)

    def assign(self, places: Sequence[TopicPartition]) -> None:
        """Consume *places* from their offsets, and nothing else."""
        self.remove(self._consumer.assignment())
        self.add(places)

    def consume(self, wait_s: float) -> Consumed:
        """Return all that is available, up to ``most`` records. Waits up to *wait_s* for the first one.

        Raises:
            KafkaException: a fatal error.
        """
        consumed = Consumed([], {}, set())
        for message in self._skipper.keep(drain(self._consumer, self._most, wait_s)):
            error = message.error()
            if error is None:
                consumed.records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                consumed.ends[message.topic(), message.partition()] = message.offset()
            elif is_unreadable(message):
                _log.warning(
                    "%s[%s]: skipping the batch at offset %s: %s",
                    message.topic(),
                    message.partition(),
                    message.offset(),
                    error.str(),
                )
            elif error.code() in _MISSING_OFFSET:
                consumed.gone.add((message.topic(), message.partition()))
            elif error.fatal():
                raise KafkaException(error)
        return consumed

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """Return a partition's first offset, and the one after its last.

        Raises:
            Unavailable: no broker answered.
        """
        place, until = TopicPartition(topic, partition), monotonic() + self._silence_s
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(place, min(_ASK_S, self._silence_s))
                return low, high
            except KafkaException as exc:
                error = exc.args[0]
                if error.code() not in _CHANGING_LEADER or monotonic() > until:
                    raise Unavailable(
                        f"{topic}[{partition}]: {error.str()}: check that Kafka is running"
                    ) from exc
            self.fetch_metadata([topic])
            sleep(_RETRY_S)

    def read(
        self,
        topic: str,
        partition: int,
        start: int,
        end: int,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Any]:
        """Yield the messages from *start* up to *end*; fewer than that if the topic was compacted.

        Args:
            topic: Topic to read; every other assignment ends.
            partition: Its partition.
            start: First offset to read.
            end: Offset to stop before.
            on_progress: Called with each offset before which everything is read.

        Raises:
            OffsetGone: the topic no longer holds *start*, and ``on_missing`` is not ``earliest``.
            Unavailable: the broker sent nothing for ``silence_s`` seconds.
        """
        if start >= end:
            return
        self.assign([TopicPartition(topic, partition, start)])
        reached, until = start, monotonic() + self._silence_s
        while reached < end:
            consumed = self.consume(_POLL_S)
            if consumed.gone:
                raise OffsetGone(
                    f"{topic}[{partition}] no longer holds offset {start}, so decisions from there on cannot "
                    f"be recomputed: raise the topic's retention"
                )
            for message in consumed.records:
                reached = message.offset() + 1
                if reached <= end:
                    yield message
            if consumed.ends:
                reached = end
            if consumed.records or consumed.ends:
                until = monotonic() + self._silence_s
                on_progress(min(reached, end))
            elif monotonic() > until:
                raise Unavailable(
                    f"{topic}[{partition}] cannot be read to offset {end}: check that Kafka is running"
                )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
