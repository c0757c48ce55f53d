"""Record each change with its author: in the worker's log, and in the topic ``audit``.

An update is recorded when it is applied. Its record in ``audit`` must be acknowledged before a marker passes
the update. If a worker crashes before that, the next owner applies the update again and records it again,
under the same position.

A topic that cannot be written must not stop decisions. So a record is given up after some attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError

from stoplog.partitioning import home_of
from stoplog.policy import Policy
from stoplog.topics import AUDIT
from stoplog.wire.audit import VERSION, AuditRecord, ChangeSource, encode_audit
from stoplog.wire.checks import POSITION_BITS
from stoplog.wire.limit_updates import Update, encode_update_key
from stoplog_worker.algorithm.ledger import UpdateEffect
from stoplog_worker.metrics import Metrics

_log = logging.getLogger("stoplog.audit")

Send = Callable[[bytes, bytes, Callable[[Any, Any], None]], None]
"""Produces key and value to this partition of ``audit``, and calls back with an error or ``None``."""

_ATTEMPTS: Final = 5
"""Attempts to write a record while no broker acknowledges it. Each lasts as long as a send may take."""

_MAX_UNACKNOWLEDGED: Final = 1_000
"""Records sent at once."""

_TRANSIENT: Final = (KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_QUEUE)
"""Errors after which a record is sent again. With all others, another attempt would fail in the same way."""


class _Entry:
    """A record that is not acknowledged."""

    def __init__(self, key: bytes, value: bytes) -> None:
        self.key = key
        self.value = value
        self.attempts = 0


class AuditLog:
    """The audit of one partition.

    Args:
        partition: The partition's number.
        partitions: The number of partitions.
        send: Produces a record; ``None`` if there is no topic to write to.
        metrics: Counts records that were written and lost.
    """

    def __init__(self, partition: int, partitions: int, send: Send | None, metrics: Metrics) -> None:
        self._partition = partition
        self._partitions = partitions
        self._send = send
        self._metrics = metrics
        self._unsent: dict[int, _Entry] = {}
        self._unacknowledged: dict[int, _Entry] = {}

    def record(
        self, update: Update, effect: UpdateEffect, position: int, at_ms: int, source: ChangeSource
    ) -> None:
        """Record an update that was applied.

        Args:
            update: The update.
            effect: The limits that it replaced.
            position: Its position in ``checks``.
            at_ms: The broker's timestamp of its record there, ms since the Unix epoch.
            source: Its source.
        """
        previous = effect.previous
        audit = AuditRecord(
            VERSION,
            position,
            at_ms,
            update.version,
            _spec(update.policy),
            previous.version if previous is not None else None,
            _spec(previous.policy) if previous is not None else None,
            source.who,
            source.address,
            source.request_id,
        )
        self._log(update, audit)
        if self._send is not None:
            self._unsent[position] = _Entry(encode_update_key(update.key), encode_audit(audit))

    def _log(self, update: Update, audit: AuditRecord) -> None:
        """Log the change once, although a plan or the default is changed in every partition."""
        home = update.kind in ("client", "reset") or self._partition == home_of(
            update.kind, update.id, self._partitions
        )
        if not home and update.order >= 0:
            return
        _log.info(
            "%s: %s, was %s; by %s from %s, request %s; version %s, previous version %s, partition %s, "
            "position %s",
            " ".join(filter(None, (update.kind, update.id, update.resource))),
            "counters reset" if update.kind == "reset" else _text(audit.limits),
            _text(audit.previous_limits),
            audit.who,
            audit.address or "-",
            audit.request_id or "-",
            audit.policy_version,
            audit.previous_version,
            self._partition,
            audit.position,
        )

    def advance(self) -> None:
        """Send the records that are not sent yet."""
        send = self._send
        while self._unsent and len(self._unacknowledged) < _MAX_UNACKNOWLEDGED:
            assert send is not None
            position = next(iter(self._unsent))
            entry = self._unacknowledged[position] = self._unsent.pop(position)
            entry.attempts += 1
            send(entry.key, entry.value, partial(self._delivered, position))

    def holds(self, next_offset: int) -> bool:
        """Return whether an update before *next_offset* of ``checks`` waits for its acknowledgment."""
        if not self._unsent and not self._unacknowledged:
            return False
        bound = next_offset << POSITION_BITS
        return any(
            position < bound for waiting in (self._unacknowledged, self._unsent) for position in waiting
        )

    def _delivered(self, position: int, error: Any, _message: Any) -> None:
        entry = self._unacknowledged.pop(position)
        if error is None:
            self._metrics.audit.labels("written").inc()
        elif error.code() in _TRANSIENT and entry.attempts < _ATTEMPTS:
            self._unsent[position] = entry
        else:
            self._metrics.audit.labels("lost").inc()
            _log.error(
                "the change at position %s of partition %s is missing in topic %s (%s), which may have been "
                "deleted (run `stoplog topics create`) or lack the permission to write: %s",
                position,
                self._partition,
                AUDIT,
                error,
                entry.value.decode(),
            )


def _spec(policy: Policy | None) -> Any:
    return None if policy is None else policy.spec()


def _text(limits: Any) -> str:
    """Return limits as a person writes them."""
    if limits is None:
        return "no limits"
    return limits if isinstance(limits, str) else ", ".join(limits)
