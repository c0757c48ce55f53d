"""Skip a batch that librdkafka cannot decompress. It would fetch the same batch again forever.

A broker accepts a batch by its *compressed* size, and a few KiB of zstd can hold gigabytes. librdkafka
decompresses up to ``receive.message.max.bytes``. Beyond that it reports an error and stays where it is. It
does not report where the batch ends, so :class:`BatchSkipper` searches for the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.kafka.lasting_consumer import LastingConsumer

_UNREADABLE: Final = (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)


def is_unreadable(message: Any) -> bool:
    """Return whether *message* is the error of a batch that cannot be decompressed."""
    error = message.error()
    return error is not None and error.code() in _UNREADABLE


def drain(consumer: LastingConsumer, most: int, wait_s: float) -> list[Any]:
    """Return the messages that are there, about *most*; wait up to *wait_s* for the first one.

    ``consume`` alone would wait for the last one.
    """
    first = consumer.poll(wait_s)
    return [] if first is None else [first, *consumer.consume(most, 0)]


class BatchSkipper:
    """Skips the batches that one consumer cannot decompress.

    For a batch of n records, the search seeks about 2 log2(n) times. It doubles its distance until an offset
    lies behind the batch, then halves back to the first such offset.

    Args:
        consumer: The consumer. Its position is moved.
    """

    def __init__(self, consumer: LastingConsumer) -> None:
        self._consumer = consumer
        self._searches: dict[tuple[str, int], _Search] = {}

    def keep(self, messages: Iterable[Any]) -> list[Any]:
        """Return those of *messages* that the caller shall process, and seek as needed.

        The first error of an unreadable batch is among them; its offset is that of the batch's first record.
        Messages that a search came upon are not among them: they are read again in their turn.

        Args:
            messages: All messages of one call of :func:`drain`.
        """
        targets: dict[tuple[str, int], int] = {}
        kept = [message for message in messages if self._is_kept(message, targets)]
        for (topic, partition), offset in targets.items():
            with suppress(KafkaException):  # no longer assigned
                self._consumer.seek(TopicPartition(topic, partition, offset))
        return kept

    def forget(self, topic: str, partition: int) -> None:
        """Forget a revoked partition: its next owner may start before the batch that is being skipped."""
        self._searches.pop((topic, partition), None)

    def _is_kept(self, message: Any, targets: dict[tuple[str, int], int]) -> bool:
        error, bad = message.error(), is_unreadable(message)
        if error is not None and not bad and error.code() != KafkaError._PARTITION_EOF:
            return True
        place = message.topic(), message.partition()
        if place in targets:
            return False  # comes again after the seek
        search = self._searches.get(place)
        if search is not None:
            search.learn(message.offset(), bad)
            if not search.ended:
                targets[place] = search.next(self._end(place))
                return False
            del self._searches[place]
            if search.at != search.behind:
                targets[place] = search.behind
                return False
        if bad:
            self._searches[place] = search = _Search(message.offset())
            targets[place] = search.next(self._end(place))
        return True

    def _end(self, place: tuple[str, int]) -> int:
        """Return the partition's end as of the last fetch; negative if it is unknown."""
        _, end = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
        return int(end)


class _Search:
    """The search for the end of one batch.

    Attributes:
        behind: An offset behind the batch, once one is found.
        at: The offset to which the consumer was moved last.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._within = first  # an offset in the batch
        self._found = False
        self.behind = 0
        self.at = first

    @property
    def ended(self) -> bool:
        """Whether ``behind`` is the first offset behind the batch."""
        return self._found and self.behind == self._within + 1

    def learn(self, offset: int, bad: bool) -> None:
        """Learn what the seek to ``at`` led to.

        Args:
            offset: Offset of the message that came.
            bad: Whether it was the error of an unreadable batch. Its offset is then where that batch begins.
        """
        if bad and offset == self._first:
            self._within = self.at
        else:
            # Another unreadable batch may begin before the offset asked for.
            self.behind = offset if bad else self.at
            self._found = True

    def next(self, end: int) -> int:
        """Return the offset for the next seek: below *end*, or right after the last one in the batch."""
        if self._found:
            self.at = (self._within + self.behind) // 2
        else:
            further = 2 * self._within - self._first + 1
            self.at = max(self._within + 1, min(further, end - 1))
        return self.at
