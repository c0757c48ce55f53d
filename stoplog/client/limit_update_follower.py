"""Following ``limit-updates``: what is written there is told at once, and how far that is known is proven.

A consumer that gets nothing cannot tell whether there is nothing. So the end of each partition is asked for,
as long as anybody wants to know; when all before that end has been told, all that was written before the
*asking* has been.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import Any, Final, Protocol

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from stoplog.client.deny_cache import PROOF_S
from stoplog.clock import now
from stoplog.errors import UndecodableRecord
from stoplog.kafka.batch_skipper import Steps, drain
from stoplog.partitioning import partition_of
from stoplog.topics import UPDATES
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, decode_update

log = logging.getLogger(__name__)

ASK_S: Final = PROOF_S / 8
"""Between two questions for the ends: one that is slow, or lost, leaves the last proof standing."""

ANSWER_S: Final = 1.0
"""An answer that takes longer proves nothing any more."""

AGAIN_S: Final = 0.5
"""Until a position that could not be had is tried again."""

TAIL: Final = 1_000
"""Updates read back at the start. The last of them tells what an owner must have applied for its decisions to
count; that of a partition whose last thousand have all been compacted away was applied a month ago."""

DRAIN: Final = 1_000
"""Records taken at once when there are several."""


class Told(Protocol):
    """Who wants to know."""

    def updated(self, updates: list[tuple[int, Update]]) -> None:
        """Updates, each with its partition."""

    def followed(self, partitions: list[int], at: float) -> None:
        """All that was written to *partitions* before *at* (``stoplog.clock``) has been told."""

    def wants_proof(self) -> bool:
        """Whether :meth:`followed` would be of use; asked in the follower's thread."""


class Following:
    """The work of one thread.

    Args:
        consumer: Reads, with ``enable.partition.eof``; of this thread alone, as the next.
        asker: Asks for the ends. Behind the fetch of one that reads, which waits for what may come, a broker
            would keep a question for half a second.
        partitions: Of ``limit-updates``.
        told: Whom to tell.
        tell: Calls a function with arguments where *told* belongs, in the order told.
    """

    def __init__(
        self, consumer: Consumer, asker: Consumer, partitions: int, told: Told, tell: Callable[..., None]
    ) -> None:
        self._consumer = consumer
        self._asker = asker
        self._steps = Steps(consumer)
        self._told = told
        self._tell = tell
        self._all = range(partitions)
        self._next: dict[int, int] = {}  # all before it has been told
        self._ends: dict[int, int] = {}  # as the last question found them
        self._asked_at = 0.0

    def run(self, stopping: Event) -> None:
        """Follow until *stopping*."""
        while not self._take_position():
            if stopping.wait(AGAIN_S):
                return
        while not stopping.is_set():
            try:
                self._read()
            except KafkaException as exc:
                log.warning("%s could not be read, and is tried again: %s", UPDATES, exc)
                self._read_on()
                stopping.wait(AGAIN_S)
            self._prove()
            if self._told.wants_proof() and now() - self._asked_at >= ASK_S:
                self._ask()
                self._prove()

    def _take_position(self) -> bool:
        self._asked_at = now()
        try:
            for partition in self._all:
                place = TopicPartition(UPDATES, partition)
                low, high = self._asker.get_watermark_offsets(place, ANSWER_S)
                self._next[partition], self._ends[partition] = max(low, high - TAIL), high
        except KafkaException as exc:
            log.debug("no position in %s yet: %s", UPDATES, exc)
            return False
        self._read_on()
        return True

    def _read_on(self) -> None:
        """Read from where all before has been told: what was taken from the consumer and not told, too."""
        for partition in self._all:
            self._steps.forget(UPDATES, partition)
        self._consumer.assign([TopicPartition(UPDATES, *position) for position in self._next.items()])

    def _read(self) -> None:
        """Tell what is there, or comes within :data:`ASK_S`."""
        updates: list[tuple[int, Update]] = []
        for message in self._steps.sift(drain(self._consumer, DRAIN, ASK_S)):
            self._take(message, updates)
        if updates:
            self._tell(self._told.updated, updates)

    def _take(self, message: Any, updates: list[tuple[int, Update]]) -> None:
        partition, offset, error = message.partition(), message.offset(), message.error()
        if error is None:
            self._next[partition] = offset + 1
            if (update := self._update_of(message)) is not None:
                updates.append((partition, update))
        elif error.code() == KafkaError._PARTITION_EOF:
            # Past records that compaction has removed.
            self._next[partition] = offset
        else:
            log.debug("%s[%s] cannot be read: %s", UPDATES, partition, error.str())

    def _update_of(self, message: Any) -> Update | None:
        """The update, if its owner can apply it."""
        try:
            update = decode_update(message.offset(), message.key(), message.value(), headers_of(message))
        except UndecodableRecord:
            return None
        if (
            update.kind in ("client", "reset")
            and partition_of(update.id, len(self._all)) != message.partition()
        ):
            return None
        return update

    def _ask(self) -> None:
        """Ask where the partitions end now."""
        self._asked_at, self._ends = now(), {}
        places = [TopicPartition(UPDATES, partition, OFFSET_END) for partition in self._all]
        try:
            found = self._asker.offsets_for_times(places, ANSWER_S)
        except KafkaException as exc:
            log.debug("where %s ends is not known: %s", UPDATES, exc)
            return
        for place in found:
            # A topic that was made again may end before what was told of the old one: that proves nothing.
            if place.error is None and place.offset >= self._next[place.partition]:
                self._ends[place.partition] = place.offset

    def _prove(self) -> None:
        """Tell which partitions' ends have been reached."""
        reached = [partition for partition, end in self._ends.items() if self._next[partition] >= end]
        if reached:
            for partition in reached:
                del self._ends[partition]
            self._tell(self._told.followed, reached, self._asked_at)
