"""Relay limit updates into the log that decides: from ``limit-updates[p]`` to ``checks[p]``, one at a time.

An update takes effect where it stands in ``checks``. Its version is its offset in ``limit-updates``. After a
restart the relay continues after the highest version found in ``checks``. An update that is relayed twice is
skipped there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from stoplog.errors import MisroutedRecord
from stoplog.partitioning import home_of, partition_of
from stoplog.wire import partition_count
from stoplog.wire.checks import encode_update
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, decode_update
from stoplog_worker.algorithm.ledger import Ledger

BACKLOG: Final = 1_000
"""Updates read ahead. Consuming pauses at this number, so that a long backlog does not fill the memory."""


class UpdateRelay:
    """The relay of one partition.

    Args:
        partition: The partition's number, in both topics.
        partitions: The number of partitions.
        ledger: Knows which updates are already in ``checks``.
        send: Produces a value to this partition of ``checks``, and calls back with an error or ``None``.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        ledger: Ledger,
        send: Callable[[bytes, Callable[[Any, Any], None]], None],
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._ledger = ledger
        self._send = send
        self._waiting: deque[Update] = deque()
        self._in_flight = False

    @property
    def full(self) -> bool:
        """Whether consuming should pause."""
        return len(self._waiting) >= BACKLOG

    def take(self, message: Any) -> None:
        """Queue a record of ``limit-updates``. The number of partitions (a record, no update) is skipped.

        Raises:
            RecordError: the record is invalid; nothing is queued.
        """
        if self._partition == partition_count.PARTITION and message.key() == partition_count.KEY:
            return
        update = decode_update(message.offset(), message.key(), message.value(), headers_of(message))
        if update.kind in ("client", "reset"):
            right = partition_of(update.id, self._partitions)
            if right != self._partition:
                raise MisroutedRecord(
                    f"client {update.id!r} belongs to partition {right}, but its update is in partition "
                    f"{self._partition}: choose the partition by murmur2 of the client id alone"
                )
        elif home_of(update.kind, update.id, self._partitions) == self._partition:
            update = msgspec.structs.replace(update, order=update.version)
        self._waiting.append(update)

    def advance(self) -> None:
        """Send the next update, unless one is in flight."""
        if self._in_flight:
            return
        while self._waiting and self._waiting[0].version <= self._ledger.applied:
            self._waiting.popleft()
        if self._waiting:
            self._in_flight = True
            self._send(encode_update(self._waiting[0]), self._delivered)

    def _delivered(self, error: Any, _message: Any) -> None:
        self._in_flight = False
        if error is None:
            self._waiting.popleft()
