"""What to do where librdkafka cannot unpack a batch: it would ask for the same one again forever.

A broker takes any batch whose *packed* size is allowed, and a few KiB of zstd can hold gigabytes. librdkafka
unpacks zstd up to ``receive.message.max.bytes``; beyond it reports an error and stays where it is. Where the
batch ends it does not say, so that is searched for.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

_UNREADABLE: Final = (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)


def unreadable(message: Any) -> bool:
    """Whether *message* is an error that tells of a batch that cannot be unpacked."""
    error = message.error()
    return error is not None and error.code() in _UNREADABLE


def drain(consumer: Consumer, most: int, wait_s: float) -> list[Any]:
    """All that is there, up to *most*, waiting for the first only (``consume`` alone waits for the last)."""
    first = consumer.poll(wait_s)
    return [] if first is None else [first, *consumer.consume(most, 0)]


class Steps:
    """A consumer's steps over batches that it cannot unpack.

    Of n records in such a batch some 2 log2(n) are asked for: ever further on until one does not lie in it,
    then by halves back to the first behind it.

    Args:
        consumer: Whose steps they are.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._searches: dict[tuple[str, int], _Search] = {}

    def sift(self, messages: Iterable[Any]) -> list[Any]:
        """Those of *messages*, all that was consumed at once, that are to be taken; seeks as needed.

        Of a batch that cannot be unpacked the first error is among them, which has the offset of its first
        record. What a search came upon is not: it is read again, in its turn.
        """
        sought: dict[tuple[str, int], int] = {}
        kept = [message for message in messages if self._keep(message, sought)]
        for (topic, partition), offset in sought.items():
            with suppress(KafkaException):  # no longer assigned
                self._consumer.seek(TopicPartition(topic, partition, offset))
        return kept

    def forget(self, topic: str, partition: int) -> None:
        """The partition is left: who reads it again may begin before what was stepped over."""
        self._searches.pop((topic, partition), None)

    def _keep(self, message: Any, sought: dict[tuple[str, int], int]) -> bool:
        error, bad = message.error(), unreadable(message)
        if error is not None and not bad and error.code() != KafkaError._PARTITION_EOF:
            return True
        place = message.topic(), message.partition()
        if place in sought:
            return False  # behind what it is read from next
        search = self._searches.get(place)
        if search is not None:
            search.learn(message.offset(), bad)
            if not search.ended:
                sought[place] = search.next(self._end(place))
                return False
            del self._searches[place]
            if search.at != search.behind:
                sought[place] = search.behind
                return False
        if bad:
            self._searches[place] = search = _Search(message.offset())
            sought[place] = search.next(self._end(place))
        return True

    def _end(self, place: tuple[str, int]) -> int:
        """The partition's end, as the last fetch saw it; negative if it is not known."""
        _, end = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
        return int(end)


class _Search:
    """For the end of a batch: ``_within`` lies in it, ``behind`` (once found) not; ``at`` is asked for."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._within = first
        self._found = False
        self.behind = 0
        self.at = first

    @property
    def ended(self) -> bool:
        return self._found and self.behind == self._within + 1

    def learn(self, offset: int, bad: bool) -> None:
        """What ``at`` led to: a record, the end, or, if *bad*, an error of the batch that *offset* begins."""
        if bad and offset == self._first:
            self._within = self.at
        else:
            # Another batch that cannot be unpacked may begin before the offset asked for.
            self.behind = offset if bad else self.at
            self._found = True

    def next(self, end: int) -> int:
        """The offset to ask for, below *end*: a record that is there, or the one after ``_within``."""
        if self._found:
            self.at = (self._within + self.behind) // 2
        else:
            further = 2 * self._within - self._first + 1
            self.at = max(self._within + 1, min(further, end - 1))
        return self.at
