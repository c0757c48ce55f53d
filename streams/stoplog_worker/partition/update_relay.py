"""Relay limit updates into the log that decides: from ``limit-updates[p]`` to ``checks[p]``, one at a time.

An update takes effect where it stands in ``checks``. Its version is its offset in ``limit-updates``. After a
restart the relay continues after the highest version found in ``checks``. An update that is relayed twice is
skipped there. The headers of the relayed record name the source of the update.

With relay keys, updates are signed (:mod:`stoplog_worker.algorithm.update_authority`). An update that was
sent without a signature is refused if a signed one comes before it in ``checks``. So the relay keeps each
update until it is applied, and sends those again once the first signed one is read.

An update whose key is not in the canonical spelling is then repeated in ``limit-updates``
(:mod:`stoplog_worker.partition.canonical_keys`). The relay sends no other update meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from stoplog.errors import MisroutedRecord
from stoplog.partitioning import home_of, partition_of
from stoplog.wire import partition_count
from stoplog.wire.audit import source_headers, source_of
from stoplog.wire.checks import encode_update
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import MOVED, copied_version, decode_update, encode_update_key
from stoplog.wire.partition_count import PartitionCount
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.partition.canonical_keys import KeyCanonicalizer, QueuedUpdate

BACKLOG: Final = 1_000
"""Updates read ahead. Consuming pauses at this number, so that a long backlog does not fill the memory."""


class UpdateRelay:
    """The relay of one partition.

    Args:
        partition: The partition's number, in both topics.
        count: The number of partitions.
        ledger: Knows which updates are already in ``checks``.
        send: Produces a value and headers to this partition of ``checks``, and calls back with an error or
            ``None``.
        authority: Signs updates.
        signing_key: Returns the id of the key to sign with; ``None`` if no key can be used now.
        canonicalizer: Rewrites keys that are not in the canonical spelling.
    """

    def __init__(
        self,
        partition: int,
        count: PartitionCount,
        ledger: Ledger,
        send: Callable[[bytes, list[tuple[str, bytes]], Callable[[Any, Any], None]], None],
        authority: UpdateAuthority,
        signing_key: Callable[[], str | None],
        canonicalizer: KeyCanonicalizer,
    ) -> None:
        self._partition = partition
        self._count = count
        self._ledger = ledger
        self._send = send
        self._authority = authority
        self._signing_key = signing_key
        self._canonicalizer = canonicalizer
        self._waiting: deque[QueuedUpdate] = deque()
        """Updates that are not applied yet, the oldest first."""
        self._sent = 0
        """How many of them ``checks`` has."""
        self._in_flight = False
        self._only_signed = ledger.signed_from >= 0
        self.held = False
        """Whether an update waits for a key that all workers have."""
        self.next_offset = ledger.applied + 1
        """The next offset of ``limit-updates`` to be read."""

    @property
    def idle(self) -> bool:
        """Whether everything that was read is applied, or has to wait."""
        return not self._in_flight and (not self._waiting or self.held)

    @property
    def full(self) -> bool:
        """Whether consuming should pause."""
        return len(self._waiting) >= BACKLOG

    def take(self, message: Any) -> None:
        """Queue a record of ``limit-updates``. Records that are no updates are skipped.

        Raises:
            RecordError: the record is invalid; nothing is queued.
        """
        self.next_offset = message.offset() + 1
        key, value = message.key(), message.value()
        if self._partition == partition_count.PARTITION and key == partition_count.KEY:
            return
        if value == MOVED:
            return
        headers = headers_of(message)
        update, copy_of = decode_update(message.offset(), key, value, headers), copied_version(headers)
        if update.kind in ("client", "reset"):
            right = partition_of(update.id, self._count.partitions)
            if right != self._partition:
                if self._count.has_copied(self._partition, message.offset(), right):
                    return
                raise MisroutedRecord(
                    f"client {update.id!r} belongs to partition {right}, but its update is in partition "
                    f"{self._partition}: choose the partition by murmur2 of the client id alone, over "
                    f"{self._count.partitions} partitions"
                )
        elif copy_of < 0 and home_of(update.kind, update.id, self._count.first) == self._partition:
            update = msgspec.structs.replace(update, order=update.version)
        other_key = None if key == encode_update_key(update.key) else key
        self._waiting.append(QueuedUpdate(update, source_of(headers), other_key, copy_of))

    def advance(self) -> None:
        """Send the next update, unless one is in flight."""
        if self._in_flight:
            return
        self._drop_applied()
        if self._in_flight:
            return
        if not self._only_signed and self._ledger.signed_from >= 0:
            self._only_signed = True
            self._sent = 0
        self.held = False
        if self._sent == len(self._waiting):
            return
        queued = self._waiting[self._sent]
        if queued.copy_of >= 0 and self._sent:
            return  # whether it repeats anything is known once the updates before it are applied
        update, key_id = queued.update, self._signing_key()
        if key_id is not None:
            update = self._authority.sign(update, key_id)
        elif self._only_signed:
            self.held = True
            return
        self._in_flight = True
        self._send(encode_update(update), source_headers(queued.source), self._delivered)

    def _drop_applied(self) -> None:
        """Drop the first updates that are applied, or begin to rewrite the key of the first one."""
        while self._waiting:
            first = self._waiting[0]
            if first.copy_of >= 0:
                known = self._canonicalizer.applied_version(first.update)
                if known < first.copy_of:  # this lane starts from nothing: the copy is an update like others
                    self._waiting[0] = first._replace(copy_of=-1)
                    continue
                rewrite = known > first.copy_of
            elif first.update.version <= self._ledger.applied:
                rewrite = first.other_key is not None
            else:
                return
            self._in_flight = True  # before rewrite(), which may call back at once
            if rewrite and self._canonicalizer.rewrite(first, self._rewritten):
                return
            self._in_flight = False
            self._drop_first()

    def _drop_first(self) -> None:
        self._waiting.popleft()
        self._sent = max(0, self._sent - 1)

    def _rewritten(self, settled: bool) -> None:
        self._in_flight = False
        if settled:
            self._drop_first()

    def _delivered(self, error: Any, _message: Any) -> None:
        self._in_flight = False
        if error is None:
            self._sent += 1
