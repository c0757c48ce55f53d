"""Record each change with its author: in the worker's log, and in the topic ``audit``.

An update is recorded when it is applied. Until its record in ``audit`` is acknowledged, no marker passes the
update. If a worker crashes before that, the next owner applies the update again and records it again, under
the same position.

A record that no broker acknowledges is sent again for as long as this worker owns the partition. Meanwhile
decisions go on. The relay stops once many records wait. A record that a broker refuses, because the topic or
the permission is missing, is given up: the log then has it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError

from stoplog.log_throttle import LogThrottle
from stoplog.partitioning import home_of
from stoplog.policy import Policy
from stoplog.topics import AUDIT
from stoplog.wire.audit import VERSION, AuditRecord, ChangeSource, encode_audit
from stoplog.wire.limit_updates import Update, encode_update_key
from stoplog.wire.partition_count import PartitionCount
from stoplog_worker.algorithm.ledger import UpdateEffect
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.metrics import Metrics

_log = logging.getLogger("stoplog.audit")

Send = Callable[[bytes, bytes, Callable[[Any, Any], None]], None]
"""Produces key and value to this partition of ``audit``, and calls back with an error or ``None``."""

_MAX_BATCH: Final = 1_000
"""Records sent at once. They are in order, because the next batch waits until all of them are settled."""

_BEHIND: Final = 1_000
"""Waiting records with which the relay stops. They take about 1 MB."""

_FULL: Final = 10_000
"""Waiting records with which the worker stops to read ``checks``. The relay has stopped long before. So the
log was written by another lane or another program, or it is being read again after a crash."""

_RETRY_S: Final = 0.5
"""Seconds after a failed batch until it is sent again."""

_SAME_TEXT_S: Final = 60.0
"""Seconds between two log lines about records that are not acknowledged."""

_REFUSALS: Final = (
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
)
"""Errors after which another attempt would fail in the same way until an operator acts."""


class _Entry(NamedTuple):
    """A record that is not acknowledged."""

    position: int
    key: bytes
    value: bytes
    replay_from: Marker


class AuditLog:
    """The audit of one partition.

    Args:
        partition: The partition's number.
        count: The number of partitions.
        send: Produces a record; ``None`` if there is no topic to write to.
        metrics: Counts records that were written and lost.
    """

    def __init__(self, partition: int, count: PartitionCount, send: Send | None, metrics: Metrics) -> None:
        self._partition = partition
        self._count = count
        self._send = send
        self._metrics = metrics
        self._unsent: deque[_Entry] = deque()
        """Records to send, in the order of their positions."""
        self._batch: dict[int, _Entry] = {}
        """The records that were sent last, by position, without those that are settled."""
        self._failed: list[_Entry] = []
        """Records of that batch to send again."""
        self._retry_at = -inf
        self._throttle = LogThrottle(_SAME_TEXT_S)

    @property
    def waiting(self) -> bool:
        """Whether a record is not acknowledged."""
        return bool(self._batch or self._failed or self._unsent)

    @property
    def behind(self) -> bool:
        """Whether so many records are not acknowledged that the relay should pause."""
        return self._size >= _BEHIND

    @property
    def full(self) -> bool:
        """Whether so many records are not acknowledged that no further update may be read."""
        return self._size >= _FULL

    @property
    def _size(self) -> int:
        return len(self._batch) + len(self._failed) + len(self._unsent)

    def replay_from(self) -> Marker | None:
        """Return the marker before the first update whose record is not acknowledged; ``None`` if all are."""
        sent = min((*self._batch.values(), *self._failed), default=None)
        first = sent or (self._unsent[0] if self._unsent else None)
        return None if first is None else first.replay_from

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
            key, value = encode_update_key(update.key), encode_audit(audit)
            self._unsent.append(_Entry(position, key, value, effect.replay_from))

    def _log(self, update: Update, audit: AuditRecord) -> None:
        """Log the change once, although a plan or the default is changed in every partition."""
        home = update.kind in ("client", "reset") or self._partition == home_of(
            update.kind, update.id, self._count.first
        )
        if not home and update.order >= 0:
            return
        _log.info(
            "%s: %s; by %s from %s, request %s; version %s, previous version %s, partition %s, position %s",
            " ".join(
                filter(
                    None, ("client" if update.kind == "reset" else update.kind, update.id, update.resource)
                )
            ),
            _change(update, audit),
            audit.who,
            audit.address or "-",
            audit.request_id or "-",
            audit.policy_version,
            "-" if audit.previous_version is None else audit.previous_version,
            self._partition,
            audit.position,
        )

    def advance(self, now: float) -> None:
        """Send the next batch, unless one is in flight. *now* is in monotonic seconds."""
        if self._batch or not (self._unsent or self._failed) or now < self._retry_at:
            return
        if self._failed:
            self._unsent.extendleft(sorted(self._failed, reverse=True))
            self._failed = []
            self._retry_at = now + _RETRY_S  # should the batch fail again, at once
        send = self._send
        assert send is not None
        batch = [self._unsent.popleft() for _ in range(min(len(self._unsent), _MAX_BATCH))]
        self._batch = {entry.position: entry for entry in batch}
        for entry in batch:
            send(entry.key, entry.value, partial(self._delivered, entry.position))

    def _delivered(self, position: int, error: Any, _message: Any) -> None:
        entry = self._batch.pop(position)
        if error is None:
            self._metrics.audit.labels("written").inc()
        elif error.code() not in _REFUSALS:
            self._failed.append(entry)
            if (suppressed := self._throttle.admit()) is not None:
                _log.warning(
                    "the change at position %s of partition %s is not in topic %s yet (%s); trying again "
                    "until it is. No further change applies while %s records wait%s",
                    position,
                    self._partition,
                    AUDIT,
                    error.str(),
                    f"{_BEHIND:,}",
                    suppressed,
                )
        else:
            self._metrics.audit.labels("lost").inc()
            _log.error(
                "the change at position %s of partition %s is missing in topic %s (%s), which may have been "
                "deleted (run `stoplog topics create`) or lack the permission to write: %s",
                position,
                self._partition,
                AUDIT,
                error.str(),
                entry.value.decode(),
            )


def _spec(policy: Policy | None) -> Any:
    return None if policy is None else policy.spec()


def _change(update: Update, audit: AuditRecord) -> str:
    """Return a change as a person writes it."""
    if update.kind == "reset":
        return "counters reset"
    change = "limits deleted" if audit.limits is None else f"limits set to {_text(audit.limits)}"
    return f"{change}, before: {_text(audit.previous_limits)}"


def _text(limits: Any) -> str:
    """Return limits as a person writes them."""
    if limits is None:
        return "no limits"
    return limits if isinstance(limits, str) else ", ".join(limits)
