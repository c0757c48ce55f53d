"""Ranges of partitions, read once from one offset to another by who is in no group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams import kafka
from streams.contract.errors import OffsetGone, Unavailable
from streams.contract.unpacking import Steps

_BATCH: Final = 10_000
_SILENCE_S: Final = 15.0
"""How long a broker may take for the next records of a topic that has more."""


class Reading:
    """Reads ranges of partitions.

    Args:
        bootstrap: Servers.
        progress: Called with the topic and how many offsets were passed, and how many there are to pass.
    """

    def __init__(self, bootstrap: str, progress: Callable[[str, float, float], None]) -> None:
        self._progress = progress
        # Two, for where to begin if an offset is gone: a changelog goes on with what it has.
        self._consumers = {
            reset: kafka.consumer(bootstrap, "sluice-verify", on_missing=reset)
            for reset in ("earliest", "error")
        }

    def range_of(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset and the one after the last.

        Raises:
            Unavailable: no broker answered.
        """
        place = TopicPartition(topic, partition)
        try:
            low, high = self._consumers["error"].get_watermark_offsets(place, timeout=_SILENCE_S)
        except KafkaException as exc:
            raise Unavailable(f"{topic}[{partition}]: {exc.args[0].str()}: see that Kafka runs") from exc
        return low, high

    def read(
        self, topic: str, partition: int, start: int, end: int, reset: str = "earliest"
    ) -> Iterator[Any]:
        """Messages from *start* up to *end*.

        Raises:
            OffsetGone: with *reset* ``error``, if the topic no longer holds *start*.
            Unavailable: the broker fell silent.
        """
        if start >= end:
            return
        consumer = self._consumers[reset]
        consumer.assign([TopicPartition(topic, partition, start)])
        steps = Steps(consumer)
        reached, until = start, monotonic() + _SILENCE_S
        while reached < end:
            messages: list[Any] = consumer.consume(_BATCH, 0.5)
            for message in messages:
                error = message.error()
                if error is None:
                    if message.offset() < end:
                        yield message
                    reached = message.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    # The last records may have been compacted: the end is where the broker says it is.
                    reached = end
                elif steps.note(message):
                    reached = message.offset() + 1
                elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise OffsetGone(
                        f"{topic}[{partition}] no longer holds offset {start}: what was decided from there "
                        f"on cannot be recomputed; raise the topic's retention"
                    )
                until = monotonic() + _SILENCE_S
                self._progress(topic, min(reached, end) - start, end - start)
            steps.take()
            if monotonic() > until:
                raise Unavailable(f"{topic}[{partition}] could not be read to {end}: see that Kafka runs")

    def close(self) -> None:
        """Disconnect."""
        for consumer in self._consumers.values():
            consumer.close()
