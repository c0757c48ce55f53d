"""Read ranges of partitions, and report the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stoplog.kafka.connection import KafkaConnection
from stoplog_worker.kafka.assigned_consumer import SILENCE_S, AssignedConsumer

OnProgress = Callable[[str, float, float], None]
"""Called with the name of the current step, how much of it is done, and how much there is."""


class ProgressReader:
    """Reads ranges of partitions.

    Args:
        connection: How to reach Kafka.
        on_progress: Called with the topic and offsets as they are read.
        silence_s: Seconds without an answer after which the broker counts as unavailable.
    """

    def __init__(
        self, connection: KafkaConnection, on_progress: OnProgress, silence_s: float = SILENCE_S
    ) -> None:
        self._on_progress = on_progress
        # If the start offset is gone, a changelog is read from its beginning. For the log, that is an error.
        self._consumers = {
            on_missing: AssignedConsumer(connection, on_missing=on_missing, silence_s=silence_s)
            for on_missing in ("earliest", "error")
        }

    def fetch_metadata(self, topics: Iterable[str]) -> None:
        """Look up *topics* again, after partitions were added to them."""
        for consumer in self._consumers.values():
            consumer.fetch_metadata(topics)

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last.

        Raises:
            Unavailable: no broker answered.
        """
        return self._consumers["error"].offset_range(topic, partition)

    def read(
        self, topic: str, partition: int, start: int, end: int, on_missing: str = "earliest"
    ) -> Iterator[Any]:
        """Yield the messages from *start* up to *end*.

        Args:
            topic: The topic.
            partition: The partition.
            start: First offset.
            end: Offset after the last.
            on_missing: Beginning if *start* is gone: at the ``earliest`` offset, or nowhere (``error``).

        Raises:
            OffsetGone: *start* is gone, and *on_missing* is ``error``.
            Unavailable: the broker stopped answering.
        """

        def on_read(offset: int) -> None:
            self._on_progress(topic, offset - start, end - start)

        return self._consumers[on_missing].read(topic, partition, start, end, on_read)

    def close(self) -> None:
        """Disconnect."""
        for consumer in self._consumers.values():
            consumer.close()
