"""Report how far each partition has come: lag as a metric, the marker as a committed offset."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.topics import CHECKS
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.partition import Partition


class ProgressReporter:
    """Lag and committed offsets of this worker's partitions.

    Args:
        metrics: Receives the lag.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._committed: dict[int, int] = {}
        self.lag: dict[int, int] = {}
        """Records of ``checks`` not yet judged, by partition."""

    def measure_lag(self, consumer: LastingConsumer, partitions: Iterable[Partition]) -> None:
        """Measure the lag of *partitions* at *consumer*'s last fetch."""
        for partition in partitions:
            number = partition.number
            _, end = consumer.get_watermark_offsets(TopicPartition(CHECKS, number), cached=True)
            self.lag[number] = max(0, end - partition.ledger.next_offset) if end >= 0 else 0
            self._metrics.lag.labels(str(number)).set(self.lag[number])

    def forget(self, number: int) -> None:
        """Drop the lag of a partition that this worker no longer processes."""
        if self.lag.pop(number, None) is not None:
            self._metrics.lag.remove(str(number))

    def commit(self, consumer: LastingConsumer, partitions: Iterable[Partition]) -> None:
        """Commit the markers of *partitions*, for lag monitors. A failed commit is repeated later."""
        markers = {partition.number: partition.ledger.checkpointed.next_offset for partition in partitions}
        places = [
            TopicPartition(CHECKS, number, offset)
            for number, offset in markers.items()
            if self._committed.get(number) != offset
        ]
        if places:
            with suppress(KafkaException):
                consumer.commit(places)

    def on_commit(self, error: Any, places: list[TopicPartition]) -> None:
        """Note which offsets the broker has committed."""
        if error is None:
            self._committed |= {place.partition: place.offset for place in places if place.error is None}
