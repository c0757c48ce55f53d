"""Relay limit updates into the log that decides: from ``limit-updates[p]`` to ``checks[p]``, one at a time.

An update takes effect where it stands in ``checks``. Its version is its offset in ``limit-updates``. After a
restart the relay continues after the highest version found in ``checks``. An update that is relayed twice is
skipped there. The headers of the relayed record name the source of the update.

With relay keys, updates are signed (:mod:`stoplog_worker.algorithm.update_authority`). An update that was
sent without a signature is refused if a signed one comes before it in ``checks``. So the relay keeps each
update until it is applied, and sends those again once the first signed one is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from stoplog.errors import MisroutedRecord
from stoplog.partitioning import home_of, partition_of
from stoplog.wire import partition_count
from stoplog.wire.audit import ChangeSource, source_headers, source_of
from stoplog.wire.checks import encode_update
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, decode_update
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.update_authority import UpdateAuthority

BACKLOG: Final = 1_000
"""Updates read ahead. Consuming pauses at this number, so that a long backlog does not fill the memory."""


class UpdateRelay:
    """The relay of one partition.

    Args:
        partition: The partition's number, in both topics.
        partitions: The number of partitions.
        ledger: Knows which updates are already in ``checks``.
        send: Produces a value and headers to this partition of ``checks``, and calls back with an error or
            ``None``.
        authority: Signs updates.
        signing_key: Returns the id of the key to sign with; ``None`` if no key can be used now.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        ledger: Ledger,
        send: Callable[[bytes, list[tuple[str, bytes]], Callable[[Any, Any], None]], None],
        authority: UpdateAuthority,
        signing_key: Callable[[], str | None],
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._ledger = ledger
        self._send = send
        self._authority = authority
        self._signing_key = signing_key
        self._waiting: deque[tuple[Update, ChangeSource]] = deque()
        """Updates that are not applied yet, the oldest first."""
        self._sent = 0
        """How many of them ``checks`` has."""
        self._in_flight = False
        self._only_signed = ledger.signed_from >= 0
        self.held = False
        """Whether an update waits for a key that all workers have."""

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
        headers = headers_of(message)
        update = decode_update(message.offset(), message.key(), message.value(), headers)
        if update.kind in ("client", "reset"):
            right = partition_of(update.id, self._partitions)
            if right != self._partition:
                raise MisroutedRecord(
                    f"client {update.id!r} belongs to partition {right}, but its update is in partition "
                    f"{self._partition}: choose the partition by murmur2 of the client id alone"
                )
        elif home_of(update.kind, update.id, self._partitions) == self._partition:
            update = msgspec.structs.replace(update, order=update.version)
        self._waiting.append((update, source_of(headers)))

    def advance(self) -> None:
        """Send the next update, unless one is in flight."""
        if self._in_flight:
            return
        while self._waiting and self._waiting[0][0].version <= self._ledger.applied:
            self._waiting.popleft()
            self._sent = max(0, self._sent - 1)
        if not self._only_signed and self._ledger.signed_from >= 0:
            self._only_signed = True
            self._sent = 0
        self.held = False
        if self._sent == len(self._waiting):
            return
        (update, source), key_id = self._waiting[self._sent], self._signing_key()
        if key_id is not None:
            update = self._authority.sign(update, key_id)
        elif self._only_signed:
            self.held = True
            return
        self._in_flight = True
        self._send(encode_update(update), source_headers(source), self._delivered)

    def _delivered(self, error: Any, _message: Any) -> None:
        self._in_flight = False
        if error is None:
            self._sent += 1
