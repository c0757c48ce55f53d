"""What ``stoplog verify`` reads: ranges of partitions, while it says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stoplog_worker.kafka.assigned_consumer import AssignedConsumer


class Reading:
    """Reads ranges of partitions.

    Args:
        bootstrap: Servers.
        progress: Called with the topic and how many offsets were passed, and how many there are to pass.
    """

    def __init__(self, bootstrap: str, progress: Callable[[str, float, float], None]) -> None:
        self._progress = progress
        # Two, for where to begin if an offset is gone: a changelog goes on with what it has.
        self._readers = {
            reset: AssignedConsumer(bootstrap, on_missing=reset) for reset in ("earliest", "error")
        }

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset and the one after the last.

        Raises:
            Unavailable: no broker answered.
        """
        return self._readers["error"].offset_range(topic, partition)

    def read(
        self, topic: str, partition: int, start: int, end: int, reset: str = "earliest"
    ) -> Iterator[Any]:
        """Messages from *start* up to *end*.

        Raises:
            OffsetGone: with *reset* ``error``, if the topic no longer holds *start*.
            Unavailable: the broker fell silent.
        """

        def passed(offset: int) -> None:
            self._progress(topic, offset - start, end - start)

        return self._readers[reset].read(topic, partition, start, end, passed)

    def close(self) -> None:
        """Disconnect."""
        for reader in self._readers.values():
            reader.close()
