"""Follow ``limit-updates``: report each update at once, and prove how far the topic has been read.

A consumer that receives nothing cannot tell whether there is nothing. So while a proof is wanted, the
follower requests the end offset of each partition. Once every record before that end has been reported, every
update that was written before the *request* has been reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any, Final, Protocol

from confluent_kafka import OFFSET_END, KafkaError, KafkaException, TopicPartition

from stoplog.client.update_proofs import PROOF_S
from stoplog.clock import now
from stoplog.errors import UndecodableRecord
from stoplog.kafka.batch_skipper import BatchSkipper, drain
from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.partitioning import partition_of
from stoplog.topics import UPDATES
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, copied_version, decode_update

log = logging.getLogger(__name__)

REQUEST_S: Final = PROOF_S / 8
"""Seconds between two requests for the end offsets. One slow or lost answer does not let the last proof
expire."""

TIMEOUT_S: Final = 1.0
"""Seconds to wait for the end offsets. A later answer proves nothing anymore."""

RETRY_S: Final = 0.5
"""Seconds until a failed request for the position, or a failed read, is repeated."""

TAIL: Final = 1_000
"""Updates read at the start. The last one shows which updates a worker must have applied for its denials to
be stored. In a partition whose last thousand updates were all compacted away, it was applied long ago."""

MAX_RECORDS: Final = 1_000
"""Records taken at once."""


class UpdateListener(Protocol):
    """Receives the follower's reports."""

    def on_updates(self, updates: list[tuple[int, Update]]) -> None:
        """Handle limit updates, each with its partition."""

    def on_updates_read(self, partitions: list[int], at: float) -> None:
        """Handle the proof that every update written to *partitions* before *at* has been reported.

        Args:
            partitions: Partitions of ``limit-updates``.
            at: Seconds by :func:`stoplog.clock.now`.
        """

    def wants_proof(self) -> bool:
        """Return whether :meth:`on_updates_read` would be of use. This is called in the follower's thread."""


class LimitUpdateFollower:
    """Follows every partition of ``limit-updates``, in one thread.

    Args:
        consumer: Reads the topic, and reports the ends of partitions. Nothing else may use it.
        offset_client: Requests end offsets. Nothing else may use it. On the connection of a consumer, a
            request would wait behind its fetch for up to half a second.
        partitions: Number of partitions of ``limit-updates``.
        listener: Handles the reports.
        report: Has a call of *listener* made where it belongs, in the order of the calls.
    """

    def __init__(
        self,
        consumer: LastingConsumer,
        offset_client: LastingConsumer,
        partitions: int,
        listener: UpdateListener,
        report: Callable[[Callable[[], None]], None],
    ) -> None:
        self._consumer = consumer
        self._offset_client = offset_client
        self._skipper = BatchSkipper(consumer)
        self._listener = listener
        self._report = report
        self._partitions = range(partitions)
        self._next: dict[int, int] = {}  # every record before this offset has been reported
        self._ends: dict[int, int] = {}  # end offsets of the last request that have not been reached
        self._requested_at = 0.0

    def run(self, stopping: Event) -> None:
        """Follow until *stopping* is set."""
        while not self._take_position():
            if stopping.wait(RETRY_S):
                return
        while not stopping.is_set():
            try:
                self._read()
            except KafkaException as exc:
                log.warning("cannot read %s, will retry: %s", UPDATES, exc)
                self._assign()
                stopping.wait(RETRY_S)
            self._report_reached_ends()
            self._offset_client.poll(0)  # what the client reports about itself would pile up
            if self._listener.wants_proof() and now() - self._requested_at >= REQUEST_S:
                self._request_ends()
                self._report_reached_ends()

    def _take_position(self) -> bool:
        self._requested_at = now()
        try:
            for partition in self._partitions:
                place = TopicPartition(UPDATES, partition)
                low, high = self._offset_client.get_watermark_offsets(place, TIMEOUT_S)
                self._next[partition], self._ends[partition] = max(low, high - TAIL), high
        except KafkaException as exc:
            log.debug("no position in %s yet: %s", UPDATES, exc)
            return False
        self._assign()
        return True

    def _assign(self) -> None:
        """Read from the first record that has not been reported, even if the consumer has returned it."""
        for partition in self._partitions:
            self._skipper.forget(UPDATES, partition)
        self._consumer.assign([TopicPartition(UPDATES, *position) for position in self._next.items()])

    def _read(self) -> None:
        """Report the records that are there or arrive within :data:`REQUEST_S`."""
        updates: list[tuple[int, Update]] = []
        for message in self._skipper.keep(drain(self._consumer, MAX_RECORDS, REQUEST_S)):
            self._take(message, updates)
        if updates:
            self._report(partial(self._listener.on_updates, updates))

    def _take(self, message: Any, updates: list[tuple[int, Update]]) -> None:
        partition, offset, error = message.partition(), message.offset(), message.error()
        if error is None:
            self._next[partition] = offset + 1
            if (update := self._update_of(message)) is not None:
                updates.append((partition, update))
        elif error.code() == KafkaError._PARTITION_EOF:
            # The end may lie behind records that compaction has removed.
            self._next[partition] = offset
        else:
            log.debug("%s[%s] cannot be read: %s", UPDATES, partition, error.str())

    def _update_of(self, message: Any) -> Update | None:
        """Return the update in *message*; ``None`` if no worker would apply it, or if it repeats another."""
        try:
            headers = headers_of(message)
            update = decode_update(message.offset(), message.key(), message.value(), headers)
        except UndecodableRecord:
            return None
        if copied_version(headers) >= 0:
            return None
        if (
            update.kind in ("client", "reset")
            and partition_of(update.id, len(self._partitions)) != message.partition()
        ):
            return None
        return update

    def _request_ends(self) -> None:
        self._requested_at, self._ends = now(), {}
        places = [TopicPartition(UPDATES, partition, OFFSET_END) for partition in self._partitions]
        try:
            found = self._offset_client.offsets_for_times(places, TIMEOUT_S)
        except KafkaException as exc:
            log.debug("the ends of %s are unknown: %s", UPDATES, exc)
            return
        for place in found:
            # A topic that was created again may end before the last record of the old one: that proves
            # nothing.
            if place.error is None and place.offset >= self._next[place.partition]:
                self._ends[place.partition] = place.offset

    def _report_reached_ends(self) -> None:
        reached = [partition for partition, end in self._ends.items() if self._next[partition] >= end]
        if reached:
            for partition in reached:
                del self._ends[partition]
            self._report(partial(self._listener.on_updates_read, reached, self._requested_at))
