"""Partitions read by who is in no group: on and on, or once from one offset to another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.errors import OffsetGone, Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.batch_skipper import Steps, drain, unreadable

_log = logging.getLogger("stoplog.reader")

_POLL_S: Final = 0.5
_SILENCE_S: Final = 15.0
"""How long a broker may take for the next records of a topic that has more."""
_GONE: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class Consumed(NamedTuple):
    """What was there to be read.

    ``ends`` has the next offset of each ``(topic, partition)`` that was read to its end: the last records may
    have been compacted or have expired, so the end is where the broker says it is. ``gone``: those that no
    longer hold the offset to be read next, and are read no more.
    """

    records: list[Any]
    ends: dict[tuple[str, int], int]
    gone: set[tuple[str, int]]


class AssignedConsumer:
    """A consumer of the partitions that it is told; what it cannot unpack it steps over.

    Args:
        bootstrap: Servers.
        on_missing: Where to begin if an offset is gone: ``earliest``, or nowhere: ``error``.
        most: Records consumed at once.
    """

    def __init__(self, bootstrap: str, *, on_missing: str = "earliest", most: int = 10_000) -> None:
        self._consumer = kafka.worker_consumer(bootstrap, "stoplog-reader", on_missing=on_missing)
        self._steps = Steps(self._consumer)
        self._most = most

    def prefetch_metadata(self, topics: Iterable[str]) -> None:
        """Know where *topics* are before they are read; blocks for a moment."""
        kafka.fetch_metadata(self._consumer, topics)

    def add(self, places: Sequence[TopicPartition]) -> None:
        """Read *places*, too, from their offsets."""
        self._consumer.incremental_assign(list(places))

    def remove(self, places: Sequence[TopicPartition]) -> None:
        """Read *places* no more."""
        self._consumer.incremental_unassign(list(places))
        for place in places:
            self._steps.forget(place.topic, place.partition)

    def assign(self, places: Sequence[TopicPartition]) -> None:
        """Read *places* from their offsets, and nothing else."""
        self.remove(self._consumer.assignment())
        self.add(places)

    def consume(self, wait_s: float) -> Consumed:
        """All that is there, up to ``most`` records; waits up to *wait_s* for the first.

        Raises:
            KafkaException: it cannot go on.
        """
        consumed = Consumed([], {}, set())
        for message in self._steps.sift(drain(self._consumer, self._most, wait_s)):
            error = message.error()
            if error is None:
                consumed.records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                consumed.ends[message.topic(), message.partition()] = message.offset()
            elif unreadable(message):
                _log.warning(
                    "%s[%s]: the batch at offset %s is stepped over: %s",
                    message.topic(),
                    message.partition(),
                    message.offset(),
                    error.str(),
                )
            elif error.code() in _GONE:
                consumed.gone.add((message.topic(), message.partition()))
            elif error.fatal():
                raise KafkaException(error)
        return consumed

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset and the one after the last.

        Raises:
            Unavailable: no broker answered.
        """
        try:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=_SILENCE_S
            )
        except KafkaException as exc:
            raise Unavailable(f"{topic}[{partition}]: {exc.args[0].str()}: see that Kafka runs") from exc
        return low, high

    def read(
        self,
        topic: str,
        partition: int,
        start: int,
        end: int,
        passed: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Any]:
        """Messages from *start* up to *end*, fewer where it has been compacted.

        Args:
            topic: Read instead of all else.
            partition: Of it.
            start: An offset.
            end: Another.
            passed: Called with each offset up to which has been read.

        Raises:
            OffsetGone: without *on_missing* ``earliest``, if the topic no longer holds *start*.
            Unavailable: the broker fell silent.
        """
        if start >= end:
            return
        self.assign([TopicPartition(topic, partition, start)])
        reached, until = start, monotonic() + _SILENCE_S
        while reached < end:
            consumed = self.consume(_POLL_S)
            if consumed.gone:
                raise OffsetGone(
                    f"{topic}[{partition}] no longer holds offset {start}: what was decided from there "
                    f"on cannot be recomputed; raise the topic's retention"
                )
            for message in consumed.records:
                reached = message.offset() + 1
                if reached <= end:
                    yield message
            if consumed.ends:
                reached = end
            if consumed.records or consumed.ends:
                until = monotonic() + _SILENCE_S
                passed(min(reached, end))
            elif monotonic() > until:
                raise Unavailable(f"{topic}[{partition}] could not be read to {end}: see that Kafka runs")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
